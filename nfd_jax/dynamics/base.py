"""Dynamics: how a network trains, as init, step and evaluate, and nothing else.

Two implementations share the description of the network (`Structure`) and nothing more: `Conditioned`, explicit passes
over matrices, and `Autodiff`. Fields that are traced (units) may differ between runs of one compiled program; static
fields decide what is compiled, so that equal programs are shared because their types say so.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx

from nfd_jax._types import Array, Flag, Float, Index, Key, PyTree, Scalar
from nfd_jax.dynamics.snapshot import Observe
from nfd_jax.models import Structure
from nfd_jax.optimizers import Optimizer

SGD = Optimizer()


@dataclass(frozen=True)
class Settings:
    """What a step does, besides what it does it to."""

    structure: Structure
    loss: Any  # as of a Task
    trained: tuple[str, ...] = ("hidden",)
    optimizer: Optimizer = SGD
    observe: Observe | None = None
    functions: tuple[str, ...] = ()  # what those of a user are now: a program is compiled for what they read then


class Record(NamedTuple):
    """What a step saw before its update; outputs and loss are those of its batch."""

    outputs: Float[Array, "batch outputs"]
    loss: Scalar
    observed: dict[str, Array]


class AbstractDynamics(eqx.Module):
    """How a network trains. Methods are pure and traced: compile them with `equinox.filter_jit`."""

    settings: eqx.AbstractVar[Settings]

    @abstractmethod
    def init(self, key: Key) -> PyTree:
        """The state before training."""

    @abstractmethod
    def side_by_side(self) -> AbstractDynamics:
        """Those of one of several members under vmap, along an axis named `basis.MEMBERS`."""

    @abstractmethod
    def step(
        self, state: PyTree, step: Index, rate: Scalar, inputs: Array, targets: Array, last: Flag = False
    ) -> tuple[PyTree, Record]:
        """The state after the training step of this number on a batch, `(B, d)` and `(B, c)`, at rate eta, and what was
        seen before it. Steps are taken in order; after a `last` one the state is not asked for, and may be anything."""

    @property
    @abstractmethod
    def capacity(self) -> tuple[int, ...]:
        """Lengths of arrays of the state that may have to grow; none where they suffice for all steps."""

    @abstractmethod
    def with_capacity(self, capacity: tuple[int, ...]) -> AbstractDynamics:
        """The same dynamics of a state with zeros at the ends of longer arrays."""

    @abstractmethod
    def needed(self, state: PyTree, batch: int) -> tuple[Array, ...]:
        """Of every capacity, how much one more step of so many samples may take."""

    @abstractmethod
    def evaluate(self, state: PyTree, step: Index, inputs: Array) -> Float[Array, "samples outputs"]:
        """Outputs of samples as they stand before a step; the state is not changed."""
