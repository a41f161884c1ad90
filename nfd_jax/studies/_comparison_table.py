"""The table of a comparison of limits and networks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

COMPRESSED = ("resolution", "directions")  # of every run: its resolution and the most directions, 0 if it is exact
COLUMNS = {  # of numbers, with their sizes
    "final loss": 17,
    "held-out loss": 16,
    "accuracy": 15,
    "position": 15,
    "from decoupled": 15,
    "from coupled": 13,
}


def table(dataset: xr.Dataset) -> str:
    """The comparison as text: final losses, held-out ones and accuracies where there are any, positions and distances,
    one line a kind of network."""
    final = dataset.isel({axis: -1 for axis in ("step", "held_out_step") if axis in dataset.dims})
    absent = {name for name, (variable, _) in FINAL.items() if f"limit_mean_{variable}" not in dataset}
    columns = [name for name in COLUMNS if name not in absent]
    head = _row(columns, "L", "n", "what", {name: name for name in columns})
    lines = [head, "-" * len(head)]
    for depth in dataset.depth.values:
        at = final.sel(depth=depth)
        for closure in ("decoupled", "coupled"):
            limit = at.sel(closure=closure)
            where = _with_error(xr.DataArray(float(closure == "coupled")), limit.limit_position_error)
            cells = _finals(limit, "limit") | {"position": where}
            lines.append(_row(columns, depth, "inf", f"{closure} limit", cells).rstrip())
        for backward in ("untied", "tied"):
            cells, name = at.sel(backward=backward), f"{backward} networks"
            for width in dataset.width.values:
                lines.append(_row(columns, depth, width, name, _network_cells(cells.sel(width=width))))
            if dataset.sizes["width"] > 1:
                where = _with_error(cells.infinite_position, cells.infinite_position_error)
                away = _distances(cells.infinite_distance)
                lines.append(_row(columns, depth, "-> inf", name, {"position": where} | away))
        lines.append("")
    return "\n".join([*lines, *_legend(dataset)])


def _legend(dataset: xr.Dataset) -> list[str]:
    """What the columns are, how limits were solved in long training, and what is left out of means."""
    lines = ["position: 0 at the decoupled limit, 1 at the coupled one, along the line between their final outputs."]
    if "held_out_samples" in dataset.attrs:
        what = "held-out loss and accuracy" if "limit_mean_held_out_accuracy" in dataset else "held-out loss"
        lines.append(f"{what}: on {dataset.attrs['held_out_samples']} samples that nothing is trained on.")
    lines.append("±: one standard error; none where too few members are left, or the limits are the same.")
    lines.append("n -> inf: extrapolated from the widths above by a weighted fit of a + b/n.")
    lines.append("from ...: distance in position from that limit, in standard errors (networks and limit together).")
    for kind, prefix in (("limits", "limit"), ("networks with revealed matrices", "network")):
        if f"{prefix}_resolution" in dataset:
            resolution, most = (dataset[f"{prefix}_{name}"].max().item() for name in COMPRESSED)
            noise = f"{dataset.attrs['limit_noise']} noise, " if prefix == "limit" else ""
            lines.append(f"{kind}: {noise}resolution {resolution:g}, at most {most} directions revealed of a matrix.")
    for kind, marks in (("networks", "diverged_at"), ("solutions of a limit", "limit_diverged_at")):
        bad = int((dataset[marks] >= 0).sum())
        if bad:
            lines.append(f"{bad} of {dataset[marks].size} {kind} diverged and are left out: see {marks}.")
    return lines


FINAL = {  # columns of what is followed along training, and how small a number they write with digits alone
    "final loss": ("loss", 0.01),
    "held-out loss": ("held_out_loss", 0.01),
    "accuracy": ("held_out_accuracy", 0.0),
}


def _finals(cell: xr.Dataset, kind: str) -> dict[str, str]:
    """Means at the last step, with their errors, by column."""
    return {
        column: _with_error(cell[f"{kind}_mean_{name}"], cell[f"{kind}_{name}_error"], smallest)
        for column, (name, smallest) in FINAL.items()
        if f"{kind}_mean_{name}" in cell
    }


def _network_cells(cell: xr.Dataset) -> dict[str, str]:
    position = _with_error(cell.position, cell.position_error)
    return _finals(cell, "network") | {"position": position} | _distances(cell.distance)


def _with_error(value: xr.DataArray, error: xr.DataArray, smallest: float = 0.0) -> str:
    if not (np.isfinite(value) and np.isfinite(error)):
        return "none"
    if abs(value) < smallest:
        return f"{value.item():.1e} ± {error.item():.0e}"
    return f"{value.item():.3f} ± {error.item():.3f}"


def _distances(distance: xr.DataArray) -> dict[str, str]:
    found = {f"from {closure}": distance.sel(closure=closure).item() for closure in ("decoupled", "coupled")}
    return {name: f"{each:+.1f} SE" if np.isfinite(each) else "none" for name, each in found.items()}


def _row(columns: list[str], depth: object, width: object, what: str, cells: Mapping[str, str]) -> str:
    figures = [f"{cells.get(name, ''):>{COLUMNS[name]}}" for name in columns]
    return " ".join([f"{depth:>4} {width:>6}  {what:<17}", *figures])
