"""The training loop that limit, revealed networks and autodiff networks share.

One jitted program a training step and one an evaluation, compiled once per shape; steps are a loop on the host,
between which progress is shown and a run can be interrupted. Rates and data are traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nfd_jax import _functions as functions
from nfd_jax import optimizers, parametrization
from nfd_jax._checks import MOST, boolean, check_array, finite_float, in_precision, positive_int, positive_ints
from nfd_jax._types import Array, Float, Index, Key, PyTree, Scalar
from nfd_jax.dynamics.units import Scales
from nfd_jax.matrices.base import AbstractMatrices
from nfd_jax.models import AbstractModel, Structure, check_model
from nfd_jax.optimizers import Optimizer
from nfd_jax.parametrization import PARAMETRIZATIONS, Parametrization
from nfd_jax.runtime import devices, memory, threads
from nfd_jax.runtime.devices import Layout
from nfd_jax.runtime.store import Checkpoint, arrays_of, with_arrays
from nfd_jax.runtime.threads import Bar
from nfd_jax.seeds import seed_key
from nfd_jax.solvers.trajectory import FOLLOWS, HeldOut, Trajectory
from nfd_jax.task import Loss, Task, check_task, loss_value


class Sweep(NamedTuple):
    """What an observe function sees of a network: before every update, and after the last one.

    `features` h_0 to h_L and `gradients` g_0 to g_L are `(L + 1, P, width)`. For one output g is gamma n times the
    output gradient, so that g_L = V; for several it is gamma^2 n times the gradient of the loss, whose mean over the
    batch is included. gamma is the richness, times n^-1/2 where readouts are multiplied by n^-1/2 (NTP, SP). An MLP
    has g_L = phi'(h_L) V. `step` counts the updates so far. `effective_images()` are (W_l^k - a_k W_l^0) x times the
    multiplier of the role, `(matrices, P, width)`: what training has added to the image of every hidden matrix, with
    a_k = prod (1 - eta lambda) what weight decay has left of the initial one; of two a block the inner one is first.
    Explicit sweeps (`solve_limit`, `solve_network`) add the hidden `matrices` as they are after this step's queries,
    and the `handles (matrices, rows, P)` of the forward ones.
    """

    features: Float[Array, "layers batch width"]
    gradients: Float[Array, "layers batch width"]
    outputs: Float[Array, "batch outputs"]
    structure: Structure
    step: Index
    effective_images: Callable[[], Float[Array, "matrices batch width"]]
    matrices: AbstractMatrices | None = None
    handles: Array | None = None


Observe = Callable[[Sweep], dict[str, Array]]
VARIABLES = "outputs", *FOLLOWS, "held_out_outputs", "diverged_at", "diverged", "grown", "targets"
BATCH_AXES = "sample", "output"  # of what is observed of a batch, as of its outputs
AXES = (
    "width",
    "depth",
    "learning_rate",
    "seed",
    "step",
    "update",
    "held_out_step",
    "sample",
    "held_out_sample",
    "output",
    "snapshot",
    "batch_sample",
    "layer_time",
)
RESERVED = frozenset((*VARIABLES, *AXES))  # names in datasets


@dataclass(frozen=True)
class Settings:
    """What a compiled step depends on besides shapes."""

    structure: Structure
    row: Parametrization
    loss: Loss
    trained: tuple[str, ...]
    optimizer: Optimizer = Optimizer()  # noqa: RUF009 - frozen
    richness: float = 1.0
    observe: Observe | None = None
    functions: tuple[str, ...] = ()  # what those of a user are now: a program is compiled for what they read then


def declared_axes(observe: Observe | None) -> dict[str, tuple[str, ...]]:
    """The names that an observe function gives to the axes of its arrays in its attribute `axes`, if any."""
    declared = getattr(observe, "axes", {})
    if not isinstance(declared, Mapping) or not all(_are_names(axes) for axes in (tuple(declared), *declared.values())):
        raise TypeError(
            "observe.axes must give distinct names of axes by the name of an array, such as "
            f"{{'feature_size': ('layer', 'sample')}}; got {declared!r}"
        )
    taken = sorted(set().union(*declared.values()) & RESERVED - set(BATCH_AXES))
    if taken:
        raise ValueError(f"observe.axes must be names that no result has already, got {', '.join(taken)}")
    return {name: tuple(axes) for name, axes in declared.items()}


def _are_names(axes: Any) -> bool:
    return (
        isinstance(axes, tuple | list) and all(isinstance(axis, str) for axis in axes) and len(set(axes)) == len(axes)
    )


def _check_axes(axes: Mapping[str, tuple[str, ...]], found: Mapping[str, Array], sweep: Sweep) -> None:
    """ValueError where what is observed has other axes than those declared, or one axis two lengths."""
    lengths: dict[str, int] = dict(zip(BATCH_AXES, sweep.outputs.shape, strict=True))
    for name in set(found) & set(axes):
        shape, declared = found[name].shape, axes[name]
        if len(declared) != len(shape) or any(
            lengths.setdefault(axis, length) != length for axis, length in zip(declared, shape, strict=True)
        ):
            raise ValueError(
                f"observe.axes gives {name!r} the axes {declared}, but observe returned it with shape {shape}; axes of "
                f"one name have one length: {lengths}"
            )


def observation(observe: Observe, sweep: Sweep) -> dict[str, Array]:
    """What an observe function makes of a sweep; refused while tracing, before anything is trained."""
    try:
        found = observe(sweep)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            f"observe is traced by jax, so it can't turn arrays into numpy or Python numbers, nor branch on their "
            f"values: write it with jax.numpy. It raises {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:
        error.add_note("raised by observe, which jax calls once, with arrays that have no values yet")
        raise
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise TypeError(f"observe must return arrays by name, a dict, got {found!r}")
    axes = declared_axes(observe)
    taken = sorted(set(found) & RESERVED.union(*axes.values()))
    if taken:
        raise ValueError(f"observe must return names that no result has already, got {', '.join(taken)}")
    if bad := [name for name in found if not name or "/" in name]:
        raise ValueError(f"observe must return names without '/', which files can't hold, got {bad[0]!r}")
    arrays = {name: _observed(name, values) for name, values in found.items()}
    _check_axes(axes, arrays, sweep)
    return arrays


def _observed(name: str, values: Any) -> Array:
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"observe must return arrays, got {values!r} of type {type(values).__name__} for {name!r}"
        ) from error
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(f"observe must return arrays of numbers, got a random key for {name!r}")
    return array


class Samples(NamedTuple):
    """Inputs `(Q, d)`, or their coordinates, and targets `(Q, c)`."""

    inputs: Any
    targets: Any


class Data(NamedTuple):
    """What a run trains on and is asked about."""

    train: Samples
    steps: int  # K
    batches: np.ndarray  # (K, B), indices of the samples of every step; where something is observed of one more
    full_batch: bool  # every step sees all samples, so that its outputs need no evaluation
    held_out: Samples | None
    evaluate_at: tuple[int, ...]  # steps, for what is held out, and for all samples where batches are not full
    axes: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # of what is observed, where they have names

    @property
    def sets(self) -> tuple[Samples, ...]:
        """Training samples and, where there are any, held-out ones."""
        return (self.train,) if self.held_out is None else (self.train, self.held_out)

    def asked(self, step: int) -> tuple[bool, bool]:
        """Whether the training samples and the held-out ones are to be evaluated before this step."""
        due, last = step in self.evaluate_at, step == self.steps
        return (last if self.full_batch else due), (due and self.held_out is not None)


class Record(NamedTuple):
    """What a step saw before its update; outputs and loss are those of its batch."""

    outputs: Float[Array, "batch outputs"]
    loss: Scalar
    observed: dict[str, Array]


class Evaluated(NamedTuple):
    """Outputs and loss of a set of samples as they stand."""

    outputs: Float[Array, "samples outputs"]
    loss: Scalar


def evaluated(
    settings: Settings, outputs: Float[Array, "samples outputs"], sets: tuple[Samples, ...]
) -> tuple[Evaluated, ...]:
    """Outputs of several sets, one after the other, taken apart."""
    found, start = [], 0
    for samples in sets:
        own = outputs[start : start + len(samples.targets)]
        found.append(Evaluated(own, loss_value(settings.loss, own, samples.targets)))
        start += len(own)
    return tuple(found)


class Method(NamedTuple):
    """How a state is trained: hashable functions that the loop compiles.

    `step(settings, scales, state, step, rate, inputs, targets) -> (state, Record)`
    `evaluate(settings, scales, state, step, sets) -> (Evaluated, ...)`
    """

    step: Callable[..., tuple[PyTree, Record]]
    evaluate: Callable[..., tuple[Evaluated, ...]]


@partial(jax.jit, static_argnames=("function", "settings", "members", "layout"), donate_argnames="state")
def _jitted_step(
    function: Callable,
    settings: Settings,
    members: bool,
    scales: Scales | None,
    state: PyTree,
    step: Array,
    rate: Array,
    inputs: Array,
    targets: Array,
    layout: Layout | None = None,
) -> tuple[PyTree, Record]:
    one = partial(function, settings, scales)
    one = jax.vmap(one, in_axes=(0, None, 0, None, None)) if members else one
    state, record = one(state, step, rate, inputs, targets)
    return devices.place(layout, state), devices.replicate(layout, record)


@partial(jax.jit, static_argnames=("function", "settings", "members", "layout"))
def _jitted_evaluate(
    function: Callable,
    settings: Settings,
    members: bool,
    scales: Scales | None,
    state: PyTree,
    step: Array,
    sets: tuple[Samples, ...],
    layout: Layout | None = None,
) -> tuple[Evaluated, ...]:
    one = partial(function, settings, scales)
    found = (jax.vmap(one, in_axes=(0, None, None)) if members else one)(state, step, sets)
    return devices.replicate(layout, found)


class Problem(NamedTuple):
    """The validated arguments of a run that every solver shares."""

    settings: Settings
    data: Data
    rates: np.ndarray  # (K,), or (members, K)
    arguments: dict[str, Any]  # what a record keeps
    scales: Scales | None = None  # of explicit sweeps; autodiff has no need of them


class Kept(NamedTuple):
    """What a run has recorded so far, in order."""

    records: list[Evaluated]  # of the batch of every step, before its update
    train: list[Evaluated]
    held_out: list[Evaluated]
    observed: list[dict[str, np.ndarray]]  # before every update, and after the last; empty where nothing is observed

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint: everything by place and name."""
        return {
            f"{field}/{index}/{name}": value
            for field, found in zip(self._fields, self, strict=True)
            for index, each in enumerate(found)
            for name, value in (each if isinstance(each, dict) else each._asdict()).items()
        }

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Kept:
        """From what `arrays` gave."""
        kept, found = cls([], [], [], []), {}
        for address, value in arrays.items():
            if "/" in address:
                field, index, name = address.split("/", 2)
                found.setdefault((field, int(index)), {})[name] = value
        for (field, _), entry in sorted(found.items()):
            getattr(kept, field).append(entry if field == "observed" else Evaluated(**entry))
        return kept

    def trajectory(
        self, task: Task, data: Data, seeds: tuple[int, ...], arguments: dict[str, Any], *, members: bool
    ) -> Trajectory:
        """The finished run; outputs of full batches are those that training saw, and the last evaluation."""
        axis = 1 if members else 0

        def stack(values: Sequence[Any]) -> np.ndarray:
            return np.stack(values, axis)

        train = [*self.records, *self.train] if data.full_batch else self.train
        held_out = None
        if self.held_out:
            outputs, loss = (stack([getattr(found, name) for found in self.held_out]) for name in Evaluated._fields)
            held_out = HeldOut(outputs, loss, np.array(data.evaluate_at))
        return Trajectory(
            task,
            outputs=stack([found.outputs for found in train]),
            loss=stack([found.loss for found in train]),
            seeds=seeds,
            settings=arguments,
            observed={
                name: stack([found[name] for found in self.observed])
                for name in (self.observed[0] if self.observed else ())
            },
            steps=np.arange(data.steps + 1) if data.full_batch else np.array(data.evaluate_at),
            batch_loss=stack([record.loss for record in self.records]),
            held_out=held_out,
            axes=data.axes,
        )


