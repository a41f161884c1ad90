"""sweep: ensembles over widths, depths, learning rates and seeds, one cell after the other, resumed after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nfd_jax import engine as loop
from nfd_jax import optimizers, sharding
from nfd_jax._errors import finite_float, one_of, positive_int, seed_sequence
from nfd_jax.architecture import AbstractModel, check_model
from nfd_jax.checkpoint import Checkpoint
from nfd_jax.network import BACKWARDS, solve_network
from nfd_jax.optimizers import Optimizer
from nfd_jax.parametrization import Parametrization
from nfd_jax.task import Task, check_task
from nfd_jax.training import ENGINES, is_revealed, train_members
from nfd_jax.trajectory import Trajectory

if TYPE_CHECKING:
    import xarray as xr

AXES = ("width", "depth", "learning_rate", "seed")


@dataclass(frozen=True)
class Plan:
    """What all cells of a sweep share."""

    task: Task
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    schedule: optimizers.Rate
    engine: str
    backward: str
    optimizer: Optimizer
    folder: str | Path | None
    progress: bool | None
    options: dict[str, Any]  # as `engine.prepare` takes them


def sweep(
    task: Task,
    model: AbstractModel,
    *,
    widths: Sequence[int],
    learning_rates: Sequence[int | float],
    depths: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 8,
    steps: int = 10,
    schedule: Callable[[int], Any] | None = None,
    parametrization: str | Parametrization = "depth_mup",
    optimizer: str = "sgd",
    engine: str = "dense",
    backward: str = "tied",
    train_input: bool = False,
    train_readout: bool = False,
    richness: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    observe: loop.Observe | None = None,
    evaluate_at: Sequence[int] | None = None,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train an ensemble in every cell of a grid of widths and depths: all seeds and learning rates of a cell side by
    side, in chunks of bounded memory, with one compilation a cell.

    **Arguments:** those of `train_networks`, and

    - `widths`, `depths`: n and L of the cells; `depths=None` takes that of the model.
    - `learning_rates`: eta of the members of every cell, times `schedule(step)` where one is given.
    - `seeds`: every seed is trained at every rate.
    - `engine`: `"revealed"`, or `"auto"` where that is faster, trains cells with revealed matrices, a rate at a time.
    - `folder`: where finished cells are kept. A sweep that was killed, or is asked for more cells, trains only those
      that are missing; cells of other arguments are refused by name.

    Returns a labelled dataset with axes `width`, `depth`, `learning_rate`, `seed`: `loss` along `step`, `batch_loss`
    along `update`, `held_out_loss` where the task has held-out samples, `diverged_at` (the step of a member, -1 for
    none) and what `observe` returned at every step, of one shape in all cells. Outputs are not kept. Raises ValueError
    or TypeError for bad arguments before any cell is trained.
    """
    check_task(task)
    one_of("engine", engine, ENGINES)
    one_of("backward", backward, BACKWARDS)
    rule = Optimizer.create(optimizer, momentum, weight_decay, betas, epsilon)
    options = {
        "steps": steps,
        "parametrization_name": parametrization,
        "train_input": train_input,
        "train_readout": train_readout,
        "richness": richness,
        "observe": observe,
        "evaluate_at": evaluate_at,
    }
    rates = tuple(finite_float("learning_rates", rate) for rate in _listed("learning_rates", learning_rates))
    members = seed_sequence(seeds)
    shared = Plan(task, rates, members, schedule or 1.0, engine, backward, rule, folder, progress, options)
    across = tuple(positive_int("widths", width) for width in _listed("widths", widths))
    check_model(model, finite=depths is None)
    models = [model] if depths is None else [replace(model, depth=depth) for depth in _listed("depths", depths)]
    grid = [(width, check_model(each, finite=True)) for width in across for each in models]
    prepared = [_prepare(shared, each, width) for width, each in grid]
    with loop.progress_bar("sweep", len(grid), progress) as bar:
        bar.unit = "cell"
        cells = []
        for (width, each), (problem, arguments) in zip(grid, prepared, strict=True):
            cells.append(_cell(shared, each, width, problem, arguments))
            bar.update()
    return _dataset(prepared[0][1], across, [int(each.depth) for each in models], cells)


