"""Matched noise: fresh parts orthogonal to all that every particle already knows (theory section 4)."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Bool, Float, Index, Key, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.noise import (
    FINEST,
    FORWARD,
    AbstractNoise,
    Grid,
    Rotation,
    gaussians,
    over_finer_blocks,
    rotated,
    where,
)
from nfd_jax.matrices.rows import Rows
from nfd_jax.matrices.sobol import QuasiNormals

MOST = 0.25  # constraints and a block together, of the particles


def least_width(batch: int, steps: int, outputs: int, evaluated: int = 0) -> int:
    """The particles from which on matched noise may be imposed up to step `steps`: constraints and the block together
    are at most a quarter of them. The last block is a batch, or `evaluated` samples that are queried without being
    kept; one more step that is only observed takes 2 `batch` more, and three eighths in all at most."""
    block = max(batch, evaluated)
    return 4 * (outputs + 2 * batch * steps + 2 * block)


class MatchedNoise(AbstractNoise):
    """Orthonormal fresh parts, orthogonal to their query and to what `known` holds: the readout, the images of earlier
    queries in the same direction, and the queries of the opposite one, which in the coupled closure belong to the law.
    Of long training, whose ranks nobody knows before, it is plain from where that exceeds a quarter of the particles.

    One orthonormal basis a matrix and direction, extended with each query: known vectors are never factored again.
    Earlier queries in the same direction, images of the opposite one, h_0 and the h of the same block need no
    constraints: imposing them changes no standard deviation of a nonlinear network by more than a few percent.
    """

    key: Key
    known: tuple[Rows, Rows]  # of the forward images, of the backward ones
    grid: Grid = eqx.field(static=True, default=FINEST)
    first: QuasiNormals | None = None  # of the first step
    most: int | None = eqx.field(static=True, default=None)  # constraints; a quarter of the particles unless given

    @classmethod
    def create(
        cls,
        key: Key,
        readout: Float[Array, "count width"],
        depth: int,
        capacity: int,
        grid: Grid = FINEST,
        first: QuasiNormals | None = None,
        members: str | None = None,
        most: int | None = None,
    ) -> MatchedNoise:
        """For matrices of this capacity; `readout` are orthonormal rows known to every matrix from the start, `first`
        the source of the normals of step 0 (by default independent ones, as at later steps), `members` as in
        `RevealedMatrices.create`."""
        count, width = readout.shape

        def known() -> Rows:  # both in memory of their own
            rows = jnp.zeros((depth, count + 2 * capacity, width), readout.dtype).at[:, :count].set(readout)
            return Rows(rows, bases.Counts(jnp.full((depth,), count, jnp.int32), members))

        return cls(key, (known(), known()), grid, first, most)

    def _normals(self, direction: int, layer: Index, step: Index, like: Vectors) -> Vectors:
        spread, depth = self.first, len(self.known[0].rows)

        def draw(fine: Index) -> Vectors:
            independent = partial(gaussians, self.key, direction, fine, step, like)
            if spread is None:
                return independent()
            # the first rows take the first dimensions: the more rows there are, the less each adds to those before
            dimensions = (2 * jnp.arange(len(like), dtype=fine.dtype) + direction) * depth + fine
            even = partial(spread.replace, dimensions=dimensions)
            return lax.cond(step == 0, lambda: even(independent()), independent)

        return over_finer_blocks(draw, layer, self.grid)

    def draw(
        self,
        direction: int,
        layer: Index,
        step: Index,
        directions: Vectors,
        *,
        keep: bool,
        rotation: Rotation = None,
        needed: Bool[Array, ""] | bool = True,
    ) -> tuple[Vectors, MatchedNoise]:
        same, opposite = self.known[direction], self.known[1 - direction]
        asked = bases.norms(directions) > 0  # the other rows add nothing, and their normals constrain nothing
        nothing = jnp.zeros_like(directions), jnp.zeros_like(asked)

        def normals() -> Vectors:
            every = rotated(self._normals(direction, layer, step, directions), rotation)
            return jnp.where(asked[:, None], every, 0)

        def matched() -> tuple[Vectors, Array, tuple[Vectors, Array]]:
            query = same.split(layer, directions)
            _, fresh = same.project(layer, normals())
            fresh = fresh - bases.product(bases.inner(fresh, query.directions), query.directions)
            fresh, _ = bases.cholesky_qr(fresh, 2)
            if not keep:
                return fresh, asked, nothing
            query = opposite.split(layer, directions)
            return fresh, asked, (query.directions, query.active)

        def plain() -> tuple[Vectors, Array, tuple[Vectors, Array]]:
            return normals(), nothing[1], nothing

        def draw() -> tuple[Vectors, Array, tuple[Vectors, Array]]:
            if needed is True:  # of the exact law, where there is room for all queries
                return matched()
            used = jnp.maximum(same.counts[layer], opposite.counts[layer]) + 2 * len(directions)
            most = int(MOST * directions.shape[1]) if self.most is None else self.most
            return lax.cond(used <= most, matched, plain)

        fresh, remembered, query = where(needed, draw)
        if not keep:
            return fresh, self
        # they fit wherever the queries of both directions do: a query adds at most the fresh parts of its directions to
        # one of them, and its directions to the other
        additions = (fresh, remembered), query
        same, opposite = (
            known.append(layer, bases.compact(rows, active), active)
            for known, (rows, active) in zip((same, opposite), additions, strict=True)
        )
        known = (same, opposite) if direction == FORWARD else (opposite, same)
        return fresh, MatchedNoise(self.key, known, self.grid, self.first, self.most)
