"""solve_limit: the infinite-width limit by interacting particles, in either closure (theory sections 3 and 4)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from nfd_jax import basis as bases
from nfd_jax import engine, optimizers
from nfd_jax._errors import one_of, positive_int
from nfd_jax._types import Key
from nfd_jax.architecture import Layers, ResNet
from nfd_jax.explicit import EXPLICIT, State, input_coordinates, start
from nfd_jax.network import HIDDEN_ADDRESS, Shape, plain_layers, revealed
from nfd_jax.noise import LEVELS, MatchedNoise, matched_level
from nfd_jax.quasi import QuasiNormals
from nfd_jax.task import Task
from nfd_jax.trajectory import Trajectory

CLOSURES = ("coupled", "decoupled")
NOISES = ("matched", "plain")
SPREAD_ADDRESS = 3  # folded into the seed's key, beside those of network


def solve_limit(
    task: Task,
    model: ResNet,
    *,
    steps: int = 10,
    learning_rate: optimizers.Rate = 0.5,
    particles: int = 4096,
    closure: str = "coupled",
    noise: str = "matched",
    train_input: bool = False,
    train_readout: bool = False,
    richness: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    seed: int = 0,
    observe: engine.Observe | None = None,
    progress: bool | None = None,
) -> Trajectory:
    """The limit n -> infinity of a depth-muP ResNet under full-batch training, at its depth L.

    **Arguments:**

    - `task`, `model`: what is learned and by which network.
    - `steps`, `learning_rate`: training steps, and the width- and depth-free rate eta or an optax schedule.
    - `particles`: n, neurons of the Monte-Carlo system. Cost grows as n L (steps P)^2, memory as n L steps P.
    - `closure`: `"coupled"` keeps the weight-reuse responses A and B, the limit of the ordinary network;
      `"decoupled"` drops them: Neural Feature Dynamics, the limit of a network whose backward pass uses an
      independent copy of each hidden matrix.
    - `noise`: `"matched"` (exact empirical moments, and evenly spread U, V and first images: far less Monte-Carlo
      error; constraints are dropped in a set order where they would exceed a quarter of the particles) or `"plain"`.
    - `train_input`, `train_readout`: whether U and V train as well, at the muP rates.
    - `richness`: gamma; outputs are divided by it and rates multiplied by its square. Towards 0 training is lazy.
    - `momentum`, `weight_decay`: heavy ball; W <- (1 - eta lambda) W.
    - `seed`: of the Monte-Carlo noise. Same seed, same numbers.
    - `observe`: called with a `Sweep` at every training step; the arrays it returns are kept in `observed`.
    - `progress`: show a bar; by default on a terminal.

    Returns a `Trajectory` without members. Raises ValueError or TypeError for bad arguments before compiling.
    """
    one_of("closure", closure, CLOSURES)
    one_of("noise", noise, NOISES)
    width = positive_int("particles", particles)
    key = jax.random.key(positive_int("seed", seed, minimum=0))
    problem = engine.prepare(
        task,
        model,
        steps=steps,
        learning_rate=learning_rate,
        train_input=train_input,
        train_readout=train_readout,
        richness=richness,
        momentum=momentum,
        weight_decay=weight_decay,
        observe=observe,
    )
    inputs = input_coordinates(task.inputs)
    shape = Shape(int(model.depth), width, inputs.shape[1], task.outputs, steps, task.samples)
    level = matched_level(width, task.samples, steps, task.outputs, shape.rank) if noise == "matched" else None
    state = _create(problem.settings, shape, closure == "coupled", level, key)
    with engine.progress_bar(f"{closure} limit", steps + 1, progress) as bar:
        run = engine.run(
            EXPLICIT, problem.settings, state, inputs, task.targets, problem.rates, members=False, progress=bar
        )
    imposed = "plain" if level is None else f"matched: {LEVELS[level].name}"
    arguments = problem.arguments | {"solver": "limit", "particles": width, "closure": closure, "noise": imposed}
    return Trajectory(task, run.outputs, run.loss, (seed,), arguments, run.observed)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _create(settings: engine.Settings, shape: Shape, coupled: bool, level: int | None, key: Key) -> State:
    layers = plain_layers(key, shape, coupled) if level is None else matched_layers(key, shape, coupled, level)
    return start(settings, layers)


def matched_layers(key: Key, shape: Shape, coupled: bool, level: int) -> Layers:
    """Layers of matched noise: the rows of U and V orthonormal too, so that <h_0, h_0> is exact and <V, h_0> = 0.

    What is random before training is spread evenly, U before V before the images of the first step.
    """
    ends = shape.rank + shape.outputs
    spread = QuasiNormals.create(
        jax.random.fold_in(key, SPREAD_ADDRESS), ends + 2 * shape.depth * shape.batch, shape.width
    )
    plain = plain_layers(key, shape, coupled)
    rows = spread.replace(jnp.concatenate([plain.input, plain.readout]), jnp.arange(ends))
    rows = jnp.concatenate([rows[shape.rank :], rows[: shape.rank]])
    rows = bases.orthonormalise(rows, jnp.zeros_like(rows[:, 0])).directions
    readout, first = rows[: shape.outputs], rows[shape.outputs :]
    known = rows if LEVELS[level].data else readout
    source = MatchedNoise.create(
        jax.random.fold_in(key, HIDDEN_ADDRESS), level, known, shape.depth, shape.steps, shape.batch, spread[ends:]
    )
    return Layers(first, revealed(source, shape, coupled, rows.dtype), readout)
