"""A run as a dataset: its arrays by name, members that did not diverge, averages with intervals."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from nfd_jax._checks import one_of
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.statistics import quantile

Run = Trajectory | xr.Dataset
AVERAGES = ("mean", "log")
LAYERS = ("layer", "matrix", "block")  # axes along the depth of a network
WAYS_OUT = {
    "feature_kernel": "observe=nfd.observables.kernels",
    "gradient_kernel": "observe=nfd.observables.kernels",
    "neuron_features": "observe=nfd.observables.neurons",
    "neuron_gradients": "observe=nfd.observables.neurons",
    "ranks": "observe=nfd.observables.ranks",
    "held_out_loss": "task.holding_out(test)",
    "held_out_accuracy": "task.holding_out(test), of a task with classes",
    "accuracy": "a task with classes",
}


def dataset_of(run: Run, *needed: str) -> xr.Dataset:
    """The dataset of a run. TypeError for anything else, ValueError where it lacks a variable."""
    if isinstance(run, Trajectory):
        dataset = run.to_dataset()
    elif isinstance(run, xr.Dataset):
        dataset = run
    else:
        raise TypeError(f"run must be a Trajectory or the dataset of one, got {run!r}")
    for name in needed:
        if name not in dataset:
            way_out = WAYS_OUT.get(name, "an observe function that returns it")
            there = ", ".join(sorted(map(str, dataset.data_vars)))
            raise ValueError(f"there is no {name} in this run, which has {there}; train it with {way_out}")
    return dataset


def place(values: xr.DataArray, axis: str, index: int) -> xr.DataArray:
    """At one place of an axis, counted from its end where negative. ValueError beyond it."""
    count = values.sizes[axis]
    if not -count <= index < count:
        raise ValueError(f"{axis}={index} is none of the {count} that {values.name} has, 0 to {count - 1}")
    return values.isel({axis: index})


def good(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """A variable of the members that did not diverge, with its axis `seed` first where it has one. ValueError where
    none is left."""
    values = dataset[name]
    if "seed" not in values.dims:
        return values
    kept = values.isel(seed=np.flatnonzero(dataset.diverged_at.values < 0)) if "diverged_at" in dataset else values
    if not kept.sizes["seed"]:
        raise ValueError(f"all {values.sizes['seed']} members of this run diverged; lower the learning rate")
    return kept.transpose("seed", ...)


class Averaged(NamedTuple):
    """Averages over members and the ends of their 95 % intervals, NaN where there is none; `(...)` each."""

    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def averaged(members: np.ndarray, average: str = "mean") -> Averaged:
    """Of `(seeds, ...)`: the mean with Student's interval, or with `"log"` those of logarithms, the geometric mean."""
    one_of("average", average, AVERAGES)
    if average == "log":
        with np.errstate(divide="ignore", invalid="ignore"):
            return Averaged(*map(np.exp, averaged(np.log(members))))
    middle, count = members.mean(axis=0), len(members)
    if count < 2:
        return Averaged(middle, np.full_like(middle, np.nan), np.full_like(middle, np.nan))
    half = quantile(count - 1) * members.std(axis=0, ddof=1) / count**0.5
    return Averaged(middle, middle - half, middle + half)


def average_of(dataset: xr.Dataset, name: str, average: str = "mean") -> Averaged:
    """The average of a variable, without its axis `seed`; of an estimate with its own interval."""
    values = good(dataset, name)
    if "seed" in values.dims:
        return averaged(values.values.astype(np.float64), average)
    one_of("average", average, AVERAGES)
    middle = values.values
    half = dataset[f"{name}_half_width"].values if f"{name}_half_width" in dataset else np.full(middle.shape, np.nan)
    return Averaged(middle, middle - half, middle + half)


def settings(dataset: xr.Dataset) -> dict[str, Any]:
    """The arguments of a run, as far as its dataset has them."""
    return json.loads(dataset.attrs.get("settings", "{}"))


def described(dataset: xr.Dataset) -> tuple[str, str]:
    """What a run is, and the kind of network whose style it has."""
    known = settings(dataset)
    if "closure" in known:
        kind = "tied" if known["closure"] == "coupled" else "untied"
        return f"{known['closure']} limit", kind
    kind = known.get("backward", "tied")
    name = "networks" if "seed" in dataset.dims else "network"
    return f"{kind} {name}" + (f", n = {known['width']}" if "width" in known else ""), kind


def along_depth(values: xr.DataArray, dataset: xr.Dataset) -> tuple[str, np.ndarray, str]:
    """The axis of an observed array along the depth, its places and their name. ValueError where there is none."""
    for axis in LAYERS:
        if axis in values.dims:
            if axis == "layer" and "layer_time" in dataset.coords:
                return axis, dataset.layer_time.values, "layer time t"
            first = 0 if axis == "layer" else 1
            return axis, np.arange(first, first + values.sizes[axis]), f"{axis} l"
    unnamed = [axis for axis in values.dims if str(axis) == f"{values.name}_0"]
    if unnamed:  # an observe function without names of axes: depth comes first
        return str(unnamed[0]), np.arange(1, 1 + values.sizes[unnamed[0]]), "block l"
    raise ValueError(f"{values.name} has the axes {values.dims}, none of which is along the depth: {LAYERS}")
