"""Tasks and losses: values by hand, gradients by autodiff, data checked at the door (bad data in test_errors.py)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import nfd_jax as nfd
from nfd_jax.task import loss_gradient, loss_value

INPUTS = np.arange(6.0).reshape(3, 2)


def test_one_output_from_a_vector():
    task = nfd.Task(INPUTS.astype(int), np.array([1, -1, 0]))
    assert (task.samples, task.dimension, task.outputs) == (3, 2, 1)
    assert task.inputs.dtype == task.targets.dtype == np.float64
    np.testing.assert_array_equal(task.targets, [[1.0], [-1.0], [0.0]])


def test_labels_become_probabilities():
    task = nfd.Task(INPUTS, np.array([2, 0, 2]), loss="cross_entropy")
    np.testing.assert_array_equal(task.targets, [[0, 0, 1], [1, 0, 0], [0, 0, 1]])
    assert nfd.Task(INPUTS, np.zeros(3), loss="cross_entropy").outputs == 2
    assert nfd.Task(INPUTS, np.zeros(3), loss="cross_entropy", classes=5).outputs == 5
    soft = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_array_equal(nfd.Task(INPUTS, soft, loss="cross_entropy").targets, soft)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        nfd.Task(INPUTS, np.zeros(3)).loss = "mse"


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_losses(loss):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(4, 3))
    targets = np.eye(3)[rng.integers(3, size=4)] if loss == "cross_entropy" else rng.normal(size=(4, 3))
    value = loss_value(loss, jnp.asarray(outputs), jnp.asarray(targets))
    by_hand = {
        "mse": 0.5 * ((outputs - targets) ** 2).sum(1).mean(),
        "cross_entropy": -(targets * log_softmax(outputs, axis=1)).sum(1).mean(),
    }[loss]
    assert value == pytest.approx(by_hand, rel=1e-14)
    gradient = loss_gradient(loss, jnp.asarray(outputs), jnp.asarray(targets))
    by_autodiff = jax.grad(lambda f: loss_value(loss, f, jnp.asarray(targets)))(jnp.asarray(outputs))
    np.testing.assert_allclose(gradient, by_autodiff, rtol=0, atol=1e-15)
