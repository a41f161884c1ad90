"""How far is `solve_network` from the least time that its memory traffic and its Gaussian numbers take?

The floor of a block query with m revealed vectors is 8 n m numbers moved (theory section 4) at the rate of a large
copy, read and written, by all cores, and n B normal numbers at the rate of `jax.random.normal`; both rates are
measured between the timed runs. `--dense` asks the same of `train_networks`: 6 L n^2 numbers a step (read forward,
read backward, write the gradient, read both and write the update), 1 L n^2 for the last outputs, and the weights'
draws.

    python benchmarks/distance_to_floor.py --width 16384 --depth 64
"""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from timing import first_call, save

import nfd_jax as nfd


@dataclass(frozen=True)
class Sizes:
    """The work.

    Args:
        width: Width n.
        depth: Blocks L.
        samples: Samples P, the batch B.
        steps: Training steps K.
        repeats: Timed repeats.
        dense: Measure train_networks instead.
        output: A JSON file for the results.
    """

    width: int = 4096
    depth: int = 32
    samples: int = 4
    steps: int = 8
    repeats: int = 3
    dense: bool = False
    output: Path | None = None


LARGE = 2**25  # numbers: 128 MB, more than caches hold


def copy_rate(cores: int) -> float:
    """Bytes a second, read and written, of a copy of a large array by all cores; the best of a few."""
    source, target = np.ones(LARGE, np.float32), np.zeros(LARGE, np.float32)
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(*part), parts))
            best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best


def normal_rate() -> float:
    """Standard normal numbers a second; the best of a few."""
    draw = jax.jit(lambda key: jax.random.normal(key, (2**22,)))
    jax.block_until_ready(draw(jax.random.key(0)))
    best = 0.0
    for seed in range(5):
        start = time.perf_counter()
        jax.block_until_ready(draw(jax.random.key(seed)))
        best = max(best, 2**22 / (time.perf_counter() - start))
    return best


def needed(sizes: Sizes) -> tuple[float, float]:
    """Bytes moved and normal numbers drawn, at least."""
    n, L, B, K = sizes.width, sizes.depth, sizes.samples, sizes.steps
    if sizes.dense:
        return 4.0 * L * n**2 * (6 * K + 1), float(L * n**2)
    queries = [k * B for k in range(K) for _ in range(2)] + [K * B]  # forward and backward, and the last outputs
    return 4.0 * 8 * n * L * sum(queries), float(n * L * B * len(queries))


def main(sizes: Sizes) -> None:
    """Print the times, the floor with what it is made of, and their ratio."""
    task, model = nfd.datasets.digits(sizes.samples), nfd.ResNet(sizes.depth, "relu")
    solve = nfd.train_networks if sizes.dense else nfd.solve_network

    def run() -> None:
        solve(task, model, width=sizes.width, steps=sizes.steps, seeds=1, progress=False)

    print(f"{solve.__name__}, n = {sizes.width}, L = {sizes.depth}, B = {sizes.samples}, K = {sizes.steps}")
    print(f"first call {first_call(run):.2f}s, {jax.devices()[0]}")
    moved, drawn = needed(sizes)
    rows: list[dict[str, Any]] = []
    for _ in range(sizes.repeats):
        rates = copy_rate(os.cpu_count() or 1), normal_rate()
        seconds = first_call(run)
        floor = moved / rates[0] + drawn / rates[1]
        rows.append({"seconds": seconds, "copy": rates[0], "normal": rates[1], "floor": floor})
        print(
            f"{seconds:8.3f}s   floor {floor:.3f}s = {moved / 1e9:.1f} GB at {rates[0] / 1e9:.1f} GB/s"
            f" + {drawn / 1e6:.1f} M normals at {rates[1] / 1e6:.0f} M/s   ratio {seconds / floor:.2f}",
            flush=True,
        )
    print(f"ratio, median of {sizes.repeats}: {statistics.median(row['seconds'] / row['floor'] for row in rows):.2f}")
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
