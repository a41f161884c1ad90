"""Blocks of vectors: their products and lengths, and how they are made orthonormal.

Vectors are rows and `<a, b> = a . b / n`. Products are in full precision, because an accelerator's default would round
them to tf32 and spoil orthogonality. What programs hold several times is traced once (`jax.jit`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import indices
from nfd_jax._types import Array, Bool, Float, Index, Vectors

Queries = Float[Array, "queries width"]  # a block to be split, of any size


def product(a: Array, b: Array) -> Array:
    """The matrix product a b in full precision."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def combination(
    coordinates: Float[Array, "rows columns"], vectors: Float[Array, "rows width"]
) -> Float[Array, "columns width"]:
    """The linear combinations coordinates^T vectors."""
    return lax.dot_general(coordinates, vectors, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def inner(a: Float[Array, "rows width"], b: Float[Array, "columns width"]) -> Float[Array, "rows columns"]:
    """The inner products <a_i, b_j> = a_i . b_j / n, without a transposed copy of b."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST) / a.shape[-1]


def norms(vectors: Vectors) -> Float[Array, " batch"]:
    """|v_i| with |v|^2 = <v, v>."""
    return jnp.sqrt(diagonal(inner(vectors, vectors)))


@jax.jit
def diagonal(square: Float[Array, "rows rows"]) -> Float[Array, " rows"]:
    """The diagonal, by one small kernel instead of a gather."""
    return jnp.sum(jnp.where(jnp.eye(len(square), dtype=bool), square, 0), axis=1)


def magnitudes(vectors: Vectors) -> Float[Array, " batch"]:
    """A power of two near the largest entry of every row, NaN for a row that is not finite.

    Rows divided by it have inner products that neither overflow nor vanish, with the same rounding; what is linear in
    the rows and is multiplied by it again is not finite where they are not.
    """
    largest = jnp.max(jnp.abs(vectors), axis=1)
    bits = jnp.finfo(vectors.dtype)
    power = lax.reduce_precision(largest / 2, bits.nexp, 0)  # rounded, and so at most the largest power
    power = jnp.where(largest >= 4 * float(bits.smallest_normal), power, 1)
    return jnp.where(jnp.isfinite(largest), power, jnp.nan)


class Orthonormal(NamedTuple):
    """A block split as `vectors = triangular^T directions`, with zero rows where the rank falls short."""

    directions: Queries  # (queries, width), orthonormal or zero rows
    triangular: Float[Array, "queries queries"]  # upper triangular, positive diagonal or zero rows
    active: Bool[Array, " queries"]


@jax.jit
def orthonormalise(
    vectors: Queries,
    shortest: Float[Array, " queries"],
    passes: Index | int = 3,
    candidates: Bool[Array, " queries"] | bool = True,
) -> Orthonormal:
    """Orthonormalise a block by shifted Cholesky-QR and leave out the rows that depend on those above them.

    A row counts as dependent when its new part is shorter than `shortest`, or where it is no candidate. Its direction
    would be rounding noise, and later rows must not be expressed in it, so the rest is then factored again without it.
    """
    gram = inner(vectors, vectors)
    length = jnp.sqrt(diagonal(gram))

    def attempt(state: tuple) -> tuple:
        before, *_ = state
        directions, triangular, last = _passes(vectors, gram, before, *indices(passes))
        active = before & (diagonal(triangular) > shortest)
        return active, directions, triangular, last, jnp.all(active == before)

    start = ((length > 0) & candidates, vectors, gram, gram, jnp.array(False))
    active, directions, triangular, last, _ = lax.while_loop(lambda state: ~state[-1], attempt, start)
    # the shift leaves rows a few roundings short, which a repeated query would see as a residual
    length = jnp.where(active, jnp.sqrt(diagonal(last)), 1)
    directions = jnp.where(active[:, None], directions / length[:, None], 0)
    triangular = length[:, None] * triangular
    triangular = jnp.where(active[None, :], triangular, inner(directions, vectors))
    return Orthonormal(directions, jnp.where(active[:, None], triangular, 0), active)


def cholesky_qr(vectors: Queries, passes: Index | int) -> tuple[Queries, Array]:
    """Passes of Cholesky-QR on rows scaled to unit length.

    The first Gram matrix may be singular to rounding, where jax's factor would be NaN: a shift keeps it real, and the
    passes that follow make up for the shift. Three serve any block, two a well-conditioned one; after one pass rows
    that depend on others are short instead of orthonormal.
    """
    gram, chosen = inner(vectors, vectors), jnp.ones(len(vectors), bool)
    directions, triangular, _ = _passes(vectors, gram, chosen, *indices(passes))
    return directions, triangular


@jax.jit
def _passes(
    vectors: Queries, gram: Array, chosen: Bool[Array, " queries"], passes: Index
) -> tuple[Queries, Array, Array]:
    """Cholesky-QR of the rows that are chosen, given their Gram matrix, and the Gram matrix of the result.

    Scales and masks are put on the small factors, so that a pass over the vectors is two products.
    """
    batch, dtype = vectors.shape[0], vectors.dtype
    identity = jnp.eye(batch, dtype=dtype)
    shift = 10 * batch * float(jnp.finfo(dtype).eps) * identity
    length = jnp.sqrt(diagonal(gram))
    length = jnp.where(length > 0, length, 1)
    scale = jnp.where(chosen, 1 / length, 0)

    def one_pass(index: Index, carry: tuple[Queries, Array, Array]) -> tuple[Queries, Array, Array]:
        directions, triangular, gram = carry
        unit = jnp.where(index == 0, scale, 1)
        lower = lax.linalg.cholesky(unit[:, None] * gram * unit[None, :] + shift, symmetrize_input=False)
        inverse = lax.linalg.triangular_solve(lower, unit[:, None] * identity, left_side=True, lower=True)
        directions = product(inverse, directions)
        return directions, product(lower.T, triangular), inner(directions, directions)

    return lax.fori_loop(0, passes, one_pass, (vectors, length[:, None] * identity, gram))
