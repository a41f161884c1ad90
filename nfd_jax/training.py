"""train_networks: finite networks as Equinox modules, by autodiff and optax, vmapped over seeds.

Written apart from the explicit sweeps on purpose: what the two share is the description of the network, the loss
and the optimizer, so that their agreement tests everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax import engine as loop
from nfd_jax import memory, optimizers, sharding
from nfd_jax import parametrization as parametrizations
from nfd_jax._errors import one_of, positive_int, seed_sequence
from nfd_jax._types import Array, Float, Index, Key, PyTree, Scalar
from nfd_jax.architecture import Grid, ResNet
from nfd_jax.checkpoint import Checkpoint
from nfd_jax.network import BACKWARDS, solve_network
from nfd_jax.parametrization import Role
from nfd_jax.sharding import Layout
from nfd_jax.task import Task, loss_value
from nfd_jax.trajectory import Trajectory

ENGINES = ("dense", "revealed", "auto")
CACHED = 2**24  # bytes of members that CPUs train side by side: a batch of larger matrices is copied and misses caches
CROSSOVER = 200, 2.5  # width at which both take the same time, measured: a + b x queries, for 1 to 16 networks


def _times_transposed(vectors: Array, matrix: Array) -> Array:
    """`vectors matrix^T` by matrix times vectors, in which order a CPU reads a large matrix up to 15 times faster; the
    barrier keeps the compiler from exchanging the factors."""
    return lax.optimization_barrier(lax.dot_general(matrix, vectors, (((1,), (1,)), ((), ())))).T


@jax.custom_vjp
def tied_product(
    vectors: Float[Array, "batch inputs"], matrix: Float[Array, "width inputs"]
) -> Float[Array, "batch width"]:
    """`vectors matrix^T`. Autodiff's own rule would multiply in the slow order, or keep every layer's transpose."""
    return _times_transposed(vectors, matrix)


def _tied_forward(vectors: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    return _times_transposed(vectors, matrix), (vectors, matrix)


def _tied_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    vectors, matrix = residuals
    return cotangent @ matrix, cotangent.T @ vectors


tied_product.defvjp(_tied_forward, _tied_backward)


@jax.custom_vjp
def untied_product(
    vectors: Float[Array, "batch inputs"], forward: Float[Array, "width inputs"], backward: Float[Array, "width inputs"]
) -> Float[Array, "batch width"]:
    """`vectors forward^T`, whose input gradient uses `backward` instead; both matrices get the same gradient."""
    del backward
    return _times_transposed(vectors, forward)


def _untied_forward(vectors: Array, forward: Array, backward: Array) -> tuple[Array, tuple[Array, Array]]:
    return _times_transposed(vectors, forward), (vectors, backward)


def _untied_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array, Array]:
    vectors, backward = residuals
    gradient = cotangent.T @ vectors
    return cotangent @ backward, gradient, gradient


untied_product.defvjp(_untied_forward, _untied_backward)


class ResidualNetwork(eqx.Module):
    """The network of theory section 2, with N(0, 1) entries at initialisation and explicit multipliers.

    `hidden_backward`: independent copies of the hidden matrices for the backward pass, or None (tied).
    """

    input: Float[Array, "width inputs"]
    hidden: Float[Array, "depth width width"]
    readout: Float[Array, "width outputs"]
    hidden_backward: Float[Array, "depth width width"] | None
    model: ResNet = eqx.field(static=True)
    branch: float = eqx.field(static=True)
    richness: float = eqx.field(static=True, default=1.0)

    def __call__(self, inputs: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """Outputs of a batch of raw inputs."""
        width, dimension = self.input.shape
        phi = self.model.phi

        def block(h: Array, weights: tuple[Array, Array | None]) -> tuple[Array, None]:
            matrix, copy = weights
            x = phi(h)
            image = tied_product(x, matrix) if copy is None else untied_product(x, matrix, copy)
            return h + self.branch * width**-0.5 * image, None

        h = inputs @ self.input.T * dimension**-0.5
        h, _ = lax.scan(block, h, (self.hidden, self.hidden_backward))
        return h @ self.readout / (self.richness * width)


class TrainingState(eqx.Module):
    """A network and its optimizer's memory."""

    network: ResidualNetwork
    optimizer: PyTree


