"""Checkpoints: a run that is killed goes on where it was, bit for bit.

A checkpoint is a folder with one numpy archive a chunk of work (and process), replaced whole or not at all. Each
holds the arguments that it belongs to; a run with any other refuses it and says which one differs.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax._checks import positive_int
from nfd_jax._types import PyTree
from nfd_jax.runtime import devices, identity
from nfd_jax.runtime.files import checksum, replacing, writable_folder
from nfd_jax.task import Task

ARGUMENTS, CHECKSUM = "arguments", "checksum"  # their names in an archive


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is kept, how often it is written, and what it is a run of."""

    folder: Path
    every: int
    arguments: Mapping[str, Any]

    @classmethod
    def create(
        cls, folder: str | Path | None, every: int, task: Task, arguments: Mapping[str, Any]
    ) -> Checkpoint | None:
        """None for no folder. Everything that decides the numbers of a run is among its arguments."""
        positive_int("checkpoint_every", every)
        if folder is None:
            return None
        path, device = writable_folder("checkpoint", folder), jax.devices()[0]
        everything = {
            **arguments,
            "data": _fingerprint(task),
            **identity.environment(),
            "devices": f"{devices.device_count()} x {device.device_kind} in {jax.process_count()} processes",
        }
        return cls(path, every, json.loads(json.dumps(everything, default=str)))

    def is_due(self, done: int, more: int = 1) -> bool:
        """Whether so many steps done, the last `more` of them at once, call for writing."""
        return done // self.every > (done - more) // self.every

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Replace one archive, whole or not at all."""
        with replacing(self._path(name)) as partial, open(partial, "wb") as file:
            named = {ARGUMENTS: np.array(json.dumps(self.arguments)), CHECKSUM: np.array(checksum(arrays))}
            np.savez(file, allow_pickle=False, **named, **arrays)

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """An archive, None where there is none yet; ValueError where it is of other arguments or no archive."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            stored, whole = json.loads(str(arrays.pop(ARGUMENTS))), str(arrays.pop(CHECKSUM))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"checkpoint {str(path)!r} is not an archive of nfd_jax ({error}); remove it") from error
        for key in (*self.arguments, *stored):
            was, now = stored.get(key), self.arguments.get(key)
            if was != now:
                raise ValueError(
                    f"checkpoint {str(self.folder)!r} is of a run with {key}={was!r}, and {key}={now!r} was asked for; "
                    "give another folder, or the arguments of that run"
                )
        if checksum(arrays) != whole:
            raise ValueError(f"checkpoint {str(path)!r} does not hold what was written to it; remove it")
        return arrays

    def _path(self, name: str) -> Path:
        count = jax.process_count()
        part = "" if count == 1 else f".process-{jax.process_index()}-of-{count}"
        return self.folder / f"{name}{part}.npz"


def _fingerprint(task: Task) -> str:
    """Of all arrays of a task."""
    parts = {"train": task, **({"held out": task.held_out} if task.held_out else {})}
    arrays = {f"{name} {kind}": getattr(part, kind) for name, part in parts.items() for kind in ("inputs", "targets")}
    return checksum(arrays)[:16]


def arrays_of(state: PyTree) -> dict[str, np.ndarray]:
    """The numbers of a state that this process holds, by leaf and device; keys of draws never change."""
    return {
        f"state-{index}-{place}": np.asarray(shard.data)
        for index, leaf in enumerate(jax.tree.leaves(state))
        if not _is_key(leaf)
        for place, shard in enumerate(leaf.addressable_shards)
    }


def with_arrays(state: PyTree, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The state with these numbers instead of its own, where its own were."""
    leaves, structure = jax.tree.flatten(state)
    for index, leaf in enumerate(leaves):
        if not _is_key(leaf):
            parts = [
                jax.device_put(arrays[f"state-{index}-{place}"], shard.device)
                for place, shard in enumerate(leaf.addressable_shards)
            ]
            leaves[index] = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)
    return jax.tree.unflatten(structure, leaves)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
