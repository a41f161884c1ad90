"""Every compiled step lowers for accelerators, on a machine that has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layers_of, prepare
from jax import export

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax.studies import STUDIES, _rates, persistence

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


@pytest.mark.parametrize(("engine", "observe"), [("revealed", persistence.seen), ("dense", _rates.quantities)])
def test_steps_of_large_rates_at_accelerator_scale(engine, observe):
    """The largest networks of claims 17 to 20, from shapes alone."""
    sizes = STUDIES["persistence"].sizes["accelerator"]
    with jax.enable_x64(False):
        task, width = _rates.task("cross_entropy", sizes.samples), max(sizes.widths)
        options = {"parametrization": "sp", "train_input": True, "train_readout": True, "observe": observe}
        revealed = engine == "revealed"
        dynamics, problem = nfd.network_dynamics(
            task,
            nfd.MLP(sizes.layers - 1, _rates.he_relu),
            width=width if revealed else sizes.dense,
            engine=engine,
            resolution=sizes.resolution if revealed else None,
            steps=sizes.steps,
            **options,
        )
        assert not revealed or (width == 2**20 and dynamics.resolution == sizes.resolution)
        state = jax.eval_shape(dynamics.init, jax.random.key(0))
        assert lowers(dynamics, state, *problem.batch(0))
