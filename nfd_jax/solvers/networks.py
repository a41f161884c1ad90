"""train_networks and solve_network: finite networks, dense by autodiff or revealed by explicit passes, of one law."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax import seeds as _seeds
from nfd_jax._checks import one_of, positive_int
from nfd_jax._types import Array
from nfd_jax.dynamics.autodiff import Autodiff
from nfd_jax.dynamics.base import AbstractDynamics
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.initial import Initial
from nfd_jax.dynamics.module import Shape
from nfd_jax.dynamics.problem import Problem
from nfd_jax.dynamics.units import Units
from nfd_jax.models import AbstractModel, check_model
from nfd_jax.optimizers import Optimizer
from nfd_jax.runtime import devices, ensemble, memory
from nfd_jax.runtime.devices import Layout
from nfd_jax.runtime.recorded import Recorded
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.solvers.resolution import checked_resolution, resolution_of
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.task import Task
from nfd_jax.training import Training, takes_training

BACKWARDS = ("tied", "untied")
ENGINES = ("dense", "revealed", "auto")
CROSSOVER = 200, 2.5  # width at which both take the same time, measured: a + b x queries, for 1 to 16 networks


@takes_training
def train_networks(
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    width: int = 256,
    seeds: int | Sequence[int] = 8,
    engine: str = "dense",
    backward: str = "tied",
    resolution: float | None = None,
    capacity: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    progress: bool | None = None,
) -> Trajectory:
    """Train finite networks, one member a seed, side by side in one compiled program.

    **Arguments:**

    - `task`, `model`: what is learned and by which network; the depth is finite.
    - `training`, or its arguments by name: how (`nfd.Training`).
    - `width`: n. Memory of dense matrices is about 3 L n^2 numbers a member; members run in chunks of a bounded size.
    - `seeds`: a count S (seeds 0 to S-1) or a sequence of integers, 0 to 2^64 - 1; at most a million.
    - `engine`: `"dense"`, autodiff with n x n matrices; `"revealed"`, `solve_network`, of the same law; `"auto"`, the
      faster one: revealed for widths of at least 200 + 2.5 x steps x batch.
    - `backward`: `"tied"`, ordinary backpropagation, or `"untied"`: the backward pass multiplies by an independent
      copy of each hidden matrix, and both copies get the same updates.
    - `resolution`: of revealed matrices, as in `solve_limit`: 0 is the exact law.
    - `capacity`: of revealed matrices, in blocks: all depths up to it share a compiled program.
    - `checkpoint`: a folder in which the run is kept; called again with the same arguments, it goes on from there, and
      ends with the same numbers bit for bit. One of other arguments is refused.
    - `checkpoint_every`: how often it is written: after so many steps, or replicates of an estimate.
    - `progress`: show a bar; by default on a terminal.

    Returns a `Trajectory` with one member a seed. A member that diverges is marked, never averaged. Raises ValueError
    or TypeError for bad arguments before compiling.
    """
    members = _seeds.seed_sequence(seeds)
    networks = Networks.of(task, model, training, width, backward, engine, capacity, resolution)
    kept_in = Checkpoint.create(checkpoint, checkpoint_every, task, networks.arguments | {"seeds": members})
    recorded = networks.train(members, progress=progress, checkpoint=kept_in)
    return Trajectory.of(recorded, task, networks.problem.data, members, networks.arguments)


@takes_training
def solve_network(
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    width: int = 256,
    seeds: int | Sequence[int] = 8,
    backward: str = "tied",
    resolution: float | None = None,
    capacity: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    progress: bool | None = None,
) -> Trajectory:
    """Train finite networks without a single n x n array, exact in law at width n.

    Arguments and result are those of `train_networks`. Time grows as n L (steps P)^2 and memory as n L steps P, so that
    widths of a million run on a laptop; where steps x P is not far below n, `train_networks` is faster. Only optimizers
    that are linear in gradients keep the learned part of a matrix low rank, so others are refused.
    """
    return train_networks(
        task,
        model,
        training,
        width=width,
        seeds=seeds,
        engine="revealed",
        backward=backward,
        resolution=resolution,
        capacity=capacity,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )


@takes_training
def network_dynamics(
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    width: int = 256,
    engine: str = "dense",
    backward: str = "tied",
    resolution: float | None = 0.0,
) -> tuple[AbstractDynamics, Problem]:
    """The dynamics that `train_networks` compiles, and the problem that it gives them: for a loop of your own, as
    `nfd.limit_dynamics` shows."""
    networks = Networks.of(task, model, training, width, backward, engine, resolution=resolution)
    return networks.dynamics, networks.problem


class Networks(NamedTuple):
    """Networks of one width, checked, with nothing compiled yet."""

    dynamics: AbstractDynamics
    problem: Problem  # inputs as the dynamics take them
    arguments: dict[str, object]  # what a record keeps
    member_bytes: int
    layout: Layout | None  # of the particles of a member

    @classmethod
    def of(
        cls,
        task: Task,
        model: AbstractModel,
        training: Training,
        width: int,
        backward: str,
        engine: str,
        capacity: int | None = None,
        resolution: float | None = None,
    ) -> Networks:
        """ValueError or TypeError where networks of this width can't be trained, for want of memory too."""
        width = positive_int("width", width)
        one_of("backward", backward, BACKWARDS)
        one_of("engine", engine, ENGINES)
        problem = Problem.of(task, model, training)
        revealed = is_revealed(engine, task, width, training)
        if resolution is not None and not revealed and checked_resolution(resolution):
            raise ValueError(
                f"resolution={resolution!r} is of revealed matrices; use engine='revealed', or leave it out"
            )
        chosen = resolution_of(resolution, problem) if revealed else 0.0
        make = partial(_revealed, capacity=capacity, resolution=chosen) if revealed else _dense
        dynamics, taken, needed, layout = make(problem, task, model, width, backward)
        arguments = problem.arguments | {
            "solver": "network" if revealed else "training",
            "width": width,
            "backward": backward,
            **({"resolution": chosen} if chosen else {}),
        }
        return cls(dynamics, taken, arguments, needed, layout)

    def train(
        self,
        seeds: tuple[int, ...],
        *,
        rates: np.ndarray | None = None,
        progress: bool | None,
        checkpoint: Checkpoint | None = None,
    ) -> Recorded:
        """Members of these seeds, at the rates of the problem or each at its own, `(members, K)`."""
        return ensemble.train(
            self.dynamics,
            self.problem if rates is None else self.problem._replace(rates=rates),
            seeds,
            self.member_bytes,
            description=f"{self.arguments['backward']} networks, width {self.arguments['width']}",
            progress=progress,
            layout=self.layout,
            checkpoint=checkpoint,
        )

    def observed_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is observed of one member at a step, by name: traced, not compiled."""
        if self.dynamics.settings.observe is None:
            return {}
        rows, dtype = self.problem.data.batches.shape[1], jnp.zeros(()).dtype
        x, y = (jnp.zeros((rows, part.shape[1]), dtype) for part in self.problem.data.train)

        def one(key: Array) -> dict[str, Array]:
            state = self.dynamics.init(key)
            return self.dynamics.step(state, jnp.int32(0), jnp.zeros((), dtype), x, y)[1].observed

        return {name: array.shape for name, array in jax.eval_shape(one, jax.random.key(0)).items()}


def as_wide(task: Task, training: Training) -> float:
    """The width n for which products with n x n matrices take as long as with the queries of revealed ones."""
    return CROSSOVER[1] * training.steps * (task.batch_size or task.samples)


def is_revealed(engine: str, task: Task, width: int, training: Training) -> bool:
    """Whether networks of this width are trained with revealed matrices, which take linear optimizers only."""
    least, _ = CROSSOVER
    fast = training.rule.is_linear and width >= least + as_wide(task, training)
    return engine == "revealed" or (engine == "auto" and fast)


def check_linear(optimizer: Optimizer) -> None:
    """ValueError for an optimizer that revealed matrices can't follow."""
    if not optimizer.is_linear:
        raise ValueError(
            f"optimizer {optimizer.name!r} does not keep the learned part of a matrix low rank, which "
            "revealed matrices need; use optimizer='sgd' (momentum and weight_decay are allowed), or train_networks"
        )


