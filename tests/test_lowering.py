"""Every compiled step lowers for accelerators, on a machine that has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layers_of, prepare
from jax import export

import nfd_jax as nfd
from nfd_jax import observables

PLATFORMS = ("cuda", "tpu")
MODEL = nfd.ResNet(2, block="pre_inner")
RECIPE = {"steps": 2, "observe": observables.kernels}


def lowers(dynamics, state, inputs, targets):
    """A step from a state for all platforms, with what follows it."""

    def train(state, step, rate, inputs, targets):
        state, record = dynamics.step(state, step, rate, inputs, targets)
        return state, record, dynamics.evaluate(state, step + 1, inputs)

    data = (jnp.asarray(np.asarray(part), jnp.float32) for part in (inputs, targets))
    exported = export.export(jax.jit(train), platforms=PLATFORMS)(state, jnp.int32(0), jnp.float32(0.1), *data)
    return exported.platforms == PLATFORMS


@pytest.mark.parametrize(("noise", "resolution"), [("matched", 0.0), ("plain", 0.0), ("matched", 0.1)])
def test_steps_of_revealed_matrices(noise, resolution):
    with jax.enable_x64(False):
        task = nfd.datasets.digits(3)
        options = {"particles": 160, "noise": noise, "resolution": resolution, "momentum": 0.5}
        dynamics, problem = nfd.limit_dynamics(task, MODEL, **options, **RECIPE)
        assert (dynamics.resolution or 0.0) == resolution
        assert dynamics.initial.matched == (noise == "matched")
        assert lowers(dynamics, dynamics.init(nfd.seed_key(0)), *problem.batch(0))


@pytest.mark.parametrize("untied", [True, False])
def test_steps_of_autodiff_and_of_dense_matrices(untied):
    with jax.enable_x64(False):
        task = nfd.datasets.digits(3)
        prepared = prepare(task, MODEL, 16, untied, **RECIPE)
        network, explicit = prepared.network(0), prepared.explicit
        assert lowers(prepared.autodiff, prepared.autodiff.start(network), task.inputs, task.targets)
        assert lowers(explicit, explicit.start(layers_of(network)), task.inputs, task.targets)
