"""Seeds: what users may give as seeds, and the keys they become."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import numpy as np

from nfd_jax._checks import MOST, positive_int, positive_ints
from nfd_jax._types import Key

WORD = 2**32  # keys are made of words of 32 bits
LAST = WORD**2 - 1  # the largest seed


def check_seed(name: str, value: Any) -> int:
    """`value` as a seed, 0 to 2^64 - 1, else a TypeError or ValueError that names `name`."""
    return positive_int(name, value, 0, LAST)


def seed_sequence(seeds: Any) -> tuple[int, ...]:
    """Seeds as a tuple: an int S stands for 0 to S-1, a sequence of distinct ints for itself; at most a million."""
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return tuple(range(positive_int("seeds", seeds, maximum=MOST)))
    if isinstance(seeds, Sequence | np.ndarray) and not isinstance(seeds, str) and getattr(seeds, "ndim", 1):
        listed = positive_ints("seeds", seeds, 0, LAST)
        if not listed or len(set(listed)) != len(listed):
            raise ValueError(f"seeds must be at least one distinct integer, got {seeds!r}")
        return listed
    raise TypeError(f"seeds must be an integer count or a sequence of integers, got {seeds!r}")


def seed_key(seed: int) -> Key:
    """The key of a seed: all its 64 bits count, in float32 too, where jax alone would drop the upper half."""
    upper, lower = divmod(int(seed), WORD)
    start = jax.random.key(np.uint32(lower))
    return jax.random.fold_in(start, np.uint32(upper)) if upper else start


def labels(seeds: Sequence[int]) -> np.ndarray:
    """Seeds as labels of an axis; numpy alone would make floats of large ones."""
    return np.array(seeds, np.int64 if max(seeds) < 2**63 else np.uint64)
