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

from nfd_jax import activations
from nfd_jax._checks import boolean, finite_float, one_of, positive_int
from nfd_jax._types import ScalarFunction
from nfd_jax.parametrization import Parametrization

BLOCKS: dict[str, tuple[bool, ...]] = {  # whether phi acts before the first matrix, and after each
    "pre": (True, False),
    "post": (False, True),
    "inner": (False, True, False),
    "pre_inner": (True, True, False),
    "inner_post": (False, True, True),
}


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
