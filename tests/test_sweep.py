"""Snapshots: the trainer's own numbers in every cell, and nothing trained twice."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

import nfd_jax as nfd
from nfd_jax.dynamics.snapshot import RESERVED
from nfd_jax.parametrization import resolve
from nfd_jax.runtime import store
from nfd_jax.runtime.claims import claim
from nfd_jax.solvers import sweep as sweeps

SWEEP = {"widths": (4, 6), "depths": (2,), "learning_rates": (0.2, 0.8), "seeds": (3, 5, 8), "steps": 2}
# the same operations in another batch of members: sums of a few numbers of order one
ROUNDING = 1e-13


def observe(sweep):
    return {"last": (sweep.features[-1] ** 2).mean(axis=1)}


def run(task, **options):
    return nfd.sweep(task, nfd.ResNet(1, "tanh"), **(SWEEP | {"observe": observe} | options))


def test_cells_are_the_trainers_own_numbers(task):
    held = nfd.datasets.digits(3, split="test")
    task = task.minibatches(2).holding_out(held)
    options = {"optimizer": "adamw", "weight_decay": 0.1, "parametrization": "complete_p", "evaluate_at": (1, 2)}
    found = run(task, schedule=lambda step: 1 / (1 + step), **options)
    sizes = {"width": 2, "depth": 1, "learning_rate": 2, "seed": 3, "update": 2, "snapshot": 3, "last_0": 2}
    assert dict(found.sizes) == sizes | {"step": 2, "held_out_step": 2}
    for width in SWEEP["widths"]:
        for depth in SWEEP["depths"]:
            for rate in SWEEP["learning_rates"]:
                alone = nfd.train_networks(
                    task,
                    nfd.ResNet(depth, "tanh"),
                    width=width,
                    steps=2,
                    learning_rate=lambda step, rate=rate: rate / (1 + step),
                    seeds=SWEEP["seeds"],
                    observe=observe,
                    **options,
                )
                cell = found.sel(width=width, depth=depth, learning_rate=rate)
                for name, expected in (
                    ("loss", alone.loss),
                    ("batch_loss", alone.batch_loss),
                    ("held_out_loss", alone.held_out.loss),
                    ("last", alone.observed["last"]),
                ):
                    np.testing.assert_allclose(cell[name], expected, rtol=0, atol=ROUNDING)
    assert found.step.values.tolist() == found.held_out_step.values.tolist() == [1, 2]


def test_revealed_cells(task):
    found = run(task, widths=(8,), depths=(2,), engine="revealed", parametrization="ntp", observe=None)
    for rate in SWEEP["learning_rates"]:
        alone = nfd.solve_network(
            task,
            nfd.ResNet(2, "tanh"),
            width=8,
            steps=2,
            learning_rate=rate,
            seeds=SWEEP["seeds"],
            parametrization="ntp",
        )
        np.testing.assert_allclose(
            found.loss.sel(width=8, depth=2, learning_rate=rate), alone.loss, rtol=0, atol=ROUNDING
        )


def test_rates_as_an_array():
    assert sweeps._listed("learning_rates", jnp.array([0.5, 1.0])) == sweeps._listed("learning_rates", [0.5, 1.0])


def test_diverged_members_say_when(task):
    found = run(task, learning_rates=(0.1, 1e30), steps=12, widths=(4,), depths=(2,), observe=None)
    at = found.diverged_at.values[0, 0]
    assert np.all(at[0] == -1)
    assert np.all(at[1] > 0)
    assert np.all(np.isfinite(found.loss.values[0, 0, 0]))
    assert found.diverged.dims == ("width", "depth", "learning_rate")
    assert found.diverged.values.tolist() == [[[0, 3]]]


def test_means_over_seeds_are_no_averages_of_survivors(task):
    """At a rate where width 2 is a gamble: the obvious mean is infinite from the first divergence on."""
    held = task.holding_out(nfd.datasets.digits(3, split="test"))
    options = {"learning_rates": (40.0,), "steps": 12, "widths": (2,), "seeds": 24, "observe": None}
    found = nfd.sweep(held, nfd.ResNet(4, "relu"), **options).isel(width=0, depth=0, learning_rate=0)
    at = found.diverged_at.values
    assert 2 <= found.diverged <= 22
    assert found.diverged == np.sum(at >= 0)
    first = at[at >= 0].min()
    for name, axis in (("loss", "step"), ("batch_loss", "update"), ("held_out_loss", "held_out_step")):
        values = found[name].values
        finite = np.isfinite(found[name].mean("seed").values)
        np.testing.assert_array_equal(finite, np.arange(found.sizes[axis]) < first)
        np.testing.assert_array_equal(
            values == np.inf, np.arange(found.sizes[axis]) >= np.where(at < 0, 99, at)[:, None]
        )
    assert np.all(np.isnan(found.accuracy.values[at >= 0, -1]))
    assert np.all(np.isfinite(found.accuracy.values[at < 0]))


class KilledError(Exception):
    """Instead of a signal."""


def test_finished_cells_are_never_run_again(task, tmp_path, monkeypatch):
    whole, train, sizes = run(task), sweeps._train, []

    def counted(plan, cell):
        if len(sizes) == 1:
            raise KilledError
        sizes.append((cell.width, cell.model.depth))
        return train(plan, cell)

    monkeypatch.setattr(sweeps, "_train", counted)
    with pytest.raises(KilledError):
        run(task, folder=tmp_path)
    assert sizes == [(4, 2)]
    sizes.clear()
    found = run(task, folder=tmp_path)
    assert sizes == [(6, 2)]
    assert found.identical(whole)
    assert run(task, folder=tmp_path).identical(whole)  # one cell was run, a second would raise
    with pytest.raises(KilledError):  # one more cell, the others are there
        run(task, folder=tmp_path, widths=(4, 6, 8))
    with pytest.raises(ValueError, match=r"of a run with seeds=\[3, 5, 8\], and seeds=\[3, 5\] was asked"):
        run(task, folder=tmp_path, seeds=(3, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (8, 4), "seeds": (3, 5)}, r"of a run with seeds=\[3, 5, 8\], and seeds=\[3, 5\] was asked"),
        ({"widths": (4, 10**7)}, r"needs about .* GiB, and 1 cpu device\(s\) have"),
        ({"widths": (8, 16), "engine": "revealed", "optimizer": "adam"}, "optimizer 'adam' does not keep the learned"),
    ],
)
def test_what_is_refused_is_refused_before_any_cell_is_trained(task, tmp_path, monkeypatch, options, message):
    """So that the folder has no cell of a refused sweep."""
    run(task, folder=tmp_path, widths=(4,))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sweeps, "_train", lambda plan, cell: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        run(task, folder=tmp_path, **options)
    assert sorted(tmp_path.iterdir()) == before
    run(task, folder=tmp_path, widths=(4,))


def test_a_cell_that_another_process_trains_is_left_to_it(task, tmp_path, monkeypatch):
    """The others are trained meanwhile, and its numbers read at the end."""
    whole, train, sizes, kept = run(task), sweeps._train, [], tmp_path / "kept"
    run(task, folder=kept)
    claimed = next(each for each in kept.iterdir() if "width-4" in each.name)
    monkeypatch.setattr(sweeps, "_train", lambda plan, cell: sizes.append(cell.width) or train(plan, cell))
    with claim(tmp_path / claimed.name) as own:
        assert own
        monkeypatch.setattr(store, "sleep", lambda _: claimed.rename(tmp_path / claimed.name))
        found = run(task, folder=tmp_path)
    assert sizes == [6]
    assert found.identical(whole)


def test_no_result_is_overwritten_by_what_is_observed(task):
    """All names that a dataset has are refused, before anything is trained."""
    held = task.minibatches(2).holding_out(nfd.datasets.digits(3, split="test"))
    options = {"widths": (4,), "depths": (2,), "observe": None}
    single = nfd.train_networks(held, nfd.ResNet(1), width=4, steps=2, seeds=2).to_dataset()
    names = {*run(held, **options).variables, *single.variables, *single.dims}
    assert names <= RESERVED
    for name in ("loss", "seed"):
        for engine_name in ("dense", "revealed"):
            with pytest.raises(ValueError, match=f"observe must return names that no result has already, got {name}"):
                run(task, **options | {"observe": lambda _, name=name: {name: 1.0}, "engine": engine_name})
    with pytest.raises(TypeError, match="observe must return arrays by name, a dict, got"):
        run(task, **options | {"observe": lambda sweep: sweep.features})


@pytest.mark.parametrize("engine_name", ["dense", "revealed"])
def test_all_cells_are_checked_before_any_is_trained(plain, monkeypatch, engine_name):
    """What their observers return, their memory and their rates; by shapes alone."""
    monkeypatch.setattr(
        sys.modules["nfd_jax.solvers.sweep"], "_train", lambda plan, cell: pytest.fail("trained a cell")
    )
    shared = SWEEP | {"engine": engine_name, "widths": (4,), "depths": (1, 2)}
    names = {"observe": lambda sweep: {f"of {len(sweep.features)}": sweep.outputs}}
    for observe in ({"observe": plain.observables.sizes}, names):
        with pytest.raises(ValueError, match="observe must return arrays of one shape in all cells, got"):
            plain.sweep(plain.datasets.digits(2), plain.ResNet(1), **shared | observe)
    for sizes in ({"widths": (4, 2 * 10**9)}, {"depths": (1, 2**31 - 1)}):
        with pytest.raises(ValueError, match="this run needs about"):
            plain.sweep(plain.datasets.digits(2), plain.ResNet(1), **shared | sizes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"widths": range(1, 10**12)}, ValueError, "widths must be at most 1000000 numbers, got more"),
        ({"widths": (4, 10**11)}, ValueError, "widths must be at most 2147483647, got 100000000000"),
        ({"depths": (2, 2**31)}, ValueError, "depth must be at most 2147483647, got 2147483648"),
        ({"seeds": 10**9}, ValueError, "seeds must be at most 1000000, got 1000000000"),
        ({"learning_rates": ["0.1"]}, TypeError, r"learning_rates must be a sequence of numbers, got \['0\.1'\]"),
        (
            {"learning_rates": (0.1, 4.0), "weight_decay": 0.5},
            ValueError,
            r"learning_rates .*=4 at step 0 times",
        ),
        ({"schedule": "0.5"}, TypeError, "schedule must be a real number, got '0.5'"),
        ({"schedule": lambda step: 1 / step}, TypeError, "schedule must be a number, or .* raises ZeroDivisionError"),
        ({"folder": ""}, ValueError, "folder must be the path of a folder, got ''"),
        ({"progress": "no"}, TypeError, "progress must be True or False, got 'no'"),
        ({"betas": (0.9, 0.9)}, ValueError, "betas=.* is Adam's"),
        ({"learning_rates": np.array([[0.1]])}, TypeError, "learning_rates must be a sequence of numbers, got array"),
        ({"observe": "kernels"}, TypeError, "observe must be a function of a Snapshot .*, got 'kernels'"),
        ({"widths": ()}, ValueError, r"widths must be at least one number, all distinct, got \(\)"),
        ({"widths": (4, 0)}, ValueError, "widths must be at least 1, got 0"),
        ({"learning_rates": 0.1}, TypeError, "learning_rates must be a sequence of numbers, got 0.1"),
        ({"learning_rates": (0.1, 0.1)}, ValueError, "learning_rates must be at least one number, all distinct"),
        ({"learning_rates": (-0.1,)}, ValueError, "learning_rates must be a finite number at least 0, got -0.1"),
        ({"depths": (2, 0)}, ValueError, "depth must be at least 1, got 0"),
        ({"engine": "fast"}, ValueError, "unknown engine 'fast'"),
        ({"optimizer": "lion"}, ValueError, "unknown optimizer 'lion'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        (
            {"depths": (1, 2), "widths": (4,), "observe": lambda sweep: {"h": sweep.features[:, 0, 0]}},
            ValueError,
            r"one shape in all cells, got {'h': \(2,\)} at n = 4, L = 1 and {'h': \(3,\)} at n = 4, L = 2; reduce",
        ),
    ],
)
def test_bad_sweeps(plain, options, error, message):
    with pytest.raises(error, match=message):
        plain.sweep(plain.datasets.digits(2), plain.ResNet(1), **(SWEEP | options))


def test_rows_of_ones_own(task):
    row = resolve("depth_mup").shifted(nfd.Role.HIDDEN, nfd.parametrization.N)
    found = run(task, parametrization=row, widths=(4,), depths=(2,))
    plain = run(task, widths=(4,), depths=(2,))
    np.testing.assert_allclose(found.loss, plain.loss, rtol=0, atol=1e-9)
