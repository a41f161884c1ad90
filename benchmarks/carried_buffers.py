"""Do loops of other versions of jax write their buffers in place, and what does that make of this package's runs?

One process an interpreter, each with its own jax; all of them run a case in turn, again and again. Printed are seconds
of processor time, which a busy machine stretches little, over those of the first interpreter: the geometric mean of
paired repeats with its 95 % interval by Student. The cases are a loop that writes one number at a time into a buffer,
where a compiler that rewrites the whole buffer takes a time that grows as its square, and short runs of each solver.
Of their compiled steps, which no load of the machine changes: how many copies of four queries' numbers or more there
are, and into how large a buffer updates of less than 256 bytes go, which is what jax 0.11.1 is slow at. What a compiled
operation does inside, the program does not show.

    python benchmarks/carried_buffers.py --pythons old/bin/python new/bin/python
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import lax
from programs import compiled_step
from scipy.stats import t
from timing import save

import nfd_jax as nfd

HERE = Path(__file__).parent
NUMBERS = 2**14  # of the buffer: 64 KiB


@dataclass(frozen=True)
class Sizes:
    """What is compared.

    Args:
        pythons: Interpreters that have this package's dependencies, the first being the one to compare with.
        repeats: Of every case in every interpreter.
        width: Width n of networks and particles; dense networks have a quarter.
        depth: Blocks L.
        samples: Samples P, all in every batch.
        output: A JSON file for the results.
    """

    pythons: tuple[str, ...] = (sys.executable,)
    repeats: int = 7
    width: int = 2048
    depth: int = 4
    samples: int = 4
    output: Path | None = None


@jax.jit
def written(buffer: jax.Array) -> jax.Array:
    """The buffer, one number at a time."""

    def body(place: Any, buffer: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(buffer, jnp.full(1, place, buffer.dtype), (place,))

    return lax.fori_loop(0, len(buffer), body, buffer)


def cases(width: int, depth: int, samples: int) -> dict[str, Callable[[], object]]:
    """What is timed, each run to its end."""
    task, model, buffer = nfd.datasets.digits(samples), nfd.ResNet(depth, "tanh"), jnp.zeros(NUMBERS)
    shared: dict[str, Any] = {"learning_rate": 0.5, "progress": False}
    return {
        "a loop of small updates": lambda: written(buffer).block_until_ready(),
        "solve_network": lambda: nfd.solve_network(task, model, width=width, steps=16, seeds=1, **shared),
        "solve_limit, resolution": lambda: nfd.solve_limit(
            task, model, particles=width, steps=96, resolution=0.02, noise="plain", **shared
        ),
        "train_networks": lambda: nfd.train_networks(task, model, width=width // 4, steps=16, seeds=1, **shared),
    }


def large_copies(text: str, least: int) -> int:
    """Copies of so many numbers in a compiled program."""
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", text)
    return sum(math.prod(map(int, shape.split(","))) >= least for shape in shapes)


def small_updates(text: str, below: int = 64) -> int:
    """The numbers of the largest buffer that a compiled program updates by so few of them."""
    found = re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", text)
    numbers = {name: math.prod(int(size) for size in shape.split(",") if size) for name, shape in found}
    updates = re.findall(r"dynamic-update-slice\([^%]*%([\w.-]+),[^%]*%([\w.-]+),", text)
    return max((numbers[buffer] for buffer, update in updates if numbers[update] < below), default=0)


def child(width: int, depth: int, samples: int) -> None:
    """Run the cases that are asked for, one a line, and say the seconds of processor time each took."""
    known = cases(width, depth, samples)
    for run in known.values():
        run()
    programs = {name: compiled_step(run).as_text() or "" for name, run in list(known.items())[1:]}
    copies = {name: large_copies(text, 4 * width) for name, text in programs.items()}
    small = {name: small_updates(text) for name, text in programs.items()}
    print(json.dumps({"jax": jax.__version__, "copies": copies, "small": small}), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        known[line.strip()]()
        print(time.process_time() - start, flush=True)


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean, and its 95 % interval."""
    logs = np.log(ratios)
    half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    return float(np.exp(logs.mean())), float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half))


def main(sizes: Sizes) -> None:
    """Print one row a case and interpreter."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "JAX_PLATFORMS": "cpu"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    numbers = [str(number) for number in (sizes.width, sizes.depth, sizes.samples)]
    command = [__file__, "--child", *numbers]
    processes: list[Any] = [subprocess.Popen([python, *command], **pipes) for python in sizes.pythons]

    def answer(process: Any) -> Any:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{process.args[0]} ended with {process.wait()}")
        return json.loads(line)

    said = [answer(process) for process in processes]
    names = list(cases(*map(int, numbers)))
    seconds = {name: np.empty((sizes.repeats, len(processes))) for name in names}
    for repeat in range(sizes.repeats):
        for name in names:
            for place, process in enumerate(processes):
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
                seconds[name][repeat, place] = answer(process)
    for process in processes:
        process.stdin.close()
        process.wait()
    head = f"{'case':<26} {'jax':>9} {'processor':>10} {'over the first':>22} {'large copies':>13} {'updates of':>11}"
    print(head, "-" * len(head), sep="\n")
    rows = []
    for name, taken in seconds.items():
        for place, process in enumerate(said):
            over = interval(taken[:, place] / taken[:, 0])
            rows.append({"case": name, **process, "processor": taken[:, place], "over": over})
            shown = "" if place == 0 else f"{over[0]:.2f} ({over[1]:.2f} to {over[2]:.2f})"
            copies, small = process["copies"].get(name, ""), process["small"].get(name, "")
            middle = np.median(taken[:, place])
            print(f"{name:<26} {process['jax']:>9} {middle:>9.4f}s {shown:>22} {copies:>13} {small:>11}")
    save(sizes.output, sizes, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*map(int, sys.argv[2:]))
    else:
        main(tyro.cli(Sizes))
