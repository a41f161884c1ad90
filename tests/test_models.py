"""Explicit passes over dense matrices are the same computation as autodiff of the Equinox module."""

import math
from functools import partial

import jax
import numpy as np
import optax
import pytest
from helpers import prepare, run_both

import nfd_jax as nfd
from nfd_jax import models, parametrization
from nfd_jax.dynamics import module, propagate
from nfd_jax.dynamics.initial import Initial
from nfd_jax.task import Task

WIDTH, DEPTH, SAMPLES, INPUTS = 12, 4, 3, 5


def make_task(outputs=1, loss="mse"):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES, INPUTS))
    if loss == "cross_entropy":
        return Task(inputs, rng.integers(outputs, size=SAMPLES), loss=loss, classes=outputs)
    return Task(inputs, rng.normal(size=(SAMPLES, outputs)))


def both(task, model, untied=False, **options):
    prepared = prepare(task, model, width=WIDTH, untied=untied, **options)
    return run_both(prepared, prepared.network(1), task)


def resnet(activation, **options):
    return nfd.ResNet(DEPTH, activation, horizon=1.3, **options)


EVERYTHING = {"train_input": True, "train_readout": True}
CASES = {
    "relu": (resnet("relu"), False, make_task(), {}),
    "relu, untied": (resnet("relu"), True, make_task(), {}),
    "tanh, untied": (resnet("tanh"), True, make_task(), {}),
    "three outputs": (resnet("gelu"), False, make_task(3), {}),
    "cross-entropy, every layer trained, untied": (resnet("tanh"), True, make_task(3, "cross_entropy"), EVERYTHING),
    "momentum, decay, schedule, every layer trained": (
        resnet("abs"),
        False,
        make_task(),
        {
            "richness": 1.5,
            "momentum": 0.7,
            "weight_decay": 0.2,
            "learning_rate": optax.cosine_decay_schedule(0.1, 6),
            **EVERYTHING,
        },
    ),
    "post, centred, untied": (resnet("abs", block="post", centred=True), True, make_task(3), EVERYTHING),
    "inner, branch scale": (resnet("tanh", block="inner", branch_scale=0.7), False, make_task(), EVERYTHING),
    "pre_inner, corrected": (
        resnet("relu", block="pre_inner"),
        False,
        make_task(),
        {"parametrization": "depth_mup_corrected"},
    ),
    "inner_post, untied, ntp": (
        resnet("gelu", block="inner_post", centred=True),
        True,
        make_task(3),
        {"parametrization": "ntp", "richness": 1.5, **EVERYTHING},
    ),
    "sp": (resnet("tanh"), False, make_task(), {"parametrization": "sp", "learning_rate": 0.02, **EVERYTHING}),
    "complete_p": (resnet("relu"), False, make_task(), {"parametrization": "complete_p", **EVERYTHING}),
    "mlp, untied": (nfd.MLP(3, "tanh"), True, make_task(), {"richness": 0.5, **EVERYTHING}),
    "mlp without hidden matrices": (nfd.MLP(1, jax.numpy.sin), False, make_task(2, "cross_entropy"), EVERYTHING),
}


