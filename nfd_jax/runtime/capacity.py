"""Capacity that is not known beforehand: arrays of a state that grow between compiled chunks, as ranks do.

A chunk ends before the step that may lack room; what lacks it is doubled then, so that few programs are compiled, until
memory ends it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax._types import Array, PyTree
from nfd_jax.dynamics.base import AbstractDynamics
from nfd_jax.matrices.revealed import NEVER
from nfd_jax.runtime import devices, memory
from nfd_jax.runtime.devices import Layout


def fits(dynamics: AbstractDynamics, state: PyTree, batch: int) -> Array | bool:
    """Whether the state has room for one more step of so many samples."""
    needed = dynamics.needed(state, batch)
    return jnp.all(jnp.stack(needed) <= jnp.array(dynamics.capacity, jnp.int32)) if needed else True


def grown(
    dynamics: AbstractDynamics, state: PyTree, batch: int, layout: Layout | None, *, members: bool
) -> tuple[AbstractDynamics, PyTree, bool]:
    """With room for one more step, and whether memory has: what does not suffice is doubled at least."""
    least = [int(each) for each in dynamics.needed(state, batch)]
    if all(needed <= has for needed, has in zip(least, dynamics.capacity, strict=True)):
        return dynamics, state, True
    capacity = [
        has if needed <= has else max(2 * has, needed) for needed, has in zip(least, dynamics.capacity, strict=True)
    ]
    count = len(jax.tree.leaves(state)[0]) if members else 1
    larger = dynamics.with_capacity(tuple(capacity))
    needed = 2 * count * memory.of_state(larger)  # the old arrays are there meanwhile
    if not memory.is_enough(needed, layout.devices if layout else 1):
        return dynamics, state, False
    return *extended(dynamics, state, tuple(capacity), layout), True


def extended(
    dynamics: AbstractDynamics, state: PyTree, capacity: tuple[int, ...], layout: Layout | None
) -> tuple[AbstractDynamics, PyTree]:
    """Dynamics of this capacity, and the state with arrays of their size."""
    dynamics = dynamics.with_capacity(capacity)
    shapes = jax.eval_shape(dynamics.init, jax.random.key(0))
    return dynamics, _padded(state, tuple(leaf.shape for leaf in jax.tree.leaves(shapes)), layout)


@partial(jax.jit, static_argnames=("shapes", "layout"))
def _padded(state: PyTree, shapes: tuple[tuple[int, ...], ...], layout: Layout | None) -> PyTree:
    """The state with its arrays at the beginning of larger ones, behind the axis of members if there is one."""
    leaves, structure = jax.tree.flatten(state)
    for index, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True)):
        before = leaf.ndim - len(shape)
        more = [(0, 0)] * before + [(0, wanted - has) for wanted, has in zip(shape, leaf.shape[before:], strict=True)]
        if any(after for _, after in more):
            unused = NEVER if jnp.issubdtype(leaf.dtype, jnp.integer) else 0
            leaves[index] = jnp.pad(leaf, more, constant_values=unused)
    return devices.place(layout, jax.tree.unflatten(structure, leaves))


def used(dynamics: AbstractDynamics, state: PyTree, *, members: bool) -> list[dict[str, np.ndarray]]:
    """What of the capacity is used, the same for all members; nothing where there is none."""
    used = np.array(dynamics.needed(state, 0), np.int64)
    shape = (1, jax.tree.leaves(state)[0].shape[0], len(used)) if members else (1, len(used))
    return [{"ranks": np.broadcast_to(used, shape)}] if len(used) else []
