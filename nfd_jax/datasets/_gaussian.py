"""Gaussian inputs with a teacher of some indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nfd_jax._checks import check_array, finite_array, finite_float, one_of, positive_int
from nfd_jax._functions import blamed
from nfd_jax.datasets._images import SPLITS
from nfd_jax.seeds import check_seed
from nfd_jax.task import Task


def gaussian(
    samples: int = 16,
    dimension: int = 32,
    *,
    teacher: str | Callable[[np.ndarray], Any] = "sign",
    indices: int = 1,
    noise: float = 0.0,
    split: str = "train",
    seed: int = 0,
) -> Task:
    """Standard Gaussian inputs scaled to |x|^2 = d, with a teacher y = g(z_1, ..., z_k) of k indices z_i = w_i . x.

    The directions w_i are random and orthonormal. So z has mean zero and covariance one, and is close to normal
    where d is large: its coordinates have the fourth moment 3 d / (d + 2).

    **Arguments:**

    - `samples`: P.
    - `dimension`: d.
    - `teacher`: g. One link of every index, summed over them and divided by sqrt(k): `"sign"`, `"linear"`, `"relu"`,
      `"hermite2"` (z^2 - 1) / sqrt(2), `"hermite3"` (z^3 - 3 z) / sqrt(6). All indices together: `"product"`
      z_1 ... z_k, `"parity"` its sign, `"staircase"` z_1 + z_1 z_2 + ... + z_1 ... z_k. Or a function that takes z,
      `(P, k)`, to targets, `(P,)` or `(P, c)`.
    - `indices`: k, at most d.
    - `noise`: standard deviation of the Gaussian noise added to the targets of this split. A test split without it
      has the clean targets of the same teacher.
    - `split`: `"train"` or `"test"`, of independent inputs and noise, and of one teacher.
    - `seed`: of inputs, directions and noise.

    Squared loss. Directions depend on `dimension` and `seed` only, the first of them are those of fewer indices, and
    the first samples those of fewer samples. Raises ValueError or TypeError for sizes that do not fit each other, and
    for what a teacher of one's own gives.
    """
    count = positive_int("samples", samples)
    d, k = positive_int("dimension", dimension), positive_int("indices", indices)
    if k > d:
        raise ValueError(f"indices={k} orthonormal directions don't fit dimension={d}; ask for at most as many")
    check_array(f"samples={count} of dimension={d}", count, d)
    check_array(f"indices={k} of dimension={d}", k, d)
    deviation, link = finite_float("noise", noise), _link(teacher)
    streams = np.random.default_rng(check_seed("seed", seed)).spawn(5)
    draws, errors = streams[1:3] if one_of("split", split, SPLITS) == "train" else streams[3:]
    inputs = draws.standard_normal((count, d))
    directions, triangle = np.linalg.qr(streams[0].standard_normal((k, d)).T)
    directions *= np.sign(np.diag(triangle))  # the first is along its Gaussian vector, not opposite
    z = inputs @ directions * (d**0.5 / np.linalg.norm(inputs, axis=1, keepdims=True))
    with blamed(f"teacher must take z of shape {z.shape} to targets, got {teacher!r}, which"):
        made = link(z)
    targets = finite_array("targets of teacher", made, (1, 2))
    if len(targets) != count:
        raise ValueError(f"teacher must give one target a sample, {count}, got shape {targets.shape}; keep the rows")
    if deviation > 0:
        targets = targets + deviation * errors.standard_normal(targets.shape)
    return Task(inputs, targets, normalise=True)


_OF_ONE_INDEX: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign": np.sign,
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0.0),
    "hermite2": lambda z: (z**2 - 1) / 2**0.5,
    "hermite3": lambda z: (z**3 - 3 * z) / 6**0.5,
}
_OF_ALL_INDICES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "product": lambda z: z.prod(axis=1),
    "parity": lambda z: np.sign(z).prod(axis=1),
    "staircase": lambda z: z.cumprod(axis=1).sum(axis=1),
}


def _link(teacher: str | Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    """From z, `(P, k)`, to targets."""
    if callable(teacher):
        return teacher
    one_of("teacher", teacher, (*_OF_ONE_INDEX, *_OF_ALL_INDICES))
    if teacher in _OF_ALL_INDICES:
        return _OF_ALL_INDICES[teacher]
    return lambda z: _OF_ONE_INDEX[teacher](z).sum(axis=1) / z.shape[1] ** 0.5