def train_networks(
    task: Task,
    model: ResNet,
    *,
    width: int = 256,
    steps: int = 10,
    learning_rate: optimizers.Rate = 0.5,
    seeds: int | Sequence[int] = 8,
    parametrization: str = "depth_mup",
    optimizer: str = "sgd",
    engine: str = "dense",
    backward: str = "tied",
    train_input: bool = False,
    train_readout: bool = False,
    richness: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    evaluate_at: Sequence[int] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    progress: bool | None = None,
) -> Trajectory:
    """Train finite networks by autodiff, one member a seed, side by side in one compiled program.

    **Arguments:**

    - `task`, `model`: what is learned and by which network; the depth is finite.
    - `width`: n. Memory is about 3 L n^2 numbers a member; members run in chunks of a bounded size.
    - `steps`, `learning_rate`: training steps, and the width- and depth-free rate eta or an optax schedule.
    - `seeds`: a count S (seeds 0 to S-1) or a sequence of integers.
    - `parametrization`: a row of the exponent table, `"depth_mup"`.
    - `optimizer`: `"sgd"`.
    - `engine`: `"dense"`, autodiff with n x n matrices; `"revealed"`, `solve_network`, of the same law; `"auto"`, the
      faster one: revealed for widths of at least 200 + 2.5 x steps x batch.
    - `backward`: `"tied"`, ordinary backpropagation, or `"untied"`: the backward pass multiplies by an independent
      copy of each hidden matrix, and both copies get the same updates.
    - `train_input`, `train_readout`: whether U and V train as well.
    - `richness`: gamma; outputs are divided by it and rates multiplied by its square. Towards 0 training is lazy.
    - `momentum`, `weight_decay`: heavy ball; W <- (1 - eta lambda) W.
    - `evaluate_at`: the steps, 0 to `steps`, at which held-out samples and, with mini-batches, all training samples
      are evaluated; by default all.
    - `checkpoint`: a folder in which the run is kept; called again with the same arguments, it goes on from there, and
      ends with the same numbers bit for bit. One of other arguments is refused.
    - `checkpoint_every`: how often it is written: after so many steps, or replicates of an estimate.
    - `progress`: show a bar; by default on a terminal.

    Returns a `Trajectory` with one member a seed. A member that diverges is marked, never averaged. Raises ValueError
    or TypeError for bad arguments before compiling.
    """
    width = positive_int("width", width)
    members = seed_sequence(seeds)
    parametrizations.check(parametrization)
    optimizers.check(optimizer)
    one_of("backward", backward, BACKWARDS)
    one_of("engine", engine, ENGINES)
    problem = loop.prepare(
        task,
        model,
        steps=steps,
        learning_rate=learning_rate,
        parametrization_name=parametrization,
        train_input=train_input,
        train_readout=train_readout,
        richness=richness,
        momentum=momentum,
        weight_decay=weight_decay,
        evaluate_at=evaluate_at,
    )
    if is_revealed(engine, task, width, steps):
        return solve_network(
            task,
            model,
            width=width,
            steps=steps,
            learning_rate=learning_rate,
            seeds=seeds,
            parametrization=parametrization,
            optimizer=optimizer,
            backward=backward,
            train_input=train_input,
            train_readout=train_readout,
            richness=richness,
            momentum=momentum,
            weight_decay=weight_decay,
            evaluate_at=evaluate_at,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            progress=progress,
        )
    copies = 2 if backward == "untied" else 1
    hidden_bytes = copies * 3 * int(model.depth) * width**2 * jnp.zeros(()).dtype.itemsize
    sizes = width, task.dimension, task.outputs
    branch = parametrizations.branch_scale(parametrization, int(model.depth), model.horizon)
    arguments = problem.arguments | {"solver": "training", "width": width, "optimizer": optimizer, "backward": backward}
    memory.check(hidden_bytes, 1, "use a smaller width or depth, or solve_network, which needs no n x n array")
    kept = loop.run_members(
        AUTODIFF,
        problem,
        partial(_create, problem.settings, model, branch, *sizes, backward == "untied"),
        members,
        hidden_bytes,
        budget=CACHED if jax.default_backend() == "cpu" else None,
        description=f"{backward} networks, width {width}",
        progress=progress,
        checkpoint=Checkpoint.create(checkpoint, checkpoint_every, task, arguments | {"seeds": members}),
    )
    return kept.trajectory(task, problem.data, members, arguments, members=True)


