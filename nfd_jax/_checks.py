"""Argument checks and the outcomes of a run: every message names the argument, its value and the way out."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

LARGEST = 2**31 - 1  # of any size: arrays are indexed by 32 bits
GIB = 2**30
MOST = 10**6  # of what is counted out one by one: members, steps, entries of a list, classes


class Outcome(enum.Enum):
    """How one member of a run ended; the value is the message a user reads."""

    OK = "finished with finite outputs"
    TOLERANCE_NOT_MET = "stopped at its budget short of the tolerance; the error bars hold: raise budget or tolerance"
    OUT_OF_MEMORY = "ended early for want of memory: use fewer particles or a coarser resolution"
    DIVERGED = "diverged: outputs or loss left the finite numbers; lower the learning rate"


def positive_int(name: str, value: Any, minimum: int | float = 1, maximum: int = LARGEST) -> int:
    """`value` as an int from `minimum` to `maximum`, else a TypeError or ValueError that names `name`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    number = int(value)
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}; give a smaller number")
    return number


def positive_ints(
    name: str, values: Any, minimum: int | float = 1, maximum: int = LARGEST, kind: str = "integers"
) -> tuple[int, ...]:
    """`values` as a tuple of ints from `minimum` to `maximum`, else a TypeError or ValueError that names `name`."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of {kind}, got {values!r}")
    listed = tuple(islice(values, MOST + 2))  # none is made of a range without end
    if len(listed) > MOST + 1:  # steps 0 to MOST are that many
        raise ValueError(f"{name} must be at most {MOST} numbers, got more; give fewer")
    return tuple(positive_int(name, value, minimum, maximum) for value in listed)


def finite_float(name: str, value: Any, minimum: float = 0.0, *, strict: bool = False) -> float:
    """`value` as a finite float, at least `minimum` (above it where `strict`)."""
    scalar_array = hasattr(value, "dtype") and getattr(value, "ndim", None) == 0  # a numpy or jax scalar
    if scalar_array:
        is_real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.integer, jnp.floating))
    else:
        is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real:
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer
        number = math.inf
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


def boolean(name: str, value: Any) -> bool:
    """`value` as a bool, else a TypeError that names `name`: a string would count as true whatever it says."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return bool(value)


def folder_path(name: str, value: Any) -> Path:
    """`value` as the path of a folder, else a TypeError or ValueError that names `name`."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be the path of a folder, got {value!r} of type {type(value).__name__}")
    if not os.fspath(value):
        raise ValueError(f"{name} must be the path of a folder, got ''; say '.' for the current one")
    return Path(value)


def finite_array(name: str, value: Any, ndims: tuple[int, ...]) -> np.ndarray:
    """`value` as a finite float64 numpy array of one of the ranks `ndims`, not empty."""
    try:
        given = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(value).__name__} ({error})") from error
    if not any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(
            f"{name} must be an array of real numbers, got {type(value).__name__} of dtype {given.dtype}; convert it"
        )
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must be an array without masked entries; fill them or leave their samples out")
    with np.errstate(over="ignore"):
        array = given.astype(np.float64, copy=False)
    if array.ndim not in ndims or array.size == 0:
        wanted = " or ".join(str(ndim) for ndim in ndims)
        raise ValueError(f"{name} must be a non-empty array with {wanted} axes, got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite, got {array[index]} at index {index}; clean the data first")
    return array


def in_precision(name: str, values: Any, *, positive: bool = False, power: int = 1) -> None:
    """ValueError where a finite number, or a `power` of it, overflows in the precision of the run, or, where it has to
    be `positive`, is too small to be told from 0. Below the smallest normal number is 0, as on most devices."""
    dtype = np.dtype(jnp.result_type(float))
    numbers, limits = np.asarray(values, dtype=np.float64), jnp.finfo(dtype)
    way_out = "rescale" if dtype == np.float64 else "rescale, or set jax_enable_x64 for float64"
    most, least = (float(limit) ** (1 / power) for limit in (limits.max, limits.tiny))
    large, small = np.abs(numbers) > most, (numbers != 0) & (np.abs(numbers) < least)
    if large.any():
        raise ValueError(f"{name} must be finite in {dtype}, got {numbers[large][0]:g}, which overflows; {way_out}")
    if positive and small.any():
        raise ValueError(f"{name} must not be lost in {dtype}, got {numbers[small][0]:g}, which is 0 there; {way_out}")


def of_machine() -> int | None:
    """Bytes that the machine has; None where it does not say. No device is asked."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_array(what: str, *shape: int) -> None:
    """ValueError where the machine lacks the memory for a float64 array of this shape, and for a copy of it."""
    needed, available = 2 * 8 * math.prod(shape), of_machine()
    if available is not None and needed > available:
        raise ValueError(
            f"{what} make an array of shape {shape}, and with a copy that needs {needed / GIB:.1f} GiB; this machine "
            f"has {available / GIB:.1f} GiB: ask for less"
        )
