"""ResNet and MLP: descriptions of networks without a width, and their forward and backward sweeps over any matrices.

The equations are those of theory section 2, for a branch F of one or two hidden matrices:

    h_0 = U x / sqrt(d)
    h_l = h_{l-1} + b F_l(h_{l-1})              b = sqrt(T) L^-alpha
    f   = V^T h_L / n

    "pre"         F(h) = W phi(h) / sqrt(n)                                 NFD
    "post"        F(h) = phi(W h / sqrt(n))                                 TP6
    "inner"       F(h) = W2 phi(W1 h / sqrt(n)) / sqrt(n)                   NFD v1
    "pre_inner"   F(h) = W2 phi(W1 phi(h) / sqrt(n)) / sqrt(n)
    "inner_post"  F(h) = phi(W2 phi(W1 h / sqrt(n)) / sqrt(n))              TP6's block of depth 2

An MLP has no skip: h_l = W_l phi(h_{l-1}) / sqrt(n) and f = V^T phi(h_L) / n. Gradients g_L = n df/dh_L are swept
back through the transposed matrices. Sweeps are loops over blocks, compiled once whatever the depth.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfd_jax import activations
from nfd_jax._errors import boolean, finite_float, in_precision, one_of, positive_int
from nfd_jax._types import Array, Float, Index, PyTree, Scalar, ScalarFunction
from nfd_jax.basis import product
from nfd_jax.matrices import AbstractMatrices
from nfd_jax.noise import BACKWARD, FORWARD
from nfd_jax.parametrization import ROUNDING, D, N, Parametrization, Power, Role

BLOCKS: dict[str, tuple[bool, ...]] = {  # whether phi acts before the first matrix, and after each
    "pre": (True, False),
    "post": (False, True),
    "inner": (False, True, False),
    "pre_inner": (True, True, False),
    "inner_post": (False, True, True),
}

# what std x multiplier of these roles must be for images of size 1
IMAGES: dict[Role, Power] = {Role.INPUT: D**-0.5, Role.INNER: N**-0.5, Role.HIDDEN: N**-0.5}


@dataclass(frozen=True)
class Structure:
    """What a compiled sweep depends on besides shapes."""

    activation: str | ScalarFunction
    activated: tuple[bool, ...]  # as in BLOCKS
    centred: bool = False  # whether a branch loses its mean over the n coordinates
    skip: bool = True
    activated_readout: bool = False

    @property
    def matrices(self) -> int:
        """Hidden matrices of a block, 1 or 2."""
        return len(self.activated) - 1

    @property
    def phi(self) -> ScalarFunction:
        """The activation."""
        return activations.function(self.activation)

    @property
    def phi_prime(self) -> ScalarFunction:
        """Its derivative."""
        return activations.derivative(self.activation)


@dataclass(frozen=True)
class AbstractModel(ABC):
    """A network without its width."""

    depth: int | float
    activation: str | ScalarFunction = "relu"

    @property
    @abstractmethod
    def structure(self) -> Structure:
        """Its blocks."""

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Their number."""

    @abstractmethod
    def branch(self, row: Parametrization) -> float:
        """The multiplier of a block."""

    @property
    def matrices(self) -> int:
        """Hidden matrices of all blocks."""
        return self.blocks * self.structure.matrices


@dataclass(frozen=True)
class ResNet(AbstractModel):
    """A residual network of L blocks.

    **Arguments:**

    - `depth`: L, the number of blocks. `math.inf`, for `solve_limit`, is the infinite-depth limit.
    - `activation`: `"identity"`, `"relu"`, `"abs"`, `"tanh"`, `"gelu"`, or a scalar function that jax can
      differentiate.
    - `horizon`: T, the layer time of the whole stream.
    - `block`: of one matrix, `"pre"` (NFD's) or `"post"` (TP6's), or of two, `"inner"`, `"pre_inner"` or
      `"inner_post"`; the activation acts before, after and between them as the names say.
    - `centred`: subtract from every branch its mean over the n coordinates (TP6).
    - `branch_scale`: the multiplier of every branch; by default the parametrization's, sqrt(T) L^-alpha. Rates stay
      the parametrization's.
    """

    horizon: int | float = 1.0
    block: str = "pre"
    centred: bool = False
    branch_scale: int | float | None = None

    def __post_init__(self) -> None:
        if self.depth != math.inf:
            object.__setattr__(self, "depth", positive_int("depth", self.depth))
        activations.check(self.activation)
        object.__setattr__(self, "horizon", finite_float("horizon", self.horizon, strict=True))
        one_of("block", self.block, BLOCKS)
        object.__setattr__(self, "centred", boolean("centred", self.centred))
        if self.branch_scale is not None:
            object.__setattr__(self, "branch_scale", finite_float("branch_scale", self.branch_scale))

    @property
    def structure(self) -> Structure:
        return Structure(self.activation, BLOCKS[self.block], self.centred)

    @property
    def blocks(self) -> int:
        return int(self.depth)

    def branch(self, row: Parametrization) -> float:
        return row.branch(self.depth, self.horizon) if self.branch_scale is None else float(self.branch_scale)


