"""The limit with error bars: many solutions combined into one estimate, to a tolerance where one is given.

An estimate is a weighted sum of independent means (multilevel Monte Carlo over depths, Giles 2008):

- solutions on the coarsest grid with n and with n / 4 particles, weights 4/3 and -1/3: the bias of order 1/n goes;
- differences between solutions with 2l and l blocks on one Brownian path, l doubling, weight 1: cheap to average,
  since their variance falls with l, although finer grids cost more;
- at infinite depth the last two differences have other weights, those of Richardson extrapolation, twice, of an error
  in the powers of 1/L that `expansion` says: 2/3 and 8/3 for 1/L and 1/L^2. The second extrapolation's correction, all
  of it, counts as the discretisation error. Whether two depths follow one path changes no mean, only variances;
- of long training, all these at four times a resolution, and differences of solutions on the coarsest grid from those
  at twice their resolution on the same noise, down to it. What is left is bounded by three times the last of these
  differences, or what that of the resolution before lets expect: a difference alone understates it.

Replicates are shared out so that the standard error falls fastest for the work (Neyman). Outputs are averaged first
and losses taken from their mean, which has no bias of the size of one solution's variance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy

from nfd_jax.solvers.trajectory import ErrorBars
from nfd_jax.statistics import CONFIDENCE

COARSEST, FIRST = 4, 16  # depths of a ladder: the least start, and the first end at infinity
FEWEST = 2  # replicates, without which there is no error
PILOT, PILOT_DIFFERENCES = 16, 8  # replicates from which more are planned; differences add little to the error
RESOLUTIONS = 3  # at first, each half of the one before: two differences, of which the first checks the second
DROPPED = 3.0  # last differences that may be left; they fall by 2 at least, which would leave one
FINEST = 1e-3  # resolution, below which the exact law costs no more
GROWTH = 4  # at most so many times more replicates a round, as variances are only estimates


class Term(NamedTuple):
    """A mean over replicates: of a solution, or of its difference from one with half the blocks, on one path, or from
    one at twice the resolution, on the same noise."""

    particles: int
    depth: int
    difference: bool  # of depths
    resolution: float = 0.0
    refined: bool = False  # a difference of resolutions

    @property
    def cost(self) -> float:
        """Work of one replicate, in particles times blocks; by resolution as measured."""
        work = self.particles * self.depth * (1.5 if self.difference else 1.0)
        work *= 1.7 if self.refined else 1.0
        return work / self.resolution**0.5 if self.resolution else work


Plan = dict[Term, float]  # the weight of every mean
Counts = dict[Term, int]  # the replicates of every mean
Parts = dict[str, np.ndarray]  # what is averaged of a solution, by name


def ladder(depth: int | float) -> tuple[int, ...]:
    """Depths from the coarsest to `depth`, each twice the last; those to start with at infinite depth."""
    depths = [FIRST if depth == math.inf else int(depth)]
    while depths[0] % 2 == 0 and depths[0] >= 2 * COARSEST:
        depths.insert(0, depths[0] // 2)
    return tuple(depths)


def resolutions_to(finest: float) -> tuple[float, ...]:
    """Resolutions down to this one, each half of the last; of the exact law there is one."""
    return tuple(finest * 2.0**power for power in reversed(range(RESOLUTIONS))) if finest else (0.0,)


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


def plan_of(
    particles: int,
    depths: tuple[int, ...],
    extrapolation: Extrapolation | None,
    resolutions: tuple[float, ...] = (0.0,),
) -> Plan:
    """The means that make up an estimate."""
    first, *finer = resolutions
    plan = {Term(particles, depths[0], False, first): 4 / 3, Term(particles // 4, depths[0], False, first): -1 / 3}
    plan |= {Term(particles, depth, True, first): 1.0 for depth in depths[1:]}
    if extrapolation:
        for depth, weight in zip(depths[-2:], (extrapolation.before, extrapolation.last), strict=True):
            plan[Term(particles, depth, True, first)] += weight
    return plan | {Term(particles, depths[0], False, resolution, True): 1.0 for resolution in finer}


class Estimate(NamedTuple):
    """Outputs of any shape as a weighted sum of means, with what they may be off by."""

    mean: np.ndarray
    errors: ErrorBars
    variances: dict[Term, np.ndarray]  # of one weighted replicate
    resolved: np.ndarray  # whether the discretisation error is more than noise
    coarse: np.ndarray  # whether that of the resolution is

    @classmethod
    def of(cls, plan: Plan, samples: Mapping[Term, np.ndarray], extrapolation: Extrapolation | None) -> Estimate:
        """`samples` are `(R, ...)` a mean; degrees of freedom by Welch and Satterthwaite."""
        means = {term: found.mean(axis=0) for term, found in samples.items()}
        variances = {term: plan[term] ** 2 * found.var(axis=0, ddof=1) for term, found in samples.items()}
        parts = {term: variances[term] / len(found) for term, found in samples.items()}
        total = np.sum(list(parts.values()), axis=0)
        square = np.sum([part**2 / (len(samples[term]) - 1) for term, part in parts.items()], axis=0)
        freedom = np.where(square > 0, total**2 / np.where(square > 0, square, 1), math.inf)
        quantile = scipy.stats.t.ppf(0.5 + CONFIDENCE / 2, np.minimum(freedom, 1e6))
        mean = np.sum([plan[term] * values for term, values in means.items()], axis=0)
        depth = _of_depth(plan, means, parts, extrapolation) if extrapolation else Bias.none(total)
        resolution = _of_resolution(means, parts) if any(term.refined for term in plan) else Bias.none(total)
        bars = ErrorBars(np.sqrt(total), depth.bound, resolution.bound, quantile)
        return cls(mean, bars, variances, depth.resolved, resolution.resolved)


class Bias(NamedTuple):
    """A bound on what a mean is off by however many replicates it has, and whether that bound is more than noise."""

    bound: np.ndarray
    resolved: np.ndarray

    @classmethod
    def none(cls, like: np.ndarray) -> Bias:
        """Where there is none."""
        return cls(np.zeros_like(like), np.zeros_like(like, bool))


def _of_depth(
    plan: Plan, means: Mapping[Term, np.ndarray], variances: Mapping[Term, np.ndarray], extrapolation: Extrapolation
) -> Bias:
    """What extrapolation to infinite depth leaves. `variances` are those of weighted means."""
    (x, y), share = extrapolation.ratios, abs(extrapolation.before)
    differences = [term for term in plan if term.difference]  # in order of depth
    corrections = [share * np.abs(x * means[b] - means[a]) for a, b in itertools.pairwise(differences)]
    # of the last, or what that of the depth before, of second order, lets expect
    left = np.max([correction / y**age for age, correction in enumerate(corrections[:-3:-1])], axis=0)
    before, last = (variances[term] / plan[term] ** 2 for term in differences[-2:])
    return Bias(left, corrections[-1] > 2 * share * np.sqrt(x**2 * last + before))


def _of_resolution(means: Mapping[Term, np.ndarray], variances: Mapping[Term, np.ndarray]) -> Bias:
    """What the finest resolution leaves, by the last difference or half of that before."""
    before, last = [term for term in means if term.refined][-2:]
    left = DROPPED * np.maximum(np.abs(means[last]), np.abs(means[before]) / 2)
    return Bias(left, np.abs(means[last]) > 2 * np.sqrt(variances[last]))


class Result(NamedTuple):
    """Every quantity of a trajectory with its error bars."""

    values: Parts
    errors: dict[str, ErrorBars]
    loss: Estimate  # linearised at its value


class Attempt(NamedTuple):
    """What a round came to, at the step whose loss is known worst."""

    depths: tuple[int, ...]
    resolutions: tuple[float, ...]
    counts: Counts
    half_width: float  # of the loss, relative to it; infinite where either is not a finite number
    loss: float
    discretisation_error: float
    resolved: bool  # whether that is more than noise
    resolution_error: float
    coarse: bool  # whether that is
    quantile: float
    variances: dict[Term, float]  # of one weighted replicate
    result: Result

    @classmethod
    def of(cls, wanted: Round, counts: Counts, result: Result) -> Attempt:
        """The attempt at a round that these replicates make."""
        relative = _relative(result.values["loss"], result.errors["loss"].half_width)
        worst, errors = int(np.argmax(relative)), result.errors["loss"]
        return cls(
            wanted.depths,
            wanted.resolutions,
            counts,
            float(relative[worst]),
            float(result.values["loss"][worst]),
            float(errors.discretisation_error[worst]),
            bool(result.loss.resolved[worst]),
            float(errors.resolution_error[worst]),
            bool(result.loss.coarse[worst]),
            float(errors.quantile[worst]),
            {term: float(variance[worst]) for term, variance in result.loss.variances.items()},
            result,
        )


class Round(NamedTuple):
    """What to draw for the next answer: replicates of every mean."""

    depths: tuple[int, ...]
    resolutions: tuple[float, ...]
    counts: Counts


def first_round(particles: int, depths: tuple[int, ...], resolutions: tuple[float, ...] = (0.0,)) -> Round:
    """Enough of every mean to plan more."""
    return Round(depths, resolutions, _pilot(plan_of(particles, depths, None, resolutions)))


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
    """More replicates, at infinite depth another depth, and of long training another resolution; None where the
    estimate ends: within its tolerance, for want of it, at the `deepest` depth or the finest resolution, or because
    nothing more can be drawn in the seconds that are `left`.

    `seconds` of a replicate have been measured for some means; others take as long for their cost as the fastest of
    these. Where time is short, there are fewer replicates than the tolerance asks for, in proportion.
    """
    if tolerance is None or not tolerance < attempt.half_width < math.inf:
        return None
    depths, resolutions, goal = attempt.depths, attempt.resolutions, tolerance * attempt.loss
    error = attempt.discretisation_error + attempt.resolution_error
    if attempt.discretisation_error > goal / 3 and attempt.resolved:
        depths = (*depths, 2 * depths[-1])
    if attempt.resolution_error > goal / 3 and attempt.coarse:
        resolutions = (*resolutions, resolutions[-1] / 2)
    if depths[-1] > deepest or 0 < resolutions[-1] < FINEST:
        return None
    more_terms = depths != attempt.depths or resolutions != attempt.resolutions
    allowed = 0.9 * max(goal - error, goal / 2) / attempt.quantile
    wanted = _allocate(attempt.variances, allowed, attempt.counts)
    if not more_terms and all(count <= attempt.counts[term] for term, count in wanted.items()):
        wanted = {term: count + count // 2 for term, count in attempt.counts.items()}  # noise counted as a bias

    particles = max(term.particles for term in attempt.counts)
    least = _pilot(plan_of(particles, depths, None, resolutions)) if more_terms else attempt.counts
    least = {term: max(count, attempt.counts.get(term, 0)) for term, count in least.items()}
    more = {term: max(0, wanted.get(term, 0) - count) for term, count in least.items()}
    pace = min((each / term.cost for term, each in seconds.items()), default=0.0)
    each = {term: seconds.get(term, pace * term.cost) for term in least}
    left -= sum(each[term] * (count - attempt.counts.get(term, 0)) for term, count in least.items())
    needed = sum(each[term] * count for term, count in more.items())
    share = min(1.0, max(left, 0.0) / needed) if needed else 1.0
    counts = {term: count + math.floor(share * more[term]) for term, count in least.items()}
    return None if left < 0 or counts == attempt.counts else Round(depths, resolutions, counts)


def _pilot(plan: Plan) -> Counts:
    return {term: PILOT_DIFFERENCES if term.difference or term.refined else PILOT for term in plan}


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