def observed_shapes(method: Method, problem: Problem, create: Callable[[Array], PyTree]) -> dict[str, tuple[int, ...]]:
    """Shapes of what is observed of one member at a step, by name: traced, not compiled. `create` makes states of
    members from keys."""
    if problem.settings.observe is None:
        return {}
    samples, rows, dtype = problem.data.train, problem.data.batches.shape[1], jnp.zeros(()).dtype

    def one(key: Key) -> dict[str, Array]:
        state = jax.tree.map(lambda leaf: leaf[0], create(key[None]))
        x, y = (jnp.zeros((rows, part.shape[1]), dtype) for part in samples)
        _, record = method.step(problem.settings, problem.scales, state, jnp.int32(0), jnp.zeros((), dtype), x, y)
        return record.observed

    return {name: array.shape for name, array in jax.eval_shape(one, jax.random.key(0)).items()}


@partial(jax.jit, donate_argnames="state")
def _only_member(state: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(x.shape[1:]), state)


def run(
    method: Method,
    problem: Problem,
    state: PyTree,
    *,
    members: bool,
    progress: tqdm,
    layout: Layout | None = None,
    checkpoint: Checkpoint | None = None,
    name: str = "run",
) -> Kept:
    """Train for all steps of the problem. With `members`, every array of `state` has a leading axis of members, and so
    have the rates.

    `layout` is that of `state`, which is given up: its memory is reused. `progress` advances by one a step and once at
    the end. With a `checkpoint`, the run starts from what that has of this `name`, and is kept there.
    """
    settings, data, steps = problem.settings, problem.data, problem.rates.shape[-1]
    dtype = np.dtype(jnp.zeros(()).dtype)
    every = [Samples(*(np.asarray(part, dtype) for part in samples)) for samples in data.sets]
    first, state, kept = _resumed(checkpoint, name, state)
    progress.update(first)
    for step in range(first, steps + 1):
        now, asked = np.int32(step), data.asked(step)
        sets = tuple(samples for samples, wanted in zip(every, asked, strict=False) if wanted)
        if sets:
            found = list(_jitted_evaluate(method.evaluate, settings, members, problem.scales, state, now, sets, layout))
            for place, wanted in zip((kept.train, kept.held_out), asked, strict=True):
                if wanted:
                    place.append(jax.tree.map(np.asarray, found.pop(0)))
        if step < len(data.batches):  # the one after the last is observed and given up
            rate = np.asarray(problem.rates[..., min(step, steps - 1)], dtype)
            x, y = (part[data.batches[step]] for part in every[0])
            state, record = _jitted_step(method.step, settings, members, problem.scales, state, now, rate, x, y, layout)
            outputs, loss, observed = jax.tree.map(np.asarray, record)
            if observed:
                kept.observed.append(observed)
            if step < steps:
                kept.records.append(Evaluated(outputs, loss))
                with np.errstate(over="ignore"):  # of members about to diverge
                    progress.set_postfix(loss=f"{np.mean(loss):.4g}", refresh=False)
        progress.update()
        if checkpoint is not None and (step == steps or checkpoint.is_due(step + 1)):
            numbers = {} if step == steps else arrays_of(state)  # a finished run needs none
            checkpoint.write(name, {"done": np.array(step + 1)} | kept.arrays() | numbers)
    return kept


