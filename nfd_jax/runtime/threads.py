"""Independent solutions at once, a host thread each, where a CPU is the only device.

XLA divides every operation among all cores, which small ones don't fill, and waits for the host between two steps. A
thread a core has neither fault: networks of width 64 to 256 train, and replicates of an estimate come, up to twice as
fast, with the same numbers. Several devices share the work instead (`sharding`), and an accelerator takes one program
at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from contextvars import ContextVar, copy_context
from threading import Event
from typing import TypeVar

import jax
from tqdm import tqdm

from nfd_jax.runtime import devices, memory

SETTINGS = tuple(name for name in dir(jax) if f"jax_{name}" in jax.config.values)  # those a thread has of its own
MOST = 8  # threads: the interpreter, which they share, is busy for about a tenth of a step
Item = TypeVar("Item")
Result = TypeVar("Result")

_stop: ContextVar[Event | None] = ContextVar("stop", default=None)  # of the threads at work, in each of them


class Bar(tqdm):
    """A progress bar that several threads may advance; one whose companions have failed stops there."""

    def update(self, n: int | float | None = 1) -> bool | None:
        """Advance by `n`; InterruptedError in a thread that is to stop."""
        stop = _stop.get()
        if stop is not None and stop.is_set():
            raise InterruptedError("another thread has failed or was interrupted")
        with self.get_lock():
            return super().update(n)


def count() -> int:
    """How many threads find a core of their own: one unless a CPU is the only device, and one in such a thread."""
    if jax.default_backend() != "cpu" or devices.device_count() > 1 or jax.process_count() > 1 or _stop.get():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def at_once(needed: int) -> int:
    """How many solutions of `needed` bytes to run at once, so that all fit into `memory.BUDGET`; at least one."""
    return max(1, min(count(), memory.BUDGET // max(1, needed)))


def each(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """The results in order, by so many threads, which have jax's settings and the context of this one.

    The first exception is raised here, and stops the other threads where they next advance a `Bar`.
    """
    if threads == 1:
        return [function(item) for item in items]
    settings, stop = {name: getattr(jax.config, f"jax_{name}") for name in SETTINGS}, Event()

    def inside(item: Item) -> Result:
        _stop.set(stop)
        with ExitStack() as stack:
            for name, value in settings.items():
                if getattr(jax.config, f"jax_{name}") != value:
                    stack.enter_context(getattr(jax, name)(value))
            return function(item)

    with ThreadPoolExecutor(threads) as pool:
        try:
            futures = [pool.submit(copy_context().run, inside, item) for item in items]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
