"""Gaussian matrices revealed only where they are queried (theory section 4)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import indices, put_block, put_rows, take
from nfd_jax._types import Array, Flag, Float, Index, Int, PyTree, Scalar, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices import resolution as resolutions
from nfd_jax.matrices.base import AbstractMatrices, Coordinates, with_layer
from nfd_jax.matrices.noise import FORWARD, AbstractNoise, sides
from nfd_jax.matrices.orthonormal import combination, inner, magnitudes, product
from nfd_jax.matrices.resolution import Resolved
from nfd_jax.matrices.response import Response

NEVER = -1  # the step of a row that holds nothing


class Revealed(eqx.Module):
    """What queries have revealed: orthonormal directions and their images under the initial matrix,
    `(depth, capacity, width)` each, of which the first `counts` rows of a layer are in use."""

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

    def halves(self) -> tuple[Revealed, Revealed]:
        """Of the first and the second half of the layers; of members side by side too."""

        def arrays(tree: Revealed) -> tuple[Any, ...]:
            return tree.queries, tree.images, tree.steps, tree.counts.values

        split = (jnp.split(each, 2, axis) for each, axis in zip(arrays(self), (-3, -3, -2, -1), strict=True))
        first, second = (eqx.tree_at(arrays, self, half) for half in zip(*split, strict=True))
        return first, second

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

    def conditioned(
        self, opposite: Index, rows: Vectors, fresh: Vectors, moved: bases.Coordinates, *, coupled: bool
    ) -> tuple[Vectors, Vectors]:
        """Images of rows q under the initial matrix, `Qs <Z, q> + (xi - Qs <Qs, xi>)` where coupled and `xi` where not
        (xi is 0 for remainders), and the learned part `Qs C c` of coordinates `moved` C c: one pass over what the
        opposite direction has revealed, where it stands."""
        batch = len(fresh)
        tiles = bases.Tiles.of(self.queries, self.counts[opposite], batch)

        def one_tile(index: Index, total: Vectors) -> Vectors:
            queries = tiles.read(self.queries, opposite, index)
            along = queries.coordinates(moved)
            if coupled:
                images = tiles.read(self.images, opposite, index)
                reuse = inner(images.rows, rows) - inner(queries.rows, fresh)
                along = jnp.concatenate([reuse, along], axis=1)
            return total + combination(along, queries.rows)

        start = jnp.concatenate([fresh, jnp.zeros_like(fresh)]) if coupled else jnp.zeros_like(fresh)
        total = lax.fori_loop(0, tiles.number, one_tile, start)
        return (total[:batch], total[batch:]) if coupled else (fresh, total)

    def add(self, layer: Index, step: Index, new: bases.Split | Resolved) -> tuple[Revealed, Array]:
        """With the active directions of a block, to which their images have to be added (`add_images`), and all
        coordinates of the block, as columns.

        All rows of the block are written, those without a direction as zero rows past the count. They fit as long as
        the capacity is that of steps x batch: every earlier step has added at most a batch of directions.
        """
        offset, active = self.counts[layer], new.active
        columns = new.coordinates.columns if isinstance(new, bases.Split) else new.coordinates
        along, queries = bases.compact(active, new.along_directions, new.directions)
        steps = jnp.where(jnp.arange(len(active)) < jnp.sum(active), jnp.asarray(step, jnp.int32), NEVER)
        after = Revealed(
            bases.write(self.queries, layer, offset, queries),
            self.images,
            put_block(self.steps, steps[None], indices(layer, offset)),
            self.counts.add(layer, active),
        )
        return after, put_rows(columns, along, offset)

    def add_images(self, layer: Index, offset: Index, active: Array, images: Vectors) -> Revealed:
        """With the images of the active directions of a block that was added where `offset` rows were in use."""
        (images,) = bases.compact(active, images)
        return eqx.tree_at(lambda tree: tree.images, self, bases.write(self.images, layer, offset, images))


class Learned(NamedTuple):
    """The trained matrix, `W_l = initial_l W_l^0 + Qs^T learned_l Qx / sqrt(n)`, in the bases of its queries."""

    initial: Float[Array, " depth"]
    learned: Float[Array, "depth capacity capacity"]


@partial(jax.jit, static_argnames="keep")  # a function of its own, traced once a program
def _query(
    matrices: RevealedMatrices, direction: Index, layer: Index, step: Index, vectors: Vectors, *, keep: bool
) -> tuple[Vectors, Coordinates, RevealedMatrices]:
    """Images and coordinates of a block, and the matrices with what is revealed and drawn with it."""
    revealed, initial = matrices.both, take(matrices.trained.initial, layer)
    own, opposite = sides(direction, layer, len(matrices.trained.initial))
    size = magnitudes(vectors)[:, None]
    # x = Qx c + R q, and remainders d; append q to Qx: written before anything else of it is read, as is Y below, for
    # in the other order the compiler copies whole bases
    before = revealed.counts[own]
    x = revealed.split(own, jnp.where(jnp.isnan(size), 0, vectors / size))
    revealed, coordinates = revealed.add(own, step, x) if keep else (revealed, x.coordinates.columns)
    # W q / sqrt(n) = Qs <Z, q> + (xi - Qs <Qs, xi>), of a remainder Qs <Z, d> alone; learned part Qs C c
    fresh, noise = matrices.noise.draw(direction, layer, step, x.directions, keep=keep)
    learned = take(matrices.trained.learned, layer)
    moved = product(jnp.where(direction == FORWARD, learned, learned.T), x.coordinates.high)
    fresh = jnp.where(x.active[:, None], fresh, 0)
    images, drift = revealed.conditioned(opposite, x.rows, fresh, moved, coupled=matrices.coupled)
    # W x / sqrt(n) = Y c + R (W q / sqrt(n)); append W q / sqrt(n) to Y
    if keep:
        revealed = revealed.add_images(own, before, x.active, images)
        known = revealed.combine(own, coordinates)
    else:
        known = revealed.combine(own, coordinates) + product(x.along_directions.T, images)
    known, response = bases.Terms.of(known), product(x.along_remainders.T, images)
    # small terms first: each alone may be less than half a rounding of the large one
    result = size * (initial * known.high + (initial * (known.low + response) + drift))
    after = RevealedMatrices(revealed, matrices.trained, noise, matrices.coupled)
    return result, size.T * coordinates[:, : len(vectors)], after


class RevealedMatrices(AbstractMatrices):
    """Gaussian matrices revealed only where they are queried: exact in law at width n with plain noise, without
    one n x n array (theory section 4; Gaussian conditioning as in NFD's and the tensor programs' proofs).

    `coupled`: W_l and W_l^T are the same matrix, as in an ordinary (tied) network. Otherwise backward queries see an
    independent copy of W_l^0 with the same updates: the untied network, and NFD's closure in the limit.
    Memory is four bases, 4 n L M numbers, and what the noise keeps; time is O(n L M) a query block. Queries that depend
    on earlier ones reveal nothing and take no space: `ranks` says how many did.
    """

    both: Revealed  # by forward queries of all matrices, (Qx, Y), then by backward ones, (Qs, Z)
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
        trained = Learned(jnp.ones((depth,), dtype), jnp.zeros((depth, capacity, capacity), dtype))
        return cls(Revealed.nothing(2 * depth, capacity, width, dtype, members), trained, noise, coupled)

    @property
    def revealed(self) -> tuple[Revealed, Revealed]:
        """What forward queries have revealed, and what backward ones."""
        return self.both.halves()

    @property
    def ranks(self) -> Int[Array, "directions *members depth"]:
        """How many directions are revealed, forward and backward, of every matrix."""
        counts = jnp.sum(self.both.steps != NEVER, axis=-1, dtype=jnp.int32)
        return jnp.stack(jnp.split(counts, 2, axis=-1))

    def query(
        self,
        direction: Index | int,
        layer: Index,
        step: Index,
        vectors: Vectors,
        *,
        keep: bool,
        weights: Float[Array, " batch"] | None = None,
    ) -> tuple[Vectors, Coordinates, RevealedMatrices]:
        del weights
        result, coordinates, after = _query(self, *indices(direction, layer, step), vectors, keep=keep)
        return result, coordinates, after if keep else self

    def response(self, direction: int, layer: Index | int, step: Index | int) -> Response:
        """See `Response.of`."""
        return Response.of(self.both, self.trained.initial, direction, layer, step)

    def no_coordinates(self, batch: int) -> Coordinates:
        depth, capacity, _ = self.trained.learned.shape
        return jnp.zeros((depth, capacity, batch), self.trained.learned.dtype)

    def effective_images(self, coordinates: Coordinates) -> Float[Array, "depth batch width"]:
        depth = len(coordinates)

        def one_matrix(layer: Index) -> Vectors:
            learned, along = take(self.trained.learned, layer), take(coordinates, layer)
            return combination(product(learned, along), take(self.both.queries, depth + layer))

        return lax.map(one_matrix, jnp.arange(depth, dtype=jnp.int32))

    def needed(self, batch: int) -> tuple[Array, ...]:
        del batch  # the capacity is that of all queries of a run
        return ()

    @property
    def parameters(self) -> PyTree:
        return self.trained

    def with_parameters(self, parameters: PyTree) -> RevealedMatrices:
        return RevealedMatrices(self.both, parameters, self.noise, self.coupled)

    def add_gradient(
        self, gradients: PyTree, layer: Index, backward: Coordinates, forward: Coordinates, *, wanted: Flag = True
    ) -> tuple[PyTree, RevealedMatrices]:
        learned = with_layer(gradients.learned, layer, lambda: product(backward, forward.T), wanted)
        return Learned(gradients.initial, learned), self
