"""Chunks of members at once, a host thread each, where a CPU is the only device.

XLA divides every product among all cores, which small ones don't fill, and waits for the host between two steps. A
thread a core has neither fault: networks of width 64 to 256 train up to twice as fast. Several devices share the
members instead (`sharding`), and an accelerator takes one program at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from contextvars import copy_context
from typing import TypeVar

import jax
from tqdm import tqdm

from nfd_jax import sharding

SETTINGS = (  # of jax, that a thread has of its own and that decide what is computed
    "default_device",
    "default_matmul_precision",
    "default_prng_impl",
    "debug_infs",
    "debug_nans",
    "disable_jit",
    "enable_x64",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Bar(tqdm):
    """A progress bar that several threads advance, and by which they stop together: between two steps."""

    stopped: bool = False

    def update(self, n: int | float | None = 1) -> bool | None:
        """Advance, or raise where the others have stopped."""
        if self.stopped:
            raise InterruptedError("another thread has failed or was interrupted")
        with self.get_lock():
            return super().update(n)


def count() -> int:
    """How many threads have a core of their own: one unless a CPU is the only device."""
    if jax.default_backend() != "cpu" or sharding.device_count() > 1 or jax.process_count() > 1:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(function: Callable[[Item], Result], items: Iterable[Item], at_once: int, bar: Bar) -> list[Result]:
    """The results in order, by at most `at_once` threads with the settings of this one; the first exception stops all,
    each at its next advance of the `bar`."""
    if at_once == 1:
        return [function(item) for item in items]
    settings = {name: getattr(jax.config, f"jax_{name}") for name in SETTINGS}

    def inside(item: Item) -> Result:
        with ExitStack() as stack:
            for name, value in settings.items():
                if getattr(jax.config, f"jax_{name}") != value:
                    stack.enter_context(getattr(jax, name)(value))
            return function(item)

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(copy_context().run, inside, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            bar.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
