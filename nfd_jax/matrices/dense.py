"""Dense matrices, held as arrays: for exact comparisons."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp

from nfd_jax._slices import take
from nfd_jax._types import Array, Flag, Float, Index, PyTree, Vectors
from nfd_jax.matrices.base import AbstractMatrices, Coordinates, with_layer
from nfd_jax.matrices.noise import chosen
from nfd_jax.matrices.orthonormal import product


class DenseMatrices(AbstractMatrices):
    """Matrices held as arrays, for exact comparisons; `backward` holds the independent copies of an untied network, and
    `initial` what weight decay leaves of the initial ones, where effective images are asked for."""

    forward: Float[Array, "depth width width"]
    backward: Float[Array, "depth width width"] | None = None
    initial: Float[Array, "depth width width"] | None = None

    def query(
        self,
        direction: Index | int,
        layer: Index,
        step: Index,
        vectors: Vectors,
        *,
        keep: bool,
        weights: Float[Array, " batch"] | None = None,
    ) -> tuple[Vectors, Coordinates, DenseMatrices]:
        del step, keep, weights
        back = self.forward if self.backward is None else self.backward

        def image(weights: Array, *, transposed: bool) -> Vectors:
            matrix = take(weights, layer)
            return product(vectors, matrix.T if transposed else matrix)

        ahead, behind = partial(image, self.forward, transposed=True), partial(image, back, transposed=False)
        images = chosen(direction, ahead, behind)
        return images / vectors.shape[1] ** 0.5, vectors.T, self

    def no_coordinates(self, batch: int) -> Coordinates:
        depth, width, _ = self.forward.shape
        return jnp.zeros((depth, width, batch), self.forward.dtype)

    def effective_images(self, coordinates: Coordinates) -> Float[Array, "depth batch width"]:
        if self.initial is None:
            raise ValueError("effective images need the initial matrices: DenseMatrices(forward, initial=forward)")
        images = product(self.forward - self.initial, coordinates) / self.forward.shape[-1] ** 0.5
        return images.swapaxes(1, 2)

    def needed(self, batch: int) -> tuple[Array, ...]:
        del batch
        return ()

    @property
    def parameters(self) -> PyTree:
        return (self.forward, self.backward, self.initial)

    def with_parameters(self, parameters: PyTree) -> DenseMatrices:
        return DenseMatrices(*parameters)

    def add_gradient(
        self, gradients: PyTree, layer: Index, backward: Coordinates, forward: Coordinates, *, wanted: Flag = True
    ) -> tuple[PyTree, DenseMatrices]:
        def gradient() -> Array:
            return product(backward, forward.T) / backward.shape[0] ** 0.5

        stacked = with_layer(gradients[0], layer, gradient, wanted)
        return (stacked, None if self.backward is None else stacked, gradients[2]), self
