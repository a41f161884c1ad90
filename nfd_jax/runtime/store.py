"""Records on disk, found by what they depend on: checkpoints, replicates, cells of sweeps, studies and comparisons.

A record is a numpy archive that says what it is a record of; asked for with other arguments, it is refused, and the
argument that differs named. It is written whole, or grows: then what is new goes into a numbered part, and the archive
itself has the number of parts and a state, which is replaced. A kill between the two leaves a part that does not count.

An archive says besides what made it: code, command, device and seconds. None of that decides what it is a record of.

`shared` makes the records that are missing, each by one of the processes that have this folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nfd_jax._checks import positive_int
from nfd_jax._types import PyTree
from nfd_jax.runtime import devices, threads
from nfd_jax.runtime.claims import claim, holder
from nfd_jax.runtime.files import checksum, replacing, writable_folder
from nfd_jax.runtime.identity import identity
from nfd_jax.runtime.parts import Incomplete
from nfd_jax.runtime.provenance import provenance
from nfd_jax.task import Task

ARGUMENTS, CHECKSUM, MADE, PARTS = "arguments", "checksum", "made", "parts"  # their names in an archive
POLL = 1.0  # seconds between two looks at what others are making

Arrays = Mapping[str, np.ndarray]


class Record:
    """One record: where it is, and what it depends on.

    Args:
        folder: Where it is.
        arguments: What it depends on, as `identity` gives it.
        name: Of its archive; by default made of the arguments, so that records of others have other names.
        divided: Of several processes of one run, each has a part of the numbers, and an archive. Otherwise all have
            the same, which process 0 reads and writes.
        called: What messages call it.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Mapping[str, Any],
        name: str | None = None,
        *,
        divided: bool = False,
        called: str = "record",
    ):
        self.folder, self.arguments, self.called, self.divided = folder, arguments, called, divided
        self.name, self.parts = name or _digest(arguments), 0
        self.made: dict[str, Any] = {}  # what made it, once it is read
        several = divided and jax.process_count() > 1
        self._suffix = f".process-{jax.process_index()}-of-{jax.process_count()}.npz" if several else ".npz"

    @property
    def path(self) -> Path:
        """Of the archive."""
        return self.folder / f"{self.name}{self._suffix}"

    def read(self) -> dict[str, np.ndarray] | None:
        """All arrays, of the parts and the state; None where there is no record yet, or where processes that are
        killed between their writes have different ones. ValueError where it is of other arguments, or not whole."""
        arrays = self._load(self.path, self.arguments)
        parts = 0 if arrays is None else int(arrays.pop(PARTS))
        self.parts = 0
        if not devices.same(-1 if arrays is None else parts) or arrays is None:
            return None
        self.parts = parts
        for number in range(parts):
            path = self._part(number)
            part = self._load(path, self._part_of)
            if part is None:
                raise ValueError(f"{self.called} {str(self.path)!r} lacks its part {path.name}; remove it")
            arrays |= part
        return arrays

    def write(self, arrays: Arrays, **made: Any) -> None:
        """Replace the record, whole or not at all; `made`: what is to be known of how, besides its provenance."""
        self.parts = 0
        self._write(self.path, arrays, self.arguments, self.parts, made)
        if self._writes:
            for path in self.folder.glob(f"{self.name}-part-*{self._suffix}"):
                with suppress(OSError):
                    path.unlink()

    def append(self, new: Arrays, state: Arrays = MappingProxyType({})) -> None:
        """Add `new` to the record, and replace its state. Call `read` before: it says how many parts there are.

        Names are those of all arrays of the record: a part has none of another.
        """
        self._write(self._part(self.parts), new, self._part_of)
        self._write(self.path, state, self.arguments, self.parts + 1)
        self.parts += 1

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether this run, of those with this folder, is the one to make the record."""
        with claim(self.path) if jax.process_index() == 0 else nullcontext(False) as own:
            yield bool(devices.agreed(float(own)))

    @property
    def _writes(self) -> bool:
        return self.divided or jax.process_index() == 0

    @property
    def _part_of(self) -> dict[str, Any]:
        return {"part of": _digest(self.arguments)}

    def _part(self, number: int) -> Path:
        return self.folder / f"{self.name}-part-{number:03d}{self._suffix}"

    def _write(
        self,
        path: Path,
        arrays: Arrays,
        arguments: Mapping[str, Any],
        parts: int | None = None,
        made: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if self._writes:
            arrays = dict(arrays) if parts is None else {**arrays, PARTS: np.array(parts)}
            with replacing(path) as unfinished, open(unfinished, "wb") as file:
                named = {ARGUMENTS: np.array(json.dumps(arguments)), CHECKSUM: np.array(checksum(arrays))}
                if parts is not None:
                    named[MADE] = np.array(json.dumps({**provenance(), **made}))
                np.savez(file, allow_pickle=False, **named, **arrays)

    def _load(self, path: Path, arguments: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The arrays of an archive, checked."""
        reads = path.exists() if self._writes else False
        try:
            content = path.read_bytes() if reads else None
            content = content if self.divided else devices.broadcast(content)
            if content is None:
                return None
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            stored, whole = json.loads(str(arrays.pop(ARGUMENTS))), str(arrays.pop(CHECKSUM))
            if MADE in arrays:  # parts have none, nor had older archives
                self.made = json.loads(str(arrays.pop(MADE)))
        except Exception as error:  # of whatever kind is raised for a file that is not whole
            raise ValueError(
                f"{self.called} {str(path)!r} is not an archive of nfd_jax ({error}); remove it"
            ) from error
        for key in (*arguments, *stored):
            was, now = stored.get(key), arguments.get(key)
            if was != now:
                raise ValueError(
                    f"{self.called} {str(path)!r} is of a run with {key}={was!r}, and {key}={now!r} was asked for; "
                    "give another folder, or the arguments of that run"
                )
        if checksum(arrays) != whole:
            raise ValueError(f"{self.called} {str(path)!r} does not hold what was written to it; remove it")
        return arrays


