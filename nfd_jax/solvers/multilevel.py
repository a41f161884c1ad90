"""The limit with error bars: many solutions combined into one estimate, to a tolerance where one is given.

An estimate is a weighted sum of independent means (multilevel Monte Carlo over depths, Giles 2008):

- solutions on the coarsest grid with n and with n / 4 particles, weights 4/3 and -1/3: the bias of order 1/n goes;
- differences between solutions with 2l and l blocks on one Brownian path, l doubling, weight 1: cheap to average,
  since their variance falls with l, although finer grids cost more;
- at infinite depth the last two differences have other weights, those of Richardson extrapolation, twice, of an error
  in the powers of 1/L that `expansion` says: 2/3 and 8/3 for 1/L and 1/L^2. The second extrapolation's correction, all
  of it, counts as the discretisation error. Whether two depths follow one path changes no mean, only variances.

Replicates are shared out so that the standard error falls fastest for the work (Neyman). Outputs are averaged first
and losses taken from their mean, which has no bias of the size of one solution's variance.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student
from tqdm import tqdm

from nfd_jax._types import Key
from nfd_jax.dynamics.problem import Data
from nfd_jax.runtime import devices, loop, memory, threads
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.seeds import seed_key
from nfd_jax.solvers.particles import System
from nfd_jax.solvers.trajectory import ErrorBars, HeldOut, Trajectory
from nfd_jax.statistics import CONFIDENCE
from nfd_jax.task import Task, loss_curvature, loss_gradient, loss_value

COARSEST, FIRST, DEEPEST = 4, 16, 1024  # depths of a ladder: the least start, the first end and the last at infinity
CAPACITY = 32  # blocks, times a power of four, of programs for infinite depth
FEWEST = 2  # replicates, without which there is no error
PILOT, PILOT_DIFFERENCES = 16, 8  # replicates from which more are planned; differences add little to the error
GROWTH = 4  # at most so many times more replicates a round, as variances are only estimates
AVERAGED = "outputs", "batch_loss", "held_out_outputs"  # of a solution
FEWEST_PARTICLES, MOST_PARTICLES = 4096, 8192  # chosen unasked: below, a step costs the same; above, memory counts


class Term(NamedTuple):
    """A mean over replicates: of a solution, or of its difference from one with half the blocks, on one path."""

    particles: int
    depth: int
    difference: bool

    @property
    def cost(self) -> float:
        """Work of one replicate, in particles times blocks."""
        return self.particles * self.depth * (1.5 if self.difference else 1.0)


Plan = dict[Term, float]  # the weight of every mean
Counts = dict[Term, int]  # the replicates of every mean
Parts = dict[str, np.ndarray]  # what is averaged of a solution, by name


def default_particles(system: System) -> int:
    """Four times the least power of two that allows matched noise, within reason."""
    particles = FEWEST_PARTICLES // 4
    while system.matched and not system.matches(particles) and 4 * particles < MOST_PARTICLES:
        particles *= 2
    return 4 * particles


def ladder(depth: int | float) -> tuple[int, ...]:
    """Depths from the coarsest to `depth`, each twice the last; those to start with at infinite depth."""
    depths = [FIRST if depth == math.inf else int(depth)]
    while depths[0] % 2 == 0 and depths[0] >= 2 * COARSEST:
        depths.insert(0, depths[0] // 2)
    return tuple(depths)


class Extrapolation(NamedTuple):
    """The limit from f at a depth and differences d, d' to twice and four times that: f'' + before d + last d'.

    Exact for f + c L^-first + c' L^-second.
    """

    first: int | float
    second: int | float

    @property
    def ratios(self) -> tuple[float, float]:
        """By which either correction falls when depth doubles."""
        return 2.0**self.first, 2.0**self.second

    @property
    def before(self) -> float:
        """The weight of d, which only the second extrapolation has."""
        x, y = self.ratios
        return -1 / ((x - 1) * (y - 1))

    @property
    def last(self) -> float:
        """The weight of d'."""
        x, _ = self.ratios
        return 1 / (x - 1) - x * self.before


