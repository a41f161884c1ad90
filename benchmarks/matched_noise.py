"""What does matched noise buy, and at what bias?

One row a closure, activation and number of steps: the standard deviation of an output over seeds with plain and with
matched noise, the ratio of variances, the same times the ratio of seconds (above 1: matched noise is worth its time),
and n times the bias of matched noise against a reference (the exact recursion for the linear network, matched noise
with 16 times the particles for the others). Writes JSON on request.

    python benchmarks/matched_noise.py --particles 1024 --seeds 64
"""

from __future__ import annotations

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
from nfd_jax import analytic


@dataclass(frozen=True)
class Sizes:
    """The work.

    Args:
        activations: One group of rows each.
        particles: Particles n.
        seeds: Solutions of each kind.
        samples: Digits P, all in every batch.
        depth: Blocks L.
        steps: Training steps K.
        learning_rate: Rate eta.
        reference_seeds: Solutions with 16 times the particles.
        output: A JSON file for the results.
    """

    activations: tuple[str, ...] = ("identity", "tanh", "relu")
    particles: int = 1024
    seeds: int = 64
    samples: int = 4
    depth: int = 8
    steps: int = 8
    learning_rate: float = 1.0
    reference_seeds: int = 16
    output: Path | None = None


def solve(sizes: Sizes, activation: str, closure: str, noise: str, particles: int, seeds: int) -> tuple:
    """Outputs `(seeds, steps + 1, samples)` and the median seconds of a solution after the first."""
    task, model = nfd.datasets.digits(sizes.samples), nfd.ResNet(sizes.depth, activation)
    outputs, seconds = [], []
    for seed in range(seeds):
        start = time.perf_counter()
        run = nfd.solve_limit(
            task,
            model,
            steps=sizes.steps,
            learning_rate=sizes.learning_rate,
            particles=particles,
            closure=closure,
            noise=noise,
            seed=seed,
            progress=False,
        )
        seconds.append(time.perf_counter() - start)
        outputs.append(run.outputs[..., 0])
    return np.stack(outputs).astype(float), statistics.median(seconds[1:])


def reference(sizes: Sizes, activation: str, closure: str) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the limit and their standard errors."""
    task = nfd.datasets.digits(sizes.samples)
    if activation == "identity":
        gram = task.inputs @ task.inputs.T / task.dimension
        arguments = sizes.depth, 1.0, sizes.learning_rate, sizes.steps, closure
        exact = analytic.linear_outputs(gram, task.targets[:, 0], *arguments)
        return exact, np.zeros_like(exact)
    found, _ = solve(sizes, activation, closure, "matched", 16 * sizes.particles, sizes.reference_seeds)
    return found.mean(0), found.std(0, ddof=1) / len(found) ** 0.5


def rows_of(sizes: Sizes, activation: str, closure: str) -> list[dict[str, Any]]:
    """Measurements after the first step and after the last."""
    plain, plain_seconds = solve(sizes, activation, closure, "plain", sizes.particles, sizes.seeds)
    matched, matched_seconds = solve(sizes, activation, closure, "matched", sizes.particles, sizes.seeds)
    exact, error = reference(sizes, activation, closure)
    rows = []
    for step in (1, sizes.steps):
        spread = {name: found[:, step].var(0, ddof=1).mean() ** 0.5 for name, found in (("p", plain), ("m", matched))}
        bias = matched[:, step].mean(0) - exact[step]
        bias_error = np.hypot(matched[:, step].std(0, ddof=1) / sizes.seeds**0.5, error[step])
        worst = int(np.argmax(np.abs(bias) / bias_error))
        rows.append(
            {
                "closure": closure,
                "activation": activation,
                "step": step,
                "plain": spread["p"],
                "matched": spread["m"],
                "variance_ratio": (spread["p"] / spread["m"]) ** 2,
                "worth": (spread["p"] / spread["m"]) ** 2 * plain_seconds / matched_seconds,
                "seconds": {"plain": plain_seconds, "matched": matched_seconds},
                "bias_times_n": sizes.particles * bias[worst],
                "bias_error_times_n": sizes.particles * bias_error[worst],
            }
        )
    return rows


def main(sizes: Sizes) -> None:
    """Print one row a measurement."""
    print(f"n = {sizes.particles}, L = {sizes.depth}, P = {sizes.samples}, {sizes.seeds} seeds, {jax.devices()[0]}")
    head = f"{'closure':<10} {'phi':<9} {'steps':>5} {'plain':>9} {'matched':>9} {'variances':>10} {'x seconds':>10}"
    head += f" {'n x largest bias':>20}"
    print(head, "-" * len(head), sep="\n")
    rows = []
    for activation in sizes.activations:
        for closure in ("coupled", "decoupled"):
            for row in rows_of(sizes, activation, closure):
                rows.append(row)
                print(
                    f"{closure:<10} {activation:<9} {row['step']:>5} {row['plain']:>9.2g} {row['matched']:>9.2g} "
                    f"{row['variance_ratio']:>10.3g} {row['worth']:>10.3g} "
                    f"{row['bias_times_n']:>10.2f} ± {row['bias_error_times_n']:<6.2f}",
                    flush=True,
                )
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