def _listed(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    if len(values) == 0 or len(set(values)) != len(values):
        raise ValueError(f"{name} must be at least one number, all distinct, got {values!r}")
    return list(values)


def _prepare(plan: Plan, model: AbstractModel, width: int) -> tuple[loop.Problem, dict[str, Any]]:
    """The problem of a cell, every member with its rate, and what its archive belongs to."""
    problem = loop.prepare(plan.task, model, learning_rate=plan.schedule, optimizer=plan.optimizer, **plan.options)
    revealed = is_revealed(plan.engine, plan.task, width, problem.rates.shape[-1], plan.optimizer)
    arguments = problem.arguments | {
        "solver": "network" if revealed else "training",
        "width": width,
        "backward": plan.backward,
        "learning_rates": plan.rates,
        "seeds": plan.seeds,
        "evaluate_at": problem.data.evaluate_at,
    }
    rates = np.array(plan.rates)[:, None] * problem.rates
    return problem._replace(rates=rates.repeat(len(plan.seeds), axis=0)), arguments


def _cell(
    plan: Plan, model: AbstractModel, width: int, problem: loop.Problem, arguments: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Everything kept of one cell, `(rates, seeds, ...)`; from its archive where there is one."""
    archive = Checkpoint.create(plan.folder, 1, plan.task, arguments)
    name = f"width-{width}-depth-{model.depth}"
    found = None if archive is None else archive.read(name)
    if sharding.same(int(found is not None)) and found is not None:
        return found
    members = plan.seeds * len(plan.rates)
    if arguments["solver"] == "network":
        runs = [_revealed(plan, model, width, rate) for rate in plan.rates]
    else:
        untied = plan.backward == "untied"
        kept = train_members(problem, plan.task, model, width, members, untied=untied, progress=plan.progress)
        runs = [kept.trajectory(plan.task, problem.data, members, arguments, members=True)]
    parts = [_kept(run) for run in runs]
    shape = (len(plan.rates), len(plan.seeds))
    values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    cell = {key: value.reshape(*shape, *value.shape[1:]) for key, value in values.items()}
    if archive is not None:
        archive.write(name, cell)
    return cell


def _revealed(plan: Plan, model: AbstractModel, width: int, rate: float) -> Trajectory:
    schedule = plan.schedule
    options = {name: value for name, value in plan.options.items() if name != "parametrization_name"}
    return solve_network(
        plan.task,
        model,
        width=width,
        learning_rate=(lambda step: rate * schedule(step)) if callable(schedule) else rate * schedule,
        seeds=plan.seeds,
        parametrization=plan.options["parametrization_name"],
        backward=plan.backward,
        momentum=plan.optimizer.momentum,
        weight_decay=plan.optimizer.weight_decay,
        progress=plan.progress,
        **options,
    )


def _kept(run: Trajectory) -> dict[str, np.ndarray]:
    """What a sweep keeps of its members: arrays by the name of their variable."""
    kept = {"loss": run.loss, "diverged_at": run.diverged_at, "steps": np.tile(run.steps, (len(run.loss), 1))}
    if run.batch_loss is not None:
        kept["batch_loss"] = run.batch_loss
    if run.held_out is not None:
        kept["held_out_loss"] = run.held_out.loss
    return kept | {f"observed/{name}": values for name, values in run.observed.items()}


def _dataset(
    arguments: dict[str, Any], widths: tuple[int, ...], depths: list[int], cells: list[dict[str, np.ndarray]]
) -> xr.Dataset:
    """All cells with labelled axes; `arguments` are those of one of them."""
    import xarray as xr

    follows = {"loss": ("step",), "batch_loss": ("update",), "held_out_loss": ("held_out_step",), "diverged_at": ()}
    variables = {}
    for key in cells[0]:
        shapes = {cell[key].shape for cell in cells}
        if len(shapes) > 1:
            raise ValueError(f"observe must return arrays of one shape in all cells, got {key!r} of {sorted(shapes)}")
        values = np.stack([cell[key] for cell in cells]).reshape(len(widths), len(depths), *next(iter(shapes)))
        if key.startswith("observed/"):
            name = key.removeprefix("observed/")
            axes = tuple(f"{name}_{axis}" for axis in range(values.ndim - len(AXES) - 1))
            variables[name] = ((*AXES, "update", *axes), values)
        elif key != "steps":
            variables[key] = ((*AXES, *follows[key]), values)
    coordinates = dict(zip(AXES, (widths, depths, arguments["learning_rates"], arguments["seeds"]), strict=True))
    coordinates = {name: np.array(values) for name, values in coordinates.items()}
    coordinates["step"] = cells[0]["steps"][0, 0]
    if "held_out_loss" in cells[0]:
        coordinates["held_out_step"] = np.array(arguments["evaluate_at"])
    shared = {name: value for name, value in arguments.items() if name not in ("width", "depth", "learning_rate")}
    return xr.Dataset(variables, coordinates, {"settings": json.dumps(shared, default=str)})
