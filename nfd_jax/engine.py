"""The explicit training loop: forward sweep, backward sweep, update, over matrices of any kind.

One jitted program a training step, compiled once per shape; steps are a loop on the host, between which progress is
shown and a run can be interrupted. Rates are traced. The optimizer is an optax transformation of whatever form the
parameters have: for revealed matrices their coordinates, in which the linear SGD family acts as on the matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from nfd_jax import architecture, parametrization
from nfd_jax._errors import finite_float, positive_int
from nfd_jax._types import Array, Float, Index, PyTree, Scalar
from nfd_jax.architecture import Layers, ResNet, check_resnet
from nfd_jax.task import Task, check_task, loss_gradient, loss_value


class Sweep(NamedTuple):
    """What an observe function sees of one training step.

    `features` h_0 to h_L and `gradients` g_0 to g_L are `(L + 1, P, width)`. For one output g is n times the output
    gradient, for several n P times the loss gradient of the sample's own loss divided by P.
    """

    features: Float[Array, "layers batch width"]
    gradients: Float[Array, "layers batch width"]
    outputs: Float[Array, "batch outputs"]


Observe = Callable[[Sweep], dict[str, Array]]


@dataclass(frozen=True)
class Settings:
    """What the compiled step depends on besides shapes."""

    model: ResNet
    branch: float
    loss: str
    trained: tuple[str, ...]
    momentum: float = 0.0
    weight_decay: float = 0.0
    observe: Observe | None = None


class State(eqx.Module):
    """The network and its optimizer's memory."""

    layers: Layers
    optimizer: PyTree


class Record(NamedTuple):
    """What is kept of one step."""

    outputs: Float[Array, "batch outputs"]
    loss: Scalar
    observed: dict[str, Array]


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """The SGD family without its rate: heavy-ball momentum, then decoupled weight decay W <- (1 - eta lambda) W."""
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    return optax.chain(optax.trace(momentum) if momentum else optax.identity(), decay)


def _trainable(settings: Settings, layers: Layers) -> dict[str, PyTree]:
    parameters = {"input": layers.input, "hidden": layers.hidden.parameters, "readout": layers.readout}
    return {role: parameters[role] for role in settings.trained}


def start(settings: Settings, layers: Layers) -> State:
    """The state before training."""
    return State(layers, sgd(settings.momentum, settings.weight_decay).init(_trainable(settings, layers)))


def train_step(
    settings: Settings, state: State, step: Index, rate: Scalar, inputs: Array, targets: Array
) -> tuple[State, Record]:
    """One step of the SGD family on the whole batch, and what was seen before the update."""
    found, layers = architecture.forward(settings.model, settings.branch, state.layers, inputs, step, keep=True)
    chi = loss_gradient(settings.loss, found.outputs, targets)
    single = targets.shape[1] == 1  # g is the output gradient and chi a weight, see architecture.backward
    cotangents = jnp.ones_like(chi) if single else chi
    weights = chi[:, 0] if single else jnp.ones_like(chi[:, 0])
    gradients, layers = architecture.backward(
        settings.model,
        settings.branch,
        layers,
        inputs,
        found,
        cotangents,
        weights,
        step,
        keep_sweep=settings.observe is not None,
    )
    observed = {}
    if settings.observe is not None:
        assert gradients.sweep is not None
        observed = settings.observe(Sweep(found.features, gradients.sweep, found.outputs))

    parameters = _trainable(settings, layers)
    wanted = {role: gradients.parameters[role] for role in settings.trained}
    transformation = sgd(settings.momentum, settings.weight_decay)
    updates, optimizer = transformation.update(wanted, state.optimizer, parameters)
    parameters = jax.tree.map(lambda p, u: p - rate * u, parameters, updates)
    layers = Layers(
        parameters.get("input", layers.input),
        layers.hidden.with_parameters(parameters["hidden"]),
        parameters.get("readout", layers.readout),
    )
    return State(layers, optimizer), Record(
        found.outputs, loss_value(settings.loss, found.outputs, targets), observed
    )


def evaluate(settings: Settings, state: State, step: Index, inputs: Array, targets: Array) -> Record:
    """Outputs and loss as they stand, on queries that are not stored."""
    found, _ = architecture.forward(settings.model, settings.branch, state.layers, inputs, step, keep=False)
    return Record(found.outputs, loss_value(settings.loss, found.outputs, targets), {})


@partial(jax.jit, static_argnames=("settings", "members"), donate_argnames="state")
def _jitted_step(
    settings: Settings, members: bool, state: State, step: Index, rate: Scalar, inputs: Array, targets: Array
) -> tuple[State, Record]:
    function = partial(train_step, settings)
    if members:
        function = jax.vmap(function, in_axes=(0, None, None, None, None))
    return function(state, step, rate, inputs, targets)


