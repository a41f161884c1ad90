"""Limit beside network: which networks converge to which closure, with errors.

For every depth both closures are solved, and tied and untied networks of several widths are trained on the same
task. Where a network stands between the limits is one number, its *position*: the coordinate of its final outputs
along the line from the decoupled limit (0) to the coupled one (1),

    s = <f - f_decoupled, f_coupled - f_decoupled> / |f_coupled - f_decoupled|^2,

summed over samples and outputs. Distances from either limit are then differences in s over their standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from nfd_jax._errors import positive_int, seed_sequence
from nfd_jax.architecture import ResNet
from nfd_jax.limit import CLOSURES, solve_limit
from nfd_jax.network import BACKWARDS
from nfd_jax.task import Task
from nfd_jax.training import train_networks

AXES = ("step", "sample", "output")


def compare(
    task: Task,
    *,
    depths: Sequence[int] = (4, 16, 64),
    widths: Sequence[int] = (32, 64, 128, 256),
    activation: str = "relu",
    horizon: float = 1.0,
    steps: int = 10,
    learning_rate: float = 0.5,
    seeds: int = 16,
    particles: int = 4096,
    limit_seeds: int = 4,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Both limits, tied and untied networks, on one task.

    **Arguments:**

    - `depths`, `widths`: L and n of the networks; the limits are solved at the same depths.
    - `activation`, `horizon`, `steps`, `learning_rate`: of all of them alike; hidden matrices train, full batch.
    - `seeds`: networks of each kind. `particles`, `limit_seeds`: size and number of the limit's solutions.
    - `seed`: the first seed; members use the seeds that follow.

    Returns a dataset with `limit_outputs (closure, depth, limit_seed, step, sample, output)`, `network_outputs
    (backward, depth, width, seed, step, sample, output)`, the losses without the last two axes, and what `summarise`
    adds. A diverged network holds non-finite numbers there, is marked in `diverged_at`, and left out of every mean.
    """
    depths = [positive_int("depths", depth) for depth in depths]
    widths = [positive_int("widths", width) for width in widths]
    members = [seed + s for s in seed_sequence(seeds)]
    limit_members = [seed + s for s in seed_sequence(limit_seeds)]
    if len(limit_members) < 2 or len(members) < 2:
        raise ValueError(f"seeds and limit_seeds must be at least 2 for a standard error, got {seeds}, {limit_seeds}")
    models = {depth: ResNet(depth, activation, horizon) for depth in depths}
    shared: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "progress": False}

    cells = len(depths) * (len(CLOSURES) * len(limit_members) + len(BACKWARDS) * len(widths))
    hidden = None if progress is None else not progress
    limits, networks = {}, {}
    with tqdm(total=cells, desc="compare", unit="run", disable=hidden) as bar:
        for depth, model in models.items():
            for closure in CLOSURES:
                for s in limit_members:
                    bar.set_description(f"L = {depth}, {closure} limit")
                    limits[closure, depth, s] = solve_limit(
                        task, model, closure=closure, particles=particles, seed=s, **shared
                    )
                    bar.update()
            for backward in BACKWARDS:
                for width in widths:
                    bar.set_description(f"L = {depth}, n = {width}, {backward} networks")
                    networks[backward, depth, width] = train_networks(
                        task, model, width=width, seeds=members, backward=backward, **shared
                    )
                    bar.update()

    def stack(runs: dict, shape: tuple[int, ...], name: str) -> np.ndarray:
        values = np.stack([getattr(run, name) for run in runs.values()])
        return values.reshape(*shape, *values.shape[1:])

    limit_axes, network_axes = ("closure", "depth", "limit_seed"), ("backward", "depth", "width", "seed")
    # the runs were made depth by depth; order them as the axes say
    limits = {(c, d, s): limits[c, d, s] for c in CLOSURES for d in depths for s in limit_members}
    networks = {(b, d, w): networks[b, d, w] for b in BACKWARDS for d in depths for w in widths}
    limit_shape, network_shape = (2, len(depths), len(limit_members)), (2, len(depths), len(widths))
    dataset = xr.Dataset(
        {
            "limit_outputs": ((*limit_axes, *AXES), stack(limits, limit_shape, "outputs")),
            "limit_loss": ((*limit_axes, "step"), stack(limits, limit_shape, "loss")),
            "network_outputs": ((*network_axes, *AXES), stack(networks, network_shape, "outputs")),
            "network_loss": ((*network_axes, "step"), stack(networks, network_shape, "loss")),
            "diverged_at": (network_axes, stack(networks, network_shape, "diverged_at")),
            "targets": (("sample", "output"), task.targets),
        },
        coords={
            "closure": list(CLOSURES),
            "backward": list(BACKWARDS),
            "depth": depths,
            "width": widths,
            "limit_seed": limit_members,
            "seed": members,
            "step": np.arange(steps + 1),
        },
        attrs={"limit_noise": ", ".join(sorted({run.settings["noise"] for run in limits.values()}))},
    )
    return summarise(dataset)


