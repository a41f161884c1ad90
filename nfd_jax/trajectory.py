"""Trajectory: what every solver and trainer returns, so that limit and network are compared directly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nfd_jax._errors import Outcome
from nfd_jax.seeds import labels
from nfd_jax.task import Task

if TYPE_CHECKING:
    import xarray as xr


class ErrorBars(NamedTuple):
    """What an estimate may be off by; arrays of its shape.

    - `standard_error`: of the Monte-Carlo average.
    - `discretisation_error`: a bound on what is left of the finite depth, for the limit of infinite depth.
    - `quantile`: of Student's distribution, for 95 % and the degrees of freedom that there were.
    """

    standard_error: np.ndarray
    discretisation_error: np.ndarray
    quantile: np.ndarray

    @property
    def half_width(self) -> np.ndarray:
        """Half the width of the 95 % interval."""
        return self.quantile * self.standard_error + self.discretisation_error


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Outputs and loss on the held-out samples of a task: `(S, Q, c)` and `(S,)`, or with a leading axis of members.

    `steps (S,)`: the numbers of updates after which they were taken. Each is exact in law given training up to then;
    the joint law over several steps is not kept.
    """

    outputs: np.ndarray
    loss: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Outputs and loss along training, before the first step and after each one.

    - `outputs`: `(steps + 1, P, c)`; with members `(seeds, steps + 1, P, c)`.
    - `loss`: `(steps + 1,)` or `(seeds, steps + 1)`, over all samples.
    - `observed`: what the observe function returned at every training step, before its update, stacked:
      `(steps, ...)` or `(seeds, steps, ...)`.
    - `seeds`: the seeds of the members, or the one seed.
    - `settings`: the arguments of the run.
    - `steps`: the numbers of updates after which outputs and loss were taken: 0 to the last, unless mini-batches
      were evaluated less often.
    - `batch_loss`: `(steps,)` or `(seeds, steps)`, the loss over the batch of every step before its update.
    - `held_out`: outputs and loss on held-out samples, where the task has them.
    - `errors`: the error bars of an estimate of a limit, by quantity: `outputs`, `loss`, `batch_loss`,
      `held_out_outputs`, `held_out_loss`. A single solution has none, and an ensemble its spread.
    - `tolerance_met`: whether an estimate to a tolerance ended within it.

    A diverged member keeps its numbers (non-finite from `diverged_at` on) and is left out of `mean` and
    `standard_error`.
    """

    task: Task
    outputs: np.ndarray
    loss: np.ndarray
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    observed: Mapping[str, np.ndarray] = field(default_factory=dict)
    steps: np.ndarray = field(default_factory=lambda: np.arange(0))
    batch_loss: np.ndarray | None = None
    held_out: HeldOut | None = None
    errors: Mapping[str, ErrorBars] = field(default_factory=dict)
    tolerance_met: bool | None = None

    def __post_init__(self) -> None:
        if not len(self.steps):
            object.__setattr__(self, "steps", np.arange(self.loss.shape[-1]))

    @property
    def ensemble(self) -> bool:
        """Whether the arrays have a leading axis of members."""
        return self.outputs.ndim == 4

    @property
    def diverged_at(self) -> np.ndarray:
        """First step whose outputs or loss are not finite, -1 for none: `()` or `(seeds,)`."""
        finite = np.isfinite(self.outputs).all(axis=(-1, -2)) & np.isfinite(self.loss)
        bad = np.where(finite, np.inf, self.steps).min(axis=-1)
        if self.batch_loss is not None:
            batches = np.where(np.isfinite(self.batch_loss), np.inf, np.arange(self.batch_loss.shape[-1]))
            bad = np.minimum(bad, batches.min(axis=-1))
        return np.where(np.isinf(bad), -1, bad).astype(int)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """One outcome a member."""
        if self.tolerance_met is False and self.diverged_at < 0:
            return (Outcome.TOLERANCE_NOT_MET,)
        return tuple(Outcome.OK if at < 0 else Outcome.DIVERGED for at in np.atleast_1d(self.diverged_at))

    def _good(self, values: np.ndarray) -> np.ndarray:
        if not self.ensemble:
            raise ValueError("mean and standard_error are taken over seeds; this trajectory has one member")
        return values[self.diverged_at < 0]

    def mean(self, name: str = "outputs") -> np.ndarray:
        """Mean of `outputs` or `loss` over the members that did not diverge; NaN if none is left."""
        good = self._good(getattr(self, name))
        if not len(good):
            return np.full(getattr(self, name).shape[1:], np.nan)
        with np.errstate(over="ignore"):
            return good.mean(axis=0)

    def standard_error(self, name: str = "outputs") -> np.ndarray:
        """Standard error of `mean`, NaN for fewer than two members left; of an estimate, its own."""
        if name in self.errors:
            return self.errors[name].standard_error
        good = self._good(getattr(self, name))
        if len(good) < 2:
            return np.full(getattr(self, name).shape[1:], np.nan)
        with np.errstate(over="ignore"):
            return good.std(axis=0, ddof=1) / len(good) ** 0.5

    def summary(self) -> str:
        """One line on how the run ended."""
        bad = [seed for seed, at in zip(self.seeds, np.atleast_1d(self.diverged_at), strict=True) if at >= 0]
        if not bad and self.errors:
            return (
                f"{self.outcomes[0].value}; final loss {self.loss[-1]:.5g} ± {self.errors['loss'].half_width[-1]:.2g}"
            )
        if not bad:
            return f"{len(self.seeds)} of {len(self.seeds)} members {Outcome.OK.value}"
        return f"{len(bad)} of {len(self.seeds)} members {Outcome.DIVERGED.value} (seeds {bad})"

    def to_dataset(self) -> xr.Dataset:
        """The trajectory with labelled axes seed, step, sample and output, and the arguments as attributes.

        Observed arrays have an axis `update` instead of `step`: the steps that an update follows, one fewer.
        """
        import xarray as xr

        member = ("seed",) if self.ensemble else ()
        variables: dict[str, Any] = {
            "outputs": ((*member, "step", "sample", "output"), self.outputs),
            "loss": ((*member, "step"), self.loss),
            "diverged_at": (member, self.diverged_at),
            "targets": (("sample", "output"), self.task.targets),
        }
        coordinates = {"step": self.steps}
        if self.batch_loss is not None:
            variables["batch_loss"] = ((*member, "update"), self.batch_loss)
        if self.held_out is not None:
            variables["held_out_outputs"] = (
                (*member, "held_out_step", "held_out_sample", "output"),
                self.held_out.outputs,
            )
            variables["held_out_loss"] = ((*member, "held_out_step"), self.held_out.loss)
            coordinates["held_out_step"] = self.held_out.steps
        for name, values in self.observed.items():
            axes = tuple(f"{name}_{axis}" for axis in range(values.ndim - len(member) - 1))
            variables[name] = ((*member, "update", *axes), values)
        if self.ensemble:
            coordinates["seed"] = labels(self.seeds)
        for name, bars in self.errors.items():
            for kind in ("standard_error", "discretisation_error", "half_width"):
                variables[f"{name}_{kind}"] = (variables[name][0], getattr(bars, kind))
        attributes = {"settings": json.dumps(dict(self.settings), default=str), "loss_name": self.task.loss}
        return xr.Dataset(variables, coordinates, attributes)

    def __repr__(self) -> str:
        return f"Trajectory(outputs {self.outputs.shape}, final loss {np.round(self.loss[..., -1], 6)})"
