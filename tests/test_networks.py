"""Diverging runs: an outcome in the result, never a warning, an exception or a NaN mean."""

import numpy as np
import optax

import nfd_jax as nfd
from nfd_jax._checks import Outcome


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
