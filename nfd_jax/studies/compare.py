"""Limit beside network: which networks converge to which closure, with errors.

For every depth both closures are solved, and tied and untied networks of several widths are trained on the same
task. Where a network stands between the limits is one number, its *position*: the coordinate of its final outputs
along the line from the decoupled limit (0) to the coupled one (1),

    s = <f - f_decoupled, f_coupled - f_decoupled> / |f_coupled - f_decoupled|^2,

summed over samples and outputs. Distances from either limit are then differences in s over their standard error.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from tqdm import tqdm

from nfd_jax import parametrization
from nfd_jax._checks import MOST, boolean, finite_float, positive_int, positive_ints
from nfd_jax.models import ResNet
from nfd_jax.runtime.files import writable_folder
from nfd_jax.runtime.identity import identity
from nfd_jax.runtime.store import Record, fingerprint, shared
from nfd_jax.seeds import check_seed, labels
from nfd_jax.solvers.limit import CLOSURES, limit_dynamics, solve_limit
from nfd_jax.solvers.networks import BACKWARDS, is_revealed, network_dynamics, train_networks
from nfd_jax.task import Task, check_task
from nfd_jax.training import Training

AXES = ("step", "sample", "output")
KEPT = ("outputs", "loss", "diverged_at")
ROUNDINGS = 1000  # of outputs, below which two limits count as one
REVISION = 1  # of how the runs are made; raise it with any change after which they have other numbers


@dataclass(frozen=True)
class Comparison:
    """Sizes of a comparison. The defaults take about two minutes on two CPU cores.

    Args:
        depths: Depths L of the networks and of the limits beside them.
        widths: Widths n of the networks.
        activation: Activation phi.
        horizon: Layer time T of the residual stream.
        block: Kind of residual block, as for `ResNet`.
        parametrization: Row of the exponent table, one with a limit that learns features.
        steps: Full-batch training steps; hidden matrices train.
        learning_rate: The width- and depth-free rate eta.
        seeds: Networks of each kind, at least 2.
        particles: Particles of one solution of a limit.
        limit_seeds: Solutions of each limit, at least 2, for its standard error.
        seed: The first seed; members use those that follow.
    """

    depths: tuple[int, ...] = (4, 16, 64)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    activation: str = "relu"
    horizon: float = 1.0
    block: str = "pre"
    parametrization: str = "depth_mup"
    steps: int = 6
    learning_rate: float = 1.0
    seeds: int = 48
    particles: int = 2048
    limit_seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the solvers would not see before the first of them has run."""
        for name in ("depths", "widths"):
            sizes = positive_ints(name, getattr(self, name))
            if not sizes or len(set(sizes)) != len(sizes):
                raise ValueError(f"{name} must be at least one number, each given once, got {sizes!r}")
            object.__setattr__(self, name, sizes)
        parametrization.resolve(self.parametrization)
        for depth in self.depths:
            self.model(depth)
        for name in ("seeds", "limit_seeds"):
            positive_int(f"{name} (a standard error needs two)", getattr(self, name), 2, MOST)
        positive_int("steps", self.steps, maximum=MOST)
        positive_int("particles", self.particles)
        check_seed("seed", self.seed)
        check_seed("the last seed", self.seed + max(self.seeds, self.limit_seeds) - 1)
        finite_float("learning_rate", self.learning_rate)

    def model(self, depth: int) -> ResNet:
        """The network of one depth."""
        return ResNet(depth, self.activation, self.horizon, self.block)

    @property
    def training(self) -> Training:
        """How all of them are trained."""
        return Training(self.steps, self.learning_rate, self.parametrization)

    def members(self, count: int) -> list[int]:
        """The seeds of so many."""
        return list(range(self.seed, self.seed + count))


class Run(NamedTuple):
    """The solutions of one limit, or the networks of one kind, depth and width."""

    kind: str  # a closure, or a backward pass
    depth: int
    width: int | None = None  # of networks

    def __str__(self) -> str:
        kind = f"{self.kind} limit" if self.width is None else f"{self.kind} networks, n = {self.width}"
        return f"L = {self.depth}, {kind}"


