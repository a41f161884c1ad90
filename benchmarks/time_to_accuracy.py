"""How many seconds to the final loss of the limit of infinite width and depth, to one percent?

Four ways, same task: the mean over seeds of dense networks (autodiff), of particle solutions with plain noise, of
those with matched noise, and `solve_limit(..., tolerance=0.01)`, which extrapolates in depth and particles. The first
three are off by a / n + b / L besides their noise. That bias is fitted on a grid of widths and depths, the noise and
the seconds are measured there, and the cheapest width, depth and number of seeds are worked out whose bias and 95 %
sampling error together are below the accuracy. Those times are extrapolated, as the tables say: runs so large would
take hours. The last way is run as it is, after compilation. Writes JSON on request.

    python benchmarks/time_to_accuracy.py
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from timing import save

import nfd_jax as nfd


@dataclass(frozen=True)
class Sizes:
    """The task, and the grid on which the three plain ways are measured.

    Args:
        accuracy: Of the final loss, relative.
        widths: Widths of dense networks.
        particles: Particles of the solutions.
        depths: Depths of both.
        seeds: Networks, and solutions, of each size.
        samples: Digits P, all in every batch.
        steps: Training steps K.
        learning_rate: Rate eta.
        activation: Activation phi.
        output: A JSON file for the results.
    """

    accuracy: float = 0.01
    widths: tuple[int, ...] = (64, 128, 256, 512)
    particles: tuple[int, ...] = (512, 1024, 2048)
    depths: tuple[int, ...] = (8, 16, 32)
    seeds: int = 48
    samples: int = 4
    steps: int = 4
    learning_rate: float = 0.5
    activation: str = "relu"
    output: Path | None = None


def losses_of(sizes: Sizes, way: str, width: int, depth: int) -> tuple[np.ndarray, float]:
    """Final losses of all seeds, and seconds a seed after compilation."""
    task, model = nfd.datasets.digits(sizes.samples), nfd.ResNet(depth, sizes.activation)
    work: dict[str, Any] = {"steps": sizes.steps, "learning_rate": sizes.learning_rate, "progress": False}
    if way == "dense networks":

        def run() -> np.ndarray:
            return nfd.train_networks(task, model, width=width, seeds=sizes.seeds, **work).loss[:, -1]
    else:

        def run() -> np.ndarray:
            noise = way.split()[0]
            solve = [
                nfd.solve_limit(task, model, particles=width, noise=noise, seed=s, **work) for s in range(sizes.seeds)
            ]
            return np.array([each.loss[-1] for each in solve])

    run()
    start = time.perf_counter()
    found = run()
    return found.astype(float), (time.perf_counter() - start) / sizes.seeds


def cheapest(sizes: Sizes, exact: float, power: int, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The least time within the accuracy: bias a / n + b / L, variance v / n, seconds s n^power L."""
    n, depth, mean, spread, seconds = (np.array([c[k] for c in cells]) for k in ("n", "L", "mean", "spread", "seconds"))
    weight = sizes.seeds**0.5 / spread
    columns = np.stack([1 / n, 1 / depth, 1 / depth**2, 1 / (n * depth)], axis=1)
    a, b, *_ = np.linalg.lstsq(columns * weight[:, None], (mean - exact) * weight, rcond=None)[0]
    variance = float(np.median(spread**2 * n))
    unit = float(np.median((seconds / (n**power * depth))[np.argsort(n * depth)[-3:]]))  # of the largest
    best: dict[str, Any] = {"total": math.inf}
    # no smaller than measured, where neither the fit nor matched noise holds
    for width in n.min() * 2 ** np.arange(16):
        for blocks in depth.min() * 2 ** np.arange(11):
            left = sizes.accuracy * exact - abs(a / width + b / blocks)
            if left > 0:
                seeds = max(2, math.ceil(1.96**2 * variance / width / left**2))
                total = seeds * unit * float(width) ** power * float(blocks)
                if total < best["total"]:
                    best = {"n": int(width), "L": int(blocks), "seeds": seeds, "total": total}
    return best | {"a": float(a), "b": float(b)}


def main(sizes: Sizes) -> None:
    """Print one row a way."""

    def estimate(tolerance: float, seed: int) -> Any:
        return nfd.solve_limit(
            nfd.datasets.digits(sizes.samples), nfd.ResNet(math.inf, sizes.activation), steps=sizes.steps,
            learning_rate=sizes.learning_rate, tolerance=tolerance, seed=seed, progress=False,
        )  # fmt: skip

    exact = estimate(sizes.accuracy / 4, 1)
    truth = float(exact.loss[-1])
    print(f"digits, P = {sizes.samples}, K = {sizes.steps}, {sizes.activation}, {jax.devices()[0]}")
    print(f"limit: {exact.summary()}")
    seconds, run = [], exact
    for seed in range(4):
        start = time.perf_counter()
        run = estimate(sizes.accuracy, seed)
        seconds.append(time.perf_counter() - start)
    ours = statistics.median(seconds[1:])
    rows: list[dict[str, Any]] = []
    for way, grid, power in (
        ("dense networks", sizes.widths, 2),
        ("plain noise", sizes.particles, 1),
        ("matched noise", sizes.particles, 1),
    ):
        cells = []
        for n in grid:
            for depth in sizes.depths:
                losses, each = losses_of(sizes, way, n, depth)
                spread = float(losses.std(ddof=1))
                cells.append({"n": n, "L": depth, "mean": float(losses.mean()), "spread": spread, "seconds": each})
        rows.append({"way": way, "cells": cells, **cheapest(sizes, truth, power, cells)})
    rows.append({"way": "to a tolerance", "total": ours, "replicates": run.settings["replicates"]})
    head = f"{'way':<16} {'n':>8} {'L':>6} {'seeds':>6} {'seconds':>10} {'over the last':>14}"
    print(head, "-" * len(head), sep="\n")
    for row in rows:
        size = f"{row.get('n', ''):>8} {row.get('L', ''):>6} {row.get('seeds', ''):>6}"
        note = "  extrapolated" if "n" in row else "  measured"
        print(f"{row['way']:<16} {size} {row['total']:>10.1f} {row['total'] / ours:>14.1f}{note}")
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
