"""The L hidden matrices of a network, as something to query: revealed only where asked, or dense.

A query block `x (B, n)` returns the images `W_l x / sqrt(n)`, a transposed query those of `W_l^T`. Training moves
`parameters`, a pytree of ordinary arrays that an optax transformation updates; gradients are given in the same
form, in the unit "n times the loss gradient of the matrix", so that the rate is the width-free eta of theory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
from jax import lax

from nfd_jax._slices import put
from nfd_jax._types import Array, Flag, Float, Index, PyTree, Vectors

Coordinates = Array  # of a query block in what a matrix stores of it, (rows, batch): all that an update needs


class AbstractMatrices(eqx.Module):
    """L square Gaussian matrices with independent N(0, 1) entries at initialisation."""

    @abstractmethod
    def query(
        self,
        direction: Index | int,
        layer: Index,
        step: Index,
        vectors: Vectors,
        *,
        keep: bool,
        weights: Float[Array, " batch"] | None = None,
    ) -> tuple[Vectors, Coordinates, AbstractMatrices]:
        """Images of a block of queries, its coordinates, and the matrices that remember it.

        `direction`: FORWARD for W_l x / sqrt(n), BACKWARD for W_l^T g / sqrt(n). `step` numbers the training step,
        and every layer is queried at most once a step and direction, forward before backward. `keep=False`: the images
        of this one query, and nothing remembered of it. `weights`: those of backward queries in the gradients, where it
        matters how much each of them counts.
        """

    @abstractmethod
    def no_coordinates(self, batch: int) -> Coordinates:
        """Zeros for the coordinates of one query block a layer, `(depth, rows, batch)`."""

    @abstractmethod
    def effective_images(self, coordinates: Coordinates) -> Float[Array, "depth batch width"]:
        """What training has added to the images of the queries with these coordinates, `(depth, rows, batch)`: those of
        W_l^k - a_k W_l^0, of which weight decay has left a_k."""

    @abstractmethod
    def needed(self, batch: int) -> tuple[Array, ...]:
        """Of every capacity, how much one more step of so many samples may take; nothing where it always suffices."""

    @property
    @abstractmethod
    def parameters(self) -> PyTree:
        """What training moves."""

    @abstractmethod
    def with_parameters(self, parameters: PyTree) -> AbstractMatrices:
        """The same matrices after an update."""

    @abstractmethod
    def add_gradient(
        self, gradients: PyTree, layer: Index, backward: Coordinates, forward: Coordinates, *, wanted: Flag = True
    ) -> tuple[PyTree, AbstractMatrices]:
        """`gradients` (of the form of `parameters`) with that of one layer set to n sum_a g_a x_a^T / n^(3/2): the
        part of n dloss/dW_l that does not depend on the branch scale. And the matrices, with room for such an update.
        Where none is `wanted`, both as they are.
        """


def with_layer(every: Array, layer: Index, make: Callable[[], Array], wanted: Flag) -> Array:
    """Arrays of all matrices, that of one layer made anew where this is wanted."""
    return lax.cond(wanted, lambda: put(every, make(), layer), lambda: every)
