"""Gaussian matrices of long training: revealed, and moved, only in the directions that matter (theory section 4b).

Along training most of a query lies in the span of earlier ones. What is known of an initial matrix W and what training
has added to it are therefore two matrices of low rank, each in bases of its own that grow where they have to:

- W is replaced by its conditional mean given all that has been revealed. A query reveals the singular directions of
  its block that are new by more than `resolution` times its length; of the rest the image is the conditional mean,
  which is the response to earlier queries of the other direction. Between two revelations this is an ordinary network,
  with the matrix Wbar in place of W, so that gradients stay gradients. What is missing, of the order of the resolution
  and independent of all that is known, changes averages over neurons by its square.
- The learned part is M^T Fx, of directions Fx of x and their images M: an update U = sum_a w_a g_a x_a^T adds U Fx^T to
  M, without a basis of g, whose directions are far more. It is kept but for a part U (1 - P_x) of at most `resolution`
  of its norm, for which Fx takes up leading singular directions of that part. As the loss falls at a rate of |U|^2, it
  then falls at 1 - resolution^2 of that rate or more, whatever cancels within the sum and however long it takes. A
  threshold on x itself would not do: late in training U is small against its terms.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import indices, put, put_rows, take
from nfd_jax._types import Array, Flag, Float, Index, Int, PyTree, Scalar, Vectors
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.base import AbstractMatrices, Coordinates, with_layer
from nfd_jax.matrices.noise import FORWARD, AbstractNoise, chosen, sides, where
from nfd_jax.matrices.orthonormal import combination, inner, magnitudes, norms, product
from nfd_jax.matrices.resolution import Capacity, Resolved
from nfd_jax.matrices.response import Response
from nfd_jax.matrices.revealed import Learned, Revealed
from nfd_jax.matrices.rows import Rows

LEAST = 30  # roundings of the terms of an update, below which what is left of it is noise
COARSEST = 0.3  # resolution of backward queries that count for little
KEPT = 0.5  # of the resolution: what an update that has passed it is brought down to, so that not every step adds to it


@partial(jax.jit, static_argnames="keep")  # a function of its own, traced once a program
def _query(
    matrices: CompressedMatrices,
    resolution: Scalar,
    direction: Index,
    layer: Index,
    step: Index,
    vectors: Vectors,
    *,
    keep: bool,
) -> tuple[Vectors, Revealed, AbstractNoise]:
    """Images of a block, and what is revealed and drawn with it."""
    revealed, initial = matrices.both, take(matrices.trained.initial, layer)
    own, opposite = sides(direction, layer, len(matrices.trained.initial))
    size = magnitudes(vectors)[:, None]
    queries = jnp.where(jnp.isnan(size), 0, vectors / size)
    # x = Qx c + R q, and remainders d; what is appended is written before the rest is read, as in `RevealedMatrices`
    before = revealed.counts[own]
    x = revealed.resolve(own, queries, resolution, keep=keep)
    revealed, coordinates = revealed.add(own, step, x) if keep else (revealed, x.coordinates)
    # Wbar q / sqrt(n) = Qs <Z, q>, of a direction + (xi - Qs <Qs, xi>)
    images, noise = _fresh(matrices, revealed, direction, layer, step, x, keep=keep)
    images = images + _response(revealed, opposite, x.rows) if matrices.coupled else images
    if keep:
        revealed = revealed.add_images(own, before, x.active, images)
        known = revealed.combine(own, coordinates) + product(x.along_remainders.T, images)
    else:
        known = revealed.combine(own, coordinates) + product(x.triangular.T, images)
    return size * (initial * known + _learned(matrices, direction, layer, queries)), revealed, noise


def _fresh(
    matrices: CompressedMatrices,
    revealed: Revealed,
    direction: Index,
    layer: Index,
    step: Index,
    x: Resolved,
    *,
    keep: bool,
) -> tuple[Vectors, AbstractNoise]:
    """Fresh parts of the images of new directions, zero rows for the others: xi - Qs <Qs, xi> where coupled."""
    _, opposite = sides(direction, layer, len(matrices.trained.initial))
    needed = revealed.counts.any(x.active)
    options = {"keep": keep, "rotation": x.rotation, "needed": needed}
    fresh, noise = matrices.noise.draw(direction, layer, step, x.directions, **options)
    fresh = jnp.where(x.active[:, None], fresh, 0)
    if matrices.coupled:

        def independent() -> Vectors:
            return bases.project(revealed.queries, opposite, revealed.counts[opposite], fresh)[1]

        fresh = where(needed, independent)
    return fresh, noise


def _response(revealed: Revealed, opposite: Index, rows: Vectors) -> Vectors:
    """The conditional mean of the images of rows that are new, Qs <Z, x>."""
    tiles = bases.Tiles.of(revealed.queries, revealed.counts[opposite], len(rows))

    def one_tile(index: Index, total: Vectors) -> Vectors:
        queries, images = (tiles.read(basis, opposite, index).rows for basis in (revealed.queries, revealed.images))
        return total + combination(inner(images, rows), queries)

    return lax.fori_loop(0, tiles.number, one_tile, jnp.zeros_like(rows))


def _learned(matrices: CompressedMatrices, direction: Index, layer: Index, queries: Vectors) -> Vectors:
    """The images under the learned part, M^T <Fx, x> or Fx^T <M, g>."""
    of_x = matrices.updates
    learned = of_x._replace(rows=matrices.trained.learned)

    def image(into: Rows, out: Rows) -> Vectors:
        return out.combine(layer, into.along(layer, queries))

    return chosen(direction, lambda: image(of_x, learned), lambda: image(learned, of_x))


class CompressedMatrices(AbstractMatrices):
    """Gaussian matrices up to a `resolution` between 0 and 1: see the module. `RevealedMatrices` are those of 0.

    `coupled` is as there. Memory is four bases of images and two of updates, whose ranks level off as training goes
    on; time is O(n) for every rank and sample. No image is ever drawn twice: what a query has revealed stays.
    """

    both: Revealed  # by forward queries of all matrices, (Qx, Y), then by backward ones, (Qs, Z)
    updates: Rows  # Fx
    trained: Learned  # W_l = initial_l W_l^0 + learned_l^T Fx / sqrt(n), learned `(depth, capacity, width)`
    noise: AbstractNoise
    resolution: Scalar
    largest: Float[Array, " depth"]  # size of what weights and backward queries have been together
    coupled: bool = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        noise: AbstractNoise,
        resolution: Scalar | float,
        *,
        depth: int,
        width: int,
        capacity: Capacity,
        coupled: bool,
        dtype: Any,
        members: str | None = None,
    ) -> CompressedMatrices:
        """Nothing revealed yet, nothing learned."""
        updates = Rows.nothing(depth, capacity.updates, width, dtype, members)
        trained = Learned(jnp.ones((depth,), dtype), jnp.zeros_like(updates.rows))
        return cls(
            Revealed.nothing(2 * depth, capacity.images, width, dtype, members),
            updates,
            trained,
            noise,
            jnp.asarray(resolution, dtype),
            jnp.zeros(depth, dtype),
            coupled,
        )

    @property
    def revealed(self) -> tuple[Revealed, Revealed]:
        """What forward queries have revealed, and what backward ones."""
        return self.both.halves()

    def query(
        self,
        direction: Index | int,
        layer: Index,
        step: Index,
        vectors: Vectors,
        *,
        keep: bool,
        weights: Float[Array, " batch"] | None = None,
    ) -> tuple[Vectors, Coordinates, CompressedMatrices]:
        resolution, largest = self._resolution(direction, layer, vectors, weights)
        result, both, noise = _query(self, resolution, *indices(direction, layer, step), vectors, keep=keep)
        # an update is written after its directions were read here, or the compiler would copy all of them: it waits for
        # the images, of which it takes nothing as long as they are finite
        vectors = vectors + 0 * result
        if not keep:
            return result, vectors.T, self
        after = both, noise, largest
        return result, vectors.T, eqx.tree_at(lambda tree: (tree.both, tree.noise, tree.largest), self, after)

    def _resolution(
        self, direction: Index | int, layer: Index, vectors: Vectors, weights: Float[Array, " batch"] | None
    ) -> tuple[Scalar, Float[Array, " depth"]]:
        """The resolution of a query block, and the largest size of w_a g_a so far.

        Backward queries count by w_a g_a, which vanish as the loss does, while g_a goes on to change: of ReLU networks
        at every unit that flips. Their resolution grows with the square root of what they count for less.
        """
        if weights is None:
            return self.resolution, self.largest
        unit = jnp.max(jnp.abs(weights)) * jnp.max(magnitudes(vectors))
        unit = jnp.where(unit > 0, unit, 1)  # what they are squared in
        size = unit * norms((vectors * (weights / unit)[:, None]).reshape(1, -1))[0]
        largest = jnp.maximum(take(self.largest, layer), size)
        less = jnp.where(size > 0, largest / size, 1)
        coarser = jnp.maximum(self.resolution, jnp.minimum(COARSEST, self.resolution * jnp.sqrt(less)))
        after = put(self.largest, largest, layer)
        ahead = jnp.asarray(direction) == FORWARD
        return jnp.where(ahead, self.resolution, coarser), jnp.where(ahead, self.largest, after)

    def add_gradient(
        self, gradients: PyTree, layer: Index, backward: Coordinates, forward: Coordinates, *, wanted: Flag = True
    ) -> tuple[PyTree, CompressedMatrices]:
        """The gradient along the directions of updates, which take up what they lack of it first."""
        of_x, sizes = self.updates, [jnp.max(magnitudes(vectors)) for vectors in (forward.T, backward.T)]
        x, g = forward.T / sizes[0], backward.T / sizes[1]
        # U = g^T x lacks |U (1 - P_x)|^2
        gram, weights = inner(x, x), inner(g, g)
        along, rest = where(wanted, lambda: of_x.project(layer, x))
        whole, lacking = (jnp.sum(weights * each) for each in (gram, inner(rest, rest)))
        least = LEAST * float(jnp.finfo(x.dtype).eps) * jnp.trace(gram) * jnp.trace(weights)
        most = jnp.maximum(self.resolution**2 * whole, least)
        most = jnp.where(wanted & (lacking > most), KEPT**2 * most, jnp.inf)
        of_x, along = _extended(of_x, layer, x, along, weights, most)
        size = sizes[0] * sizes[1]
        learned = with_layer(gradients.learned, layer, lambda: product(size * along, g), wanted)
        return Learned(gradients.initial, learned), eqx.tree_at(lambda tree: tree.updates, self, of_x)

    def response(self, direction: int, layer: Index | int, step: Index | int) -> Response:
        """See `Response.of`."""
        return Response.of(self.both, self.trained.initial, direction, layer, step)

    @property
    def ranks(self) -> Int[Array, "kinds *members depth"]:
        """Directions of every matrix: revealed forward and backward, and of updates."""
        return jnp.stack([*jnp.split(self.both.counts.values, 2, axis=-1), self.updates.counts.values])

    def no_coordinates(self, batch: int) -> Coordinates:
        depth, _, width = self.trained.learned.shape
        return jnp.zeros((depth, width, batch), self.trained.learned.dtype)

    def effective_images(self, coordinates: Coordinates) -> Float[Array, "depth batch width"]:
        def one_matrix(layer: Index) -> Vectors:
            of_x, learned, vectors = (
                take(array, layer) for array in (self.updates.rows, self.trained.learned, coordinates)
            )
            return combination(inner(of_x, vectors.T), learned)

        return lax.map(one_matrix, jnp.arange(len(coordinates), dtype=jnp.int32))

    def needed(self, batch: int) -> tuple[Array, ...]:
        kinds = self.both, self.updates  # in the order of Capacity
        return tuple(jnp.max(each.counts.values) + batch for each in kinds)

    @property
    def parameters(self) -> PyTree:
        return self.trained

    def with_parameters(self, parameters: PyTree) -> CompressedMatrices:
        return eqx.tree_at(lambda tree: tree.trained, self, parameters)


def _extended(
    known: Rows, layer: Index, vectors: Vectors, along: bases.Coordinates, weights: Array, most: Scalar
) -> tuple[Rows, bases.Coordinates]:
    """A basis of updates w^T x with the leading singular directions of what it lacks of one, until the rest is below
    `most`, |w^T x (1 - P_x)|^2 with the Gram matrix `weights` of w; and the coordinates of x in it."""
    count, none = known.counts[layer], jnp.zeros_like(vectors)

    def some() -> tuple[Array, Array, Array]:
        x = known.split(layer, vectors)
        triangular = jnp.where(x.active[:, None], x.triangular.high, 0)
        squares, rotation = jnp.linalg.eigh(product(product(triangular, weights), triangular.T))
        active = jnp.cumsum(jnp.maximum(squares, 0)) > most
        rows, coordinates = product(rotation.T, x.directions), product(rotation.T, triangular)
        return *bases.compact(active, rows, coordinates), active

    def nothing() -> tuple[Array, Array, Array]:
        return none, jnp.zeros_like(weights), jnp.zeros(len(vectors), bool)

    rows, coordinates, active = lax.cond(known.counts.any(jnp.isfinite(most)), some, nothing)
    along = put_rows(along, coordinates, count)
    return known.append(layer, rows, active), along
