"""Data sets: shapes, scales and splits as documented."""

import numpy as np
import pytest

import nfd_jax as nfd


def test_two_digits():
    task = nfd.datasets.digits(5)
    assert (task.samples, task.dimension, task.outputs, task.loss) == (5, 64, 1, "mse")
    np.testing.assert_array_equal(task.targets[:, 0], [-1, 1, -1, 1, -1])
    np.testing.assert_allclose((task.inputs**2).sum(axis=1), 64, rtol=1e-14)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_several_digits_are_one_hot(loss):
    task = nfd.datasets.digits(6, classes=(7, 1, 4), loss=loss)
    np.testing.assert_array_equal(task.targets, np.eye(3)[[0, 1, 2, 0, 1, 2]])


def test_two_classes_of_cross_entropy_have_two_outputs():
    assert nfd.datasets.digits(4, loss="cross_entropy").outputs == 2


def test_images_are_those_of_scikit_learn():
    """A sample is a scaled image of its class, and no image comes twice."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    directions = bunch.data / np.linalg.norm(bunch.data, axis=1, keepdims=True)
    task = nfd.datasets.digits(20, classes=(3, 8))
    nearest = np.argmax(task.inputs @ directions.T, axis=1)
    np.testing.assert_allclose(task.inputs, 8 * directions[nearest], rtol=1e-13)
    np.testing.assert_array_equal(bunch.target[nearest], [3, 8] * 10)
    assert len(set(nearest.tolist())) == 20


def test_splits_are_disjoint_and_seeds_differ():
    rows = {
        (split, seed): {row.tobytes() for row in nfd.datasets.digits(100, split=split, seed=seed).inputs}
        for split in ("train", "test")
        for seed in (0, 1)
    }
    assert not rows["train", 0] & rows["test", 0]
    assert rows["train", 0] != rows["train", 1]
    again = nfd.datasets.digits(100, split="test", seed=1).inputs
    assert {row.tobytes() for row in again} == rows["test", 1]


def test_more_samples_begin_with_fewer():
    np.testing.assert_array_equal(nfd.datasets.digits(12).inputs[:6], nfd.datasets.digits(6).inputs)


def test_gaussian_teacher():
    task = nfd.datasets.gaussian(50, 7)
    assert (task.samples, task.dimension, task.outputs) == (50, 7, 1)
    np.testing.assert_allclose((task.inputs**2).sum(axis=1), 7, rtol=1e-13)
    assert set(task.targets.ravel().tolist()) == {-1.0, 1.0}
    assert np.any(nfd.datasets.gaussian(50, 7, seed=1).inputs != task.inputs)
