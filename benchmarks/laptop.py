"""Every benchmark at a small size, one table, and how its times stand beside those stored for this kind of machine.

Runs each script several times, all scripts in turn so that a noisy hour touches all alike. A figure of a run is the
median of its repeats. The ratio of the runs now to those stored, by geometric means, has the 99 % interval of Student,
and is flagged where that leaves 1 out: of a hundred figures that have not moved, about one is.

Compiled programs are kept from one run to the next, but for `first_call.py`, which is about compilation. A machine is
of the same kind where processor, cores, devices and jax are the same. About ten minutes on two quiet cores.

    python benchmarks/laptop.py
    python benchmarks/laptop.py --only growth distance_to_floor --repeats 5
    python benchmarks/laptop.py --store
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from scipy.stats import t

HERE = Path(__file__).parent
SMALL = {  # the arguments of every script, for about half a minute with compilation
    "revealed_against_dense": "--widths 512 --depth 8 --repeats 5",
    "distance_to_floor": "--width 4096 --depth 8 --repeats 5",
    "growth": "--widths 4096 8192 --depths 4 8 --steps 16 32",
    "first_call": "--depths 16",
    "matched_noise": "--activations relu --particles 256 --depth 2 --steps 2 --seeds 4 --reference-seeds 2",
    "coverage": "--tolerances 100 --depth 4 --steps 10 --particles 512 --activation identity --seeds 3",
    "time_to_accuracy": "--accuracy 0.05 --widths 64 128 --particles 256 512 --depths 4 8 --seeds 4 --steps 2",
    "ensembles": "--models mlp --widths 256 --seeds 4 --steps 50 --seconds 1",
    "weak_scaling": "--devices 2 --particles 1024 --depth 4 --steps 4",
    "long_training": "--parts full_batch mlp --activations tanh --steps 60 --particles 512 --widths 64 --seeds 2 "
    "--depth 4",
}
COMPILING = ("first_call",)
MEASURED = ("seconds", "bytes", "bytes_a_member", "first", "second", "processor")  # less is better
IDENTITY = (  # what tells rows apart; rows that nothing does are repeats
    "solver", "limit", "name", "way", "size", "model", "side", "activation", "closure", "step", "depth", "width",
    "queries", "devices", "tolerance",
)  # fmt: skip
LEVEL = 0.99


@dataclass(frozen=True)
class Options:
    """What to run.

    Args:
        only: Scripts by name; by default all.
        repeats: Runs of each, at least 2.
        store: Keep the result as that of this kind of machine. Run it on a quiet one.
        output: A JSON file for the result.
    """

    only: tuple[str, ...] = ()
    repeats: int = 3
    store: bool = False
    output: Path = Path("results/benchmarks.json")


def machine() -> dict[str, str]:
    """What times depend on besides the code."""
    model = platform.processor() or platform.machine()
    if (listed := Path("/proc/cpuinfo")).exists():
        found = re.search(r"^model name\s*:\s*(.+)$", listed.read_text(), re.MULTILINE)
        model = found[1] if found else model
    devices = jax.devices()
    return {
        "processor": model,
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "platform": f"{platform.system()} {devices[0].platform}",
        "jax": jax.__version__,
    }


def stored_at(kind: Mapping[str, str]) -> Path:
    """The file of a kind of machine."""
    return HERE / "measured" / "laptop" / (re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(kind.values())) + ".json")


def figures(found: Any, label: str = "") -> Iterator[tuple[str, float]]:
    """All that was measured in a script's JSON, with what it is of."""
    if isinstance(found, list):
        for place, each in enumerate(found):
            yield from figures(each, label if isinstance(each, dict) else f"{label} {place}")
    elif isinstance(found, dict):
        named = " ".join(f"{found[key]}" if isinstance(found[key], str) else f"{key} {found[key]}" for key in IDENTITY
                         if isinstance(found.get(key), str | int | float))  # fmt: skip
        for key, value in found.items():
            if key in MEASURED:
                yield from leaves(value, " ".join(filter(None, (label, named, key))))
            elif isinstance(value, list | dict) and key != "sizes":
                yield from figures(value, " ".join(filter(None, (label, named))))