def summarise(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with positions, distances and mean losses added, each with its standard error over seeds.

    Adds `position` and `position_error (backward, depth, width)`, `limit_position_error (closure, depth)`, `distance
    (backward, closure, depth, width)` in standard errors (signed, of the difference in position), and `<kind>_mean_loss`
    with `<kind>_loss_error`.
    """
    final_limits = dataset.limit_outputs.isel(step=-1)
    means = final_limits.mean("limit_seed")
    origin = means.sel(closure="decoupled", drop=True)
    line = means.sel(closure="coupled", drop=True) - origin
    over = ["sample", "output"]

    def position(outputs: xr.DataArray) -> xr.DataArray:
        return ((outputs - origin) * line).sum(over) / (line**2).sum(over)

    good = dataset.diverged_at < 0
    ours = position(dataset.network_outputs.isel(step=-1)).where(good)
    theirs = position(final_limits)
    network_error, limit_error = _standard_error(ours, "seed"), _standard_error(theirs, "limit_seed")
    difference = ours.mean("seed") - theirs.mean("limit_seed")
    distance = difference / np.sqrt(network_error**2 + limit_error**2)
    network_loss = dataset.network_loss.where(good)
    return dataset.assign(
        position=ours.mean("seed"),
        position_error=network_error,
        limit_position_error=limit_error,
        distance=distance.transpose("backward", "closure", "depth", "width"),
        limit_mean_loss=dataset.limit_loss.mean("limit_seed"),
        limit_loss_error=_standard_error(dataset.limit_loss, "limit_seed"),
        network_mean_loss=network_loss.mean("seed"),
        network_loss_error=_standard_error(network_loss, "seed"),
    )


def _standard_error(values: xr.DataArray, axis: str) -> xr.DataArray:
    return values.std(axis, ddof=1) / np.sqrt(values.notnull().sum(axis))


def table(dataset: xr.Dataset) -> str:
    """The comparison as text: final losses, positions and distances, one line a kind of network."""
    head = f"{'L':>4} {'n':>6}  {'what':<17} {'final loss':>17} {'position':>15} {'from decoupled':>15} {'from coupled':>13}"
    lines = [head, "-" * len(head)]
    for depth in dataset.depth.values:
        at = dataset.sel(depth=depth)
        for closure in ("decoupled", "coupled"):
            final = at.sel(closure=closure).isel(step=-1)
            where = f"{float(closure == 'coupled'):.3f} ± {final.limit_position_error.item():.3f}"
            loss = f"{final.limit_mean_loss.item():.4f} ± {final.limit_loss_error.item():.4f}"
            lines.append(f"{depth:>4} {'inf':>6}  {closure + ' limit':<17} {loss:>17} {where:>15}")
        for backward in ("untied", "tied"):
            for width in dataset.width.values:
                lines.append(_network_line(at.sel(backward=backward, width=width).isel(step=-1)))
        lines.append("")
    lines.append(
        "position: 0 at the decoupled limit, 1 at the coupled one, along the line between their final outputs."
    )
    lines.append("from ...: distance in position from that limit, in standard errors (networks and limit together).")
    bad = int((dataset.diverged_at >= 0).sum())
    if bad:
        lines.append(f"{bad} of {dataset.diverged_at.size} networks diverged and are left out: see diverged_at.")
    return "\n".join(lines)


def _network_line(cell: xr.Dataset) -> str:
    name = f"{cell.backward.item()} networks"
    loss = f"{cell.network_mean_loss.item():.4f} ± {cell.network_loss_error.item():.4f}"
    position = f"{cell.position.item():.3f} ± {cell.position_error.item():.3f}"
    away = [f"{cell.distance.sel(closure=closure).item():+.1f} SE" for closure in ("decoupled", "coupled")]
    return f"{cell.depth.item():>4} {cell.width.item():>6}  {name:<17} {loss:>17} {position:>15} {away[0]:>15} {away[1]:>13}"
