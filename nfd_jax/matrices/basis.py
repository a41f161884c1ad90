"""Orthonormal bases of R^n that grow by the directions that are new: projection and extension.

A basis is an array `(depth, capacity, width)`: for every hidden matrix a list of directions, of which the first `count`
are in use, and zero rows. Loops run over the rows in use only, several at a time, and read each of them once.

Members of an ensemble under vmap have ranks of their own, and an offset of its own for each would turn the slices of
bases into gathers and scatters. They share the largest: see `Counts`.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import indices, put, put_block, put_rows, take, take_block, take_rows
from nfd_jax._types import Array, Bool, Float, Index, Int
from nfd_jax.matrices.orthonormal import Queries, combination, inner, norms, orthonormalise, product

Basis = Float[Array, "depth capacity width"]
Coordinates = Float[Array, "capacity queries"]

MEMBERS = "members"  # the name of the axis of members, under vmap
TILE = 16  # rows read at a time: they outweigh what a trip of a loop costs, and stay in the cache of one core


class Counts(eqx.Module):
    """How many rows of a basis are in use, layer by layer: of several members, one number for all of them, the largest
    that any needs, so that the slices of a basis stay slices. Others have zero rows there."""

    values: Int[Array, " depth"]
    members: str | None = eqx.field(static=True, default=None)  # their axis under vmap; None where there is one network

    def __getitem__(self, layer: Index | int) -> Index:
        return self._largest(take(self.values, jnp.asarray(layer, jnp.int32)))

    def add(self, layer: Index | int, active: Bool[Array, " queries"]) -> Counts:
        """With the active ones of a block in use too."""
        total = self[layer] + self._largest(jnp.sum(active, dtype=jnp.int32))
        layer = jnp.asarray(layer, jnp.int32)
        return Counts(put(self.values, total, layer), self.members)

    def any(self, flags: Bool[Array, "*queries"]) -> Bool[Array, ""]:
        """Whether one of them is set, for any member: what decides alike for all of them."""
        return self._largest(jnp.sum(flags, dtype=jnp.int32)) > 0

    def _largest(self, count: Index) -> Index:
        return count if self.members is None else lax.pmax(count, self.members)


@jax.jit
def compact(
    active: Bool[Array, " queries"], *blocks: Float[Array, "queries _columns"]
) -> tuple[Float[Array, "queries _columns"], ...]:
    """Blocks with the active rows first, in their order, and zero rows after them."""
    order = jnp.argsort(~active, stable=True)
    used = (jnp.arange(len(active)) < jnp.sum(active))[:, None]
    rows = (block.at[order].get(mode="promise_in_bounds", unique_indices=True) for block in blocks)
    return tuple(jnp.where(used, each, 0) for each in rows)


def write(basis: Basis, layer: Index | int, offset: Index | int, rows: Queries) -> Basis:
    """The basis with a block of rows put at an offset (in place, where the caller owns it).

    The block has to fit, offset + rows <= capacity. The compiler's own write would move one that does not to the left,
    over rows in use and without a word: here all that it covers is not a number then.
    """
    fits = jnp.asarray(offset, jnp.int32) <= basis.shape[1] - len(rows)
    return put_block(basis, jnp.where(fits, rows, jnp.nan)[None], indices(layer, offset, 0))


class Tile(NamedTuple):
    """Consecutive rows of a basis; those not in use, and those of the tile before, are zero."""

    first: Index
    rows: Float[Array, "rows width"]

    def coordinates(self, every: Coordinates) -> Float[Array, "rows queries"]:
        """The coordinates along these rows."""
        return take_rows(every, self.first, len(self.rows))


class Tiles(NamedTuple):
    """How the rows in use are read: `size` at a time. Not all of the basis at once, or the compiler would hoist the
    read out of its loop and above a write, and copy the basis."""

    size: int
    number: Index  # of tiles
    used: Index  # rows

    @classmethod
    def of(cls, basis: Basis, count: Index | int, queries: int) -> Tiles:
        """For so many queries: every tile costs a pass over them."""
        capacity, count = basis.shape[1], jnp.asarray(count, jnp.int32)
        size = max(1, min(-(-capacity // 2), max(TILE, queries)))
        return cls(size, lax.div(count + (size - 1), jnp.int32(size)), count)

    def read(self, basis: Basis, layer: Index, index: Index) -> Tile:
        """One of them. The last may start before the end of the one before, to stay within the basis."""
        _, capacity, width = basis.shape
        first = index * self.size
        first = jnp.minimum(first, capacity - self.size) if capacity % self.size else first
        rows = take_block(basis, indices(layer, first, 0), (1, self.size, width))[0]
        row = first + lax.broadcasted_iota(jnp.int32, (self.size, 1), 0)
        return Tile(first, jnp.where((row >= index * self.size) & (row < self.used), rows, 0))


def project(basis: Basis, layer: Index, count: Index, vectors: Queries) -> tuple[Coordinates, Queries]:
    """Coordinates in the basis, and what is left of the vectors: one pass of block Gram-Schmidt."""
    tiles = Tiles.of(basis, count, len(vectors))

    def one_tile(index: Index, carry: tuple[Coordinates, Queries]) -> tuple[Coordinates, Queries]:
        coordinates, rest = carry
        tile = tiles.read(basis, layer, index)
        along = inner(tile.rows, rest)
        # rows of the tile before are zero here, and keep their coordinates
        every = tile.coordinates(coordinates) + along
        coordinates = put_rows(coordinates, every, tile.first)
        return coordinates, rest - combination(along, tile.rows)

    start = jnp.zeros((basis.shape[1], len(vectors)), vectors.dtype)
    return lax.fori_loop(0, tiles.number, one_tile, (start, vectors))


def combine(basis: Basis, layer: Index, count: Index, coordinates: Coordinates) -> Queries:
    """The linear combinations of the basis vectors with these coordinates."""
    tiles = Tiles.of(basis, count, coordinates.shape[1])

    def one_tile(index: Index, total: Queries) -> Queries:
        tile = tiles.read(basis, layer, index)
        return total + combination(tile.coordinates(coordinates), tile.rows)

    start = jnp.zeros((coordinates.shape[1], basis.shape[2]), basis.dtype)
    return lax.fori_loop(0, tiles.number, one_tile, start)


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


class Split(NamedTuple):
    """A query block taken apart, `query = coordinates^T basis + triangular^T rows`: what it has in a basis, and what is
    new in it.

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

    @property
    def along_directions(self) -> Array:
        """The columns of the coordinates along the new directions, zero rows for the others."""
        return jnp.where(self.active[:, None], self.triangular.columns, 0)

    @property
    def along_remainders(self) -> Array:
        """The coordinates along the remainders, zero rows for directions."""
        return jnp.where(self.active[:, None], 0, self.triangular.high)


