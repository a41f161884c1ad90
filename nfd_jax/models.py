"""ResNet and MLP: descriptions of networks without a width, which every solver shares.

The equations are those of theory section 2, for a branch F of one or more hidden matrices:

    h_0 = U x / sqrt(d)
    h_l = h_{l-1} + b F_l(h_{l-1})              b = sqrt(T) L^-alpha
    f   = V^T h_L / n

    "pre"         F(h) = W phi(h) / sqrt(n)                                 NFD
    "post"        F(h) = phi(W h / sqrt(n))                                 TP6
    "inner"       F(h) = W2 phi(W1 h / sqrt(n)) / sqrt(n)                   NFD v1
    "pre_inner"   F(h) = W2 phi(W1 phi(h) / sqrt(n)) / sqrt(n)
    "inner_post"  F(h) = phi(W2 phi(W1 h / sqrt(n)) / sqrt(n))              TP6's block of depth 2

A block is a chain of maps and matrices: a map, a matrix, a map, a matrix, ..., a map. Explicit passes and autodiff both
walk it by `Structure.branch`, so that they cannot disagree on what a block is. An MLP has no skip:
h_l = W_l phi(h_{l-1}) / sqrt(n) and f = V^T phi(h_L) / n.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nfd_jax import activations
from nfd_jax._checks import boolean, finite_float, one_of, positive_int
from nfd_jax._functions import check_hashable, check_traced
from nfd_jax._types import ScalarFunction, Vectors
from nfd_jax.parametrization import Parametrization

Stage = str | Callable[[Any], Any]  # a function of rows (B, n), by name or as it is
Map = tuple[Stage, ...]  # stages one after the other; () is the identity

PHI, CENTRE = "phi", "centre"  # the activation of the model; without the mean over the n coordinates
BLOCKS: dict[str, tuple[Map, ...]] = {  # the map before the first matrix, and those after each
    "pre": ((PHI,), ()),
    "post": ((), (PHI,)),
    "inner": ((), (PHI,), ()),
    "pre_inner": ((PHI,), (PHI,), ()),
    "inner_post": ((), (PHI,), (PHI,)),
}


def _centre(vectors: Vectors) -> Vectors:
    return vectors - jnp.mean(vectors, axis=-1, keepdims=True)


def _rms_norm(vectors: Vectors) -> Vectors:
    return vectors / jnp.sqrt(jnp.mean(vectors**2, axis=-1, keepdims=True))


STAGES: dict[str, Callable[[Any], Any]] = {CENTRE: _centre, "rms_norm": _rms_norm}  # beside phi and the activations
LINEAR = (CENTRE, "identity")  # stages whose derivative is the same everywhere


@dataclass(frozen=True)
class Structure:
    """What a compiled pass depends on besides shapes: the chain of maps, and what surrounds it."""

    activation: str | ScalarFunction
    maps: tuple[Map, ...]  # as in BLOCKS
    skip: bool = True
    readout: Map = ()  # before V

    @property
    def matrices(self) -> int:
        """Hidden matrices of a block."""
        return len(self.maps) - 1

    @property
    def phi(self) -> ScalarFunction:
        """The activation."""
        return activations.function(self.activation)

    @property
    def phi_prime(self) -> ScalarFunction:
        """Its derivative."""
        return activations.derivative(self.activation)

    def apply(self, stages: Map, vectors: Vectors) -> Vectors:
        """The image of rows `(B, n)` under a map."""
        for stage in stages:
            vectors = self._function(stage)(vectors)
        return vectors

    def pull_back(self, stages: Map, vectors: Vectors, cotangents: Vectors) -> Vectors:
        """The transposed derivative of a map at `vectors`, of `cotangents`."""
        if not stages:
            return cotangents
        return jax.vjp(partial(self.apply, stages), vectors)[1](cotangents)[0]

    def branch(self, h: Vectors, image: Callable[[int, Vectors], Vectors]) -> Vectors:
        """F(h), where `image(place, x)` is W x / sqrt(n) for the matrix at that place of the block."""
        x = self.apply(self.maps[0], h)
        for place, after in enumerate(self.maps[1:]):
            x = self.apply(after, image(place, x))
        return x

    def is_linear(self, stages: Map) -> bool:
        """Whether a map has the same derivative everywhere, so that passes need not keep what it acts on."""
        return all(stage in LINEAR or (stage == PHI and self.activation == "identity") for stage in stages)

    def _function(self, stage: Stage) -> Callable[[Any], Any]:
        if callable(stage):
            return stage
        return self.phi if stage == PHI else STAGES.get(stage) or activations.function(stage)


def check_block(block: Any) -> str | tuple[Map, ...]:
    """`block` where it is a name or a chain of maps, with sequences as tuples, else an error that says what to pass."""
    if isinstance(block, str):
        return one_of("block", block, BLOCKS)
    if not isinstance(block, Sequence) or len(block) < 2:
        raise TypeError(
            f"block must be one of {', '.join(map(repr, BLOCKS))}, or a sequence of at least two maps, the one before "
            f"the first matrix and one after each, such as (('rms_norm', 'phi'), ()); got {block!r}"
        )
    return tuple(_check_map(each) for each in block)


def _check_map(stages: Any) -> Map:
    """A map as a tuple of stages, each checked: rows (B, n) go to rows of the same shape."""
    listed = (stages,) if isinstance(stages, str) or callable(stages) else stages
    if not isinstance(listed, Sequence):
        raise TypeError(f"a map of a block must be a stage or a sequence of stages, got {stages!r}")
    for stage in listed:
        if not callable(stage):
            one_of("stage of a block", stage, (PHI, *STAGES, *activations.ACTIVATIONS))
            continue
        check_hashable("stage of a block", stage)
        what = "a stage of a block must map rows (B, n) to rows of this shape by jax"
        program = partial(lambda stage, x: jax.jvp(stage, (x,), (x,))[1], stage)
        check_traced(what, "write it with jax.numpy", stage, program, [(2, 3)], (2, 3))
    return tuple(listed)


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
      `"inner_post"`; the activation acts before, after and between them as the names say. Or your own chain of maps:
      the one before the first matrix and one after each, each a tuple of stages, which are `"phi"` (the activation),
      the name of an activation, `"centre"`, `"rms_norm"` or functions of rows `(B, n)`: `(("rms_norm", "phi"), ())`.
    - `centred`: subtract from every branch its mean over the n coordinates (TP6).
    - `branch_scale`: the multiplier of every branch; by default the parametrization's, sqrt(T) L^-alpha. Rates stay
      the parametrization's.
    """

    horizon: int | float = 1.0
    block: str | Sequence[Any] = "pre"
    centred: bool = False
    branch_scale: int | float | None = None

    def __post_init__(self) -> None:
        if self.depth != math.inf:
            object.__setattr__(self, "depth", positive_int("depth", self.depth))
        activations.check(self.activation)
        object.__setattr__(self, "horizon", finite_float("horizon", self.horizon, strict=True))
        object.__setattr__(self, "block", check_block(self.block))
        object.__setattr__(self, "centred", boolean("centred", self.centred))
        if self.branch_scale is not None:
            object.__setattr__(self, "branch_scale", finite_float("branch_scale", self.branch_scale))

    @property
    def structure(self) -> Structure:
        *maps, last = BLOCKS[self.block] if isinstance(self.block, str) else self.block
        return Structure(self.activation, (*maps, (*last, CENTRE) if self.centred else last))

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
        return Structure(self.activation, BLOCKS["pre"], skip=False, readout=(PHI,))

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
