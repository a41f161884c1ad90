"""Queries that depend on each other, vanish or barely move: right results, and nothing becomes NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from helpers import final_state, input_coordinates, prepare, run

import nfd_jax as nfd
from nfd_jax._checks import Outcome
from nfd_jax.dynamics import initial
from nfd_jax.dynamics.initial import Initial
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.matrices import noise as noises
from nfd_jax.matrices.noise import AbstractNoise, gaussians
from nfd_jax.matrices.revealed import RevealedMatrices
from nfd_jax.matrices.sobol import SobolPoints
from nfd_jax.solvers.trajectory import HeldOut

EPS = float(np.finfo(np.float64).eps)
STEPS, WIDTH, DEPTH = 4, 64, 3
INPUTS = np.array([[1.0, 0.5, -1.0], [1.0, 0.5, -1.0], [0.0, 0.0, 0.0], [-0.3, 1.0, 0.2]])
TARGETS = np.array([1.0, 1.0, 0.7, -1.0])
KINDS = ("tied network", "coupled limit", "decoupled limit")


@functools.cache
def solve(kind, rate, activation="tanh"):
    """Outputs (steps + 1, 4) on two equal samples, a zero one and another."""
    task, model = nfd.Task(INPUTS, TARGETS), nfd.ResNet(DEPTH, activation)
    shared = {"steps": STEPS, "learning_rate": rate}
    first, second = kind.split()
    if second == "limit":
        return nfd.solve_limit(task, model, particles=4 * WIDTH, closure=first, **shared).outputs[..., 0]
    return nfd.solve_network(task, model, width=WIDTH, seeds=1, backward=first, **shared).outputs[0, ..., 0]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_samples_and_a_zero_sample(kind):
    outputs = solve(kind, 0.5)
    assert np.all(np.isfinite(outputs))
    # some thousand roundings: DEPTH blocks and STEPS steps of sums over some twenty directions
    np.testing.assert_allclose(outputs[:, 0], outputs[:, 1], rtol=0, atol=4000 * EPS)
    np.testing.assert_array_equal(outputs[:, 2], 0)  # phi(0) = 0: nothing enters, and nothing moves
    assert np.abs(np.diff(outputs[:, [0, 3]], axis=0)).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_rates_of_zero_and_almost_zero(kind):
    """Nothing moves, or outputs move by the same small amount every step, in proportion to the rate."""
    before, after = solve(kind, 0.0), solve(kind, 1e-6)
    np.testing.assert_allclose(before, np.broadcast_to(before[0], before.shape), rtol=0, atol=4000 * EPS)
    first = after[1] - before[0]
    # small steps repeat: of first order in the rate, up to relative corrections of that order and to rounding
    steps = np.diff(after, axis=0)
    tolerance = 1e-4 * np.abs(first).max() + 4000 * EPS
    np.testing.assert_allclose(steps, np.broadcast_to(first, steps.shape), rtol=0, atol=tolerance)
    assert np.abs(first[[0, 3]]).min() > 1e-8
    twice = solve(kind, 2e-6)
    np.testing.assert_allclose(twice[1] - before[0], 2 * first, rtol=0, atol=tolerance)


def hand_made(layers, task, **options):
    """Outputs before every step of explicit passes over layers made by hand, and what was revealed."""
    problem, explicit, _ = prepare(task, nfd.ResNet(DEPTH, "tanh"), steps=STEPS, **options)
    inputs = input_coordinates(task.inputs)
    state, outputs = final_state(explicit, problem, explicit.start(layers), inputs, task.targets)
    return outputs, state.layers.hidden


@pytest.mark.parametrize("matched", [False, True])
def test_no_step_reveals_nothing_new(matched):
    """At rate zero later queries repeat those of the first step: no rank, and constant outputs."""
    task = nfd.Task(INPUTS, TARGETS)
    layers = Initial(DEPTH, 4 * WIDTH, 2, 1, STEPS, 4, matched=matched).layers(jax.random.key(0))
    outputs, hidden = hand_made(layers, task, learning_rate=0.0)
    np.testing.assert_allclose(outputs, np.broadcast_to(outputs[0], outputs.shape), atol=4000 * EPS)
    # of two equal samples, a zero one and another; backward, g of the zero sample is its own but for V itself
    ranks = np.array([[2, 2, 2], [3, 3, 1]])
    np.testing.assert_array_equal(hidden.ranks, ranks)
    for rank, revealed in zip(ranks, hidden.revealed, strict=True):
        np.testing.assert_array_equal(revealed.counts.values, rank)
        np.testing.assert_array_equal(revealed.steps, np.where(np.arange(STEPS * 4) < rank[:, None], 0, -1))


def test_equal_readout_columns():
    """Two equal outputs with equal targets stay equal, and the last block is queried in one direction only."""
    task = nfd.Task(INPUTS, np.stack([TARGETS, TARGETS], axis=1))
    layers = Initial(DEPTH, WIDTH, 2, 2, STEPS, 4).layers(jax.random.key(1))
    layers = Layers(layers.input, layers.hidden, layers.readout.at[1].set(layers.readout[0]))
    outputs, hidden = hand_made(layers, task)
    assert np.all(np.isfinite(outputs))
    np.testing.assert_allclose(outputs[..., 0], outputs[..., 1], rtol=0, atol=4000 * EPS)
    assert np.abs(np.diff(outputs[:, 0, 0])).min() > 1e-3
    assert hidden.ranks[1, -1] == 1


def test_more_queries_than_particles():
    """Matched noise gives way to plain; the rank of a basis never exceeds n, and outputs stay finite."""
    task = nfd.Task(np.random.default_rng(0).normal(size=(4, 5)), TARGETS)
    with pytest.warns(UserWarning, match="need particles=228, got 8"):
        run = nfd.solve_limit(task, nfd.ResNet(DEPTH, "tanh"), steps=6, particles=8)
    assert run.settings["noise"] == "plain"
    assert np.all(np.isfinite(run.outputs))
    layers = Initial(DEPTH, 8, 4, 1, STEPS, 4).layers(jax.random.key(0))
    _, hidden = hand_made(layers, task)
    for rank, revealed in zip(np.asarray(hidden.ranks), hidden.revealed, strict=True):
        queries = np.asarray(revealed.queries)
        assert rank.max() == 8
        gram = np.einsum("lmn,lmk->lnk", queries, queries) / 8
        full = rank == 8
        # eight orthonormal rows of R^8 resolve the identity
        np.testing.assert_allclose(gram[full], np.broadcast_to(np.eye(8), gram[full].shape), rtol=0, atol=1e-12)


# ------------------------------------------------------------------ small steps in float32


class SharedNoise(AbstractNoise):
    """The same numbers in either precision."""

    key: jax.Array

    def draw(self, direction, layer, step, directions, *, keep):
        single = gaussians(self.key, direction, layer, step, directions.astype(jnp.float32))
        return single.astype(directions.dtype), self


@functools.cache
def in_precision(dtype, rate, targets):
    """Outputs (steps + 1, 2) of one tied network whose weights are float32 numbers, on targets +-`targets`."""
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(3, WIDTH)).astype(np.float32)
    task = nfd.Task(INPUTS[[0, 3]], np.array([targets, -targets]))
    with jax.enable_x64(dtype == np.float64):
        size = {"depth": DEPTH, "width": WIDTH, "capacity": 2 * STEPS}
        noise = SharedNoise(jax.random.key(3))
        hidden = RevealedMatrices.create(noise, **size, coupled=True, dtype=np.dtype(dtype))
        layers = Layers(jnp.asarray(ends[:2], dtype), hidden, jnp.asarray(ends[2:], dtype))
        problem, explicit, _ = prepare(task, nfd.ResNet(DEPTH, "tanh"), steps=STEPS, learning_rate=rate)
        inputs = input_coordinates(task.inputs).astype(np.float32)
        found = run(explicit, problem, explicit.start(layers), inputs, task.targets)
    assert found.outputs.dtype == dtype
    return found.outputs[..., 0].astype(np.float64)


@pytest.mark.parametrize(("rate", "targets"), [(0.5, 1.0), (1e-3, 1.0), (1e-6, 10.0)])
def test_small_steps_in_single_precision(rate, targets):
    """Against the same network in double precision. At a rate of 1e-6 queries move by little more than their rounding,
    and outputs must still move by the right amount.

    Features are sums over three blocks of some twenty rounded terms, off by about four roundings of their length, and
    so are outputs, inner products of independent vectors; five times that is allowed for.
    """
    single, double = in_precision(np.float32, rate, targets), in_precision(np.float64, rate, targets)
    rounding = 20 * float(np.finfo(np.float32).eps) * np.abs(double).max()
    np.testing.assert_allclose(single, double, rtol=0, atol=rounding)
    moved = np.abs(double[-1] - double[0])
    assert moved.min() > 5 * rounding


@pytest.fixture
def single_normals(monkeypatch):
    """Normals are float32 numbers in either precision, so that both solve the same system."""
    uniforms, normals, replace = noises.uniforms, noises.normals, SobolPoints.replace

    def drawn(key, shape, dtype):
        return uniforms(key, shape, jnp.float32).astype(dtype)

    def of(uniforms):
        return normals(uniforms.astype(jnp.float32)).astype(uniforms.dtype)

    def spread(self, vectors, dimensions):
        return replace(self, vectors.astype(jnp.float32), dimensions).astype(vectors.dtype)

    for module in (noises, initial):
        monkeypatch.setattr(module, "uniforms", drawn)
        monkeypatch.setattr(module, "normals", of)
    monkeypatch.setattr(SobolPoints, "replace", spread)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "noise"), [("relu", "matched"), ("tanh", "plain")])
def test_small_rates_keep_the_response_in_single_precision(activation, noise, single_normals):
    """What a step moves is below ten roundings of a query, and reveals nothing: its response has to count all the same.

    With one sample twice. Increments of f, of 4,096 particles: roundings of entries average to about 6e-8 / sqrt(n)
    against a movement of 0.1 eta, 1 % at eta = 1e-6 and 0.1 % at 1e-5, times a few for 16 blocks.
    """
    digits = nfd.datasets.digits(4)
    twice = [0, 1, 2, 3, 0]
    task, model = nfd.Task(digits.inputs[twice], digits.targets[twice]), nfd.ResNet(16, activation)

    def increments(rate, double, closure):
        options = {"steps": 2, "particles": 4096, "noise": noise, "closure": closure, "learning_rate": rate}
        with jax.enable_x64(double):
            outputs = nfd.solve_limit(task, model, **options).outputs[..., 0]
        assert outputs.dtype == (np.float64 if double else np.float32)
        np.testing.assert_allclose(outputs[:, 0], outputs[:, 4], rtol=0, atol=1e-6)
        return np.diff(outputs.astype(np.float64), axis=0)

    def size(gap):
        return np.sqrt(np.mean(gap**2, axis=1))

    for rate in (1e-3, 1e-4, 1e-5, 1e-6):
        single = increments(rate, False, "coupled")
        coupled, decoupled = (increments(rate, True, closure) for closure in ("coupled", "decoupled"))
        error, away = size(single - coupled) / size(coupled), size(single - decoupled) / size(coupled)
        assert np.all(error < (0.01 if rate > 1e-6 else away)), (rate, error, away)


# ------------------------------------------------------------------ numbers that are not finite


def odd(x):
    """Not a number below -3, finite at the samples below but for the third."""
    return jnp.where(x < -3, jnp.nan, x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so_apart_for_training_and_held_out(kind):
    """phi gives NaN on a held-out sample alone, or on a training sample alone."""
    good, bad = np.array([[0.5, 0.1], [-0.2, 0.3]]), np.array([[0.3, 0.2], [30.0, -30.0]])
    first, second = kind.split()

    def run(inputs, held_out):
        task = nfd.Task(inputs, np.ones(2), held_out=nfd.Task(held_out, np.ones(2)))
        shared = {"steps": 2, "learning_rate": 0.1, "evaluate_at": [0, 1]}
        if second == "limit":
            found = nfd.solve_limit(task, nfd.ResNet(2, odd), particles=256, noise="plain", closure=first, **shared)
            return found.loss, found.held_out
        found = nfd.solve_network(task, nfd.ResNet(2, odd), width=64, seeds=1, backward=first, **shared)
        return found.loss[0], HeldOut(found.held_out.outputs[0], found.held_out.loss[0], found.held_out.steps)

    loss, held_out = run(good, bad)
    assert np.all(np.isfinite(loss))
    assert np.isnan(held_out.loss).all()
    assert np.isfinite(held_out.outputs[:, 0]).all()
    assert np.isnan(held_out.outputs[:, 1]).all()
    loss, held_out = run(bad, good)
    assert np.isnan(loss).all()
    assert np.isfinite(held_out.loss[0])
    assert np.isnan(held_out.loss[1])  # weights that one sample has made NaN are so for all


@pytest.mark.parametrize("solve", [nfd.solve_network, slow(nfd.train_networks)])
def test_overflow_is_not_finite(solve):
    """A row of no scale in depth, whose features outgrow float32."""
    task = nfd.datasets.digits(2)
    with jax.enable_x64(False):
        found = solve(task, nfd.ResNet(400), width=256, steps=1, learning_rate=0.0, seeds=1, parametrization="mup")
    assert found.outputs.dtype == np.float32
    assert not np.isfinite(found.loss).any()
    assert found.outcomes[0] is Outcome.DIVERGED
