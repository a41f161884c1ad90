"""Signed responses a_l of all blocks of trained networks, `(seeds, samples, L)` each: where they come from, and what
averages over seeds say of them without chance.

Chance gives every network responses of variance 1/n. It has mean zero and differs from seed to seed, so that the
mean of a_l^s a_l^t over pairs of different seeds is the square of the response and nothing else, and the same holds
for sums over blocks.

Block l responds because its input phi(h_{l-1}) has moved since initialisation, and what has moved is the sum of what
the blocks m < l add to the stream. So a_l is a sum over m, and distances l - m can be told apart.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from nfd_jax.models import ResNet
from nfd_jax.statistics import Sampled, bootstrap


def by_origin(h: np.ndarray, start: np.ndarray, gradient: np.ndarray, model: ResNet) -> np.ndarray:
    """The forward response of block l by the blocks m below it whose increments have moved since initialisation:
    `(P, L, L)`, rows l, whose sums over m are the a_l.

    `h`, `start (L + 1, P, n)`: features now and before training; `gradient (L, P, n)`: of a_l in phi(h_{l-1}). The
    response to phi(h_{l-1}) before training is zero. What phi(h_{l-1}) has moved since is shared among the increments
    in proportion to what they have moved: with the slope of the chord nothing remains, where phi' at h would leave
    4 to 9 % of the sum over blocks (ReLU, steps 1 to 10, L = 4 to 64).
    """
    phi = model.structure.phi
    below, below_start = h[:-1], start[:-1]
    moved, rise = below - below_start, np.asarray(phi(jnp.asarray(below))) - np.asarray(phi(jnp.asarray(below_start)))
    slope = np.divide(rise, moved, out=np.zeros_like(moved), where=moved != 0)
    pulled, increments = (array.swapaxes(0, 1) for array in (slope * gradient, np.diff(h - start, axis=0)))
    return np.tril(pulled @ increments.swapaxes(1, 2) / h.shape[-1], -1)


def squares(*responses: np.ndarray) -> Sampled:
    """The mean square of each array of responses `(seeds, ...)` without chance: the mean product of different seeds.

    Where chance outweighs the response, errors come out too large, up to twice.
    """
    flat = [values.reshape(len(values), -1) for values in responses]
    products = np.stack([values @ values.T / values.shape[1] for values in flat])

    def without_chance(chosen: np.ndarray) -> np.ndarray:
        times = np.bincount(chosen[:, 0].astype(int), minlength=len(chosen)).astype(float)
        times = times if times.max() < len(times) else np.ones(len(times))  # a resample of one seed has no pairs
        pairs = np.outer(times, times) * (1 - np.eye(len(times)))
        return (products * pairs).sum(axis=(1, 2)) / pairs.sum()

    return bootstrap(without_chance, np.arange(len(flat[0]))[:, None])


def coherence(responses: np.ndarray) -> Sampled:
    """(sum a)^2 / (L sum a^2) of responses `(seeds, samples, L)`, means over samples of both: 1 for equal responses,
    1 / L for independent signs."""
    blocks = responses.shape[-1]
    parts = squares(responses.sum(axis=-1), responses)
    return parts.map(lambda part: part[0] / (blocks**2 * part[1]))


def one_sign(responses: np.ndarray) -> Sampled:
    """Share of the blocks whose mean over seeds has the sign of the sum over blocks; what chance is left in the mean
    brings it nearer to one half."""

    def share(chosen: np.ndarray) -> float:
        along = chosen.mean(axis=0)
        along = along * along.sum(axis=-1, keepdims=True)
        return float(np.mean(along > 0)) if np.isfinite(along).all() else math.nan

    return bootstrap(share, responses)


def profile(by_distance: np.ndarray) -> Sampled:
    """Shares of the summed response by distance, which add up to 1, from `(seeds, samples, distances)`."""

    def shares(chosen: np.ndarray) -> np.ndarray:
        mean = chosen.mean(axis=0)
        total = mean.sum(axis=-1, keepdims=True)
        return (mean * total).sum(axis=0) / (total**2).sum()

    return bootstrap(shares, by_distance)


def of_a_block(responses: np.ndarray) -> Sampled:
    """Mean over blocks of a^2."""
    return squares(responses).map(lambda part: part[0])


def sum_of_squares(responses: np.ndarray) -> Sampled:
    """Over blocks."""
    return of_a_block(responses).map(lambda part: responses.shape[-1] * part)


def square_of_sum(responses: np.ndarray) -> Sampled:
    """Over blocks."""
    return of_a_block(responses.sum(axis=-1))


def with_chance(responses: np.ndarray) -> Sampled:
    """Mean square of a block, chance included."""
    return bootstrap(np.mean, np.mean(responses**2, axis=(1, 2)))
