"""Problem: the validated arguments of a run that all solvers share, before there is a width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nfd_jax._checks import check_array, in_precision
from nfd_jax._functions import described, plain
from nfd_jax._types import Array, Float, Scalar
from nfd_jax.dynamics.base import Settings
from nfd_jax.dynamics.snapshot import declared_axes
from nfd_jax.models import AbstractModel, check_model
from nfd_jax.parametrization import Parametrization
from nfd_jax.task import Task, check_task, loss_value
from nfd_jax.training import Training


class Samples(NamedTuple):
    """Inputs `(Q, d)`, or their coordinates, and targets `(Q, c)`."""

    inputs: Any
    targets: Any


class Data(NamedTuple):
    """What a run trains on and is asked about."""

    train: Samples
    steps: int  # K
    batches: np.ndarray  # (K, B), indices of the samples of every step; with a last pass, of that too
    full_batch: bool  # every step sees all samples, so that its outputs need no evaluation
    held_out: Samples | None
    evaluate_at: tuple[int, ...]  # steps, for what is held out, and for all samples where batches are not full
    axes: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # of what is observed, where they have names

    @property
    def queries(self) -> int:
        """Samples that all steps see together."""
        return self.steps * self.batches.shape[1]

    @property
    def has_last_pass(self) -> bool:
        """Whether a pass follows the last step, of which only what it sees is kept."""
        return len(self.batches) > self.steps

    def until(self, step: int) -> Data:
        """The same up to fewer steps, as of a run that ended early."""
        at = tuple(each for each in self.evaluate_at if each <= step) or (step,)
        return self._replace(steps=step, batches=self.batches[:step], evaluate_at=at)

    @property
    def sets(self) -> tuple[Samples, ...]:
        """Training samples and, where there are any, held-out ones."""
        return (self.train,) if self.held_out is None else (self.train, self.held_out)

    def asked(self, step: int) -> tuple[bool, bool]:
        """Whether the training samples and the held-out ones are to be evaluated before this step."""
        due, last = step in self.evaluate_at, step == self.steps and not self.has_last_pass
        return (last if self.full_batch else due), (due and self.held_out is not None)


class Evaluated(NamedTuple):
    """Outputs and loss of a set of samples as they stand."""

    outputs: Float[Array, "samples outputs"]
    loss: Scalar


def evaluated(loss: Any, outputs: Float[Array, "samples outputs"], sets: tuple[Samples, ...]) -> tuple[Evaluated, ...]:
    """Outputs of several sets, one after the other, taken apart."""
    ends = np.cumsum([len(samples.targets) for samples in sets])
    parts = jnp.split(outputs, ends[:-1])
    return tuple(
        Evaluated(part, loss_value(loss, part, samples.targets)) for part, samples in zip(parts, sets, strict=True)
    )


class Problem(NamedTuple):
    """A task, a model and a recipe, checked."""

    settings: Settings
    row: Parametrization
    richness: float
    data: Data
    rates: np.ndarray  # (K,), or (members, K)
    arguments: dict[str, Any]  # what a record keeps

    @classmethod
    def of(cls, task: Task, model: AbstractModel, training: Training, *, finite: bool = True) -> Problem:
        """ValueError or TypeError where one of them can't be used, before anything is compiled."""
        check_task(task)
        check_model(model, finite=finite)
        training.check()
        _check_precision(task, model, training.row, training.richness)
        block = getattr(model, "block", ())
        callables = (model.activation, training.observe, task.loss, *_stages(block))
        settings = Settings(
            model.structure,
            task.loss,
            training.trained,
            training.rule,
            training.observe,
            tuple(map(described, filter(callable, callables))),
        )
        arguments = {
            "model": type(model).__name__,
            **{field.name: plain(getattr(model, field.name)) for field in fields(model)},
            **training.arguments,
            "batch_size": task.batch_size,
            "replacement": task.replacement,
            "batch_seed": task.batch_seed,
            "loss": plain(task.loss),
        }
        data = _data(task, training)
        return cls(settings, training.row, float(training.richness), data, training.rates, arguments)

    def batch(self, step: int) -> tuple[Array, Array]:
        """Inputs and targets that a step takes, in the precision of a run."""
        chosen = self.data.batches[step]
        inputs, targets = (jnp.asarray(part[chosen], jnp.zeros(()).dtype) for part in self.data.train)
        return inputs, targets

    def steps(self) -> Iterator[tuple[Array, Array, Array, Array]]:
        """The number, rate, inputs and targets of every training step in order, as `dynamics.step` takes them."""
        for step, rate in enumerate(self.rates):
            yield jnp.int32(step), jnp.asarray(rate, jnp.zeros(()).dtype), *self.batch(step)

    def with_last_pass(self) -> Problem:
        """The same problem with a pass after the last step."""
        data = self.data
        return self._replace(data=data._replace(batches=np.concatenate([data.batches, data.batches[-1:]])))

    def in_coordinates(self) -> Problem:
        """The same problem with inputs times 1/sqrt(d), in an orthonormal basis of the span of all of them, training
        and held out: rank coordinates a sample, at most min(samples, d).

        A Gaussian input matrix acts on the coordinates as it does on the inputs, in law and under training, so U takes
        n x rank numbers however large d is.
        """
        data = self.data
        inputs = np.concatenate([samples.inputs for samples in data.sets])
        left, singular, _ = np.linalg.svd(inputs / np.sqrt(inputs.shape[1]), full_matrices=False)
        rank = max(1, int(np.sum(singular > singular[0] * max(inputs.shape) * np.finfo(np.float64).eps)))
        coordinates = left[:, :rank] * singular[:rank]
        count = len(data.train.inputs)
        train = data.train._replace(inputs=coordinates[:count])
        held_out = data.held_out and data.held_out._replace(inputs=coordinates[count:])
        return self._replace(data=data._replace(train=train, held_out=held_out))


def _stages(block: Any) -> Iterator[Any]:
    """The stages of a block of a user's."""
    return (stage for stages in block for stage in stages) if isinstance(block, tuple) else iter(())


def _check_precision(task: Task, model: AbstractModel, row: Parametrization, richness: float) -> None:
    """ValueError where numbers that are finite, or not 0, are so no longer in the precision of the run."""
    for name, samples in (("", task), ("held-out ", task.held_out)):
        if samples is not None:
            in_precision(f"{name}inputs", samples.inputs)
            in_precision(f"{name}targets", samples.targets)
            largest = np.abs(samples.inputs).max(axis=1)
            in_precision(f"every sample of {name}inputs", largest, positive=True)
    in_precision("richness (its square, which rates are multiplied by)", richness, positive=True, power=2)
    branch = model.branch(row) if math.isfinite(model.depth) else replace(model, depth=1).branch(row)
    least = 0.0 if getattr(model, "branch_scale", None) == 0 else float(np.nextafter(0, 1))  # 0 only where given
    in_precision(f"the multiplier of a branch of {model} under {row.name!r}", max(branch, least), positive=True)


def _data(task: Task, training: Training) -> Data:
    """The arrays of a task, and when they are evaluated."""
    steps, batch = training.steps, task.batch_size or task.samples
    check_array(f"steps={steps} of {batch} samples", steps, batch)
    held_out = task.held_out and Samples(task.held_out.inputs, task.held_out.targets)
    train, batches = Samples(task.inputs, task.targets), task.batches(steps + (training.observe is not None))
    axes = declared_axes(training.observe)
    return Data(train, steps, batches, task.full_batch, held_out, training.at, axes)
