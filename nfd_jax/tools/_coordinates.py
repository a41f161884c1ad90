"""What a coordinate check concludes: lines of slopes beside their expectations, and the verdict of every interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfd_jax._text import in_columns
from nfd_jax.statistics import Slope
from nfd_jax.verdict import Verdict

SIZE, CHANGE, UPDATE = "size at start", "change", "effective update"
PROPAGATING = "propagating update"
HALF = 0.5  # exponents of the table differ by multiples of it: what a line that passes rules out


@dataclass(frozen=True, eq=False)
class Coordinate:
    """One line of a check: a quantity, its values `(seeds, sizes)` along widths ("n") or depths ("L"), their slope.

    `expected`: the range of the table, mostly one number twice: where contributions with different exponents add up,
    the slope of their sum lies between the smallest and the largest; empty where the values must be exactly 0. None
    where nothing is expected. `slope`: None where values are zero or not finite. `allowance`: for corrections of finite
    size, how far outside the range the slope may be; `margin`: half the interval around the measured one.
    """

    quantity: str
    name: str
    axis: str
    sizes: tuple[int, ...]
    values: np.ndarray
    expected: tuple[float, ...] | None
    slope: Slope | None
    allowance: float
    margin: float

    @property
    def tolerance(self) -> float:
        """How far outside the expected range a slope may be measured."""
        return self.allowance + self.margin

    @property
    def expectation(self) -> str:
        """What is expected, as text."""
        if not self.expected:
            return "-" if self.expected is None else "zero"
        return " to ".join(f"{end:+.2f}" for end in sorted(set(self.expected)))

    @property
    def verdict(self) -> Verdict | None:
        """How the table stands; None where nothing is expected.

        The interval decides: it contradicts where it misses the expected range widened by the allowance, and supports
        where it meets that and excludes every slope that is half a power or more outside the range. What must be 0 is
        supported where every value is.
        """
        if self.expected is None or (self.quantity == SIZE and not self.values.any()):  # a readout that starts at zero
            return None
        if not self.expected:
            return Verdict.CONTRADICTED if self.values.any() else Verdict.SUPPORTED
        if self.slope is None:
            return Verdict.CONTRADICTED
        low, high = self.expected
        outside = max(low - self.slope.value, self.slope.value - high, 0.0)
        if outside > self.tolerance:
            return Verdict.CONTRADICTED
        return Verdict.SUPPORTED if outside + self.margin < HALF else Verdict.UNDECIDED


@dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """The lines of a check: whether it `passed`, `table()` of them as text (also by `print`), `plot(path)`."""

    title: str
    rows: tuple[Coordinate, ...]
    allowance: float

    @property
    def passed(self) -> bool:
        """Whether no line fails and none is undecided."""
        return not self.failures and not self.undecided

    @property
    def failures(self) -> tuple[Coordinate, ...]:
        """The lines that fail."""
        return tuple(row for row in self.rows if row.verdict is Verdict.CONTRADICTED)

    @property
    def undecided(self) -> tuple[Coordinate, ...]:
        """The lines whose intervals are too wide to tell the expected slope from one that is half a power off."""
        return tuple(row for row in self.rows if row.verdict is Verdict.UNDECIDED)

    @property
    def conclusion(self) -> str:
        """The verdict on all lines, as text."""
        failed, undecided = len(self.failures), len(self.undecided)
        parts = [f"FAILED: {failed} of {len(self.rows)} lines"] if failed else []
        if undecided:
            parts.append(f"UNDECIDED: {undecided} of {len(self.rows)} lines; more seeds or a wider span decide")
        return "; ".join(parts) or "passed"

    def table(self) -> str:
        """Every line with its expected slope, the measured one with its 95 % interval, and the verdict."""
        lines = [("quantity", "of", "axis", "expected", "measured (95 %)", "tolerance", "verdict")]
        for row in self.rows:
            measured = str(row.slope) if row.slope else "zero" if not row.values.any() else "diverged, or zero in part"
            tolerance = "-" if row.verdict is None else f"{row.tolerance:.2f}"
            lines.append((row.quantity, row.name, row.axis, row.expectation, measured, tolerance, row.verdict or "-"))
        return "\n".join([self.title, in_columns(lines), self.conclusion])

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path) -> Path:
        """Write all lines with their fits as a figure."""
        from nfd_jax.io import plotting  # a slow import, only needed here

        return plotting.save(plotting.coordinates(self), Path(path))
