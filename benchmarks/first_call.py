"""How long does the first call of a solver take, does that grow with depth, and does a second call compile anything?

Every row runs in a process of its own: the first call, the second with the same arguments, then calls with other
seeds, rates and data of the same shapes. Compilations are counted by jax's own monitoring events.
"processor" is the first call in seconds of processor time of all threads, which a busy machine does not stretch.

    python benchmarks/first_call.py --depths 16 64 256
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import tyro
from timing import first_call, save

import nfd_jax as nfd

COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class Sizes:
    """The work.

    Args:
        depths: Blocks L, one row each and solver.
        width: Width or particles n.
        samples: Samples P.
        steps: Training steps K.
        solvers: Public solvers, limit with matched noise.
        output: A JSON file for the results.
    """

    depths: tuple[int, ...] = (16, 64, 256)
    width: int = 512
    samples: int = 4
    steps: int = 4
    solvers: tuple[str, ...] = ("solve_network", "solve_limit", "train_networks")
    output: Path | None = None


@dataclass
class Compilations:
    """A count of programs compiled since it was made, and the seconds that took."""

    count: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        del kwargs
        if event == COMPILED:
            self.count += 1
            self.seconds += duration_secs


def one(solver: str, depth: int, sizes: Sizes) -> dict[str, Any]:
    """First and later calls of one solver, in this process."""
    model = nfd.ResNet(depth, "relu")

    def call(seed: int = 0, rate: float = 0.5, classes: tuple[int, int] = (0, 1)) -> None:
        task = nfd.datasets.digits(sizes.samples, classes=classes)
        common: dict[str, Any] = {"steps": sizes.steps, "learning_rate": rate, "progress": False}
        if solver == "solve_limit":
            nfd.solve_limit(task, model, particles=sizes.width, seed=seed, **common)
        else:
            getattr(nfd, solver)(task, model, width=sizes.width, seeds=(seed,), **common)

    compilations = Compilations()
    start = time.process_time()
    first = first_call(call)
    processor = time.process_time() - start
    compiled, seconds = compilations.count, compilations.seconds
    second = first_call(call)
    again = compilations.count - compiled
    call(seed=1)
    call(rate=0.25)
    call(classes=(2, 3))
    return {
        "solver": solver,
        "depth": depth,
        "first": first,
        "second": second,
        "processor": processor,
        "compiler": seconds,
        "compiled": compiled,
        "compiled_by_second": again,
        "compiled_by_others": compilations.count - compiled - again,
    }


def main(sizes: Sizes) -> None:
    """Print one row a solver and depth."""
    print(f"n = {sizes.width}, P = {sizes.samples}, K = {sizes.steps}, {jax.devices()[0]}")
    head = f"{'solver':>15} {'L':>5} {'first':>8} {'second':>8} {'first - second':>15} {'processor':>10}"
    print(head + "   compiled: first, second, others", "-" * (len(head) + 34), sep="\n")
    rows = []
    for solver in sizes.solvers:
        for depth in sizes.depths:
            arguments = json.dumps([solver, depth, sizes.width, sizes.samples, sizes.steps])
            command = [sys.executable, __file__, "--child", arguments]
            row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            rows.append(row)
            print(
                f"{solver:>15} {depth:>5} {row['first']:>7.2f}s {row['second']:>7.3f}s "
                f"{row['first'] - row['second']:>14.2f}s {row['processor']:>9.2f}s   "
                f"{row['compiled']}, {row['compiled_by_second']}, {row['compiled_by_others']}",
                flush=True,
            )
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        solver, depth, width, samples, steps = json.loads(sys.argv[2])
        print(json.dumps(one(solver, depth, Sizes(width=width, samples=samples, steps=steps))))
    else:
        main(tyro.cli(Sizes))
