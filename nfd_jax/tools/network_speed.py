"""network_speed: feature speed in the networks of this package and in their limits, by one small step in float64.

Movements of features are no stored inner products. So a step is taken, and the same batch passed again: what features
have moved is first order up to a remainder proportional to the rate. Gradients are those of the passes themselves: of
tied networks and of the coupled limit they are derivatives, of untied networks and of the decoupled limit they are not,
and the feature speed formula has no reason to hold there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax._checks import finite_float, positive_int
from nfd_jax._types import Array, PyTree, Scalar
from nfd_jax.dynamics.autodiff import Autodiff, trainable, with_weights
from nfd_jax.dynamics.base import SGD, AbstractDynamics, Record
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.problem import Problem
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.models import AbstractModel
from nfd_jax.seeds import check_seed, seed_key
from nfd_jax.solvers.limit import limit_dynamics
from nfd_jax.solvers.networks import network_dynamics
from nfd_jax.task import Task, loss_gradient, loss_value
from nfd_jax.tools.feature_speed import FeatureSpeed, angle, rms
from nfd_jax.training import Training, takes_training

SMALL = 1e-6  # the measured step's rate: in float64 its remainder and its rounding are both small


@takes_training
def network_speed(
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    width: int | None = 256,
    backward: str = "tied",
    engine: str = "dense",
    closure: str = "coupled",
    particles: int = 4096,
    rate: float | int = SMALL,
    trained: int = 0,
    seed: int = 0,
) -> FeatureSpeed:
    """Angles, speeds, loss decay and sensitivity of all layers of one network, or of a limit, under one step.

        nfd.network_speed(task, nfd.ResNet(16), width=1024, engine="revealed").cosine  # (L + 1,)
        nfd.network_speed(task, nfd.ResNet(16), width=None, closure="coupled", trained=10, learning_rate=1.0)

    **Arguments:**

    - `task`, `model`, `training`: what is learned, by which network and how, as every solver takes them; the depth is
      finite. `training` has the optimizer, its rate before the measured step, and what is trained.
    - `width`, `backward`, `engine`: of a network, as in `train_networks`. `width=None` is the limit, and `closure` and
      `particles` are as in `solve_limit`.
    - `trained`: steps of training before the measured one.
    - `rate`: eta of the measured step. All numbers are of this step; angles and sensitivity hardly depend on it.
    - `seed`: of the network.

    Computed in float64, whatever the setting. The layers are h_0 to h_L (h_1 to h_depth of an `MLP`), entries those of
    all samples of the batch, and b_v is what g_v says of the loss gradient. With N = n P entries `speed`, `backward`
    and `decay` have limits as n grows. `speed` is that of the step taken, as `moved` is. Revealed matrices and limits
    take plain SGD. Returns a `FeatureSpeed`. Raises ValueError or TypeError for bad arguments, and where a number is
    not finite.
    """
    if width is None:
        prepare = partial(limit_dynamics, particles=particles, closure=closure)
    else:
        prepare = partial(network_dynamics, width=width, engine=engine, backward=backward)
    found = step_quantities(prepare, task, model, training, rate=rate, trained=trained, seed=seed)
    names = tuple(f"h_{layer + (not model.structure.skip)}" for layer in range(model.blocks + 1))
    for quantity, values in found.items():
        if not np.isfinite(values).all():
            where = f" of {names[int(np.argmin(np.isfinite(values)))]}" if np.ndim(values) else ""
            raise ValueError(f"{quantity}{where} is not finite after trained={trained} steps; lower learning_rate")
    return FeatureSpeed.of(names, found)


def step_quantities(
    prepare: Callable[[Task, AbstractModel, Training], tuple[AbstractDynamics, Problem]],
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    rate: float | int = SMALL,
    trained: int = 0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The arrays of `network_speed` by name, finite or not, of what `limit_dynamics` or `network_dynamics` prepares."""
    eta, before = finite_float("rate", rate, strict=True), positive_int("trained", trained, 0)
    schedule = [*(float(training.rates[min(k, training.steps - 1)]) for k in range(before)), eta, 0.0]
    changes = {"steps": before + 2, "learning_rate": schedule.__getitem__, "observe": _fields, "evaluate_at": None}
    with jax.enable_x64(True):
        dynamics, problem = prepare(task, model, replace(training, **changes))
        if isinstance(dynamics, Conditioned) and training.rule != SGD:
            raise ValueError(
                f"optimizer={training.rule.name!r} with its momentum and decay must be plain SGD for revealed matrices "
                "and limits; use engine='dense'"
            )
        return _measured(dynamics, problem, check_seed("seed", seed), before)


def _fields(snapshot: Snapshot) -> dict[str, Array]:
    """Features and gradients themselves."""
    return {"h": snapshot.features, "g": snapshot.gradients}


def _measured(dynamics: AbstractDynamics, problem: Problem, seed: int, trained: int) -> dict[str, Any]:
    """The quantities of `FeatureSpeed` for the step after `trained` ones."""
    state = _init(dynamics, seed_key(seed))
    for step, rate, x, y in problem.steps():
        after, record = _step(dynamics, state, step, rate, x, y)
        if int(step) == trained:
            _, later = _step(dynamics, after, step + 1, jnp.zeros_like(rate), x, y)  # the same batch, passed again
            found = _compared(dynamics, state, after, rate, x, y, record, later)
            return {name: np.asarray(values, np.float64) for name, values in found.items()}
        state = after
    raise AssertionError("the measured step is one of those of the problem")


