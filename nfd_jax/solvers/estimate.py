"""estimate: the limit with error bars, drawn in rounds until it is known well enough (`multilevel` says how)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nfd_jax._types import Key
from nfd_jax.runtime import devices, loop, memory, threads
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.seeds import seed_key
from nfd_jax.solvers.multilevel import (
    FEWEST,
    Attempt,
    Counts,
    Estimate,
    Extrapolation,
    Parts,
    Plan,
    Result,
    Term,
    first_round,
    ladder,
    next_draw,
    next_round,
    plan_of,
    resolutions_to,
)
from nfd_jax.solvers.particles import System
from nfd_jax.solvers.trajectory import HeldOut, Trajectory
from nfd_jax.task import Task, loss_curvature, loss_gradient, loss_value

DEEPEST = 1024  # the last depth of a ladder
CAPACITY = 32  # blocks, times a power of four, of programs for infinite depth
AVERAGED = "outputs", "batch_loss", "held_out_outputs"  # of a solution
RANKS = "ranks"  # at its end
FEWEST_PARTICLES, MOST_PARTICLES = 4096, 8192  # chosen unasked: below, a step costs the same; above, memory counts


class Replicates:
    """Solutions drawn on demand. Each is addressed by (seed, particles, depth, number): more of them, or deeper
    ones, leave the others as they were."""

    def __init__(self, system: System, task: Task, seed: int, particles: int, checkpoint: Checkpoint | None):
        # the same for all, so that biases extrapolate
        system = system._replace(matched=system.matches(particles // 4), narrowest=particles // 4)
        self.system, self.task, self.seed, self.checkpoint = system, task, seed, checkpoint
        self.record = checkpoint and checkpoint.record("means")
        self.found: dict[Term, list[Parts]] = {}
        self.seconds: dict[Term, float] = {}  # of a replicate, the least measured: the first are compiled
        self.diverged: dict[Term, int] = {}  # the number of the first that is not finite
        self.ended: MemoryError | None = None  # why no more can be drawn
        self._restore((self.record and self.record.read()) or {})
        self.written: Counts = {term: len(parts) for term, parts in self.found.items()}

    def write(self) -> None:
        """Add to the record what has been drawn since the last time."""
        new = {term: parts[self.written.get(term, 0) :] for term, parts in self.found.items()}
        if self.record is not None and any(new.values()):
            named = {
                f"{_address(term)}/{self.written.get(term, 0)}/{name}": np.stack([part[name] for part in parts])
                for term, parts in new.items()
                for name in (parts[0] if parts else ())
            }
            self.record.append(named)
            self.written = {term: len(parts) for term, parts in self.found.items()}

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        for address, values in arrays.items():
            *term, first, name = address.split("/", 6)
            parts = self.found.setdefault(_term(*term), [])
            parts.extend({} for _ in range(int(first) + len(values) - len(parts)))
            for number, value in enumerate(values, int(first)):
                parts[number][name] = value
        for term in self.found:
            self._check(term)

    def draw(self, term: Term, capacity: int, count: int) -> None:
        """So many more replicates of a mean, all at once; none where memory does not last, and `ended` says so."""
        found, begun = self.found.setdefault(term, []), time.monotonic()

        def replicate(number: int) -> Parts:
            key = seed_key(self.seed)
            level = (round(1e6 * term.resolution),) if term.refined else ()
            for address in (term.particles, term.depth, number, *level):
                key = jax.random.fold_in(key, address)
            solve = partial(self._solve, key, term.particles)
            parts = solve(term.depth, 1, capacity, term.resolution)
            if term.difference:
                coarse = solve(term.depth // 2, 2, capacity, term.resolution)
            elif term.refined:
                coarse = solve(term.depth, 1, capacity, 2 * term.resolution)
            else:
                return parts
            return {name: part if name == RANKS else part - coarse[name] for name, part in parts.items()}

        try:
            found.extend(threads.each(replicate, range(len(found), len(found) + count), count))
        except MemoryError as error:
            self.ended = error
            return
        self._check(term, len(found) - count)
        self.seconds[term] = min((time.monotonic() - begun) / count, self.seconds.get(term, math.inf))
        if self.checkpoint is not None and self.checkpoint.is_due(sum(map(len, self.found.values())), count):
            self.write()

    def _solve(self, key: Key, particles: int, depth: int, refinement: int, capacity: int, resolution: float) -> Parts:
        system = self.system._replace(resolution=resolution)
        with loop.progress_bar("", 0, False) as silent:
            options: dict[str, Any] = {"refinement": refinement, "capacity": capacity}
            recorded = system.solve(key, particles, depth, **options, progress=silent)
        results, steps = recorded.results(full_batch=system.problem.data.full_batch), system.problem.data.steps
        if (done := len(results["batch_loss"])) < steps:
            raise MemoryError(
                f"memory ended a solution of the estimate after {done} of {steps} steps; use fewer particles than "
                f"{particles}, a resolution above {resolution:g}, or fewer steps"
            )
        ranks = {RANKS: recorded.ranks[0][RANKS].max(axis=0).astype(np.float64)} if recorded.ranks else {}
        return {name: np.asarray(results[name], np.float64) for name in AVERAGED if name in results} | ranks

    def have(self, counts: Counts) -> Counts:
        """How many there are of every mean, at most so many."""
        return {term: min(count, len(self.found.get(term, []))) for term, count in counts.items()}

    def are_finite(self, counts: Counts) -> bool:
        """Whether the first so many replicates of every mean are finite numbers."""
        return all(count <= self.diverged.get(term, count) for term, count in counts.items())

    def _check(self, term: Term, first: int = 0) -> None:
        """Look at the replicates of a mean from the first on."""
        for number, parts in enumerate(self.found[term][first:], first):
            if not all(np.isfinite(part).all() for part in parts.values()):
                self.diverged.setdefault(term, number)

    def ranks(self, counts: Counts) -> tuple[int, ...]:
        """The largest of the first so many replicates; none of the exact law."""
        every = [part[RANKS] for term, count in counts.items() for part in self.found[term][:count] if RANKS in part]
        return tuple(np.max(every, axis=0).astype(int).tolist()) if every else ()

    def of(self, counts: Counts, name: str) -> dict[Term, np.ndarray]:
        """The first so many replicates `(R, ...)` of one part, a mean."""
        return {term: np.stack([parts[name] for parts in self.found[term][:count]]) for term, count in counts.items()}


def _address(term: Term) -> str:
    """A mean in records: particles, depth, whether a difference of depths, resolution, and whether one of these."""
    return f"{term.particles}/{term.depth}/{int(term.difference)}/{term.resolution!r}/{int(term.refined)}"


def _term(particles: str, depth: str, difference: str, resolution: str, refined: str) -> Term:
    """The mean of an address."""
    return Term(int(particles), int(depth), difference == "1", float(resolution), refined == "1")


def combine(replicates: Replicates, plan: Plan, counts: Counts, extrapolation: Extrapolation | None) -> Result:
    """All quantities from the first so many replicates of every mean."""
    task, values, errors = replicates.task, {}, {}
    for name in replicates.found[next(iter(plan))][0].keys() - {RANKS}:
        found = Estimate.of(plan, replicates.of(counts, name), extrapolation)
        values[name], errors[name] = found.mean, found.errors
    losses = {}
    sets = {"outputs": ("loss", task)}
    if task.held_out is not None:
        sets["held_out_outputs"] = ("held_out_loss", task.held_out)
    for name, (loss, samples) in sets.items():
        mean, targets = (jnp.asarray(part, jnp.zeros(()).dtype) for part in (values[name], samples.targets))
        slope = np.asarray(jax.vmap(lambda f: loss_gradient(task.loss, f, targets))(mean))  # noqa: B023
        linear = {term: np.einsum("rsac,sac->rs", f, slope) for term, f in replicates.of(counts, name).items()}
        found = Estimate.of(plan, linear, extrapolation)
        bends = np.asarray(jax.lax.map(lambda f: loss_curvature(task.loss, f, targets), mean))  # noqa: B023
        curved = 0.5 * (bends * (errors[name].standard_error ** 2).sum(axis=-1)).mean(axis=-1)
        values[loss] = np.asarray(jax.vmap(lambda f: loss_value(task.loss, f, targets))(mean))  # noqa: B023
        errors[loss] = found.errors._replace(standard_error=np.hypot(found.errors.standard_error, curved))
        losses[loss] = found
    return Result(values, errors, losses["loss"])


def default_particles(system: System) -> int:
    """Four times the least power of two that allows matched noise, within reason."""
    particles = FEWEST_PARTICLES // 4
    while system.matched and not system.matches(particles) and 4 * particles < MOST_PARTICLES:
        particles *= 2
    return 4 * particles


def estimate(
    system: System,
    task: Task,
    depth: int | float,
    *,
    particles: int,
    seed: int,
    tolerance: float | None,
    budget: float,
    arguments: dict[str, Any],
    checkpoint: Callable[[dict[str, Any]], Checkpoint | None],
    progress: bool | None,
) -> Trajectory:
    """The limit with error bars.

    With a tolerance, replicates, at infinite depth blocks and of long training resolutions are added until the 95 %
    half-width of every loss is at most `tolerance` times that loss, until a replicate diverges, until `budget` seconds
    have passed or would pass in the next round, or until memory, the last depth of the ladder or the finest resolution
    ends it.
    """
    deadline = time.monotonic() + budget
    infinite = depth == math.inf
    extrapolation = Extrapolation(*system.powers()) if infinite else None
    depths = ladder(depth) if infinite or system.on_one_path else (int(depth),)
    system.check_memory(particles, _capacity(depths[-1], infinite))  # of the largest, which is solved last
    arguments = arguments | {
        "solver": "limit",
        "depth": depth,
        "particles": particles,
        "noise": "matched" if system.matches(particles // 4) else "plain",
    }
    # more replicates leave the first as they are, so that a tolerance or a budget may differ from those before
    replicates = Replicates(system, task, seed, particles, checkpoint(arguments | {"seed": seed}))
    deepest = depths[-1]
    while infinite and deepest < DEEPEST:
        if not memory.is_enough(*system.needed(particles, _capacity(2 * deepest, infinite))):
            break
        deepest *= 2
    wanted, attempt, finite = first_round(particles, depths, resolutions_to(system.resolution)), None, True
    with loop.progress_bar("limit with error bars", 0, progress) as bar:
        while True:
            capacity = _capacity(wanted.depths[-1], infinite)
            counts = _draw(replicates, wanted.counts, capacity, deadline, bar, answered=attempt is not None)
            if attempt is not None and min(counts.values()) < FEWEST:
                break  # time or memory was over before the next depth had an answer
            finite = replicates.are_finite(counts)
            with np.errstate(over="ignore", invalid="ignore"):  # where training diverges
                plan = plan_of(particles, wanted.depths, extrapolation, wanted.resolutions)
                latest = Attempt.of(wanted, counts, combine(replicates, plan, counts, extrapolation))
            bar.set_postfix(half_width=f"{latest.half_width:.2g} of the loss", refresh=False)
            left = _left(deadline)
            if attempt is None or not finite or left > 0 or latest.half_width <= attempt.half_width:
                attempt = latest  # otherwise time was over before the last depth had its replicates
            seconds = {term: devices.agreed(each) for term, each in replicates.seconds.items()}
            following = next_round(attempt, tolerance, seconds=seconds, left=left, deepest=deepest)
            if following is None or not finite or replicates.ended is not None:
                break
            wanted = following
    replicates.write()
    arguments |= {
        "depths": list(attempt.depths),
        "replicates": {_address(term): count for term, count in attempt.counts.items()},
        "tolerance": tolerance,
        "budget": budget,
    }
    met = None if tolerance is None else finite and attempt.half_width <= tolerance
    if system.resolution:
        arguments |= {"resolution": attempt.resolutions[-1], "resolutions": list(attempt.resolutions)}
    return _trajectory(replicates, attempt, arguments, met)


def _capacity(depth: int, infinite: bool) -> int:
    """The depth that programs have capacity for: few sizes, so that a ladder that grows seldom compiles anew."""
    capacity = CAPACITY
    while capacity < depth:
        capacity = 4 * capacity
    return capacity if infinite else depth


def _draw(
    replicates: Replicates, counts: Counts, capacity: int, deadline: float, bar: tqdm, *, answered: bool
) -> Counts:
    """Draw replicates up to these counts, or as many as `next_draw` lets: the counts there are.

    Those that a checkpoint had beyond the counts wait their turn: every decision is the one of an unbroken run.
    """
    bar.total = sum(max(count, len(replicates.found.get(term, []))) for term, count in counts.items())
    needed = {each: replicates.system.needed(each, capacity)[0] for each in {term.particles for term in counts}}
    while True:
        have, late = replicates.have(counts), _left(deadline) <= 0
        if replicates.ended is not None and not answered and min(have.values()) < FEWEST:
            raise replicates.ended  # there is no answer yet that it could end with
        term = next_draw(counts, have, answered=answered, late=late, finite=replicates.are_finite(have))
        if term is None or replicates.ended is not None:
            return have
        goal = FEWEST if have[term] < FEWEST else counts[term]
        count = min(threads.at_once(needed[term.particles]), goal - have[term])
        replicates.draw(term, capacity, count)
        bar.update(count)


def _left(deadline: float) -> float:
    """Seconds, the same for all processes."""
    return devices.agreed(deadline - time.monotonic())


def _trajectory(replicates: Replicates, attempt: Attempt, arguments: dict[str, Any], met: bool | None) -> Trajectory:
    """The estimate as users see it."""
    data, values, held_out = replicates.system.problem.data, attempt.result.values, None
    if "held_out_outputs" in values:
        held_out = HeldOut(values["held_out_outputs"], values["held_out_loss"], np.array(data.evaluate_at))
    return Trajectory(
        replicates.task,
        values["outputs"],
        values["loss"],
        (replicates.seed,),
        arguments,
        steps=np.arange(data.steps + 1) if data.full_batch else np.array(data.evaluate_at),
        batch_loss=values["batch_loss"],
        held_out=held_out,
        errors=attempt.result.errors,
        tolerance_met=met,
        memory_ended=replicates.ended is not None,
        ranks=replicates.ranks(attempt.counts),
    )
