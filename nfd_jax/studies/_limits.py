"""What the grids of studies need: seeds of their own for every cell, and limits of all depths by one program."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from nfd_jax._checks import positive_int
from nfd_jax.dynamics.conditioned import in_coordinates
from nfd_jax.models import AbstractModel
from nfd_jax.optimizers import Optimizer
from nfd_jax.runtime import loop as engine
from nfd_jax.runtime import threads
from nfd_jax.seeds import seed_key
from nfd_jax.solvers.particles import System
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.task import Task


def own_seeds(count: int, *place: object) -> range:
    """Seeds of one place of a grid, so that no two places share random numbers and their errors are independent."""
    first = zlib.crc32(repr(place).encode()) >> 2  # of 30 bits: places overlap once in a million
    return range(first, first + count)


def halved(name: str, seeds: int) -> int:
    """`seeds` where both halves, of which one chooses a rate and the other judges it, have two for a standard error."""
    return positive_int(f"{name} (one half chooses the rate, the other judges it)", seeds, minimum=4)


def solutions(
    task: Task,
    model: AbstractModel,
    *,
    closure: str,
    seeds: Sequence[int],
    particles: int,
    room: int,
    steps: int,
    learning_rate: float,
    refinements: Sequence[int] = (1,),
) -> list[list[Trajectory]]:
    """Solutions with matched noise, for every seed one at each refinement of its path.

    At refinement r the model's depth is divided by r, and its noise is that of the r times finer grid. All depths up to
    `room` share a program.
    """
    problem = engine.prepare(
        task,
        model,
        finite=False,
        steps=steps,
        learning_rate=learning_rate,
        optimizer=Optimizer(),
        train_input=False,
        train_readout=False,
        richness=1.0,
    )
    system = System(model, in_coordinates(problem), closure == "coupled", True, task.dimension)
    depth, matched = int(model.depth), system.matches(particles)

    def solve(seed: int, refinement: int) -> Trajectory:
        with engine.progress_bar(f"{closure} limit", steps + 1, show=False) as bar:
            kept = system.solve(
                seed_key(seed),
                particles,
                depth // refinement,
                matched=matched,
                refinement=refinement,
                room=room,
                progress=bar,
            )
        return kept.trajectory(task, system.problem.data, (seed,), problem.arguments, members=False)

    def path(seed: int) -> list[Trajectory]:
        return [solve(seed, refinement) for refinement in refinements]

    return threads.each(path, seeds, threads.at_once(system.needed(particles, room)[0]))
