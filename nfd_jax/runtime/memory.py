"""Memory: what a run needs against what its devices have, before anything is compiled."""

from __future__ import annotations

import jax
import numpy as np

from nfd_jax._checks import GIB, of_machine
from nfd_jax._types import Key, PyTree
from nfd_jax.dynamics.base import AbstractDynamics
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.runtime.devices import Layout

BUDGET = 2**29  # bytes that solutions at once may take: those that one program has side by side, times threads
CACHED = 2**23  # and those of one program on a CPU: more miss the caches, and take up to twice as long


def per_device() -> int | None:
    """Bytes that one device has; None where it does not say. Devices of a CPU share the memory of the machine."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    machine = of_machine()
    return None if device.platform != "cpu" or machine is None else machine // jax.local_device_count()


def side_by_side() -> int:
    """Bytes that the members of one program may take."""
    return min(BUDGET, CACHED) if jax.default_backend() == "cpu" else BUDGET


def is_enough(needed: int, devices: int) -> bool:
    """Whether `devices` together have so many bytes, as far as they say."""
    available = per_device()
    return available is None or needed <= devices * available


def check(needed: int, devices: int, ways_out: str) -> None:
    """ValueError with the figures where `devices` together lack the memory."""
    if not is_enough(needed, devices):
        has = devices * (per_device() or 0)
        raise ValueError(
            f"this run needs about {needed / GIB:.1f} GiB, and {devices} {jax.local_devices()[0].platform} device(s) "
            f"have {has / GIB:.1f} GiB; {ways_out}"
        )


def of_run(dynamics: Conditioned, layout: Layout | None) -> tuple[int, int]:
    """Bytes of a run of explicit passes, and the devices that share them.

    Where the bases alone are too large, their bytes: the state is not looked at, which can take long then.
    """
    initial, count = dynamics.initial, layout.devices if layout else 1
    if initial is None:
        raise ValueError("these dynamics have no law of initial weights to be measured")
    if not is_enough(initial.least_bytes, count):
        return initial.least_bytes, count
    return of_state(dynamics) + initial.pass_bytes, count


def of_state(dynamics: AbstractDynamics) -> int:
    """Bytes of a state of one member, without making it."""
    leaves = jax.tree.leaves(jax.eval_shape(_started, dynamics, jax.random.key(0)))
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


@jax.jit
def _started(dynamics: AbstractDynamics, key: Key) -> PyTree:
    """As an argument, dynamics of the same shapes are looked at once."""
    return dynamics.init(key)
