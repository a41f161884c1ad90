"""What a study wants drawn, as data; `nfd_jax.io.plotting` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nfd_jax.statistics import Sampled, Slope


@dataclass(frozen=True, eq=False)
class Line:
    """Points with 95 % bars, `x` and `y` of one length.

    `slope`: a fitted power law, drawn through the points and printed in the legend. `predicted`: an exponent, drawn as
    a dotted guide through the last point. `joined`: connect the points where there is no fit. `curve`: a known
    function, without points. A label that starts with an underscore stays out of the legend.
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    bars: Sequence[float] | np.ndarray | None = None
    slope: Slope | None = None
    predicted: float | None = None
    joined: bool = True
    curve: bool = False

    @classmethod
    def of(
        cls,
        label: str,
        x: Sequence[float] | np.ndarray,
        y: Sampled,
        slope: Slope | None = None,
        predicted: float | None = None,
    ) -> Line:
        """From resampled numbers."""
        return cls(label, x, y.values, y.half_widths, slope, predicted)


@dataclass(frozen=True, eq=False)
class Level:
    """A value with its 95 % half-width, or the allowance of a prediction, as a horizontal line with a band."""

    label: str
    value: float
    half_width: float = 0.0


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes, logarithmic unless said otherwise."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    log_x: bool = True
    log_y: bool = True


@dataclass(frozen=True, eq=False)
class Map:
    """Values on a grid, `values (y, x)`, with text in every field and lines across, each `(label, xs, ys)`."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    y: Sequence[float]
    values: np.ndarray
    text: Sequence[Sequence[str]]
    borders: Sequence[tuple[str, Sequence[float], Sequence[float]]] = ()
