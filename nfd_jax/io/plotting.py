"""Figures of comparisons, studies and tools, of the parts that `nfd_jax.plotting` draws. Readable in greyscale: kinds
differ in marker and line style."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nfd_jax import plotting
from nfd_jax.plotting._drawing import DASHES, MARKERS, SIZES, STYLE, band, fitted, sizes_axis
from nfd_jax.plotting._positions import half_widths
from nfd_jax.solvers.limit import CLOSURE_OF
from nfd_jax.verdict import Verdict

LINES = {"tied": 2.0, "untied": 1.1}  # widths of the lines of limits, where dashes say what they are evaluated on
FOLLOWED = {"loss": "step", "held_out_loss": "held_out_step"}  # losses of a comparison, with their axes
DECADE = 10.0
POINTS = 25  # of curves of networks, at most


def comparison(dataset: xr.Dataset) -> Figure:
    """Top: loss along training at the widest networks beside both limits, dashed and filled on held-out samples.
    Bottom: position against width."""
    depths = dataset.depth.values
    figure = Figure(figsize=(3.6 * max(len(depths), 2), 6.4), layout="constrained")
    axes = np.atleast_2d(figure.subplots(2, len(depths), squeeze=False, sharey="row"))
    for column, depth in enumerate(depths):
        at = dataset.sel(depth=depth)
        _loss_curves(axes[0, column], at)
        axes[0, column].set_title(f"L = {depth}")
        plotting.positions(at, axes[1, column])
        axes[1, column].set_ylabel("")
        axes[1, column].get_legend().remove()
    _scale(axes[0, 0], dataset)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("position of final outputs")
    axes[0, 0].legend(fontsize=8)
    axes[1, 0].legend(fontsize=8)
    figure.suptitle(
        f"Limits and networks: {dataset.attrs.get('title', '')}\n"
        f"mean over {dataset.sizes['seed']} networks, bars and bands: 95 % intervals"
    )
    return figure


def _scale(axis: Axes, dataset: xr.Dataset) -> None:
    """A logarithmic one where mean losses span more than a decade, and as far as they do: the low end of an interval
    may be below 0."""
    means = [dataset[f"{kind}_mean_{name}"] for name in _followed(dataset) for kind in ("limit", "network")]
    losses = np.concatenate([each.values.ravel() for each in means])
    losses = losses[np.isfinite(losses) & (losses > 0)]
    if len(losses) and losses.max() > DECADE * losses.min():
        axis.set_yscale("log")
        axis.set_ylim(losses.min() / 1.5, losses.max() * 1.5)


def _followed(dataset: xr.Dataset) -> list[str]:
    """The losses that are there, and the axes that they are along."""
    return [name for name in FOLLOWED if f"limit_mean_{name}" in dataset]


def _loss_curves(axis: Axes, at: xr.Dataset) -> None:
    several = len(_followed(at)) > 1
    for name in _followed(at):
        for backward, closure in CLOSURE_OF.items():
            style = dict(STYLE[backward])
            if several:  # lines tell samples apart, and limits by their widths too
                style |= {"linestyle": "--" if name == "held_out_loss" else "-", "linewidth": LINES[backward]}
            _limit_curve(axis, at.sel(closure=closure), name, style)
            _network_points(axis, at.isel(width=-1).sel(backward=backward), name, style)
    if several:
        label = f"{at.attrs['held_out_samples']} held-out samples"
        axis.plot([], [], color="0.35", linestyle="--", marker="o", markersize=4, label=label)
    axis.set_xlabel("training step")
    axis.grid(alpha=0.3)


def _limit_curve(axis: Axes, limit: xr.Dataset, name: str, style: dict[str, Any]) -> None:
    """The mean of a loss over solutions, with its band; in front of networks."""
    steps, mean = limit[FOLLOWED[name]].values, limit[f"limit_mean_{name}"].values
    bars = half_widths(limit, f"limit_{name}")
    label = f"{limit.closure.item()} limit" if name == "loss" else None
    line = {key: value for key, value in style.items() if key != "marker"}
    axis.plot(steps, mean, **line, zorder=4, label=label)
    band(axis, steps, mean - bars, mean + bars, style["color"], zorder=3, alpha=0.15)


def _network_points(axis: Axes, network: xr.Dataset, name: str, style: dict[str, Any]) -> None:
    """The mean of a loss over networks, with bars; of many steps at a few, both kinds in turn."""
    steps = network[FOLLOWED[name]].values
    shown, many = np.arange(len(steps)), len(steps) > POINTS // 2
    if many:
        shown = np.unique(np.linspace(0, len(steps) - 1, POINTS).round().astype(int))[
            int(network.backward == "untied") :: 2
        ]
    axis.errorbar(
        steps[shown],
        network[f"network_mean_{name}"].values[shown],
        half_widths(network, f"network_{name}")[shown],
        color=style["color"],
        marker=style["marker"],
        markersize=4 if many else 6,
        markerfacecolor="white" if name == "loss" else style["color"],
        linestyle="none",
        capsize=2,
        label=f"{network.backward.item()}, n = {network.width.item()}" if name == "loss" else None,
    )


LEGEND, SHORT = 4, 24  # entries that have room beside data; characters of labels that stand side by side


def coordinates(check: Any) -> Figure:
    """A `CoordinateCheck`: every quantity against width and depth, both logarithmic, with the fitted power laws.

    Points are root mean squares over seeds. The legend gives measured slopes and what is expected; filled markers fail,
    half filled ones are undecided.
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
            grid[line, column].set_xlabel(SIZES[along])
        grid[line, 0].set_ylabel(quantity)
    found = f"{len(check.failures)} fail, {len(check.undecided)} undecided, of {len(check.rows)}"
    figure.suptitle(f"{check.title}\n{'passed' if check.passed else found}")
    return figure


