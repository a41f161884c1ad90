"""Types and checks of arguments that the closed forms share."""

import math
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.floating[Any]]  # float64 throughout
Real: TypeAlias = int | float  # run-time type checkers take float at its word
Pointwise: TypeAlias = Callable[[Array], Any]  # elementwise on float64 arrays of any shape

CLOSURES = ("coupled", "decoupled")


def choice(name: str, value: str, known: Collection[str]) -> str:
    """`value` where it is known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    return value


def square(matrix: ArrayLike, name: str) -> Array:
    """A symmetric matrix with a nonnegative diagonal."""
    array = np.asarray(matrix, float)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"{name} must be a square matrix of size at least 1; got shape {array.shape}")
    if not np.allclose(array, array.T) or np.diag(array).min() < 0:
        raise ValueError(f"{name} must be symmetric with a nonnegative diagonal; got {array.tolist()}")
    return array


def one_each(targets: ArrayLike, gram: ArrayLike) -> Array:
    """Targets `(P,)` for a Gram matrix `(P, P)`."""
    array = np.asarray(targets, float)
    if array.shape != (len(np.asarray(gram)),):
        raise ValueError(f"targets must have one entry a row of gram; got shape {array.shape}")
    return array


def whole(depth: Real) -> int:
    """A finite depth."""
    if not math.isfinite(depth) or depth != int(depth) or depth < 1:
        raise ValueError(f"depth must be a positive whole number here; got {depth}")
    return int(depth)
