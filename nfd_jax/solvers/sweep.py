"""sweep: ensembles over widths, depths, learning rates and seeds, one cell after the other, resumed after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from nfd_jax import optimizers
from nfd_jax._checks import MOST, finite_float, positive_int
from nfd_jax.dynamics.autodiff import Autodiff
from nfd_jax.dynamics.snapshot import FOLLOWS, declared_axes
from nfd_jax.models import AbstractModel, check_model
from nfd_jax.runtime import loop, store
from nfd_jax.runtime.files import writable_folder
from nfd_jax.runtime.identity import identity
from nfd_jax.runtime.parts import Part
from nfd_jax.runtime.store import Record
from nfd_jax.seeds import labels, seed_sequence
from nfd_jax.solvers.networks import Networks, as_wide
from nfd_jax.solvers.trajectory import Trajectory, labelled
from nfd_jax.task import Task, check_task
from nfd_jax.training import Training, takes_training

if TYPE_CHECKING:
    import xarray as xr

AXES = ("width", "depth", "learning_rate", "seed")


@dataclass(frozen=True)
class Plan:
    """What all cells of a sweep share."""

    task: Task
    training: Training  # at rate 1 times the schedule
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    engine: str
    backward: str
    resolution: float | None
    capacity: int | None
    folder: str | Path | None
    progress: bool | None

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Of what is observed, where they have names."""
        return declared_axes(self.training.observe)


class Cell(NamedTuple):
    """One width and depth."""

    model: AbstractModel
    width: int
    networks: Networks
    rates: np.ndarray  # of every member at every step
    arguments: dict[str, Any]  # what its record depends on, with the task
    record: Record | None
    observed: dict[str, tuple[int, ...]]  # shapes at a step
    cost: float  # beside that of the other cells


