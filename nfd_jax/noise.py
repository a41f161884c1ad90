"""The fresh Gaussian part of a revealed image: plain, or matched to what every particle already knows.

Every draw is addressed by (seed, direction, layer, step), never by call order. Layers are counted on a grid that may
be finer than the network's: the noise of a block is then the scaled sum over the finer blocks that it stands for, so
that networks of different depths follow one Brownian path.

Matched noise (theory section 4) is a property of the limit solver. In the limit the fresh part of an image has no
empirical correlation with anything revealed before; imposing that exactly, for linear functions, keeps the limit
and removes most Monte-Carlo error. What is left is nonlinear in U, V and the images of the first step, whose normals
are therefore spread evenly over the particles. Neither must ever be used for a network of finite width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax import basis as bases
from nfd_jax._types import Array, Float, Index, Key, Vectors
from nfd_jax.quasi import QuasiNormals

FORWARD, BACKWARD = 0, 1


class AbstractNoise(eqx.Module):
    """Where the fresh part of an image comes from."""

    key: eqx.AbstractVar[Key]

    @abstractmethod
    def draw(
        self, direction: int, layer: Index, step: Index, directions: Vectors, features: Vectors, *, keep: bool
    ) -> tuple[Vectors, AbstractNoise]:
        """The fresh part for new query `directions` of a block whose input `features` are known, and the noise
        source that remembers it (`keep=False`: the same source)."""


class PlainNoise(AbstractNoise):
    """Independent standard Gaussians: the exact law of a Gaussian matrix."""

    key: Key
    refinement: int = eqx.field(static=True, default=1)

    def draw(
        self, direction: int, layer: Index, step: Index, directions: Vectors, features: Vectors, *, keep: bool
    ) -> tuple[Vectors, PlainNoise]:
        del features, keep

        def draw(fine: Index) -> Vectors:
            return gaussians(self.key, direction, fine, step, directions)

        return over_finer_blocks(draw, layer, self.refinement), self


def gaussians(key: Key, direction: int, layer: Index, step: Index, like: Vectors) -> Vectors:
    """Standard normals of the shape of `like`, addressed by direction, layer and step."""
    for address in (direction, layer, step):
        key = jax.random.fold_in(key, address)
    return jax.random.normal(key, like.shape, like.dtype)


def over_finer_blocks(draw: Callable[[Index], Vectors], layer: Index, refinement: int) -> Vectors:
    """The noise of a block from that of the `refinement` blocks of a finer grid that it stands for: their sum, scaled
    to variance one. Increments of one Brownian path on two grids."""
    if refinement == 1:
        return draw(layer)
    first = layer * refinement
    total = lax.fori_loop(1, refinement, lambda j, total: total + draw(first + j), draw(first))
    return total / refinement**0.5


class Family(NamedTuple):
    """One kind of vector that a block of the network reveals: queries or their fresh images, of either direction."""

    direction: int
    image: bool


X, Y = Family(FORWARD, image=False), Family(FORWARD, image=True)
S, Z = Family(BACKWARD, image=False), Family(BACKWARD, image=True)


class Level(NamedTuple):
    """Which constraints matched noise imposes, for the forward and the backward images of a block."""

    name: str
    data: bool  # orthogonal to h_0 of the data
    families: tuple[tuple[Family, ...], ...]  # one entry: shared by both directions; else (forward, backward)


# What is dropped, in order, as constraints come to outnumber a quarter of the particles (theory section 4). The
# opposite queries stay at every level: in the coupled closure they belong to the law. h_0 of the data stands for
# the input matrix too, which enters only through it.
LEVELS = (
    Level("queries, images, data", True, ((X, Y, S, Z),)),
    Level("queries, images", False, ((X, Y, S, Z),)),
    Level("queries, own images", False, ((X, Y, S), (X, S, Z))),
    Level("own images, opposite queries", False, ((Y, S), (X, Z))),
)


def matched_level(
    width: int, batch: int, steps: int, initial: int, data: int, evaluated: int | None = None
) -> int | None:
    """The first level whose constraints up to step `steps` number at most width / 4 - block, or None (plain).

    `initial` counts the readout columns, `data` the rank of h_0; the last and largest block is a batch, or the
    `evaluated` samples that are queried together without being kept.
    """
    block = max(batch, evaluated or 0)
    for index, level in enumerate(LEVELS):
        count = initial + data * level.data + batch * steps * len(level.families[0]) + 2 * block
        if count + block <= width / 4:
            return index
    return None


class MatchedNoise(AbstractNoise):
    """Orthonormal fresh parts, orthogonal to the queries and images of their block, to its input, and to the data.

    Holds for every block one orthonormal basis of what is known there (one a direction where the directions know
    different things) and extends it with each query: known columns are never factored again.
    """

    key: Key
    known: tuple[bases.Basis, ...]
    offset: int = eqx.field(static=True)  # blocks taken by the initial vectors
    level: int = eqx.field(static=True)
    refinement: int = eqx.field(static=True, default=1)
    first: QuasiNormals | None = None  # of the first step

    @classmethod
    def create(
        cls,
        key: Key,
        level: int,
        initial: Float[Array, "count width"],
        depth: int,
        steps: int,
        batch: int,
        refinement: int = 1,
        first: QuasiNormals | None = None,
    ) -> MatchedNoise:
        """Room for `steps` steps; `initial` are orthonormal rows known to every block from the start, `first` the
        source of the normals of step 0 (by default independent ones, as at later steps)."""
        count, width = initial.shape
        offset = -(-count // batch)
        padded = jnp.zeros((offset * batch, width), initial.dtype).at[:count].set(initial)
        start = jnp.broadcast_to(padded.reshape(1, offset, batch, width), (depth, offset, batch, width))
        known = tuple(
            jnp.concatenate([start, bases.empty(depth, steps * len(own), batch, width, initial.dtype)], axis=1)
            for own in LEVELS[level].families
        )
        return cls(key, known, offset, level, refinement, first)

    def _slot(self, which: int, family: Family, step: Index) -> Index:
        families = LEVELS[self.level].families[which]
        return self.offset + len(families) * step + families.index(family)

    def _has(self, which: int, family: Family) -> bool:
        return family in LEVELS[self.level].families[which]

    def _normals(self, direction: int, layer: Index, step: Index, like: Vectors) -> Vectors:
        spread, room = self.first, len(self.known[0])

        def draw(fine: Index) -> Vectors:
            independent = partial(gaussians, self.key, direction, fine, step, like)
            if spread is None:
                return independent()
            # the first rows take the first dimensions: the more rows there are, the less each adds to those before
            dimensions = (2 * jnp.arange(len(like)) + direction) * room + fine
            even = partial(spread.replace, dimensions=dimensions)
            return lax.cond(step == 0, lambda: even(independent()), independent)

        return over_finer_blocks(draw, layer, self.refinement)

    def draw(
        self, direction: int, layer: Index, step: Index, directions: Vectors, features: Vectors, *, keep: bool
    ) -> tuple[Vectors, MatchedNoise]:
        query, image = Family(direction, image=False), Family(direction, image=True)
        own = direction % len(self.known)
        known = list(self.known)
        filled = self._slot(own, query if self._has(own, query) else image, step)

        # The query is kept, so its new part is split with care. One projection does for the fresh part, far from what
        # is known, and for the input, which counts only where it is.
        current = bases.reveal(known[own], layer, filled, directions).directions
        rest = jnp.concatenate([features, self._normals(direction, layer, step, directions)])
        if keep:  # write, then read: the other order makes the compiler copy whole bases
            known[own] = bases.write(known[own], layer, filled, current)
            _, rest = bases.project(known[own], layer, filled + 1, rest)
        else:
            _, rest = bases.project(known[own], layer, filled, rest)
            rest = rest - bases.product(bases.inner(rest, current), current)
        beyond, fresh = rest[: len(features)], rest[len(features) :]
        far = bases.norms(beyond) > 1e-2 * bases.norms(features)
        features, _ = bases.cholesky_qr(jnp.where(far[:, None], beyond, 0), 1)
        fresh = fresh - bases.product(bases.inner(fresh, features), features)
        fresh, _ = bases.cholesky_qr(fresh, 2)
        if not keep:
            return fresh, self
        # where the query is not to be kept, its image takes its place
        known[own] = bases.write(known[own], layer, self._slot(own, image, step), fresh)

        if len(known) > 1:  # the query is an opposite query of the other direction
            other = 1 - own
            slot = self._slot(other, query, step)
            found = bases.reveal(known[other], layer, slot, directions).directions
            known[other] = bases.write(known[other], layer, slot, found)
        return fresh, MatchedNoise(self.key, tuple(known), self.offset, self.level, self.refinement, self.first)
