"""train_networks: finite networks by autodiff and optax, vmapped over seeds and learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from nfd_jax import optimizers
from nfd_jax._checks import in_precision, one_of, positive_int
from nfd_jax._types import Array, Index, Key, PyTree, Scalar
from nfd_jax.dynamics.conditioned import EXPLICIT
from nfd_jax.dynamics.module import Matrices, Network, Shape, create_network
from nfd_jax.dynamics.units import Scales
from nfd_jax.models import AbstractModel
from nfd_jax.optimizers import Optimizer
from nfd_jax.parametrization import Parametrization, Role
from nfd_jax.runtime import devices, loop, memory
from nfd_jax.runtime.devices import Layout
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.seeds import seed_sequence
from nfd_jax.solvers.network import BACKWARDS, creation, in_shape, solve_network
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.task import Task, loss_gradient, loss_value

ENGINES = ("dense", "revealed", "auto")
CACHED = (
    2**23
)  # bytes of weights that a CPU trains side by side: more miss the caches, and take up to 1.5 times as long
CROSSOVER = 200, 2.5  # width at which both take the same time, measured: a + b x queries, for 1 to 16 networks


class TrainingState(eqx.Module):
    """A network and its optimizer's memory; where something is observed, what weight decay leaves of its initial
    matrices too."""

    network: Network
    optimizer: PyTree
    initial: Matrices | None = None


def train_networks(
    task: Task,
    model: AbstractModel,
    *,
    width: int = 256,
    steps: int = 10,
    learning_rate: optimizers.Rate = 0.5,
    seeds: int | Sequence[int] = 8,
    parametrization: str | Parametrization = "depth_mup",
    optimizer: str = "sgd",
    engine: str = "dense",
    backward: str = "tied",
    train_input: bool = False,
    train_readout: bool = False,
    richness: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    betas: Sequence[float] | None = None,
    epsilon: float | None = None,
    observe: loop.Observe | None = None,
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
    - `seeds`: a count S (seeds 0 to S-1) or a sequence of integers, 0 to 2^64 - 1; at most a million.
    - `parametrization`: a row of the exponent table (`"sp"`, `"ntp"`, `"mup"`, `"depth_mup"`,
      `"depth_mup_corrected"`, `"complete_p"`, `nfd.alpha_gamma(alpha, gamma)`), or one of your own.
    - `optimizer`: `"sgd"`, `"adam"` or `"adamw"`.
    - `engine`: `"dense"`, autodiff with n x n matrices; `"revealed"`, `solve_network`, of the same law; `"auto"`, the
      faster one: revealed for widths of at least 200 + 2.5 x steps x batch.
    - `backward`: `"tied"`, ordinary backpropagation, or `"untied"`: the backward pass multiplies by an independent
      copy of each hidden matrix, and both copies get the same updates.
    - `train_input`, `train_readout`: whether U and V train as well.
    - `richness`: gamma; outputs are divided by it and rates multiplied by its square. Towards 0 training is lazy.
    - `momentum`, `weight_decay`: heavy ball, for SGD; W <- (1 - eta lambda) W, for SGD and AdamW.
    - `betas`, `epsilon`: Adam's, (0.9, 0.999) and 1e-8 unless given, refused under SGD. eps is scaled as the
      gradients of a role are, but under `"sp"`.
    - `observe`: called with a `Sweep` before every update and after the last one; the arrays it returns, by names of
      its own, are kept in `observed`. It is traced by jax: written with `jax.numpy`, without numpy and without branches
      on values. Its attribute `axes` may name the axes of its arrays (`nfd.observables.axes`).
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
    rule = Optimizer.create(optimizer, momentum, weight_decay, betas, epsilon)
    one_of("backward", backward, BACKWARDS)
    one_of("engine", engine, ENGINES)
    problem = loop.prepare(
        task,
        model,
        steps=steps,
        learning_rate=learning_rate,
        parametrization_name=parametrization,
        optimizer=rule,
        train_input=train_input,
        train_readout=train_readout,
        richness=richness,
        observe=observe,
        evaluate_at=evaluate_at,
        progress=progress,
    )
    if is_revealed(engine, task, width, steps, rule):
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
            observe=observe,
            evaluate_at=evaluate_at,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            progress=progress,
        )
    arguments = problem.arguments | {"solver": "training", "width": width, "backward": backward}
    kept = train_members(
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


def train_members(
    problem: loop.Problem,
    task: Task,
    model: AbstractModel,
    width: int,
    seeds: tuple[int, ...],
    *,
    backward: str,
    progress: bool | None,
    checkpoint: Checkpoint | None = None,
) -> loop.Kept:
    """Networks of these seeds side by side, at the rates of the problem: `(K,)`, or `(members, K)` for each its own."""
    shape = Shape(width, task.dimension, task.outputs, backward == "untied")
    return loop.run_members(
        AUTODIFF,
        problem,
        partial(_create, problem.settings, model, shape),
        seeds,
        member_bytes(problem, task, model, width, backward),
        description=f"{backward} networks, width {width}",
        progress=progress,
        checkpoint=checkpoint,
    )


def member_bytes(problem: loop.Problem, task: Task, model: AbstractModel, width: int, backward: str) -> int:
    """Bytes of one member: its weights with their gradients and the optimizer's memory, its initial matrices where
    something is observed, and the activations of a batch in all layers or of an evaluation in some. ValueError where
    the device lacks them."""
    shape = Shape(width, task.dimension, task.outputs, backward == "untied")
    copies = 3 if problem.settings.optimizer.is_linear else 5
    evaluated = sum(len(samples.inputs) for samples in problem.data.sets)
    rows = max((model.matrices + 1) * problem.data.batches.shape[1], evaluated)
    initial = 0 if problem.settings.observe is None else model.matrices * width**2
    needed = (copies * shape.numbers(model) + initial + 3 * rows * width) * jnp.zeros(()).dtype.itemsize
    ways_out = f"use a smaller width than {width}, depth or batch, or solve_network, which needs no n x n array"
    memory.check(needed, 1, ways_out)
    return needed


def check_cell(
    problem: loop.Problem, task: Task, model: AbstractModel, width: int, backward: str, *, revealed: bool
) -> dict[str, tuple[int, ...]]:
    """Shapes of what is observed of a network at a step, by name. ValueError where networks of this width can't be
    trained, or the devices lack the memory for one; nothing is compiled."""
    if revealed:
        problem, explicit = in_shape(problem, task, model, width, backward)
        return loop.observed_shapes(EXPLICIT, problem, creation(problem, explicit, backward))
    member_bytes(problem, task, model, width, backward)
    shape = Shape(width, task.dimension, task.outputs, backward == "untied")
    return loop.observed_shapes(AUTODIFF, problem, partial(_create, problem.settings, model, shape))


def is_revealed(engine: str, task: Task, width: int, steps: int, optimizer: Optimizer = Optimizer()) -> bool:  # noqa: B008 - frozen
    """Whether networks of this width are trained with revealed matrices, which take linear optimizers only."""
    queries = steps * (task.batch_size or task.samples)
    least, a_query = CROSSOVER
    return engine == "revealed" or (engine == "auto" and optimizer.is_linear and width >= least + a_query * queries)


def trainable(trained: tuple[str, ...], network: Network) -> dict[str, PyTree]:
    """The weights that training moves, by role."""
    roles = [*trained, *(["inner"] if "hidden" in trained and network.inner is not None else [])]
    return {role: getattr(network, role) for role in roles}


def with_weights(network: Network, parameters: dict[str, PyTree]) -> Network:
    """The network with these in place of its own."""
    fields = {name: getattr(network, name) for name in ("input", "inner", "hidden", "readout")} | parameters
    return Network(**fields, model=network.model, row=network.row, richness=network.richness)


@partial(jax.jit, static_argnums=(0, 1, 2, 4))
def _create(
    settings: loop.Settings, model: AbstractModel, shape: Shape, keys: Array, layout: Layout | None = None
) -> TrainingState:
    def one(key: Key) -> TrainingState:
        return start(settings, create_network(key, model, settings.row, shape, settings.richness))

    return devices.place(layout, jax.vmap(one)(keys))


def start(settings: loop.Settings, network: Network) -> TrainingState:
    """The state before training."""
    optimizer = directions(settings, network).init(trainable(settings.trained, network))
    # copies: a step gives up the memory of the network before it
    initial = None if settings.observe is None else jax.tree.map(jnp.copy, network.forward_matrices)
    return TrainingState(network, optimizer, initial)


def directions(settings: loop.Settings, network: Network) -> optax.GradientTransformation:
    """The directions of all roles, with their rates and gradient scales (theory section 6).

    A richness gamma divides gradients. SGD's rates are multiplied by gamma^2 and Adam's by gamma, so that outputs move
    alike whatever gamma.
    """
    width, dimension = network.input.shape
    sizes = {"width": width, "depth": int(network.model.depth), "dimension": dimension}
    rule, gamma = settings.optimizer, settings.richness
    directions = {}
    for role in trainable(settings.trained, network):
        scaling = network.row[Role(role)]
        rate = scaling.rate(rule.name)(**sizes) * (gamma**2 if rule.is_linear else gamma)
        of_gradients = 1.0 if rule.is_linear else scaling.epsilon(**sizes) / gamma
        in_precision(f"the {role} rate of parametrization {settings.row.name!r}", rate, positive=True)
        in_precision(f"epsilon of {role} weights", rule.epsilon * of_gradients, positive=True)
        directions[role] = rule.direction(rate, of_gradients)
    return optax.partition(directions, {role: role for role in directions})


def train_step(
    settings: loop.Settings,
    scales: Scales | None,
    state: TrainingState,
    step: Index,
    rate: Scalar,
    inputs: Array,
    targets: Array,
) -> tuple[TrainingState, loop.Record]:
    """One step: the loss gradient by autodiff, the rates of the parametrization, and the optimizer."""
    del scales

    def objective(parameters: dict[str, PyTree]) -> tuple[Scalar, Array]:
        outputs = with_weights(state.network, parameters)(inputs)
        return loss_value(settings.loss, outputs, targets), outputs

    parameters = trainable(settings.trained, state.network)
    (loss, outputs), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
    observed, initial = {}, state.initial
    if settings.observe is not None and initial is not None:
        sweep = _sweep(settings, state.network, step, inputs, targets, initial)
        observed = loop.observation(settings.observe, sweep)
        if decay := settings.optimizer.weight_decay:
            initial = jax.tree.map(lambda matrix: (1 - rate * decay) * matrix, initial)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of integer counts
        updates, memory = directions(settings, state.network).update(gradients, state.optimizer, parameters)
    parameters = optimizers.descend(parameters, updates, rate)
    return TrainingState(with_weights(state.network, parameters), memory, initial), loop.Record(outputs, loss, observed)


def _sweep(
    settings: loop.Settings, network: Network, step: Index, inputs: Array, targets: Array, initial: Matrices
) -> loop.Sweep:
    """Features and gradients in the units of the explicit sweeps."""
    width, dimension = network.input.shape
    shifts = jnp.zeros((network.model.blocks + 1, len(inputs), width), inputs.dtype)
    (outputs, features), pull_back = jax.vjp(partial(network.sweep, inputs), shifts)
    entry = network.row.readout.std * network.row.readout.multiplier
    per_output = settings.richness / entry(width=width, depth=int(network.model.depth), dimension=dimension)
    single = outputs.shape[1] == 1
    chi = jnp.ones_like(outputs) if single else per_output / width * loss_gradient(settings.loss, outputs, targets)
    (gradients,) = pull_back((chi, jnp.zeros_like(features)))
    effective_images = partial(network.effective_images, features, initial)
    return loop.Sweep(features, per_output * gradients, outputs, network.model.structure, step, effective_images)


def evaluate(
    settings: loop.Settings, scales: Scales | None, state: TrainingState, step: Index, sets: tuple[loop.Samples, ...]
) -> tuple[loop.Evaluated, ...]:
    """Outputs and loss as they stand."""
    del scales, step
    inputs = jnp.concatenate([samples.inputs for samples in sets])
    return loop.evaluated(settings, state.network(inputs), sets)


AUTODIFF = loop.Method(train_step, evaluate)
