"""Task: what is learned. Inputs, targets and a loss, validated once and then frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax._checks import MOST, boolean, check_array, finite_array, one_of, positive_int
from nfd_jax._functions import check_hashable, check_traced
from nfd_jax._types import Array, Float, Scalar
from nfd_jax.seeds import check_seed

Samples = Float[Array, "samples outputs"]
LossFunction = Callable[[Array, Array], Array]
Loss = str | LossFunction

LOSSES: dict[str, LossFunction] = {  # of every sample, `(samples,)`
    "mse": lambda outputs, targets: 0.5 * jnp.sum((outputs - targets) ** 2, axis=1),
    "cross_entropy": lambda outputs, targets: -jnp.sum(targets * jax.nn.log_softmax(outputs, axis=1), axis=1),
}


@dataclass(frozen=True, eq=False)
class Task:
    """Supervised learning on P samples, by full batches or mini-batches, with held-out samples to be asked about.

    **Arguments:**

    - `inputs`: `(P, d)`, any finite real numbers; the input layer scales them by 1/sqrt(d).
    - `targets`: `(P, c)` numbers, or `(P,)` for one output. For `loss="cross_entropy"` either `(P, c)`
      probabilities or `(P,)` integer labels 0 to c-1.
    - `loss`: `"mse"`, (1/2) |f - y|^2 summed over outputs; `"cross_entropy"`; or a function of outputs and targets,
      `(B, c)` each, to the losses of the samples, `(B,)`, that jax differentiates. All are averaged over the batch.
    - `classes`: c for integer labels, which become rows of probabilities: for cross-entropy by default the largest
      label + 1, at least 2; for a function by default none, as labels are numbers like others there.
    - `normalise`: scale every input to |x|^2 = d; inputs are taken as they are otherwise.
    - `batch_size`: B, samples of one training step; by default all of them. See `minibatches`.
    - `replacement`: draw every batch anew from all samples. Otherwise batches cut a fresh permutation of the samples
      every epoch, whose last P mod B are left out.
    - `batch_seed`: which batches. They are the task's: all members of an ensemble, networks and limits see the same.
    - `held_out`: another `Task` of the same d, c and loss, whose outputs and loss are recorded along training.

    Arrays are kept as float64 numpy, as copies that can't be written; the solvers cast them to their own precision.
    Raises ValueError or TypeError on non-finite data, mismatched lengths and labels outside the classes.
    """

    inputs: np.ndarray
    targets: np.ndarray
    loss: Loss = "mse"
    classes: int | None = None
    normalise: InitVar[bool] = False
    batch_size: int | None = None
    replacement: bool = False
    batch_seed: int = 0
    held_out: Task | None = None

    def __post_init__(self, normalise: bool) -> None:
        inputs = finite_array("inputs", self.inputs, (2,))
        targets = finite_array("targets", self.targets, (1, 2))
        if len(inputs) != len(targets):
            raise ValueError(
                f"inputs and targets must have one row a sample, got {len(inputs)} inputs and {len(targets)} targets"
            )
        if self.loss == "cross_entropy" or (callable(self.loss) and self.classes is not None):
            targets = _probabilities(targets, self.classes)
        elif self.classes is not None:
            raise ValueError(f"classes={self.classes} is for loss='cross_entropy' only; leave it out for 'mse'")
        targets = targets.reshape(len(targets), -1)
        check_loss(self.loss, targets.shape[1])
        inputs = _normalised(inputs) if boolean("normalise", normalise) else inputs
        object.__setattr__(self, "inputs", _frozen(inputs))
        object.__setattr__(self, "targets", _frozen(targets))
        object.__setattr__(self, "replacement", boolean("replacement", self.replacement))
        if self.batch_size is not None and positive_int("batch_size", self.batch_size) > len(inputs):
            raise ValueError(f"batch_size must be at most the {len(inputs)} samples of the task, got {self.batch_size}")
        check_seed("batch_seed", self.batch_seed)
        if self.held_out is not None:
            self._check_held_out(check_task(self.held_out))

    def _check_held_out(self, held_out: Task) -> None:
        for name in ("dimension", "outputs", "loss"):
            ours, theirs = getattr(self, name), getattr(held_out, name)
            if ours != theirs:
                raise ValueError(f"held_out must have the {name} of the task, {ours!r}, got {theirs!r}")

    def minibatches(self, size: int, *, replacement: bool = False, seed: int = 0) -> Task:
        """The same task, trained by mini-batches of `size` samples."""
        return replace(self, batch_size=size, replacement=replacement, batch_seed=seed)

    def holding_out(self, held_out: Task) -> Task:
        """The same task, with the samples of another to be evaluated along training."""
        return replace(self, held_out=held_out)

    def batches(self, steps: int) -> np.ndarray:
        """Indices of the samples of every step, `(steps, B)`; a longer schedule begins as a shorter one."""
        positive_int("steps", steps, maximum=MOST)
        size = self.batch_size or self.samples
        if self.full_batch:
            return np.tile(np.arange(size), (steps, 1))
        generator = np.random.default_rng(self.batch_seed)
        if self.replacement:
            return generator.integers(self.samples, size=(steps, size))
        each = self.samples // size
        epochs = [generator.permutation(self.samples)[: each * size] for _ in range(-(-steps // each))]
        return np.concatenate(epochs).reshape(-1, size)[:steps]

    @property
    def samples(self) -> int:
        """P, the number of samples."""
        return self.inputs.shape[0]

    @property
    def dimension(self) -> int:
        """d, the number of input coordinates."""
        return self.inputs.shape[1]

    @property
    def outputs(self) -> int:
        """c, the number of network outputs."""
        return self.targets.shape[1]

    @property
    def labels(self) -> np.ndarray:
        """The class of every sample, `(P,)`: the index of the largest target, or the sign -1 or +1 where there is one.

        ValueError where targets are no classes: one output with other targets, or several that don't single out one
        output alike for all samples (one-hot rows or the like; for `"cross_entropy"`, a largest one).
        """
        ordered = np.sort(self.targets, axis=1)
        if self.outputs == 1:
            are_classes, needed = np.abs(ordered) == 1, "one output needs targets -1 and +1"
        elif self.loss != "cross_entropy":
            code = np.append(np.full(self.outputs - 1, ordered[0, 0]), ordered[0, -1])
            are_classes, needed = np.isclose(ordered, code) & (code[0] < code[-1]), "rows of targets must be one-hot"
        else:
            are_classes, needed = ordered[:, -1] > ordered[:, -2], "every row of targets must have one largest"
        if not np.all(are_classes):
            index = int(np.argmin(np.reshape(are_classes, (self.samples, -1)).all(axis=1)))
            raise ValueError(
                f"this task has no classes, so that there is no accuracy: {needed}, got {self.targets[index].tolist()} "
                f"for sample {index}"
            )
        return self.targets[:, 0].astype(int) if self.outputs == 1 else np.argmax(self.targets, axis=1)

    def accuracy(self, outputs: np.ndarray) -> np.ndarray:
        """The share of samples whose class has the largest output, or whose only output has its sign, `(...)` for
        outputs `(..., P, c)`; NaN where any of these is not a finite number. A tie is an error."""
        outputs, labels = np.asarray(outputs), self.labels
        if self.outputs == 1:
            right = outputs[..., 0] * labels > 0
        else:
            correct = labels[:, None] == np.arange(self.outputs)
            right = np.where(correct, outputs, -np.inf).max(axis=-1) > np.where(correct, -np.inf, outputs).max(axis=-1)
        return np.where(np.isfinite(outputs).all(axis=(-1, -2)), right.mean(axis=-1), np.nan)

    @property
    def full_batch(self) -> bool:
        """Whether every step trains on all samples, in their order."""
        return self.batch_size in (None, self.samples) and not self.replacement


def _frozen(array: np.ndarray) -> np.ndarray:
    """A copy that can't be written, so that nobody's later changes reach the task."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _normalised(inputs: np.ndarray) -> np.ndarray:
    """Rows scaled to |x|^2 = d."""
    largest = np.abs(inputs).max(axis=1, keepdims=True)
    if np.any(largest == 0):
        raise ValueError(f"inputs[{int(np.argmin(largest))}] is zero and can't be normalised; leave it out")
    inputs = np.ldexp(inputs, -np.frexp(largest)[1])  # whose squares neither overflow nor vanish
    return inputs * (inputs.shape[1] ** 0.5 / np.linalg.norm(inputs, axis=1, keepdims=True))


