"""Training to the end: seconds, ranks and losses of limits trained for hundreds of steps, beside networks.

Four parts, each of which may be asked for alone:

- `full_batch`: every step sees all samples; both closures, both noises. Networks beside it: n times the gap of their
  mean log-loss is constant in n as long as the limit is their limit.
- `whole_set`: mini-batches of all digits of two classes, several epochs, training and held-out loss and accuracy.
- `cost`: seconds against the number of full-batch steps, with a resolution, exact, and of a dense network.
- `mlp`: an MLP of three layers, four samples, 300 steps.

Limits are timed after compilation: of a short run before, with the programs of the first capacity. Writes JSON on
request.

    python benchmarks/long_training.py
    python benchmarks/long_training.py --steps 60 --particles 512 --widths 32 64 --seeds 4 --epochs 1 --whole 64
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from timing import save

import nfd_jax as nfd
from nfd_jax import statistics

WARM = 40  # steps of the short run: longer than a compiled chunk


@dataclass(frozen=True)
class Sizes:
    """What is trained.

    Args:
        parts: Those to run, of full_batch, whole_set, cost and mlp.
        activations: Activations phi of the full-batch limits.
        samples: Digits P of a full batch.
        depth: Blocks L of the full-batch runs.
        steps: Training steps K of the full-batch runs.
        learning_rate: Rate eta.
        particles: Particles of every limit.
        widths: Widths of the networks beside it.
        seeds: Networks of each width, and limits.
        whole: Digits of the whole set.
        batch_size: Of its mini-batches.
        epochs: Of the whole set.
        whole_depth: Its blocks.
        resolution: Of all limits but the exact ones.
        output: A JSON file for the results.
    """

    parts: tuple[str, ...] = ("full_batch", "whole_set", "cost", "mlp")
    activations: tuple[str, ...] = ("tanh", "relu")
    samples: int = 16
    depth: int = 8
    steps: int = 1000
    learning_rate: float = 1.0
    particles: int = 4096
    widths: tuple[int, ...] = (128, 256, 512)
    seeds: int = 4
    whole: int = 236
    batch_size: int = 32
    epochs: int = 20
    whole_depth: int = 16
    resolution: float | None = None
    output: Path | None = None


def timed(solve: Callable[[int], nfd.Trajectory], steps: int) -> tuple[nfd.Trajectory, float]:
    """A run of so many steps, and its seconds after compilation."""
    solve(min(steps, WARM))
    start = time.perf_counter()
    return solve(steps), time.perf_counter() - start


def at(steps: int) -> list[int]:
    """The steps that tables show."""
    return [step for step in (10, 30, 100, 300, 1000) if step < steps] + [steps]


def full_batch(sizes: Sizes) -> list[dict[str, Any]]:
    """Limits of both closures and noises, then networks beside the coupled limit."""
    task, rows, shown = nfd.datasets.digits(sizes.samples), [], at(sizes.steps)
    shared: dict[str, Any] = {"learning_rate": sizes.learning_rate, "progress": False}
    print(f"\nfull batch: P = {sizes.samples}, L = {sizes.depth}, K = {sizes.steps}, n = {sizes.particles}")
    print(f"{'limit':<28} {'seconds':>8} {'images':>7} {'updates':>8}  loss after {shown} steps")
    for activation in sizes.activations:
        model = nfd.ResNet(sizes.depth, activation)
        logs = {}
        for closure in ("coupled", "decoupled"):
            for noise in ("plain", "matched"):
                options = {"particles": sizes.particles, "resolution": sizes.resolution, "closure": closure, **shared}
                solve = partial(nfd.solve_limit, task, model, noise=noise, **options)
                run, seconds = timed(lambda steps, solve=solve: solve(steps=steps), sizes.steps)
                losses = run.loss[shown]
                images, updates = run.ranks or (0, 0)
                name = f"{activation}, {closure}, {noise}"
                print(f"{name:<28} {seconds:>8.1f} {images:>7} {updates:>8}  " + " ".join(f"{x:.3g}" for x in losses))
                rows.append({"limit": name, "seconds": seconds, "ranks": run.ranks, "steps": shown, "loss": losses})
                logs[closure, noise] = np.log(losses)
        seeds = nfd.solve_limit(
            task, model, steps=sizes.steps, particles=sizes.particles, seeds=sizes.seeds,
            resolution=sizes.resolution, **shared,
        )  # fmt: skip
        limit = np.log(seeds.loss[:, shown])
        print(f"{activation}: n x gap of log-loss of tied networks, with 95 % intervals")
        for width in sizes.widths:
            nets = nfd.train_networks(task, model, width=width, seeds=sizes.seeds, steps=sizes.steps, **shared)
            gap = np.log(nets.loss[:, shown]).mean(0) - limit.mean(0)
            error = np.hypot(*(x.std(0, ddof=1) / len(x) ** 0.5 for x in (np.log(nets.loss[:, shown]), limit)))
            half = statistics.quantile(2 * sizes.seeds - 2) * error
            cells = [f"{width * a:+.0f} ± {width * b:.0f}" for a, b in zip(gap, half, strict=True)]
            print(f"  n = {width:<5} " + "  ".join(cells))
            rows.append({"activation": activation, "width": width, "steps": shown, "gap": gap, "half_width": half})
    return rows


def whole_set(sizes: Sizes) -> list[dict[str, Any]]:
    """Mini-batches of all digits of two classes: training and held-out loss of a limit and of networks."""
    held_out = nfd.datasets.digits(min(120, sizes.whole), split="test")
    task = nfd.datasets.digits(sizes.whole).minibatches(sizes.batch_size, seed=1).holding_out(held_out)
    an_epoch = -(-sizes.whole // sizes.batch_size)
    steps = sizes.epochs * an_epoch
    shown = [an_epoch * epoch for epoch in sorted({1, 5, 10, sizes.epochs}) if epoch <= sizes.epochs]
    model = nfd.ResNet(sizes.whole_depth, "tanh")
    shared: dict[str, Any] = {"steps": steps, "learning_rate": 0.5, "evaluate_at": shown, "progress": False}
    print(f"\nwhole set: P = {sizes.whole}, B = {sizes.batch_size}, L = {sizes.whole_depth}, K = {steps}")
    start = time.perf_counter()
    limit = nfd.solve_limit(task, model, particles=sizes.particles, resolution=sizes.resolution, **shared)
    seconds = time.perf_counter() - start
    print(f"limit: {seconds:.0f} s with compilation; {limit.summary()}")
    rows: list[dict[str, Any]] = [{"limit": "whole set", "seconds": seconds, "ranks": limit.ranks}]
    print(f"{'':<10} training and held-out loss, held-out accuracy after {shown} steps")

    def table(name: str, run: nfd.Trajectory, ensemble: bool) -> None:
        cells = []
        for place in range(len(shown)):
            parts = []
            for key in ("loss", "held_out_loss", "held_out_accuracy"):
                values = run.mean(key) if ensemble else {"loss": run.loss}.get(key, run.scores().get(key))
                error = f" ± {run.standard_error(key)[place]:.2g}" if ensemble else ""
                parts.append(f"{np.asarray(values)[place]:.4g}{error}")
            cells.append(" / ".join(parts))
        print(f"{name:<10} " + "   ".join(cells))
        rows.append({"name": name, "steps": shown, "cells": cells})

    table("limit", limit, ensemble=False)
    for width in sizes.widths:
        nets = nfd.train_networks(task, model, width=width, seeds=sizes.seeds, **shared)
        table(f"n = {width}", nets, ensemble=True)
    return rows


def cost(sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds against the number of steps: with a resolution, of the exact limit as far as its queries are at most half
    of the particles, and of a dense network of the largest width."""
    task, model, rows = nfd.datasets.digits(sizes.samples), nfd.ResNet(sizes.depth, "tanh"), []
    shared: dict[str, Any] = {"learning_rate": sizes.learning_rate, "progress": False}
    lengths = [sizes.steps // part for part in (8, 4, 2, 1)]
    exact = [steps for steps in (4, 8, 16, 32, 64, 128) if steps * sizes.samples <= sizes.particles // 2]
    print(f"\ncost against steps: P = {sizes.samples}, L = {sizes.depth}, n = {sizes.particles}")
    width = max(sizes.widths)

    def limit(steps: int, resolution: float | None) -> nfd.Trajectory:
        options = {"particles": sizes.particles, "noise": "plain", **shared}
        return nfd.solve_limit(task, model, steps=steps, resolution=resolution, **options)

    ways: dict[str, tuple[list[int], Callable[[int], Any]]] = {
        "resolution": (lengths, lambda steps: limit(steps, sizes.resolution)),
        "exact": (exact, lambda steps: limit(steps, 0.0)),
        f"dense, n = {width}": (
            lengths,
            lambda steps: nfd.train_networks(task, model, width=width, seeds=1, steps=steps, **shared),
        ),
    }
    for name, (counts, run) in ways.items():
        seconds = []
        for steps in counts:
            run(min(steps, WARM) if name != "exact" else steps)
            start = time.perf_counter()
            run(steps)
            seconds.append(time.perf_counter() - start)
        power = np.polyfit(np.log(counts[-3:]), np.log(seconds[-3:]), 1)[0]
        cells = "  ".join(f"{steps}: {each:.2f} s" for steps, each in zip(counts, seconds, strict=True))
        print(f"{name:<16} {cells}; grows as steps^{power:.2f} over the last three")
        rows.append({"way": name, "steps": counts, "seconds": seconds, "power": power})
    return rows


def mlp(sizes: Sizes) -> list[dict[str, Any]]:
    """Three tanh layers, four samples, 300 steps."""
    task, model, steps = nfd.datasets.digits(4), nfd.MLP(3), min(300, sizes.steps)

    def solve(count: int) -> nfd.Trajectory:
        options = {"particles": sizes.particles, "resolution": sizes.resolution, "progress": False}
        return nfd.solve_limit(task, model, steps=count, learning_rate=0.5, **options)

    run, seconds = timed(solve, steps)
    print(f"\nMLP of three tanh layers, P = 4, K = {steps}, n = {sizes.particles}: {seconds:.1f} s; {run.summary()}")
    return [{"limit": "mlp", "seconds": seconds, "ranks": run.ranks, "loss": run.loss[[0, -1]]}]


def main(sizes: Sizes) -> None:
    """The parts that are asked for."""
    known = {"full_batch": full_batch, "whole_set": whole_set, "cost": cost, "mlp": mlp}
    if unknown := [part for part in sizes.parts if part not in known]:
        raise SystemExit(f"parts must be of {', '.join(known)}, got {', '.join(unknown)}")
    print(f"digits, {jax.devices()[0]}, jax {jax.__version__}")
    save(sizes.output, sizes, [row for part in sizes.parts for row in known[part](sizes)])


if __name__ == "__main__":
    main(tyro.cli(Sizes))
