"""The training loop that every solver shares: steps in compiled chunks, and what happens between them.

A chunk goes to the next evaluation, checkpoint or progress tick. Within it nothing is transferred to the host; between
two chunks samples are evaluated, checkpoints written, progress shown, and a run can be interrupted. The number of
steps of a chunk is traced, so that one program serves all, and the numbers don't depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from nfd_jax._slices import put, take
from nfd_jax._types import Array, PyTree
from nfd_jax.dynamics.base import AbstractDynamics, Record
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.problem import Data, Evaluated, Problem, Samples, evaluated
from nfd_jax.matrices.basis import MEMBERS
from nfd_jax.optimizers import Optimizer
from nfd_jax.runtime import capacity, devices, store
from nfd_jax.runtime.devices import Layout
from nfd_jax.runtime.recorded import Recorded
from nfd_jax.runtime.store import Checkpoint, arrays_of, with_arrays
from nfd_jax.runtime.threads import Bar

LONGEST = 32  # steps of a chunk
RECORDED = 2**24  # bytes of what a chunk records, if it is more than one step
TICK = 0.25  # seconds: chunks that take less are followed by longer ones
ROOM = 2**26  # bytes that the bases of a run have for a step: so many more are worth not compiling an evaluation


class Pass(NamedTuple):
    """What a step takes besides the state: its number and rate, the samples of its batch, and whether it is the pass
    after the last step."""

    number: Any
    rate: Any
    chosen: Any
    last: Any


@partial(jax.jit, static_argnames="members")  # a function of its own, so that it is traced once
def _step(
    dynamics: AbstractDynamics, state: PyTree, one: Pass, train: Samples, *, members: bool
) -> tuple[PyTree, Record]:
    step = dynamics.step
    step = jax.vmap(step, in_axes=(0, None, 0, None, None, None), axis_name=MEMBERS) if members else step
    return step(state, one.number, one.rate, train.inputs[one.chosen], train.targets[one.chosen], one.last)


class Chunk(NamedTuple):
    """Some steps of a run: the first, how many, and rates `(..., size)` and batches `(size, B)` from there on."""

    first: Any
    steps: Any
    rates: Array | np.ndarray
    batches: Array | np.ndarray
    last: Any  # whether it is the pass after the last step

    @classmethod
    def of(cls, data: Data, rates: np.ndarray, first: int, count: int, size: int) -> Chunk:
        """Of the steps of a run, with room for `size`."""
        places = np.minimum(np.arange(first, first + size), len(data.batches) - 1)
        rates = rates[..., np.minimum(places, data.steps - 1)]
        return cls(np.int32(first), np.int32(count), rates, data.batches[places], np.bool_(first == data.steps))

    def step(self, place: Array | int) -> Pass:
        """One of them."""
        rate = take(self.rates, place, axis=self.rates.ndim - 1)
        return Pass(self.first + place, rate, take(self.batches, place), self.last)


@partial(jax.jit, static_argnames=("members", "layout"), donate_argnames="state")
def run_chunk(
    dynamics: AbstractDynamics, state: PyTree, train: Samples, chunk: Chunk, *, members: bool, layout: Layout | None
) -> tuple[PyTree, Record, Array]:
    """The state after the steps of a chunk, as many as it has room for, their records, with a leading axis of steps,
    and their number."""

    def one(place: Array | int, state: PyTree) -> tuple[PyTree, Record]:
        state, record = _step(dynamics, state, chunk.step(place), train, members=members)
        return devices.place(layout, state), record

    def step(carry: tuple[Array, PyTree, Record]) -> tuple[Array, PyTree, Record]:
        place, state, records = carry
        state, record = one(place, state)
        records = jax.tree.map(partial(put, index=place), records, record)
        return place + 1, state, records

    def more(carry: tuple[Array, PyTree, Record]) -> Array:
        place, state, _ = carry
        return (place < chunk.steps) & capacity.fits(dynamics, state, chunk.batches.shape[1])

    _, shapes = jax.eval_shape(one, 0, state)
    records = jax.tree.map(lambda like: jnp.zeros((len(chunk.batches), *like.shape), like.dtype), shapes)
    done, state, records = lax.while_loop(more, step, (jnp.int32(0), state, records))
    return devices.place(layout, state), *devices.replicate(layout, (records, done))


@partial(jax.jit, static_argnames=("members", "layout"))
def _evaluate(
    dynamics: AbstractDynamics,
    state: PyTree,
    step: Array,
    sets: tuple[Samples, ...],
    *,
    members: bool,
    layout: Layout | None,
) -> tuple[Evaluated, ...]:
    inputs = jnp.concatenate([samples.inputs for samples in sets])

    def one(state: PyTree) -> tuple[Evaluated, ...]:
        return evaluated(dynamics.settings.loss, dynamics.evaluate(state, step, inputs), sets)

    return devices.replicate(layout, (jax.vmap(one, axis_name=MEMBERS) if members else one)(state))


def with_last_pass(dynamics: AbstractDynamics, problem: Problem, needed: int) -> tuple[AbstractDynamics, Problem]:
    """With a pass after the last step that says of full batches what an evaluation would, so that the first call
    compiles no program for that: a third of its time. `needed`: bytes of a member.

    Only where so much more memory as a step takes is little. Dense networks would take longer: their steps can't leave
    the backward pass out, and evaluations compile fast.
    """
    data = problem.data
    is_little = bool(dynamics.capacity) or needed <= ROOM * data.steps
    if isinstance(dynamics, Conditioned) and data.full_batch and not data.has_last_pass and is_little:
        return dynamics.for_passes(data.steps + 1), problem.with_last_pass()
    return dynamics, problem


def run(
    dynamics: AbstractDynamics,
    problem: Problem,
    state: PyTree,
    *,
    members: bool,
    progress: tqdm,
    layout: Layout | None = None,
    checkpoint: Checkpoint | None = None,
    name: str = "run",
) -> Recorded:
    """Train for all steps of the problem. With `members`, every array of `state` has a leading axis of members, and so
    have the rates; recorded arrays have it after that of steps.

    `layout` is that of `state`, which is given up: its memory is reused. `progress` advances by one a step and once at
    the end. With a `checkpoint`, the run starts from what that has of this `name`, and is kept there.
    """
    dtype = np.dtype(jnp.zeros(()).dtype)
    data = problem.data._replace(batches=problem.data.batches.astype(np.int32))
    every = [Samples(*(np.asarray(part, dtype) for part in samples)) for samples in data.sets]
    train, rates = jax.device_put(every[0]), problem.rates.astype(dtype)
    record = None if checkpoint is None else checkpoint.record(name)
    step, dynamics, state, recorded = _resumed(record, dynamics, state, layout)
    written = [len(pieces) for pieces in recorded]
    progress.update(step)

    longest = _longest(dynamics, state, train, Chunk.of(data, rates, 0, 1, 1), members=members)
    length = 1 if jax.process_count() == 1 else longest  # processes have to go on alike
    left = None
    while step <= data.steps:
        if step == data.steps:
            recorded.ranks.extend(capacity.used(dynamics, state, members=members))
        kinds = zip(every, (recorded.train, recorded.held_out), data.asked(step), strict=False)
        wanted = [(samples, pieces) for samples, pieces, asked in kinds if asked]
        if wanted:
            sets = tuple(samples for samples, _ in wanted)
            answers = _evaluate(dynamics, state, np.int32(step), sets, members=members, layout=layout)
            for (_, pieces), answer in zip(wanted, answers, strict=True):
                pieces.append(_piece(answer))
        count, began = _until(data, checkpoint, step, length), time.monotonic()
        if step < len(data.batches):  # what the one after the last updates is given up
            if left is None:
                chunk = Chunk.of(data, rates, step, count, longest)
                state, seen, done = run_chunk(dynamics, state, train, chunk, members=members, layout=layout)
                seen, count = jax.tree.map(np.asarray, seen), int(done)  # whose parts then need no programs
                dynamics, state, data = _with_room(dynamics, state, data, step + count, layout, members=members)
                left = _nothing_left(dynamics.settings.optimizer, seen, count)
            else:
                seen = left
            recorded.add(seen, count, data, step)
            with np.errstate(over="ignore"):  # of members about to diverge
                progress.set_postfix(loss=f"{np.mean(seen.loss[count - 1]):.4g}", refresh=False)
        step += count
        progress.update(count)
        if jax.process_count() == 1 and time.monotonic() - began < TICK:
            length = min(2 * length, longest)
        over = step > data.steps
        if checkpoint is not None and record is not None and (over or checkpoint.is_due(step, count)):
            written = _write(record, step, recorded, written, None if over else (dynamics, state))
    return recorded


def _nothing_left(optimizer: Optimizer, seen: Record, count: int) -> Record | None:
    """What all further chunks record of members of which nothing is left, so that they need not be run: after an update
    by a loss that is not a number no weight is one. None where some member has anything left, or where that is not
    known: of what is observed, and of an optimizer from outside, which may leave such updates out."""
    known = not seen.observed and optimizer.transformation is None
    if not known or not np.isnan(seen.loss[count - 1]).all():
        return None
    last = jax.tree.map(lambda array: array[count - 1], seen)
    if not np.isnan(last.outputs).all():
        return None
    return jax.tree.map(lambda row, array: np.broadcast_to(row, array.shape), last, seen)


def _with_room(
    dynamics: AbstractDynamics, state: PyTree, data: Data, step: int, layout: Layout | None, *, members: bool
) -> tuple[AbstractDynamics, PyTree, Data]:
    """With room for a step, if there is one; where memory lacks it the run ends there, with what it has."""
    if step >= len(data.batches):
        return dynamics, state, data
    dynamics, state, fits = capacity.grown(dynamics, state, data.batches.shape[1], layout, members=members)
    return dynamics, state, data if fits else data.until(step)


def _piece(answer: Evaluated) -> dict[str, np.ndarray]:
    return {name: np.asarray(array)[None] for name, array in answer._asdict().items()}


def _until(data: Any, checkpoint: Checkpoint | None, step: int, length: int) -> int:
    """How many steps the next chunk has: to the next evaluation or checkpoint, and `length` at most. That after the
    last step stands alone."""
    most = min(length, max(1, data.steps - step))
    due = (count for count in range(1, most) if any(data.asked(step + count)))
    count = next(due, most)
    if checkpoint is not None:
        count = next((fewer for fewer in range(1, count) if checkpoint.is_due(step + fewer)), count)
    return count


def _longest(dynamics: AbstractDynamics, state: PyTree, train: Samples, chunk: Chunk, *, members: bool) -> int:
    """The steps of the longest chunk, as what it records is to fit into little memory."""
    one = jax.eval_shape(lambda: chunk.step(0))
    _, record = jax.eval_shape(partial(_step, members=members), dynamics, state, one, train)
    needed = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(record))
    return max(1, min(LONGEST, RECORDED // max(1, needed)))


def _write(
    record: store.Record,
    step: int,
    recorded: Recorded,
    written: Sequence[int],
    now: tuple[AbstractDynamics, PyTree] | None,
) -> list[int]:
    """Add what was recorded since so many pieces, and replace the state; a finished run has none, and is one archive.
    How many pieces are written then."""
    done = {"done": np.array(step)}
    if now is None:
        record.write(done | recorded.since([0] * len(written)))
    else:
        dynamics, state = now
        done["capacity"] = np.array(dynamics.capacity, np.int64)
        record.append(recorded.since(written), done | arrays_of(state))
    return [len(pieces) for pieces in recorded]


def _resumed(
    record: store.Record | None, dynamics: AbstractDynamics, state: PyTree, layout: Layout | None
) -> tuple[int, AbstractDynamics, PyTree, Recorded]:
    """The step to go on from, the dynamics and the state before it, and what was recorded."""
    arrays = None if record is None else record.read()
    if record is None or arrays is None:
        return 0, dynamics, state, Recorded([], [], [], [], [])
    if any(key.startswith("state-") for key in arrays):
        stored = tuple(arrays["capacity"].tolist())
        if stored != dynamics.capacity:
            dynamics, state = capacity.extended(dynamics, state, stored, layout)
        try:
            state = with_arrays(state, arrays)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{record.called} {str(record.path)!r} was left by another version of nfd_jax, whose state has other "
                "arrays; remove it, or finish the run with that version"
            ) from error
    return int(arrays["done"]), dynamics, state, Recorded.of(arrays)


def progress_bar(description: str, total: int, show: bool | None) -> Bar:
    """A bar that appears after two seconds; `show=None` leaves it out where output is not a terminal. Of several
    processes, the first shows it."""
    show = show if jax.process_index() == 0 else False
    disable = None if show is None else not show
    return Bar(total=total, desc=description, unit="step", delay=2, leave=False, disable=disable)
