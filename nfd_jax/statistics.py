"""Numbers with their errors over seeds: averages and functions of them, and the exponents of power laws.

`fit_slope` takes a quantity measured on the same number of seeds at every size: the logarithm of its average over
seeds is fitted against that of the size by least squares. The error comes from leaving out one seed at a time
(jackknife): it holds whether a seed means the same random numbers at all sizes or fresh ones at each, and however
the spread changes with size.

`bootstrap` takes any function of groups of seeds, drawn anew with replacement, and `fit_power` the exponent of what it
gave, weighted by its errors: quantities that may be zero or negative, differences from a limit that is itself
uncertain, sizes with different numbers of seeds.

A slope over finite sizes also has corrections that no seed shows; compare with theory within the interval plus an
allowance for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from nfd_jax._checks import finite_array, finite_float, one_of

AVERAGES = ("rms", "log")
CONFIDENCE = 0.95  # of every interval, bar and band unless said otherwise


def quantile(freedom: int | float, confidence: float = CONFIDENCE) -> float:
    """Half the width of a two-sided interval of this `confidence` in standard errors, by Student's law with these
    degrees of freedom: three of four seeds.

        >>> round(quantile(3), 2), round(quantile(1e9), 2)
        (3.18, 1.96)
    """
    return float(scipy.stats.t.isf((1 - confidence) / 2, freedom))


def shown(value: float, half_width: float, form: str = "+.3g") -> str:
    """A `value` with its `half_width` as text, in the `form` of Python's formats; "none" where either is not finite:
    nothing is known then.

        >>> shown(-0.4641, 0.0093)
        '-0.464 ± 0.0093'
    """
    return f"{value:{form}} ± {half_width:.2g}" if math.isfinite(value) and math.isfinite(half_width) else "none"


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error over seeds.

    `freedom`: degrees of freedom of the standard error, seeds - 1. `confidence`: of `interval`.
    """

    value: float
    standard_error: float
    freedom: int | float
    confidence: float = CONFIDENCE

    def half_width(self, confidence: float | None = None) -> float:
        """Half the width of the interval, Student's quantile times the standard error."""
        level = self.confidence if confidence is None else confidence
        return quantile(self.freedom, level) * self.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end at `confidence`."""
        half = self.half_width()
        return self.value - half, self.value + half

    def agrees(self, expected: float, allowance: float = 0.0, confidence: float | None = None) -> bool:
        """Whether `expected` lies in the interval, widened by `allowance` for corrections of finite size."""
        return abs(self.value - expected) <= self.half_width(confidence) + allowance

    def __str__(self) -> str:
        return shown(self.value, self.half_width())


@dataclass(frozen=True)
class Slope(Estimate):
    """The exponent of a power law `sign * exp(intercept) * size ** value`, an `Estimate`."""

    intercept: float = 0.0
    sign: int = 1

    def __call__(self, size: float | int) -> float:
        """The fitted law at a size."""
        return self.sign * math.exp(self.intercept + self.value * math.log(size))

    def __str__(self) -> str:
        return shown(self.value, self.half_width(), "+.2f")


def fit_slope(
    sizes: Sequence[float | int] | np.ndarray,
    values: Sequence[Sequence[float | int]] | np.ndarray,
    *,
    average: str = "rms",
    confidence: float = CONFIDENCE,
) -> Slope:
    """The exponent of `values` as a power of `sizes`.

    **Arguments:**

    - `sizes`: `(sizes,)`, at least two different positive numbers, such as widths n or depths L.
    - `values`: `(seeds, sizes)`, positive, of at least two independent seeds.
    - `average`: over seeds. `"rms"`, the root mean square, suits signed quantities that scatter about zero, outputs at
      initialisation above all: the logarithm of one Gaussian number has a long lower tail. `"log"`, the geometric
      mean, suits quantities with a long upper tail; the interval is then Student's, exact for log-normal values.
    - `confidence`: of the interval, between 0 and 1.

    The bias of the logarithm of a mean over few seeds is removed to first order, by the same jackknife as the error.
    Raises ValueError or TypeError for values that are not positive and finite, and for shapes that do not fit.
    """
    one_of("average", average, AVERAGES)
    if not 0 < finite_float("confidence", confidence) < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    at, measured = finite_array("sizes", sizes, (1,)), finite_array("values", values, (2,))
    if measured.shape[1] != len(at):
        raise ValueError(f"values must have one column a size, got shape {measured.shape} and {len(at)} sizes")
    if len(measured) < 2:
        raise ValueError(f"values must have at least two seeds (rows) for a standard error, got {len(measured)}")
    for name, array in (("sizes", at), ("values", measured)):
        if np.any(array <= 0):
            raise ValueError(f"{name} must be positive to have a logarithm, got {array[array <= 0][0]:g}")
    if np.ptp(at) == 0:
        raise ValueError(f"sizes must be at least two different numbers, got {sizes!r}")
    centred = np.log(at) - np.log(at).mean()
    averaged, left_out = _averages(measured, average)
    slope, slopes = averaged @ centred / np.sum(centred**2), left_out @ centred / np.sum(centred**2)
    seeds = len(measured)
    value = seeds * slope - (seeds - 1) * slopes.mean()
    error = math.sqrt((seeds - 1) / seeds * np.sum((slopes - slopes.mean()) ** 2))
    intercept = averaged.mean() - value * np.log(at).mean()
    return Slope(float(value), error, seeds - 1, float(confidence), float(intercept))


def _averages(measured: np.ndarray, average: str) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the average at every size: over all seeds `(sizes,)`, and without each of them `(seeds, sizes)`."""
    others = len(measured) - 1
    if average == "log":
        logs = np.log(measured)
        return logs.mean(axis=0), (logs.sum(axis=0) - logs) / others
    scale = measured.max(axis=0)  # squares neither overflow nor vanish
    squares = (measured / scale) ** 2
    # summed anew without each seed: a difference of sums would lose all others where one seed outweighs them
    without = np.stack([np.delete(squares, seed, axis=0).mean(axis=0) for seed in range(len(squares))])
    return np.log(scale) + np.log(squares.mean(axis=0)) / 2, np.log(scale) + np.log(without) / 2


