"""Gaussian matrices revealed only where they are queried (theory section 4)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import indices, put, put_block, put_rows, take
from nfd_jax._types import Array, Float, Index, Int, PyTree, Scalar, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices import resolution as resolutions
from nfd_jax.matrices.base import AbstractMatrices, Coordinates
from nfd_jax.matrices.noise import BACKWARD, FORWARD, AbstractNoise
from nfd_jax.matrices.orthonormal import combination, inner, magnitudes, product
from nfd_jax.matrices.resolution import Resolved
from nfd_jax.matrices.response import Response

NEVER = -1  # the step of a row that holds nothing


class Revealed(eqx.Module):
    """What the queries of one direction have revealed: orthonormal directions and their images under the initial
    matrix, `(depth, capacity, width)` each, of which the first `counts` rows of a layer are in use."""

    queries: bases.Basis
    images: bases.Basis
    steps: Int[Array, "depth capacity"]  # at which a direction was revealed, NEVER for zero rows
    counts: bases.Counts

    @classmethod
    def nothing(cls, depth: int, capacity: int, width: int, dtype: Any, members: str | None) -> Revealed:
        """Before the first query."""
        queries, images = (jnp.zeros((depth, capacity, width), dtype) for _ in range(2))
        steps = jnp.full((depth, capacity), NEVER, jnp.int32)
        return cls(queries, images, steps, bases.Counts(jnp.zeros((depth,), jnp.int32), members))

    def split(self, layer: Index, query: Vectors) -> bases.Split:
        """A query block taken apart into what is known of it and what is new."""
        return bases.split(self.queries, layer, self.counts[layer], query)

    def resolve(self, layer: Index, query: Vectors, resolution: Scalar, *, keep: bool) -> Resolved:
        """The same up to a resolution; by a cheaper rule for queries that are not kept."""
        rule = resolutions.resolve if keep else resolutions.evaluated
        return rule(self.queries, layer, self.counts, query, resolution)

    def combine(self, layer: Index, coordinates: bases.Coordinates) -> Vectors:
        """The images of queries with these coordinates."""
        return bases.combine(self.images, layer, self.counts[layer], coordinates)

    def append(self, layer: Index, step: Index, new: bases.Split | Resolved, images: Vectors) -> tuple[Revealed, Array]:
        """With the active directions of a block and their images, and all coordinates of the block, as columns.

        All rows of the block are written, those without a direction as zero rows past the count. They fit as long as
        the capacity is that of steps x batch: every earlier step has added at most a batch of directions.
        """
        offset, active = self.counts[layer], new.active
        columns = new.coordinates.columns if isinstance(new, bases.Split) else new.coordinates
        along, queries, images = bases.compact(active, new.along_directions, new.directions, images)
        steps = jnp.where(jnp.arange(len(active)) < jnp.sum(active), jnp.asarray(step, jnp.int32), NEVER)
        after = Revealed(
            bases.write(self.queries, layer, offset, queries),
            bases.write(self.images, layer, offset, images),
            put_block(self.steps, steps[None], indices(layer, offset)),
            self.counts.add(layer, active),
        )
        return after, put_rows(columns, along, offset)


class Learned(NamedTuple):
    """The trained matrix, `W_l = initial_l W_l^0 + Qs^T learned_l Qx / sqrt(n)`, in the bases of its queries."""

    initial: Float[Array, " depth"]
    learned: Float[Array, "depth capacity capacity"]


class _Matrix(eqx.Module):
    """One of the matrices, as queries of one direction find it."""

    asked: Revealed  # by queries of this direction, (Qx, Y) of forward ones
    opposite: Revealed  # by those of the other, (Qs, Z)
    initial: Scalar
    learned: Float[Array, "capacity capacity"]  # C, or C^T
    noise: AbstractNoise
    coupled: bool = eqx.field(static=True)

    def images(self, layer: Index, x: bases.Split, fresh: Vectors) -> tuple[Vectors, Vectors]:
        """Images of the rows of a block under the initial matrix, `Qs <Z, q> + (xi - Qs <Qs, xi>)` where coupled and
        `xi` where not (xi is 0 for remainders), and the learned part of the block's, `Qs C c`: one pass over what the
        opposite direction has revealed."""
        opposite, batch = self.opposite, len(fresh)
        moved = product(self.learned, x.coordinates.high)
        tiles = bases.Tiles.of(opposite.queries, opposite.counts[layer], batch)

        def one_tile(index: Index, total: Vectors) -> Vectors:
            queries = tiles.read(opposite.queries, layer, index)
            along = queries.coordinates(moved)
            if self.coupled:
                images = tiles.read(opposite.images, layer, index)
                reuse = inner(images.rows, x.rows) - inner(queries.rows, fresh)
                along = jnp.concatenate([reuse, along], axis=1)
            return total + combination(along, queries.rows)

        start = jnp.concatenate([fresh, jnp.zeros_like(fresh)]) if self.coupled else jnp.zeros_like(fresh)
        total = lax.fori_loop(0, tiles.number, one_tile, start)
        return (total[:batch], total[batch:]) if self.coupled else (fresh, total)


@partial(jax.jit, static_argnames="keep")  # a function of its own, traced once for both directions
def _query(
    matrix: _Matrix, direction: Index, layer: Index, step: Index, vectors: Vectors, *, keep: bool
) -> tuple[Vectors, Coordinates, Revealed, AbstractNoise]:
    """Images and coordinates of a block, and what is revealed and drawn with it."""
    asked, initial = matrix.asked, matrix.initial
    size = magnitudes(vectors)[:, None]
    # x = Qx c + R q, and remainders d
    x = asked.split(layer, jnp.where(jnp.isnan(size), 0, vectors / size))
    # W q / sqrt(n) = Qs <Z, q> + (xi - Qs <Qs, xi>), of a remainder Qs <Z, d> alone; learned part Qs C c
    fresh, noise = matrix.noise.draw(direction, layer, step, x.directions, keep=keep)
    images, drift = matrix.images(layer, x, jnp.where(x.active[:, None], fresh, 0))
    # W x / sqrt(n) = Y c + R (W q / sqrt(n)); append q to Qx and W q / sqrt(n) to Y
    if keep:  # write, then read: the other order makes the compiler copy whole bases
        asked, coordinates = asked.append(layer, step, x, images)
        known = asked.combine(layer, coordinates)
    else:
        coordinates = x.coordinates.columns
        known = asked.combine(layer, coordinates) + product(x.along_directions.T, images)
    known, response = bases.Terms.of(known), product(x.along_remainders.T, images)
    # small terms first: each alone may be less than half a rounding of the large one
    result = size * (initial * known.high + (initial * (known.low + response) + drift))
    return result, size.T * coordinates[:, : len(vectors)], asked, noise


class RevealedMatrices(AbstractMatrices):
    """Gaussian matrices revealed only where they are queried: exact in law at width n with plain noise, without
    one n x n array (theory section 4; Gaussian conditioning as in NFD's and the tensor programs' proofs).

    `coupled`: W_l and W_l^T are the same matrix, as in an ordinary (tied) network. Otherwise backward queries see an
    independent copy of W_l^0 with the same updates: the untied network, and NFD's closure in the limit.
    Memory is four bases, 4 n L M numbers, and what the noise keeps; time is O(n L M) a query block. Queries that depend
    on earlier ones reveal nothing and take no space: `ranks` says how many did.
    """

    revealed: tuple[Revealed, Revealed]  # forward (Qx, Y), backward (Qs, Z)
    trained: Learned
    noise: AbstractNoise
    coupled: bool = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        noise: AbstractNoise,
        *,
        depth: int,
        width: int,
        capacity: int,
        coupled: bool,
        dtype: Any,
        members: str | None = None,
    ) -> RevealedMatrices:
        """Nothing revealed yet. A `capacity` of steps x batch directions always suffices. `members`: the name of the
        axis of several networks under vmap, `basis.MEMBERS`; None for one network alone."""
        forward, backward = (Revealed.nothing(depth, capacity, width, dtype, members) for _ in range(2))
        trained = Learned(jnp.ones((depth,), dtype), jnp.zeros((depth, capacity, capacity), dtype))
        return cls((forward, backward), trained, noise, coupled)

    @property
    def ranks(self) -> Int[Array, "directions depth"]:
        """How many directions are revealed, forward and backward, of every matrix."""
        return jnp.stack([jnp.sum(each.steps != NEVER, axis=-1, dtype=jnp.int32) for each in self.revealed])

    def query(
        self,
        direction: int,
        layer: Index,
        step: Index,
        vectors: Vectors,
        *,
        keep: bool,
        weights: Float[Array, " batch"] | None = None,
    ) -> tuple[Vectors, Coordinates, RevealedMatrices]:
        del weights
        asked, opposite = self.revealed[direction], self.revealed[1 - direction]
        learned = take(self.trained.learned, layer)
        learned = learned if direction == FORWARD else learned.T
        matrix = _Matrix(asked, opposite, take(self.trained.initial, layer), learned, self.noise, self.coupled)
        result, coordinates, asked, noise = _query(matrix, *indices(direction, layer, step), vectors, keep=keep)
        if not keep:
            return result, coordinates, self
        revealed = (asked, opposite) if direction == FORWARD else (opposite, asked)
        return result, coordinates, RevealedMatrices(revealed, self.trained, noise, self.coupled)

    def response(self, direction: int, layer: Index | int, step: Index | int) -> Response:
        """See `Response.of`."""
        return Response.of(self.revealed, self.trained.initial, direction, layer, step)

    def no_coordinates(self, batch: int) -> Coordinates:
        depth, capacity, _ = self.trained.learned.shape
        return jnp.zeros((depth, capacity, batch), self.trained.learned.dtype)

    def effective_images(self, coordinates: Coordinates) -> Float[Array, "depth batch width"]:
        queries = self.revealed[BACKWARD].queries

        def one_matrix(layer: Index) -> Vectors:
            learned, along, directions = (take(array, layer) for array in (self.trained.learned, coordinates, queries))
            return combination(product(learned, along), directions)

        return lax.map(one_matrix, jnp.arange(len(queries), dtype=jnp.int32))

    def needed(self, batch: int) -> tuple[Array, ...]:
        del batch  # the capacity is that of all queries of a run
        return ()

    @property
    def parameters(self) -> PyTree:
        return self.trained

    def with_parameters(self, parameters: PyTree) -> RevealedMatrices:
        return RevealedMatrices(self.revealed, parameters, self.noise, self.coupled)

    def add_gradient(
        self, gradients: PyTree, layer: Index, backward: Coordinates, forward: Coordinates
    ) -> tuple[PyTree, RevealedMatrices]:
        gradient = product(backward, forward.T)
        learned = put(gradients.learned, gradient, layer)
        return Learned(gradients.initial, learned), self
