"""What is new in a query block up to a resolution, and what of it is dropped (theory section 4b)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Bool, Float, Index, Scalar, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.noise import Rotation
from nfd_jax.matrices.orthonormal import cholesky_qr, inner, orthonormalise, product

REVEALED = 0.5  # of the resolution: down to where a block that has passed it is revealed, so that not every step adds


class Capacity(NamedTuple):
    """Rows that there is room for in the bases of a matrix: revealed directions, and those of updates."""

    images: int
    updates: int


class Resolved(NamedTuple):
    """A query block taken apart, `query = coordinates^T basis + triangular^T rows`, as `basis.Split` does exactly: new
    orthonormal directions where a row is active, and remainders, orthogonal to them and each other.

    `rotation`: what takes the normals of the queries to those of the rows; None where they are the same.
    """

    coordinates: bases.Coordinates
    rows: Vectors
    triangular: Float[Array, "batch batch"]
    active: Bool[Array, " batch"]
    rotation: Rotation

    @property
    def directions(self) -> Vectors:
        """The new directions, zero rows for remainders."""
        return jnp.where(self.active[:, None], self.rows, 0)

    @property
    def along_directions(self) -> Array:
        """The coordinates along the new directions, zero rows for the others."""
        return jnp.where(self.active[:, None], self.triangular, 0)

    @property
    def along_remainders(self) -> Array:
        """The coordinates along the remainders, zero rows for directions."""
        return jnp.where(self.active[:, None], 0, self.triangular)


def resolve(basis: bases.Basis, layer: Index, counts: bases.Counts, queries: Vectors, resolution: Scalar) -> Resolved:
    """A query block taken apart, where only singular directions of what the basis lacks of it count as new that are
    longer than `resolution` times the root mean square of the queries' lengths, and with these those half as long."""
    coordinates, rest = bases.project(basis, layer, counts[layer], queries)
    squares, vectors = jnp.linalg.eigh(inner(rest, rest))
    least = resolution**2 * jnp.mean(queries**2)
    new, identity = squares > least, jnp.eye(len(rest), dtype=rest.dtype)
    active = jnp.any(new) & (squares > REVEALED**2 * least)

    def some() -> tuple[Array, ...]:
        rows = product(vectors.T, rest)
        unit = rows / jnp.sqrt(jnp.where(active, squares, 1))[:, None]
        again = bases.project(basis, layer, counts[layer], unit)[1]
        found = orthonormalise(again, jnp.full_like(squares, 1e-2), 2, active)
        remainders = rows - product(inner(rows, found.directions), found.directions)
        is_new = found.active[:, None]
        rows = jnp.where(is_new, found.directions, remainders)
        return rows, jnp.where(is_new, inner(found.directions, rest), vectors.T), found.active

    def none() -> tuple[Array, ...]:
        return rest, identity, jnp.zeros_like(active)

    rows, triangular, active = lax.cond(counts.any(new), some, none)
    return Resolved(coordinates, rows, triangular, active, vectors.T)


def evaluated(basis: bases.Basis, layer: Index, counts: bases.Counts, queries: Vectors, resolution: Scalar) -> Resolved:
    """The same of queries that are not kept, of any number of them, where all is new of a query that the basis lacks by
    more than `resolution` times the root mean square of their lengths, and nothing of the others.

    No row of a block is longer than its largest singular value: where `resolve` finds nothing new, neither is here, and
    samples that training has fitted are evaluated as it has seen them. Two passes of shifted Cholesky-QR, and no other
    attempt without what depends on others: its directions come out short instead of as units. Images of the rows by
    independent normals have the variances of the law up to rounding, and what the rows are summed to is exact.
    """
    coordinates, rest = bases.project(basis, layer, counts[layer], queries)
    squares = jnp.mean(queries**2, axis=1)  # as lengths: an inner product of all with all costs as much as a projection
    rounding, least = (10 * float(jnp.finfo(rest.dtype).eps)) ** 2 * squares, resolution**2 * jnp.mean(squares)
    active = jnp.mean(rest**2, axis=1) > jnp.maximum(rounding, least)
    directions, triangular = cholesky_qr(jnp.where(active[:, None], rest, 0), 2)
    triangular = jnp.where(active[None, :], triangular, jnp.eye(len(rest), dtype=rest.dtype))
    return Resolved(coordinates, jnp.where(active[:, None], directions, rest), triangular, active, None)