@takes_training
def sweep(
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    widths: Sequence[int],
    learning_rates: Sequence[int | float] | None = None,
    depths: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 8,
    schedule: Callable[[int], Any] | None = None,
    engine: str = "dense",
    backward: str = "tied",
    resolution: float | None = None,
    capacity: int | None = None,
    folder: str | Path | None = None,
    part: str | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train an ensemble in every cell of a grid of widths and depths: all seeds and learning rates of a cell side by
    side, in chunks of bounded memory, with one compilation a cell.

    **Arguments:** those of `train_networks`, and

    - `widths`, `depths`: n and L of the cells; `depths=None` takes that of the model.
    - `learning_rates`: eta of the members of every cell, times `schedule(step)` where one is given; by default that of
      the recipe alone.
    - `seeds`: every seed is trained at every rate.
    - `engine`: `"revealed"`, or `"auto"` where that is faster, trains cells with revealed matrices.
    - `folder`: where finished cells are recorded. A sweep that was killed, or is asked for more cells, trains only
      those that are missing; cells of other arguments are refused by name. Processes with one folder share the cells.
    - `part`: `"k/N"` trains the cells of that part only, spread evenly by n^2 L (n L of revealed matrices), so that N
      processes with this folder train all; `"slurm"` is the part of this task of a SLURM array job, and everything
      outside one; None or `"all"`, everything. The last part to finish returns the dataset, and the others raise
      `nfd.Incomplete`: what needs the dataset comes after, and runs once.

    Returns a labelled dataset with axes `width`, `depth`, `learning_rate`, `seed`: `loss` along `step`, `batch_loss`
    along `update`, `held_out_loss` where the task has held-out samples, `accuracy` and `held_out_accuracy` where it has
    classes, `diverged_at` (the step of a member, -1 for none), `diverged` (how many members of a cell and rate did),
    `grown` (a finite loss above 1e6 times the initial one) and what `observe` returned along `snapshot`, before every
    update and after the last, of one shape in all cells, with axes as `Trajectory.to_dataset` names them. Losses of a
    diverged member are +inf from its divergence on, so that `loss.mean("seed")` is infinite and no average of
    survivors; its accuracies are NaN where its outputs are not finite. Outputs are not kept. Raises ValueError or
    TypeError for bad arguments before any cell is trained.
    """
    check_task(task)
    divided = Part.of(part)
    if divided.count > 1 and folder is None:
        raise ValueError(f"part must have a folder=... that all parts share, got {part!r} and none")
    if folder is not None:
        folder = writable_folder("folder", folder)
    if schedule is not None:
        optimizers.rates(schedule, training.steps, "schedule")
    if learning_rates is None and callable(training.learning_rate):
        raise ValueError("a sweep takes learning_rates, and a schedule that they are multiplied by as schedule=...")
    listed = [training.learning_rate] if learning_rates is None else _listed("learning_rates", learning_rates)
    rates = tuple(finite_float("learning_rates", rate) for rate in listed)
    recipe = replace(training, learning_rate=1.0 if schedule is None else schedule)
    plan = Plan(task, recipe, rates, seed_sequence(seeds), engine, backward, resolution, capacity, folder, progress)
    across = tuple(positive_int("widths", width) for width in _listed("widths", widths))
    check_model(model, finite=depths is None)
    models = [model] if depths is None else [replace(model, depth=depth) for depth in _listed("depths", depths)]
    cells = [_prepare(plan, check_model(each, finite=True), width) for width in across for each in models]
    _check_observed(cells)
    own = divided.places([cell.cost for cell in cells])
    with loop.progress_bar("sweep", len(own), progress) as bar:
        bar.unit = "cell"
        records = [cell.record for cell in cells]
        arrays = store.shared(
            records, lambda place: _train(plan, cells[place]), lambda place: bar.update(place in own), own
        )
    return _dataset(plan, cells[0].arguments, across, [int(each.depth) for each in models], arrays)


def _listed(name: str, values: Any) -> list[Any]:
    values = np.asarray(values) if isinstance(values, jax.Array) else values
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    listed = list(islice(values, MOST + 1))
    if not all(isinstance(value, Real) for value in listed):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    if len(listed) > MOST:
        raise ValueError(f"{name} must be at most {MOST} numbers, got more; sweep them in parts")
    if not listed or len(set(listed)) != len(listed):
        raise ValueError(f"{name} must be at least one number, all distinct, got {values!r}")
    return listed


def _check_observed(cells: list[Cell]) -> None:
    """ValueError where what is observed would not fit into one array."""
    for cell in cells:
        if cell.observed != cells[0].observed:
            first, other = (f"{each.observed} at n = {each.width}, L = {each.model.depth}" for each in (cells[0], cell))
            raise ValueError(
                f"observe must return arrays of one shape in all cells, got {first} and {other}; reduce over the axes "
                "that differ, or sweep one depth or width at a time"
            )


def _prepare(plan: Plan, model: AbstractModel, width: int) -> Cell:
    """A cell, every member with its rate, checked."""
    options = plan.backward, plan.engine, plan.capacity, plan.resolution
    networks = Networks.of(plan.task, model, plan.training, width, *options)
    arguments = networks.arguments | {
        "learning_rates": plan.rates,
        "seeds": plan.seeds,
        "evaluate_at": networks.problem.data.evaluate_at,
    }
    record = None
    if plan.folder is not None:
        depends_on = identity({**arguments, "data": store.fingerprint(plan.task)})
        record = Record(Path(plan.folder), depends_on, f"width-{width}-depth-{model.depth}")
    rates = np.array(plan.rates)[:, None] * networks.problem.rates
    for rate in rates:
        optimizers.check_rates("learning_rates (times schedule)", rate, plan.training.rule)
    rates = rates.repeat(len(plan.seeds), axis=0)
    a_column = width if isinstance(networks.dynamics, Autodiff) else as_wide(plan.task, plan.training)
    cost = float(model.depth) * width * a_column
    return Cell(model, width, networks, rates, arguments, record, networks.observed_shapes(), cost)


def _train(plan: Plan, cell: Cell) -> dict[str, np.ndarray]:
    """What a sweep keeps of one cell, `(rates, seeds, ...)`."""
    members, networks = plan.seeds * len(plan.rates), cell.networks
    recorded = networks.train(members, rates=cell.rates, progress=plan.progress)
    run = Trajectory.of(recorded, plan.task, networks.problem.data, members, cell.arguments)
    shape = (len(plan.rates), len(plan.seeds))
    return {name: values.reshape(*shape, *values.shape[1:]) for name, values in _kept(run).items()}


def _kept(run: Trajectory) -> dict[str, np.ndarray]:
    """What a sweep keeps of its members: arrays by the name of their variable."""
    kept = {"diverged_at": run.diverged_at, "grown": run.grown, "steps": np.tile(run.steps, (len(run.loss), 1))}
    return kept | run.scores() | {f"observed/{name}": values for name, values in run.observed.items()}


def _dataset(
    plan: Plan,
    arguments: dict[str, Any],
    widths: tuple[int, ...],
    depths: list[int],
    cells: list[dict[str, np.ndarray]],
) -> xr.Dataset:
    """All cells with labelled axes; `arguments` are those of one of them."""
    import xarray as xr

    variables, observed = {}, {}
    for key in cells[0]:
        values = np.stack([cell[key] for cell in cells])
        values = values.reshape(len(widths), len(depths), *values.shape[1:])
        if key.startswith("observed/"):
            observed[key.removeprefix("observed/")] = values
        elif key != "steps":
            variables[key] = ((*AXES, *([FOLLOWS[key]] if key in FOLLOWS else [])), values)
    variables["diverged"] = (AXES[:-1], (variables["diverged_at"][1] >= 0).sum(axis=-1))
    coordinates = dict(zip(AXES, (widths, depths, arguments["learning_rates"], arguments["seeds"]), strict=True))
    coordinates = {name: labels(values) if name == "seed" else np.array(values) for name, values in coordinates.items()}
    coordinates["step"] = cells[0]["steps"][0, 0]
    if "held_out_loss" in cells[0]:
        coordinates["held_out_step"] = np.array(arguments["evaluate_at"])
    more = labelled(observed, AXES, plan.axes, plan.task, depths[0] if len(depths) == 1 else None)
    shared = {name: value for name, value in arguments.items() if name not in ("width", "depth", "learning_rate")}
    return xr.Dataset(variables | more[0], coordinates | more[1], {"settings": json.dumps(shared, default=str)})
