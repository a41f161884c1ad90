"""solve_limit: the infinite-width limit, in either closure, as solutions or as an estimate with error bars."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nfd_jax._checks import finite_float, one_of, positive_int
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.problem import Problem
from nfd_jax.models import AbstractModel, check_model
from nfd_jax.runtime import devices, ensemble
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.seeds import check_seed, seed_sequence
from nfd_jax.solvers import estimate
from nfd_jax.solvers.multilevel import resolutions_to
from nfd_jax.solvers.networks import check_linear
from nfd_jax.solvers.particles import System
from nfd_jax.solvers.resolution import resolution_of
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.task import Task
from nfd_jax.training import Training, takes_training

CLOSURES = ("coupled", "decoupled")
CLOSURE_OF = {"tied": "coupled", "untied": "decoupled"}  # the limit of networks, by their backward pass
NOISES = ("matched", "plain")
PARTICLES = 4096  # of one solution, unasked
BUDGET = 600.0  # seconds of an estimate, unasked


@takes_training
def solve_limit(
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    particles: int | None = None,
    closure: str = "coupled",
    noise: str = "matched",
    seed: int = 0,
    seeds: int | Sequence[int] | None = None,
    tolerance: float | None = None,
    budget: float | None = None,
    resolution: float | None = None,
    capacity: int | None = None,
    refinement: int = 1,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
    progress: bool | None = None,
) -> Trajectory:
    """The limit n -> infinity of a ResNet or MLP under training.

    At a finite depth L this is one solution by Monte Carlo. With a `tolerance`, or at `depth=math.inf`, it is an
    estimate from many of them, with error bars in `errors` (`nfd_jax.solvers.multilevel` says how). Which networks
    have a limit of infinite depth, `nfd_jax.solvers.expansion` says: all blocks under CompleteP, and under depth-muP
    those whose branches have no mean.

    **Arguments:**

    - `task`, `model`: what is learned and by which network.
    - `training`, or its arguments by name: how (`nfd.Training`), by a row that learns features as n grows and an
      optimizer that is linear in gradients.
    - `particles`: n, neurons of the Monte-Carlo system: 4,096 unless given, or as many as an estimate needs.
      Cost grows as n L (steps B)^2, memory as n L steps B.
    - `closure`: `"coupled"` keeps the weight-reuse responses A and B, the limit of the ordinary network;
      `"decoupled"` drops them: Neural Feature Dynamics, the limit of a network whose backward pass uses an
      independent copy of each hidden matrix.
    - `noise`: `"matched"` (exact empirical moments, and evenly spread U, V and first images: far less Monte-Carlo
      error; it gives way to plain noise, with a warning, where its constraints would exceed a quarter of the particles)
      or `"plain"`.
    - `seed`: of the Monte-Carlo noise, 0 to 2^64 - 1. Same seed, same numbers.
    - `seeds`: a count S (seeds 0 to S-1) or a sequence: one solution each, of which the result has an axis, as that of
      networks, with standard errors. An estimate takes one `seed`.
    - `resolution`: of long training, from 0, the exact solution, to below 1. A query reveals only what is new in it by
      more than this part of its length, and updates are kept up to this part of their norm
      (`nfd_jax.matrices.compressed`), so that cost grows with the ranks of the bases, which level off, and not with
      steps x batch. The loss falls at a rate that is right up to resolution^2. By default 0 up to 512 queries
      (steps x batch), and 0.02 beyond. Matched noise lasts as long as ranks allow, and is plain from there on. An
      estimate measures what its resolution leaves, by solutions at four times and at twice it on the same noise, and
      with a tolerance goes on to finer ones where that asks for them.
    - `capacity`, `refinement`: of a solution, for studies of depth: in blocks, so that all depths up to it share a
      compiled program; and how many times finer the grid is whose noise drives it. The model's depth with refinement r
      and r times the depth follow one Brownian path.
    - `tolerance`: the 95 % half-width of every loss along training is to be at most so many times that loss.
    - `budget`: seconds, 600 unless given, after which an estimate ends as it is, with its honest error bars and an
      outcome that says so. One solution takes none. No solution is begun after them but the least that a first answer
      needs, two of every mean; those that have begun are finished; more solutions than the time left has room for are
      not asked for. At infinite depth a round of deeper solutions whose time, by those measured, is not left is not
      begun, and given up when time is over.
    - `checkpoint`: a folder in which the run is kept; called again with the same arguments, it goes on from there, and
      ends with the same numbers bit for bit. One of other arguments is refused.
    - `checkpoint_every`: how often it is written: after so many steps, or replicates of an estimate.
    - `progress`: show a bar; by default on a terminal.

    Returns a `Trajectory`, with members where `seeds` are given. Raises ValueError or TypeError for bad arguments
    before compiling.
    """
    members = (check_seed("seed", seed),) if seeds is None else seed_sequence(seeds)
    with_errors = tolerance is not None or check_model(model, finite=False).depth == math.inf
    _check_estimate(with_errors, tolerance, budget, training, particles, seeds)
    system = _system(task, model, training, closure, noise, resolution, with_errors=with_errors)
    arguments = system.problem.arguments | {"solver": "limit", "closure": closure}
    least = system.least_matched * (4 if with_errors else 1)  # n / 4 are compared with n
    default = estimate.default_particles(system) if with_errors else PARTICLES
    particles = default if particles is None else positive_int("particles", particles)
    gave_way = system.matched and particles < least
    if gave_way:
        warnings.warn(
            f"noise='matched' gives way to plain noise, of far more Monte-Carlo error: {training.steps} steps of these "
            f"batches need particles={least}, got {particles}; give as many, or noise='plain'",
            stacklevel=3,
        )
    if with_errors:
        run = estimate.estimate(
            system,
            task,
            model.depth,
            particles=particles,
            seed=members[0],
            tolerance=tolerance,
            budget=BUDGET if budget is None else budget,
            arguments=arguments,
            checkpoint=partial(Checkpoint.create, checkpoint, checkpoint_every, task),
            progress=progress,
        )
    else:
        arguments |= {"particles": particles, "noise": "matched" if system.matches(particles) else "plain"}
        arguments |= {"refinement": refinement} if refinement != 1 else {}
        arguments |= {"resolution": system.resolution} if system.resolution else {}
        identity = arguments | ({"seed": seed} if seeds is None else {"seeds": members})
        dynamics, needed = _solution(system, model, particles, capacity, refinement)
        recorded = ensemble.train(
            dynamics,
            system.problem,
            members,
            needed,
            description=f"{closure} limit",
            progress=progress,
            layout=devices.particles("particles", particles),
            checkpoint=Checkpoint.create(checkpoint, checkpoint_every, task, identity),
        )
        run = Trajectory.of(recorded, task, system.problem.data, members, arguments)
        run = run.only if seeds is None else run
    return replace(run, settings={**run.settings, "matched_from": least}) if gave_way else run


@takes_training
def limit_dynamics(
    task: Task,
    model: AbstractModel,
    training: Training,
    *,
    particles: int = PARTICLES,
    closure: str = "coupled",
    noise: str = "matched",
    resolution: float | None = 0.0,
) -> tuple[Conditioned, Problem]:
    """The dynamics that `solve_limit` compiles, and the problem that it gives them: for a loop of your own.

        dynamics, problem = nfd.limit_dynamics(task, model, steps=10)
        state, step = dynamics.init(nfd.seed_key(0)), eqx.filter_jit(dynamics.step)
        for number, rate, inputs, targets in problem.steps():
            state, record = step(state, number, rate, inputs, targets)

    Arguments are those of `solve_limit`; the depth is finite. With a resolution the state has room for the first steps
    only, `dynamics.capacity`, and rows that do not fit are not numbers: `nfd_jax.runtime.capacity.grown` gives more.
    """
    check_model(model, finite=True)
    system = _system(task, model, training, closure, noise, resolution)
    return _solution(system, model, positive_int("particles", particles), None, 1)[0], system.problem


def _system(
    task: Task,
    model: AbstractModel,
    training: Training,
    closure: str,
    noise: str,
    resolution: float | None,
    *,
    with_errors: bool = False,
) -> System:
    """The limit of this model; ValueError where there is none."""
    one_of("closure", closure, CLOSURES)
    one_of("noise", noise, NOISES)
    problem = Problem.of(task, model, training, finite=False)
    check_linear(problem.settings.optimizer)
    taken = resolution_of(resolution, problem)
    if with_errors and (coarsest := resolutions_to(taken)[0]) >= 1:
        raise ValueError(
            f"resolution={resolution!r} is too coarse for error bars, which start from solutions at {coarsest:g}, not "
            "below 1; try 0.02"
        )
    ends = closure == "coupled", noise == "matched", task.dimension
    system = System(model, problem.in_coordinates(), *ends, taken)
    system.units(1 if model.depth == math.inf else int(model.depth))  # refuses what has no limit
    if model.depth == math.inf:
        system.powers()  # likewise
    return system


def _solution(
    system: System, model: AbstractModel, particles: int, capacity: int | None, refinement: int
) -> tuple[Conditioned, int]:
    """The dynamics of a solution and its bytes; ValueError where the devices lack them."""
    depth = int(model.depth)
    blocks = depth if capacity is None else positive_int("capacity (in blocks, at least the depth)", capacity, depth)
    needed = system.check_memory(particles, blocks)
    refinement = positive_int("refinement", refinement)
    finer = None if refinement == 1 else refinement  # on its own grid noise needs no loop
    return system.dynamics(particles, depth, refinement=finer, capacity=blocks), needed


def _check_estimate(
    with_errors: bool,
    tolerance: float | None,
    budget: float | None,
    training: Training,
    particles: int | None,
    seeds: int | Sequence[int] | None,
) -> None:
    """ValueError or TypeError for what an estimate can't do, and a single solution."""
    if tolerance is not None:
        finite_float("tolerance", tolerance, strict=True)
    if budget is not None:
        finite_float("budget", budget, strict=True)
        if not with_errors:
            raise ValueError(
                f"budget={budget!r} is of an estimate; give a tolerance or depth=math.inf, or leave it out"
            )
    if not with_errors:
        return
    if training.observe is not None:
        raise ValueError(
            "observe sees one solution, not an estimate: give ResNet a finite depth and leave out tolerance"
        )
    if seeds is not None:
        raise ValueError(
            f"seeds={seeds!r} are of single solutions; an estimate has error bars already: give it one seed"
        )
    if particles is not None and positive_int("particles", particles) < 8:
        raise ValueError(f"particles must be at least 8 for error bars, which compare n with n / 4; got {particles}")