@dataclass(frozen=True)
class MLP(AbstractModel):
    """A multilayer perceptron: h_1 = U x / sqrt(d), h_l = W_l phi(h_{l-1}) / sqrt(n), f = V^T phi(h_depth) / n.

    **Arguments:**

    - `depth`: the number of hidden layers, at least 1; there are depth - 1 hidden matrices.
    - `activation`: as for `ResNet`.

    Depth takes no part in its scales but through the rates of the parametrization: `"mup"` has none.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", positive_int("depth", self.depth))
        activations.check(self.activation)

    @property
    def structure(self) -> Structure:
        return Structure(self.activation, BLOCKS["pre"], skip=False, activated_readout=True)

    @property
    def blocks(self) -> int:
        return int(self.depth) - 1

    def branch(self, row: Parametrization) -> float:
        return 1.0


def check_model(model: object, *, finite: bool) -> AbstractModel:
    """`model` where it is a network (of finite depth where asked), else an error that says what to pass."""
    if not isinstance(model, AbstractModel):
        raise TypeError(f"model must be an nfd.ResNet or nfd.MLP, got {type(model).__name__}")
    if finite and model.depth == math.inf:
        raise ValueError("depth must be a finite integer here, got inf; pass ResNet(depth=L)")
    return model


class Scales(NamedTuple):
    """What depth and width decide besides shapes, traced: networks of all depths that their matrices have room for
    share one compiled program.

    All weights have N(0, 1) entries here, whatever convention their parametrization is written in.
    """

    blocks: Index | np.ndarray  # L
    branch: Scalar | np.ndarray  # b
    output: Scalar | np.ndarray  # f = output V^T h_L / n
    rates: dict[str, Scalar | np.ndarray]  # by role, over n / output^2: all are 1 under depth-muP of richness 1

    @classmethod
    def of(
        cls, model: AbstractModel, row: Parametrization, *, width: int | None, dimension: int, richness: float = 1.0
    ) -> Scales:
        """Those of a network of finite depth; `width=None` stands for the limit n -> infinity.

        Raises ValueError where the parametrization has no such limit, or hidden images of another size than 1.
        """
        sizes = {"width": width or 2, "depth": int(model.depth), "dimension": dimension}
        output, rates = scale_powers(row)
        named = {"output": output} | {role.value: power for role, power in rates.items()}
        growing = [f"{name} {power}" for name, power in named.items() if abs(power.width) > ROUNDING]
        if width is None and growing:
            raise ValueError(
                f"parametrization {row.name!r} has no limit that learns features as n grows ({', '.join(growing)} "
                "in units of depth-muP's); use 'depth_mup' or 'mup', or solve_network at a finite width"
            )
        in_precision(
            f"the output multiplier of parametrization {row.name!r}", output(**sizes) / richness, positive=True
        )
        for role, power in rates.items():
            in_precision(f"the {role} rate of parametrization {row.name!r}", power(**sizes), positive=True)
        dtype = jnp.zeros(()).dtype
        return cls(
            np.asarray(model.blocks, np.int32),
            np.asarray(model.branch(row), dtype),
            np.asarray(output(**sizes) / richness, dtype),
            {role.value: np.asarray(power(**sizes), dtype) for role, power in rates.items()},
        )


def scale_powers(row: Parametrization) -> tuple[Power, dict[Role, Power]]:
    """Output scale and SGD rates as `Scales` has them: for weights of N(0, 1) entries, so that rows that differ by an
    abc shift have the same ones. ValueError where hidden images have another size than 1."""
    for role, expected in IMAGES.items():
        entries = row[role].std * row[role].multiplier
        if not entries.is_close(expected):
            raise ValueError(
                f"parametrization {row.name!r} gives {role.value} weights std x multiplier = {entries}, and "
                f"revealed matrices need {expected}; use train_networks"
            )
    output = row.readout.std * row.readout.multiplier * N
    return output, {role: row[role].sgd * row[role].std ** -2 * output**2 * N**-1 for role in (*IMAGES, Role.READOUT)}


class Layers(eqx.Module):
    """The state of a network of width n: U as rows `(d, width)`, the hidden matrices, V as rows `(c, width)`."""

    input: Float[Array, "inputs width"]
    hidden: AbstractMatrices  # of two a block, the inner one first
    readout: Float[Array, "outputs width"]


class Forward(NamedTuple):
    """What a forward sweep leaves behind; nothing but outputs where the queries are not kept."""

    outputs: Float[Array, "batch outputs"]
    features: Float[Array, "layers batch width"]  # h_0 to h_L
    images: Float[Array, "images batch width"]  # what phi acts on inside the blocks
    handles: Array


class Gradients(NamedTuple):
    """Gradients by role, hidden ones in the form of the matrices' parameters; `sweep` is g_0 to g_L if kept."""

    parameters: dict[str, PyTree]
    sweep: Float[Array, "layers batch width"] | None


