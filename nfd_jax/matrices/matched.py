"""Matched noise: fresh parts orthogonal to all that every particle already knows (theory section 4)."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Flag, Float, Index, Key, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.noise import (
    AbstractNoise,
    Grid,
    Rotation,
    gaussians,
    on_grid,
    rotated,
    sides,
    where,
)
from nfd_jax.matrices.orthonormal import cholesky_qr, inner, norms, product
from nfd_jax.matrices.rows import Rows
from nfd_jax.matrices.sobol import SobolPoints

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

    One orthonormal basis a matrix and direction, extended with each query: known vectors are never factored again. They
    are one array, rows `direction x depth + layer`, so that one loop takes a query apart in those of both directions.
    Earlier queries in the same direction, images of the opposite one, h_0 and the h of the same block need no
    constraints: imposing them changes no standard deviation of a nonlinear network by more than a few percent.
    """

    key: Key
    known: Rows  # of the forward images of all matrices, then of the backward ones
    grid: Grid | None = None  # as of `PlainNoise`
    first: SobolPoints | None = None  # of the first step
    most: int | None = eqx.field(static=True, default=None)  # constraints; a quarter of the particles unless given

    @classmethod
    def create(
        cls,
        key: Key,
        readout: Float[Array, "count width"],
        depth: int,
        capacity: int,
        grid: Grid | None = None,
        first: SobolPoints | None = None,
        members: str | None = None,
        most: int | None = None,
    ) -> MatchedNoise:
        """For matrices of this capacity; `readout` are orthonormal rows known to every matrix from the start, `first`
        the source of the normals of step 0 (by default independent ones, as at later steps), `members` as in
        `RevealedMatrices.create`."""
        count, width = readout.shape

        rows = jnp.zeros((2 * depth, count + 2 * capacity, width), readout.dtype).at[:, :count].set(readout)
        known = Rows(rows, bases.Counts(jnp.full((2 * depth,), count, jnp.int32), members))
        return cls(key, known, grid, first, most)

    def _normals(self, direction: Index | int, layer: Index, step: Index, like: Vectors) -> Vectors:
        spread, depth = self.first, len(self.known.rows) // 2

        def draw(fine: Index) -> Vectors:
            address = self.key, direction, fine, step, like
            if spread is None:
                return gaussians(*address)
            # the first rows take the first dimensions: the more rows there are, the less each adds to those before
            dimensions = (2 * jnp.arange(len(like), dtype=fine.dtype) + direction) * depth + fine
            first = partial(spread.replace, dimensions=dimensions)
            return gaussians(*address, even=lambda later: lax.cond(step == 0, first, lambda same: same, later))

        return on_grid(draw, layer, self.grid)

    def draw(
        self,
        direction: Index | int,
        layer: Index,
        step: Index,
        directions: Vectors,
        *,
        keep: bool,
        rotation: Rotation = None,
        needed: Flag = True,
    ) -> tuple[Vectors, MatchedNoise]:
        known = self.known
        same, opposite = sides(direction, layer, len(known.rows) // 2)
        asked = norms(directions) > 0  # the other rows add nothing, and their normals constrain nothing
        nothing = jnp.zeros_like(directions), jnp.zeros_like(asked)

        def new_in(layer: Index) -> tuple[Vectors, Array]:
            query = known.split(layer, directions)
            return query.directions, query.active

        def matched(normals: Vectors) -> tuple[Vectors, Array, tuple[Vectors, Array]]:
            # what the block adds to the two, where it is kept
            rows, active = lax.map(new_in, jnp.stack([same, opposite] if keep else [same]))
            _, fresh = known.project(same, normals)
            fresh = fresh - product(inner(fresh, rows[0]), rows[0])
            fresh, _ = cholesky_qr(fresh, 2)
            return fresh, asked, (rows[1], active[1]) if keep else nothing

        def plain(normals: Vectors) -> tuple[Vectors, Array, tuple[Vectors, Array]]:
            return normals, nothing[1], nothing

        def draw() -> tuple[Vectors, Array, tuple[Vectors, Array]]:
            normals = rotated(self._normals(direction, layer, step, directions), rotation)
            normals = jnp.where(asked[:, None], normals, 0)
            if needed is True:  # of the exact law, where there is room for all queries
                return matched(normals)
            used = jnp.maximum(known.counts[same], known.counts[opposite]) + 2 * len(directions)
            most = int(MOST * directions.shape[1]) if self.most is None else self.most
            return lax.cond(used <= most, matched, plain, normals)

        fresh, remembered, query = where(needed, draw)
        if not keep:
            return fresh, self
        # they fit wherever the queries of both directions do: a query adds at most the fresh parts of its directions to
        # one of them, and its directions to the other
        for row, rows, active in ((same, fresh, remembered), (opposite, *query)):
            known = known.append(row, bases.compact(active, rows)[0], active)
        return fresh, MatchedNoise(self.key, known, self.grid, self.first, self.most)