def compare(
    task: Task, setup: Comparison | None = None, *, folder: str | Path | None = None, progress: bool | None = None
) -> xr.Dataset:
    """Both limits, tied and untied networks, on one task.

    Networks are trained by `train_networks`, very wide ones by `solve_network`, which has the same law. In a `folder`
    finished runs are recorded: a comparison that was killed, or has more depths and widths, trains only what is
    missing, and processes with one folder share the runs.

    Returns a dataset with `limit_outputs (closure, depth, limit_seed, step, sample, output)`, `network_outputs
    (backward, depth, width, seed, step, sample, output)`, the losses without the last two axes, and what `summarise`
    adds. A diverged run holds non-finite numbers there, is marked in `diverged_at` or `limit_diverged_at`, and left out
    of every mean.
    """
    check_task(task)
    setup = setup or Comparison()
    if not isinstance(setup, Comparison):
        raise TypeError(f"setup must be a nfd_jax.studies.compare.Comparison, got {setup!r}")
    _check_runs(task, setup, progress)
    limits = [Run(closure, depth) for closure in CLOSURES for depth in setup.depths]
    networks = [Run(kind, depth, width) for kind in BACKWARDS for depth in setup.depths for width in setup.widths]
    runs = sorted([*limits, *networks], key=lambda run: setup.depths.index(run.depth))
    records: list[Record | None] = [None] * len(runs)
    if folder is not None:
        where = writable_folder("folder", folder)
        records = [Record(where, depends_on(task, setup, run)) for run in runs]
    with tqdm(total=len(runs), unit="run", disable=None if progress is None else not progress) as bar:

        def trained(place: int) -> dict[str, np.ndarray]:
            bar.set_description(str(runs[place]))
            return _trained(task, setup, runs[place])

        found = dict(zip(runs, shared(records, trained, lambda _: bar.update()), strict=True))

    def stack(chosen: list[Run], shape: tuple[int, ...], name: str) -> np.ndarray:
        values = np.stack([found[run][name] for run in chosen])
        return values.reshape(*shape, *values.shape[1:])

    kinds = {
        "limit_": (limits, ("closure", "depth", "limit_seed"), (2, len(setup.depths))),
        "network_": (networks, ("backward", "depth", "width", "seed"), (2, len(setup.depths), len(setup.widths))),
    }
    variables = {
        f"{prefix}{name}": ((*axes, *rest), stack(chosen, shape, name))
        for prefix, (chosen, axes, shape) in kinds.items()
        for name, rest in (("outputs", AXES), ("loss", AXES[:1]), ("diverged_at", ()))
    }
    variables["diverged_at"] = variables.pop("network_diverged_at")
    dataset = xr.Dataset(
        variables | {"targets": (("sample", "output"), task.targets)},
        coords={
            "closure": list(CLOSURES),
            "backward": list(BACKWARDS),
            "depth": list(setup.depths),
            "width": list(setup.widths),
            "limit_seed": labels(setup.members(setup.limit_seeds)),
            "seed": labels(setup.members(setup.seeds)),
            "step": np.arange(setup.steps + 1),
        },
        attrs={"limit_noise": ", ".join(sorted({str(found[run]["noise"]) for run in limits}))},
    )
    return summarise(dataset)


def _check_runs(task: Task, setup: Comparison, progress: bool | None) -> None:
    """What a solver would refuse of any run, before the first of them."""
    if progress is not None:
        boolean("progress", progress)
    for depth in setup.depths:
        limit_dynamics(task, setup.model(depth), setup.training, particles=setup.particles)
        for width in setup.widths:
            network_dynamics(task, setup.model(depth), setup.training, width=width, backward="untied", engine="auto")


def depends_on(task: Task, setup: Comparison, run: Run) -> dict[str, Any]:
    """Everything that decides the numbers of one run."""
    of_limits, grids = {"particles", "limit_seeds"}, {"depths", "widths"}
    others = grids | ({"seeds"} if run.width is None else of_limits)
    arguments = {name: value for name, value in asdict(setup).items() if name not in others}
    revealed = run.width is not None and is_revealed("auto", task, run.width, setup.training)
    data = {"data": fingerprint(task), "loss": task.loss, "batch_size": task.batch_size}
    return identity({"comparison": REVISION, **run._asdict(), "revealed": revealed, **arguments, **data})


def _trained(task: Task, setup: Comparison, run: Run) -> dict[str, np.ndarray]:
    """Outputs, losses and divergence of all members of one run."""
    model, of_limit = setup.model(run.depth), run.width is None
    if of_limit:
        seeds, options = setup.members(setup.limit_seeds), {"closure": run.kind, "particles": setup.particles}
    else:
        seeds, options = setup.members(setup.seeds), {"backward": run.kind, "width": run.width, "engine": "auto"}
    train = solve_limit if of_limit else train_networks
    trajectory = train(task, model, setup.training, seeds=seeds, progress=False, **options)
    arrays = {name: np.asarray(getattr(trajectory, name)) for name in KEPT}
    return arrays | ({"noise": np.array(trajectory.settings["noise"])} if of_limit else {})


