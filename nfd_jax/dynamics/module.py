"""Finite networks as Equinox modules, in the convention of their parametrization; autodiff does the rest.

Written apart from the explicit passes on purpose: what the two share is the description of the network, so that their
agreement tests everything else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import put, take
from nfd_jax._types import Array, Float, Index, Key
from nfd_jax.dynamics.snapshot import ImageChanges
from nfd_jax.matrices.noise import normals, uniforms
from nfd_jax.models import AbstractModel
from nfd_jax.parametrization import Parametrization, Role


def _times_transposed(vectors: Array, matrix: Array) -> Array:
    """`vectors matrix^T` by matrix times vectors, in which order a CPU reads a large matrix up to 15 times faster; the
    barrier keeps the compiler from exchanging the factors."""
    return lax.optimization_barrier(lax.dot_general(matrix, vectors, (((1,), (1,)), ((), ())))).T


@jax.custom_vjp
def tied_product(
    vectors: Float[Array, "batch inputs"], matrix: Float[Array, "width inputs"]
) -> Float[Array, "batch width"]:
    """`vectors matrix^T`. Autodiff's own rule would multiply in the slow order, or keep every layer's transpose."""
    return _times_transposed(vectors, matrix)


def _tied_forward(vectors: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    return _times_transposed(vectors, matrix), (vectors, matrix)


def _tied_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    vectors, matrix = residuals
    return cotangent @ matrix, cotangent.T @ vectors


tied_product.defvjp(_tied_forward, _tied_backward)


@jax.custom_vjp
def untied_product(
    vectors: Float[Array, "batch inputs"], forward: Float[Array, "width inputs"], backward: Float[Array, "width inputs"]
) -> Float[Array, "batch width"]:
    """`vectors forward^T`, whose input gradient uses `backward` instead; both matrices get the same gradient."""
    del backward
    return _times_transposed(vectors, forward)


def _untied_forward(vectors: Array, forward: Array, backward: Array) -> tuple[Array, tuple[Array, Array]]:
    return _times_transposed(vectors, forward), (vectors, backward)


def _untied_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array, Array]:
    vectors, backward = residuals
    gradient = cotangent.T @ vectors
    return cotangent @ backward, gradient, gradient


untied_product.defvjp(_untied_forward, _untied_backward)


Weights = tuple[Float[Array, "*blocks width width"], Float[Array, "*blocks width width"] | None]  # forward, backward
Matrices = list[tuple[Array, ...]]  # of every role, by group
APART = 32  # blocks that have arrays of their own, at most; each adds about 0.05 s to the first call


def groups(blocks: int) -> list[tuple[int, int]]:
    """The first block and the one after the last of every array of matrices: one a block, or one of them all.

    A loop over a stack copies every matrix out of it before it multiplies, and every gradient into another stack: 13
    n^2 numbers moved a layer and step instead of 6.
    """
    return [(index, index + 1) for index in range(blocks)] if 0 < blocks <= APART else [(0, blocks)]


class Network(eqx.Module):
    """A ResNet or MLP of finite width, in the convention of its parametrization: `(out, in)` weights of the table's
    standard deviations, multiplied by its multipliers.

    `hidden` are the last matrices of the blocks, an array each of `groups`, and, untied, independent copies for the
    backward pass, or None; `inner` are those before the last, likewise, one after the other.
    """

    input: Float[Array, "width inputs"]
    inner: tuple[tuple[Weights, ...], ...]
    hidden: tuple[Weights, ...]
    readout: Float[Array, "width outputs"]
    model: AbstractModel = eqx.field(static=True)
    row: Parametrization = eqx.field(static=True)
    richness: float = eqx.field(static=True, default=1.0)

    def multiplier(self, role: Role) -> float:
        """What weights of this role are multiplied by."""
        width, dimension = self.input.shape
        return self.row[role].multiplier(width=width, depth=int(self.model.depth), dimension=dimension)

    def __call__(self, inputs: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """Outputs of a batch of raw inputs."""
        return self.features(inputs)[0]

    def features(
        self, inputs: Float[Array, "batch inputs"], shifts: Float[Array, "layers batch width"] | None = None
    ) -> tuple[Float[Array, "batch outputs"], Float[Array, "layers batch width"]]:
        """Outputs and features h_0 to h_L. `shifts` are added to the features: zeros, to be differentiated by."""
        structure, branch = self.model.structure, self.model.branch(self.row)

        def block(h: Array, step: tuple[list[Weights], Array | None]) -> tuple[Array, Array]:
            weights, shift = step

            def image(place: int, x: Array) -> Array:
                matrix, copy = weights[place]
                product = tied_product(x, matrix) if copy is None else untied_product(x, matrix, copy)
                return self.multiplier(self._role(place)) * product

            x = branch * structure.branch(h, image)
            h = h + x if structure.skip else x
            h = h if shift is None else h + shift
            return h, h

        first = self.multiplier(Role.INPUT) * (inputs @ self.input.T)
        first = first if shifts is None else first + shifts[0]
        h, features = first, [first[None]]
        for index, (start, end) in enumerate(groups(self.model.blocks)):
            weights = [matrices[index] for matrices in self.matrices]
            above = None if shifts is None else shifts[start + 1 : end + 1]
            h, layers = lax.scan(block, h, (weights, above), unroll=end == start + 1)
            features.append(layers)
        last = structure.apply(structure.readout, h)
        outputs = (self.multiplier(Role.READOUT) / self.richness) * (last @ self.readout)
        return outputs, jnp.concatenate(features)

    @property
    def matrices(self) -> tuple[tuple[Weights, ...], ...]:
        """Those of the blocks, by place and group."""
        return (*self.inner, self.hidden)

    @property
    def forward_matrices(self) -> Matrices:
        """Those of the forward pass."""
        return [tuple(matrix for matrix, _ in weights) for weights in self.matrices]

    def _role(self, place: int) -> Role:
        return Role.HIDDEN if place == len(self.inner) else Role.INNER

    def forward_only(self) -> Network:
        """A copy, without the matrices of the backward pass alone."""
        *inner, hidden = (tuple((matrix, None) for matrix, _ in weights) for weights in self.matrices)
        network = Network(self.input, tuple(inner), hidden, self.readout, self.model, self.row, self.richness)
        return jax.tree.map(jnp.copy, network)

    def images(
        self, features: Float[Array, "layers batch width"], others: Matrices
    ) -> Float[Array, "matrices batch width"]:
        """Images under `others`, shaped as `forward_matrices`, of what its own matrices act on where features are h_0
        to h_L, times their multipliers; of several a block the first is first."""

        def block(parts: tuple[Array, list[Array], list[Array]]) -> Array:
            h, own, other = parts
            found = []

            def image(place: int, x: Array) -> Array:
                scale = self.multiplier(self._role(place))
                found.append(scale * _times_transposed(x, other[place]))
                return scale * _times_transposed(x, own[place])

            self.model.structure.branch(h, image)
            return jnp.stack(found)

        every = []
        for index, (start, end) in enumerate(groups(self.model.blocks)):
            pair = ([weights[index] for weights in matrices] for matrices in (self.forward_matrices, others))
            images = lax.map(block, (features[start:end], *pair))
            every.append(images.reshape(-1, *images.shape[2:]))
        return jnp.concatenate(every)

    def image_changes(self, inputs: Float[Array, "batch inputs"], initial: Network, decayed: Network) -> ImageChanges:
        """What has changed in the images of a batch since the `initial` network, of which weight decay has left the
        `decayed` one."""
        (_, h), (_, start) = self.features(inputs), initial.features(inputs)
        gained = jax.tree.map(jnp.subtract, self.forward_matrices, decayed.forward_matrices)
        first, last = self.multiplier(Role.INPUT), self.multiplier(Role.READOUT) / self.richness
        structure = self.model.structure
        x, before = (structure.apply(structure.readout, each[-1]) for each in (h, start))
        effective = {
            "input": first * (inputs @ (self.input - decayed.input).T),
            "hidden": self.images(h, gained),
            "readout": last * (x @ (self.readout - decayed.readout)),
        }
        through = self.images(h, decayed.forward_matrices) - initial.images(start, initial.forward_matrices)
        propagating = {
            "input": first * (inputs @ (decayed.input - initial.input).T),
            "hidden": through,
            "readout": last * (x @ decayed.readout - before @ initial.readout),
        }
        return ImageChanges(effective, propagating)


class Shape(NamedTuple):
    """Everything that decides the shapes of a network but its model."""

    width: int
    dimension: int
    outputs: int
    untied: bool = False

    def numbers(self, model: AbstractModel) -> int:
        """Of all its weights."""
        copies = 2 if self.untied else 1
        return copies * model.matrices * self.width**2 + self.width * (self.dimension + self.outputs)


def create_network(
    key: Key, model: AbstractModel, row: Parametrization, shape: Shape, richness: float = 1.0
) -> Network:
    """A network at initialisation. Rows of one convention differ from those of another by rounding only."""
    dtype, (ends, inner) = jnp.zeros(()).dtype, jax.random.split(key)
    sizes = {"width": shape.width, "depth": int(model.depth), "dimension": shape.dimension}
    std = {role: row[role].std(**sizes) for role in Role}
    rows = jax.random.normal(ends, (shape.width, shape.dimension + shape.outputs), dtype)
    copies, count = 2 if shape.untied else 1, model.structure.matrices
    matrices = _normal(inner, (copies * count * model.blocks, shape.width, shape.width), dtype)
    matrices = matrices.reshape(copies, count, model.blocks, shape.width, shape.width)

    def weights(place: int) -> tuple[Weights, ...]:
        role = Role.HIDDEN if place == count - 1 else Role.INNER

        def group(copy: int, start: int, end: int) -> Array:
            return std[role] * matrices[copy, place, start:end]

        cuts = groups(model.blocks)
        return tuple((group(0, *cut), group(1, *cut) if shape.untied else None) for cut in cuts)

    return Network(
        std[Role.INPUT] * rows[:, : shape.dimension],
        tuple(weights(place) for place in range(count - 1)),
        weights(count - 1),
        std[Role.READOUT] * rows[:, shape.dimension :],
        model,
        row,
        richness,
    )


def _normal(key: Key, shape: tuple[int, int, int], dtype: Any) -> Float[Array, "matrices rows columns"]:
    """The numbers of `jax.random.normal`, made in place and in a loop: otherwise each of the arrays that they are cut
    into has the code of all of it, a third of what the first call of a network compiles."""
    drawn = uniforms(key, shape, dtype)

    def one(index: Index, rows: Array) -> Array:
        return put(rows, normals(take(rows, index)), index)

    return lax.fori_loop(0, len(drawn), one, drawn) if len(drawn) else drawn
