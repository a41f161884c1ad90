"""The compiled training steps of the public solvers, and what they take, without running them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

import nfd_jax as nfd
from nfd_jax import engine, explicit, network, training


def total_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of a program by the compiler's own account."""
    found: Any = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes


def compiled_step(
    solver: str, task: nfd.Task, model: nfd.ResNet, *, width: int, steps: int, seeds: int = 1
) -> jax.stages.Compiled:
    """The training step of `solve_network` ("revealed") or `train_networks` ("dense") with default options."""
    problem = engine.prepare(
        task,
        model,
        steps=steps,
        learning_rate=0.5,
        train_input=False,
        train_readout=False,
        richness=1.0,
        momentum=0.0,
        weight_decay=0.0,
    )
    depth, settings = int(model.depth), problem.settings
    if solver == "revealed":
        method, inputs = explicit.EXPLICIT, explicit.input_coordinates(task.inputs)
        shape = network.Shape(depth, width, inputs.shape[1], task.outputs, steps, task.samples)
        create = partial(network._create, settings, shape, True)
    else:
        method, inputs = training.AUTODIFF, task.inputs
        create = partial(training._create, settings, width, task.dimension, task.outputs, False)
    state = jax.eval_shape(create, jax.random.split(jax.random.key(0), seeds))
    if seeds == 1:  # as the engine does
        state = jax.eval_shape(engine._only_member, state)
    data = inputs.astype(np.float32), task.targets.astype(np.float32)
    step, rate = np.int32(0), np.float32(0.5)
    return engine._jitted_step.lower(method.step, settings, seeds > 1, state, step, rate, *data).compile()