def _revealed(
    problem: Problem,
    task: Task,
    model: AbstractModel,
    width: int,
    backward: str,
    *,
    capacity: int | None,
    resolution: float,
) -> tuple[Conditioned, Problem, int, Layout | None]:
    """Dynamics of explicit passes; ValueError for an optimizer, the number of devices, or their memory."""
    check_linear(problem.settings.optimizer)
    layout = devices.particles("width", width)
    units = Units.of(model, problem.row, width=width, dimension=task.dimension, richness=problem.richness)
    problem, count = problem.in_coordinates(), model.structure.matrices
    blocks = model.blocks
    if capacity is not None:
        blocks = positive_int("capacity (in blocks, at least those of the model)", capacity, max(1, blocks))
    initial = Initial.of(problem, blocks * count, width, backward == "tied", compressed=resolution > 0)
    dynamics = Conditioned(problem.settings, units, initial, resolution or None)
    ways_out = f"use a smaller width than {width} or a smaller depth, fewer steps or a smaller batch, or more devices"
    memory.check(*memory.of_run(dynamics, layout), ways_out)
    return dynamics, problem, initial.least_bytes, layout


def _dense(
    problem: Problem, task: Task, model: AbstractModel, width: int, backward: str
) -> tuple[Autodiff, Problem, int, None]:
    """Dynamics by autodiff, and the bytes of one member: its weights with their gradients and the optimizer's memory,
    its initial matrices where something is observed, and the activations of a batch in all layers or of an evaluation
    in some. ValueError where the device lacks them."""
    check_model(model, finite=True)
    shape = Shape(width, task.dimension, task.outputs, backward == "untied")
    copies = 3 if problem.settings.optimizer.is_linear else 5
    evaluated = sum(len(samples.inputs) for samples in problem.data.sets)
    rows = max((model.matrices + 1) * problem.data.batches.shape[1], evaluated)
    tied = shape._replace(untied=False)  # of the initial network the forward matrices are kept
    initial = 0 if problem.settings.observe is None else tied.numbers(model)
    needed = (copies * shape.numbers(model) + initial + 3 * rows * width) * jnp.zeros(()).dtype.itemsize
    ways_out = f"use a smaller width than {width}, depth or batch, or solve_network, which needs no n x n array"
    memory.check(needed, 1, ways_out)
    return Autodiff(problem.settings, model, problem.row, problem.richness, shape), problem, needed, None
