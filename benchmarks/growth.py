"""Does `solve_network` grow as theory says: time as n, L and M^2, memory as n, L and M?

Exponents are slopes of log time (after compilation, median of repeats) and log memory (the compiled step's own
account) against the log of one size, the others fixed, with the 95% interval of the fit, and of the last two sizes.
M = steps x samples grows by the steps; time is expected at exponent 2 only where the traffic of M vectors outweighs
what every query costs.

    python benchmarks/growth.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from programs import compiled_step, total_bytes
from scipy.stats import linregress, t
from timing import first_call, paired, save

import nfd_jax as nfd


@dataclass(frozen=True)
class Sizes:
    """The sizes that vary, and those that do not.

    Args:
        widths: Widths n, at the first depth and the first number of steps.
        depths: Blocks L, at the first width and the first number of steps.
        steps: Training steps K, at the first width and the first depth.
        samples: Samples P, all in every batch.
        repeats: Timed repeats of each size.
        output: A JSON file for the results.
    """

    widths: tuple[int, ...] = (4096, 8192, 16384, 32768)
    depths: tuple[int, ...] = (4, 8, 16, 32)
    steps: tuple[int, ...] = (16, 32, 64, 128)
    samples: int = 4
    repeats: int = 3
    output: Path | None = None


EXPECTED = {"n": (1, 1), "L": (1, 1), "M": (2, 1)}  # of time and of memory


def slope(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """The exponent and the half-width of its 95% interval."""
    fit: Any = linregress(np.log(sizes), np.log(values))
    return fit.slope, t.ppf(0.975, len(sizes) - 2) * fit.stderr if len(sizes) > 2 else np.nan


def measure(sizes: Sizes, name: str) -> dict[str, Any]:
    """Times and memory against one size."""
    task = nfd.datasets.digits(sizes.samples)
    axis = {"n": sizes.widths, "L": sizes.depths, "M": sizes.steps}[name]

    def work(value: int) -> tuple[nfd.ResNet, dict[str, Any]]:
        width, depth, steps = sizes.widths[0], sizes.depths[0], sizes.steps[0]
        width, depth, steps = {"n": (value, depth, steps), "L": (width, value, steps), "M": (width, depth, value)}[name]
        return nfd.ResNet(depth, "relu"), {"width": width, "steps": steps, "seeds": 1}

    def run(value: int) -> None:
        model, options = work(value)
        nfd.solve_network(task, model, progress=False, **options)

    programs = [compiled_step(lambda value=value: run(value)) for value in axis]
    for value in axis:
        first_call(lambda value=value: run(value))
    seconds = paired({str(value): lambda value=value: run(value) for value in axis}, sizes.repeats)
    return {
        "size": name,
        "values": [value * sizes.samples if name == "M" else value for value in axis],
        "seconds": [float(np.median(times)) for times in seconds.values()],
        "bytes": [total_bytes(program) for program in programs],
    }


def main(sizes: Sizes) -> None:
    """Print one row a size that varies."""
    fixed = f"n = {sizes.widths[0]}, L = {sizes.depths[0]}, M = {sizes.steps[0] * sizes.samples}"
    print(f"{fixed} where fixed, B = {sizes.samples}, {jax.devices()[0]}")
    head = f"{'against':>8} {'time exponent':>18} {'expected':>8} {'memory exponent':>18} {'expected':>8}"
    print(head + "  time, last two   values", "-" * (len(head) + 25), sep="\n")
    rows = []
    for name, expected in EXPECTED.items():
        row = measure(sizes, name)
        row["exponents"] = {what: slope(row["values"], row[what]) for what in ("seconds", "bytes")}
        rows.append(row)
        (time, time_error), (memory, memory_error) = row["exponents"].values()
        last = slope(row["values"][-2:], row["seconds"][-2:])[0]
        points = ", ".join(
            f"{v}: {s:.3f}s {b / 1e6:.0f} MB"
            for v, s, b in zip(row["values"], row["seconds"], row["bytes"], strict=True)
        )
        print(
            f"{name:>8} {time:>9.2f} ± {time_error:<6.2f} {expected[0]:>8} {memory:>9.3f} ± {memory_error:<6.3f} "
            f"{expected[1]:>8} {last:>15.2f}   {points}",
            flush=True,
        )
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    main(tyro.cli(Sizes))
