"""Matched noise: fresh parts orthogonal to all that every particle already knows (theory section 4)."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Float, Index, Key, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.noise import FINEST, FORWARD, AbstractNoise, Grid, gaussians, over_finer_blocks
from nfd_jax.matrices.sobol import QuasiNormals


def least_width(batch: int, steps: int, outputs: int, evaluated: int = 0) -> int:
    """The particles from which on matched noise may be imposed up to step `steps`: constraints and the block together
    are at most a quarter of them. The last block is a batch, or `evaluated` samples that are queried without being
    kept; one more step that is only observed takes 2 `batch` more, and three eighths in all at most."""
    block = max(batch, evaluated)
    return 4 * (outputs + 2 * batch * steps + 2 * block)


class MatchedNoise(AbstractNoise):
    """Orthonormal fresh parts, orthogonal to their query and to what `known` holds: the readout, the images of earlier
    queries in the same direction, and the queries of the opposite one, which in the coupled closure belong to the law.

    One orthonormal basis a block and direction, extended with each query: known vectors are never factored again.
    Earlier queries in the same direction, images of the opposite one, h_0 and the h of the same block need no
    constraints: imposing them changes no standard deviation of a nonlinear network by more than a few percent.
    """

    key: Key
    known: tuple[bases.Basis, bases.Basis]  # of the forward images, of the backward ones
    offset: int = eqx.field(static=True)  # blocks taken by the readout
    grid: Grid = eqx.field(static=True, default=FINEST)
    first: QuasiNormals | None = None  # of the first step

    @classmethod
    def create(
        cls,
        key: Key,
        readout: Float[Array, "count width"],
        depth: int,
        steps: int,
        batch: int,
        grid: Grid = FINEST,
        first: QuasiNormals | None = None,
    ) -> MatchedNoise:
        """Room for `steps` steps; `readout` are orthonormal rows known to every block from the start, `first` the
        source of the normals of step 0 (by default independent ones, as at later steps)."""
        count, width = readout.shape
        offset = -(-count // batch)
        padded = jnp.zeros((offset * batch, width), readout.dtype).at[:count].set(readout)
        start = jnp.broadcast_to(padded.reshape(1, offset, batch, width), (depth, offset, batch, width))
        room = bases.empty(depth, 2 * steps, batch, width, readout.dtype)
        forward, backward = (jnp.concatenate([start, room], axis=1) for _ in range(2))
        return cls(key, (forward, backward), offset, grid, first)

    def _normals(self, direction: int, layer: Index, step: Index, like: Vectors) -> Vectors:
        spread, room = self.first, len(self.known[0])

        def draw(fine: Index) -> Vectors:
            independent = partial(gaussians, self.key, direction, fine, step, like)
            if spread is None:
                return independent()
            # the first rows take the first dimensions: the more rows there are, the less each adds to those before
            dimensions = (2 * jnp.arange(len(like), dtype=fine.dtype) + direction) * room + fine
            even = partial(spread.replace, dimensions=dimensions)
            return lax.cond(step == 0, lambda: even(independent()), independent)

        return over_finer_blocks(draw, layer, self.grid)

    def draw(
        self, direction: int, layer: Index, step: Index, directions: Vectors, *, keep: bool
    ) -> tuple[Vectors, MatchedNoise]:
        own, opposite = self.known[direction], self.known[1 - direction]
        filled = self.offset + 2 * step + direction

        current = bases.reveal(own, layer, filled, directions).directions  # the query is split with care
        fresh = self._normals(direction, layer, step, directions)
        if keep:  # write, then read: the other order makes the compiler copy whole bases
            own = bases.write(own, layer, filled, current)
            _, fresh = bases.project(own, layer, filled + 1, fresh)
        else:
            _, fresh = bases.project(own, layer, filled, fresh)
            fresh = fresh - bases.product(bases.inner(fresh, current), current)
        fresh, _ = bases.cholesky_qr(fresh, 2)
        if not keep:
            return fresh, self
        own = bases.write(own, layer, filled, fresh)  # in the place of the query, which only the opposite side keeps
        found = bases.reveal(opposite, layer, filled, directions).directions
        opposite = bases.write(opposite, layer, filled, found)
        known = (own, opposite) if direction == FORWARD else (opposite, own)
        return fresh, MatchedNoise(self.key, known, self.offset, self.grid, self.first)
