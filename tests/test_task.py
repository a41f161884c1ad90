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


# ------------------------------------------------------------------ batches and held-out samples


def test_every_epoch_is_a_permutation_without_replacement():
    task = nfd.Task(np.eye(7), np.zeros(7)).minibatches(3, seed=5)
    batches = task.batches(6)  # three epochs of two batches, one sample left out of each
    assert batches.shape == (6, 3)
    for epoch in batches.reshape(3, 6):
        assert len(set(epoch.tolist())) == 6
    assert len({tuple(epoch) for epoch in batches.reshape(3, 6)}) == 3
    np.testing.assert_array_equal(task.batches(4), batches[:4])
    assert np.any(task.minibatches(3, seed=6).batches(6) != batches)


def test_batches_with_replacement_are_uniform():
    task = nfd.Task(np.eye(4), np.zeros(4)).minibatches(4, replacement=True)
    batches = task.batches(2500)
    counts = np.bincount(batches.ravel(), minlength=4)
    assert np.abs(counts - 2500).max() < 4.5 * (2500 * 0.75) ** 0.5  # binomial, fails once in 36,000 seeds
    assert max(len(set(batch)) for batch in batches.tolist()) == 4 > min(len(set(b)) for b in batches.tolist())


def test_full_batches_keep_the_order():
    task = nfd.Task(np.eye(3), np.zeros(3))
    assert task.full_batch
    assert task.minibatches(3).full_batch
    np.testing.assert_array_equal(task.minibatches(3).batches(2), [[0, 1, 2]] * 2)


def test_normalised_inputs_have_squared_length_d():
    raw = nfd.Task(INPUTS + 1, np.zeros(3))
    np.testing.assert_array_equal(raw.inputs, INPUTS + 1)
    scaled = nfd.Task(INPUTS + 1, np.zeros(3), normalise=True)
    np.testing.assert_allclose((scaled.inputs**2).sum(1), 2, rtol=1e-15)
    np.testing.assert_array_equal(scaled.minibatches(2).inputs, scaled.inputs)


# ------------------------------------------------------------------ classes


@pytest.mark.parametrize(
    ("targets", "options", "labels"),
    [
        ([1.0, -1.0, 1.0], {}, [1, -1, 1]),
        (np.eye(3), {}, [0, 1, 2]),
        (np.eye(3)[[2, 0, 2]] - 1 / 3, {}, [2, 0, 2]),
        ([2, 0, 2], {"loss": "cross_entropy"}, [2, 0, 2]),
        ([[0.2, 0.8], [0.9, 0.1], [0.0, 1.0]], {"loss": "cross_entropy"}, [1, 0, 1]),
    ],
)
def test_labels_and_accuracies(targets, options, labels):
    task = nfd.Task(INPUTS, np.asarray(targets), **options)
    np.testing.assert_array_equal(task.labels, labels)
    right = task.targets - task.targets.mean(axis=1, keepdims=True) * (task.outputs > 1)
    assert task.accuracy(right) == 1.0
    assert task.accuracy(-right) == 0.0
    one_wrong = np.stack([right, right])
    one_wrong[1, 2] *= -1
    np.testing.assert_allclose(task.accuracy(one_wrong), [1, 2 / 3], rtol=1e-15)
    assert task.accuracy(np.zeros_like(right)) == 0.0  # a tie is no answer
    for bad in (np.nan, np.inf):
        one_wrong[0, 0, 0] = bad
        np.testing.assert_array_equal(np.isnan(task.accuracy(one_wrong)), [True, False])


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ([1.0, -1.0, 0.5], {}, r"one output needs targets -1 and \+1, got \[0.5\] for sample 2"),
        ([0.0, 1.0, 1.0], {}, r"one output needs targets -1 and \+1, got \[0.0\] for sample 0"),
        ([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], {}, r"rows of targets must be one-hot, got \[0.5, 0.0\] for sample 2"),
        ([[2.0, 1.0, 0.0]] * 3, {}, "rows of targets must be one-hot"),
        (np.ones((3, 2)), {}, "rows of targets must be one-hot"),
        ([[0.2, 0.8], [0.5, 0.5], [0, 1]], {"loss": "cross_entropy"}, r"one largest, got \[0.5, 0.5\] for sample 1"),
    ],
)
def test_targets_that_are_no_classes(targets, options, message):
    task = nfd.Task(INPUTS, np.asarray(targets), **options)
    with pytest.raises(ValueError, match=f"this task has no classes, so that there is no accuracy: .*{message}"):
        task.accuracy(np.zeros((3, task.outputs)))


def test_arrays_are_the_tasks_own():
    """Later changes of what it was made from do not reach it, and nobody can write into it."""
    inputs, targets = np.eye(2), np.ones((2, 1))
    held_out = nfd.Task(inputs, targets)
    task = nfd.Task(inputs, targets, held_out=held_out)
    for samples in (task, held_out, task.minibatches(1), task.holding_out(task)):
        inputs[0, 0], targets[0, 0] = 5.0, 5.0
        np.testing.assert_array_equal(samples.inputs, np.eye(2))
        np.testing.assert_array_equal(samples.targets, np.ones((2, 1)))
        for array in (samples.inputs, samples.targets):
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0] = 5.0
        inputs[0, 0], targets[0, 0] = 1.0, 1.0


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_lengths_whose_squares_no_float_holds(size):
    task = nfd.Task(size * np.array([[3.0, 4.0]]), np.ones(1), normalise=True)
    np.testing.assert_allclose(task.inputs, 2**0.5 * np.array([[0.6, 0.8]]))
