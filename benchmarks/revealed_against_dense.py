"""How much faster are networks with revealed matrices than autodiff, on the same work, and where is the crossover?

Three sides train the same networks (same task, width, depth, steps, members, draws included): `solve_network`
("revealed"), `train_networks` ("dense"), and for one member what a user would write in plain jax ("baseline").
One row a width and number of steps: seconds after compilation, ratios of paired repeats, and memory by the compiled
programs' own account. Then the widths where revealed matrices take over, and the c of the rule "revealed where
n >= c M", M = steps x samples. Writes JSON on request.

    python benchmarks/revealed_against_dense.py --widths 4096 --depth 32
    python benchmarks/revealed_against_dense.py --widths 64 128 256 512 --steps 4 8 16 --no-baseline
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import baseline
import jax
import tyro
from programs import compiled_step, total_bytes
from timing import first_call, paired, ratio, save

import nfd_jax as nfd


@dataclass(frozen=True)
class Sizes:
    """The work that all sides do.

    Args:
        widths: Widths n.
        depth: Blocks L.
        samples: Samples P, all in every batch.
        steps: Training steps K; one row a width and number of steps.
        seeds: Networks trained side by side.
        repeats: Timed repeats of each side.
        baseline: Time plain jax too, where there is one network.
        output: A JSON file for the results.
    """

    widths: tuple[int, ...] = (128, 512, 2048)
    depth: int = 16
    samples: int = 4
    steps: tuple[int, ...] = (8,)
    seeds: int = 1
    repeats: int = 3
    baseline: bool = True
    output: Path | None = None


def measure(sizes: Sizes, width: int, steps: int) -> dict[str, Any]:
    """Times and memory of all sides at one width and number of steps."""
    task, model = nfd.datasets.digits(sizes.samples), nfd.ResNet(sizes.depth, "relu")
    work: dict[str, Any] = {"width": width, "steps": steps, "progress": False}
    sides: dict[str, Callable[..., object]] = {
        "revealed": lambda seeds=sizes.seeds: nfd.solve_network(task, model, seeds=seeds, **work),
        "dense": lambda seeds=sizes.seeds: nfd.train_networks(task, model, seeds=seeds, **work),
    }
    programs = {name: compiled_step(partial(run, seeds=1)) for name, run in sides.items()}
    if sizes.baseline and sizes.seeds == 1:
        sides["baseline"] = lambda: baseline.train(task, sizes.depth, width, steps)
        programs["baseline"] = baseline.compiled_step(task, sizes.depth, width)
    first = {name: first_call(run) for name, run in sides.items()}
    seconds = paired(sides, sizes.repeats)
    return {
        "width": width,
        "queries": steps * sizes.samples,
        "first_call": first,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "over_revealed": {name: ratio(seconds[name], seconds["revealed"]) for name in sides if name != "revealed"},
        "bytes_a_member": {name: total_bytes(program) for name, program in programs.items()},
    }


def crossovers(rows: list[dict[str, Any]]) -> dict[int, float]:
    """By number of queries M, the width where dense and revealed take the same time: log-log interpolation between
    the last width where dense is faster and the next; infinite or zero where the widths do not bracket it."""
    found = {}
    for queries in sorted({row["queries"] for row in rows}):
        points = sorted((row["width"], row["over_revealed"]["dense"][0]) for row in rows if row["queries"] == queries)
        slower = [i for i, (_, dense_over_revealed) in enumerate(points) if dense_over_revealed < 1]
        if not slower:
            found[queries] = 0.0
        elif slower[-1] == len(points) - 1:
            found[queries] = math.inf
        else:
            (n1, r1), (n2, r2) = points[slower[-1]], points[slower[-1] + 1]
            share = -math.log(r1) / (math.log(r2) - math.log(r1))
            found[queries] = n1 * (n2 / n1) ** share
    return found


def main(sizes: Sizes) -> None:
    """Print one row a width and number of steps, then the crossovers."""
    print(f"L = {sizes.depth}, P = {sizes.samples}, {sizes.seeds} members, {jax.devices()[0]}")
    head = (
        f"{'n':>7} {'M':>5} {'revealed':>9} {'side':>9} {'time':>9} {'time / revealed':>26} {'memory / revealed':>18}"
    )
    print(head, "-" * len(head), sep="\n")
    rows = []
    for steps in sizes.steps:
        for width in sizes.widths:
            row = measure(sizes, width, steps)
            rows.append(row)
            seconds, memory = row["seconds"], row["bytes_a_member"]
            for side, (median, low, high) in row["over_revealed"].items():
                print(
                    f"{width:>7} {row['queries']:>5} {seconds['revealed']:>8.3f}s {side:>9} {seconds[side]:>8.3f}s "
                    f"{median:>10.2f} ({low:.2f} to {high:.2f}) {memory[side] / memory['revealed']:>14.1f}",
                    flush=True,
                )
    if len(sizes.widths) > 1:
        print(
            "\ncrossover with train_networks: "
            + ", ".join(
                f"M = {queries}: n = {width:.0f} = {width / queries:.1f} M"
                for queries, width in crossovers(rows).items()
            )
        )
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
