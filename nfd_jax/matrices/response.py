"""The weight-reuse responses A and B (theory section 3), read off what Gaussian matrices have revealed."""

from __future__ import annotations

from typing import NamedTuple

from nfd_jax._types import Array, Float, Vectors
from nfd_jax.matrices import basis as bases


class Response(NamedTuple):
    """What earlier queries of the opposite direction tell of the images of queries, their own past taken off.

    W_l^0 s / sqrt(n) has, for an opposite query s, a Gaussian part R: what is left of its image without the queries
    that came before it. An image W_l^0T x / sqrt(n) has <R, x> along s, which is no chance but response. Rows are
    orthonormal, and zero where nothing is revealed; rows keep their places from step to step.
    """

    queries: Float[Array, "capacity width"]  # the directions of the opposite queries
    images: Float[Array, "capacity width"]  # of these
    before: Float[Array, "capacity width"]  # the directions of the queries themselves
    known: Float[Array, "capacity capacity"]  # <images, before> where `before` came first, which is no response
    scale: Float[Array, "capacity 1"]  # what is left of the initial matrix, 0 for opposite queries that came later

    def coordinates(self, vectors: Vectors) -> Float[Array, "capacity batch"]:
        """Of the response to queries `(batch, width)`, along `queries`.

        Those of forward queries are sqrt(T/L) sum_j A^{ij} <Qs, g_l^j>, those of backward ones
        sqrt(T/L) sum_j B^{ji} <Qx, phi(h_{l-1}^j)>, in the mean over seeds; in one network chance adds to each a
        variance of order 1/n. A and B themselves come from the coordinates of the earlier queries, `along(g_l^j)`, by
        least squares.
        """
        return self.scale * (bases.inner(self.images, vectors) - bases.product(self.known, self._before(vectors)))

    def along(self, vectors: Vectors) -> Float[Array, "capacity batch"]:
        """The coordinates <q, v> of any vectors `(batch, width)` along `queries`, such as those of opposite queries."""
        return bases.inner(self.queries, vectors)

    def vectors(self, coordinates: Float[Array, "capacity batch"]) -> Vectors:
        """From coordinates along `queries`, the vectors `(batch, width)`."""
        return bases.combination(coordinates, self.queries)

    def gradient(self, along: Float[Array, "capacity batch"]) -> Vectors:
        """The transpose of `coordinates`: of sum_m along_m coordinates_m(x), n times the gradient in x."""
        along = self.scale * along
        return bases.combination(along, self.images) - bases.combination(
            bases.product(self.known.T, along), self.before
        )

    def _before(self, vectors: Vectors) -> Array:
        return bases.inner(self.before, vectors)