def forward(
    structure: Structure,
    scales: Scales,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    step: Index,
    *,
    keep: bool,
) -> tuple[Forward, Layers]:
    """Features and outputs of a batch whose `inputs` carry their factor 1/sqrt(d) already.

    `keep=False` evaluates without storing the queries: exact in law given the training so far, and no handles.
    """
    phi, count, width = structure.phi, structure.matrices, layers.readout.shape[1]
    start = product(inputs, layers.input)
    handles = layers.hidden.handles(len(inputs) if keep else 0)
    room = len(handles) // count if keep else -1
    inside = sum(structure.activated[1:])
    features, images = (jnp.zeros((rows, *start.shape), start.dtype) for rows in (room + 1, max(0, room) * inside))
    features = features.at[0].set(start) if keep else features

    def block(index: Index, carry: tuple) -> tuple:
        h, features, images, handles, hidden = carry
        x, seen = phi(h) if structure.activated[0] else h, 0
        for place in range(count):
            layer = index * count + place
            x, handle, hidden = hidden.query(FORWARD, layer, step, x, keep=keep)
            if keep:
                handles = lax.dynamic_update_index_in_dim(handles, handle, layer, axis=0)
            if structure.activated[place + 1]:
                if keep:
                    images = lax.dynamic_update_index_in_dim(images, x, index * inside + seen, axis=0)
                x, seen = phi(x), seen + 1
        branch = scales.branch * _centred(structure, x)
        h = h + branch if structure.skip else branch
        if keep:
            features = lax.dynamic_update_index_in_dim(features, h, index + 1, axis=0)
        return h, features, images, handles, hidden

    carry = start, features, images, handles, layers.hidden
    h, features, images, handles, hidden = lax.fori_loop(0, scales.blocks, block, carry)
    last = phi(h) if structure.activated_readout else h
    outputs = product(last, layers.readout.T) * (scales.output / width)
    return Forward(outputs, features, images, handles), eqx.tree_at(lambda tree: tree.hidden, layers, hidden)


def backward(
    structure: Structure,
    scales: Scales,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    found: Forward,
    cotangents: Float[Array, "batch outputs"],
    weights: Float[Array, " batch"],
    step: Index,
    *,
    keep_sweep: bool,
) -> tuple[Gradients, Layers]:
    """The backward sweep from V u at the last features, and the gradients sum_a w_a g_a x_a^T of every matrix times
    the rate of its role.

    `cotangents` u and `weights` w: for one output u = 1 and w = chi, so that g is the output gradient; for several
    u = chi and w = 1. Either way w_a u_a = chi_a, and the gradients are n / output times those of the loss.
    """
    phi, phi_prime, count = structure.phi, structure.phi_prime, structure.matrices
    inside = sum(structure.activated[1:])
    last = lax.dynamic_index_in_dim(found.features, scales.blocks, keepdims=False)
    end = product(cotangents, layers.readout)
    end = phi_prime(last) * end if structure.activated_readout else end
    sweep = jnp.zeros((len(found.features) if keep_sweep else 0, *end.shape), end.dtype)
    sweep = lax.dynamic_update_index_in_dim(sweep, end, scales.blocks, axis=0) if keep_sweep else sweep
    zeros = jax.tree.map(jnp.zeros_like, layers.hidden.parameters)

    def block(below: Index, carry: tuple) -> tuple:
        g, sweep, gradients, hidden = carry
        index = scales.blocks - 1 - below
        x, seen = _centred(structure, g), inside
        for place in reversed(range(count)):
            layer, role = index * count + place, "hidden" if place == count - 1 else "inner"
            if structure.activated[place + 1]:
                seen -= 1
                x = phi_prime(lax.dynamic_index_in_dim(found.images, index * inside + seen, keepdims=False)) * x
            x, handle, hidden = hidden.query(BACKWARD, layer, step, x, keep=True)
            queried = lax.dynamic_index_in_dim(found.handles, layer, keepdims=False)
            rate = scales.branch * scales.rates[role]
            gradients = hidden.add_gradient(gradients, layer, rate * handle * weights[None, :], queried)
        if structure.activated[0]:
            x = phi_prime(lax.dynamic_index_in_dim(found.features, index, keepdims=False)) * x
        g = g + scales.branch * x if structure.skip else scales.branch * x
        sweep = lax.dynamic_update_index_in_dim(sweep, g, index, axis=0) if keep_sweep else sweep
        return g, sweep, gradients, hidden

    carry = end, sweep, zeros, layers.hidden
    start, sweep, hidden_gradients, hidden = lax.fori_loop(0, scales.blocks, block, carry)
    last = phi(last) if structure.activated_readout else last
    parameters = {
        "input": scales.rates["input"] * product(inputs.T, weights[:, None] * start),
        "hidden": hidden_gradients,
        "readout": scales.rates["readout"] * product((weights[:, None] * cotangents).T, last),
    }
    layers = eqx.tree_at(lambda tree: tree.hidden, layers, hidden)
    return Gradients(parameters, sweep if keep_sweep else None), layers


def _centred(structure: Structure, vectors: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Without their mean over the coordinates, where the structure says so; a projection, so its own transpose."""
    return vectors - jnp.mean(vectors, axis=1, keepdims=True) if structure.centred else vectors
