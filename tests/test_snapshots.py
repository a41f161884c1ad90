"""What is observed: all steps + 1 states of a run, which does not change by it, with axes that have names."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax.runtime import loop

STEPS, MODEL = 3, nfd.ResNet(4, "tanh")
SOLVERS = {
    "limit": lambda task, **options: nfd.solve_limit(task, MODEL, particles=LEAST, **options),
    "network": lambda task, **options: nfd.solve_network(task, MODEL, width=24, seeds=2, **options),
    "dense": lambda task, **options: nfd.train_networks(task, MODEL, width=8, seeds=2, **options),
}
LEAST = 4 * (1 + 2 * STEPS * 4 + 2 * 4)  # particles that matched noise takes, by hand: 4 (c + 2 K B + 2 B)
ROUNDING = 1e-9  # of sums of numbers of order one, in programs of other shapes


@observables.axes(f=("sample", "output"), h=("layer", "sample"))
def observe(sweep):
    return {"f": sweep.outputs, "h": (sweep.features**2).mean(-1), "updates": sweep.step}


@pytest.mark.parametrize("solver", quick(SOLVERS, "limit", "dense"))
def test_all_states_are_seen(task, solver):
    """Full batches: what is observed has the outputs of every step, the last one too, and does not change the run, even
    with the fewest particles that matched noise takes."""
    run, unseen = (SOLVERS[solver](task, steps=STEPS, observe=each) for each in (observe, None))
    assert run.settings.get("noise") == unseen.settings.get("noise") == ("matched" if solver == "limit" else None)
    np.testing.assert_allclose(run.outputs, unseen.outputs, rtol=0, atol=ROUNDING)
    assert np.all(np.isfinite(run.observed["h"]))
    np.testing.assert_allclose(run.observed["f"], run.outputs, rtol=0, atol=ROUNDING)
    assert np.all(run.observed["updates"] == np.arange(STEPS + 1))
    assert np.abs(run.outputs[..., -1, :, :] - run.outputs[..., -2, :, :]).max() > 1e-3


@pytest.mark.parametrize("replacement", [False, True])
def test_the_last_batch_is_that_of_a_longer_schedule(task, replacement):
    task = task.minibatches(2, replacement=replacement, seed=1)
    run = SOLVERS["dense"](task, steps=STEPS, observe=observe)
    batches = task.batches(STEPS + 1)
    assert not np.array_equal(batches[-1], batches[-2])
    expected = np.stack([run.outputs[:, step][:, batch] for step, batch in enumerate(batches)], axis=1)
    np.testing.assert_allclose(run.observed["f"], expected, rtol=0, atol=ROUNDING)
    assert run.batch_loss.shape == (2, STEPS)


@pytest.mark.parametrize("solver", quick(SOLVERS, "limit", "dense"))
def test_a_longer_run_has_the_same_snapshots(task, solver):
    task = task.minibatches(2, seed=1)
    options = {"observe": observe} | ({"noise": "plain"} if solver == "limit" else {})
    short, long = (SOLVERS[solver](task, steps=steps, **options) for steps in (STEPS, STEPS + 1))
    axis = short.outputs.ndim - 3
    for name, values in short.observed.items():
        assert values.shape[axis] == STEPS + 1
        first = np.take(long.observed[name], range(STEPS + 1), axis=axis)
        np.testing.assert_allclose(values, first, rtol=0, atol=ROUNDING)


# ------------------------------------------------------------------ axes


FUNCTIONS = (
    observables.kernels,
    observables.sizes,
    observables.diversity,
    observables.effective_updates,
    observables.reuse,
)


def everything(sweep):
    return {name: values for function in FUNCTIONS for name, values in function(sweep).items()}


everything.axes = {name: axes for function in FUNCTIONS for name, axes in function.axes.items()}


def test_axes_of_observables(task):
    """Every array has named axes, in datasets too."""
    run = SOLVERS["network"](task, steps=STEPS, observe=everything)
    found = run.to_dataset()
    assert set(run.observed) == set(everything.axes)
    for name, axes in everything.axes.items():
        assert found[name].dims == ("seed", "snapshot", *axes)
    assert found.feature_kernel.dims[2:] == ("layer", "sample", "other_sample")
    assert found.effective_update.dims[2:] == ("matrix", "sample")
    assert found.backward_reuse.dims[2:] == ("block", "direction", "sample")
    np.testing.assert_array_equal(found.snapshot, np.arange(STEPS + 1))
    np.testing.assert_array_equal(found.layer, np.arange(5))
    np.testing.assert_array_equal(found.layer_time, np.arange(5) / 4)


def test_axes_of_sweeps_and_of_minibatches(task):
    """Layer times where all cells have one depth; batches are no samples of the task."""
    options = {"widths": (4, 6), "learning_rates": (0.5,), "seeds": 2, "steps": STEPS, "observe": observe}
    found = nfd.sweep(task, MODEL, **options)
    assert found.f.dims == ("width", "depth", "learning_rate", "seed", "snapshot", "sample", "output")
    assert found.h.dims[-2:] == ("layer", "sample")
    np.testing.assert_array_equal(found.layer_time, np.arange(5) / 4)
    np.testing.assert_array_equal(found.snapshot, np.arange(STEPS + 1))
    batches = SOLVERS["dense"](task.minibatches(2), steps=STEPS, observe=observe).to_dataset()
    assert batches.h.dims == ("seed", "snapshot", "layer", "batch_sample")
    assert (batches.sizes["sample"], batches.sizes["batch_sample"], batches.sizes["update"]) == (4, 2, STEPS)


def test_axes_of_ones_own(task):
    @observables.axes(**observables.kernels.axes, mine=("layer", "moment"))
    def own(sweep):
        moments = jnp.stack([(sweep.features**power).mean((1, 2)) for power in (1, 2, 3)], axis=1)
        return observables.kernels(sweep) | {"mine": moments, "unnamed": moments}

    found = SOLVERS["dense"](task, steps=1, observe=own).to_dataset()
    assert found.mine.dims == ("seed", "snapshot", "layer", "moment")
    assert found.unnamed.dims == ("seed", "snapshot", "unnamed_0", "unnamed_1")
    assert found.feature_kernel.dims[2:] == observables.KERNEL


def test_layers_of_an_mlp_have_no_layer_time(task):
    """Nor have others that are not h_0 to h_L."""
    run = nfd.train_networks(task, nfd.MLP(3), width=4, steps=1, seeds=1, observe=observe)
    assert "layer_time" not in run.to_dataset().coords
    assert run.to_dataset().sizes["layer"] == 3


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ({"f": "sample"}, TypeError, "observe.axes must give distinct names of axes by the name of an array"),
        ({"f": ("sample", "sample")}, TypeError, "observe.axes must give distinct names"),
        ({"f": ("sample", 1)}, TypeError, "observe.axes must give distinct names"),
        (("sample", "output"), TypeError, r"observe.axes must give distinct names .* got \('sample', 'output'\)"),
        ({"f": ("sample", "step")}, ValueError, "observe.axes must be names that no result has already, got step"),
        ({"f": ("sample",)}, ValueError, r"observe.axes gives 'f' the axes \('sample',\), but .* shape \(4, 1\)"),
        ({"f": ("output", "sample")}, ValueError, "axes of one name have one length"),
        ({"f": ("one", "two"), "h": ("one", "three")}, ValueError, "axes of one name have one length"),
        ({"f": ("h", "output")}, ValueError, "observe must return names that no result has already, got h"),
    ],
)
def test_bad_axes_are_refused_before_training(task, monkeypatch, axes, error, message):
    def bad(sweep):
        return {"f": sweep.outputs, "h": (sweep.features**2).mean(-1)}

    bad.axes = axes
    monkeypatch.setattr(loop, "run_chunk", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(error, match=message):
        SOLVERS["dense"](task, steps=1, observe=bad)