def _probabilities(targets: np.ndarray, classes: int | None) -> np.ndarray:
    """Rows of class probabilities from integer labels or from rows that already sum to one."""
    if targets.ndim == 2:
        if targets.shape[1] < 2 or np.any(targets < 0) or not np.allclose(targets.sum(axis=1), 1.0):
            raise ValueError(
                "targets of a cross-entropy task must be integer labels (P,) or rows of probabilities (P, c >= 2)"
                f", got shape {targets.shape} with row sums {np.unique(targets.sum(axis=1).round(6))[:4]}"
            )
        if classes not in (None, targets.shape[1]):
            raise ValueError(f"classes={classes} does not fit targets with {targets.shape[1]} columns; leave it out")
        return targets
    if classes is None and targets.max() >= MOST:
        raise ValueError(
            f"targets must be integer labels below {MOST}, got {targets.max():g}; number the classes from 0"
        )
    count = positive_int("classes", max(int(targets.max()) + 1, 2) if classes is None else classes, 2, MOST)
    outside = (np.floor(targets) != targets) | (targets < 0) | (targets >= count)
    if np.any(outside):
        raise ValueError(f"targets must be integer labels from 0 to {count - 1}, got {targets[outside][0]:g}")
    check_array(f"{len(targets)} labels of {count} classes", len(targets), count)
    rows = np.zeros((len(targets), count))
    rows[np.arange(len(targets)), targets.astype(np.int64)] = 1.0
    return rows


