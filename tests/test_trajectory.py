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


@pytest.mark.parametrize("leading", [(), (2,)])
def test_dataset_with_observed_arrays_round_trips(task, tmp_path, leading):
    """An observe function sees the states that an update follows; outputs have one more."""
    rng = np.random.default_rng(0)
    observed = {"first": rng.normal(size=(*leading, 3, 5, 2)), "size": rng.normal(size=(*leading, 3))}
    outputs, loss = rng.normal(size=(*leading, 4, 4, 1)), rng.normal(size=(*leading, 4))
    run = nfd.Trajectory(task, outputs, loss, (0, 1)[: len(leading) + 1], {}, observed)
    stored = round_trip(run.to_dataset(), tmp_path / "run.nc")
    member = ("seed",) if leading else ()
    assert stored["size"].dims == (*member, "update")
    np.testing.assert_array_equal(stored["update"], [0, 1, 2])
    for name, values in observed.items():
        np.testing.assert_array_equal(stored[name], values)
    np.testing.assert_array_equal(stored.outputs, run.outputs)
