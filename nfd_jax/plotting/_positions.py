"""Where networks stand between the decoupled limit and the coupled one."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from nfd_jax.plotting._drawing import STYLE, current
from nfd_jax.solvers.limit import CLOSURE_OF
from nfd_jax.statistics import quantile


def half_widths(at: xr.Dataset, name: str) -> np.ndarray:
    """Half the widths of the 95 % intervals of a number of the comparison, from its standard error: Student's, with the
    degrees of freedom of the members that did not diverge. A fit over widths has those of the width that has fewest."""
    of_limits = name.startswith("limit")
    marks, seeds = (at.limit_diverged_at, "limit_seed") if of_limits else (at.diverged_at, "seed")
    freedom = (marks < 0).sum(seeds) - 1
    freedom = freedom.min("width") if name.startswith("infinite") else freedom
    quantiles = xr.apply_ufunc(quantile, freedom.where(freedom > 0), vectorize=True)
    return (quantiles * at[f"{name}_error"]).values


def positions(comparison: xr.Dataset, axes: Axes | None = None) -> Axes:
    """Positions of networks against 1/n, where the bias of finite width is a straight line that ends at the limit.

    `comparison`: the dataset of `studies.compare.compare`, or what `nfd-jax compare` wrote, at one depth
    (`comparison.sel(depth=4)`): `position (backward, width)` of final outputs along the line from the decoupled limit,
    0, to the coupled one, 1, with `position_error`; of each limit `limit_position_error (closure,)`; and
    `infinite_position (backward,)`, where a straight line through the widths ends, drawn white. Bars and bands are 95 %
    intervals.

    Returns the axes. ValueError for other datasets, or several depths.
    """
    if not isinstance(comparison, xr.Dataset) or "position" not in comparison:
        raise ValueError("positions takes the dataset of nfd_jax.studies.compare.compare, which has a position")
    if "depth" in comparison.dims:
        if comparison.sizes["depth"] > 1:
            depths = comparison.depth.values.tolist()
            raise ValueError(f"this comparison has the depths {depths}; choose one: comparison.sel(depth={depths[0]})")
        comparison = comparison.isel(depth=0)
    axes, inverse = current(axes), 1 / comparison.width.values
    for backward, closure in CLOSURE_OF.items():
        style = STYLE[backward]
        goal = float(closure == "coupled")
        error = half_widths(comparison.sel(closure=closure), "limit_position").item()
        axes.axhline(goal, color=style["color"], linestyle=style["linestyle"], linewidth=1)
        axes.axhspan(goal - error, goal + error, color=style["color"], alpha=0.15, linewidth=0)
        axes.annotate(f"{closure} limit", (0, goal), (4, 5), ("axes fraction", "data"), "offset points", fontsize=8)
        cells = comparison.sel(backward=backward)
        shared: dict[str, Any] = {k: style[k] for k in ("color", "marker")} | {"linestyle": "none", "capsize": 3}
        bars = half_widths(cells, "position")
        axes.errorbar(inverse, cells.position.values, bars, label=f"{backward} networks", **shared)
        fit, bar = cells.infinite_position.item(), half_widths(cells, "infinite_position").item()
        if np.isfinite(fit):
            axes.errorbar(0, fit, bar, markerfacecolor="white", label=f"{backward}, fit a + b/n", **shared)
    axes.set_xlim(1.1 * inverse.max(), -0.06 * inverse.max())
    axes.set_xticks([*inverse, 0], [*(str(width) for width in comparison.width.values), "∞"])
    axes.set(xlabel="width n (axis linear in 1/n)", ylabel="position of final outputs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes
