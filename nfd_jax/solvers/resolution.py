"""The resolution of a run: 0, the exact law, where that is affordable, and otherwise what long training takes."""

from __future__ import annotations

from nfd_jax._checks import finite_float
from nfd_jax.dynamics.problem import Problem

EXACT = 512  # queries that are all revealed, unasked
RESOLUTION = 0.02  # of longer runs, unasked


def checked_resolution(resolution: float) -> float:
    """The number, from 0 to below 1."""
    value = finite_float("resolution", resolution)
    if value >= 1:
        raise ValueError(f"resolution must be below 1, a part of the length of a query, got {resolution!r}; try 0.02")
    return value


def resolution_of(resolution: float | None, problem: Problem) -> float:
    """That of a run; by default by how many queries it has."""
    if resolution is not None:
        return checked_resolution(resolution)
    return 0.0 if problem.data.queries <= EXACT else RESOLUTION
