"""Conditioned: training by explicit passes over matrices of any kind, revealed or dense (theory sections 2 to 4)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from nfd_jax import optimizers
from nfd_jax._types import Array, Flag, Float, Index, Key, PyTree, Scalar
from nfd_jax.dynamics import propagate
from nfd_jax.dynamics.base import AbstractDynamics, Record, Settings
from nfd_jax.dynamics.initial import Initial
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.dynamics.snapshot import Snapshot, observation
from nfd_jax.dynamics.units import Units
from nfd_jax.matrices.basis import MEMBERS
from nfd_jax.matrices.resolution import Capacity
from nfd_jax.task import loss_value


class State(eqx.Module):
    """The network and its optimizer's memory."""

    layers: Layers
    optimizer: PyTree


class Conditioned(AbstractDynamics):
    """Particles of a limit, or a network of any width, without one n x n array.

    Inputs are rows of coordinates with their factor 1/sqrt(d) (`Problem.in_coordinates`). Without `initial` a state is
    made from given weights by `start`.
    """

    settings: Settings = eqx.field(static=True)
    units: Units
    initial: Initial | None = eqx.field(static=True, default=None)
    resolution: Scalar | float | None = None  # of compressed matrices, those of an `initial` with a capacity
    refinement: Index | np.ndarray | None = None  # of the grid whose noise drives it; None for its own

    def init(self, key: Key) -> State:
        if self.initial is None:
            raise ValueError("these dynamics have no law of initial weights: give initial, or call start(layers)")
        return self.start(self.initial.layers(key, self.resolution, self.refinement))

    def side_by_side(self) -> Conditioned:
        initial = self.initial and replace(self.initial, members=MEMBERS)
        return replace(self, initial=initial)

    def start(self, layers: Layers) -> State:
        """The state before training, from weights of N(0, 1) entries."""
        return State(layers, self.settings.optimizer.direction().init(self._trained(layers)))

    def step(
        self, state: State, step: Index, rate: Scalar, inputs: Array, targets: Array, last: Flag = False
    ) -> tuple[State, Record]:
        settings, units, structure = self.settings, self.units, self.settings.structure
        chi = partial(units.chi, settings.loss, targets=targets)
        observes = settings.observe is not None
        turns = 2 if observes or last is False else 2 - jnp.asarray(last, jnp.int32)
        outputs, passed, gradients, layers = propagate.there_and_back(
            structure, units, state.layers, inputs, step, chi, keep_features=observes, turns=turns
        )
        observed = {}
        if settings.observe is not None and passed.backward is not None:
            seen = (passed.features, passed.backward, outputs)
            effective_images = partial(layers.hidden.effective_images, passed.coordinates)
            snapshot = Snapshot(*seen, structure, step, effective_images, layers.hidden, passed.coordinates)
            observed = observation(settings.observe, snapshot)

        parameters = self._trained(layers)
        wanted = {role: gradients[role] for role in settings.trained}
        updates, memory = settings.optimizer.direction().update(wanted, state.optimizer, parameters)
        parameters = optimizers.descend(parameters, updates, rate)
        layers = Layers(
            parameters.get("input", layers.input),
            layers.hidden.with_parameters(parameters["hidden"]),
            parameters.get("readout", layers.readout),
        )
        record = Record(outputs, loss_value(settings.loss, outputs, targets), observed)
        return State(layers, memory), record

    def for_passes(self, number: int) -> Conditioned:
        """With room for so many passes of a run, or for the first of them."""
        return replace(self, initial=self.initial and self.initial.for_passes(number))

    @property
    def capacity(self) -> tuple[int, ...]:
        return () if self.initial is None or self.initial.capacity is None else self.initial.capacity

    def with_capacity(self, capacity: tuple[int, ...]) -> Conditioned:
        initial = self.initial and replace(self.initial, capacity=Capacity(*capacity) if capacity else None)
        return replace(self, initial=initial)

    def needed(self, state: State, batch: int) -> tuple[Array, ...]:
        return state.layers.hidden.needed(batch)

    def evaluate(self, state: State, step: Index, inputs: Array) -> Float[Array, "samples outputs"]:
        structure = self.settings.structure
        return propagate.forward(structure, self.units, state.layers, inputs, step, keep=False)[0]

    def _trained(self, layers: Layers) -> dict[str, PyTree]:
        parameters = {"input": layers.input, "hidden": layers.hidden.parameters, "readout": layers.readout}
        return {role: parameters[role] for role in self.settings.trained}