def _resumed(checkpoint: Checkpoint | None, name: str, state: PyTree) -> tuple[int, PyTree, Kept]:
    """The step to go on from, the state before it, and what was recorded."""
    nothing = Kept([], [], [], [])
    arrays = None if checkpoint is None else checkpoint.read(name)
    kept = nothing if arrays is None else Kept.of(arrays)
    done = 0 if arrays is None else int(arrays["done"])
    if checkpoint is not None and not devices.same(done):
        return 0, state, nothing  # processes were killed between their writes
    if arrays is not None and any(key.startswith("state-") for key in arrays):
        state = with_arrays(state, arrays)
    return done, state, kept


def run_members(
    method: Method,
    problem: Problem,
    create: Callable[[Array, Layout | None], PyTree],
    seeds: tuple[int, ...],
    member_bytes: int,
    *,
    description: str,
    progress: bool | None,
    layout: Layout | None = None,
    checkpoint: Checkpoint | None = None,
) -> Kept:
    """Train one member a seed, as many side by side as `memory.side_by_side()` has room for, at `member_bytes` each;
    `create` makes them from keys. Rates `(members, K)` of the problem are those of each.

    Several devices share the particles of every member as `layout` says, or else the members; the threads of one CPU
    share the chunks. These are of one size, so that they share a compiled program; the last is filled up with members
    thrown away.
    """
    budget = memory.side_by_side()
    if layout is None:  # a device has room for whole members
        room = max(1, budget // member_bytes) * devices.device_count()
    else:  # for its part of each
        room = max(1, budget * layout.devices // member_bytes)
    together = -(-len(seeds) // -(-len(seeds) // room))
    if layout is None:
        together, layout = devices.members(together)
    chunks = -(-len(seeds) // together)
    filled = [*seeds, *(seeds[-1:] * (chunks * together - len(seeds)))]
    rates = np.broadcast_to(problem.rates, (len(seeds), problem.rates.shape[-1]))
    rates = np.concatenate([rates, rates[-1:].repeat(len(filled) - len(seeds), axis=0)])

    def chunk(start: int) -> Kept:
        state = create(_keys(filled[start : start + together]), layout)
        kept_in = {"layout": layout, "checkpoint": checkpoint, "name": f"members-{start}"}
        own = rates[start : start + together]
        if together > 1:
            return run(method, problem._replace(rates=own), state, members=True, progress=bar, **kept_in)
        # a batch of one compiles and runs slower, and copies what is updated in place without it
        only = _only_member(state)
        found = run(method, problem._replace(rates=own[0]), only, members=False, progress=bar, **kept_in)
        return jax.tree.map(lambda x: x[None], found)

    with progress_bar(description, chunks * (rates.shape[1] + 1), progress) as bar:
        at_once = min(chunks, threads.at_once(together * member_bytes))
        runs = threads.each(chunk, range(0, len(filled), together), at_once)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(seeds)], *runs)


def _keys(seeds: Sequence[int]) -> Array:
    """A key a seed, put together on the host: a program that stacked thousands would take minutes to compile."""
    numbers = [np.asarray(jax.random.key_data(seed_key(seed))) for seed in seeds]
    return jax.random.wrap_key_data(jnp.asarray(np.stack(numbers)))


def progress_bar(description: str, total: int, show: bool | None) -> Bar:
    """A bar that appears after two seconds; `show=None` leaves it out where output is not a terminal. Of several
    processes, the first shows it."""
    show = show if jax.process_index() == 0 else False
    disable = None if show is None else not show
    return Bar(total=total, desc=description, unit="step", delay=2, leave=False, disable=disable)


def prepare(
    task: Task,
    model: AbstractModel,
    *,
    finite: bool = True,
    steps: int,
    learning_rate: optimizers.Rate,
    parametrization_name: str | Parametrization = "depth_mup",
    optimizer: Optimizer,
    train_input: bool,
    train_readout: bool,
    richness: float,
    observe: Observe | None = None,
    evaluate_at: Sequence[int] | None = None,
    progress: bool | None = None,
) -> Problem:
    """Check the arguments of a run before anything is compiled."""
    check_task(task)
    check_model(model, finite=finite)
    if progress is not None:
        boolean("progress", progress)
    if observe is not None and not callable(observe):
        raise TypeError(f"observe must be a function of a Sweep that returns arrays by name, got {observe!r}")
    row = parametrization.resolve(parametrization_name)
    rates = optimizers.rates(learning_rate, positive_int("steps", steps, maximum=MOST))
    trained = {
        "input": boolean("train_input", train_input),
        "hidden": True,
        "readout": boolean("train_readout", train_readout),
    }
    richness = finite_float("richness", richness, strict=True)
    optimizers.check_rates("learning_rate", rates, optimizer)
    _check_precision(task, model, row, richness)
    settings = Settings(
        structure=model.structure,
        row=row,
        loss=task.loss,
        trained=tuple(role for role, wanted in trained.items() if wanted),
        optimizer=optimizer,
        richness=richness,
        observe=observe,
        functions=tuple(map(functions.described, filter(callable, (model.activation, observe, task.loss)))),
    )
    arguments = {
        "model": type(model).__name__,
        **{field.name: _plain(getattr(model, field.name)) for field in fields(model)},
        "parametrization": row.name if PARAMETRIZATIONS.get(row.name) == row else repr(row),
        "steps": steps,
        "learning_rate": rates.tolist(),
        "optimizer": optimizer.name,
        "trained": list(settings.trained),
        "richness": richness,
        "momentum": optimizer.momentum,
        "weight_decay": optimizer.weight_decay,
        **({} if optimizer.is_linear else {"betas": list(optimizer.betas), "epsilon": optimizer.epsilon}),
        "loss": _plain(task.loss),
        "batch_size": task.batch_size,
        "replacement": task.replacement,
        "batch_seed": task.batch_seed,
        "observe": _plain(observe),
    }
    return Problem(settings, _data(task, steps, evaluate_at, observe), rates, arguments)


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


def _plain(argument: Any) -> Any:
    """As a record keeps it."""
    return functions.described(argument) if callable(argument) else argument


def _data(task: Task, steps: int, evaluate_at: Sequence[int] | None, observe: Observe | None) -> Data:
    """The arrays of a task, and when they are evaluated: by default before every step and at the end."""
    chosen = range(steps + 1) if evaluate_at is None else evaluate_at
    if isinstance(chosen, str) or not isinstance(chosen, Sequence | np.ndarray):
        raise TypeError(f"evaluate_at must be a sequence of steps from 0 to {steps}, got {evaluate_at!r}")
    at = tuple(sorted(set(positive_ints("evaluate_at", chosen, minimum=0))))
    if not at or at[-1] > steps:
        raise ValueError(f"evaluate_at must be at least one step from 0 to {steps}, got {evaluate_at!r}")
    check_array(f"steps={steps} of {task.batch_size or task.samples} samples", steps, task.batch_size or task.samples)
    held_out = task.held_out and Samples(task.held_out.inputs, task.held_out.targets)
    train, batches = Samples(task.inputs, task.targets), task.batches(steps + (observe is not None))
    return Data(train, steps, batches, task.full_batch, held_out, at, declared_axes(observe))
