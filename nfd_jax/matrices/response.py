"""The weight-reuse responses A and B (theory section 3), read off what Gaussian matrices have revealed."""

from __future__ import annotations

from typing import NamedTuple

from nfd_jax._types import Array, Float, Vectors
from nfd_jax.matrices import basis as bases


class Response(NamedTuple):
    """What earlier queries of the opposite direction tell of the images of queries x, of one matrix and step.

    The image of an opposite query has a Gaussian part R: what is left of it without the queries x that came before it.
    The image of x has <R, x> along this opposite query, which is no chance but response. Directions are orthonormal
    rows that keep their places from step to step; rows in which nothing is revealed are zero.
    """

    directions: Float[Array, "capacity width"]  # of the opposite queries
    images: Float[Array, "capacity width"]  # of these
    asked: Float[Array, "capacity width"]  # directions of the queries x themselves
    known: Float[Array, "capacity capacity"]  # <images, asked> where x came first, which is no response
    scale: Float[Array, "capacity 1"]  # what is left of the initial matrix, 0 for opposite queries that came later

    def coordinates(self, vectors: Vectors) -> Float[Array, "capacity batch"]:
        """Of the response to queries `(batch, width)`, along `directions`.

        In the mean over seeds, sqrt(T/L) sum_j A^{ij} <Qs, g_l^j> for forward queries i, and
        sqrt(T/L) sum_j B^{ij} <Qx, phi(h_{l-1}^j)> for backward ones; in one network chance adds to each a variance of
        order 1/n. A and B themselves follow by least squares from what `along` gave of the earlier queries j.
        """
        return self.scale * (
            bases.inner(self.images, vectors) - bases.product(self.known, bases.inner(self.asked, vectors))
        )

    def along(self, vectors: Vectors) -> Float[Array, "capacity batch"]:
        """The coordinates of any vectors `(batch, width)` along `directions`, such as those of opposite queries."""
        return bases.inner(self.directions, vectors)

    def vectors(self, coordinates: Float[Array, "capacity batch"]) -> Vectors:
        """From coordinates along `directions`, the vectors `(batch, width)`."""
        return bases.combination(coordinates, self.directions)

    def gradient(self, along: Float[Array, "capacity batch"]) -> Vectors:
        """The transpose of `coordinates`: of sum_m along_m coordinates_m(x), n times the gradient in x."""
        along = self.scale * along
        past = bases.combination(bases.product(self.known.T, along), self.asked)
        return bases.combination(along, self.images) - past
