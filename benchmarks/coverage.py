"""Do the error bars of `solve_limit(..., tolerance=...)` hold?

For every tolerance, the limit at infinite depth of the digits task is estimated with many seeds, and the final loss
compared with a reference: an estimate to a tenth of the smallest tolerance, or as near as its own budget allows (its
half-width is printed). Prints the share of seeds whose 95 % interval holds the reference, with its binomial interval,
and writes JSON on request.

    python benchmarks/coverage.py --tolerances 1e-2 3e-3 --seeds 100
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

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
    reference_budget: float = 600.0
    output: Path | None = None


def estimate(sizes: Sizes, tolerance: float, seed: int, budget: float = 600.0) -> Trajectory:
    """The limit at infinite depth."""
    return nfd.solve_limit(
        nfd.datasets.digits(sizes.samples),
        nfd.ResNet(math.inf, sizes.activation),
        steps=sizes.steps,
        learning_rate=sizes.learning_rate,
        closure=sizes.closure,
        tolerance=tolerance,
        seed=seed,
        budget=budget,
        progress=False,
    )


def main(sizes: Sizes) -> None:
    """Print one row a tolerance."""
    exact = estimate(sizes, min(sizes.tolerances) / 10, 10**6, sizes.reference_budget)
    truth, uncertain = float(exact.loss[-1]), float(exact.errors["loss"].half_width[-1])
    print(f"digits, P = {sizes.samples}, K = {sizes.steps}, {sizes.activation}, {sizes.closure}, {jax.devices()[0]}")
    print(f"reference: {exact.summary()} (depths {exact.settings['depths']})")
    head = (
        f"{'tolerance':>10} {'seeds':>6} {'covered':>9} {'95 % of that share':>20} {'half-width':>11} {'rms error':>10}"
    )
    head += f" {'met':>5} {'median s':>9}"
    print(head, "-" * len(head), sep="\n")
    rows = []
    for tolerance in sizes.tolerances:
        losses, widths, seconds, met = [], [], [], 0
        for seed in range(sizes.seeds):
            start = time.perf_counter()
            run = estimate(sizes, tolerance, seed)
            seconds.append(time.perf_counter() - start)
            losses.append(float(run.loss[-1]))
            widths.append(float(run.errors["loss"].half_width[-1]))
            met += bool(run.tolerance_met)
        error = np.abs(np.array(losses) - truth)
        covered = int(np.sum(error <= np.array(widths)))
        low, high = binomtest(covered, sizes.seeds).proportion_ci(0.95)
        row = {
            "tolerance": tolerance,
            "covered": covered,
            "share": [low, high],
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
            f"{tolerance:>10.0e} {sizes.seeds:>6} {covered:>9} {low:>12.2f} to {high:.2f} {row['half_width']:>11.2%} "
            f"{row['rms_error']:>10.2%} {met:>5} {row['seconds']:>8.1f}s",
            flush=True,
        )
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