@pytest.mark.parametrize("name", CASES)
def test_sweeps_equal_autodiff(name):
    """Five steps from the same weights: only the order of float64 operations differs, 1e-9 is far above that."""
    model, untied, task, options = CASES[name]
    sweeps, autodiff = both(task, model, untied, **options)
    assert sweeps.outputs.shape == (6, SAMPLES, task.outputs)
    moved = np.abs(np.diff(autodiff.outputs, axis=0)).max(axis=(1, 2))
    assert moved.min() > 1e-3  # every step did something
    np.testing.assert_allclose(sweeps.outputs, autodiff.outputs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(sweeps.loss, autodiff.loss, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["inner_post, untied, ntp", "mlp, untied"])
def test_both_observe_the_same(name):
    """Features and gradients by explicit passes and by autodiff, in every snapshot, in the units of `Snapshot`."""
    model, untied, task, options = CASES[name]
    sweeps, autodiff = both(task, model, untied, observe=nfd.observables.kernels, **options)
    for kernel in ("feature_kernel", "gradient_kernel"):
        found = autodiff.observed[kernel]
        assert found.shape == (6, model.blocks + 1, SAMPLES, SAMPLES)
        assert np.abs(np.diff(found, axis=0)).max() > 1e-4
        np.testing.assert_allclose(sweeps.observed[kernel], found, rtol=1e-9, atol=1e-12)


def test_every_option_changes_the_run():
    """So that the cases above could not agree by ignoring an option."""
    task = make_task()
    options = CASES["momentum, decay, schedule, every layer trained"][3]
    base, _ = both(task, resnet("abs"), **options)
    neutral = {"richness": 1.0, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1}
    for name, off in {**neutral, "train_input": False, "train_readout": False}.items():
        changed, _ = both(task, resnet("abs"), **(options | {name: off}))
        assert np.abs(changed.outputs[-1] - base.outputs[-1]).max() > 1e-4, name


def test_every_part_of_a_model_changes_its_outputs():
    task, row = make_task(), parametrization.resolve("depth_mup")
    every = [resnet("tanh", block=block, centred=centred) for block in models.BLOCKS for centred in (False, True)]
    every += [nfd.MLP(DEPTH, "tanh"), nfd.MLP(DEPTH - 1, "tanh"), resnet("tanh", branch_scale=0.3)]
    shape = module.Shape(WIDTH, task.dimension, task.outputs)
    outputs = [
        module.create_network(jax.random.key(1), model, row, shape)(jax.numpy.asarray(task.inputs)) for model in every
    ]
    for index, one in enumerate(outputs):
        for other in outputs[:index]:
            assert np.abs(one - other).max() > 1e-4


def test_first_outputs_by_hand():
    """The equations of the module docstring in numpy."""
    task = make_task(2)
    model = nfd.ResNet(DEPTH, "tanh", horizon=1.3)
    shape = module.Shape(WIDTH, task.dimension, task.outputs)
    network = module.create_network(jax.random.key(1), model, parametrization.resolve("depth_mup"), shape)
    h = task.inputs @ np.asarray(network.input).T / math.sqrt(task.dimension)
    for matrix in np.concatenate([forward for forward, _ in network.hidden]):
        h = h + math.sqrt(1.3 / DEPTH) * np.tanh(h) @ matrix.T / math.sqrt(WIDTH)
    expected = h @ np.asarray(network.readout) / WIDTH
    np.testing.assert_allclose(network(jax.numpy.asarray(task.inputs)), expected, rtol=0, atol=1e-13)


def test_centred_branches_by_hand():
    """Every sample's branch is taken off its mean over coordinates."""
    task, model = make_task(2), resnet("abs", block="post", centred=True)
    shape = module.Shape(WIDTH, task.dimension, task.outputs)
    network = module.create_network(jax.random.key(1), model, parametrization.resolve("depth_mup"), shape)
    h = task.inputs @ np.asarray(network.input).T / math.sqrt(task.dimension)
    for matrix in np.concatenate([forward for forward, _ in network.hidden]):
        branch = np.abs(h @ matrix.T / math.sqrt(WIDTH))
        h = h + math.sqrt(1.3 / DEPTH) * (branch - branch.mean(axis=1, keepdims=True))
    expected = h @ np.asarray(network.readout) / WIDTH
    np.testing.assert_allclose(network(jax.numpy.asarray(task.inputs)), expected, rtol=0, atol=1e-13)


def test_untied_product_is_the_product():
    """Its value uses the forward matrix, the gradient of its input the other one."""
    rng = np.random.default_rng(0)
    x, w, v = (jax.numpy.asarray(rng.normal(size=shape)) for shape in ((2, 3), (4, 3), (4, 3)))
    value, pullback = jax.vjp(module.untied_product, x, w, v)
    np.testing.assert_allclose(value, x @ w.T, rtol=1e-14)
    cotangent = jax.numpy.asarray(rng.normal(size=(2, 4)))
    gradients = pullback(cotangent)
    np.testing.assert_allclose(gradients[0], cotangent @ v, rtol=1e-14)
    np.testing.assert_allclose(gradients[1], cotangent.T @ x, rtol=1e-14)
    np.testing.assert_array_equal(gradients[1], gradients[2])


def test_derivatives_of_activations_are_autodiff():
    """And 0 at the kink of relu and abs."""
    x = jax.numpy.linspace(-2.0, 2.0, 9)
    expected = {
        "identity": np.ones(9),
        "relu": (np.asarray(x) > 0) * 1.0,
        "abs": np.sign(x),
        "tanh": 1 - np.tanh(x) ** 2,
    }
    for name, slope in expected.items():
        np.testing.assert_allclose(nfd.ResNet(1, name).structure.phi_prime(x), slope, rtol=0, atol=1e-15)
    custom = nfd.ResNet(1, jax.numpy.sin)
    np.testing.assert_allclose(custom.structure.phi_prime(x), np.cos(x), rtol=0, atol=1e-15)


def test_evaluation_leaves_no_trace():
    """`keep=False` gives the outputs of `keep=True` and returns the layers as they were."""
    task = make_task()
    model = nfd.ResNet(DEPTH, "tanh")
    units = prepare(task, model).explicit.units
    layers = Initial(DEPTH, WIDTH, INPUTS, 1, 2, SAMPLES).layers(jax.random.key(0))
    x, step = jax.numpy.asarray(task.inputs), jax.numpy.asarray(0)

    @partial(jax.jit, static_argnums=1)
    def forward(layers, keep):
        return propagate.forward(model.structure, units, layers, x, step, keep=keep)

    kept, _, _ = forward(layers, True)
    outputs, passed, after = forward(layers, False)
    assert passed is None
    np.testing.assert_allclose(outputs, kept, rtol=0, atol=1e-13)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after, layers)
    assert all(jax.tree.leaves(same))
