"""Orthonormal bases of R^n that grow a block at a time: projection, orthonormalisation, extension.

Vectors are rows and `<a, b> = a . b / n`. A basis is an array `(depth, blocks, batch, width)`: for every residual
block of the network a list of query blocks, of which the first `filled` are in use. Rows of a dependent query are
zero, so rank never changes a shape. Loops run over filled blocks only, several at a time, and read each of them once;
products are in full precision, because an accelerator's default would round them to tf32 and spoil orthogonality.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Bool, Float, Index, Vectors

Basis = Float[Array, "depth blocks batch width"]
Coordinates = Float[Array, "blocks batch queries"]
Queries = Float[Array, "queries width"]  # a block to be split, of any size


TILE = 16  # rows read at a time: they outweigh what a trip of a loop costs, and stay in the cache of one core


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


def diagonal(square: Float[Array, "rows rows"]) -> Float[Array, " rows"]:
    """The diagonal, by one small kernel instead of a gather."""
    return jnp.sum(jnp.where(_identity(square), square, 0), axis=1)


def _identity(square: Array) -> Bool[Array, "rows rows"]:
    return jnp.eye(len(square), dtype=bool)


def empty(depth: int, blocks: int, batch: int, width: int, dtype: jnp.dtype) -> Basis:
    """A basis with nothing in it."""
    return jnp.zeros((depth, blocks, batch, width), dtype)


def read(basis: Basis, layer: Index | int, block: Index | int) -> Vectors:
    """One block of vectors."""
    _, _, batch, width = basis.shape
    return lax.dynamic_slice(basis, _corner(layer, block), (1, 1, batch, width))[0, 0]


def write(basis: Basis, layer: Index | int, block: Index | int, vectors: Vectors) -> Basis:
    """The basis with one block of vectors replaced (in place, where the caller owns it)."""
    return lax.dynamic_update_slice(basis, vectors[None, None], _corner(layer, block))


def _corner(layer: Index | int, block: Index | int) -> tuple[Array, ...]:
    return tuple(jnp.asarray(i, jnp.int32) for i in (layer, block, 0, 0))


class Tile(NamedTuple):
    """Consecutive blocks of a basis as rows; those not filled, and those of the tile before, are zero."""

    first: Index  # block
    blocks: int
    rows: Float[Array, "rows width"]

    def coordinates(self, every: Coordinates) -> Float[Array, "rows queries"]:
        """The coordinates along these rows."""
        found = lax.dynamic_slice_in_dim(every, self.first, self.blocks)
        return found.reshape(-1, every.shape[2])


def tile_blocks(basis: Basis) -> int:
    """How many blocks are read at a time: not all of them, or the compiler would hoist the read out of its loop and
    above a write, and copy the basis."""
    _, blocks, batch, _ = basis.shape
    return max(1, min(-(-blocks // 2), TILE // batch))


def tiles(basis: Basis, filled: Index) -> Index:
    """How many tiles hold the filled blocks."""
    size = tile_blocks(basis)
    return lax.div(jnp.asarray(filled, jnp.int32) + (size - 1), jnp.int32(size))


def read_tile(basis: Basis, layer: Index, index: Index, filled: Index) -> Tile:
    """A tile of the filled blocks. The last may start before the end of the one before, to stay within the basis."""
    _, blocks, batch, width = basis.shape
    size = tile_blocks(basis)
    first = jnp.minimum(index * size, blocks - size) if blocks % size else index * size
    found = lax.dynamic_slice(basis, _corner(layer, first), (1, size, batch, width))
    block = first + lax.broadcasted_iota(jnp.int32, (size * batch, 1), 0) // batch
    wanted = (block >= index * size) & (block < filled)
    return Tile(first, size, jnp.where(wanted, found.reshape(size * batch, width), 0))


def project(basis: Basis, layer: Index, filled: Index, vectors: Queries) -> tuple[Coordinates, Queries]:
    """Coordinates in the basis, and what is left of the vectors: one pass of block Gram-Schmidt."""
    _, blocks, batch, _ = basis.shape

    def one_tile(index: Index, carry: tuple[Coordinates, Queries]) -> tuple[Coordinates, Queries]:
        coordinates, rest = carry
        tile = read_tile(basis, layer, index, filled)
        found = inner(tile.rows, rest)
        # rows of the tile before are zero here, and keep their coordinates
        every = (tile.coordinates(coordinates) + found).reshape(tile.blocks, batch, -1)
        coordinates = lax.dynamic_update_slice_in_dim(coordinates, every, tile.first, axis=0)
        return coordinates, rest - combination(found, tile.rows)

    start = jnp.zeros((blocks, batch, vectors.shape[0]), vectors.dtype)
    return lax.fori_loop(0, tiles(basis, filled), one_tile, (start, vectors))


def combine(basis: Basis, layer: Index, filled: Index, coordinates: Coordinates) -> Queries:
    """The linear combinations of the basis vectors with these coordinates."""

    def one_tile(index: Index, total: Queries) -> Queries:
        tile = read_tile(basis, layer, index, filled)
        return total + combination(tile.coordinates(coordinates), tile.rows)

    start = jnp.zeros((coordinates.shape[2], basis.shape[3]), basis.dtype)
    return lax.fori_loop(0, tiles(basis, filled), one_tile, start)


class Orthonormal(NamedTuple):
    """A block split as `vectors = triangular^T directions`, with zero rows where the rank falls short."""

    directions: Queries  # (queries, width), orthonormal or zero rows
    triangular: Float[Array, "queries queries"]  # upper triangular, positive diagonal or zero rows
    active: Bool[Array, " queries"]


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
        kept, *_ = state
        directions, triangular, last = _passes(vectors, gram, kept, passes)
        active = kept & (diagonal(triangular) > shortest)
        return active, directions, triangular, last, jnp.all(active == kept)

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
    directions, triangular, _ = _passes(vectors, inner(vectors, vectors), jnp.ones(len(vectors), bool), passes)
    return directions, triangular


def _passes(
    vectors: Queries, gram: Array, kept: Bool[Array, " queries"], passes: Index | int
) -> tuple[Queries, Array, Array]:
    """Cholesky-QR of the rows that are kept, given their Gram matrix, and the Gram matrix of the result.

    Scales and masks are put on the small factors, so that a pass over the vectors is two products.
    """
    batch, dtype = vectors.shape[0], vectors.dtype
    identity = jnp.eye(batch, dtype=dtype)
    shift = 10 * batch * float(jnp.finfo(dtype).eps) * identity
    length = jnp.sqrt(diagonal(gram))
    length = jnp.where(length > 0, length, 1)
    scale = jnp.where(kept, 1 / length, 0)

    def one_pass(index: Index, carry: tuple[Queries, Array, Array]) -> tuple[Queries, Array, Array]:
        directions, triangular, gram = carry
        unit = jnp.where(index == 0, scale, 1)
        lower = lax.linalg.cholesky(unit[:, None] * gram * unit[None, :] + shift, symmetrize_input=False)
        inverse = lax.linalg.triangular_solve(lower, unit[:, None] * identity, left_side=True, lower=True)
        directions = product(inverse, directions)
        return directions, product(lower.T, triangular), inner(directions, directions)

    return lax.fori_loop(0, passes, one_pass, (vectors, length[:, None] * identity, gram))


class Terms(NamedTuple):
    """Numbers as sums of two: `low` is what rounding takes from `high`.

    One rounding of a coordinate shifts the images of all particles alike, where the roundings of their own entries
    average out: at small learning rates it would outweigh what a step moves.
    """

    high: Array
    low: Array

    @property
    def columns(self) -> Array:
        """Both side by side, to be multiplied in one pass."""
        return jnp.concatenate(self, axis=-1)

    @classmethod
    def of(cls, rows: Float[Array, "two_queries width"]) -> Terms:
        """The two terms of a product with `columns`."""
        return cls(*jnp.split(rows, 2))


class Revealed(NamedTuple):
    """What a query adds to a basis: `query = coordinates . basis + triangular^T rows`.

    A row is a new orthonormal direction where it is active. Where not it is a remainder: what neither the basis nor the
    directions hold, too short to tell its direction from rounding, but known in its sum.
    """

    coordinates: Terms  # of Coordinates
    rows: Queries
    triangular: Terms  # (queries, queries)
    active: Bool[Array, " queries"]

    @property
    def directions(self) -> Queries:
        """The new directions, zero rows for what depends on others."""
        return jnp.where(self.active[:, None], self.rows, 0)


def reveal(basis: Basis, layer: Index, filled: Index, query: Queries) -> Revealed:
    """Split a query block into its part in the basis, new orthonormal directions, and remainders.

    Two rounds of projection and orthonormalisation: one alone leaves errors of the size of rounding over residual.
    A row is dependent if its residual is below ten roundings of its length, or if the second round takes away all
    but a hundredth of its direction, which then was rounding noise within the span.
    """
    batch, dtype = len(query), query.dtype
    rounding = 10 * float(jnp.finfo(dtype).eps) * norms(query)
    nothing, square = jnp.zeros((*basis.shape[1:3], batch), dtype), jnp.zeros((batch, batch), dtype)
    identity = jnp.eye(batch, dtype=dtype)

    def one_round(index: Index, found: Revealed) -> Revealed:
        first, before = index == 0, found.triangular.high
        along, rest = project(basis, layer, filled, found.rows)
        # what a second round splits is close to orthonormal, its triangular factor to the identity
        shortest = jnp.where(first, rounding, 1e-2)
        new = orthonormalise(rest, shortest, passes=3 - index, candidates=found.active)
        left = rest - product(new.triangular.T, new.directions)
        rows = jnp.where(new.active[:, None], new.directions, left)
        triangular = jnp.where(jnp.eye(batch, dtype=bool) & ~new.active[None, :], 1, new.triangular)
        low = inner(new.directions, left)
        return Revealed(
            Terms(
                jnp.where(first, along, found.coordinates.high),
                jnp.where(first, 0, jnp.einsum("jab,bq->jaq", along, before, precision=lax.Precision.HIGHEST)),
            ),
            rows,
            Terms(
                jnp.where(first, triangular, before),
                jnp.where(first, low, found.triangular.low + product(triangular - identity + low, before)),
            ),
            new.active,
        )

    start = Revealed(Terms(nothing, nothing), query, Terms(identity, square), jnp.ones(batch, bool))
    return lax.fori_loop(0, 2, one_round, start)


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
