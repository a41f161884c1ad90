"""suggest_learning_rate: the largest curvature of the training loss at initialisation, and the rate that it suggests.

A small step of gradient descent moves outputs by f <- f - eta J D J^T chi, with J their derivatives by the trained
weights, D the rates of the weights' roles at eta = 1 and chi = dloss/df. Linearised, chi <- chi - eta H J D J^T chi,
with H the Hessian of the loss by the outputs (1/P for squared loss): stable while eta times the largest eigenvalue of
J D J^T H, the sharpness of Gauss and Newton, is below 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfd_jax._types import Array, Float, Key, Scalar
from nfd_jax.dynamics.autodiff import Autodiff, trainable, with_weights
from nfd_jax.models import AbstractModel
from nfd_jax.seeds import seed_key, seed_sequence
from nfd_jax.solvers.networks import Networks
from nfd_jax.task import Task, loss_gradient
from nfd_jax.training import Training, takes_training

START_ADDRESS = 2  # folded into the seed's key, whose parts make the weights
PRECISION, MOST = 1e-5, 1000  # of the power iteration: relative change of the eigenvalue in a round, and rounds


@dataclass(frozen=True)
class SuggestedRate:
    """A learning rate, its standard error over seeds (NaN for one), and the `sharpness (seeds,)` whose mean gave it."""

    learning_rate: float
    standard_error: float
    sharpness: np.ndarray

    @property
    def stable_below(self) -> float:
        """The rate at which the linearised training ceases to be stable, 2 / sharpness."""
        return 2 * self.learning_rate

    def __str__(self) -> str:
        error = "" if np.isnan(self.standard_error) else f" ± {self.standard_error:.1g}"
        return (
            f"learning rate {self.learning_rate:.3g}{error}: half of 2 / sharpness = {self.stable_below:.3g}, "
            "below which full-batch SGD is stable at initialisation"
        )


@takes_training
def suggest_learning_rate(
    task: Task, model: AbstractModel, training: Training, *, width: int = 256, seeds: int | Sequence[int] = 4
) -> SuggestedRate:
    """A learning rate eta to begin with: 1 / sharpness of the training loss at initialisation, half the bound
    2 / sharpness of linear stability.

    The sharpness is the largest eigenvalue of J D J^T H, the Gauss-Newton curvature of the loss of all training samples
    by the trained weights, in the metric of their SGD rates, so that its inverse is in units of eta. It comes from
    power iteration on `(P, c)` arrays, in networks of finite width, and averaged over `seeds`. Where the
    parametrization has a limit as n grows, this converges to its own, and the rate serves `solve_limit` as well.

    **What it is not:** a best rate, nor a bound for all of training. Where features are learned, curvature moves: rates
    somewhat above the bound may still train, and rates below it may diverge later. Of cross-entropy the curvature falls
    as samples are fitted, and larger rates become stable. Mini-batches have larger curvatures, on average, than all
    samples together. Momentum m raises the bound by a factor of 1 + m. Adam's rates are of another kind.

    Arguments are those of `train_networks`; `seeds` are those of its networks. Raises ValueError or TypeError for bad
    arguments before compiling, and ValueError where the outputs don't move or the curvature overflows.
    """
    members = seed_sequence(seeds)
    if training.rule.rates_of != "sgd":
        raise ValueError(f"optimizer must be 'sgd' here, got {training.rule.name!r}, whose rates are of another kind")
    recipe = replace(training, steps=1, learning_rate=1.0, observe=None, evaluate_at=None)
    dynamics = Networks.of(task, model, recipe, width, "tied", "dense").dynamics  # refuses what does not fit
    dtype = jnp.zeros(()).dtype
    inputs, targets = jnp.asarray(task.inputs, dtype), jnp.asarray(task.targets, dtype)
    sharpness = np.array([_sharpness(dynamics, seed_key(seed), inputs, targets) for seed in members], float)
    if not np.all(np.isfinite(sharpness) & (sharpness > 0)):
        raise ValueError(
            f"there is no learning rate to suggest: the sharpness is {sharpness.tolist()} for seeds {list(members)}, 0 "
            "where no trained weight moves the outputs and not finite where features overflow or the loss is linear; "
            "try another activation, depth, parametrization, loss or scale of inputs"
        )
    rate = 1 / sharpness.mean()
    error = sharpness.std(ddof=1) / len(sharpness) ** 0.5 if len(sharpness) > 1 else np.nan
    return SuggestedRate(float(rate), float(error * rate**2), sharpness)


@jax.jit
def _sharpness(
    dynamics: Autodiff, key: Key, inputs: Float[Array, "samples inputs"], targets: Float[Array, "samples outputs"]
) -> Scalar:
    """The largest eigenvalue of J D J^T H of one network."""
    settings, network = dynamics.settings, dynamics.init(key).network
    weights = trainable(settings.trained, network)
    outputs, pull_back = jax.vjp(lambda moved: with_weights(network, moved)(inputs), weights)
    push_forward = jax.linear_transpose(pull_back, outputs)  # products of the network have no forward derivatives
    optimizer = dynamics.directions(network)
    memory = optimizer.init(weights)

    def curved(vector: Float[Array, "samples outputs"]) -> Float[Array, "samples outputs"]:
        return jax.jvp(lambda f: loss_gradient(settings.loss, f, targets), (outputs,), (vector,))[1]

    def one_round(state: tuple) -> tuple:
        vector, value, _, count = state
        bent = curved(vector)
        (gradients,) = pull_back(bent)
        (moved,) = push_forward((optimizer.update(gradients, memory, weights)[0],))
        rayleigh = jnp.vdot(bent, moved) / jnp.vdot(bent, vector)  # in the inner product of H
        length = jnp.linalg.norm(moved)
        return moved / jnp.where(length > 0, length, 1), rayleigh, value, count + 1

    def goes_on(state: tuple) -> Array:
        _, value, before, count = state
        return (jnp.abs(value - before) > PRECISION * jnp.abs(value)) & (count < MOST)

    start = jax.random.normal(jax.random.fold_in(key, START_ADDRESS), outputs.shape, outputs.dtype)
    nothing = jnp.zeros((), outputs.dtype)
    first = one_round((start, nothing, nothing, jnp.int32(0)))
    _, value, _, _ = lax.while_loop(goes_on, one_round, first)
    return value
