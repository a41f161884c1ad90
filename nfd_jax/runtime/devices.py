"""More than one device: particles, or the members of an ensemble, are divided over all that jax sees.

One axis of the state is split, the compiler derives the rest (jax.jit with shardings; no code of its own for many
devices). Particles meet in inner products only, so what devices exchange are sums of query-by-query size; members
never meet. Draws are addressed by key and position in the whole array, so the numbers are those of one device up to
the order of sums. On one device nothing is placed and the programs are those without this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nfd_jax._types import PyTree

AXIS = "devices"
MEMBERS, PARTICLES = 0, -1  # the axis of every array that is divided


@dataclass(frozen=True)
class Layout:
    """Arrays whose `axis` has `size` entries are divided over the mesh there, all others are on every device.

    An array of another meaning that happens to have this size is divided too: slower, and as right.
    """

    mesh: Mesh
    axis: int
    size: int

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.mesh.size

    @property
    def everywhere(self) -> NamedSharding:
        """An array on every device: what each process can read."""
        return NamedSharding(self.mesh, PartitionSpec())

    def sharding(self, leaf: Any) -> NamedSharding:
        """Where an array of a state lives."""
        axes: list[str | None] = [None] * leaf.ndim
        if leaf.ndim and leaf.shape[self.axis] == self.size:
            axes[self.axis] = AXIS
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def device_count() -> int:
    """Devices of all processes that a run may use: one where the user set `jax_default_device`."""
    chosen = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    return jax.device_count() if chosen is None else 1


def particles(name: str, width: int) -> Layout | None:
    """How the particles of a run are divided; None on one device. `name`: the argument, for the error.

    One process uses the largest number of devices that divides the width. Several processes have to use all devices,
    and refuse a width that these do not divide.
    """
    available = device_count()
    if jax.process_count() > 1 and width % available:
        above = -(-width // available) * available
        raise ValueError(
            f"{name} must be a multiple of the {available} devices of {jax.process_count()} processes, got {width}; "
            f"use {above}"
        )
    return _layout(max(count for count in range(1, available + 1) if width % count == 0), PARTICLES, width)


def members(count: int) -> tuple[int, Layout | None]:
    """How many members to train side by side so that devices share at least `count` evenly, and the layout.

    The members beyond `count` take no more time: a device that had none would wait for the others.
    """
    available = device_count()
    used = available if jax.process_count() > 1 else min(count, available)
    filled = -(-count // used) * used
    return filled, _layout(used, MEMBERS, filled)


def _layout(devices: int, axis: int, size: int) -> Layout | None:
    if devices == 1:
        return None
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,), axis_types=(AxisType.Auto,))
    return Layout(mesh, axis, size)


def place(layout: Layout | None, state: PyTree) -> PyTree:
    """In a compiled function: the state where it belongs."""
    if layout is None:
        return state
    return lax.with_sharding_constraint(state, jax.tree.map(layout.sharding, state))


def replicate(layout: Layout | None, tree: PyTree) -> PyTree:
    """In a compiled function: results on every device, so that every process reads them."""
    return tree if layout is None else lax.with_sharding_constraint(tree, layout.everywhere)


def agreed(value: float) -> float:
    """The number of process 0, where the processes may see another: they have to go on alike."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.array(value)))


def same(value: int) -> bool:
    """Whether all processes have the same number."""
    if jax.process_count() == 1:
        return True
    return len(np.unique(multihost_utils.process_allgather(np.array(value)))) == 1


def broadcast(data: bytes | None) -> bytes | None:
    """What process 0 has, in all processes."""
    if jax.process_count() == 1:
        return data
    size = int(multihost_utils.broadcast_one_to_all(np.array(-1 if data is None else len(data))))
    if size <= 0:
        return None if size else b""
    sent = np.frombuffer(data or b"", np.uint8) if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes()