@eqx.filter_jit
def _init(dynamics: AbstractDynamics, key: Any) -> PyTree:
    return dynamics.init(key)


@eqx.filter_jit
def _step(dynamics: AbstractDynamics, state: PyTree, step: Any, rate: Any, x: Any, y: Any) -> tuple[PyTree, Record]:
    return dynamics.step(state, step, rate, x, y)


@eqx.filter_jit
def _compared(
    dynamics: Any, state: PyTree, after: PyTree, rate: Any, x: Any, y: Any, record: Record, later: Record
) -> dict[str, Array]:
    moved = later.observed["h"] - record.observed["h"]
    pulled = _loss_gradients(dynamics, record, y)
    of_layers = _decay_of_layers(dynamics, state, after, rate, x, y)
    found = jax.vmap(angle)(moved, pulled)
    decay = jnp.cumsum(of_layers["input"] + of_layers["blocks"])
    return found | {
        "moved": jax.vmap(rms)(moved),
        "decay": decay,
        "loss": record.loss,
        "loss_decay": decay[-1] + of_layers["readout"],
        "loss_change": later.loss - record.loss,
    }


def _loss_gradients(dynamics: Any, record: Record, targets: Array) -> Array:
    """b_0 to b_L from g_0 to g_L, as `Snapshot` has them: n / output times the derivative of the one output, n /
    output^2 times that of the loss where there are several."""
    gradients, width = record.observed["g"], record.observed["g"].shape[-1]
    output = _output_scale(dynamics, width)
    if record.outputs.shape[1] > 1:
        return output**2 / width * gradients
    return output / width * loss_gradient(dynamics.settings.loss, record.outputs, targets)[None] * gradients


def _output_scale(dynamics: Any, width: int) -> Any:
    """f = output V^T h_L / n, for V of N(0, 1) entries."""
    if isinstance(dynamics, Conditioned):
        return dynamics.units.output
    sizes = {"width": width, "depth": int(dynamics.model.depth), "dimension": dynamics.shape.dimension}
    readout = dynamics.row.readout
    return readout.std(**sizes) * readout.multiplier(**sizes) * width / dynamics.richness


def _decay_of_layers(dynamics: Any, state: PyTree, after: PyTree, rate: Any, x: Any, y: Any) -> dict[str, Array]:
    """-<grad, dW> of the input layer, in place 0 of `(L + 1,)`, of the blocks in the places after it, and of the
    readout."""
    dense = isinstance(dynamics, Autodiff)
    decays = _of_dense(dynamics, state, after, x, y) if dense else _of_revealed(dynamics, state, after, rate)
    inside = jnp.asarray(sum(decays[role] for role in ("inner", "hidden") if role in decays))
    blocks = jnp.concatenate([jnp.zeros(1), inside])
    first = jnp.zeros_like(blocks).at[0].set(decays.get("input", 0.0))
    return {"input": first, "blocks": blocks, "readout": decays.get("readout", jnp.zeros(()))}


def _of_dense(dynamics: Autodiff, state: PyTree, after: PyTree, x: Any, y: Any) -> dict[str, Array]:
    """From gradients and weights before and after, forward ones where there are two copies."""
    network, settings = state.network, dynamics.settings
    weights, moved = (trainable(settings.trained, each.network) for each in (state, after))

    def objective(weights: dict[str, PyTree]) -> Scalar:
        return loss_value(settings.loss, with_weights(network, weights)(x), y)

    gradients = jax.grad(objective)(weights)
    products = jax.tree.map(lambda g, w, v: -jnp.sum(g * (v - w), axis=(-2, -1)), gradients, weights, moved)
    found = {}
    for role, product in products.items():
        if role in ("input", "readout"):
            found[role] = product
        else:  # by place, by group, forward and backward: of all groups, one after the other
            places = product if role == "inner" else (product,)
            found[role] = sum(jnp.concatenate([forward for forward, _ in place]) for place in places)
    return found


def _of_revealed(dynamics: Conditioned, state: PyTree, after: PyTree, rate: Any) -> dict[str, Array]:
    """eta |grad|^2 = |dW|^2 / eta under plain SGD, from the coordinates of dW in orthonormal bases."""
    units, count = dynamics.units, dynamics.settings.structure.matrices
    before, later = state.layers, after.layers
    width, found = before.readout.shape[1], {}
    for role in ("input", "readout"):
        moved = getattr(later, role) - getattr(before, role)
        found[role] = units.output**2 / width * jnp.sum(moved**2) / (rate * units.rates[role])
    learned = later.hidden.parameters.learned - before.hidden.parameters.learned
    squares = jnp.sum(learned**2, axis=(1, 2)).reshape(-1, count)
    rates = jnp.array([*[units.rates["inner"]] * (count - 1), units.rates["hidden"]])
    found["hidden"] = units.output**2 * jnp.sum(squares / (rate * rates)[None], axis=1)
    return found
