"""Argument checks and the outcomes of a run: every message names the argument, its value and the way out."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import jax.numpy as jnp
import numpy as np


class Outcome(enum.Enum):
    """How one member of a run ended; the value is the message a user reads."""

    OK = "finished with finite outputs"
    TOLERANCE_NOT_MET = "stopped at its budget short of the tolerance; the error bars hold: raise budget or tolerance"
    DIVERGED = "diverged: outputs or loss left the finite numbers; lower the learning rate"


def positive_int(name: str, value: Any, minimum: int | float = 1) -> int:
    """`value` as an int of at least `minimum`, else a TypeError or ValueError that names `name`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def positive_ints(name: str, values: Any, minimum: int | float = 1) -> tuple[int, ...]:
    """`values` as a tuple of ints of at least `minimum`, else a TypeError or ValueError that names `name`."""
    try:
        listed = tuple(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}") from None
    return tuple(positive_int(name, value, minimum) for value in listed)


def finite_float(name: str, value: Any, minimum: float = 0.0, *, strict: bool = False) -> float:
    """`value` as a finite float, at least `minimum` (above it where `strict`)."""
    scalar_array = hasattr(value, "dtype") and getattr(value, "ndim", None) == 0  # a numpy or jax scalar
    if scalar_array:
        is_real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    else:
        is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real:
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or number < minimum or (strict and number == minimum):
        bound = f" above {minimum:g}" if strict else f" at least {minimum:g}" if math.isfinite(minimum) else ""
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
    return number


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value` where it is one of `choices`, else a ValueError that lists them."""
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(repr, known))}")
    return value


def seed_sequence(seeds: Any) -> tuple[int, ...]:
    """Seeds as a tuple: an int S stands for 0 to S-1, a sequence of distinct ints for itself."""
    if isinstance(seeds, Integral) and not isinstance(seeds, bool):
        return tuple(range(positive_int("seeds", seeds)))
    if isinstance(seeds, Sequence | np.ndarray) and not isinstance(seeds, str):
        listed = positive_ints("seeds", seeds, minimum=0)
        if not listed or len(set(listed)) != len(listed):
            raise ValueError(f"seeds must be at least one distinct integer, got {seeds!r}")
        return listed
    raise TypeError(f"seeds must be an integer count or a sequence of integers, got {seeds!r}")


def finite_array(name: str, value: Any, ndims: tuple[int, ...]) -> np.ndarray:
    """`value` as a finite float64 numpy array of one of the ranks `ndims`, not empty."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(value).__name__}") from error
    if array.ndim not in ndims or array.size == 0:
        wanted = " or ".join(str(ndim) for ndim in ndims)
        raise ValueError(f"{name} must be a non-empty array with {wanted} axes, got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite, got {array[index]} at index {index}; clean the data first")
    return array
