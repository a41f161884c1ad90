"""Optimizers without their rate, as optax transformations, and the rate of every step.

The linear SGD family acts on the coordinates of a low-rank update as it does on the matrix itself, so revealed
matrices, dense sweeps and the autodiff trainer all use the same transformation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from nfd_jax._errors import finite_float, one_of
from nfd_jax._types import PyTree, Scalar
from nfd_jax.parametrization import FAMILIES

Rate = int | float | Callable[[int], Any]


@dataclass(frozen=True)
class Optimizer:
    """A direction to move in, and decoupled weight decay, W <- (1 - eta lambda) W.

    `momentum` is that of SGD (heavy ball), `betas` and `epsilon` are Adam's.
    """

    name: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    @classmethod
    def create(
        cls,
        name: str,
        momentum: Any,
        weight_decay: Any,
        betas: Sequence[Any] | np.ndarray = (0.9, 0.999),
        epsilon: Any = 1e-8,
    ) -> Optimizer:
        """Checked: ValueError or TypeError where there is no such optimizer or it does not take an argument."""
        one_of("optimizer", name, FAMILIES)
        if not isinstance(betas, Sequence | np.ndarray) or np.shape(betas) != (2,):
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        optimizer = cls(
            name,
            finite_float("momentum", momentum),
            finite_float("weight_decay", weight_decay),
            (finite_float("betas[0]", betas[0]), finite_float("betas[1]", betas[1])),
            finite_float("epsilon", epsilon),
        )
        if FAMILIES[name] == "adam" and momentum:
            raise ValueError(f"momentum={momentum} is for optimizer='sgd'; set betas for {name!r}")
        if name == "adam" and weight_decay:
            raise ValueError(f"weight_decay={weight_decay} is decoupled here; use optimizer='adamw'")
        if optimizer.momentum >= 1:
            raise ValueError(f"momentum must be below 1, got {momentum}; gradients of the past would never fade")
        if max(optimizer.betas) >= 1:
            raise ValueError(f"betas must be below 1, got {betas}")
        return optimizer

    @property
    def is_linear(self) -> bool:
        """Whether updates are linear in the gradients, so that the learned part of a matrix stays low rank."""
        return FAMILIES[self.name] == "sgd"

    def direction(self, rate: float = 1.0, epsilon: float = 1.0) -> optax.GradientTransformation:
        """Updates of weights of one role, to be subtracted times eta: `rate` is that role's, and `epsilon` what its
        gradients scale as."""
        if self.is_linear:
            normalised = optax.trace(self.momentum) if self.momentum else optax.identity()
        else:
            normalised = optax.scale_by_adam(*self.betas, eps=self.epsilon * epsilon)
        return optax.chain(
            normalised,
            optax.scale(rate) if rate != 1 else optax.identity(),
            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),
        )


def descend(parameters: PyTree, updates: PyTree, rate: Scalar) -> PyTree:
    """Parameters moved by -rate times the updates."""
    return jax.tree.map(lambda parameter, update: parameter - rate * update, parameters, updates)


def rates(learning_rate: Rate, steps: int) -> np.ndarray:
    """The rate of every step, from a number or from an optax schedule."""
    if callable(learning_rate):
        return np.array([finite_float(f"learning_rate at step {k}", float(learning_rate(k))) for k in range(steps)])
    return np.full(steps, finite_float("learning_rate", learning_rate))
