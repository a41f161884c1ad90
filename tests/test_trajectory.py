"""Trajectories: outcomes of members, means over those that finished, labelled datasets on disk."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import nfd_jax as nfd
from nfd_jax._checks import Outcome
from nfd_jax.solvers.trajectory import HeldOut


@pytest.fixture
def ensemble(task):
    """Four members, of which the second and the last diverge at steps 1 and 2."""
    outputs = np.random.default_rng(0).normal(size=(4, 4, 4, 1))
    loss = np.random.default_rng(1).uniform(size=(4, 4))
    outputs[1, 1:], loss[3, 2:] = np.nan, np.inf
    return nfd.Trajectory(task, outputs, loss, (5, 6, 7, 8), {"solver": "test", "activation": np.tanh})


def test_outcomes(ensemble):
    assert ensemble.ensemble
    np.testing.assert_array_equal(ensemble.diverged_at, [-1, 1, -1, 2])
    assert ensemble.outcomes == (Outcome.OK, Outcome.DIVERGED, Outcome.OK, Outcome.DIVERGED)
    assert ensemble.summary().startswith("2 of 4 members diverged")
    assert "[6, 8]" in ensemble.summary()
    assert "lower the learning rate" in ensemble.summary()


@pytest.mark.parametrize("name", ["outputs", "loss"])
def test_mean_and_standard_error_leave_out_diverged_members(ensemble, name):
    good = getattr(ensemble, name)[[0, 2]]
    np.testing.assert_allclose(ensemble.mean(name), good.mean(axis=0), rtol=1e-15)
    by_hand = np.abs(good[0] - good[1]) / 2  # two members: |a - b| / sqrt(2) / sqrt(2)
    np.testing.assert_allclose(ensemble.standard_error(name), by_hand, rtol=1e-12)


def test_too_few_members_left(task):
    outputs, loss = np.full((2, 3, 4, 1), np.nan), np.full((2, 3), np.nan)
    lost = nfd.Trajectory(task, outputs, loss, (0, 1), {})
    assert np.all(np.isnan(lost.mean()))
    assert lost.mean().shape == lost.standard_error().shape == (3, 4, 1)
    one = nfd.Trajectory(task, np.zeros((1, 3, 4, 1)), np.zeros((1, 3)), (0,), {})
    assert np.all(one.mean() == 0)
    assert np.all(np.isnan(one.standard_error()))
    assert one.summary() == "1 of 1 members finished with finite outputs; final loss 0"


def test_one_member_has_no_mean(task):
    single = nfd.Trajectory(task, np.zeros((3, 4, 1)), np.zeros(3), (0,), {})
    assert not single.ensemble
    assert single.outcomes == (Outcome.OK,)
    with pytest.raises(ValueError, match="over seeds"):
        single.mean()


def round_trip(dataset, path):
    dataset.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        return stored.load()


def test_dataset_of_an_ensemble_round_trips(ensemble, tmp_path):
    stored = round_trip(ensemble.to_dataset(), tmp_path / "run.nc")
    assert stored.outputs.dims == ("seed", "step", "sample", "output")
    assert stored.loss.dims == ("seed", "step")
    assert stored.targets.dims == ("sample", "output")
    np.testing.assert_array_equal(stored.outputs, ensemble.outputs)
    marked = ensemble.loss.copy()
    marked[1, 1:] = marked[3, 2:] = np.inf
    np.testing.assert_array_equal(stored.loss, marked)
    np.testing.assert_array_equal(stored.diverged_at, ensemble.diverged_at)
    np.testing.assert_array_equal(stored.seed, ensemble.seeds)
    np.testing.assert_array_equal(stored.step, np.arange(4))
    np.testing.assert_array_equal(stored.targets, ensemble.task.targets)
    assert json.loads(stored.attrs["settings"])["solver"] == "test"
    assert stored.attrs["loss_name"] == "mse"


@pytest.mark.parametrize("leading", [(), (2,)])
def test_dataset_with_observed_arrays_round_trips(task, tmp_path, leading):
    """An observe function sees all states, as outputs do."""
    rng = np.random.default_rng(0)
    observed = {"first": rng.normal(size=(*leading, 4, 5, 2)), "size": rng.normal(size=(*leading, 4))}
    outputs, loss = rng.normal(size=(*leading, 4, 4, 1)), rng.normal(size=(*leading, 4))
    run = nfd.Trajectory(task, outputs, loss, (0, 1)[: len(leading) + 1], {}, observed)
    stored = round_trip(run.to_dataset(), tmp_path / "run.nc")
    member = ("seed",) if leading else ()
    assert stored["size"].dims == (*member, "snapshot")
    np.testing.assert_array_equal(stored["snapshot"], [0, 1, 2, 3])
    assert stored["first"].dims == (*member, "snapshot", "first_0", "first_1")
    for name, values in observed.items():
        np.testing.assert_array_equal(stored[name], values)
    np.testing.assert_array_equal(stored.outputs, run.outputs)


# ------------------------------------------------------------------ what diverges, and what has only grown


def finite_run(task, seeds=3, steps=3):
    rng = np.random.default_rng(2)
    outputs, loss = rng.normal(size=(seeds, steps + 1, 4, 1)), rng.uniform(1, 2, size=(seeds, steps + 1))
    held_out = HeldOut(rng.normal(size=(seeds, 2, 3, 1)), rng.uniform(1, 2, size=(seeds, 2)), np.array([1, 3]))
    task = task.holding_out(nfd.datasets.digits(3, split="test"))
    return nfd.Trajectory(task, outputs, loss, tuple(range(seeds)), {}, batch_loss=loss[:, :-1], held_out=held_out)


@pytest.mark.parametrize(("name", "place", "at"), [("outputs", (1, 1, 2, 0), 3), ("loss", (1, 0), 1)])
def test_held_out_numbers_diverge_too(task, name, place, at):
    """At the steps at which they were taken, whatever the training samples do."""
    run = finite_run(task)
    getattr(run.held_out, name)[place] = np.nan
    np.testing.assert_array_equal(run.diverged_at, [-1, at, -1])
    assert run.outcomes == (Outcome.OK, Outcome.DIVERGED, Outcome.OK)
    assert "1 of 3 members diverged" in run.summary()
    assert "means and standard errors are over the 2 others" in run.summary()
    np.testing.assert_array_equal(run.mean("loss"), run.loss[[0, 2]].mean(axis=0))
    dataset = run.to_dataset()
    np.testing.assert_array_equal(dataset.loss == np.inf, (np.arange(4) >= at) & (np.arange(3) == 1)[:, None])
    assert np.isinf(dataset.held_out_loss.mean("seed")[-1])
    assert np.all(np.isfinite(run.loss))  # the trajectory keeps its numbers


def test_held_out_samples_on_which_the_activation_is_not_finite():
    """0 / 0 at a zero input, which no training sample is."""
    inputs = np.ones((2, 3))
    task = nfd.Task(inputs, np.array([1.0, -1.0])).holding_out(nfd.Task(np.zeros((1, 3)), np.ones(1)))
    model = nfd.ResNet(2, lambda x: jnp.tanh(x) / jnp.abs(x))
    run = nfd.train_networks(task, model, width=8, steps=2, seeds=2, learning_rate=0.1)
    assert np.all(np.isfinite(run.outputs))
    assert run.outcomes == (Outcome.DIVERGED,) * 2
    np.testing.assert_array_equal(run.diverged_at, [0, 0])


@pytest.mark.parametrize("name", ["loss", "batch_loss", "held_out"])
def test_a_loss_of_a_million_times_the_initial_one_has_grown(task, name):
    run = finite_run(task)
    values = run.held_out.loss if name == "held_out" else getattr(run, name)
    values[1, 1], values[2, 1] = 1.01e6 * run.loss[1, 0], 0.99e6 * run.loss[2, 0]
    np.testing.assert_array_equal(run.grown, [False, True, False])
    assert run.outcomes == (Outcome.OK,) * 3
    assert "1 of 3 grown: loss above 1e+06 times the initial one (seeds [1])" in run.summary()
    assert run.to_dataset().grown.values.tolist() == [False, True, False]
    run.outputs[1, -1] = np.nan
    assert not run.grown.any()  # it has diverged
    assert "grown" not in run.summary()


def test_how_a_run_prints(ensemble, task):
    assert str(ensemble).startswith("Trajectory(outputs (4, 4, 4, 1); 2 of 4 members diverged")
    mean, error = ensemble.mean("loss")[-1], ensemble.standard_error("loss")[-1]
    assert f"means and standard errors are over the 2 others; final loss {mean:.5g} ± {error:.2g})" in str(ensemble)
    lost = nfd.Trajectory(task, np.full((2, 3, 4, 1), np.nan), np.full((2, 3), np.nan), (0, 1), {})
    assert "nan" not in str(lost)
    assert "others" not in str(lost)


# ------------------------------------------------------------------ accuracies and means by name


def test_accuracies(task):
    run = finite_run(task)
    signs = np.sign(run.outputs[..., 0]) == np.sign(task.targets[:, 0])
    np.testing.assert_array_equal(run.accuracy, signs.mean(axis=-1))
    right = np.sign(run.held_out.outputs[..., 0]) == np.sign(run.task.held_out.targets[:, 0])
    np.testing.assert_array_equal(run.held_out_accuracy, right.mean(axis=-1))
    dataset = run.to_dataset()
    assert dataset.accuracy.dims == ("seed", "step")
    np.testing.assert_array_equal(dataset.held_out_accuracy, run.held_out_accuracy)
    np.testing.assert_array_equal(run.mean("held_out_accuracy"), run.held_out_accuracy.mean(axis=0))
    run.outputs[1, 2, 0] = np.nan
    assert np.isnan(run.accuracy[1, 2])
    assert np.isfinite(run.accuracy).sum() == run.accuracy.size - 1


@pytest.mark.parametrize("name", ["outputs", "loss"])
def test_means_of_held_out_numbers(task, name):
    run = finite_run(task)
    run.outputs[1, 2] = np.inf
    good = getattr(run.held_out, name)[[0, 2]]
    np.testing.assert_array_equal(run.mean(f"held_out_{name}"), good.mean(axis=0))
    np.testing.assert_allclose(run.standard_error(f"held_out_{name}"), good.std(axis=0, ddof=1) / 2**0.5, rtol=1e-12)


def test_other_names_are_refused(ensemble):
    with pytest.raises(ValueError, match="unknown name 'seeds'; choose one of 'outputs', 'loss', 'batch_loss', 'accur"):
        ensemble.mean("seeds")
    with pytest.raises(ValueError, match=r"no held_out_loss in this trajectory: give the task some, task.holding_out"):
        ensemble.mean("held_out_loss")
    with pytest.raises(ValueError, match="no batch_loss in this trajectory"):
        ensemble.standard_error("batch_loss")
    task = nfd.Task(np.ones((2, 1)), np.array([0.5, 1.0]))
    run = nfd.Trajectory(task, np.zeros((2, 3, 2, 1)), np.zeros((2, 3)), (0, 1), {})
    with pytest.raises(ValueError, match="this task has no classes, so that there is no accuracy: one output needs"):
        run.mean("accuracy")
    assert "accuracy" not in run.to_dataset()
