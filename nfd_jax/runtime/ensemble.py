"""Ensembles: members of one run a seed, side by side in programs, threads and devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax._types import Array, PyTree
from nfd_jax.dynamics.base import AbstractDynamics
from nfd_jax.dynamics.problem import Problem
from nfd_jax.runtime import devices, loop, memory, threads
from nfd_jax.runtime.devices import Layout
from nfd_jax.runtime.recorded import Recorded, joined
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.seeds import seed_key


@partial(jax.jit, static_argnames=("members", "layout"))
def create(dynamics: AbstractDynamics, keys: Array, *, members: bool, layout: Layout | None = None) -> PyTree:
    """The states of these keys, of one key without `members`."""
    return devices.place(layout, (jax.vmap(dynamics.side_by_side().init) if members else dynamics.init)(keys))


def train(
    dynamics: AbstractDynamics,
    problem: Problem,
    seeds: tuple[int, ...],
    member_bytes: int,
    *,
    description: str,
    progress: bool | None,
    layout: Layout | None = None,
    checkpoint: Checkpoint | None = None,
) -> Recorded:
    """Train one member a seed, as many side by side as `memory.side_by_side()` allows at `member_bytes` each. Rates
    `(members, K)` of the problem are those of each. Recorded arrays are `(steps, members, ...)`.

    Several devices share the particles of every member as `layout` says, or else the members; the threads of one CPU
    share the chunks. These are of one size, so that they share a compiled program; the last is filled up with members
    thrown away.
    """
    dynamics, problem = loop.with_last_pass(dynamics, problem, member_bytes)
    budget = memory.side_by_side()
    if layout is None:  # a device takes whole members
        most = max(1, budget // member_bytes) * devices.device_count()
    else:  # or its part of each
        most = max(1, budget * layout.devices // member_bytes)
    together = -(-len(seeds) // -(-len(seeds) // most))
    if layout is None:
        together, layout = devices.members(together)
    chunks = -(-len(seeds) // together)
    filled = [*seeds, *(seeds[-1:] * (chunks * together - len(seeds)))]
    rates = np.broadcast_to(problem.rates, (len(seeds), problem.rates.shape[-1]))
    rates = np.concatenate([rates, rates[-1:].repeat(len(filled) - len(seeds), axis=0)])
    members = together > 1  # a batch of one compiles and runs slower, and copies what is updated in place without it

    def chunk(start: int) -> Recorded:
        keys = _keys(filled[start : start + together])
        state = create(dynamics, keys if members else keys[0], members=members, layout=layout)
        part = problem._replace(rates=rates[start : start + together] if members else rates[start])
        name = f"members-{start}"
        options = {"layout": layout, "checkpoint": checkpoint, "name": name, "progress": bar}
        recorded = loop.run(dynamics, part, state, members=members, **options)
        return recorded if members else jax.tree.map(lambda array: array[:, None], recorded)

    with loop.progress_bar(description, chunks * (rates.shape[1] + 1), progress) as bar:
        at_once = min(chunks, threads.at_once(together * member_bytes))
        runs = threads.each(chunk, range(0, len(filled), together), at_once)
    return _side_by_side(runs, len(seeds))


def _side_by_side(runs: Sequence[Recorded], count: int) -> Recorded:
    """The members of all runs, the first `count` of them."""

    def together(kind: str) -> list[dict[str, np.ndarray]]:
        every = [joined(getattr(run, kind)) for run in runs]
        least = {name: min(len(each[name]) for each in every) for name in every[0]}  # fewer where memory ended one
        piece = {
            name: np.concatenate([each[name][:steps] for each in every], axis=1)[:, :count]
            for name, steps in least.items()
        }
        return [piece] if piece else []

    return Recorded(*map(together, Recorded._fields))


def _keys(seeds: Sequence[int]) -> Array:
    """A key a seed, put together on the host: a program that stacked thousands would take minutes to compile."""
    numbers = [np.asarray(jax.random.key_data(seed_key(seed))) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(np.stack(numbers)))