def _diverging() -> np.errstate:
    """What diverged is no accident here: numbers that are not finite go in, come out, and say so themselves."""
    return np.errstate(invalid="ignore", over="ignore")


@dataclass(frozen=True, eq=False)
class Sampled:
    """Numbers with resamples of them, from which any function of them gets its errors.

    `values (...)`; `draws (resamples, ...)`, of the standard deviation of `values`; `freedom` of that.
    """

    values: np.ndarray
    draws: np.ndarray
    freedom: int | float

    def map(self, function: Callable[[np.ndarray], Any]) -> Sampled:
        """A function of the numbers, applied to each resample alike."""
        with _diverging():
            draws = np.array([function(draw) for draw in self.draws])
            return Sampled(np.asarray(function(self.values)), draws, self.freedom)

    @property
    def errors(self) -> np.ndarray:
        """Standard errors, of the shape of the values."""
        with _diverging():
            return np.asarray(self.draws.std(axis=0, ddof=1))

    @property
    def half_widths(self) -> np.ndarray:
        """Half the widths of 95 % intervals."""
        return np.asarray(quantile(self.freedom) * self.errors)

    def estimate(self, *index: int) -> Estimate:
        """One of the numbers; the number itself where there is one."""
        return Estimate(float(self.values[index]), float(self.errors[index]), self.freedom)


def bootstrap(function: Callable[..., Any], *groups: np.ndarray, resamples: int = 400, seed: int = 0) -> Sampled:
    """A function of independent groups of seeds, `(seeds, ...)` each, with resamples.

    Every resample draws the seeds of every group with replacement. Deviations from the mean of the resamples are
    multiplied by sqrt(S / (S - 1)), S the smallest number of seeds above one, which drawing from S seeds instead of all
    leaves out. A group of one seed is a constant. Raises ValueError where no group has two seeds.
    """
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    counts = [len(array) for array in arrays if len(array) > 1]
    if not counts:
        raise ValueError("groups must have at least two seeds in one of them for a standard error")
    rng, smallest = np.random.default_rng(seed), min(counts)
    picked = ([array[rng.integers(len(array), size=len(array))] for array in arrays] for _ in range(resamples))
    with _diverging():
        values = np.asarray(function(*arrays), dtype=np.float64)
        draws = np.array([function(*chosen) for chosen in picked], dtype=np.float64)
        spread = (draws - draws.mean(axis=0)) * math.sqrt(smallest / (smallest - 1))
        return Sampled(values, values + spread, smallest - 1)


