"""How much faster are networks with revealed matrices than the autodiff trainer, on the same work?

Both train the same ensemble (same task, width, depth, steps, members, draws included). One row a width: seconds of
the first call (with compilation) and of later ones, and the ratio of paired repeats. Writes JSON on request.

    python benchmarks/revealed_against_dense.py --widths 128 512 2048
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from timing import first_call, paired, ratio

import nfd_jax as nfd


@dataclass(frozen=True)
class Sizes:
    """The work that both sides do.

    Args:
        widths: Widths n, one row each.
        depth: Blocks L.
        samples: Samples P, all in every batch.
        steps: Training steps K.
        seeds: Networks trained side by side.
        repeats: Timed repeats of each side.
        output: A JSON file for the results.
    """

    widths: tuple[int, ...] = (128, 512, 2048)
    depth: int = 16
    samples: int = 4
    steps: int = 8
    seeds: int = 1
    repeats: int = 3
    output: Path | None = None


def measure(sizes: Sizes, width: int) -> dict[str, Any]:
    """Times of both sides at one width."""
    task, model = nfd.datasets.digits(sizes.samples), nfd.ResNet(sizes.depth, "relu")
    work: dict[str, Any] = {"width": width, "steps": sizes.steps, "seeds": sizes.seeds, "progress": False}
    sides = {
        "revealed": lambda: nfd.solve_network(task, model, **work),
        "dense": lambda: nfd.train_networks(task, model, **work),
    }
    first = {name: first_call(run) for name, run in sides.items()}
    seconds = paired(sides, sizes.repeats)
    median, low, high = ratio(seconds["dense"], seconds["revealed"])
    return {
        "width": width,
        "first_call": first,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "dense_over_revealed": {"median": median, "min": low, "max": high},
    }


def main(sizes: Sizes) -> None:
    """Print one row a width."""
    print(f"L = {sizes.depth}, P = {sizes.samples}, K = {sizes.steps}, {sizes.seeds} members, {jax.devices()[0]}")
    head = f"{'n':>8} {'revealed':>10} {'dense':>10} {'dense / revealed':>26} {'first calls':>20}"
    print(head, "-" * len(head), sep="\n")
    rows = []
    for width in sizes.widths:
        row = measure(sizes, width)
        rows.append(row)
        spread = row["dense_over_revealed"]
        print(
            f"{width:>8} {row['seconds']['revealed']:>9.3f}s {row['seconds']['dense']:>9.3f}s "
            f"{spread['median']:>10.2f} ({spread['min']:.2f} to {spread['max']:.2f}) "
            f"{row['first_call']['revealed']:>9.2f}s {row['first_call']['dense']:>8.2f}s",
            flush=True,
        )
    if sizes.output is not None:
        result = {"sizes": asdict(sizes), "device": str(jax.devices()[0]), "jax": jax.__version__, "rows": rows}
        sizes.output.write_text(json.dumps(result, indent=1, default=str))


if __name__ == "__main__":
    main(tyro.cli(Sizes))
