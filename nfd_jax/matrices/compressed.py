"""Gaussian matrices of long training: revealed, and moved, only in the directions that matter (theory section 4b).

Along training most of a query lies in the span of earlier ones. What is known of an initial matrix W and what training
has added to it are therefore two matrices of low rank, each in bases of its own that grow where they have to:

- W is replaced by its conditional mean given all that has been revealed. A query reveals the singular directions of
  its block that are new by more than `resolution` times its length; of the rest the image is the conditional mean,
  which is the response to earlier queries of the other direction. Between two revelations this is an ordinary network,
  with the matrix Wbar in place of W, so that gradients stay gradients. What is missing, of the order of the resolution
  and independent of all that is known, changes averages over neurons by its square.
- An update U = sum_a w_a g_a x_a^T is kept but for a part of at most `resolution` of its norm: P_s U P_x, for the
  projections on two bases that grow by the leading singular directions of what is left. As the loss falls at a rate of
  |U|^2, it then falls at 1 - resolution^2 of that rate or more, whatever cancels within the sum and however long it
  takes. A threshold on g and x themselves would not do: late in training U is small against its terms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Bool, Float, Index, Int, PyTree, Scalar, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.base import AbstractMatrices, Coordinates
from nfd_jax.matrices.noise import FORWARD, AbstractNoise, PlainNoise
from nfd_jax.matrices.resolution import Capacity, Resolved
from nfd_jax.matrices.response import Response
from nfd_jax.matrices.revealed import Learned, Revealed

LEAST = 30  # roundings of the terms of an update, below which what is left of it is noise
KEPT = 0.5  # of the resolution: what an update that has passed it is brought down to, so that not every step adds to it


class Factor(NamedTuple):
    """Orthonormal rows `(depth, capacity, width)` that span one side of all updates so far, and how many are in use."""

    rows: bases.Basis
    counts: bases.Counts

    @classmethod
    def nothing(cls, depth: int, capacity: int, width: int, dtype: Any, members: str | None) -> Factor:
        """Before the first update."""
        rows = jnp.zeros((depth, capacity, width), dtype)
        return cls(rows, bases.Counts(jnp.zeros((depth,), jnp.int32), members))

    def split(self, layer: Index, vectors: Vectors) -> tuple[bases.Coordinates, Vectors]:
        """Coordinates of vectors, and what is left of them."""
        return bases.project(self.rows, layer, self.counts[layer], vectors)

    def along(self, layer: Index, vectors: Vectors) -> bases.Coordinates:
        """Their coordinates alone."""
        tiles = bases.Tiles.of(self.rows, self.counts[layer], len(vectors))

        def one_tile(index: Index, coordinates: bases.Coordinates) -> bases.Coordinates:
            tile = tiles.read(self.rows, layer, index)
            every = tile.coordinates(coordinates) + bases.inner(tile.rows, vectors)
            return lax.dynamic_update_slice_in_dim(coordinates, every, tile.first, axis=0)

        start = jnp.zeros((self.rows.shape[1], len(vectors)), vectors.dtype)
        return lax.fori_loop(0, tiles.number, one_tile, start)

    def combine(self, layer: Index, coordinates: bases.Coordinates) -> Vectors:
        """The vectors with these coordinates."""
        return bases.combine(self.rows, layer, self.counts[layer], coordinates)


class CompressedMatrices(AbstractMatrices):
    """Gaussian matrices up to a `resolution` between 0 and 1: see the module. `RevealedMatrices` are those of 0.

    `coupled` is as there. Memory is four bases of images and two of updates, whose ranks level off as training goes
    on; time is O(n) for every rank and sample. No image is ever drawn twice: what a query has revealed stays.
    """

    revealed: tuple[Revealed, Revealed]  # forward (Qx, Y), backward (Qs, Z)
    factors: tuple[Factor, Factor]  # of x, of g
    trained: Learned  # W_l = initial_l W_l^0 + Fs^T learned_l Fx / sqrt(n)
    noise: AbstractNoise
    resolution: Scalar
    coupled: bool = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        noise: AbstractNoise,
        resolution: Scalar,
        *,
        depth: int,
        width: int,
        capacity: Capacity,
        coupled: bool,
        dtype: Any,
        members: str | None = None,
    ) -> CompressedMatrices:
        """Nothing revealed yet, nothing learned."""
        forward, backward = (Revealed.nothing(depth, capacity.images, width, dtype, members) for _ in range(2))
        of_x, of_g = (Factor.nothing(depth, capacity.updates, width, dtype, members) for _ in range(2))
        learned = jnp.zeros((depth, capacity.updates, capacity.updates), dtype)
        trained = Learned(jnp.ones((depth,), dtype), learned)
        return cls((forward, backward), (of_x, of_g), trained, noise, jnp.asarray(resolution, dtype), coupled)

    def query(
        self, direction: int, layer: Index, step: Index, vectors: Vectors, *, keep: bool
    ) -> tuple[Vectors, Coordinates, CompressedMatrices]:
        asked, opposite, initial = self.revealed[direction], self.revealed[1 - direction], self.trained.initial[layer]
        size = bases.magnitudes(vectors)[:, None]
        queries = jnp.where(jnp.isnan(size), 0, vectors / size)
        # x = Qx c + R q, and remainders d
        x = asked.resolve(layer, queries, self.resolution if keep else None)
        # Wbar q / sqrt(n) = Qs <Z, q>, of a direction + (xi - Qs <Qs, xi>)
        fresh, noise = self._fresh(direction, layer, step, x, keep=keep)
        images = fresh + _response(opposite, layer, x.rows) if self.coupled else fresh
        if keep:
            asked, coordinates = asked.append(layer, step, x, images)
            known = asked.combine(layer, coordinates) + bases.product(x.along_remainders.T, images)
        else:
            known = asked.combine(layer, x.coordinates) + bases.product(x.triangular.T, images)
        # learned part Fs C <Fx, x>
        learned = lax.dynamic_index_in_dim(self.trained.learned, layer, keepdims=False)
        moved = bases.product(learned if direction == FORWARD else learned.T, self.factors[direction].along(layer, queries))
        result = size * (initial * known + self.factors[1 - direction].combine(layer, moved))
        if not keep:
            return result, vectors.T, self
        revealed = (asked, opposite) if direction == FORWARD else (opposite, asked)
        return result, vectors.T, eqx.tree_at(lambda tree: (tree.revealed, tree.noise), self, (revealed, noise))

    def _fresh(
        self, direction: int, layer: Index, step: Index, x: Resolved, *, keep: bool
    ) -> tuple[Vectors, AbstractNoise]:
        """Fresh parts of the images of new directions, zero rows for the others."""
        opposite, batch = self.revealed[1 - direction], len(x.rows)

        def drawn_from(noise: AbstractNoise) -> tuple[Vectors, AbstractNoise]:
            return noise.draw(direction, layer, step, x.directions, keep=keep, rotation=x.rotation)

        def plain(noise: AbstractNoise) -> tuple[Vectors, AbstractNoise]:
            return drawn_from(noise.plain)[0], noise

        def draw(noise: AbstractNoise) -> tuple[Vectors, AbstractNoise]:
            if isinstance(noise, PlainNoise):
                fresh, noise = drawn_from(noise)
            else:
                fresh, noise = lax.cond(noise.lasts(layer, batch), drawn_from, plain, noise)
            fresh = jnp.where(x.active[:, None], fresh, 0)
            if self.coupled:
                fresh = bases.project(opposite.queries, layer, opposite.counts[layer], fresh)[1]
            return fresh, noise

        def nothing(noise: AbstractNoise) -> tuple[Vectors, AbstractNoise]:
            return jnp.zeros_like(x.rows), noise

        return lax.cond(opposite.counts.any(x.active), draw, nothing, self.noise)

    def add_gradient(
        self, gradients: PyTree, layer: Index, backward: Coordinates, forward: Coordinates
    ) -> tuple[PyTree, CompressedMatrices]:
        """The gradient in the bases of the updates, which take up what they lack of it first."""
        of_x, of_g = self.factors
        sizes = [jnp.max(bases.magnitudes(vectors)) for vectors in (forward.T, backward.T)]
        x, g = forward.T / sizes[0], backward.T / sizes[1]
        # what a basis lacks of U = g^T x, |U (1 - P_x)|^2 and |(1 - P_s) U|^2
        gram_x, gram_g = bases.inner(x, x), bases.inner(g, g)
        (along_x, rest_x), (along_g, rest_g) = of_x.split(layer, x), of_g.split(layer, g)
        whole = jnp.sum(gram_x * gram_g)
        least = LEAST * float(jnp.finfo(x.dtype).eps) * jnp.trace(gram_x) * jnp.trace(gram_g)
        most = jnp.maximum(self.resolution**2 * whole, least)
        lacking = jnp.sum(bases.inner(rest_x, rest_x) * gram_g) + jnp.sum(bases.inner(rest_g, rest_g) * gram_x)
        most = jnp.where(lacking > most, KEPT**2 * most / 2, jnp.inf)
        of_x, along_x = _extended(of_x, layer, x, along_x, gram_g, most)
        of_g, along_g = _extended(of_g, layer, g, along_g, gram_x, most)
        gradient = (sizes[0] * sizes[1]) * bases.product(along_g, along_x.T)
        learned = lax.dynamic_update_index_in_dim(gradients.learned, gradient, layer, axis=0)
        return Learned(gradients.initial, learned), eqx.tree_at(lambda tree: tree.factors, self, (of_x, of_g))

    def response(self, direction: int, layer: Index | int, step: Index | int) -> Response:
        """See `Response.of`."""
        return Response.of(self.revealed, self.trained.initial, direction, layer, step)

    @property
    def ranks(self) -> Int[Array, "kinds depth"]:
        """Directions of every matrix: revealed forward and backward, and of updates, of x and of g."""
        return jnp.stack([each.counts.values for each in (*self.revealed, *self.factors)])

    def no_coordinates(self, batch: int) -> Coordinates:
        depth, _, width = self.revealed[0].queries.shape
        return jnp.zeros((depth, width, batch), self.trained.learned.dtype)

    def effective_images(self, coordinates: Coordinates) -> Float[Array, "depth batch width"]:
        def one_matrix(layer: Index) -> Vectors:
            of_x, of_g = (lax.dynamic_index_in_dim(factor.rows, layer, keepdims=False) for factor in self.factors)
            learned, vectors = (
                lax.dynamic_index_in_dim(array, layer, keepdims=False) for array in (self.trained.learned, coordinates)
            )
            return bases.combination(bases.product(learned, bases.inner(of_x, vectors.T)), of_g)

        return lax.map(one_matrix, jnp.arange(len(coordinates), dtype=jnp.int32))

    @property
    def capacity(self) -> Capacity:
        """Of the bases as they are."""
        return Capacity(self.revealed[0].queries.shape[-2], self.factors[0].rows.shape[-2])

    def needed(self, batch: int) -> tuple[Array, Array]:
        """Rows of the two kinds of bases that one more step may need, of so many samples."""
        images, updates = (
            jnp.max(jnp.stack([each.counts.values for each in pair])) for pair in (self.revealed, self.factors)
        )
        return images + batch, updates + batch

    def fits(self, batch: int) -> Bool[Array, ""]:
        images, updates = self.needed(batch)
        return (images <= self.capacity.images) & (updates <= self.capacity.updates)

    @property
    def parameters(self) -> PyTree:
        return self.trained

    def with_parameters(self, parameters: PyTree) -> CompressedMatrices:
        return eqx.tree_at(lambda tree: tree.trained, self, parameters)


def _response(opposite: Revealed, layer: Index, rows: Vectors) -> Vectors:
    """The conditional mean of the images of rows that are new, Qs <Z, x>."""
    tiles = bases.Tiles.of(opposite.queries, opposite.counts[layer], len(rows))

    def one_tile(index: Index, total: Vectors) -> Vectors:
        queries, images = (tiles.read(basis, layer, index).rows for basis in (opposite.queries, opposite.images))
        return total + bases.combination(bases.inner(images, rows), queries)

    return lax.fori_loop(0, tiles.number, one_tile, jnp.zeros_like(rows))


def _extended(
    factor: Factor, layer: Index, vectors: Vectors, along: bases.Coordinates, weights: Array, most: Scalar
) -> tuple[Factor, bases.Coordinates]:
    """A basis of updates w^T x with the leading singular directions of what it lacks of one, until the rest is below
    `most`, |w^T x (1 - P_x)|^2 with the Gram matrix `weights` of w; and the coordinates of x in it."""
    count, none = factor.counts[layer], jnp.zeros_like(vectors)

    def some() -> tuple[Array, Array, Array]:
        x = bases.split(factor.rows, layer, count, vectors)
        triangular = jnp.where(x.active[:, None], x.triangular.high, 0)
        squares, rotation = jnp.linalg.eigh(bases.product(bases.product(triangular, weights), triangular.T))
        active = jnp.cumsum(jnp.maximum(squares, 0)) > most
        turned = bases.product(rotation.T, x.directions), bases.product(rotation.T, triangular)
        return *(bases.compact(each, active) for each in turned), active

    def nothing() -> tuple[Array, Array, Array]:
        return none, jnp.zeros_like(weights), jnp.zeros(len(vectors), bool)

    rows, coordinates, active = lax.cond(factor.counts.any(jnp.isfinite(most)), some, nothing)
    along = lax.dynamic_update_slice_in_dim(along, coordinates, count, axis=0)
    return Factor(bases.write(factor.rows, layer, count, rows), factor.counts.add(layer, active)), along
