"""Autodiff: training of finite networks by jax's gradients and optax, in the convention of their parametrization."""

from __future__ import annotations

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from nfd_jax import optimizers
from nfd_jax._checks import in_precision
from nfd_jax._types import Array, Flag, Float, Index, Key, PyTree, Scalar
from nfd_jax.dynamics.base import AbstractDynamics, Record, Settings
from nfd_jax.dynamics.module import Network, Shape, create_network
from nfd_jax.dynamics.snapshot import Snapshot, observation
from nfd_jax.models import AbstractModel
from nfd_jax.parametrization import Parametrization, Role
from nfd_jax.task import loss_gradient, loss_value


class State(eqx.Module):
    """A network and its optimizer's memory; where something is observed, the initial network and the share of its
    trained weights that weight decay has left, too."""

    network: Network
    optimizer: PyTree
    initial: Network | None = None
    kept: Scalar | None = None


class Autodiff(AbstractDynamics):
    """A finite network with n x n matrices; inputs are raw rows `(B, d)`."""

    settings: Settings = eqx.field(static=True)
    model: AbstractModel = eqx.field(static=True)
    row: Parametrization = eqx.field(static=True)
    richness: float = eqx.field(static=True)
    shape: Shape = eqx.field(static=True)

    def init(self, key: Key) -> State:
        return self.start(create_network(key, self.model, self.row, self.shape, self.richness))

    def side_by_side(self) -> Autodiff:
        return self

    def start(self, network: Network) -> State:
        """The state before training of a given network."""
        memory = self.directions(network).init(trainable(self.settings.trained, network))
        # copies: a step gives up the memory of the network before it
        if self.settings.observe is None:
            return State(network, memory)
        return State(network, memory, network.forward_only(), jnp.ones((), network.input.dtype))

    def step(
        self, state: State, step: Index, rate: Scalar, inputs: Array, targets: Array, last: Flag = False
    ) -> tuple[State, Record]:
        del last
        settings = self.settings

        def objective(parameters: dict[str, PyTree]) -> tuple[Scalar, Array]:
            outputs = with_weights(state.network, parameters)(inputs)
            return loss_value(settings.loss, outputs, targets), outputs

        parameters = trainable(settings.trained, state.network)
        (loss, outputs), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
        observed, initial, kept = {}, state.initial, state.kept
        if settings.observe is not None and initial is not None and kept is not None:
            snapshot = self._snapshot(state.network, initial, kept, step, inputs, targets)
            observed = observation(settings.observe, snapshot)
            kept = kept * (1 - rate * settings.optimizer.weight_decay)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of integer counts
            updates, memory = self.directions(state.network).update(gradients, state.optimizer, parameters)
        parameters = optimizers.descend(parameters, updates, rate)
        return State(with_weights(state.network, parameters), memory, initial, kept), Record(outputs, loss, observed)

    @property
    def capacity(self) -> tuple[int, ...]:
        return ()

    def with_capacity(self, capacity: tuple[int, ...]) -> Autodiff:
        del capacity
        return self

    def needed(self, state: PyTree, batch: int) -> tuple[Array, ...]:
        del state, batch
        return ()

    def evaluate(self, state: State, step: Index, inputs: Array) -> Float[Array, "samples outputs"]:
        del step
        return state.network(inputs)

    def directions(self, network: Network) -> optax.GradientTransformation:
        """The directions of all roles, with their rates and gradient scales (theory section 6).

        A richness gamma divides gradients. SGD's rates are multiplied by gamma^2 and Adam's by gamma, so that outputs
        move alike whatever gamma.
        """
        rule, gamma = self.settings.optimizer, self.richness
        sizes = {"width": self.shape.width, "depth": int(self.model.depth), "dimension": self.shape.dimension}
        like_gradients, directions = rule.rates_of == "sgd", {}
        for role in trainable(self.settings.trained, network):
            scaling = self.row[Role(role)]
            rate = scaling.rate(rule.rates_of)(**sizes) * (gamma**2 if like_gradients else gamma)
            of_gradients = 1.0 if like_gradients else scaling.epsilon(**sizes) / gamma
            in_precision(f"the {role} rate of parametrization {self.row.name!r}", rate, positive=True)
            in_precision(f"epsilon of {role} weights", rule.epsilon * of_gradients, positive=True)
            directions[role] = rule.direction(rate, of_gradients)
        return optax.partition(directions, {role: role for role in directions})

    def _snapshot(
        self, network: Network, initial: Network, kept: Scalar, step: Index, inputs: Array, targets: Array
    ) -> Snapshot:
        """Features and gradients in the units of the explicit passes."""
        decayed = initial
        if self.settings.optimizer.weight_decay:
            weights = jax.tree.map(lambda weight: kept * weight, trainable(self.settings.trained, initial))
            decayed = with_weights(initial, weights)
        sizes = {"width": self.shape.width, "depth": int(self.model.depth), "dimension": self.shape.dimension}
        shifts = jnp.zeros((self.model.blocks + 1, len(inputs), self.shape.width), inputs.dtype)
        (outputs, features), pull_back = jax.vjp(partial(network.features, inputs), shifts)
        entry = self.row.readout.std * self.row.readout.multiplier
        per_output, loss = self.richness / entry(**sizes), self.settings.loss
        if outputs.shape[1] == 1:
            chi = jnp.ones_like(outputs)
        else:
            chi = per_output / self.shape.width * loss_gradient(loss, outputs, targets)
        (gradients,) = pull_back((chi, jnp.zeros_like(features)))

        gained = jax.tree.map(jnp.subtract, network.forward_matrices, decayed.forward_matrices)
        return Snapshot(
            features,
            per_output * gradients,
            outputs,
            self.model.structure,
            step,
            partial(network.images, features, gained),
            image_changes=partial(network.image_changes, inputs, initial, decayed),
        )


def trainable(trained: tuple[str, ...], network: Network) -> dict[str, PyTree]:
    """The weights that training moves, by role."""
    roles = [*trained, *(["inner"] if "hidden" in trained and network.inner else [])]
    return {role: getattr(network, role) for role in roles}


def with_weights(network: Network, parameters: dict[str, PyTree]) -> Network:
    """The network with these in place of its own."""
    fields = {name: getattr(network, name) for name in ("input", "inner", "hidden", "readout")} | parameters
    return Network(**fields, model=network.model, row=network.row, richness=network.richness)
