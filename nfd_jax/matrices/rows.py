"""Orthonormal rows that grow, of every matrix as many as it has: what updates span, and what matched noise knows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import put_rows
from nfd_jax._types import Array, Bool, Index, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.orthonormal import inner


class Rows(NamedTuple):
    """Rows `(depth, capacity, width)`, of which the first `counts` of a layer are in use."""

    rows: bases.Basis
    counts: bases.Counts

    @classmethod
    def nothing(cls, depth: int, capacity: int, width: int, dtype: Any, members: str | None) -> Rows:
        """None in use."""
        rows = jnp.zeros((depth, capacity, width), dtype)
        return cls(rows, bases.Counts(jnp.zeros((depth,), jnp.int32), members))

    def project(self, layer: Index, vectors: Vectors) -> tuple[bases.Coordinates, Vectors]:
        """Coordinates of vectors, and what is left of them."""
        return bases.project(self.rows, layer, self.counts[layer], vectors)

    def split(self, layer: Index, vectors: Vectors) -> bases.Split:
        """Vectors taken apart into what is in the rows and what is new, with care."""
        return bases.split(self.rows, layer, self.counts[layer], vectors)

    def along(self, layer: Index, vectors: Vectors) -> bases.Coordinates:
        """Their coordinates alone."""
        tiles = bases.Tiles.of(self.rows, self.counts[layer], len(vectors))

        def one_tile(index: Index, coordinates: bases.Coordinates) -> bases.Coordinates:
            tile = tiles.read(self.rows, layer, index)
            every = tile.coordinates(coordinates) + inner(tile.rows, vectors)
            return put_rows(coordinates, every, tile.first)

        start = jnp.zeros((self.rows.shape[1], len(vectors)), vectors.dtype)
        return lax.fori_loop(0, tiles.number, one_tile, start)

    def combine(self, layer: Index, coordinates: bases.Coordinates) -> Vectors:
        """The vectors with these coordinates."""
        return bases.combine(self.rows, layer, self.counts[layer], coordinates)

    def append(self, layer: Index, rows: Vectors, active: Bool[Array, " batch"]) -> Rows:
        """With the active ones of a block in use too, which stand first in it (`basis.compact`)."""
        return Rows(bases.write(self.rows, layer, self.counts[layer], rows), self.counts.add(layer, active))