def _power_laws(axis: Axes, rows: list[Any]) -> None:
    for number, row in enumerate(rows):
        shade = str(0.75 * number / max(len(rows), 2))
        label = row.name
        if row.slope:
            label += f": {row.slope.value:+.2f}"
            fitted(axis, row.slope, row.sizes, color=shade, linestyle=DASHES[number % len(DASHES)])
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
            markerfacecolor=shade if row.verdict in (Verdict.CONTRADICTED, Verdict.UNDECIDED) else "white",
            markerfacecoloralt="white",
            fillstyle="left" if row.verdict is Verdict.UNDECIDED else "full",
            label=label,
        )
    sizes_axis(axis, rows[0].sizes, base=2)
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def stable_rates(found: Any) -> Figure:
    """A `StableRate`, as `nfd.plotting.stable_rates` draws it, with what it concludes."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    plotting.stable_rates(found, figure.subplots())
    promised = "" if found.verdict is None else f"\npromised {found.expected:+g}: {found.verdict}"
    figure.suptitle(f"{found.title}{promised}; prediction {found.prediction}", fontsize=10)
    return figure


def panels(title: str, described: Sequence[Any], note: str = "") -> Figure:
    """The panels of a study (`nfd_jax.studies._panels`), at most three a row; `note` stands below the title."""
    columns = 2 if len(described) == 4 else min(3, len(described))
    rows = -(-len(described) // columns)
    below = 0.2 * max(map(_below, described))  # inches
    figure = Figure(figsize=(max(5.2 * columns, 7.0), (4.0 + below) * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, described, strict=False):
        (_map if hasattr(panel, "borders") else _panel)(axis, panel)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
    for axis in axes[len(described) :]:
        axis.set_visible(False)
    lines = [line for text in (title, note) for line in textwrap.wrap(text, 40 * columns + 20)]
    figure.suptitle("\n".join(lines), fontsize=11)
    return figure


def _panel(axis: Axes, panel: Any) -> None:
    axis.set_xscale("log" if panel.log_x else "linear")
    axis.set_yscale("log" if panel.log_y else "linear")
    for number, level in enumerate(panel.levels):
        axis.axhline(level.value, color="0.35", linestyle=DASHES[(number + 1) % len(DASHES)], label=level.label)
        axis.axhspan(
            level.value - level.half_width, level.value + level.half_width, color="0.5", alpha=0.2, linewidth=0
        )
    for number, line in enumerate(panel.lines):
        _line(axis, line, number, len(panel.lines), panel.log_y)
    sizes = sorted({float(x) for line in panel.lines if not line.curve for x in line.x})
    if panel.log_x and len(sizes) <= 9:
        sizes_axis(axis, sizes)
    axis.grid(alpha=0.3)
    if _below(panel):
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=_columns(panel))
    elif axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _labels(panel: Any) -> list[str]:
    return [each.label for each in (*panel.levels, *panel.lines) if not each.label.startswith("_")]


def _columns(panel: Any) -> int:
    """Of a legend below the axes."""
    return 2 if max(map(len, _labels(panel))) < SHORT and not any(line.slope for line in panel.lines) else 1


def _below(panel: Any) -> int:
    """Lines of a legend that stands below its axes: one of many entries, which would hide the data."""
    if hasattr(panel, "borders") or len(_labels(panel)) <= LEGEND:
        return 0
    return -(-len(_labels(panel)) // _columns(panel))


def _line(axis: Axes, line: Any, number: int, count: int, log_y: bool) -> None:
    """Points with bars, the fitted law through them, and the predicted one through the last of them."""
    shade, dash = str(0.7 * number / max(count, 2)), DASHES[number % len(DASHES)]
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    bars = None if line.bars is None else np.asarray(line.bars, float)
    usable = np.isfinite(y) & ((y > 0) | (not log_y))
    x, y, bars = x[usable], y[usable], None if bars is None else bars[usable]
    label, joined = line.label, line.joined and line.slope is None
    if line.slope is not None:
        label += f": {line.slope}"
        fitted(axis, line.slope, line.x, positive=log_y, color=shade, linestyle=dash)
    if line.predicted is not None and len(x):
        label += f" (predicted {line.predicted:+g}, dotted)"
        ends = np.array([x.min(), x.max()])
        axis.plot(ends, y[-1] * (ends / x[-1]) ** line.predicted, color=shade, linestyle=":", linewidth=1)
    axis.errorbar(
        x,
        y,
        bars,
        color=shade,
        linestyle=dash if joined else "none",
        marker="" if line.curve else MARKERS[number % len(MARKERS)],
        markerfacecolor="white" if number % 2 else shade,
        markersize=5,
        capsize=2,
        label=label,
    )


def _map(axis: Axes, panel: Any) -> None:
    """Fields shaded by value, each with its text, and the theory's borders across."""
    x, y = np.asarray(panel.x, float), np.asarray(panel.y, float)
    image = axis.pcolormesh(x, y, panel.values, shading="nearest", cmap="Greys", alpha=0.6)
    axis.figure.colorbar(image, ax=axis, shrink=0.8)
    for row, height in enumerate(y):
        for column, place in enumerate(x):
            text = axis.text(place, height, panel.text[row][column], ha="center", va="center", fontsize=8)
            text.set(bbox={"facecolor": "white", "linewidth": 0, "pad": 1}, zorder=3)  # above borders
    for number, (label, xs, ys) in enumerate(panel.borders):
        axis.plot(xs, ys, color="black", linestyle=DASHES[number % len(DASHES)], linewidth=2, label=label)
    axis.set_xticks(x)
    axis.set_yticks(y)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=max(1, len(panel.borders)))


def save(figure: Figure, path: Path) -> Path:
    """Write the figure at print resolution, laid out by the first file of it for all others."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(path, dpi=150)
    return path