def check_loss(loss: Any, outputs: int) -> None:
    """Unless `loss` is a known name, or a function that jax can differentiate to one number a sample for this number of
    outputs: an error that lists the names, or says what the function does instead. Nothing is compiled."""
    if not callable(loss):
        one_of("loss", loss, LOSSES)
        return
    check_hashable("loss", loss)
    _probe(loss, outputs)


@lru_cache(maxsize=256)
def _probe(loss: LossFunction, outputs: int) -> None:
    def program(f: Array, y: Array) -> Array:
        jax.jvp(jax.grad(lambda f: jnp.sum(loss(f, y))), (f,), (f,))  # errors of estimates take second derivatives
        return loss(f, y)

    what = "loss must be a name or a function of outputs and targets, (B, c) each, to one loss a sample, (B,)"
    way_out = "write it with jax.numpy, with a sum over outputs and no mean over samples, which is taken here"
    for batch in (1, 3):  # of any size: also one that is held out
        check_traced(what, way_out, loss, program, [(batch, outputs)] * 2, (batch,))


def loss_value(loss: Loss, outputs: Samples, targets: Samples) -> Scalar:
    """The loss of a batch: the mean over its samples."""
    return jnp.mean((loss if callable(loss) else LOSSES[loss])(outputs, targets))


def loss_gradient(loss: Loss, outputs: Samples, targets: Samples) -> Samples:
    """chi = d loss / d output, with the mean over the batch folded in (theory section 2)."""
    return jax.grad(partial(loss_value, loss))(outputs, targets)


def loss_curvature(loss: Loss, outputs: Samples, targets: Samples) -> Float[Array, " samples"]:
    """A bound on the largest eigenvalue of the second derivative of every sample's loss by its outputs (the largest sum
    of absolute values of a row): 1 for squared loss, at most 1/2 for cross-entropy."""
    second = jax.vmap(jax.hessian(lambda f, y: loss_value(loss, f[None], y[None])))(outputs, targets)
    return jnp.abs(second).sum(axis=-1).max(axis=-1)


def check_task(task: Any) -> Task:
    """`task` where it is a Task, else a TypeError that says how to make one."""
    if not isinstance(task, Task):
        raise TypeError(f"task must be an nfd.Task, got {type(task).__name__}; make one with nfd.Task(inputs, targets)")
    return task
