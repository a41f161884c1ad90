"""Gaussian matrices revealed only where they are queried (theory section 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Float, Index, PyTree, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.base import AbstractMatrices, Handle
from nfd_jax.matrices.noise import BACKWARD, FORWARD, AbstractNoise


class Side(NamedTuple):
    """What one direction of queries has revealed: orthonormal queries and their images under the initial matrix."""

    queries: bases.Basis
    images: bases.Basis


class Learned(NamedTuple):
    """The trained matrix, `W_l = initial_l W_l^0 + Qs^T learned_l Qx / sqrt(n)`, in the bases of its queries."""

    initial: Float[Array, " depth"]
    learned: Float[Array, "depth M M"]


class RevealedMatrices(AbstractMatrices):
    """Gaussian matrices revealed only where they are queried: exact in law at width n with plain noise, without
    one n x n array (theory section 4; Gaussian conditioning as in NFD's and the tensor programs' proofs).

    `coupled`: W_l and W_l^T are the same matrix, as in an ordinary (tied) network. Otherwise backward queries see an
    independent copy of W_l^0 with the same updates: the untied network, and NFD's closure in the limit.
    Memory is four bases, 4 n L M numbers, and what the noise keeps; time is O(n L M) a query block.
    """

    sides: tuple[Side, Side]  # forward (Qx, Y), backward (Qs, Z)
    trained: Learned
    noise: AbstractNoise
    coupled: bool = eqx.field(static=True)

    @classmethod
    def create(
        cls, noise: AbstractNoise, *, depth: int, width: int, steps: int, batch: int, coupled: bool, dtype: Any
    ) -> RevealedMatrices:
        """Nothing revealed yet, with room for `steps` steps of query blocks of size `batch`."""
        sides = tuple(Side(*(bases.empty(depth, steps, batch, width, dtype) for _ in range(2))) for _ in range(2))
        rank = steps * batch
        trained = Learned(jnp.ones((depth,), dtype), jnp.zeros((depth, rank, rank), dtype))
        return cls((sides[0], sides[1]), trained, noise, coupled)

    def query(
        self, direction: int, layer: Index, step: Index, vectors: Vectors, *, keep: bool
    ) -> tuple[Vectors, Handle, RevealedMatrices]:
        own, opposite = self.sides[direction], self.sides[1 - direction]
        size = bases.magnitudes(vectors)
        found = bases.reveal(own.queries, layer, step, jnp.where(jnp.isnan(size)[:, None], 0, vectors / size[:, None]))
        active = found.active[:, None]
        fresh, noise = self.noise.draw(direction, layer, step, found.directions, keep=keep)
        fresh = jnp.where(active, fresh, 0)

        # the learned part lies in the span of the opposite queries, whose number is known: this step's forward
        # queries come before its backward ones
        learned = lax.dynamic_index_in_dim(self.trained.learned, layer, keepdims=False)
        learned = learned if direction == FORWARD else learned.T
        coordinates, triangular = found.coordinates, found.triangular
        _, batch, queries = coordinates.high.shape
        moved = bases.product(learned, coordinates.high.reshape(-1, queries)).reshape(-1, batch, queries)
        images, drift = self._images(opposite, layer, step + direction, found.rows, fresh, moved)

        scale, size = self.trained.initial[layer], size[:, None]
        # of a remainder the mean given all queries, which is the response to them, and no direction of its own
        response = bases.product(jnp.where(active, 0, triangular.high).T, images)
        images, new = (jnp.where(active, part, 0) for part in (images, triangular.columns))
        if keep:  # write, then read: the other order makes the compiler copy whole bases
            parts = zip(coordinates, jnp.split(new, 2, axis=1), strict=True)
            coordinates = bases.Terms(*(known.at[step].set(part) for known, part in parts))
            own = Side(
                bases.write(own.queries, layer, step, found.directions), bases.write(own.images, layer, step, images)
            )
            known = bases.combine(own.images, layer, step + 1, coordinates.columns)
        else:
            known = bases.combine(own.images, layer, step, coordinates.columns) + bases.product(new.T, images)
        known = bases.Terms.of(known)
        # small terms first: each alone may be less than half a rounding of the large one
        result = size * (scale * known.high + (scale * (known.low + response) + drift))
        if not keep:
            return result, size * triangular.high, self
        sides = (own, opposite) if direction == FORWARD else (opposite, own)
        handle = size.T * coordinates.high.reshape(-1, queries)
        return result, handle, RevealedMatrices(sides, self.trained, noise, self.coupled)

    def _images(
        self,
        opposite: Side,
        layer: Index,
        filled: Index,
        rows: bases.Queries,
        fresh: bases.Queries,
        moved: bases.Coordinates,
    ) -> tuple[bases.Queries, bases.Queries]:
        """Images of new rows under the initial matrix, `Qs <Z, q> + (xi - Qs <Qs, xi>)` where coupled and `xi` where
        not (xi is 0 for remainders), and the learned drift `Qs moved`: one pass over the opposite side."""

        count = len(fresh)

        def one_tile(index: Index, total: bases.Queries) -> bases.Queries:
            queries = bases.read_tile(opposite.queries, layer, index, filled)
            along = queries.coordinates(moved)
            if self.coupled:
                known = bases.read_tile(opposite.images, layer, index, filled)
                reuse = bases.inner(known.rows, rows) - bases.inner(queries.rows, fresh)
                along = jnp.concatenate([reuse, along], axis=1)
            return total + bases.combination(along, queries.rows)

        start = jnp.concatenate([fresh, jnp.zeros_like(fresh)]) if self.coupled else jnp.zeros_like(fresh)
        total = lax.fori_loop(0, bases.tiles(opposite.queries, filled), one_tile, start)
        return (total[:count], total[count:]) if self.coupled else (fresh, total)

    def handles(self, batch: int) -> Handle:
        depth, rank, _ = self.trained.learned.shape
        return jnp.zeros((depth, rank, batch), self.trained.learned.dtype)

    def effective_images(self, handles: Handle) -> Float[Array, "depth batch width"]:
        queries = self.sides[BACKWARD].queries

        def one_matrix(layer: Index) -> Vectors:
            learned, handle, opposite = (
                lax.dynamic_index_in_dim(array, layer, keepdims=False)
                for array in (self.trained.learned, handles, queries)
            )
            return bases.combination(bases.product(learned, handle), opposite.reshape(-1, opposite.shape[-1]))

        return lax.map(one_matrix, jnp.arange(len(queries), dtype=jnp.int32))

    @property
    def parameters(self) -> PyTree:
        return self.trained

    def with_parameters(self, parameters: PyTree) -> RevealedMatrices:
        return RevealedMatrices(self.sides, parameters, self.noise, self.coupled)

    def add_gradient(self, gradients: PyTree, layer: Index, backward: Handle, forward: Handle) -> PyTree:
        gradient = bases.product(backward, forward.T)
        return Learned(gradients.initial, lax.dynamic_update_index_in_dim(gradients.learned, gradient, layer, axis=0))
