"""Uniform numbers that fill space more evenly than independent ones: scrambled Sobol points, one a particle.

Each coordinate of a point is uniform, and points of different keys are independent, so averages over particles keep
their mean; their error falls for functions that depend on few coordinates at a time, however nonlinear. Dimensions
come in order of quality: what matters most should take the first.
"""

from __future__ import annotations

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax

from nfd_jax._types import Array, Int, Key, UInt32, Vectors

DIMENSIONS = 1024  # more are hardly more even than independent numbers, and take time to set up
WORD = 32  # bits of a coordinate


class SobolPoints(eqx.Module):
    """Coordinates of scrambled Sobol points between -1 and 1, made where they are asked for; the p-th particle has the
    p-th point.

    Scrambled by random lower triangular bit matrices and random shifts (Matousek), of one key a dimension.
    """

    generators: UInt32[Array, "dimensions bits"]
    shifts: UInt32[Array, " dimensions"]

    @classmethod
    def create(cls, key: Key, dimensions: int, width: int) -> SobolPoints:
        """As many dimensions as asked for, at most `DIMENSIONS`, for up to `width` particles."""
        count = min(dimensions, DIMENSIONS)
        plain = jnp.asarray(_sobol_generators(count, max(1, (width - 1).bit_length())))
        generators, shifts = jax.vmap(lambda index, row: _scrambled(jax.random.fold_in(key, index), row))(
            jnp.arange(count), plain
        )
        return cls(generators, shifts)

    def __getitem__(self, part: slice) -> SobolPoints:
        """The same points in some of the dimensions."""
        return SobolPoints(self.generators[part], self.shifts[part])

    def replace(self, vectors: Vectors, dimensions: Int[Array, " batch"]) -> Vectors:
        """`vectors` with every row that has a dimension here (counted from 0) replaced by its coordinates."""
        if not len(self.shifts):
            return vectors
        width, dtype = vectors.shape[1], vectors.dtype
        row = jnp.clip(dimensions, 0, len(self.shifts) - 1)
        generators, particle = self.generators[row], jnp.arange(width, dtype=jnp.uint32)

        def one_bit(bit: Array, points: Array) -> Array:
            chosen = (particle >> bit.astype(jnp.uint32)) & 1
            return points ^ (generators[:, bit, None] * chosen[None, :])

        start = jnp.broadcast_to(self.shifts[row, None], vectors.shape)
        points = lax.fori_loop(0, generators.shape[1], one_bit, start)
        kept = min(WORD, jnp.finfo(dtype).nmant)  # the centre of each cell is then a number, and never -1 or 1
        uniform = ((points >> (WORD - kept)).astype(dtype) + 0.5) / 2 ** (kept - 1) - 1
        return jnp.where((dimensions < len(self.shifts))[:, None], uniform, vectors)


def _scrambled(key: Key, generators: UInt32[Array, " bits"]) -> tuple[UInt32[Array, " bits"], UInt32[Array, ""]]:
    """The generators of one dimension times a random lower triangular bit matrix, and a random shift."""
    bits = jax.random.bits(key, (WORD + 1,), jnp.uint32)
    diagonal = jnp.uint32(1) << jnp.arange(WORD - 1, -1, -1, dtype=jnp.uint32)  # from the leading bit
    columns = diagonal | (bits[:-1] & (diagonal - 1))
    chosen = jnp.where(generators[:, None] & diagonal[None, :] > 0, columns[None, :], jnp.uint32(0))
    return lax.reduce(chosen, jnp.uint32(0), lax.bitwise_xor, (1,)), bits[-1]


@cache
def _sobol_generators(dimensions: int, bits: int) -> np.ndarray:
    """Sobol's direction numbers, the leading bit first: point p is the exclusive or of those of the bits of p.

    scipy counts in Gray code, in which its point 2^(k+1) - 1 is the direction number of bit k.
    """
    sequence = scipy.stats.qmc.Sobol(dimensions, scramble=False, bits=30)
    points = []
    for bit in range(bits):
        sequence.fast_forward(2 ** (bit + 1) - 1 - sequence.num_generated)
        points.append(sequence.random(1)[0])
    return (np.stack(points, axis=1) * 2.0**WORD).astype(np.uint32)
