"""What a study concludes: predictions, measurements beside them, and the verdict that the interval allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from nfd_jax._text import in_columns
from nfd_jax.statistics import Estimate, Slope, shown
from nfd_jax.verdict import Verdict


@dataclass(frozen=True)
class Prediction:
    """The values that a claim allows, from `low` to `high`; `text` as a table prints them."""

    low: float
    high: float
    text: str


def about(value: float | int, allowance: float | int) -> Prediction:
    """`value`, give or take the `allowance`: what finite sizes may change in it.

    >>> about(-0.5, 0.1).text
    '-0.5 ± 0.1'
    """
    return Prediction(value - allowance, value + allowance, f"{value:+.3g} ± {allowance:g}")


def at_least(value: float | int) -> Prediction:
    """No less than `value`."""
    return Prediction(value, math.inf, f">= {value:g}")


def at_most(value: float | int) -> Prediction:
    """No more than `value`."""
    return Prediction(-math.inf, value, f"<= {value:g}")


@dataclass(frozen=True)
class Finding:
    """One measured quantity beside its prediction.

    Args:
        quantity: What was measured, in the symbols of the theory.
        source: Who predicts it, and where.
        predicted: The values that the prediction allows, its allowance for finite sizes included. It is chosen from
            the competing predictions before anything is measured: half the distance between them, or less.
        measured: With its standard error.
    """

    quantity: str
    source: str
    predicted: Prediction
    measured: Estimate

    @property
    def verdict(self) -> Verdict:
        """Supported where the whole 95 % interval lies within the prediction, contradicted where none of it does, and
        undecided where the interval allows both."""
        low, high = self.measured.interval
        if not (math.isfinite(low) and math.isfinite(high)):
            return Verdict.UNDECIDED
        if self.predicted.low <= low and high <= self.predicted.high:
            return Verdict.SUPPORTED
        if high < self.predicted.low or low > self.predicted.high:
            return Verdict.CONTRADICTED
        return Verdict.UNDECIDED


def falling(law: Slope) -> Estimate:
    """The exponent of a law that a claim has positive: nothing is said about one of the other sign."""
    return law if law.sign > 0 else Estimate(math.nan, math.nan, law.freedom)


HEAD = ("quantity", "source", "predicted", "measured (95 %)", "verdict")


def table(findings: Sequence[Finding]) -> str:
    """Findings as text, one line each."""
    return in_columns([HEAD, *map(line, findings)])


def line(finding: Finding) -> tuple[str, ...]:
    """The columns of `HEAD`."""
    measured = finding.measured
    number = shown(measured.value, measured.half_width())
    return finding.quantity, finding.source, finding.predicted.text, number, finding.verdict.value


def to_dataset(findings: Sequence[Finding]) -> xr.Dataset:
    """Findings as a labelled record along an axis `finding`."""

    def column(values: list) -> tuple[str, np.ndarray]:
        return "finding", np.array(values)

    intervals = [finding.measured.interval for finding in findings]
    return xr.Dataset(
        {
            "quantity": column([finding.quantity for finding in findings]),
            "source": column([finding.source for finding in findings]),
            "prediction": column([finding.predicted.text for finding in findings]),
            "predicted_low": column([finding.predicted.low for finding in findings]),
            "predicted_high": column([finding.predicted.high for finding in findings]),
            "measured": column([finding.measured.value for finding in findings]),
            "standard_error": column([finding.measured.standard_error for finding in findings]),
            "low": column([low for low, _ in intervals]),
            "high": column([high for _, high in intervals]),
            "verdict": column([finding.verdict.value for finding in findings]),
        }
    )
