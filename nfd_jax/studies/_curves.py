"""Curve: a quantity along sizes, with its power law: what studies draw as a line and compare with predictions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nfd_jax.statistics import Sampled, Slope, fit_power, stacked
from nfd_jax.studies._findings import Finding, Prediction
from nfd_jax.studies._panels import Line


@dataclass(frozen=True, eq=False)
class Curve:
    """Measured numbers, one a size."""

    sizes: Sequence[float] | np.ndarray
    values: Sampled

    @classmethod
    def of(cls, sizes: Sequence[float] | np.ndarray, parts: Sequence[Sampled]) -> Curve:
        """From independent numbers, one a size."""
        return cls(sizes, stacked(parts))

    @cached_property
    def law(self) -> Slope:
        """The power law through them; not a number where there are fewer than two."""
        if len(self.sizes) < 2:
            return Slope(math.nan, math.nan, self.values.freedom)
        return fit_power(self.sizes, self.values)

    def map(self, function: Callable[[np.ndarray], Any]) -> Curve:
        """A function of all numbers, an array of their shape."""
        return Curve(self.sizes, self.values.map(function))

    def line(self, label: str, predicted: float | None = None, *, fitted: bool = True) -> Line:
        """As a figure has it, with its law, and beside the predicted exponent."""
        return Line.of(label, self.sizes, self.values, self.law if fitted else None, predicted)

    def size(self, label: str, predicted: float | None = None) -> Line:
        """The line of absolute values, with the law of the numbers themselves: that of either sign."""
        return Line.of(label, self.sizes, self.values.map(abs), replace(self.law, sign=1), predicted)

    def findings(self, quantity: str, *predictions: tuple[str, Prediction]) -> list[Finding]:
        """The exponent beside what each source has for it."""
        return [Finding(quantity, source, predicted, self.law) for source, predicted in predictions]
