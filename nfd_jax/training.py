"""Training: how a network is trained, as one value that every solver, `sweep` and the studies accept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from typing import Any

import numpy as np

from nfd_jax import _functions as functions
from nfd_jax import optimizers, parametrization
from nfd_jax._checks import MOST, boolean, finite_float, positive_int, positive_ints
from nfd_jax.optimizers import Optimizer, Rate
from nfd_jax.parametrization import PARAMETRIZATIONS, Parametrization

OPTIMIZER_ARGUMENTS = ("momentum", "weight_decay", "betas", "epsilon")


@dataclass(frozen=True)
class Training:
    """A recipe. Every solver takes one as `training=`, or its fields as keywords of the same names, which replace those
    of the recipe.

    **Arguments:**

    - `steps`: K, training steps.
    - `learning_rate`: the width- and depth-free rate eta, or an optax schedule.
    - `parametrization`: a row of the exponent table (`"sp"`, `"ntp"`, `"mup"`, `"depth_mup"`,
      `"depth_mup_corrected"`, `"complete_p"`, `nfd.alpha_gamma(alpha, gamma)`), or one of your own.
    - `optimizer`: `"sgd"`, `"adam"`, `"adamw"`, or any optax transformation by `nfd.Optimizer.of`.
    - `momentum`, `weight_decay`: heavy ball, for SGD; W <- (1 - eta lambda) W, for SGD and AdamW.
    - `betas`, `epsilon`: Adam's, (0.9, 0.999) and 1e-8 unless given, refused under SGD. eps is scaled as the
      gradients of a role are, but under `"sp"`.
    - `train_input`, `train_readout`: whether U and V train as well, at the rates of their roles.
    - `richness`: gamma; outputs are divided by it and rates multiplied by its square. Towards 0 training is lazy.
    - `observe`: called with a `Snapshot` before every update and after the last one; the arrays it returns, by names of
      its own, are kept in `observed`. It is traced by jax: written with `jax.numpy`, without numpy and without branches
      on values. Its attribute `axes` may name the axes of its arrays (`nfd.observables.axes`).
    - `evaluate_at`: the steps, 0 to `steps`, at which held-out samples and, with mini-batches, all training samples
      are evaluated; by default all.

    Raises ValueError or TypeError, which name the argument, its value and the way out.
    """

    steps: int = 10
    learning_rate: Rate = 0.5
    parametrization: str | Parametrization = "depth_mup"
    optimizer: str | Optimizer = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: Sequence[float] | None = None
    epsilon: float | None = None
    train_input: bool = False
    train_readout: bool = False
    richness: float = 1.0
    observe: Callable[..., Any] | None = None
    evaluate_at: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """ValueError or TypeError where the recipe can't be followed, in the precision that jax has now."""
        if self.observe is not None and not callable(self.observe):
            raise TypeError(
                f"observe must be a function of a Snapshot that returns arrays by name, got {self.observe!r}"
            )
        _ = self.row, self.trained, self.at
        finite_float("richness", self.richness, strict=True)
        optimizers.check_rates("learning_rate", self.rates, self.rule)

    @classmethod
    def create(cls, training: Training | None, changes: Mapping[str, Any]) -> Training:
        """The recipe with these fields changed, or the defaults with them."""
        if training is None:
            return cls(**changes)
        if not isinstance(training, Training):
            raise TypeError(f"training must be an nfd.Training, got {training!r}; give its arguments by name")
        return replace(training, **changes)

    @property
    def row(self) -> Parametrization:
        """The row of the exponent table."""
        return parametrization.resolve(self.parametrization)

    @property
    def rule(self) -> Optimizer:
        """The optimizer with its arguments."""
        given = {name: getattr(self, name) for name in OPTIMIZER_ARGUMENTS}
        if not isinstance(self.optimizer, Optimizer):
            return Optimizer.create(self.optimizer, **given)
        for name, value in given.items():
            if value != getattr(Training, name):  # the default
                raise ValueError(f"{name}={value!r} is of an optimizer by name; give it to the Optimizer itself")
        return self.optimizer

    @cached_property  # a schedule is asked once
    def rates(self) -> np.ndarray:
        """Of every step, `(steps,)`; can't be written."""
        rates = optimizers.rates(self.learning_rate, positive_int("steps", self.steps, maximum=MOST))
        rates.flags.writeable = False
        return rates

    @property
    def trained(self) -> tuple[str, ...]:
        """The roles that train."""
        wanted = {
            "input": boolean("train_input", self.train_input),
            "hidden": True,
            "readout": boolean("train_readout", self.train_readout),
        }
        return tuple(role for role, trains in wanted.items() if trains)

    @property
    def at(self) -> tuple[int, ...]:
        """The steps of `evaluate_at`, in order."""
        steps = positive_int("steps", self.steps, maximum=MOST)
        chosen = range(steps + 1) if self.evaluate_at is None else self.evaluate_at
        if isinstance(chosen, str) or not isinstance(chosen, Sequence | np.ndarray):
            raise TypeError(f"evaluate_at must be a sequence of steps from 0 to {steps}, got {self.evaluate_at!r}")
        at = tuple(sorted(set(positive_ints("evaluate_at", chosen, minimum=0))))
        if not at or at[-1] > steps:
            raise ValueError(f"evaluate_at must be at least one step from 0 to {steps}, got {self.evaluate_at!r}")
        return at

    @property
    def arguments(self) -> dict[str, Any]:
        """What a record keeps; `evaluate_at` is left to those whose numbers depend on it."""
        row = self.row
        return {
            "parametrization": row.name if PARAMETRIZATIONS.get(row.name) == row else repr(row),
            "steps": self.steps,
            "learning_rate": self.rates.tolist(),
            "trained": list(self.trained),
            "richness": float(self.richness),
            **self.rule.arguments,
            "observe": functions.plain(self.observe),
        }


NAMES = tuple(field.name for field in fields(Training))


def takes_training(solver: Callable[..., Any]) -> Callable[..., Any]:
    """Let a solver `(task, model, training, *, ...)` take the fields of its recipe as keywords too."""
    signature = inspect.signature(solver)

    @wraps(solver)
    def taking(task: Any, model: Any, training: Training | None = None, **keywords: Any) -> Any:
        changes = {name: keywords.pop(name) for name in NAMES if name in keywords}
        if keywords.get("progress") is not None:  # what all of them take, checked before anything else
            boolean("progress", keywords["progress"])
        return solver(task, model, Training.create(training, changes), **keywords)

    given = list(signature.parameters.values())
    more = [each for name, each in inspect.signature(Training).parameters.items() if name not in signature.parameters]
    recipe = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in more]
    optional = given[2].replace(default=None)
    taking.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[*given[:2], optional, *recipe, *given[3:]]
    )
    return taking
