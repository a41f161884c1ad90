"""Timing for benchmarks: compile outside the clock, block on results, the sides in turn, medians and ratios."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax


def first_call(run: Callable[[], object]) -> float:
    """Seconds of one call, compilation included."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of every side, run in turn so that a noisy machine touches all alike.

    The callables return numpy results, so that a call has ended when it returns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest ratio of paired repeats."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def save(output: Path | None, sizes: Any, rows: Any) -> None:
    """The results as JSON, with the sizes, the device and the version of jax, where a file is asked for."""
    if output is not None:
        result = {"sizes": asdict(sizes), "device": str(jax.devices()[0]), "jax": jax.__version__, "rows": rows}
        output.write_text(json.dumps(result, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    """What JSON knows of an array, and the name of anything else."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
