"""Training to the end: seconds, ranks and losses of limits trained for hundreds of steps, beside networks.

Six parts, each of which may be asked for alone:

- `full_batch`: every step sees all samples; both closures, both noises. Networks beside it: n times the gap of their
  mean log-loss is constant in n as long as the limit is their limit.
- `whole_set`: mini-batches of all digits of two classes, several epochs, training and held-out loss and accuracy.
- `ten_classes`: of all digits, with cross-entropy.
- `cost`: seconds against the number of full-batch steps, with a resolution, exact, and of a dense network.
- `mlp`: an MLP of three layers, four samples, 300 steps.
- `ranks`: what ranks depend on: samples, activation, depth, rate, resolution and loss, one changed at a time.

Limits are timed after compilation: of a short run before, with the programs of the first capacity. Writes JSON on
request, after every part.

    python benchmarks/long_training.py
    python benchmarks/long_training.py --steps 60 --particles 512 --widths 32 64 --seeds 4 --epochs 1 --whole 64 \\
        --ten-samples 100 --ten-epochs 1
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
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
        parts: Those to run, of full_batch, whole_set, ten_classes, cost, mlp and ranks.
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
        ten_samples: Digits of ten classes; by default all.
        ten_batch_size: Of their mini-batches.
        ten_epochs: Of them.
        ten_rate: Their rate eta.
        resolution: Of the full-batch limits but the exact ones.
        whole_resolution: Of those on mini-batches.
        figures: A folder for pictures.
        output: A JSON file for the results.
    """

    parts: tuple[str, ...] = ("full_batch", "whole_set", "ten_classes", "cost", "mlp", "ranks")
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
    ten_samples: int | None = None
    ten_batch_size: int = 64
    ten_epochs: int = 10
    ten_rate: float = 2.0
    resolution: float | None = None
    whole_resolution: float = 0.05
    figures: Path | None = None
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
    """Mini-batches of all digits of two classes."""
    task = nfd.datasets.digits(sizes.whole).minibatches(sizes.batch_size, seed=1)
    task = task.holding_out(nfd.datasets.digits(min(120, sizes.whole), split="test"))
    return epochs(sizes, "whole set", task, sizes.epochs, sizes.whole_depth, 0.5)


def ten_classes(sizes: Sizes) -> list[dict[str, Any]]:
    """Mini-batches of all digits, cross-entropy."""
    chosen: dict[str, Any] = {"classes": range(10), "loss": "cross_entropy"}
    task = nfd.datasets.digits(sizes.ten_samples, **chosen).minibatches(sizes.ten_batch_size, seed=1)
    task = task.holding_out(nfd.datasets.digits(min(300, task.samples), split="test", **chosen))
    return epochs(sizes, "ten classes", task, sizes.ten_epochs, sizes.depth, sizes.ten_rate)


def epochs(
    sizes: Sizes, name: str, task: nfd.Task, count: int, depth: int, learning_rate: float
) -> list[dict[str, Any]]:
    """Training and held-out loss and accuracy of a limit and of networks, after some of the epochs, and a figure."""
    assert task.batch_size is not None
    an_epoch = -(-task.samples // task.batch_size)
    steps, shown = count * an_epoch, [an_epoch * epoch for epoch in sorted({1, 2, 5, 10, count}) if epoch <= count]
    model = nfd.ResNet(depth, "tanh")
    shared: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "evaluate_at": shown, "progress": False}
    print(f"\n{name}: P = {task.samples}, B = {task.batch_size}, L = {depth}, K = {steps}, n = {sizes.particles}")
    start = time.perf_counter()
    limit = nfd.solve_limit(task, model, particles=sizes.particles, resolution=sizes.whole_resolution, **shared)
    seconds = time.perf_counter() - start
    print(f"limit: {seconds:.0f} s with compilation, {limit.settings['noise']} noise; {limit.summary()}")
    rows: list[dict[str, Any]] = [{"limit": name, "seconds": seconds, "ranks": limit.ranks}]
    print(f"{'':<10} training and held-out loss, held-out accuracy, each ± standard error, after {shown} steps")
    curves = {"limit": limit}
    for width in sizes.widths:
        curves[f"n = {width}"] = nfd.train_networks(task, model, width=width, seeds=sizes.seeds, **shared)
    for label, run in curves.items():
        found = {key: measured(run, key) for key in ("loss", "held_out_loss", "held_out_accuracy")}
        cells = [
            " / ".join(f"{mean[place]:.4g} ± {error[place]:.2g}" for mean, error in found.values())
            for place in range(len(shown))
        ]
        print(f"{label:<10} " + "   ".join(cells), flush=True)
        rows.append({"name": label, "steps": shown, **found})
    if sizes.figures is not None:
        draw(sizes.figures / f"{name.replace(' ', '_')}.png", name, curves)
    return rows


