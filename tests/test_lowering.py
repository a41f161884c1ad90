"""Every compiled step lowers for accelerators, on a machine that has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layers_of, prepare
from jax import export

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax.dynamics import conditioned as explicit
from nfd_jax.dynamics import module
from nfd_jax.solvers import networks as training
from nfd_jax.solvers.network import Shape, plain_layers
from nfd_jax.solvers.particles import matched_layers

PLATFORMS = ("cuda", "tpu")
MODEL = nfd.ResNet(2, block="pre_inner")


def lowered(function, *arguments):
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments).platforms


def problem_of(**options):
    with jax.enable_x64(False):
        task = nfd.datasets.digits(3)
        return task, prepare(task, MODEL, width=64, steps=2, **options)


def step_arguments(inputs, targets):
    return jnp.int32(0), jnp.float32(0.1), jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.float32)


@pytest.mark.parametrize("matched", [True, False])
def test_steps_of_revealed_matrices(matched):
    with jax.enable_x64(False):
        task, problem = problem_of(momentum=0.5, observe=observables.kernels)
        shape = Shape(4, 64, 3, 1, 2, 3)
        layers = (matched_layers if matched else plain_layers)(jax.random.key(0), shape, True)
        state, inputs = explicit.start(problem.settings, layers), np.zeros((3, 3))
        step, *others = step_arguments(inputs, task.targets)

        def train(state, step, rate, x, y):
            return explicit.train_step(problem.settings, problem.scales, state, step, rate, x, y)

        assert lowered(train, state, step, *others) == PLATFORMS


@pytest.mark.parametrize("untied", [True, False])
def test_steps_of_autodiff_and_of_dense_matrices(untied):
    with jax.enable_x64(False):
        task, problem = problem_of(observe=observables.kernels)
        shape = module.Shape(16, task.dimension, 1, untied)
        network = module.create_network(jax.random.key(0), MODEL, problem.settings.row, shape)
        arguments = step_arguments(task.inputs, task.targets)

        def train(state, *arguments):
            return training.train_step(problem.settings, None, state, *arguments)

        def sweep(state, *arguments):
            return explicit.train_step(problem.settings, problem.scales, state, *arguments)

        assert lowered(train, training.start(problem.settings, network), *arguments) == PLATFORMS
        assert lowered(sweep, explicit.start(problem.settings, layers_of(network)), *arguments) == PLATFORMS
