"""What does it cost to divide particles over devices, with as many particles a device however many there are?

One row a number of devices D, n = D x the particles of one: seconds of a limit on D forced host devices, of the same
limit on one device, and their ratio. Forced host devices share the cores of this machine, and one device uses several
cores already, so this shows the overhead of dividing, never a speed-up: 1 is no overhead. A speed-up takes devices of
their own. Every row runs in a process of its own, both sides in turn there. Writes JSON on request.

    python benchmarks/weak_scaling.py --devices 1 2 4 8 --particles 2048
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from timing import first_call, paired, ratio

import nfd_jax as nfd


@dataclass(frozen=True)
class Sizes:
    """The work of one device.

    Args:
        devices: Numbers of devices, one row each.
        particles: Particles of one device.
        depth: Blocks L.
        samples: Samples P, all in every batch.
        steps: Training steps K.
        repeats: Timed repeats of each side.
        output: A JSON file for the results.
        row: Measure on the devices that this process has and print JSON; what a row's own process is asked.
    """

    devices: tuple[int, ...] = (1, 2, 4, 8)
    particles: int = 2048
    depth: int = 8
    samples: int = 4
    steps: int = 6
    repeats: int = 3
    output: Path | None = None
    row: bool = False


def measure(sizes: Sizes) -> dict[str, Any]:
    """Times of both sides at all devices of this process, and how far apart their results are."""
    devices = jax.device_count()
    task, model = nfd.datasets.digits(sizes.samples), nfd.ResNet(sizes.depth, "relu")

    def solve(alone: bool) -> np.ndarray:
        with jax.default_device(jax.devices()[0]) if alone else contextlib.nullcontext():
            limit = nfd.solve_limit(task, model, steps=sizes.steps, particles=devices * sizes.particles, progress=False)
        return limit.outputs

    sides: dict[str, Callable[[], np.ndarray]] = {"divided": lambda: solve(False), "alone": lambda: solve(True)}
    first = {name: first_call(run) for name, run in sides.items()}
    seconds = paired(sides, sizes.repeats)
    median, low, high = ratio(seconds["divided"], seconds["alone"])
    return {
        "devices": devices,
        "particles": devices * sizes.particles,
        "first_call": first,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "divided_over_alone": {"median": median, "min": low, "max": high},
        "largest_difference": float(np.max(np.abs(solve(False) - solve(True)))),
    }


def forced(sizes: Sizes, devices: int) -> dict[str, Any]:
    """A row from a process with so many host devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    names = ("particles", "depth", "samples", "steps", "repeats")
    options = [text for name in names for text in (f"--{name}", str(getattr(sizes, name)))]
    done = subprocess.run(
        [sys.executable, __file__, "--row", *options],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main(sizes: Sizes) -> None:
    """Print one row a number of devices."""
    if sizes.row:
        print(json.dumps(measure(sizes)))
        return
    print(f"L = {sizes.depth}, P = {sizes.samples}, K = {sizes.steps}, {os.cpu_count()} cores shared by all devices")
    head = f"{'devices':>8} {'n':>8} {'divided':>10} {'alone':>10} {'divided / alone':>26} {'difference':>11}"
    print(head, "-" * len(head), sep="\n")
    rows = []
    for devices in sizes.devices:
        row = forced(sizes, devices)
        rows.append(row)
        spread = row["divided_over_alone"]
        print(
            f"{devices:>8} {row['particles']:>8} {row['seconds']['divided']:>9.3f}s {row['seconds']['alone']:>9.3f}s "
            f"{spread['median']:>10.2f} ({spread['min']:.2f} to {spread['max']:.2f}) "
            f"{row['largest_difference']:>11.1e}",
            flush=True,
        )
    if sizes.output is not None:
        result = {"sizes": asdict(sizes), "cores": os.cpu_count(), "jax": jax.__version__, "rows": rows}
        sizes.output.write_text(json.dumps(result, indent=1, default=str))


if __name__ == "__main__":
    main(tyro.cli(Sizes))