def plan_of(particles: int, depths: tuple[int, ...], extrapolation: Extrapolation | None) -> Plan:
    """The means that make up an estimate."""
    plan = {Term(particles, depths[0], False): 4 / 3, Term(particles // 4, depths[0], False): -1 / 3}
    plan |= {Term(particles, depth, True): 1.0 for depth in depths[1:]}
    if extrapolation:
        for depth, weight in zip(depths[-2:], (extrapolation.before, extrapolation.last), strict=True):
            plan[Term(particles, depth, True)] += weight
    return plan


class Estimate(NamedTuple):
    """Outputs of any shape as a weighted sum of means, with what they may be off by."""

    mean: np.ndarray
    errors: ErrorBars
    variances: dict[Term, np.ndarray]  # of one weighted replicate
    resolved: np.ndarray  # whether the discretisation error is more than noise

    @classmethod
    def of(cls, plan: Plan, samples: Mapping[Term, np.ndarray], extrapolation: Extrapolation | None) -> Estimate:
        """`samples` are `(R, ...)` a mean; degrees of freedom by Welch and Satterthwaite."""
        means = {term: found.mean(axis=0) for term, found in samples.items()}
        variances = {term: plan[term] ** 2 * found.var(axis=0, ddof=1) for term, found in samples.items()}
        parts = {term: variances[term] / len(found) for term, found in samples.items()}
        total = np.sum(list(parts.values()), axis=0)
        square = np.sum([part**2 / (len(samples[term]) - 1) for term, part in parts.items()], axis=0)
        freedom = np.where(square > 0, total**2 / np.where(square > 0, square, 1), math.inf)
        quantile = student.ppf(0.5 + CONFIDENCE / 2, np.minimum(freedom, 1e6))
        mean = np.sum([plan[term] * values for term, values in means.items()], axis=0)
        left, resolved = np.zeros_like(total), np.zeros_like(total, bool)
        if extrapolation:
            (x, y), share = extrapolation.ratios, abs(extrapolation.before)
            differences = [term for term in plan if term.difference]  # in order of depth
            corrections = [share * np.abs(x * means[b] - means[a]) for a, b in itertools.pairwise(differences)]
            # of the last, or what that of the depth before, of second order, lets expect
            left = np.max([correction / y**age for age, correction in enumerate(corrections[:-3:-1])], axis=0)
            before, last = (parts[term] / plan[term] ** 2 for term in differences[-2:])
            resolved = corrections[-1] > 2 * share * np.sqrt(x**2 * last + before)
        return cls(mean, ErrorBars(np.sqrt(total), left, quantile), variances, resolved)


class Replicates:
    """Solutions drawn on demand. Each is addressed by (seed, particles, depth, number): more of them, or deeper
    ones, leave the others as they were."""

    def __init__(self, system: System, task: Task, seed: int, particles: int, checkpoint: Checkpoint | None):
        matched = system.matches(particles // 4)  # the same for all, so that biases extrapolate
        self.system, self.task, self.seed, self.checkpoint = system._replace(matched=matched), task, seed, checkpoint
        self.record = checkpoint and checkpoint.record("replicates")
        self.found: dict[Term, list[Parts]] = {}
        self.seconds: dict[Term, float] = {}  # of a replicate, the least measured: the first are compiled
        self.diverged: dict[Term, int] = {}  # the number of the first that is not finite
        self._restore((self.record and self.record.read()) or {})
        self.written: Counts = {term: len(parts) for term, parts in self.found.items()}

    def write(self) -> None:
        """Add to the record what has been drawn since the last time."""
        new = {term: parts[self.written.get(term, 0) :] for term, parts in self.found.items()}
        if self.record is not None and any(new.values()):
            named = {
                f"{term.particles}/{term.depth}/{int(term.difference)}/{self.written.get(term, 0)}/{name}": np.stack(
                    [part[name] for part in parts]
                )
                for term, parts in new.items()
                for name in (parts[0] if parts else ())
            }
            self.record.append(named)
            self.written = {term: len(parts) for term, parts in self.found.items()}

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        for address, values in arrays.items():
            particles, depth, difference, first, name = address.split("/", 4)
            parts = self.found.setdefault(Term(int(particles), int(depth), difference == "1"), [])
            parts.extend({} for _ in range(int(first) + len(values) - len(parts)))
            for number, value in enumerate(values, int(first)):
                parts[number][name] = value
        for term in self.found:
            self._check(term)

    def draw(self, term: Term, capacity: int, count: int) -> None:
        """So many more replicates of a mean, all at once."""
        found, begun = self.found.setdefault(term, []), time.monotonic()

        def replicate(number: int) -> Parts:
            key = seed_key(self.seed)
            for address in (term.particles, term.depth, number):
                key = jax.random.fold_in(key, address)
            parts = self._solve(key, term.particles, term.depth, 1, capacity)
            if not term.difference:
                return parts
            coarse = self._solve(key, term.particles, term.depth // 2, 2, capacity)
            return {name: part - coarse[name] for name, part in parts.items()}

        found.extend(threads.each(replicate, range(len(found), len(found) + count), count))
        self._check(term, len(found) - count)
        self.seconds[term] = min((time.monotonic() - begun) / count, self.seconds.get(term, math.inf))
        if self.checkpoint is not None and self.checkpoint.is_due(sum(map(len, self.found.values())), count):
            self.write()

    def _solve(self, key: Key, particles: int, depth: int, refinement: int, capacity: int) -> Parts:
        with loop.progress_bar("", 0, False) as silent:
            options: dict[str, Any] = {"refinement": refinement, "capacity": capacity}
            recorded = self.system.solve(key, particles, depth, **options, progress=silent)
        results = recorded.results(full_batch=self.system.problem.data.full_batch)
        return {name: np.asarray(results[name], np.float64) for name in AVERAGED if name in results}

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

    def of(self, counts: Counts, name: str) -> dict[Term, np.ndarray]:
        """The first so many replicates `(R, ...)` of one part, a mean."""
        return {term: np.stack([parts[name] for parts in self.found[term][:count]]) for term, count in counts.items()}


class Result(NamedTuple):
    """Every quantity of a trajectory with its error bars."""

    values: Parts
    errors: dict[str, ErrorBars]
    loss: Estimate  # linearised at its value


def combine(replicates: Replicates, plan: Plan, counts: Counts, extrapolation: Extrapolation | None) -> Result:
    """All quantities from the first so many replicates of every mean."""
    task, values, errors = replicates.task, {}, {}
    for name in replicates.found[next(iter(plan))][0]:
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


class Attempt(NamedTuple):
    """What a round came to, at the step whose loss is known worst."""

    depths: tuple[int, ...]
    counts: Counts
    half_width: float  # of the loss, relative to it; infinite where either is not a finite number
    loss: float
    discretisation_error: float
    resolved: bool  # whether that is more than noise
    quantile: float
    variances: dict[Term, float]  # of one weighted replicate
    result: Result

    @classmethod
    def of(cls, depths: tuple[int, ...], counts: Counts, result: Result) -> Attempt:
        """The attempt that these replicates make."""
        relative = _relative(result.values["loss"], result.errors["loss"].half_width)
        worst, errors = int(np.argmax(relative)), result.errors["loss"]
        return cls(
            depths,
            counts,
            float(relative[worst]),
            float(result.values["loss"][worst]),
            float(errors.discretisation_error[worst]),
            bool(result.loss.resolved[worst]),
            float(errors.quantile[worst]),
            {term: float(variance[worst]) for term, variance in result.loss.variances.items()},
            result,
        )


class Round(NamedTuple):
    """What to draw for the next answer: replicates of every mean."""

    depths: tuple[int, ...]
    counts: Counts


def first_round(particles: int, depths: tuple[int, ...]) -> Round:
    """Enough of every mean to plan more."""
    return Round(depths, _pilot(plan_of(particles, depths, None)))


def next_draw(counts: Counts, have: Counts, *, answered: bool, late: bool, finite: bool) -> Term | None:
    """The mean to draw from next: two of each first, then up to these counts, the cheapest first. None where the round
    ends.

    Once it is late only the least that the first answer needs is drawn; once a replicate is not finite only the least
    that any answer needs.
    """
    for goal, go_on in ((FEWEST, not late or not answered), (math.inf, not late and finite)):
        short = [term for term, count in counts.items() if have[term] < min(goal, count)]
        if short:
            return min(short, key=lambda term: term.cost) if go_on else None
    return None


def next_round(
    attempt: Attempt, tolerance: float | None, *, seconds: Mapping[Term, float], left: float, deepest: int
) -> Round | None:
    """More replicates or, at infinite depth, another depth; None where the estimate ends: within its tolerance, for
    want of it, at the `deepest` depth, or because nothing more can be drawn in the seconds that are `left`.

    `seconds` of a replicate have been measured for some means; others take as long for their cost as the fastest of
    these. Where time is short, there are fewer replicates than the tolerance asks for, in proportion.
    """
    if tolerance is None or not tolerance < attempt.half_width < math.inf:
        return None
    depths, goal, error = attempt.depths, tolerance * attempt.loss, attempt.discretisation_error
    deeper = error > goal / 3 and attempt.resolved
    if deeper:
        depths = (*depths, 2 * depths[-1])
        if depths[-1] > deepest:
            return None
    allowed = 0.9 * max(goal - error, goal / 2) / attempt.quantile
    wanted = _allocate(attempt.variances, allowed, attempt.counts)
    if not deeper and all(count <= attempt.counts[term] for term, count in wanted.items()):
        wanted = {term: count + count // 2 for term, count in attempt.counts.items()}  # noise counted as discretisation

    particles = max(term.particles for term in attempt.counts)
    least = _pilot(plan_of(particles, depths, None)) if deeper else attempt.counts
    least = {term: max(count, attempt.counts.get(term, 0)) for term, count in least.items()}
    more = {term: max(0, wanted.get(term, 0) - count) for term, count in least.items()}
    pace = min((each / term.cost for term, each in seconds.items()), default=0.0)
    each = {term: seconds.get(term, pace * term.cost) for term in least}
    left -= sum(each[term] * (count - attempt.counts.get(term, 0)) for term, count in least.items())
    needed = sum(each[term] * count for term, count in more.items())
    share = min(1.0, max(left, 0.0) / needed) if needed else 1.0
    counts = {term: count + math.floor(share * more[term]) for term, count in least.items()}
    return None if left < 0 or counts == attempt.counts else Round(depths, counts)


def _pilot(plan: Plan) -> Counts:
    return {term: PILOT_DIFFERENCES if term.difference else PILOT for term in plan}


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

    With a tolerance, replicates and (at infinite depth) blocks are added until the 95 % half-width of every loss is
    at most `tolerance` times that loss, until a replicate diverges, until `budget` seconds have passed or would pass in
    the next round, or until memory or the last depth of the ladder ends it.
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
    wanted, attempt, finite = first_round(particles, depths), None, True
    with loop.progress_bar("limit with error bars", 0, progress) as bar:
        while True:
            capacity = _capacity(wanted.depths[-1], infinite)
            counts = _draw(replicates, wanted.counts, capacity, deadline, bar, answered=attempt is not None)
            if attempt is not None and min(counts.values()) < FEWEST:
                break  # time was over before the next depth had an answer
            finite = replicates.are_finite(counts)
            with np.errstate(over="ignore", invalid="ignore"):  # where training diverges
                plan = plan_of(particles, wanted.depths, extrapolation)
                latest = Attempt.of(wanted.depths, counts, combine(replicates, plan, counts, extrapolation))
            bar.set_postfix(half_width=f"{latest.half_width:.2g} of the loss", refresh=False)
            left = _left(deadline)
            if attempt is None or not finite or left > 0 or latest.half_width <= attempt.half_width:
                attempt = latest  # otherwise time was over before the last depth had its replicates
            seconds = {term: devices.agreed(each) for term, each in replicates.seconds.items()}
            following = next_round(attempt, tolerance, seconds=seconds, left=left, deepest=deepest)
            if following is None or not finite:
                break
            wanted = following
    replicates.write()
    arguments |= {
        "depths": list(attempt.depths),
        "replicates": {str(tuple(term)): count for term, count in attempt.counts.items()},
        "tolerance": tolerance,
        "budget": budget,
    }
    met = None if tolerance is None else finite and attempt.half_width <= tolerance
    return _trajectory(attempt.result, system.problem.data, task, seed, arguments, met)


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
    while True:
        have, late = replicates.have(counts), _left(deadline) <= 0
        term = next_draw(counts, have, answered=answered, late=late, finite=replicates.are_finite(have))
        if term is None:
            return have
        goal = FEWEST if have[term] < FEWEST else counts[term]
        count = min(threads.at_once(replicates.system.needed(term.particles, capacity)[0]), goal - have[term])
        replicates.draw(term, capacity, count)
        bar.update(count)


def _left(deadline: float) -> float:
    """Seconds, the same for all processes."""
    return devices.agreed(deadline - time.monotonic())


def _relative(loss: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """Half-widths of losses relative to these; 0 where a loss is known exactly, infinite where it is 0 or where either
    is not a finite number."""
    relative = np.divide(half_width, loss, out=np.where(half_width > 0, math.inf, 0.0), where=loss > 0)
    return np.where(np.isfinite(half_width) & np.isfinite(loss), relative, math.inf)


def _allocate(variances: dict[Term, float], standard_error: float, counts: Counts) -> Counts:
    """Replicates for this standard error of the sum at the least work, at most GROWTH times those so far."""
    root = {term: math.sqrt(variance / term.cost) for term, variance in variances.items()}
    total = sum(value * term.cost for term, value in root.items())
    wanted = {term: math.ceil(value * total / standard_error**2) for term, value in root.items()}
    return {term: min(count, GROWTH * counts[term]) for term, count in wanted.items()}


def _trajectory(
    result: Result, data: Data, task: Task, seed: int, arguments: dict[str, Any], met: bool | None
) -> Trajectory:
    """The estimate as users see it."""
    values, held_out = result.values, None
    if "held_out_outputs" in values:
        held_out = HeldOut(values["held_out_outputs"], values["held_out_loss"], np.array(data.evaluate_at))
    steps = np.arange(data.steps + 1) if data.full_batch else np.array(data.evaluate_at)
    return Trajectory(
        task,
        values["outputs"],
        values["loss"],
        (seed,),
        arguments,
        steps=steps,
        batch_loss=values["batch_loss"],
        held_out=held_out,
        errors=result.errors,
        tolerance_met=met,
    )
