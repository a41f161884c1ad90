"""Orthonormal bases of R^n that grow a block at a time: projection, orthonormalisation, extension.

Vectors are rows and `<a, b> = a . b / n`. A basis is an array `(depth, blocks, batch, width)`: for every residual
block of the network a list of query blocks, of which the first `filled` are in use. Rows of a dependent query are
zero, so rank never changes a shape. Loops run over filled blocks only and read each of them once; products are
in full precision, because an accelerator's default would round them to tf32 and spoil orthogonality.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Bool, Float, Index, Vectors

Basis = Float[Array, "depth blocks batch width"]
Coordinates = Float[Array, "blocks batch queries"]
Queries = Float[Array, "queries width"]  # a block to be split, of any size


def product(a: Array, b: Array) -> Array:
    """The matrix product a b in full precision."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def inner(a: Float[Array, "rows width"], b: Float[Array, "columns width"]) -> Float[Array, "rows columns"]:
    """The inner products <a_i, b_j> = a_i . b_j / n."""
    return product(a, b.T) / a.shape[-1]


def norms(vectors: Vectors) -> Float[Array, " batch"]:
    """|v_i| with |v|^2 = <v, v>."""
    return jnp.sqrt(jnp.mean(vectors**2, axis=-1))


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


def project(basis: Basis, layer: Index, filled: Index, vectors: Queries) -> tuple[Coordinates, Queries]:
    """Coordinates in the basis, and what is left of the vectors: one pass of block Gram-Schmidt."""
    _, blocks, batch, _ = basis.shape

    def one_block(j: Index, carry: tuple[Coordinates, Queries]) -> tuple[Coordinates, Queries]:
        coordinates, rest = carry
        known = read(basis, layer, j)
        found = inner(known, rest)
        return coordinates.at[j].set(found), rest - product(found.T, known)

    start = jnp.zeros((blocks, batch, vectors.shape[0]), vectors.dtype)
    return lax.fori_loop(0, filled, one_block, (start, vectors))


def combine(basis: Basis, layer: Index, filled: Index, coordinates: Coordinates) -> Queries:
    """The linear combinations of the basis vectors with these coordinates."""

    def one_block(j: Index, total: Queries) -> Queries:
        return total + product(coordinates[j].T, read(basis, layer, j))

    start = jnp.zeros((coordinates.shape[2], basis.shape[3]), basis.dtype)
    return lax.fori_loop(0, filled, one_block, start)


class Orthonormal(NamedTuple):
    """A block split as `vectors = triangular^T directions`, with zero rows where the rank falls short."""

    directions: Queries  # (queries, width), orthonormal or zero rows
    triangular: Float[Array, "queries queries"]  # upper triangular, positive diagonal or zero rows
    active: Bool[Array, " queries"]


def orthonormalise(vectors: Queries, shortest: Float[Array, " queries"], passes: Index | int = 3) -> Orthonormal:
    """Orthonormalise a block by shifted Cholesky-QR and leave out the rows that depend on those above them.

    A row counts as dependent when its new part is shorter than `shortest`. Its direction would be rounding noise,
    and later rows must not be expressed in it, so the rest is then factored again without it.
    """

    def attempt(state: tuple) -> tuple:
        kept, *_ = state
        directions, triangular = cholesky_qr(jnp.where(kept[:, None], vectors, 0), passes)
        active = kept & (jnp.diagonal(triangular) > shortest)
        return active, directions, triangular, jnp.all(active == kept)

    batch = len(vectors)
    everything = norms(vectors) > 0
    start = (everything, vectors, jnp.zeros((batch, batch), vectors.dtype), jnp.array(False))
    active, directions, triangular, _ = lax.while_loop(lambda state: ~state[3], attempt, start)
    # the shift leaves rows a few roundings short, which a repeated query would see as a residual
    length = jnp.where(active, norms(directions), 1)
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
    batch, dtype = len(vectors), vectors.dtype
    identity = jnp.eye(batch, dtype=dtype)
    length = norms(vectors)
    length = jnp.where(length > 0, length, 1)
    shift = 10 * batch * float(jnp.finfo(dtype).eps) * identity

    def one_pass(_: Index, carry: tuple[Queries, Array]) -> tuple[Queries, Array]:
        directions, triangular = carry
        lower = jnp.linalg.cholesky(inner(directions, directions) + shift)
        inverse = jax.scipy.linalg.solve_triangular(lower, identity, lower=True)
        return product(inverse, directions), product(lower.T, triangular)

    return lax.fori_loop(0, passes, one_pass, (vectors / length[:, None], jnp.diag(length)))


class Revealed(NamedTuple):
    """What a query adds to a basis: `query = coordinates . basis + triangular^T directions`."""

    coordinates: Coordinates
    directions: Queries
    triangular: Float[Array, "queries queries"]
    active: Bool[Array, " queries"]


def reveal(basis: Basis, layer: Index, filled: Index, query: Queries) -> Revealed:
    """Split a query block into its part in the basis and new orthonormal directions.

    Two rounds of projection and orthonormalisation: one alone leaves errors of the size of rounding over residual.
    A row is dependent if its residual is below ten roundings of its length, or if the second round takes away all
    but a hundredth of its direction, which then was rounding noise within the span.
    """
    batch, dtype = len(query), query.dtype
    rounding = 10 * float(jnp.finfo(dtype).eps) * norms(query)

    def one_round(index: Index, carry: tuple) -> tuple:
        coordinates, directions, triangular, _ = carry
        found, rest = project(basis, layer, filled, directions)
        # what a second round splits is close to orthonormal
        new = orthonormalise(rest, jnp.where(index == 0, rounding, 1e-2), passes=3 - index)
        found = jnp.einsum("jab,bq->jaq", found, triangular, precision=lax.Precision.HIGHEST)
        return coordinates + found, new.directions, product(new.triangular, triangular), new.active

    nothing = jnp.zeros((*basis.shape[1:3], batch), dtype)
    start = (nothing, query, jnp.eye(batch, dtype=dtype), jnp.ones(batch, bool))
    return Revealed(*lax.fori_loop(0, 2, one_round, start))
