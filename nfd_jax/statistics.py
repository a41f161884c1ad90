"""Exponents from measurements: the slope of a power law with its interval over seeds.

A quantity measured on S independent seeds at several sizes is averaged over seeds at every size, and the logarithm of
the average fitted against that of the size by least squares. The error comes from leaving out one seed at a time
(jackknife): it holds whether a seed means the same random numbers at all sizes or fresh ones at each, and however
the spread changes with size. A slope over finite sizes also has corrections that no seed shows; compare with theory
within the interval plus an allowance for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from nfd_jax._errors import finite_array, finite_float, one_of

AVERAGES = ("rms", "log")


@dataclass(frozen=True)
class Slope:
    """The exponent of a power law `exp(intercept) * size ** value`, with its standard error over seeds.

    `freedom`: degrees of freedom of the standard error, seeds - 1. `confidence`: of `interval`.
    """

    value: float
    standard_error: float
    freedom: int
    intercept: float
    confidence: float = 0.95

    def half_width(self, confidence: float | None = None) -> float:
        """Half the width of the interval, Student's quantile times the standard error."""
        level = self.confidence if confidence is None else confidence
        return float(student.isf((1 - level) / 2, self.freedom)) * self.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high end at `confidence`."""
        half = self.half_width()
        return self.value - half, self.value + half

    def agrees(self, expected: float, allowance: float = 0.0, confidence: float | None = None) -> bool:
        """Whether `expected` lies in the interval, widened by `allowance` for corrections of finite size."""
        return abs(self.value - expected) <= self.half_width(confidence) + allowance

    def __call__(self, size: float | int) -> float:
        """The fitted law at a size."""
        return math.exp(self.intercept + self.value * math.log(size))

    def __str__(self) -> str:
        return f"{self.value:+.2f} ± {self.half_width():.2f}"


def fit_slope(
    sizes: Sequence[float | int] | np.ndarray,
    values: Sequence[Sequence[float | int]] | np.ndarray,
    *,
    average: str = "rms",
    confidence: float = 0.95,
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
    return Slope(float(value), error, seeds - 1, float(intercept), float(confidence))


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
