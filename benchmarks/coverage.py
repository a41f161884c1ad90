"""Do the error bars of `solve_limit(..., tolerance=...)` hold?

For every tolerance, the limit of the digits task is estimated with many seeds, and the final loss and outputs compared
with a reference: of a linear network the closed form, and otherwise an estimate of the exact law to a tenth of the
smallest tolerance, or as near as its own budget allows (its half-width is printed). Prints the share of seeds whose
95 % interval holds the reference, with its binomial interval, and writes JSON on request. A tolerance that is met at
once, such as 100, takes the least that an estimate draws.

    python benchmarks/coverage.py --tolerances 1e-2 3e-3 --seeds 100
    python benchmarks/coverage.py --tolerances 100 --depth 4 --steps 100 --particles 512 --resolution 0.02
    python benchmarks/coverage.py --tolerances 100 --depth 4 --steps 30 --particles 512 --resolution 0.02 \
        --activation identity
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from scipy.stats import binomtest
from timing import save

import nfd_jax as nfd
from nfd_jax.solvers.trajectory import Trajectory


@dataclass(frozen=True)
class Sizes:
    """The task and the seeds.

    Args:
        tolerances: Half-widths asked for, relative to the loss.
        seeds: Estimates of each.
        samples: Digits P, all in every batch.
        steps: Training steps K.
        learning_rate: Rate eta.
        activation: Activation phi.
        closure: Which limit.
        depth: Blocks L.
        particles: Of every solution; by default as many as an estimate takes unasked.
        resolution: Of the estimates, not of the reference; by default that of `solve_limit`.
        reference_particles: Of the reference.
        reference_budget: Seconds for the reference.
        output: A JSON file for the results.
    """

    tolerances: tuple[float, ...] = (1e-2, 3e-3)
    seeds: int = 100
    samples: int = 4
    steps: int = 4
    learning_rate: float = 0.5
    activation: str = "relu"
    closure: str = "coupled"
    depth: float = math.inf
    particles: int | None = None
    resolution: float | None = None
    reference_particles: int | None = None
    reference_budget: float = 600.0
    output: Path | None = None


def estimate(sizes: Sizes, tolerance: float, seed: int, budget: float = 600.0, **options: Any) -> Trajectory:
    """The limit with error bars."""
    depth = sizes.depth if math.isinf(sizes.depth) else int(sizes.depth)
    return nfd.solve_limit(
        nfd.datasets.digits(sizes.samples),
        nfd.ResNet(depth, sizes.activation),
        steps=sizes.steps,
        learning_rate=sizes.learning_rate,
        closure=sizes.closure,
        tolerance=tolerance,
        seed=seed,
        budget=budget,
        progress=False,
        **options,
    )


def reference(sizes: Sizes) -> tuple[float, float, np.ndarray]:
    """The final loss of the exact law, its half-width, and the outputs."""
    task = nfd.datasets.digits(sizes.samples)
    if sizes.activation == "identity":
        gram, targets = np.asarray(task.inputs @ task.inputs.T / task.dimension), task.targets[:, 0]
        options = {"learning_rate": sizes.learning_rate, "steps": sizes.steps, "closure": sizes.closure}
        outputs = nfd.analytic.linear_outputs(gram, targets, sizes.depth, **options)[-1]
        print("reference: closed form")
        return float(np.mean((outputs - targets) ** 2) / 2), 0.0, outputs[:, None]
    tolerance, options = min(sizes.tolerances) / 10, {"particles": sizes.reference_particles, "resolution": 0.0}
    if tolerance > 1:  # of the least that an estimate draws: the budget decides
        tolerance = 1e-6
    exact = estimate(sizes, tolerance, 10**6, sizes.reference_budget, **options)
    print(f"reference: {exact.summary()} (depths {exact.settings['depths']})")
    return float(exact.loss[-1]), float(exact.errors["loss"].half_width[-1]), exact.outputs[-1]


def main(sizes: Sizes) -> None:
    """Print one row a tolerance."""
    print(
        f"digits, P = {sizes.samples}, K = {sizes.steps}, L = {sizes.depth}, {sizes.activation}, {sizes.closure}, "
        f"{jax.devices()[0]}"
    )
    truth, uncertain, at_end = reference(sizes)
    head = f"{'tolerance':>10} {'seeds':>6} {'covered':>9} {'95 % of that share':>20} {'outputs':>8}"
    head += f" {'half-width':>11} {'rms error':>10} {'met':>5} {'median s':>9}"
    print(head, "-" * len(head), sep="\n")
    rows = []
    for tolerance in sizes.tolerances:
        losses, widths, shares, seconds, met = [], [], [], [], 0
        options = {"particles": sizes.particles, "resolution": sizes.resolution}
        for seed in range(sizes.seeds):
            start = time.perf_counter()
            run = estimate(sizes, tolerance, seed, **options)
            seconds.append(time.perf_counter() - start)
            losses.append(float(run.loss[-1]))
            widths.append(float(run.errors["loss"].half_width[-1]))
            inside = np.abs(run.outputs[-1] - at_end) <= run.errors["outputs"].half_width[-1]
            shares.append(float(np.mean(inside)))
            met += bool(run.tolerance_met)
        error = np.abs(np.array(losses) - truth)
        covered = int(np.sum(error <= np.array(widths)))
        low, high = binomtest(covered, sizes.seeds).proportion_ci(0.95)
        row = {
            "tolerance": tolerance,
            "covered": covered,
            "share": [low, high],
            "outputs": float(np.mean(shares)),
            "half_width": float(np.mean(widths)) / truth,
            "rms_error": float(np.sqrt(np.mean(error**2))) / truth,
            "met": met,
            "seconds": float(np.median(seconds)),
            "reference": [truth, uncertain],
            "losses": losses,
            "half_widths": widths,
        }
        rows.append(row)
        print(
            f"{tolerance:>10.0e} {sizes.seeds:>6} {covered:>9} {low:>12.2f} to {high:.2f} {row['outputs']:>8.2f} "
            f"{row['half_width']:>11.2%} "
            f"{row['rms_error']:>10.2%} {met:>5} {row['seconds']:>8.1f}s",
            flush=True,
        )
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
