"""Training by explicit sweeps over matrices of any kind: the method of solve_limit and solve_network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from nfd_jax import optimizers
from nfd_jax._types import Array, Index, PyTree, Scalar
from nfd_jax.dynamics import propagate
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.dynamics.units import Scales
from nfd_jax.parametrization import PARAMETRIZATIONS
from nfd_jax.runtime.loop import Evaluated, Method, Problem, Record, Samples, Settings, Sweep, evaluated, observation
from nfd_jax.task import loss_gradient, loss_value


class State(eqx.Module):
    """The network and its optimizer's memory."""

    layers: Layers
    optimizer: PyTree


def _trainable(settings: Settings, layers: Layers) -> dict[str, PyTree]:
    parameters = {"input": layers.input, "hidden": layers.hidden.parameters, "readout": layers.readout}
    return {role: parameters[role] for role in settings.trained}


def start(settings: Settings, layers: Layers) -> State:
    """The state before training."""
    return State(layers, settings.optimizer.direction().init(_trainable(settings, layers)))


def train_step(
    settings: Settings, scales: Scales, state: State, step: Index, rate: Scalar, inputs: Array, targets: Array
) -> tuple[State, Record]:
    """One step of the SGD family on a batch; `inputs` carry their factor 1/sqrt(d)."""
    found, layers = propagate.forward(settings.structure, scales, state.layers, inputs, step, keep=True)
    chi = loss_gradient(settings.loss, found.outputs, targets) / scales.output
    # g is the output gradient where there is one output, the loss gradient where there are several
    single = chi.shape[1] == 1
    cotangents, weights = (jnp.ones_like(chi), chi[:, 0]) if single else (chi, jnp.ones_like(chi[:, 0]))
    keep_sweep = settings.observe is not None
    gradients, layers = propagate.backward(
        settings.structure, scales, layers, inputs, found, cotangents, weights, step, keep_sweep=keep_sweep
    )
    observed = {}
    if settings.observe is not None and gradients.sweep is not None:
        seen = (found.features, gradients.sweep, found.outputs)
        effective_images = partial(layers.hidden.effective_images, found.handles)
        sweep = Sweep(*seen, settings.structure, step, effective_images, layers.hidden, found.handles)
        observed = observation(settings.observe, sweep)

    parameters = _trainable(settings, layers)
    wanted = {role: gradients.parameters[role] for role in settings.trained}
    updates, memory = settings.optimizer.direction().update(wanted, state.optimizer, parameters)
    parameters = optimizers.descend(parameters, updates, rate)
    layers = Layers(
        parameters.get("input", layers.input),
        layers.hidden.with_parameters(parameters["hidden"]),
        parameters.get("readout", layers.readout),
    )
    return State(layers, memory), Record(found.outputs, loss_value(settings.loss, found.outputs, targets), observed)


def evaluate(
    settings: Settings, scales: Scales, state: State, step: Index, sets: tuple[Samples, ...]
) -> tuple[Evaluated, ...]:
    """Outputs and loss as they stand, on queries that are not stored; one block for all sets."""
    inputs = jnp.concatenate([samples.inputs for samples in sets])
    found, _ = propagate.forward(settings.structure, scales, state.layers, inputs, step, keep=False)
    return evaluated(settings, found.outputs, sets)


EXPLICIT = Method(train_step, evaluate)


def with_scales(problem: Problem, scales: Scales) -> Problem:
    """The problem of explicit sweeps with these scales, which are traced: all rows of the exponent table and every
    richness share one compiled program."""
    settings = replace(problem.settings, row=PARAMETRIZATIONS["depth_mup"], richness=1.0)
    return problem._replace(settings=settings, scales=scales)


def in_coordinates(problem: Problem) -> Problem:
    """The same problem with inputs times 1/sqrt(d), in an orthonormal basis of the span of all of them, training and
    held out: rank coordinates a sample, at most min(samples, d).

    A Gaussian input matrix acts on the coordinates as it does on the inputs, in law and under training, so U takes
    n x rank numbers however large d is.
    """
    data = problem.data
    inputs = np.concatenate([samples.inputs for samples in data.sets])
    left, singular, _ = np.linalg.svd(inputs / np.sqrt(inputs.shape[1]), full_matrices=False)
    rank = max(1, int(np.sum(singular > singular[0] * max(inputs.shape) * np.finfo(np.float64).eps)))
    coordinates = left[:, :rank] * singular[:rank]
    count = len(data.train.inputs)
    train = data.train._replace(inputs=coordinates[:count])
    held_out = data.held_out and data.held_out._replace(inputs=coordinates[count:])
    return problem._replace(data=data._replace(train=train, held_out=held_out))
