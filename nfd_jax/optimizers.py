"""Optimizers without their rate, as optax transformations, and the rate of every step.

The linear SGD family acts on the coordinates of a low-rank update as it does on the matrix itself, so revealed
matrices, dense passes and autodiff all use the same transformation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nfd_jax._checks import boolean, finite_float, in_precision, one_of
from nfd_jax._functions import blamed, described
from nfd_jax._types import PyTree, Scalar
from nfd_jax.parametrization import FAMILIES

Rate = int | float | Callable[[int], Any]


@dataclass(frozen=True)
class Optimizer:
    """A direction to move in, and decoupled weight decay, W <- (1 - eta lambda) W.

    `momentum` is that of SGD (heavy ball), `betas` and `epsilon` are Adam's. `Optimizer.of` makes one of your own.
    """

    name: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    transformation: optax.GradientTransformation | None = None  # of a user's
    family: str = ""  # whose rates it takes: "sgd" or "adam"; by default that of the name
    linear: bool = False  # what a user says of a transformation; "sgd" is

    @classmethod
    def of(
        cls,
        transformation: optax.GradientTransformation,
        family: str,
        *,
        linear: bool = False,
        weight_decay: float = 0.0,
        name: str = "custom",
    ) -> Optimizer:
        """Any optax transformation that turns gradients into directions to be subtracted, without their rate, such as
        `optax.scale_by_lion()` or `optax.trace(0.9, nesterov=True)`.

        - `family`: whose rates of the exponent table it takes: `"sgd"` where twice the gradients give twice the
          direction, `"adam"` where they give the same.
        - `linear`: whether directions are linear in all gradients so far and alike for every entry, as revealed
          matrices need (`solve_limit`, `solve_network`); tried on a few numbers.
        - `weight_decay`: decoupled, W <- (1 - eta lambda) W.
        """
        if not (isinstance(transformation, tuple) and callable(getattr(transformation, "update", None))):
            raise TypeError(f"optimizer must be an optax transformation, got {transformation!r}")
        one_of("family", family, ("sgd", "adam"))
        if boolean("linear", linear) and not _is_linear(transformation):
            raise ValueError(
                f"linear=True, but the directions of optimizer {name!r} are not linear in its gradients; leave it out, "
                "and train_networks trains with it"
            )
        decay = finite_float("weight_decay", weight_decay)
        return cls(name, weight_decay=decay, transformation=transformation, family=family, linear=linear)

    @classmethod
    def create(
        cls,
        name: str,
        momentum: Any,
        weight_decay: Any,
        betas: Sequence[Any] | np.ndarray | None = None,
        epsilon: Any = None,
    ) -> Optimizer:
        """Checked: ValueError or TypeError where there is no such optimizer or it does not take an argument."""
        family = FAMILIES[one_of("optimizer", name, FAMILIES)]
        for argument, value in (("betas", betas), ("epsilon", epsilon)):
            if family == "sgd" and value is not None:
                raise ValueError(f"{argument}={value!r} is Adam's; leave it out for optimizer='sgd'")
        betas = cls.betas if betas is None else betas
        if not isinstance(betas, Sequence | np.ndarray) or np.shape(betas) != (2,):
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        optimizer = cls(
            name,
            finite_float("momentum", momentum),
            finite_float("weight_decay", weight_decay),
            (finite_float("betas[0]", betas[0]), finite_float("betas[1]", betas[1])),
            cls.epsilon if epsilon is None else finite_float("epsilon", epsilon, strict=True),
        )
        if family == "adam" and momentum:
            raise ValueError(f"momentum={momentum} is for optimizer='sgd'; set betas for {name!r}")
        if name == "adam" and weight_decay:
            raise ValueError(f"weight_decay={weight_decay} is decoupled here; use optimizer='adamw'")
        dtype = np.dtype(jnp.result_type(float))
        if dtype.type(optimizer.momentum) >= 1:
            raise ValueError(f"momentum must be below 1, got {momentum} in {dtype}; gradients would never fade")
        if np.any(np.asarray(optimizer.betas, dtype) >= 1):
            raise ValueError(f"betas must be below 1, got {betas} in {dtype}")
        in_precision("epsilon", optimizer.epsilon, positive=True)
        return optimizer

    @property
    def rates_of(self) -> str:
        """Whose rates it takes, `"sgd"` or `"adam"`."""
        return self.family or FAMILIES[self.name]

    @property
    def is_linear(self) -> bool:
        """Whether updates are linear in the gradients, so that the learned part of a matrix stays low rank."""
        return self.linear if self.transformation else self.rates_of == "sgd"

    @property
    def arguments(self) -> dict[str, Any]:
        """As a record keeps it."""
        kept: dict[str, Any] = {
            "optimizer": self.name,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }
        if self.transformation:
            return kept | {"optimizer": described(self.transformation.update), "family": self.family}
        return kept if self.is_linear else kept | {"betas": list(self.betas), "epsilon": self.epsilon}

    def direction(self, rate: float = 1.0, epsilon: float = 1.0) -> optax.GradientTransformation:
        """Updates of weights of one role, to be subtracted times eta: `rate` is that role's, and `epsilon` what its
        gradients scale as."""
        if self.transformation:
            normalised = self.transformation
        elif self.is_linear:
            normalised = optax.trace(self.momentum) if self.momentum else optax.identity()
        else:
            normalised = optax.scale_by_adam(*self.betas, eps=self.epsilon * epsilon)
        return optax.chain(
            normalised,
            optax.scale(rate) if rate != 1 else optax.identity(),
            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),
        )


def _is_linear(transformation: optax.GradientTransformation) -> bool:
    """Whether two steps of directions add up where gradients do."""
    first, second = np.array([0.3, -1.1, 2.0]), np.array([-0.7, 0.2, 0.5])

    def directions(scale: float, other: float) -> np.ndarray:
        state, made = transformation.init(jnp.zeros(3)), []
        for gradients in (first, second):
            direction, state = transformation.update(jnp.asarray(scale * gradients + other * gradients[::-1]), state)
            made.append(np.asarray(direction))
        return np.stack(made)

    with jax.numpy_dtype_promotion("standard"):
        return np.allclose(directions(2.0, -3.0), 2 * directions(1.0, 0.0) - 3 * directions(0.0, 1.0), atol=1e-5)


def descend(parameters: PyTree, updates: PyTree, rate: Scalar) -> PyTree:
    """Parameters moved by -rate times the updates."""
    return jax.tree.map(lambda parameter, update: parameter - rate * update, parameters, updates)


def rates(learning_rate: Rate, steps: int, name: str = "learning_rate") -> np.ndarray:
    """The rate of every step, from a number or from an optax schedule; errors call it `name`."""
    if not callable(learning_rate):
        return np.full(steps, finite_float(name, learning_rate))
    return np.array([_scheduled(learning_rate, k, name) for k in range(steps)])


def _scheduled(schedule: Callable[[int], Any], step: int, name: str) -> float:
    with blamed(f"{name} must be a number, or a schedule that takes the step, an int, to a number; at step {step} it"):
        rate = schedule(step)
    return finite_float(f"{name} at step {step}", rate)


def check_rates(name: str, rates: np.ndarray, optimizer: Optimizer) -> None:
    """ValueError where rates `(..., K)` do not fit the precision, or decay would change the sign of the weights."""
    in_precision(name, rates)
    in_precision(name, np.max(rates), positive=True)
    step = int(np.argmax(rates.max(axis=tuple(range(rates.ndim - 1)))))
    largest = float(np.max(rates))
    if largest * optimizer.weight_decay > 1:
        raise ValueError(
            f"{name}={largest:g} at step {step} times weight_decay={optimizer.weight_decay:g} is above 1, and "
            "W <- (1 - eta lambda) W would change the sign of the weights; lower one of them"
        )