def measured(run: nfd.Trajectory, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error; of one limit the error is not known."""
    if run.ensemble:
        return run.mean(key), run.standard_error(key)
    values = np.asarray(run.loss if key == "loss" else run.scores()[key])
    return values, np.full_like(values, np.nan)


def draw(path: Path, name: str, curves: dict[str, nfd.Trajectory]) -> None:
    """Training and held-out curves of limit and networks, with 95 % intervals of means over networks."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    titles = {"loss": "training loss", "held_out_loss": "held-out loss", "held_out_accuracy": "held-out accuracy"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for number, (label, run) in enumerate(reversed(curves.items())):
            color = "black" if label == "limit" else f"C{number}"
            nfd.plotting.loss(run, axis, name=key, points=run.ensemble, label=label, color=color)
        axis.set(title=title, yscale="log" if "loss" in key else "linear")
    figure.suptitle(f"{name}: limit and networks")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


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


def ranks(sizes: Sizes) -> list[dict[str, Any]]:
    """Ranks and losses, with one thing changed at a time; beside each the loss at half the resolution, same noise."""
    steps, particles, rows = min(300, sizes.steps), min(2048, sizes.particles), []
    base: dict[str, Any] = {
        "samples": sizes.samples, "activation": "tanh", "depth": sizes.depth, "rate": sizes.learning_rate,
        "resolution": 0.02, "loss": "mse",
    }  # fmt: skip
    changes: list[dict[str, Any]] = [
        {},
        *({"samples": count} for count in (sizes.samples // 4, sizes.samples * 4)),
        {"activation": "relu"},
        *({"depth": depth} for depth in (max(1, sizes.depth // 4), sizes.depth * 4)),
        *({"rate": sizes.learning_rate * factor} for factor in (0.25, 4)),
        {"activation": "relu", "rate": sizes.learning_rate * 4},
        *({"resolution": resolution} for resolution in (0.005, 0.01, 0.04, 0.08)),
        {"loss": "cross_entropy"},
    ]

    def solved(resolution: float, samples: int, activation: str, depth: int, rate: float, loss: str) -> nfd.Trajectory:
        task = nfd.datasets.digits(samples, loss=loss)
        options: dict[str, Any] = {"particles": particles, "noise": "plain", "progress": False}
        return nfd.solve_limit(
            task, nfd.ResNet(depth, activation), steps=steps, learning_rate=rate, resolution=resolution, **options
        )

    print(f"\nranks after {steps} full-batch steps, n = {particles}; changed from {base}:")
    print(f"{'changed':<36} {'images':>7} {'updates':>8} {'loss':>9} {'of first':>9} {'at half the resolution':>23}")
    for change in changes:
        options = base | change
        resolution = options.pop("resolution")
        run, finer = (solved(each, **options) for each in (resolution, resolution / 2))
        name = ", ".join(f"{key} {value}" for key, value in change.items()) or "nothing"
        images, updates = run.ranks or (0, 0)
        last, first, off = run.loss[-1], run.loss[0], run.loss[-1] / finer.loss[-1] - 1
        print(f"{name:<36} {images:>7} {updates:>8} {last:>9.2e} {last / first:>9.1e} {off:>+22.1%}", flush=True)
        rows.append({"changed": change, "ranks": run.ranks, "loss": last, "first": first, "off": off})
    return rows


def main(sizes: Sizes) -> None:
    """The parts that are asked for."""
    every = (full_batch, whole_set, ten_classes, cost, mlp, ranks)
    known = {part.__name__: part for part in every}
    if unknown := [part for part in sizes.parts if part not in known]:
        raise SystemExit(f"parts must be of {', '.join(known)}, got {', '.join(unknown)}")
    print(f"digits, {jax.devices()[0]}, jax {jax.__version__}")
    rows: list[dict[str, Any]] = []
    for part in sizes.parts:
        rows += known[part](sizes)
        save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