def is_revealed(engine: str, task: Task, width: int, steps: int) -> bool:
    """Whether networks of this width are trained with revealed matrices."""
    queries = steps * (task.batch_size or task.samples)
    least, a_query = CROSSOVER
    return engine == "revealed" or (engine == "auto" and width >= least + a_query * queries)


def create_network(
    key: Key,
    model: ResNet,
    branch: float,
    width: int,
    dimension: int,
    outputs: int,
    untied: bool,
    richness: float = 1.0,
) -> ResidualNetwork:
    """A network at initialisation."""
    depth, dtype = int(model.depth), jnp.zeros(()).dtype
    ends, inner = jax.random.split(key)
    rows = jax.random.normal(ends, (width, dimension + outputs), dtype)
    hidden = jax.random.normal(inner, (2 if untied else 1, depth, width, width), dtype)
    copies = hidden[1] if untied else None
    return ResidualNetwork(rows[:, :dimension], hidden[0], rows[:, dimension:], copies, model, branch, richness)


def _trainable(trained: tuple[str, ...], network: ResidualNetwork) -> dict[str, PyTree]:
    parameters = {
        "input": network.input,
        "hidden": (network.hidden, network.hidden_backward),
        "readout": network.readout,
    }
    return {role: parameters[role] for role in trained}


def _with(network: ResidualNetwork, parameters: dict[str, PyTree]) -> ResidualNetwork:
    hidden, copies = parameters["hidden"]
    return ResidualNetwork(
        parameters.get("input", network.input),
        hidden,
        parameters.get("readout", network.readout),
        copies,
        network.model,
        network.branch,
        network.richness,
    )


@partial(jax.jit, static_argnums=(*range(7), 8))
def _create(
    settings: loop.Settings,
    model: ResNet,
    branch: float,
    width: int,
    dimension: int,
    outputs: int,
    untied: bool,
    keys: Array,
    layout: Layout | None = None,
) -> TrainingState:
    def one(key: Key) -> TrainingState:
        network = create_network(key, model, branch, width, dimension, outputs, untied, settings.richness)
        return start(settings, network)

    return sharding.place(layout, jax.vmap(one)(keys))


def start(settings: loop.Settings, network: ResidualNetwork) -> TrainingState:
    """The state before training."""
    optimizer = optimizers.direction(settings.momentum, settings.weight_decay)
    return TrainingState(network, optimizer.init(_trainable(settings.trained, network)))


def train_step(
    settings: loop.Settings,
    grid: Grid,
    state: TrainingState,
    step: Index,
    rate: Scalar,
    inputs: Array,
    targets: Array,
) -> tuple[TrainingState, loop.Record]:
    """One step: the loss gradient by autodiff, the rate factors of the parametrization, and the optimizer."""
    del grid, step

    def objective(parameters: dict[str, PyTree]) -> tuple[Scalar, Array]:
        outputs = _with(state.network, parameters)(inputs)
        return loss_value(settings.loss, outputs, targets), outputs

    parameters = _trainable(settings.trained, state.network)
    (loss, outputs), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
    width, dimension = state.network.input.shape
    for role in Role:
        if role.value in gradients:
            scale = parametrizations.scale(
                settings.parametrization, role, width=width, depth=len(state.network.hidden), dimension=dimension
            )
            gradients[role.value] = jax.tree.map(
                lambda g, factor=settings.richness**2 * scale.rate: factor * g, gradients[role.value]
            )
    optimizer = optimizers.direction(settings.momentum, settings.weight_decay)
    updates, memory = optimizer.update(gradients, state.optimizer, parameters)
    parameters = optimizers.descend(parameters, updates, rate)
    return TrainingState(_with(state.network, parameters), memory), loop.Record(outputs, loss, {})


def evaluate(
    settings: loop.Settings, grid: Grid, state: TrainingState, step: Index, sets: tuple[loop.Samples, ...]
) -> tuple[loop.Evaluated, ...]:
    """Outputs and loss as they stand."""
    del grid, step
    inputs = jnp.concatenate([samples.inputs for samples in sets])
    return loop.evaluated(settings, state.network(inputs), sets)


AUTODIFF = loop.Method(train_step, evaluate)