def split(basis: Basis, layer: Index, count: Index, query: Queries) -> Split:
    """Split a query block into its part in the basis, new orthonormal directions, and remainders.

    Two rounds of projection and orthonormalisation: one alone leaves errors of the size of rounding over residual.
    A row is dependent if its residual is below ten roundings of its length, or if the second round takes away all
    but a hundredth of its direction, which then was rounding noise within the span.
    """
    batch, dtype = len(query), query.dtype
    rounding = 10 * float(jnp.finfo(dtype).eps) * norms(query)
    nothing, square = jnp.zeros((basis.shape[1], batch), dtype), jnp.zeros((batch, batch), dtype)
    identity = jnp.eye(batch, dtype=dtype)

    def one_round(index: Index, last: Split) -> Split:
        first, before = index == 0, last.triangular.high
        along, rest = project(basis, layer, count, last.rows)
        # what a second round splits is close to orthonormal, its triangular factor to the identity
        shortest = jnp.where(first, rounding, 1e-2)
        new = orthonormalise(rest, shortest, passes=3 - index, candidates=last.active)
        # a factor close to one rounds every entry in proportion to it, which does not average out: taken off exactly
        near = jnp.where(first, 0, identity)
        left = (rest - jnp.where(first, 0, new.directions)) - product((new.triangular - near).T, new.directions)
        rows = jnp.where(new.active[:, None], new.directions, left)
        triangular = jnp.where(jnp.eye(batch, dtype=bool) & ~new.active[None, :], 1, new.triangular)
        low = inner(new.directions, left)
        return Split(
            Terms(
                jnp.where(first, along, last.coordinates.high),
                jnp.where(first, 0, product(along, before)),
            ),
            rows,
            Terms(
                jnp.where(first, triangular, before),
                jnp.where(first, low, last.triangular.low + product(triangular - identity + low, before)),
            ),
            new.active,
        )

    start = Split(Terms(nothing, nothing), query, Terms(identity, square), jnp.ones(batch, bool))
    return lax.fori_loop(0, 2, one_round, start)
