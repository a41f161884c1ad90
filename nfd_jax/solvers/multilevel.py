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
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from nfd_jax.solvers.trajectory import ErrorBars
from nfd_jax.statistics import CONFIDENCE

COARSEST, FIRST = 4, 16  # depths of a ladder: the least start, and the first end at infinity
FEWEST = 2  # replicates, without which there is no error
PILOT, PILOT_DIFFERENCES = 16, 8  # replicates from which more are planned; differences add little to the error
GROWTH = 4  # at most so many times more replicates a round, as variances are only estimates


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


class Result(NamedTuple):
    """Every quantity of a trajectory with its error bars."""

    values: Parts
    errors: dict[str, ErrorBars]
    loss: Estimate  # linearised at its value


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