def leaves(value: Any, label: str) -> Iterator[tuple[str, float]]:
    """The numbers of a figure: one, or by name, or by place."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from leaves(each, f"{label} {name}")
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from leaves(each, f"{label} {place}")
    elif isinstance(value, int | float) and np.isfinite(value):  # a small size has no error of a fit
        yield label, float(value)


def run(script: str, programs: str) -> tuple[dict[str, list[float]], str]:
    """The figures of one run, and its seconds in words."""
    cached = {} if script in COMPILING else {"JAX_COMPILATION_CACHE_DIR": programs}
    environment = {
        **os.environ,
        **cached,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, str(HERE / f"{script}.py"), *SMALL[script].split(), "--output", file.name]
        start, before = time.perf_counter(), os.times()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        if "skipped" in done.stdout:
            print(next(line for line in done.stdout.splitlines() if "skipped" in line))
        after, found = os.times(), {}
        processor = after.children_user + after.children_system - before.children_user - before.children_system
        said = f"{script}, {time.perf_counter() - start:.0f} s, of processors {processor:.0f} s"
        for label, value in figures(json.loads(Path(file.name).read_text())):
            found.setdefault(label, []).append(value)
    return found, said


def measured(options: Options) -> dict[str, dict[str, list[float]]]:
    """The medians of every run of every script, by figure."""
    found: dict[str, dict[str, list[float]]] = {script: {} for script in options.only or SMALL}
    with tempfile.TemporaryDirectory() as programs:
        for repeat in range(options.repeats):
            for script, each in found.items():
                values, said = run(script, programs)
                print(f"run {repeat + 1} of {options.repeats}: {said}", file=sys.stderr, flush=True)
                for label, repeated in values.items():
                    each.setdefault(label, []).append(statistics.median(repeated))
    return found


def ratio(now: list[float], before: list[float]) -> tuple[float, float, float]:
    """Of geometric means of runs, and its 99 % interval by Student."""
    logs = [np.log(values) for values in (now, before)]
    freedom = len(now) + len(before) - 2
    pooled = sum(((each - each.mean()) ** 2).sum() for each in logs) / freedom
    half = t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(pooled * (1 / len(now) + 1 / len(before)))
    middle = logs[0].mean() - logs[1].mean()
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half))


def amount(label: str, value: float) -> str:
    """A figure for people."""
    if "bytes" in label:
        return f"{value / 1e6:.4g} MB"
    return f"{value:.3g} s" if value >= 0.1 else f"{1e3 * value:.3g} ms" if value >= 1e-4 else f"{1e6 * value:.3g} us"


def table(found: dict[str, dict[str, list[float]]], stored: dict[str, dict[str, list[float]]]) -> str:
    """A line a figure: the median and the range of its runs, and the ratio to the stored median with its interval."""
    lines, flagged = [("benchmark", "figure", "median", "range", "over stored", "")], 0
    for script, each in found.items():
        for label, values in each.items():
            before = stored.get(script, {}).get(label, [])
            middle, spread = (
                amount(label, statistics.median(values)),
                " to ".join(amount(label, f(values)) for f in (min, max)),
            )
            beside, flag = "", ""
            if len(before) > 1 and len(values) > 1 and min(*before, *values) > 0:
                over, low, high = ratio(values, before)
                beside = f"{over:.2f} ({low:.2f} to {high:.2f})"
                flag = "slower" if low > 1 else "faster" if high < 1 else ""
                flag = flag if "bytes" not in label else {"slower": "more", "faster": "less"}.get(flag, "")
                flagged += flag in ("slower", "more")
            lines.append((script, label, middle, spread, beside, flag))
    widths = [max(len(line[place]) for line in lines) for place in range(6)]
    text = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:], f"{flagged} figures slower or larger beyond the noise"])


def main(options: Options) -> None:
    """Run, print, write, and compare with what is stored."""
    if unknown := [script for script in options.only if script not in SMALL]:
        raise SystemExit(f"--only must be of {', '.join(SMALL)}, got {', '.join(unknown)}")
    if options.repeats < 2 or (options.store and options.only):
        raise SystemExit("--repeats must be at least 2, for intervals, and --store keeps all scripts, not --only some")
    kind, load, start = machine(), os.getloadavg()[0], time.perf_counter()
    busy = load > 0.25 * int(kind["cores"])
    found = measured(options)
    result = {"machine": kind, "load": load, "busy": busy, "sizes": SMALL, "runs": found}
    at = stored_at(kind)
    before = json.loads(at.read_text()) if at.exists() else None
    print(", ".join(kind.values()), f"{options.repeats} runs in {time.perf_counter() - start:.0f} s", sep="; ")
    if busy:
        print(f"this machine was busy (load {load:.1f} at the start): its times say little")
    same = (
        {} if before is None else {s: each for s, each in before["runs"].items() if before["sizes"][s] == SMALL.get(s)}
    )
    print(table(found, same))
    if before is None:
        print(f"nothing is stored for this kind of machine ({at.name}): --store on a quiet one")
    elif before["busy"]:
        print("what is stored was measured on a busy machine")
    for path in (options.output, *([at] if options.store else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print("wrote", path)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
