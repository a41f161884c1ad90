"""The L hidden matrices of a network, as something to query: revealed only where asked, or dense.

A query block `x (B, n)` returns the images `W_l x / sqrt(n)`, a transposed query those of `W_l^T`. Training moves
`parameters`, a pytree of ordinary arrays that an optax transformation updates; gradients are given in the same
form, in the unit "n times the loss gradient of the matrix", so that the rate is the width-free eta of theory.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from nfd_jax import basis as bases
from nfd_jax._types import Array, Float, Index, PyTree, Vectors
from nfd_jax.noise import BACKWARD, FORWARD, AbstractNoise

Handle = Array  # what a matrix remembers of a query block until the update: (rows, batch)


class AbstractMatrices(eqx.Module):
    """L square Gaussian matrices with independent N(0, 1) entries at initialisation."""

    @abstractmethod
    def query(
        self, direction: int, layer: Index, step: Index, vectors: Vectors, *, keep: bool
    ) -> tuple[Vectors, Handle, AbstractMatrices]:
        """Images of a block of queries.

        `direction`: FORWARD for W_l x / sqrt(n), BACKWARD for W_l^T g / sqrt(n). `step` numbers the training step,
        and every layer is queried at most once a step and direction, forward before backward. `keep=False`: the images
        of this one query, and nothing remembered of it.
        """

    @abstractmethod
    def handles(self, batch: int) -> Handle:
        """Room for one handle a layer, `(depth, rows, batch)`."""

    @abstractmethod
    def effective_images(self, handles: Handle) -> Float[Array, "depth batch width"]:
        """What training has added to the images of the queries with these handles, `(depth, rows, batch)`: those of
        W_l^k - a_k W_l^0, of which weight decay has left a_k."""

    @property
    @abstractmethod
    def parameters(self) -> PyTree:
        """What training moves."""

    @abstractmethod
    def with_parameters(self, parameters: PyTree) -> AbstractMatrices:
        """The same matrices after an update."""

    @abstractmethod
    def add_gradient(self, gradients: PyTree, layer: Index, backward: Handle, forward: Handle) -> PyTree:
        """`gradients` (of the form of `parameters`) with that of one layer set to n sum_a g_a x_a^T / n^(3/2): the
        part of n dloss/dW_l that does not depend on the branch scale."""


class DenseMatrices(AbstractMatrices):
    """Matrices held as arrays, for exact comparisons; `backward` holds the independent copies of an untied network, and
    `initial` what weight decay leaves of the initial ones, where effective images are asked for."""

    forward: Float[Array, "depth width width"]
    backward: Float[Array, "depth width width"] | None = None
    initial: Float[Array, "depth width width"] | None = None

    def query(
        self, direction: int, layer: Index, step: Index, vectors: Vectors, *, keep: bool
    ) -> tuple[Vectors, Handle, DenseMatrices]:
        del step, keep
        weights = self.forward if direction == FORWARD or self.backward is None else self.backward
        matrix = lax.dynamic_index_in_dim(weights, layer, keepdims=False)
        matrix = matrix.T if direction == FORWARD else matrix
        return bases.product(vectors, matrix) / vectors.shape[1] ** 0.5, vectors.T, self

    def handles(self, batch: int) -> Handle:
        depth, width, _ = self.forward.shape
        return jnp.zeros((depth, width, batch), self.forward.dtype)

    def effective_images(self, handles: Handle) -> Float[Array, "depth batch width"]:
        if self.initial is None:
            raise ValueError("effective images need the initial matrices: DenseMatrices(forward, initial=forward)")
        images = bases.product(self.forward - self.initial, handles) / self.forward.shape[-1] ** 0.5
        return images.swapaxes(1, 2)

    @property
    def parameters(self) -> PyTree:
        return (self.forward, self.backward, self.initial)

    def with_parameters(self, parameters: PyTree) -> DenseMatrices:
        return DenseMatrices(*parameters)

    def add_gradient(self, gradients: PyTree, layer: Index, backward: Handle, forward: Handle) -> PyTree:
        gradient = bases.product(backward, forward.T) / backward.shape[0] ** 0.5
        stacked = lax.dynamic_update_index_in_dim(gradients[0], gradient, layer, axis=0)
        return (stacked, None if self.backward is None else stacked, gradients[2])


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
