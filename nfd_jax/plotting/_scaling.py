"""Against rates, widths and depths: transfer of the learning rate, and convergence with its power law."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from nfd_jax._checks import one_of
from nfd_jax.dynamics.snapshot import FOLLOWS
from nfd_jax.plotting._drawing import MARKERS, SIZES, current, fitted, marks, shades, sizes_axis
from nfd_jax.plotting._runs import Run, averaged, dataset_of, good, place
from nfd_jax.statistics import CONFIDENCE, Sampled, Slope, bootstrap, combined, fit_power, normal, quantile

SWEPT = ("width", "depth")
SYMBOLS = {"width": "n", "depth": "L"}
OF_GAPS = {"loss": "loss − limit's", "held_out_loss": "held-out loss − limit's", "outputs": "rms of f − limit's"}
TOP = 0.97  # of the axes: where what diverged is marked
TICKS = 6  # rates at most


def transfer(
    sweep: xr.Dataset,
    axes: Axes | None = None,
    *,
    name: str = "loss",
    step: int = -1,
    **line: Any,
) -> Axes:
    """Loss against learning rate, one line a width or depth, with 95 % bars over seeds and a star at the best rate.

    **Arguments:**

    - `sweep`: the dataset of `nfd.sweep`, with axes `width`, `depth`, `learning_rate`, `seed` and that of steps, and
      more than one of widths or depths, but not of both: `sweep.sel(width=[256])` picks.
    - `name`: `"loss"`, or `"held_out_loss"`, at `step`, counted from the last where negative.
    - `line`: of matplotlib's `errorbar`.

    A rate at which any seed diverged has no point, and a cross at the top instead; means beyond twice the loss before
    training lie outside the axes. Returns the axes. ValueError for other datasets.
    """
    if not isinstance(sweep, xr.Dataset) or not {*SWEPT, "learning_rate", "seed"} <= set(sweep.dims):
        raise ValueError(f"transfer takes the dataset of nfd.sweep, with axes {SWEPT}, learning_rate and seed")
    if name not in sweep:
        raise ValueError(f"there is no {name} in this sweep, which has {', '.join(sorted(map(str, sweep.data_vars)))}")
    several = [axis for axis in SWEPT if sweep.sizes[axis] > 1]
    if len(several) > 1:
        raise ValueError("this sweep has several widths and depths; choose one of either: sweep.sel(width=[256])")
    along = several[0] if several else "width"
    values = sweep[name].squeeze([axis for axis in SWEPT if axis != along])
    steps = FOLLOWS.get(name, "step")
    values, start = place(values, steps, step).astype(np.float64), float(place(values, steps, 0).mean())
    rates, axes, least = sweep.learning_rate.values, current(axes), start
    for number, (size, color) in enumerate(zip(sweep[along].values, shades(sweep.sizes[along]), strict=True)):
        members = values.sel({along: size}).transpose("seed", "learning_rate").values
        finite = np.isfinite(members).all(axis=0)
        found = averaged(members[:, finite])
        look: dict[str, Any] = {"color": color, **marks(number), "markersize": 5, "capsize": 2} | line
        ends = np.nan_to_num([found.middle - found.low, found.high - found.middle])
        axes.errorbar(rates[finite], found.middle, ends, label=f"{SYMBOLS[along]} = {size}", **look)
        if finite.any():
            best = int(np.argmin(found.middle))
            least = min(least, found.middle[best])
            axes.plot(rates[finite][best], found.middle[best], "*", color=color, markersize=13, zorder=5)
        lost = rates[~finite]
        axes.plot(lost, np.full(len(lost), TOP), "x", color=color, transform=axes.get_xaxis_transform())
    sizes_axis(axes, rates[:: -(-len(rates) // TICKS)])
    axes.set(xlabel="learning rate η", ylabel=name.replace("_", " "), ylim=(least / 2, 2 * start))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes


def gaps(runs: Mapping[int, Run], limit: Run, *, name: str = "loss", step: int = -1) -> Sampled:
    """What `convergence` draws: distances of networks from a limit, `(sizes,)`, with resamples over seeds of both.

    **Arguments:**

    - `runs`: ensembles by their width or depth, of seeds of their own: one seed at two widths has numbers in common.
    - `limit`: an ensemble of solutions, an estimate with error bars, or one solution, taken as exact.
    - `name`: `"loss"` or `"held_out_loss"`, the mean over networks less the limit's, with its sign; or `"outputs"`, the
      root mean square over networks, samples and outputs of f - f_limit.
    - `step`: of those recorded, counted from the last where negative.

    Members that diverged are left out. ValueError or TypeError where a run lacks what is asked for.
    """
    one_of("name", name, OF_GAPS)
    if not isinstance(runs, Mapping) or len(runs) < 2:
        raise ValueError(
            f"runs must be at least two by their width or depth, such as {{64: run, 128: run}}; got {runs!r}"
        )

    steps = FOLLOWS.get(name, "step")  # outputs follow the losses

    def at_step(run: Run) -> tuple[xr.Dataset, np.ndarray]:
        dataset = dataset_of(run, name)
        values = place(good(dataset, name), steps, step)
        return dataset, values.values.astype(np.float64)

    def distance(members: np.ndarray, end: np.ndarray) -> np.ndarray:
        """From the limit, of moments (2, ...) of members."""
        if name == "outputs":
            return np.sqrt(np.mean(members[1] - 2 * members[0] * end + end**2))
        return members[0] - end

    def moments(members: np.ndarray) -> np.ndarray:
        return np.stack([members.mean(axis=0), (members**2).mean(axis=0)])

    dataset, end = at_step(limit)
    if "seed" in dataset[name].dims and len(end) > 1:
        goal = bootstrap(lambda members: members.mean(axis=0), end)
    else:
        end = end[0] if "seed" in dataset[name].dims else end
        bars = dataset.get(f"{name}_half_width")
        goal = normal(end, 0 * end if bars is None else place(bars, steps, step).values / quantile(math.inf))
    networks = []
    for size, run in runs.items():
        found, members = at_step(run)
        if "seed" not in found[name].dims or len(members) < 2:
            raise ValueError(f"the run of size {size} must have at least two members that did not diverge: give seeds")
        networks.append(bootstrap(moments, members))
    return combined(lambda end, *each: np.stack([distance(one, end) for one in each]), goal, *networks)


def power_law(
    sizes: Sequence[float] | np.ndarray,
    measured: Sampled,
    axes: Axes | None = None,
    *,
    size: str = "n",
    label: str | None = None,
    slope: Slope | None = None,
    **line: Any,
) -> Axes:
    """The size of numbers against widths or depths on logarithmic axes, with 95 % bars, and the power law through them.

    **Arguments:**

    - `sizes`: `(sizes,)`; `measured`: `(sizes,)`, as `nfd.statistics` gives them. Their sign is not drawn: where an
      interval holds zero, its bar goes down to the edge.
    - `size`: `"n"` or `"L"`, what sizes are.
    - `slope`: the fit, by default `nfd.statistics.fit_power`; the label has its exponent with the 95 % interval.
    - `label`, `line`: of matplotlib's `errorbar`.

    Returns the axes. ValueError for fewer than two sizes.
    """
    one_of("size", size, SIZES)
    at = np.asarray(sizes, dtype=np.float64)
    slope = fit_power(at, measured) if slope is None else slope
    axes = current(axes)
    middle, half = np.abs(measured.values), measured.half_widths
    look: dict[str, Any] = {"color": shades(1)[0], "marker": "o", "linestyle": "none", "capsize": 3} | line
    with_law = f"{size}^p, p = {slope}" if np.isfinite(slope.standard_error) else f"{size}^p, p not known"
    text = with_law if label is None else f"{label}: {with_law}"
    axes.set_yscale("log", nonpositive="clip")
    axes.errorbar(at, middle, half, label=text, **look)
    fitted(axes, replace(slope, sign=1), at.tolist(), color=look["color"], linewidth=1)
    sizes_axis(axes, at.tolist())
    axes.set_xlabel(SIZES[size])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title=f"fit, {100 * CONFIDENCE:.0f} % interval", title_fontsize=8)
    return axes


def convergence(
    runs: Mapping[int, Run],
    limit: Run,
    axes: Axes | None = None,
    *,
    name: str = "loss",
    step: int = -1,
    size: str = "n",
    label: str | None = None,
    **line: Any,
) -> Axes:
    """How networks approach a limit: distances against n or L with 95 % bars, and the fitted power law.

    Arguments are those of `gaps` and `power_law`, which give the numbers and draw them. Returns the axes.
    """
    axes = power_law(list(runs), gaps(runs, limit, name=name, step=step), axes, size=size, label=label, **line)
    axes.set_ylabel(OF_GAPS[name])
    return axes


def stable_rates(found: Any, axes: Axes | None = None) -> Axes:
    """What `nfd.stable_rate` found: the largest stable rate by every rule against the width, both logarithmic.

    `found`: an `nfd.StableRate`, of rates `(seeds,)` a width and rule. Points are geometric means over seeds with 95 %
    intervals; the line is the law by the primary rule, and the white point what it predicted at the last width.

    Returns the axes. TypeError for anything else.
    """
    if not hasattr(found, "tested") or not hasattr(found, "slope_by"):
        raise TypeError(f"stable_rates takes what nfd.stable_rate returned, got {found!r}")
    axes, every = current(axes), (*found.found, found.tested)
    widths = [each.width for each in every]
    for number, rule in enumerate(found.tested.rates):
        middle, low, high = zip(*(averaged(each.rates[rule], "log") for each in every), strict=True)
        style: dict[str, Any] = {
            "color": shades(len(found.tested.rates))[number],
            "marker": MARKERS[number],
            "capsize": 3,
        }
        slope, ends = found.slope_by(rule), np.array([np.subtract(middle, low), np.subtract(high, middle)])
        axes.errorbar(widths, middle, ends, label=f"{rule}: {slope}", linestyle="none", **style)
        if number == 0:
            fitted(axes, slope, widths, color=style["color"], linewidth=1)
            at, (least, most) = np.exp(found.predicted.value), np.exp(found.predicted.interval)
            bars = [[at - least], [most - at]]
            white: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "none", "label": "predicted"}
            axes.errorbar(widths[-1] * 1.03, at, bars, **(style | white))
    sizes_axis(axes, widths, base=2)
    axes.set_yscale("log")
    axes.set(xlabel="width n", ylabel="largest rate that ...")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="rule, and exponent in n")
    return axes
