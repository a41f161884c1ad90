"""Trajectory: what every solver and trainer returns, so that limit and network are compared directly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nfd_jax._checks import Outcome, one_of
from nfd_jax.dynamics.problem import Data
from nfd_jax.dynamics.snapshot import FOLLOWS
from nfd_jax.runtime.recorded import Recorded, joined
from nfd_jax.seeds import labels
from nfd_jax.task import Task

if TYPE_CHECKING:
    import xarray as xr


GROWN = 1e6  # losses that so many times the initial one are not called fine
AVERAGED = ("outputs", "loss", "batch_loss", "accuracy", "held_out_outputs", "held_out_loss", "held_out_accuracy")


class ErrorBars(NamedTuple):
    """What an estimate may be off by; arrays of its shape.

    - `standard_error`: of the Monte-Carlo average.
    - `discretisation_error`: a bound on what is left of the finite depth, for the limit of infinite depth.
    - `resolution_error`: a bound on what a resolution leaves, of long training.
    - `quantile`: of Student's distribution, for 95 % and the degrees of freedom that there were.
    """

    standard_error: np.ndarray
    discretisation_error: np.ndarray
    resolution_error: np.ndarray
    quantile: np.ndarray

    @property
    def half_width(self) -> np.ndarray:
        """Half the width of the 95 % interval."""
        return self.quantile * self.standard_error + self.discretisation_error + self.resolution_error


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
    - `observed`: what the observe function returned before every update and after the last one, stacked:
      `(steps + 1, ...)` or `(seeds, steps + 1, ...)`. With mini-batches each is of the batch that the step trains on,
      the last of that which a longer schedule would take next.
    - `seeds`: the seeds of the members, or the one seed.
    - `settings`: the arguments of the run.
    - `steps`: the numbers of updates after which outputs and loss were taken: 0 to the last, unless mini-batches
      were evaluated less often.
    - `batch_loss`: `(steps,)` or `(seeds, steps)`, the loss over the batch of every step before its update.
    - `held_out`: outputs and loss on held-out samples, where the task has them.
    - `errors`: the error bars of an estimate of a limit, by quantity: `outputs`, `loss`, `batch_loss`,
      `held_out_outputs`, `held_out_loss`. A single solution has none, and an ensemble its spread.
    - `tolerance_met`: whether an estimate to a tolerance ended within it.
    - `memory_ended`: whether memory kept an estimate from drawing more solutions.
    - `ranks`: with a resolution, the most directions that queries of one direction revealed of a matrix by the last
      update, and those that its updates took.
    - `axes`: the names that the observe function gives to the axes of its arrays, if any.

    A diverged member keeps its numbers (non-finite from `diverged_at` on) and is left out of `mean` and
    `standard_error`; `summary` says which. `accuracy` and `held_out_accuracy` are there where the task has classes.
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
    memory_ended: bool = False
    ranks: tuple[int, ...] = ()
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.steps):
            object.__setattr__(self, "steps", np.arange(self.loss.shape[-1]))

    @classmethod
    def of(
        cls, recorded: Recorded, task: Task, data: Data, seeds: tuple[int, ...], arguments: Mapping[str, Any]
    ) -> Trajectory:
        """A finished run of members."""
        results = recorded.results(full_batch=data.full_batch) | joined(recorded.observed)
        members = {name: array.swapaxes(0, 1) for name, array in results.items()}
        if members["batch_loss"].shape[1] < data.steps:
            data = data.until(members["batch_loss"].shape[1])
        held_out = None
        if recorded.held_out:
            outputs, loss = members.pop("held_out_outputs"), members.pop("held_out_loss")
            held_out = HeldOut(outputs, loss, np.array(data.evaluate_at))
        steps = np.arange(data.steps + 1) if data.full_batch else np.array(data.evaluate_at)
        outputs, loss, batch_loss = (members.pop(name) for name in ("outputs", "loss", "batch_loss"))
        settings = dict(arguments)
        ranks = tuple(np.max(recorded.ranks[0]["ranks"], axis=(0, 1)).tolist()) if recorded.ranks else ()
        more = {"ranks": ranks, "axes": data.axes}
        return cls(task, outputs, loss, seeds, settings, members, steps, batch_loss, held_out, **more)

    @property
    def only(self) -> Trajectory:
        """The one member of a run, without the axis of members."""
        held_out = self.held_out and HeldOut(self.held_out.outputs[0], self.held_out.loss[0], self.held_out.steps)
        observed = {name: array[0] for name, array in self.observed.items()}
        batch_loss = None if self.batch_loss is None else self.batch_loss[0]
        arrays = {"outputs": self.outputs[0], "loss": self.loss[0], "batch_loss": batch_loss}
        return replace(self, **arrays, observed=observed, held_out=held_out)

    @property
    def ensemble(self) -> bool:
        """Whether the arrays have a leading axis of members."""
        return self.outputs.ndim == 4

    @property
    def diverged_at(self) -> np.ndarray:
        """First step whose outputs or loss are not finite, held-out ones too, -1 for none: `()` or `(seeds,)`."""
        every = [(self.outputs, self.steps, (-1, -2)), (self.loss, self.steps, ())]
        if self.batch_loss is not None:
            every.append((self.batch_loss, np.arange(self.batch_loss.shape[-1]), ()))
        if self.held_out is not None:
            every.append((self.held_out.outputs, self.held_out.steps, (-1, -2)))
            every.append((self.held_out.loss, self.held_out.steps, ()))
        bad = np.min(
            [np.where(np.isfinite(found).all(axis=axes), np.inf, at).min(axis=-1) for found, at, axes in every], axis=0
        )
        return np.where(np.isinf(bad), -1, bad).astype(int)

    @property
    def grown(self) -> np.ndarray:
        """Whether all is finite but a loss, of any samples, exceeds 1e6 times the initial one: `()` or `(seeds,)`."""
        losses = [self.loss, *([] if self.batch_loss is None else [self.batch_loss])]
        initial = losses[0 if self.steps[0] == 0 else -1][..., :1].astype(np.float64)
        losses += [] if self.held_out is None else [self.held_out.loss]
        with np.errstate(over="ignore"):
            grown = np.any([(loss > GROWN * initial).any(axis=-1) for loss in losses], axis=0)
        return np.asarray(grown & (self.diverged_at < 0))

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """One outcome a member."""
        if self.memory_ended and not self.tolerance_met and self.diverged_at < 0:
            return (Outcome.OUT_OF_MEMORY,)
        if self.tolerance_met is False and self.diverged_at < 0:
            return (Outcome.TOLERANCE_NOT_MET,)
        ended = Outcome.OUT_OF_MEMORY if self._ended_early else Outcome.OK
        return tuple(ended if at < 0 else Outcome.DIVERGED for at in np.atleast_1d(self.diverged_at))

    @property
    def _ended_early(self) -> bool:
        done = 0 if self.batch_loss is None else self.batch_loss.shape[-1]
        return 0 < done < self.settings.get("steps", done)

    @property
    def accuracy(self) -> np.ndarray:
        """`Task.accuracy` of the outputs, `(steps + 1,)` or `(seeds, steps + 1)`: NaN where they are not finite.
        ValueError where the task has no classes."""
        return self.task.accuracy(self.outputs)

    @property
    def held_out_accuracy(self) -> np.ndarray:
        """The same on the held-out samples, `(S,)` or `(seeds, S)`."""
        outputs = self._values("held_out_outputs")
        return (self.task.held_out or self.task).accuracy(outputs)

    def _values(self, name: str) -> np.ndarray:
        """An array by the name that it has in a dataset."""
        one_of("name", name, AVERAGED)
        place, attribute = self, name
        if name in ("held_out_outputs", "held_out_loss"):
            place, attribute = self.held_out, name.removeprefix("held_out_")
        found = getattr(place, attribute, None)
        if found is None:
            way_out = "give the task some, task.holding_out(test)" if place is None else "it was not recorded"
            raise ValueError(f"there is no {name} in this trajectory: {way_out}")
        return found

    def _good(self, name: str) -> np.ndarray:
        if not self.ensemble:
            raise ValueError("mean and standard_error are taken over seeds; this trajectory has one member")
        return self._values(name)[self.diverged_at < 0]

    def mean(self, name: str = "outputs") -> np.ndarray:
        """Mean over the members that did not diverge; NaN if none is left.

        `name`: `"outputs"`, `"loss"`, `"batch_loss"`, `"accuracy"`, or one of the held-out samples,
        `"held_out_outputs"`, `"held_out_loss"`, `"held_out_accuracy"`. ValueError for others, and where there is none.
        """
        good = self._good(name)
        if not len(good):
            return np.full(good.shape[1:], np.nan)
        with np.errstate(over="ignore"):
            return good.mean(axis=0)

    def standard_error(self, name: str = "outputs") -> np.ndarray:
        """Standard error of `mean`, NaN for fewer than two members left; of an estimate, its own."""
        if name in self.errors:
            return self.errors[name].standard_error
        good = self._good(name)
        if len(good) < 2:
            return np.full(good.shape[1:], np.nan)
        with np.errstate(over="ignore"):
            return good.std(axis=0, ddof=1) / len(good) ** 0.5

    def _final_loss(self) -> str:
        if self.errors:
            value, error = self.loss[-1], self.errors["loss"].half_width[-1]
        elif self.ensemble:
            value, error = self.mean("loss")[-1], self.standard_error("loss")[-1]
        else:
            value, error = self.loss[-1], np.nan
        return f"final loss {value:.5g}" + ("" if np.isnan(error) else f" ± {error:.2g}")

    def summary(self) -> str:
        """One line on how the run ended: outcomes, members left out of means, and the final loss with its standard
        error over members; of an estimate, with its half-width."""
        diverged, count = self.diverged_at >= 0, len(self.seeds)
        bad = np.array(self.seeds)[np.atleast_1d(diverged)].tolist()
        grown = np.array(self.seeds)[np.atleast_1d(self.grown)].tolist()
        if bad:
            parts = [f"{len(bad)} of {count} members {Outcome.DIVERGED.value} (seeds {bad})"]
        else:
            parts = [self.outcomes[0].value if self.errors else f"{count} of {count} members {Outcome.OK.value}"]
        if self._ended_early:
            parts.append(f"{Outcome.OUT_OF_MEMORY.value} (after {self.steps[-1]} of {self.settings['steps']} steps)")
        if bad and len(bad) < count:
            parts.append(f"means and standard errors are over the {count - len(bad)} others")
        if grown:
            parts.append(f"{len(grown)} of {count} grown: loss above {GROWN:g} times the initial one (seeds {grown})")
        if "matched_from" in self.settings:
            parts.append(f"matched noise gave way to plain, and needs particles={self.settings['matched_from']}")
        if self.ranks:
            images, updates = self.ranks  # of an estimate those of the solutions of the finest resolution
            parts.append(f"resolution {self.settings['resolution']:g}: {images} directions revealed, {updates} updated")
        return "; ".join(parts if len(bad) == count else [*parts, self._final_loss()])

    def scores(self) -> dict[str, np.ndarray]:
        """What datasets keep along training of every member, by the names in `FOLLOWS`, as far as it is defined.

        Losses of a diverged member are +inf from its divergence on, so that no mean over members leaves it out; its
        accuracies are NaN where its outputs are not finite.
        """
        at, found = np.where(self.diverged_at < 0, np.inf, self.diverged_at)[..., None], {}
        steps = {"step": self.steps, "held_out_step": None if self.held_out is None else self.held_out.steps}
        for name, axis in FOLLOWS.items():
            with suppress(ValueError):
                values = self._values(name)
                own = steps.get(axis, np.arange(values.shape[-1]))
                found[name] = np.where(own >= at, np.inf, values) if name.endswith("loss") else values
        return found

    def to_dataset(self) -> xr.Dataset:
        """The trajectory with labelled axes seed, step, sample and output, and the arguments as attributes.

        Losses of a diverged member are +inf from its divergence on (`diverged_at`), so that `loss.mean("seed")`, which
        skips NaN, is infinite and no average of survivors; outputs are as they were, and accuracies NaN where outputs
        are not finite. `grown` marks finite losses above 1e6 times the initial one. Accuracies are there where the task
        has classes.

        `batch_loss` has an axis `update`, the number of updates before it. Observed arrays have an axis `snapshot`: the
        updates before them, 0 to `steps`. Their other axes have the names that the observe function gives them in its
        attribute `axes`, such as `layer`, with the layer time t = l/L as `layer_time` where there are L + 1 layers, and
        `sample`, which is `batch_sample` under mini-batches.
        """
        import xarray as xr

        member = ("seed",) if self.ensemble else ()
        variables: dict[str, Any] = {
            "outputs": ((*member, "step", "sample", "output"), self.outputs),
            **{name: ((*member, FOLLOWS[name]), values) for name, values in self.scores().items()},
            "diverged_at": (member, self.diverged_at),
            "grown": (member, self.grown),
            "targets": (("sample", "output"), self.task.targets),
        }
        coordinates: dict[str, Any] = {"step": self.steps}
        if self.held_out is not None:
            axes = (*member, "held_out_step", "held_out_sample", "output")
            variables["held_out_outputs"] = (axes, self.held_out.outputs)
            coordinates["held_out_step"] = self.held_out.steps
        if self.ensemble:
            coordinates["seed"] = labels(self.seeds)
        for name, bars in self.errors.items():
            for kind in ("standard_error", "discretisation_error", "resolution_error", "half_width"):
                variables[f"{name}_{kind}"] = (variables[name][0], getattr(bars, kind))
        observed = labelled(self.observed, member, self.axes, self.task, self.settings.get("depth"))
        settings = json.dumps(dict(self.settings), default=str)
        attributes = {"settings": settings, "loss_name": self.settings.get("loss", self.task.loss)}
        return xr.Dataset(variables | observed[0], coordinates | observed[1], attributes)

    def __repr__(self) -> str:
        return f"Trajectory(outputs {self.outputs.shape}; {self.summary()})"


def labelled(
    observed: Mapping[str, np.ndarray],
    leading: tuple[str, ...],
    axes: Mapping[str, tuple[str, ...]],
    task: Task,
    depth: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and coordinates of what was observed, `(*leading, snapshots, ...)` each: axes without names are
    numbered, and layers have their layer time where they are those of a residual stream of `depth` blocks."""
    variables, coordinates = {}, {}
    for name, values in observed.items():
        rest = values.ndim - len(leading) - 1
        named = axes.get(name, tuple(f"{name}_{axis}" for axis in range(rest)))
        named = named if task.full_batch else tuple("batch_sample" if axis == "sample" else axis for axis in named)
        variables[name] = ((*leading, "snapshot", *named), values)
        coordinates["snapshot"] = np.arange(values.shape[len(leading)])
        if depth is not None and ("layer", depth + 1) in zip(named, values.shape[-rest:] if rest else (), strict=True):
            layers = np.arange(depth + 1)
            coordinates |= {"layer": layers, "layer_time": ("layer", layers / depth)}
    return variables, coordinates
