"""solve_limit: the infinite-width limit, in either closure, as one solution or as an estimate with error bars."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nfd_jax import optimizers
from nfd_jax._checks import finite_float, one_of, positive_int
from nfd_jax.dynamics.conditioned import in_coordinates
from nfd_jax.models import AbstractModel, check_model
from nfd_jax.optimizers import Optimizer
from nfd_jax.parametrization import Parametrization
from nfd_jax.runtime import loop as engine
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.seeds import check_seed, seed_key
from nfd_jax.solvers import multilevel
from nfd_jax.solvers.particles import System
from nfd_jax.solvers.trajectory import Trajectory
from nfd_jax.task import Task

CLOSURES = ("coupled", "decoupled")
NOISES = ("matched", "plain")
PARTICLES = 4096  # of one solution, unasked
BUDGET = 600.0  # seconds of an estimate, unasked


def solve_limit(
    task: Task,
    model: AbstractModel,
    *,
    steps: int = 10,
    learning_rate: optimizers.Rate = 0.5,
    particles: int | None = None,
    closure: str = "coupled",
    noise: str = "matched",
    parametrization: str | Parametrization = "depth_mup",
    train_input: bool = False,
    train_readout: bool = False,
    richness: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    seed: int = 0,
    tolerance: float | None = None,
    budget: float | None = None,
    observe: engine.Observe | None = None,
    evaluate_at: Sequence[int] | None = None,
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
    - `steps`, `learning_rate`: training steps, and the width- and depth-free rate eta or an optax schedule.
    - `particles`: n, neurons of the Monte-Carlo system: 4,096 unless given, or as many as an estimate needs.
      Cost grows as n L (steps B)^2, memory as n L steps B.
    - `closure`: `"coupled"` keeps the weight-reuse responses A and B, the limit of the ordinary network;
      `"decoupled"` drops them: Neural Feature Dynamics, the limit of a network whose backward pass uses an
      independent copy of each hidden matrix.
    - `noise`: `"matched"` (exact empirical moments, and evenly spread U, V and first images: far less Monte-Carlo
      error; it gives way to plain noise, with a warning, where its constraints would exceed a quarter of the particles)
      or `"plain"`.
    - `parametrization`: a row of the exponent table that learns features as n grows, or one of your own.
    - `train_input`, `train_readout`: whether U and V train as well, at the muP rates.
    - `richness`: gamma; outputs are divided by it and rates multiplied by its square. Towards 0 training is lazy.
    - `momentum`, `weight_decay`: heavy ball; W <- (1 - eta lambda) W.
    - `seed`: of the Monte-Carlo noise, 0 to 2^64 - 1. Same seed, same numbers.
    - `tolerance`: the 95 % half-width of every loss along training is to be at most so many times that loss.
    - `budget`: seconds, 600 unless given, after which an estimate ends as it is, with its honest error bars and an
      outcome that says so. One solution takes none. No solution is begun after them but the least that a first answer
      needs, two of every mean; those that have begun are finished; more solutions than the time left has room for are
      not asked for. At infinite depth a round of deeper solutions whose time, by those measured, is not left is not
      begun, and given up when time is over.
    - `observe`: called with a `Sweep` before every update and after the last one; the arrays it returns, by names of
      its own, are kept in `observed`. It is traced by jax: written with `jax.numpy`, without numpy and without branches
      on values. Its attribute `axes` may name the axes of its arrays (`nfd.observables.axes`).
    - `evaluate_at`: the steps, 0 to `steps`, at which held-out samples and, with mini-batches, all training samples
      are evaluated, on queries that are not stored; by default all.
    - `checkpoint`: a folder in which the run is kept; called again with the same arguments, it goes on from there, and
      ends with the same numbers bit for bit. One of other arguments is refused.
    - `checkpoint_every`: how often it is written: after so many steps, or replicates of an estimate.
    - `progress`: show a bar; by default on a terminal.

    Returns a `Trajectory` without members. Raises ValueError or TypeError for bad arguments before compiling.
    """
    one_of("closure", closure, CLOSURES)
    one_of("noise", noise, NOISES)
    particles = None if particles is None else positive_int("particles", particles)
    check_seed("seed", seed)
    with_errors = tolerance is not None or check_model(model, finite=False).depth == math.inf
    if tolerance is not None:
        finite_float("tolerance", tolerance, strict=True)
    if budget is not None and not with_errors:
        raise ValueError(f"budget={budget!r} is of an estimate; give a tolerance or depth=math.inf, or leave it out")
    budget = BUDGET if budget is None else finite_float("budget", budget, strict=True)
    if with_errors and observe is not None:
        raise ValueError(
            "observe sees one solution, not an estimate: give ResNet a finite depth and leave out tolerance"
        )
    if with_errors and particles is not None and particles < 8:
        raise ValueError(f"particles must be at least 8 for error bars, which compare n with n / 4; got {particles}")
    problem = engine.prepare(
        task,
        model,
        finite=False,
        steps=steps,
        learning_rate=learning_rate,
        parametrization_name=parametrization,
        optimizer=Optimizer.create("sgd", momentum, weight_decay),
        train_input=train_input,
        train_readout=train_readout,
        richness=richness,
        observe=observe,
        evaluate_at=evaluate_at,
        progress=progress,
    )
    system = System(model, in_coordinates(problem), closure == "coupled", noise == "matched", task.dimension)
    system.scales(1 if model.depth == math.inf else int(model.depth))  # refuses what has no limit
    if model.depth == math.inf:
        system.powers()  # likewise
    arguments = problem.arguments | {"solver": "limit", "closure": closure}
    particles = particles or (multilevel.default_particles(system) if with_errors else PARTICLES)
    least = system.least_matched * (4 if with_errors else 1)  # n / 4 are compared with n
    gave_way = system.matched and particles < least
    if gave_way:
        warnings.warn(
            f"noise='matched' gives way to plain noise, of far more Monte-Carlo error: {steps} steps of these batches "
            f"need particles={least}, got {particles}; give as many, or noise='plain'",
            stacklevel=2,
        )
    if with_errors:
        run = multilevel.estimate(
            system,
            task,
            model.depth,
            particles=particles,
            seed=seed,
            tolerance=tolerance,
            budget=budget,
            arguments=arguments,
            checkpoint=partial(Checkpoint.create, checkpoint, checkpoint_every, task),
            progress=progress,
        )
    else:
        arguments |= {"particles": particles, "noise": "matched" if system.matches(particles) else "plain"}
        kept_in = Checkpoint.create(checkpoint, checkpoint_every, task, arguments | {"seed": seed})
        with engine.progress_bar(f"{closure} limit", steps + 1, progress) as bar:
            kept = system.solve(
                seed_key(seed),
                particles,
                int(model.depth),
                matched=system.matches(particles),
                progress=bar,
                checkpoint=kept_in,
            )
        run = kept.trajectory(task, system.problem.data, (seed,), arguments, members=False)
    return replace(run, settings={**run.settings, "matched_from": least}) if gave_way else run
