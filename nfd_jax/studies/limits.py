"""Many solutions of a limit from one compiled program, whatever their depth: what grids over L need."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from nfd_jax import engine
from nfd_jax.architecture import AbstractModel
from nfd_jax.explicit import in_coordinates
from nfd_jax.optimizers import Optimizer
from nfd_jax.particles import System
from nfd_jax.task import Task
from nfd_jax.trajectory import Trajectory


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
    `room` share a program. Seeds of different depths are independent of each other.
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
        key = jax.random.fold_in(jax.random.key(seed), depth)
        with engine.progress_bar(f"{closure} limit", steps + 1, show=False) as bar:
            kept = system.solve(
                key,
                particles,
                depth // refinement,
                matched=matched,
                refinement=refinement,
                room=room,
                progress=bar,
            )
        return kept.trajectory(task, system.problem.data, (seed,), problem.arguments, members=False)

    return [[solve(seed, refinement) for refinement in refinements] for seed in seeds]