def normal(
    values: Any, errors: Any, *, freedom: int | float = math.inf, resamples: int = 400, seed: int = 1
) -> Sampled:
    """`values` with known standard `errors`, as if resampled: `resamples` draws by this `seed`, with the errors'
    degrees of `freedom`."""
    values, errors = np.asarray(values, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    noise = np.random.default_rng(seed).standard_normal((resamples, *values.shape))
    return Sampled(values, values + errors * noise, freedom)


def combined(function: Callable[..., Any], *parts: Sampled) -> Sampled:
    """A `function` of independent numbers, the `parts`, such as a difference. Resamples of each are put in another
    order, so that those made with one seed do not move together."""
    count = min(len(part.draws) for part in parts)
    orders = [np.random.default_rng(place).permutation(len(part.draws))[:count] for place, part in enumerate(parts)]
    rows = zip(*(part.draws[order] for part, order in zip(parts, orders, strict=True)), strict=True)
    with _diverging():
        draws = np.array([function(*row) for row in rows], dtype=np.float64)
        values = np.asarray(function(*(part.values for part in parts)), dtype=np.float64)
    return Sampled(values, draws, min(part.freedom for part in parts))


def stacked(parts: Sequence[Sampled]) -> Sampled:
    """Independent numbers, the `parts`, along a new first axis."""
    return combined(lambda *each: np.stack(each), *parts)


STEEPEST = 6.0  # exponents are searched between minus and plus this


def fit_power(sizes: Sequence[float | int] | np.ndarray, measured: Sampled, *, confidence: float = CONFIDENCE) -> Slope:
    """The exponent p of `a * size ** p`, least squares weighted by the errors of the values `(sizes,)` of
    `measured`, with an interval of this `confidence`.

    Values may be of either sign: one that is zero within its error tells no more than that. The error is that of the
    fit to every resample with the same weights, infinite where the best exponent, or that of more than one resample in
    forty, is as far as the search goes. Values that are not finite, as where something diverged, have no exponent: it
    and its error are NaN. Raises ValueError for fewer than two sizes.
    """
    at = finite_array("sizes", sizes, (1,))
    if np.any(at <= 0) or len(set(at.tolist())) < 2:
        raise ValueError(f"sizes must be at least two different positive numbers, got {sizes!r}")
    if measured.values.shape != at.shape:
        raise ValueError(f"values must have the shape {at.shape} of sizes, got {measured.values.shape}")
    if not (np.isfinite(measured.values).all() and np.isfinite(measured.draws).all()):
        return Slope(math.nan, math.nan, measured.freedom, confidence, math.nan)
    weights = 1 / np.maximum(measured.errors, 1e-12 * np.abs(measured.values).max() + 1e-300) ** 2
    middle = math.exp(float(np.average(np.log(at), weights=weights * measured.values**2 + 1e-300)))
    powers = np.linspace(-STEEPEST, STEEPEST, 2401)
    basis = (at / middle) ** powers[:, None]
    norm = basis**2 @ weights

    def best(drawn: np.ndarray) -> tuple[float, float]:
        along = basis @ (weights * drawn)
        gain = along**2 / norm  # what the best amplitude at every power takes off the squares
        top = int(np.argmax(gain))
        power = powers[top]
        if 0 < top < len(powers) - 1:
            low, centre, high = gain[top - 1 : top + 2]
            curvature = low - 2 * centre + high
            power += 0.0 if curvature == 0 else 0.5 * (low - high) / curvature * (powers[1] - powers[0])
        return float(power), float(along[top] / norm[top])

    power, amplitude = best(measured.values)
    resampled = np.array([best(draw)[0] for draw in measured.draws])
    error = float(np.std(resampled, ddof=1))
    if abs(power) >= STEEPEST or np.mean(np.abs(resampled) >= STEEPEST) > 1 / 40:  # at the end of the search
        error = math.inf
    intercept = math.log(max(abs(amplitude), 1e-300)) - power * math.log(middle)
    return Slope(power, error, measured.freedom, confidence, intercept, -1 if amplitude < 0 else 1)
