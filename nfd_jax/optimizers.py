"""Optimizers without their rate, as optax transformations, and the rate of every step.

The linear SGD family acts on the coordinates of a low-rank update as it does on the matrix itself, so revealed
matrices, dense sweeps and the autodiff trainer all use the same transformation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from nfd_jax._errors import finite_float, one_of
from nfd_jax._types import PyTree, Scalar

OPTIMIZERS = ("sgd",)
Rate = float | Callable[[int], Any]


def check(optimizer: str) -> str:
    """`optimizer` where there is a rule for it, else a ValueError that lists those there are."""
    return one_of("optimizer", optimizer, OPTIMIZERS)


def direction(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Heavy-ball momentum, then decoupled weight decay, W <- (1 - eta lambda) W, before the rate."""
    return optax.chain(
        optax.trace(momentum) if momentum else optax.identity(),
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
    )


def descend(parameters: PyTree, updates: PyTree, rate: Scalar) -> PyTree:
    """Parameters moved by -rate times the updates."""
    return jax.tree.map(lambda parameter, update: parameter - rate * update, parameters, updates)


def rates(learning_rate: Rate, steps: int) -> np.ndarray:
    """The rate of every step, from a number or from an optax schedule."""
    if callable(learning_rate):
        return np.array([finite_float(f"learning_rate at step {k}", float(learning_rate(k))) for k in range(steps)])
    return np.full(steps, finite_float("learning_rate", learning_rate))
