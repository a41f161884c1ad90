"""Trajectories: outcomes of members, means over those that finished, labelled datasets on disk."""

import json

import numpy as np
import pytest
import xarray as xr

import nfd_jax as nfd
from nfd_jax._errors import Outcome


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
    assert one.summary() == "1 of 1 members finished with finite outputs"


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
    np.testing.assert_array_equal(stored.loss, ensemble.loss)
    np.testing.assert_array_equal(stored.diverged_at, ensemble.diverged_at)
    np.testing.assert_array_equal(stored.seed, ensemble.seeds)
    np.testing.assert_array_equal(stored.step, np.arange(4))
    np.testing.assert_array_equal(stored.targets, ensemble.task.targets)
    assert json.loads(stored.attrs["settings"])["solver"] == "test"
    assert stored.attrs["loss_name"] == "mse"


@pytest.mark.parametrize("solver", [nfd.solve_limit, nfd.solve_network])
def test_dataset_with_observed_arrays_round_trips(solver, task, tmp_path):
    """An observe function sees the states that an update follows; outputs have one more."""

    def observe(sweep):
        return {"first": sweep.features[:, 0, :2], "size": (sweep.gradients**2).mean()}

    size = {"particles": 16} if solver is nfd.solve_limit else {"width": 16, "seeds": 2}
    run = solver(task, nfd.ResNet(2, "tanh"), steps=3, observe=observe, **size)
    stored = round_trip(run.to_dataset(), tmp_path / "run.nc")
    member = ("seed",) if run.ensemble else ()
    leading = (2,) if run.ensemble else ()
    assert run.observed["first"].shape == (*leading, 3, 3, 2)
    np.testing.assert_array_equal(stored["first"], run.observed["first"])
    np.testing.assert_array_equal(stored["size"], run.observed["size"])
    assert stored["size"].dims == (*member, "update")
    np.testing.assert_array_equal(stored["update"], [0, 1, 2])
    np.testing.assert_array_equal(stored.outputs, run.outputs)


def test_public_results_have_the_documented_shapes(task):
    limit = nfd.solve_limit(task, nfd.ResNet(2), steps=3, particles=16)
    assert limit.outputs.shape == (4, 4, 1)
    assert limit.loss.shape == (4,)
    nets = nfd.train_networks(task, nfd.ResNet(2), width=16, steps=3, seeds=[4, 9])
    assert nets.outputs.shape == (2, 4, 4, 1)
    assert nets.loss.shape == (2, 4)
    for run in (limit, nets):
        by_hand = 0.5 * ((run.outputs - task.targets) ** 2).sum(-1).mean(-1)
        np.testing.assert_allclose(run.loss, by_hand, rtol=1e-12)
