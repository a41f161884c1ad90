"""Figures: the one module that imports matplotlib. Readable in greyscale: kinds differ in marker and line style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CLOSURE_OF = {"tied": "coupled", "untied": "decoupled"}
STYLE = {
    "tied": {"color": "#0b5394", "marker": "o", "linestyle": "-"},
    "untied": {"color": "#cc5500", "marker": "s", "linestyle": "--"},
}


def comparison(dataset: xr.Dataset) -> Figure:
    """Top: loss along training at the widest networks beside both limits. Bottom: position against width."""
    depths = dataset.depth.values
    figure = Figure(figsize=(3.6 * max(len(depths), 2), 6.4), layout="constrained")
    axes = np.atleast_2d(figure.subplots(2, len(depths), squeeze=False, sharey="row"))
    for column, depth in enumerate(depths):
        at = dataset.sel(depth=depth)
        _loss_curves(axes[0, column], at)
        axes[0, column].set_title(f"L = {depth}")
        _positions(axes[1, column], at)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("position of final outputs")
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].legend(fontsize=8)
    figure.suptitle(
        f"Limits and networks: {dataset.attrs.get('title', '')}\n"
        f"mean over {dataset.sizes['seed']} networks, bars and bands: 2 standard errors"
    )
    return figure


def _loss_curves(axis: Axes, at: xr.Dataset) -> None:
    widest = at.isel(width=-1)
    steps = at.step.values
    for backward, closure in CLOSURE_OF.items():
        style = STYLE[backward]
        limit = at.sel(closure=closure)
        mean, error = limit.limit_mean_loss.values, limit.limit_loss_error.values
        axis.plot(steps, mean, color=style["color"], linestyle=style["linestyle"], label=f"{closure} limit")
        axis.fill_between(steps, mean - 2 * error, mean + 2 * error, color=style["color"], alpha=0.15, linewidth=0)
        network = widest.sel(backward=backward)
        axis.errorbar(
            steps,
            network.network_mean_loss.values,
            2 * network.network_loss_error.values,
            color=style["color"],
            marker=style["marker"],
            markerfacecolor="white",
            linestyle="none",
            capsize=2,
            label=f"{backward}, n = {widest.width.item()}",
        )
    axis.set_xlabel("training step")
    axis.grid(alpha=0.3)


def _positions(axis: Axes, at: xr.Dataset) -> None:
    """Positions against 1/n, where the bias of finite width is a straight line that ends at the limit."""
    inverse = 1 / at.width.values
    for backward, closure in CLOSURE_OF.items():
        style = STYLE[backward]
        goal = float(closure == "coupled")
        error = 2 * at.sel(closure=closure).limit_position_error.item()
        axis.axhline(goal, color=style["color"], linestyle=style["linestyle"], linewidth=1)
        axis.axhspan(goal - error, goal + error, color=style["color"], alpha=0.15, linewidth=0)
        axis.annotate(f"{closure} limit", (0, goal), (4, 3), ("axes fraction", "data"), "offset points", fontsize=8)
        cells = at.sel(backward=backward)
        shared = {"color": style["color"], "marker": style["marker"], "linestyle": "none", "capsize": 3}
        axis.errorbar(
            inverse, cells.position.values, 2 * cells.position_error.values, label=f"{backward} networks", **shared
        )
        fit, fit_error = cells.infinite_position.item(), cells.infinite_position_error.item()
        if np.isfinite(fit):
            axis.errorbar(0, fit, 2 * fit_error, markerfacecolor="white", label=f"{backward}, fit a + b/n", **shared)
    axis.set_xlim(1.1 * inverse.max(), -0.06 * inverse.max())
    axis.set_xticks([*inverse, 0], [*(str(width) for width in at.width.values), "∞"])
    axis.set_xlabel("width n (axis linear in 1/n)")
    axis.grid(alpha=0.3)


MARKERS, DASHES = "osD^vP*X<>", ("-", "--", "-.", ":")
AXES = {"n": "width n", "L": "depth L"}


def coordinates(check: Any) -> Figure:
    """A `CoordinateCheck`: every quantity against width and depth, both logarithmic, with the fitted power laws.

    Points are root mean squares over seeds. The legend gives measured slopes and what is expected; filled markers fail.
    """
    quantities = list(dict.fromkeys(row.quantity for row in check.rows))
    axes = list(dict.fromkeys(row.axis for row in check.rows))
    size = (6.4 * len(axes), 3.2 * len(quantities))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(quantities), len(axes), squeeze=False)
    for line, quantity in enumerate(quantities):
        for column, along in enumerate(axes):
            rows = [row for row in check.rows if (row.quantity, row.axis) == (quantity, along)]
            _power_laws(grid[line, column], rows)
            grid[line, column].set_xlabel(AXES[along])
        grid[line, 0].set_ylabel(quantity)
    figure.suptitle(
        f"{check.title}\n{'passed' if check.passed else f'{len(check.failures)} of {len(check.rows)} fail'}"
    )
    return figure


def _power_laws(axis: Axes, rows: list[Any]) -> None:
    for number, row in enumerate(rows):
        shade = str(0.75 * number / max(len(rows), 2))
        label = row.name
        if row.slope:
            label += f": {row.slope.value:+.2f}"
            axis.plot(
                row.sizes, [row.slope(size) for size in row.sizes], color=shade, linestyle=DASHES[number % len(DASHES)]
            )
        if row.expected is not None:
            label += f" (expected {row.expectation})"
        middle = np.sqrt(np.mean(row.values**2, axis=0))
        usable = np.isfinite(middle) & (middle > 0)
        axis.plot(
            np.array(row.sizes)[usable],
            middle[usable],
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            color=shade,
            markerfacecolor=shade if row.verdict == "fail" else "white",
            label=label,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(rows[0].sizes, [str(size) for size in rows[0].sizes])
    axis.xaxis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def save(figure: Figure, path: Path) -> Path:
    """Write the figure at print resolution."""
    figure.savefig(path, dpi=150)
    return path