def summarise(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with positions, distances and mean losses added, each with its standard error over seeds.

    Adds `position (backward, depth, width)` (NaN where the limits are the same but for rounding, as with one block of
    one matrix), its extrapolation `infinite_position (backward, depth)` to n = infinity by
    a weighted fit of a + b/n (NaN for one width), `limit_position_error (closure, depth)`, `distance` and
    `infinite_distance`, differences in position from each closure in standard errors, signed, and the mean losses
    `limit_mean_loss` and `network_mean_loss`. Each has its standard error beside it, `..._error`.
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
    limit_loss = _mean_and_error(dataset.limit_loss.where(dataset.limit_diverged_at < 0), "limit_seed")
    network_loss = _mean_and_error(dataset.network_loss.where(dataset.diverged_at < 0), "seed")
    return dataset.assign(
        position=ours,
        position_error=our_error,
        infinite_position=infinite,
        infinite_position_error=infinite_error,
        limit_position_error=their_error,
        distance=(ours - theirs) / (our_error**2 + their_error**2) ** 0.5,
        infinite_distance=(infinite - theirs) / (infinite_error**2 + their_error**2) ** 0.5,
        limit_mean_loss=limit_loss[0],
        limit_loss_error=limit_loss[1],
        network_mean_loss=network_loss[0],
        network_loss_error=network_loss[1],
    )


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


def table(dataset: xr.Dataset) -> str:
    """The comparison as text: final losses, positions and distances, one line a kind of network."""
    head = _row("L", "n", "what", "final loss", "position", "from decoupled", "from coupled")
    lines = [head, "-" * len(head)]
    for depth in dataset.depth.values:
        at = dataset.sel(depth=depth)
        for closure in ("decoupled", "coupled"):
            final = at.sel(closure=closure).isel(step=-1)
            where = _with_error(xr.DataArray(float(closure == "coupled")), final.limit_position_error)
            loss = _with_error(final.limit_mean_loss, final.limit_loss_error)
            lines.append(_row(depth, "inf", f"{closure} limit", loss, where, "", "").rstrip())
        for backward in ("untied", "tied"):
            cells = at.sel(backward=backward).isel(step=-1)
            lines += [_network_line(cells.sel(width=width)) for width in dataset.width.values]
            if dataset.sizes["width"] > 1:
                where = _with_error(cells.infinite_position, cells.infinite_position_error)
                away = _distances(cells.infinite_distance)
                lines.append(_row(depth, "-> inf", f"{backward} networks", "", where, *away))
        lines.append("")
    lines.append(
        "position: 0 at the decoupled limit, 1 at the coupled one, along the line between their final outputs."
    )
    lines.append("±: one standard error; none where too few members are left, or the limits are the same.")
    lines.append("n -> inf: extrapolated from the widths above by a weighted fit of a + b/n.")
    lines.append("from ...: distance in position from that limit, in standard errors (networks and limit together).")
    for kind, marks in (("networks", "diverged_at"), ("solutions of a limit", "limit_diverged_at")):
        bad = int((dataset[marks] >= 0).sum())
        if bad:
            lines.append(f"{bad} of {dataset[marks].size} {kind} diverged and are left out: see {marks}.")
    return "\n".join(lines)


def _network_line(cell: xr.Dataset) -> str:
    loss = _with_error(cell.network_mean_loss, cell.network_loss_error)
    position = _with_error(cell.position, cell.position_error)
    name = f"{cell.backward.item()} networks"
    return _row(cell.depth.item(), cell.width.item(), name, loss, position, *_distances(cell.distance))


def _with_error(value: xr.DataArray, error: xr.DataArray) -> str:
    return f"{value.item():.3f} ± {error.item():.3f}" if np.isfinite(value) and np.isfinite(error) else "none"


def _distances(distance: xr.DataArray) -> list[str]:
    found = [distance.sel(closure=closure).item() for closure in ("decoupled", "coupled")]
    return [f"{each:+.1f} SE" if np.isfinite(each) else "none" for each in found]


def _row(depth: object, width: object, what: str, *figures: str) -> str:
    columns = [f"{depth:>4} {width:>6}  {what:<17}"]
    columns += [f"{figure:>{size}}" for figure, size in zip(figures, (17, 15, 15, 13), strict=True)]
    return " ".join(columns)
