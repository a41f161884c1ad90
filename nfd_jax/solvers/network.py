"""solve_network: finite networks of any width by revealed matrices, exact in law (theory section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfd_jax import optimizers
from nfd_jax._checks import one_of, positive_int
from nfd_jax._types import Array, Float, Key
from nfd_jax.dynamics.conditioned import EXPLICIT, State, in_coordinates, start, with_scales
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.dynamics.units import Scales
from nfd_jax.matrices.basis import MEMBERS
from nfd_jax.matrices.noise import FINEST, AbstractNoise, Grid, PlainNoise
from nfd_jax.matrices.revealed import RevealedMatrices
from nfd_jax.models import AbstractModel
from nfd_jax.optimizers import Optimizer
from nfd_jax.parametrization import Parametrization
from nfd_jax.runtime import devices, memory
from nfd_jax.runtime import loop as engine
from nfd_jax.runtime.devices import Layout
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.seeds import seed_sequence
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.task import Task

BACKWARDS = ("tied", "untied")
INPUT_ADDRESS, READOUT_ADDRESS, HIDDEN_ADDRESS = 0, 1, 2  # folded into the seed's key


def solve_network(
    task: Task,
    model: AbstractModel,
    *,
    width: int = 256,
    steps: int = 10,
    learning_rate: optimizers.Rate = 0.5,
    seeds: int | Sequence[int] = 8,
    parametrization: str | Parametrization = "depth_mup",
    optimizer: str = "sgd",
    backward: str = "tied",
    train_input: bool = False,
    train_readout: bool = False,
    richness: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    observe: engine.Observe | None = None,
    evaluate_at: Sequence[int] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    progress: bool | None = None,
) -> Trajectory:
    """Train finite networks without a single n x n array, exact in law at width n.

    Arguments and result are those of `train_networks`, and `observe` that of `solve_limit`. Time grows as
    n L (steps P)^2 and memory as n L steps P, so that widths of a million run on a laptop; where steps x P is not
    far below n, `train_networks` is faster. Only the SGD family keeps the learned part of a matrix low rank, so other
    optimizers are refused.
    """
    width = positive_int("width", width)
    members = seed_sequence(seeds)
    one_of("backward", backward, BACKWARDS)
    problem = engine.prepare(
        task,
        model,
        steps=steps,
        learning_rate=learning_rate,
        parametrization_name=parametrization,
        optimizer=Optimizer.create(optimizer, momentum, weight_decay),
        train_input=train_input,
        train_readout=train_readout,
        richness=richness,
        observe=observe,
        evaluate_at=evaluate_at,
        progress=progress,
    )
    arguments = problem.arguments | {"solver": "network", "width": width, "backward": backward}
    kept = solve_members(
        problem,
        task,
        model,
        width,
        members,
        backward=backward,
        progress=progress,
        checkpoint=Checkpoint.create(checkpoint, checkpoint_every, task, arguments | {"seeds": members}),
    )
    return kept.trajectory(task, problem.data, members, arguments, members=True)


def solve_members(
    problem: engine.Problem,
    task: Task,
    model: AbstractModel,
    width: int,
    seeds: tuple[int, ...],
    *,
    backward: str,
    room: int | None = None,
    progress: bool | None,
    checkpoint: Checkpoint | None = None,
) -> engine.Kept:
    """Networks of these seeds side by side, at the rates of the problem: `(K,)`, or `(members, K)` for each its own.

    Depths with the same `room`, in blocks, share a compiled program; by default it is the model's own depth.
    """
    problem, shape = in_shape(problem, task, model, width, backward, room)
    return engine.run_members(
        EXPLICIT,
        problem,
        creation(problem, shape, backward),
        seeds,
        shape.basis_bytes + shape.sweep_bytes,
        description=f"{backward} networks, width {width}",
        progress=progress,
        layout=devices.particles("width", width),
        checkpoint=checkpoint,
    )


def in_shape(
    problem: engine.Problem, task: Task, model: AbstractModel, width: int, backward: str, room: int | None = None
) -> tuple[engine.Problem, Shape]:
    """The problem of explicit sweeps at this width and its shapes; ValueError where revealed matrices can't solve it:
    for an optimizer, for the number of devices, or for their memory."""
    settings = problem.settings
    if not settings.optimizer.is_linear:
        raise ValueError(
            f"optimizer {settings.optimizer.name!r} does not keep the learned part of a matrix low rank, which "
            "revealed matrices need; use optimizer='sgd' (momentum and weight_decay are allowed), or train_networks"
        )
    layout = devices.particles("width", width)
    scales = Scales.of(model, settings.row, width=width, dimension=task.dimension, richness=settings.richness)
    problem = with_scales(in_coordinates(problem), scales)
    shape = Shape.of(problem, width, (room or model.blocks) * model.structure.matrices)
    create = creation(problem, shape, backward)
    ways_out = f"use a smaller width than {width} or a smaller depth, fewer steps or a smaller batch, or more devices"
    memory.check(*shape.needed(create, jax.random.key(0)[None], layout), ways_out)
    return problem, shape


class Shape(NamedTuple):
    """Everything that decides the shapes of a run."""

    matrices: int  # hidden ones that there is room for, at least 1
    width: int
    rank: int  # of the inputs
    outputs: int
    steps: int
    batch: int
    evaluated: int = 0  # samples of one evaluation

    @classmethod
    def of(cls, problem: engine.Problem, width: int, matrices: int) -> Shape:
        """The shapes of a run at this width, with room for so many hidden matrices; inputs in coordinates."""
        data = problem.data
        (steps, batch), (_, rank) = data.batches.shape, data.train.inputs.shape
        evaluated = sum(len(samples.inputs) for samples in data.sets)
        return cls(max(1, matrices), width, rank, data.train.targets.shape[1], steps, batch, evaluated)

    @property
    def basis_bytes(self) -> int:
        """Memory of the four bases of one member."""
        return 4 * self.matrices * self.steps * self.batch * self.width * jnp.zeros(()).dtype.itemsize

    @property
    def sweep_bytes(self) -> int:
        """Memory of the features and images of one batch at all layers, and of as many temporaries."""
        return 3 * (self.matrices + 1) * self.batch * self.width * jnp.zeros(()).dtype.itemsize

    def needed(self, create: Callable[..., State], keys: Array, layout: Layout | None) -> tuple[int, int]:
        """Bytes of a run from the state that `create` makes, and the devices that share them.

        Where the bases alone are too large, their bytes: the state is not looked at, which can take long then.
        """
        least, devices = self.basis_bytes + self.sweep_bytes, layout.devices if layout else 1
        if not memory.is_enough(least, devices):
            return least, devices
        return memory.size_of(create, keys) + self.sweep_bytes, devices


def creation(problem: engine.Problem, shape: Shape, backward: str) -> Callable[..., State]:
    """What makes the states of networks of this shape from their keys."""
    return partial(_create, problem.settings, shape, backward == "tied")


@partial(jax.jit, static_argnums=(0, 1, 2, 4))
def _create(settings: engine.Settings, shape: Shape, tied: bool, keys: Array, layout: Layout | None = None) -> State:
    members = MEMBERS if len(keys) > 1 else None  # one alone is trained without an axis of members
    one = partial(plain_layers, shape=shape, coupled=tied, members=members)
    return devices.place(layout, jax.vmap(lambda key: start(settings, one(key)))(keys))


def plain_layers(key: Key, shape: Shape, coupled: bool, grid: Grid = FINEST, members: str | None = None) -> Layers:
    """U, V and hidden matrices of the exact law of a network, before training; of one of several `members`."""

    def rows(address: int, count: int) -> Float[Array, "rows width"]:
        return jax.random.normal(jax.random.fold_in(key, address), (count, shape.width), jnp.zeros(()).dtype)

    source = PlainNoise(jax.random.fold_in(key, HIDDEN_ADDRESS), grid)
    first, readout = rows(INPUT_ADDRESS, shape.rank), rows(READOUT_ADDRESS, shape.outputs)
    return Layers(first, revealed(source, shape, coupled, readout.dtype, members), readout)


def revealed(
    noise: AbstractNoise, shape: Shape, coupled: bool, dtype: Any, members: str | None = None
) -> RevealedMatrices:
    """Hidden matrices with nothing revealed, with capacity for the queries of a whole run."""
    return RevealedMatrices.create(
        noise,
        depth=shape.matrices,
        width=shape.width,
        capacity=shape.steps * shape.batch,
        coupled=coupled,
        dtype=dtype,
        members=members,
    )
