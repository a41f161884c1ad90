"""What a user would write without this package, kept fixed: a residual network in plain jax, value_and_grad, optax.

It shares nothing with `nfd_jax` but the task, so that it stays where it is while the package moves. The step gives
its weights up for reuse, as a careful user would write it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import nfd_jax as nfd

Ends = tuple[jax.Array, jax.Array]  # the frozen input and readout layers


def forward(hidden: jax.Array, ends: Ends, inputs: jax.Array) -> jax.Array:
    """Outputs of a depth-muP ReLU network."""
    depth, width, _ = hidden.shape
    first, readout = ends

    def block(h: jax.Array, matrix: jax.Array) -> tuple[jax.Array, None]:
        return h + jax.nn.relu(h) @ matrix / (depth * width) ** 0.5, None

    h, _ = lax.scan(block, inputs @ first.T / first.shape[1] ** 0.5, hidden)
    return h @ readout / width


def optimizer(width: int) -> optax.GradientTransformation:
    """SGD at the muP rate eta n, eta = 1/2."""
    return optax.sgd(0.5 * width)


@partial(jax.jit, donate_argnums=(0, 1))
def train_step(
    hidden: jax.Array, state: Any, ends: Ends, inputs: jax.Array, targets: jax.Array
) -> tuple[jax.Array, Any, jax.Array]:
    """One step of gradient descent on the mean squared loss."""

    def objective(hidden: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum((forward(hidden, ends, inputs) - targets) ** 2, axis=1)) / 2

    loss, gradient = jax.value_and_grad(objective)(hidden)
    updates, state = optimizer(hidden.shape[1]).update(gradient, state, hidden)
    return jnp.asarray(optax.apply_updates(hidden, updates)), state, loss


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def initialise(key: jax.Array, depth: int, width: int, inputs: int, outputs: int) -> tuple[jax.Array, Ends]:
    """Standard normal weights."""
    hidden, first, readout = jax.random.split(key, 3)
    ends = jax.random.normal(first, (width, inputs)), jax.random.normal(readout, (width, outputs))
    return jax.random.normal(hidden, (depth, width, width)), ends


def train(task: nfd.Task, depth: int, width: int, steps: int) -> np.ndarray:
    """The losses of one network before every step."""
    inputs, targets = jnp.asarray(task.inputs, jnp.float32), jnp.asarray(task.targets, jnp.float32)
    hidden, ends = initialise(jax.random.key(0), depth, width, task.dimension, task.outputs)
    state = optimizer(width).init(hidden)
    losses = []
    for _ in range(steps):
        hidden, state, loss = train_step(hidden, state, ends, inputs, targets)
        losses.append(loss)
    return np.array(losses)


def compiled_step(task: nfd.Task, depth: int, width: int) -> jax.stages.Compiled:
    """The program of a step, for its memory; nothing is allocated."""

    def create(key: jax.Array) -> tuple[jax.Array, Ends]:
        return initialise(key, depth, width, task.dimension, task.outputs)

    hidden, ends = jax.eval_shape(create, jax.random.key(0))
    state = jax.eval_shape(optimizer(width).init, hidden)
    data = (jax.ShapeDtypeStruct(array.shape, jnp.float32) for array in (task.inputs, task.targets))
    return train_step.lower(hidden, state, ends, *data).compile()
