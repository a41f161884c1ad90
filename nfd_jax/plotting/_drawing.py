"""What all figures share: colours and marks, bands and bars, fitted laws, axes of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from nfd_jax.statistics import Slope

STYLE = {
    "tied": {"color": "#0b5394", "marker": "o", "linestyle": "-"},
    "untied": {"color": "#cc5500", "marker": "s", "linestyle": "--"},
}
SIZES = {"n": "width n", "L": "depth L"}  # axes
MARKERS, DASHES = "osD^vP*X<>", ("-", "--", "-.", ":")
DARKEST, LIGHTEST = 0.05, 0.78  # of the colour map: its end is too light for lines on white
ORDERED, SIGNED = "viridis", "RdBu_r"  # maps of fields from 0, and about 0


def current(axes: Axes | None) -> Axes:
    """These axes, or the current ones of pyplot."""
    if axes is not None:
        return axes
    from matplotlib import pyplot  # which chooses how figures are shown

    return pyplot.gca()


def shades(count: int) -> list[Any]:
    """Colours in order, from dark to light."""
    return [colormaps[ORDERED](place) for place in np.linspace(DARKEST, LIGHTEST, max(count, 1))]


def marks(number: int) -> dict[str, Any]:
    """Marker and dashes of one of several lines."""
    return {"marker": MARKERS[number % len(MARKERS)], "linestyle": DASHES[number % len(DASHES)]}


def band(axes: Axes, x: Any, low: Any, high: Any, color: Any, zorder: float = 2, alpha: float = 0.2) -> None:
    """A filled interval along x; nothing where it is not known."""
    if np.isfinite(low).any():
        axes.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0, zorder=zorder)


def fitted(axes: Axes, slope: Slope, ends: Sequence[float], *, positive: bool = False, **line: Any) -> None:
    """A fitted power law between the least and the largest of some sizes, where its exponent is known; where it is to
    be `positive`, for a logarithmic axis, nothing below zero."""
    if not np.isfinite(slope.standard_error):
        return
    fine = np.geomspace(min(ends), max(ends), 50)
    law = np.array([slope(size) for size in fine])
    axes.plot(fine, np.where(law > 0, law, np.nan) if positive else law, **line)


def sizes_axis(axes: Axes, sizes: Sequence[float], base: float = 10) -> None:
    """A logarithmic axis of x with these sizes as its ticks."""
    axes.set_xscale("log", base=base)
    axes.set_xticks(list(sizes), [f"{size:g}" for size in sizes])
    axes.xaxis.minorticks_off()
