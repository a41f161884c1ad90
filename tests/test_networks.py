"""Diverging runs: an outcome in the result, never a warning, an exception or a NaN mean."""

from functools import partial

import numpy as np
import optax
import pytest
from cases import slow

import nfd_jax as nfd
from nfd_jax._checks import Outcome
from nfd_jax.dynamics.base import Record
from nfd_jax.runtime import loop


def diverging(solver, task, steps=8, **options):
    return solver(task, nfd.ResNet(4, "relu"), steps=steps, **options)


def test_every_member_diverges(task):
    run = diverging(nfd.train_networks, task, width=16, seeds=3, learning_rate=1e4)
    assert run.outcomes == (Outcome.DIVERGED,) * 3
    assert np.all(run.diverged_at > 0)
    assert np.all(np.isfinite(run.outputs[:, 0]))
    for member, at in enumerate(run.diverged_at):
        finite = np.isfinite(run.outputs[member]).all(axis=(1, 2)) & np.isfinite(run.loss[member])
        assert finite[:at].all()
        assert not finite[at]
    assert "3 of 3 members diverged" in run.summary()
    assert np.all(np.isnan(run.mean()))


def test_limit_that_diverges(task):
    run = diverging(nfd.solve_limit, task, particles=64, noise="plain", learning_rate=1e4)
    assert run.outcomes == (Outcome.DIVERGED,)
    assert "1 of 1 members diverged" in run.summary()
    assert run.to_dataset().diverged_at == run.diverged_at


@pytest.mark.parametrize("solver", ["dense", "adam", "revealed", slow("compressed"), "limit"])
def test_a_run_of_which_nothing_is_left_ends_early(task, solver, monkeypatch):
    """Its numbers are those of all steps: of mini-batches, evaluations and samples held out too."""
    monkeypatch.setattr(loop, "TICK", 1e9)
    batches = nfd.datasets.digits(6).minibatches(2).holding_out(nfd.datasets.digits(3, split="test"))
    options = {"learning_rate": 1e200, "steps": 24}
    if solver == "limit":
        solve = partial(nfd.solve_limit, particles=64, noise="plain")
    else:
        engine = {"dense": "dense", "adam": "dense"}.get(solver, "revealed")
        solve = partial(nfd.train_networks, width=16, seeds=2, engine=engine)
        if solver == "adam":
            options["optimizer"] = "adam"
        elif solver == "compressed":
            options["resolution"] = 0.05
    chunks, run_chunk = [], loop.run_chunk
    monkeypatch.setattr(loop, "run_chunk", lambda *given, **options: chunks.append(1) or run_chunk(*given, **options))
    early = solve(batches, nfd.ResNet(2, "relu"), **options)
    some = len(chunks)
    monkeypatch.setattr(loop, "_nothing_left", lambda *_: None)
    whole = solve(batches, nfd.ResNet(2, "relu"), **options)
    assert some < len(chunks) - some
    assert np.isnan(whole.batch_loss).any()
    for name in ("outputs", "loss", "batch_loss", "diverged_at", "ranks"):
        np.testing.assert_array_equal(getattr(early, name), getattr(whole, name))
    for name in ("outputs", "loss"):
        np.testing.assert_array_equal(getattr(early.held_out, name), getattr(whole.held_out, name))


def test_a_run_goes_on_where_something_may_be_left():
    """Some member is finite, or what is observed is not of the weights that are trained."""
    named = nfd.Optimizer()
    lost = Record(np.full((4, 2, 3, 1), np.nan), np.full((4, 2), np.nan), {})
    assert np.isnan(loop._nothing_left(named, lost, 2).outputs).all()
    assert loop._nothing_left(named, lost._replace(observed={"size": lost.loss}), 3) is None
    for name in ("outputs", "loss"):
        values = getattr(lost, name).copy()
        values[:, 1] = 1.0
        assert loop._nothing_left(named, lost._replace(**{name: values}), 3) is None
    assert loop._nothing_left(nfd.Optimizer.of(optax.identity(), "sgd"), lost, 2) is None


def test_some_members_diverge(task):
    """At a rate where width 2 is a gamble; the mean is over those that finish."""
    run = diverging(nfd.train_networks, task, width=2, seeds=24, learning_rate=40.0, steps=12)
    finished = run.diverged_at < 0
    assert 2 <= finished.sum() <= 22
    assert np.all(np.isfinite(run.mean()))
    np.testing.assert_allclose(run.mean(), run.outputs[finished].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(run.mean("loss"), run.loss[finished].mean(axis=0), rtol=1e-14)
    assert np.all(np.isfinite(run.standard_error()))
    listed = [seed for seed, good in zip(run.seeds, finished, strict=True) if not good]
    assert str(listed) in run.summary()


def test_losses_near_overflow_warn_of_nothing():
    """Every loss is finite, and their sum over members is not."""
    task = nfd.Task(np.ones((1, 2)), np.array([1.2e154]))
    run = nfd.train_networks(task, nfd.ResNet(2), width=4, steps=1, learning_rate=0.0, seeds=4)
    assert np.all(run.diverged_at == -1)
    assert np.all(run.mean("loss") == np.inf)
    assert np.all(np.isfinite(run.standard_error()))


# ------------------------------------------------------------------ rates and the exponent table


def test_schedule_is_evaluated_at_every_step(task):
    """A schedule that stops is a shorter run, then nothing; settings say what was used."""
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.0})
    options = {"width": 16, "steps": 4, "seeds": 2}
    model = nfd.ResNet(4, "tanh")
    stopped = nfd.train_networks(task, model, learning_rate=schedule, **options)
    constant = nfd.train_networks(task, model, learning_rate=0.5, **options)
    assert stopped.settings["learning_rate"] == [0.5, 0.5, 0.0, 0.0]
    np.testing.assert_array_equal(stopped.outputs[:, :3], constant.outputs[:, :3])
    # the last outputs are evaluated by another program than those of a step
    np.testing.assert_allclose(stopped.outputs[:, 3:], stopped.outputs[:, 2:3].repeat(2, 1), rtol=0, atol=1e-14)


def test_the_faster_engine():
    """Networks wide enough for their queries are trained with revealed matrices; both engines have their numbers."""
    task = nfd.datasets.digits(4).minibatches(2)

    def outputs(width, engine):
        return nfd.train_networks(task, nfd.ResNet(2), width=width, steps=2, seeds=2, engine=engine).outputs

    revealed = nfd.solve_network(task, nfd.ResNet(2), width=210, steps=2, seeds=2).outputs
    np.testing.assert_array_equal(outputs(210, "auto"), revealed)
    np.testing.assert_array_equal(outputs(210, "revealed"), revealed)
    np.testing.assert_array_equal(outputs(209, "auto"), outputs(209, "dense"))
    assert np.abs(outputs(210, "dense") - revealed).max() > 1e-3
