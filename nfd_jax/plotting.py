"""Figures: the one module that imports matplotlib. Readable in greyscale: kinds differ in marker and line style."""

from __future__ import annotations

from pathlib import Path

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
    widths = at.width.values
    for backward, closure in CLOSURE_OF.items():
        style = STYLE[backward]
        goal = float(closure == "coupled")
        error = 2 * at.sel(closure=closure).limit_position_error.item()
        axis.axhline(goal, color=style["color"], linestyle=style["linestyle"], linewidth=1)
        axis.axhspan(goal - error, goal + error, color=style["color"], alpha=0.15, linewidth=0)
        axis.annotate(
            f"{closure} limit", (1, goal), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8
        )
        network = at.sel(backward=backward)
        axis.errorbar(
            widths,
            network.position.values,
            2 * network.position_error.values,
            color=style["color"],
            marker=style["marker"],
            linestyle="none",
            capsize=3,
            label=f"{backward} networks",
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.set_xlabel("width n")
    axis.grid(alpha=0.3)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure at print resolution."""
    figure.savefig(path, dpi=150)
    return path
