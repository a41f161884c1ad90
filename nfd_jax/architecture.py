"""ResNet: the description of a network without its width, and its forward and backward sweeps over any matrices.

The equations are those of theory section 2:

    h_0 = U x / sqrt(d)
    h_l = h_{l-1} + b W_l phi(h_{l-1}) / sqrt(n)                  b = sqrt(T / L) under depth-muP
    f   = V^T h_L / n
    g_L = V u,    g_{l-1} = g_l + b phi'(h_{l-1}) * W_l^T g_l / sqrt(n)

with one column u of output cotangents a sample. Sweeps are loops over layers, compiled once whatever the depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfd_jax import activations
from nfd_jax._errors import finite_float, positive_int
from nfd_jax._types import Array, Float, Index, PyTree, Scalar, ScalarFunction
from nfd_jax.basis import product
from nfd_jax.matrices import AbstractMatrices
from nfd_jax.noise import BACKWARD, FORWARD


@dataclass(frozen=True)
class ResNet:
    """A residual network of L one-matrix, pre-activation blocks (NFD's model). It has no width of its own.

    **Arguments:**

    - `depth`: L, the number of blocks. `math.inf` stands for the infinite-depth limit, which the solvers do not
      take yet.
    - `activation`: `"identity"`, `"relu"`, `"abs"`, `"tanh"`, `"gelu"`, or a scalar function that jax can
      differentiate.
    - `horizon`: T, the layer time of the whole stream.
    """

    depth: int | float
    activation: str | ScalarFunction = "relu"
    horizon: float = 1.0

    def __post_init__(self) -> None:
        if self.depth != math.inf:
            object.__setattr__(self, "depth", positive_int("depth", self.depth))
        activations.check(self.activation)
        object.__setattr__(self, "horizon", finite_float("horizon", self.horizon, strict=True))

    @property
    def phi(self) -> ScalarFunction:
        """The activation."""
        return activations.function(self.activation)

    @property
    def phi_prime(self) -> ScalarFunction:
        """Its derivative."""
        return activations.derivative(self.activation)


def check_resnet(model: object, *, finite: bool) -> ResNet:
    """`model` where it is a ResNet (of finite depth where asked), else an error that says what to pass."""
    if not isinstance(model, ResNet):
        raise TypeError(f"model must be an nfd.ResNet, got {type(model).__name__}")
    if finite and model.depth == math.inf:
        raise ValueError("depth must be a finite integer here, got inf; pass ResNet(depth=L)")
    return model


class Grid(NamedTuple):
    """The layer-time grid of a network, traced: networks of all depths that their matrices have room for share one
    compiled program."""

    depth: Index | np.ndarray  # L
    branch: Scalar | np.ndarray  # b

    @classmethod
    def of(cls, depth: int, branch: float) -> Grid:
        """The grid of a network of finite depth."""
        return cls(np.asarray(depth, np.int32), np.asarray(branch, jnp.zeros(()).dtype))


class Layers(eqx.Module):
    """The state of a network of width n: U as rows `(d, width)`, the hidden matrices, V as rows `(c, width)`."""

    input: Float[Array, "inputs width"]
    hidden: AbstractMatrices
    readout: Float[Array, "outputs width"]


class Forward(NamedTuple):
    """What a forward sweep leaves behind."""

    outputs: Float[Array, "batch outputs"]
    features: Float[Array, "layers batch width"]  # h_0 to h_L; none where the queries are not kept
    handles: Array


class Gradients(NamedTuple):
    """Gradients by role, hidden ones in the form of the matrices' parameters; `sweep` is g_0 to g_L if kept."""

    parameters: dict[str, PyTree]
    sweep: Float[Array, "layers batch width"] | None


def forward(
    activation: str | ScalarFunction,
    grid: Grid,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    step: Index,
    *,
    keep: bool,
) -> tuple[Forward, Layers]:
    """Features and outputs of a batch whose `inputs` carry their factor 1/sqrt(d) already.

    `keep=False` evaluates without storing the queries: exact in law given the training so far, and no handles.
    """
    phi, width = activations.function(activation), layers.readout.shape[1]
    start = product(inputs, layers.input)
    handles = layers.hidden.handles(len(inputs) if keep else 0)
    features = jnp.zeros((len(handles) + 1 if keep else 0, *start.shape), start.dtype)
    features = features.at[0].set(start) if keep else features

    def block(layer: Index, carry: tuple) -> tuple:
        h, features, handles, hidden = carry
        images, handle, hidden = hidden.query(FORWARD, layer, step, phi(h), h, keep=keep)
        h = h + grid.branch * images
        if keep:
            features = lax.dynamic_update_index_in_dim(features, h, layer + 1, axis=0)
            handles = lax.dynamic_update_index_in_dim(handles, handle, layer, axis=0)
        return h, features, handles, hidden

    h, features, handles, hidden = lax.fori_loop(0, grid.depth, block, (start, features, handles, layers.hidden))
    outputs = product(h, layers.readout.T) / width
    return Forward(outputs, features, handles), eqx.tree_at(lambda tree: tree.hidden, layers, hidden)


def backward(
    activation: str | ScalarFunction,
    grid: Grid,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    found: Forward,
    cotangents: Float[Array, "batch outputs"],
    weights: Float[Array, " batch"],
    step: Index,
    *,
    keep_sweep: bool,
) -> tuple[Gradients, Layers]:
    """The backward sweep from g_L = V u and the gradients sum_a w_a g_a x_a^T of every matrix.

    `cotangents` u and `weights` w: for one output u = 1 and w = chi, so that g is the output gradient; for several
    u = chi and w = 1. Either way w_a u_a = chi_a, and the gradients are n times those of the loss.
    """
    phi_prime = activations.derivative(activation)
    end = product(cotangents, layers.readout)
    sweep = jnp.zeros((len(found.features) if keep_sweep else 0, *end.shape), end.dtype)
    sweep = lax.dynamic_update_index_in_dim(sweep, end, grid.depth, axis=0) if keep_sweep else sweep
    zeros = jax.tree.map(jnp.zeros_like, layers.hidden.parameters)

    def block(index: Index, carry: tuple) -> tuple:
        g, sweep, gradients, hidden = carry
        layer = grid.depth - 1 - index
        h = lax.dynamic_index_in_dim(found.features, layer, keepdims=False)
        images, handle, hidden = hidden.query(BACKWARD, layer, step, g, h, keep=True)
        forward_handle = lax.dynamic_index_in_dim(found.handles, layer, keepdims=False)
        gradients = hidden.add_gradient(gradients, layer, grid.branch * handle * weights[None, :], forward_handle)
        g = g + grid.branch * phi_prime(h) * images
        sweep = lax.dynamic_update_index_in_dim(sweep, g, layer, axis=0) if keep_sweep else sweep
        return g, sweep, gradients, hidden

    start, sweep, hidden_gradients, hidden = lax.fori_loop(0, grid.depth, block, (end, sweep, zeros, layers.hidden))
    weighted = weights[:, None] * start
    last = lax.dynamic_index_in_dim(found.features, grid.depth, keepdims=False)
    parameters = {
        "input": product(inputs.T, weighted),
        "hidden": hidden_gradients,
        "readout": product((weights[:, None] * cotangents).T, last),
    }
    layers = eqx.tree_at(lambda tree: tree.hidden, layers, hidden)
    return Gradients(parameters, sweep if keep_sweep else None), layers
