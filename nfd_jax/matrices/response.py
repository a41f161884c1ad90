"""The weight-reuse responses A and B (theory section 3), read off what Gaussian matrices have revealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from nfd_jax._slices import take
from nfd_jax._types import Array, Float, Index, Vectors
from nfd_jax.matrices.noise import FORWARD, sides
from nfd_jax.matrices.orthonormal import combination, inner, product

if TYPE_CHECKING:
    from nfd_jax.matrices.revealed import Revealed


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

    @classmethod
    def of(
        cls,
        revealed: Revealed,
        initial: Float[Array, " depth"],
        direction: int,
        layer: Index | int,
        step: Index | int,
    ) -> Response:
        """What weight reuse adds to the images of the queries of a step under one initial matrix (theory section 3):
        `FORWARD` (0), to W_l^0 phi(h_{l-1}^i) / sqrt(n), sqrt(T/L) sum_j A^{ij} g_l^j over the backward queries j of
        earlier steps, and `BACKWARD` (1), to W_l^0T g_l^i / sqrt(n), sqrt(T/L) sum_j B^{ij} phi(h_{l-1}^j) over the
        forward queries j up to this step. A and B have the units of theory, free of width and depth as both grow.

        `layer` counts hidden matrices from 0, and `step` the updates so far: in an observe function that of the
        snapshot, as the queries of this step have been asked then. Of an untied network, whose backward pass has a
        matrix of its own, what `FORWARD` gives is what tying would add. The A and B of theory are those of
        `ResNet(block="pre")`; other blocks have such responses for each of their matrices.
        """
        own, opposite = sides(direction, jnp.asarray(layer, jnp.int32), len(initial))
        queries, asked_at = take(revealed.queries, own), take(revealed.steps, own)
        directions, images = take(revealed.queries, opposite), take(revealed.images, opposite)
        steps = take(revealed.steps, opposite)
        # a step's forward queries come before its backward ones
        steps, asked_at = steps[:, None], asked_at[None, :]
        asked_first = steps >= asked_at if direction == FORWARD else steps > asked_at
        known = jnp.where(asked_first, inner(images, queries), 0)
        scale = jnp.where(steps < step + direction, initial[layer], 0)
        return cls(directions, images, queries, known, scale)

    def coordinates(self, vectors: Vectors) -> Float[Array, "capacity batch"]:
        """Of the response to queries `(batch, width)`, along `directions`.

        In the mean over seeds, sqrt(T/L) sum_j A^{ij} <Qs, g_l^j> for forward queries i, and
        sqrt(T/L) sum_j B^{ij} <Qx, phi(h_{l-1}^j)> for backward ones; in one network chance adds to each a variance of
        order 1/n. A and B themselves follow by least squares from what `along` gave of the earlier queries j.
        """
        return self.scale * (inner(self.images, vectors) - product(self.known, inner(self.asked, vectors)))

    def along(self, vectors: Vectors) -> Float[Array, "capacity batch"]:
        """The coordinates of any vectors `(batch, width)` along `directions`, such as those of opposite queries."""
        return inner(self.directions, vectors)

    def vectors(self, coordinates: Float[Array, "capacity batch"]) -> Vectors:
        """From coordinates along `directions`, the vectors `(batch, width)`."""
        return combination(coordinates, self.directions)

    def gradient(self, along: Float[Array, "capacity batch"]) -> Vectors:
        """The transpose of `coordinates`: of sum_m along_m coordinates_m(x), n times the gradient in x."""
        along = self.scale * along
        past = combination(product(self.known.T, along), self.asked)
        return combination(along, self.images) - past
