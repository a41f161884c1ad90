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


def project(basis: Basis, layer: Index, filled: Index, vectors: Vectors) -> tuple[Coordinates, Vectors]:
    """Coordinates in the basis, and what is left of the vectors: one pass of block Gram-Schmidt."""
    _, blocks, batch, _ = basis.shape

    def one_block(j: Index, carry: tuple[Coordinates, Vectors]) -> tuple[Coordinates, Vectors]:
        coordinates, rest = carry
        known = read(basis, layer, j)
        found = inner(known, rest)
        return coordinates.at[j].set(found), rest - product(found.T, known)

    start = jnp.zeros((blocks, batch, vectors.shape[0]), vectors.dtype)
    return lax.fori_loop(0, filled, one_block, (start, vectors))


def combine(basis: Basis, layer: Index, filled: Index, coordinates: Coordinates) -> Vectors:
    """The linear combinations of the basis vectors with these coordinates."""

    def one_block(j: Index, total: Vectors) -> Vectors:
        return total + product(coordinates[j].T, read(basis, layer, j))

    start = jnp.zeros((coordinates.shape[2], basis.shape[3]), basis.dtype)
    return lax.fori_loop(0, filled, one_block, start)


class Orthonormal(NamedTuple):
    """A block split as `vectors = triangular^T directions`, with zero rows where the rank falls short."""

    directions: Vectors  # (batch, width), orthonormal or zero rows
    triangular: Float[Array, "batch batch"]  # upper triangular, positive diagonal or zero rows
    active: Bool[Array, " batch"]


def orthonormalise(
    vectors: Vectors, reference: Float[Array, " batch"], tolerance: float, passes: int = 3
) -> Orthonormal:
    """Orthonormalise a block by shifted Cholesky-QR and leave out the rows that depend on those above them.

    A row counts as dependent when its new part is shorter than `tolerance * reference`. Its direction would be
    rounding noise, and later rows must not be expressed in it, so the rest is then factored again without it.
    """
    directions, triangular = _cholesky_qr(vectors, passes)
    active = (jnp.diagonal(triangular) > tolerance * reference) & (reference > 0)

    def without_dependent_rows() -> tuple[Vectors, Array]:
        kept, factor = _cholesky_qr(jnp.where(active[:, None], vectors, 0), passes)
        kept = jnp.where(active[:, None], kept, 0)
        factor = jnp.where(active[None, :], factor, inner(kept, vectors))
        return kept, jnp.where(active[:, None], factor, 0)

    directions, triangular = lax.cond(jnp.all(active), lambda: (directions, triangular), without_dependent_rows)
    return Orthonormal(directions, triangular, active)


def _cholesky_qr(vectors: Vectors, passes: int) -> tuple[Vectors, Array]:
    """Shifted Cholesky-QR of rows scaled to unit length; the shift keeps every factor real (jax returns NaN)."""
    batch, dtype = vectors.shape[0], vectors.dtype
    identity = jnp.eye(batch, dtype=dtype)
    length = norms(vectors)
    length = jnp.where(length > 0, length, 1)
    directions, triangular = vectors / length[:, None], jnp.diag(length)
    shift = 10 * batch * float(jnp.finfo(dtype).eps)
    for _ in range(passes):
        lower = jnp.linalg.cholesky(inner(directions, directions) + shift * identity)
        inverse = jax.scipy.linalg.solve_triangular(lower, identity, lower=True)
        directions = product(inverse, directions)
        triangular = product(lower.T, triangular)
    return directions, triangular


class Revealed(NamedTuple):
    """What a query adds to a basis: `query = coordinates . basis + triangular^T directions`."""

    coordinates: Coordinates
    directions: Vectors
    triangular: Float[Array, "batch batch"]
    active: Bool[Array, " batch"]


def reveal(basis: Basis, layer: Index, filled: Index, query: Vectors) -> Revealed:
    """Split a query block into its part in the basis and new orthonormal directions.

    Projection and orthonormalisation run twice (one round leaves errors of the size of rounding over residual).
    A row is dependent if its residual is below ten roundings of its length, or if the second projection takes
    away all but a hundredth of its direction, which then was rounding noise within the span.
    """
    tolerance = 10 * float(jnp.finfo(query.dtype).eps)
    coordinates, rest = project(basis, layer, filled, query)
    first = orthonormalise(rest, norms(query), tolerance)
    correction, rest = project(basis, layer, filled, first.directions)
    second = orthonormalise(rest, jnp.ones_like(rest[:, 0]), 1e-2, passes=2)
    coordinates = coordinates + jnp.einsum(
        "jab,bq->jaq", correction, first.triangular, precision=lax.Precision.HIGHEST
    )
    return Revealed(coordinates, second.directions, product(second.triangular, first.triangular), second.active)