def shared(
    records: Sequence[Record | None],
    make: Callable[[int], Arrays],
    done: Callable[[int], object] = lambda place: None,
    own: Container[int] | None = None,
    at_once: int = 1,
) -> list[dict[str, np.ndarray]]:
    """The arrays of all records: of those that are there, of those that `make(place)` makes here and writes, so many
    threads at once, and of those that other processes make meanwhile. None is made and not recorded. `done(place)` is
    called for each.

    `own`: the places of those that are made here or waited for; by default all. `Incomplete` where others are not there
    at the end. Records of other arguments are refused before any is made.
    """
    found: dict[int, dict[str, np.ndarray]] = {}

    def take(place: int, arrays: dict[str, np.ndarray] | None) -> None:
        if arrays is not None:
            found[place] = arrays
            done(place)

    def read(places: Iterable[int]) -> list[int]:
        """Those that are not there."""
        for place in places:
            record = records[place]
            take(place, None if record is None else record.read())
        return [place for place in places if place not in found]

    absent = read(range(len(records)))
    own = range(len(records)) if own is None else own
    others = [place for place in absent if place not in own]
    missing, told = [place for place in absent if place in own], False
    while missing:
        threads.each(lambda place: take(place, _made(records[place], partial(make, place))), missing, at_once)
        left = [place for place in missing if place not in found]
        if len(left) == len(missing):  # others are at work on all of them
            if not told and jax.process_index() == 0:
                held = {holder(record.path) for place in left if (record := records[place]) is not None}
                tqdm.write(f"waiting for {len(left)} records of {'; '.join(sorted(held))}", file=sys.stderr)
            told = True
            sleep(POLL)
        missing = left
    if left := read(others):
        raise Incomplete(
            f"{len(left)} of {len(records)} cells are not in {_folder(records)!r} yet: other parts make them, and the "
            "last to finish concludes. Where one has failed, --part all (part='all' in Python) makes what is missing "
            "and then concludes"
        )
    return [found[place] for place in range(len(records))]


def _folder(records: Sequence[Record | None]) -> str:
    return next((str(record.folder) for record in records if record is not None), "")


def _made(record: Record | None, make: Callable[[], Arrays]) -> dict[str, np.ndarray] | None:
    """The arrays of a record, made here if they have to be; None while another process makes them."""
    if record is None:
        return dict(make())
    with record.claimed() as own:
        arrays = record.read()  # another may have finished since
        if arrays is None and own:
            start = perf_counter()
            arrays = dict(make())
            record.write(arrays, seconds=perf_counter() - start)
        return arrays


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is kept, how often it is written, and what it is a run of: a folder with a record a chunk of work."""

    folder: Path
    every: int
    arguments: Mapping[str, Any]

    @classmethod
    def create(
        cls, folder: str | Path | None, every: int, task: Task, arguments: Mapping[str, Any]
    ) -> Checkpoint | None:
        """None for no folder. Everything that decides the numbers of a run is among its arguments; also the devices,
        which have parts of its state."""
        positive_int("checkpoint_every", every)
        if folder is None:
            return None
        path, device = writable_folder("checkpoint", folder), jax.devices()[0]
        layout = f"{devices.device_count()} x {device.device_kind} in {jax.process_count()} processes"
        return cls(path, every, identity({**arguments, "data": fingerprint(task), "devices": layout}))

    def is_due(self, done: int, more: int = 1) -> bool:
        """Whether so many steps done, the last `more` of them at once, call for writing."""
        return done // self.every > (done - more) // self.every

    def record(self, name: str) -> Record:
        """Of one chunk of the work."""
        return Record(self.folder, self.arguments, name, divided=True, called="checkpoint")


def fingerprint(task: Task) -> str:
    """Of all arrays of a task."""
    parts = {"train": task, **({"held out": task.held_out} if task.held_out else {})}
    arrays = {f"{name} {kind}": getattr(part, kind) for name, part in parts.items() for kind in ("inputs", "targets")}
    return checksum(arrays)[:16]


def _digest(arguments: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:16]


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
