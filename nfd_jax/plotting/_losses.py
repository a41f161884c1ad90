"""Losses and accuracies along training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from nfd_jax._checks import one_of
from nfd_jax.dynamics.snapshot import FOLLOWS
from nfd_jax.plotting._drawing import STYLE, band, current
from nfd_jax.plotting._runs import Run, average_of, dataset_of, described

LABELS = {
    "loss": "loss",
    "batch_loss": "loss of the batch",
    "held_out_loss": "held-out loss",
    "accuracy": "accuracy",
    "held_out_accuracy": "held-out accuracy",
}


def loss(
    run: Run,
    axes: Axes | None = None,
    *,
    name: str = "loss",
    average: str = "mean",
    points: bool = False,
    label: str | None = None,
    **line: Any,
) -> Axes:
    """A loss or accuracy along training: the average over members with its 95 % band, or a limit with its error bars.

    **Arguments:**

    - `run`: a `Trajectory`, or its dataset. An ensemble is averaged over the members that did not diverge, of which the
      label counts the others; an estimate of a limit has the interval that it brings along; one solution has none.
    - `name`: `"loss"`, `"batch_loss"`, `"held_out_loss"`, `"accuracy"` or `"held_out_accuracy"`, `(steps,)` or
      `(seeds, steps)` each; held-out ones are dashed.
    - `average`: over members, `"mean"`, or `"log"`, the geometric mean on a logarithmic axis.
    - `points`: points with error bars instead of a line with a band.
    - `label`, `line`: of matplotlib's `plot`; by default the kind of the run, in the colour that kind has everywhere.

    Returns the axes. ValueError where the run lacks what is asked for, or all its members diverged.
    """
    one_of("name", name, FOLLOWS)
    dataset = dataset_of(run, name)
    found = average_of(dataset, name, average)
    kind, style = described(dataset)
    lost = int((dataset.diverged_at.values >= 0).sum()) if "seed" in dataset[name].dims else 0
    text = (kind if label is None else label) + (f" ({lost} of {dataset.sizes['seed']} diverged)" if lost else "")
    follows = FOLLOWS[name]
    steps = dataset[follows].values if follows in dataset.coords else np.arange(dataset.sizes[follows])
    look: dict[str, Any] = {"color": STYLE[style]["color"], "linestyle": "--" if name.startswith("held_out") else "-"}
    look |= {"zorder": 4 if kind.endswith("limit") else 3} | line
    axes = current(axes)
    if points:
        ends = np.nan_to_num([found.middle - found.low, found.high - found.middle])
        look = {"marker": STYLE[style]["marker"], "markerfacecolor": "white", "capsize": 2} | look
        look["linestyle"] = "none"
        axes.errorbar(steps, found.middle, ends, label=text, **look)
    else:
        axes.plot(steps, found.middle, label=text, **look)
        band(axes, steps, found.low, found.high, look["color"], look["zorder"] - 1)
    if average == "log":
        axes.set_yscale("log")
    axes.set(xlabel="training step", ylabel=LABELS[name])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes
