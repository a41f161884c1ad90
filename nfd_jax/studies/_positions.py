"""Positions between the limits, mean losses and accuracies of a comparison, each with its standard error."""

from __future__ import annotations

import numpy as np
import xarray as xr

ROUNDINGS = 1000  # of outputs, below which two limits count as one
FOLLOWED = ("loss", "held_out_loss", "held_out_accuracy")  # along training


def summarise(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with positions, distances and mean losses added, each with its standard error over seeds.

    Adds `position (backward, depth, width)` (NaN where the limits are the same but for rounding, as with one block of
    one matrix), its extrapolation `infinite_position (backward, depth)` to n = infinity by
    a weighted fit of a + b/n (NaN for one width), `limit_position_error (closure, depth)`, `distance` and
    `infinite_distance`, differences in position from each closure in standard errors, signed, and the mean losses
    `limit_mean_loss` and `network_mean_loss`. Each has its standard error beside it, `..._error`: `limit_loss_error`.
    Where there are held-out samples, `limit_mean_held_out_loss`, `limit_mean_held_out_accuracy` and those of networks
    likewise.
    """
    limits = dataset.limit_outputs.isel(step=-1).where(dataset.limit_diverged_at < 0)
    networks = dataset.network_outputs.isel(step=-1).where(dataset.diverged_at < 0)
    ends, _ = _mean_and_error(limits, "limit_seed")
    origin = ends.sel(closure="decoupled", drop=True)
    line = ends.sel(closure="coupled", drop=True) - origin
    over = ["sample", "output"]
    length = (line**2).sum(over, skipna=False)
    rounding = ROUNDINGS * float(np.finfo(dataset.limit_outputs.dtype).eps)
    length = length.where(length > rounding**2 * (ends**2).max("closure").sum(over))

    def position(outputs: xr.DataArray) -> xr.DataArray:
        return ((outputs - origin) * line).sum(over, skipna=False) / length

    ours, our_error = _mean_and_error(position(networks), "seed")
    theirs, their_error = _mean_and_error(position(limits), "limit_seed")
    infinite, infinite_error = _intercept(1 / dataset.width, ours, our_error, "width")
    followed = _along_training(dataset, "limit", dataset.limit_diverged_at < 0, "limit_seed")
    followed |= _along_training(dataset, "network", dataset.diverged_at < 0, "seed")
    return dataset.assign(followed).assign(
        position=ours,
        position_error=our_error,
        infinite_position=infinite,
        infinite_position_error=infinite_error,
        limit_position_error=their_error,
        distance=(ours - theirs) / (our_error**2 + their_error**2) ** 0.5,
        infinite_distance=(infinite - theirs) / (infinite_error**2 + their_error**2) ** 0.5,
    )


def _along_training(dataset: xr.Dataset, kind: str, good: xr.DataArray, axis: str) -> dict[str, xr.DataArray]:
    """Means over the good members of what is followed, as far as it is there, and their standard errors."""
    found = {}
    for name in FOLLOWED:
        if f"{kind}_{name}" in dataset:
            mean, error = _mean_and_error(dataset[f"{kind}_{name}"].where(good), axis)
            found |= {f"{kind}_mean_{name}": mean, f"{kind}_{name}_error": error}
    return found


def _mean_and_error(values: xr.DataArray, axis: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean along an axis and its standard error, over the members that are not NaN; NaN where too few are left."""
    count = values.notnull().sum(axis)
    mean = values.sum(axis) / count.where(count > 0)
    variance = ((values - mean) ** 2).sum(axis) / (count - 1).where(count > 1)
    return mean, (variance / count) ** 0.5


def _intercept(x: xr.DataArray, y: xr.DataArray, error: xr.DataArray, axis: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Intercept of the weighted straight-line fit along an axis, and its error; NaN for fewer than two points."""
    weight = 1 / error**2
    zeroth, first, second = ((weight * x**power).sum(axis, skipna=False) for power in range(3))
    determinant = (zeroth * second - first**2).where(x.size > 1)
    against_one, against_x = ((weight * y * x**power).sum(axis, skipna=False) for power in range(2))
    return (second * against_one - first * against_x) / determinant, (second / determinant) ** 0.5