@partial(jax.jit, static_argnames=("settings", "members"))
def _jitted_evaluate(
    settings: Settings, members: bool, state: State, step: Index, inputs: Array, targets: Array
) -> Record:
    function = partial(evaluate, settings)
    if members:
        function = jax.vmap(function, in_axes=(0, None, None, None))
    return function(state, step, inputs, targets)


class Run(NamedTuple):
    """Stacked records, steps along the first axis after that of the members."""

    outputs: np.ndarray
    loss: np.ndarray
    observed: dict[str, np.ndarray]


def run(
    settings: Settings,
    state: State,
    inputs: np.ndarray,
    targets: np.ndarray,
    rates: np.ndarray,
    *,
    members: bool,
    progress: tqdm,
) -> Run:
    """Train for `len(rates)` steps. With `members`, every array of `state` has a leading axis of members.

    `state` is given up: its memory is reused. `progress` advances by one a step and once at the end.
    """
    dtype = state.layers.readout.dtype
    x, y = jnp.asarray(inputs, dtype), jnp.asarray(targets, dtype)
    records = []
    for step, rate in enumerate(np.asarray(rates, dtype)):
        state, record = _jitted_step(settings, members, state, jnp.int32(step), rate, x, y)
        records.append(jax.tree.map(np.asarray, record))
        progress.set_postfix(loss=f"{np.nanmean(record.loss):.4g}", refresh=False)
        progress.update()
    final = _jitted_evaluate(settings, members, state, jnp.int32(len(rates)), x, y)
    progress.update()
    axis = 1 if members else 0
    every = [*records, jax.tree.map(np.asarray, final)]
    observed = {name: np.stack([r.observed[name] for r in records], axis) for name in records[0].observed}
    return Run(np.stack([r.outputs for r in every], axis), np.stack([r.loss for r in every], axis), observed)


class Problem(NamedTuple):
    """Validated arguments that every explicit solver shares."""

    settings: Settings
    rates: np.ndarray
    inputs: np.ndarray
    arguments: dict[str, Any]


def prepare(
    task: Task,
    model: ResNet,
    *,
    steps: int,
    learning_rate: float | Callable[[int], Any],
    train_input: bool,
    train_readout: bool,
    momentum: float,
    weight_decay: float,
    observe: Observe | None = None,
) -> Problem:
    """Check the arguments of a run before anything is compiled; `arguments` are those that a record keeps."""
    check_task(task)
    check_resnet(model, finite=True)
    rates = rate_schedule(learning_rate, positive_int("steps", steps))
    settings = Settings(
        model=model,
        branch=parametrization.branch_scale("depth_mup", int(model.depth), model.horizon),
        loss=task.loss,
        trained=trained_roles(train_input, train_readout),
        momentum=finite_float("momentum", momentum),
        weight_decay=finite_float("weight_decay", weight_decay),
        observe=observe,
    )
    arguments = {
        "depth": model.depth,
        "activation": model.activation,
        "horizon": model.horizon,
        "parametrization": "depth_mup",
        "steps": steps,
        "learning_rate": rates.tolist(),
        "trained": list(settings.trained),
        "momentum": momentum,
        "weight_decay": weight_decay,
    }
    return Problem(settings, rates, input_coordinates(task.inputs), arguments)


def trained_roles(train_input: bool, train_readout: bool) -> tuple[str, ...]:
    """The trained matrices by name; hidden ones always train."""
    roles = {"input": train_input, "hidden": True, "readout": train_readout}
    return tuple(role for role, trained in roles.items() if trained)


def rate_schedule(learning_rate: float | Callable[[int], Any], steps: int) -> np.ndarray:
    """The rate of every step, from a number or from an optax schedule."""
    if callable(learning_rate):
        return np.array([finite_float(f"learning_rate at step {k}", float(learning_rate(k))) for k in range(steps)])
    return np.full(steps, finite_float("learning_rate", learning_rate))


def progress_bar(description: str, total: int, show: bool | None) -> tqdm:
    """A bar that appears after two seconds; `show=None` leaves it out where output is not a terminal."""
    disable = None if show is None else not show
    return tqdm(total=total, desc=description, unit="step", delay=2, leave=False, disable=disable)


def input_coordinates(inputs: np.ndarray) -> np.ndarray:
    """Inputs times 1/sqrt(d), in an orthonormal basis of their span: `(P, rank)`, rank at most min(P, d).

    A Gaussian input matrix acts on the coordinates as it does on the inputs, in law and under training, so U takes
    n x rank numbers however large d is.
    """
    left, singular, _ = np.linalg.svd(inputs / np.sqrt(inputs.shape[1]), full_matrices=False)
    rank = max(1, int(np.sum(singular > singular[0] * max(inputs.shape) * np.finfo(np.float64).eps)))
    return left[:, :rank] * singular[:rank]
