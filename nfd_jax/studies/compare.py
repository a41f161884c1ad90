"""Limit beside network: which networks converge to which closure, with errors.

For every depth both closures are solved, and tied and untied networks of several widths are trained on the same
task. Where a network stands between the limits is one number, its *position*: the coordinate of its final outputs
along the line from the decoupled limit (0) to the coupled one (1),

    s = <f - f_decoupled, f_coupled - f_decoupled> / |f_coupled - f_decoupled|^2,

summed over samples and outputs. Distances from either limit are then differences in s over their standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from nfd_jax import parametrization
from nfd_jax._checks import MOST, boolean, finite_float, positive_int, positive_ints
from nfd_jax.models import ResNet
from nfd_jax.runtime import threads
from nfd_jax.runtime.files import writable_folder
from nfd_jax.runtime.identity import identity
from nfd_jax.runtime.store import Record, fingerprint, shared
from nfd_jax.runtime.threads import Bar
from nfd_jax.seeds import check_seed, labels
from nfd_jax.solvers.limit import CLOSURES, limit_dynamics, solve_limit
from nfd_jax.solvers.networks import BACKWARDS, network_dynamics, train_networks
from nfd_jax.studies._comparison_table import COMPRESSED
from nfd_jax.studies._comparison_table import table as table
from nfd_jax.studies._positions import summarise
from nfd_jax.task import Task, check_task
from nfd_jax.training import Training

KEPT = {  # of every run, with the axes after those of members
    "outputs": ("step", "sample", "output"),
    "loss": ("step",),
    "diverged_at": (),
    "held_out_loss": ("held_out_step",),  # where samples are held out
    "held_out_accuracy": ("held_out_step",),  # and have classes
}
EVALUATIONS = 24  # after the first, where outputs are not those that training has anyway
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
        steps: Training steps; hidden matrices train.
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

    def training(self, task: Task) -> Training:
        """How both are trained. Evaluations of all samples at every step would take longer than training on
        mini-batches: where they are extra, they are few and evenly spaced, the first and the last step among them."""
        extra = not task.full_batch or task.held_out is not None
        at = np.linspace(0, self.steps, min(self.steps, EVALUATIONS) + 1).round().astype(int).tolist()
        return Training(self.steps, self.learning_rate, self.parametrization, evaluate_at=at if extra else None)

    def first_look(self) -> Comparison:
        """Of the whole comparison the part that comes first: two depths and three widths."""
        return replace(self, depths=self.depths[:2], widths=self.widths[:3])

    def members(self, count: int) -> list[int]:
        """The seeds of so many."""
        return list(range(self.seed, self.seed + count))

    def limits(self) -> list[Run]:
        """Both closures at every depth."""
        return [Run(closure, depth) for closure in CLOSURES for depth in self.depths]

    def networks(self) -> list[Run]:
        """Tied and untied ones of every depth and width."""
        return [Run(kind, depth, width) for kind in BACKWARDS for depth in self.depths for width in self.widths]

    def runs(self) -> list[Run]:
        """All of them, one depth after the other."""
        return sorted([*self.limits(), *self.networks()], key=lambda run: self.depths.index(run.depth))


class Run(NamedTuple):
    """The solutions of one limit, or the networks of one kind, depth and width."""

    kind: str  # a closure, or a backward pass
    depth: int
    width: int | None = None  # of networks

    def options(self, setup: Comparison) -> dict[str, Any]:
        """What its solver takes besides task, model and recipe."""
        if self.width is None:
            seeds = setup.members(setup.limit_seeds)
            return {"closure": self.kind, "particles": setup.particles, "seeds": seeds}
        return {"backward": self.kind, "width": self.width, "seeds": setup.members(setup.seeds), "engine": "auto"}

    def __str__(self) -> str:
        kind = f"{self.kind} limit" if self.width is None else f"{self.kind} networks, n = {self.width}"
        return f"L = {self.depth}, {kind}"


def compare(
    task: Task,
    setup: Comparison | None = None,
    *,
    folder: str | Path | None = None,
    progress: bool | None = None,
    first_look: Callable[[xr.Dataset], object] | None = None,
) -> xr.Dataset:
    """Both limits, tied and untied networks, on one task, by full batches or its mini-batches.

    Networks are trained by `train_networks`, very wide ones by `solve_network`, which has the same law. In a `folder`
    finished runs are recorded: a comparison that was killed, or has more depths and widths, trains only what is
    missing (limits anew where the deepest is deeper), and processes with one folder share the runs.

    `first_look` is called with the dataset of two depths and three widths as soon as these are there, where the whole
    comparison has more.

    Returns a dataset with `limit_outputs (closure, depth, limit_seed, step, sample, output)`, `network_outputs
    (backward, depth, width, seed, step, sample, output)`, the losses without the last two axes, and what `summarise`
    adds. A diverged run holds non-finite numbers there, is marked in `diverged_at` or `limit_diverged_at`, and left out
    of every mean.

    Under mini-batches `step` has about 24 evenly spaced steps. Where samples are held out there are
    `limit_held_out_loss (closure, depth, limit_seed, held_out_step)` and `network_held_out_loss`, at so many steps too,
    and where these have classes `..._held_out_accuracy`. Where runs have a resolution, `limit_resolution (closure,
    depth)` and `limit_directions`, the most directions revealed of a matrix, or those of networks, 0 for exact ones.
    """
    check_task(task)
    setup = setup or Comparison()
    if not isinstance(setup, Comparison):
        raise TypeError(f"setup must be a nfd_jax.studies.compare.Comparison, got {setup!r}")
    if progress is not None:
        boolean("progress", progress)
    early = setup.first_look()
    runs = list(dict.fromkeys([*early.runs(), *setup.runs()]))
    described = {run: depends_on(task, setup, run) for run in runs}
    where = None if folder is None else writable_folder("folder", folder)
    records = {run: None if where is None else Record(where, described[run]) for run in runs}
    at_once = threads.at_once(_bytes(task, setup))
    found: dict[Run, Mapping[str, np.ndarray]] = {}
    with Bar(total=len(runs), unit="run", disable=None if progress is None else not progress) as bar:
        for part in (early, setup):
            missing = [run for run in part.runs() if run not in found]

            def trained(place: int, missing: list[Run] = missing) -> dict[str, np.ndarray]:
                bar.set_description(str(missing[place]))
                return _trained(task, setup, missing[place])

            arrays = shared([records[run] for run in missing], trained, lambda _: bar.update(), at_once=at_once)
            found |= zip(missing, arrays, strict=True)
            if first_look is not None and part is early and len(found) < len(runs):
                first_look(_dataset(task, early, found))
    return _dataset(task, setup, found)


def _dataset(task: Task, setup: Comparison, found: Mapping[Run, Mapping[str, np.ndarray]]) -> xr.Dataset:
    """All runs of a comparison, with their summaries."""
    limits, networks = setup.limits(), setup.networks()
    variables = _stacked(limits, found, "limit_", ("closure", "depth", "limit_seed"), (2, len(setup.depths)))
    sizes = (2, len(setup.depths), len(setup.widths))
    variables |= _stacked(networks, found, "network_", ("backward", "depth", "width", "seed"), sizes)
    variables["diverged_at"] = variables.pop("network_diverged_at")
    at = np.array(setup.training(task).at)
    coordinates = {
        "closure": list(CLOSURES),
        "backward": list(BACKWARDS),
        "depth": list(setup.depths),
        "width": list(setup.widths),
        "limit_seed": labels(setup.members(setup.limit_seeds)),
        "seed": labels(setup.members(setup.seeds)),
        "step": np.arange(setup.steps + 1) if task.full_batch else at,
    }
    attributes: dict[str, Any] = {"limit_noise": ", ".join(sorted({str(found[run]["noise"]) for run in limits}))}
    if task.held_out is not None:
        coordinates["held_out_step"], attributes["held_out_samples"] = at, task.held_out.samples
    variables["targets"] = (("sample", "output"), task.targets)
    return summarise(xr.Dataset(variables, coordinates, attributes))


def _stacked(
    runs: list[Run],
    found: Mapping[Run, Mapping[str, np.ndarray]],
    prefix: str,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
) -> dict[str, Any]:
    """The variables of all runs of a kind: cells of this shape, along the axes but for the last, that of members."""

    def stack(name: str) -> np.ndarray:
        values = np.stack([found[run][name] for run in runs])
        return values.reshape(*shape, *values.shape[1:])

    kept = {f"{prefix}{name}": ((*axes, *rest), stack(name)) for name, rest in KEPT.items() if name in found[runs[0]]}
    if any("resolution" in found[run] for run in runs):
        for name in COMPRESSED:
            values = np.array([found[run].get(name, 0) for run in runs])
            kept[f"{prefix}{name}"] = (axes[:-1], values.reshape(shape))
    return kept


def depends_on(task: Task, setup: Comparison, run: Run) -> dict[str, Any]:
    """Everything that decides the numbers of a run. ValueError for what a solver would refuse of it."""
    options, training = run.options(setup), setup.training(task)
    of_one = {name: value for name, value in options.items() if name != "seeds"}
    prepare = limit_dynamics if run.width is None else network_dynamics
    dynamics, problem = prepare(task, setup.model(run.depth), training, **of_one, resolution=None)
    more = {"comparison": REVISION, "dynamics": type(dynamics).__name__, "data": fingerprint(task)}
    if run.width is None:
        more["capacity"] = max(setup.depths)  # in which evenly spread normals are counted out
    if training.evaluate_at is not None:
        more["evaluate_at"] = list(training.at)
    if resolution := getattr(dynamics, "resolution", None):  # dense networks have none
        more["resolution"] = float(resolution)
    return identity({**problem.arguments, **options, **more})


def _bytes(task: Task, setup: Comparison) -> int:
    """Of one solution of a limit, the largest of all members."""
    options = {"particles": setup.particles, "resolution": None}
    dynamics, _ = limit_dynamics(task, setup.model(max(setup.depths)), setup.training(task), **options)
    return 0 if dynamics.initial is None else dynamics.initial.least_bytes


def _trained(task: Task, setup: Comparison, run: Run) -> dict[str, np.ndarray]:
    """What is kept of all members of a run."""
    solve = partial(solve_limit, capacity=max(setup.depths)) if run.width is None else train_networks  # one program
    found = solve(task, setup.model(run.depth), setup.training(task), **run.options(setup), progress=False)
    values = {"outputs": found.outputs, "diverged_at": found.diverged_at} | found.scores() | {"loss": found.loss}
    kept = {name: np.asarray(values[name]) for name in KEPT if name in values}
    if found.ranks:
        kept |= {"resolution": np.array(found.settings["resolution"]), "directions": np.array(found.ranks[0])}
    return {"noise": np.array(found.settings.get("noise", ""))} | kept
