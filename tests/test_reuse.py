"""Study `reuse`: chance is taken off, and the response is shared among the blocks that it comes from."""

import numpy as np
import pytest
from helpers import sampling_bound

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax.analytic import linear_dynamics
from nfd_jax.studies import _responses as module

TASK = nfd.Task(np.array([[1.0, 0.0], [0.3, 0.9]]) * 2**0.5, np.array([[1.0], [-1.0]]))
DEPTH, RATE, STEPS = 4, 0.7, 3


def test_chance_is_taken_off():
    """Squares are those of the mean response, within the error of products of different seeds: (30 x 5000)^-1/2."""
    draw = np.random.default_rng(0)
    mean, noise = 0.1 * draw.standard_normal(5000), draw.standard_normal((6, 5000))
    found = module.squares(mean + noise, noise)
    error = (15 * 5000) ** -0.5
    assert found.values == pytest.approx([np.mean(mean**2), 0], abs=5 * error)
    assert np.all((error / 2 < found.errors) & (found.errors < 3 * error))  # too large, never too small, under chance


def test_coherence_and_signs():
    """Equal blocks, and blocks of independent signs, under chance twice as large as the response."""
    draw = np.random.default_rng(1)
    blocks, seeds = 64, 400
    noise = 2 * draw.standard_normal((seeds, 1, blocks))
    signs = np.where(np.arange(blocks) % 2, 1.0, -1.0)
    signs[:8] = 1.0  # of 64, 28 are negative: the sum is 8
    for response, cohering, share in ((np.ones(blocks), 1.0, 1.0), (signs, 8**2 / blocks**2, 36 / 64)):
        assert module.coherence(response + noise).estimate().agrees(cohering, confidence=0.9999)
        assert module.one_sign(response + noise).values == pytest.approx(share)


def test_profile():
    """Shares of a response of either sign add up to one."""
    law = np.array([0.5, 0.3, 0.2])
    sample = np.array([1.0, -2.0])[:, None]
    noise = 0.1 * np.random.default_rng(2).standard_normal((400, 2, 3))
    found = module.profile(sample * law + noise)
    assert found.values.sum() == pytest.approx(1, rel=1e-12)
    assert all(found.estimate(index).agrees(share, confidence=0.9999) for index, share in enumerate(law.tolist()))


def observe(sweep):
    found = observables.response_gradient(sweep) | observables.signed_response(sweep)
    return found | {"features": sweep.features}


def by_origin(activation, width, seeds):
    """Networks of `TASK`: parts by origin `(seeds, STEPS, P, L, L)`, and forward responses `(seeds, STEPS, L, P)`."""
    model = nfd.ResNet(DEPTH, activation)
    run = nfd.solve_network(
        TASK,
        model,
        width=width,
        steps=STEPS,
        learning_rate=RATE,
        seeds=range(width * 10_000, width * 10_000 + seeds),
        observe=observe,
    ).observed
    parts = [
        [module.by_origin(features[step], features[0], DEPTH**-0.5 * gradients[step], model) for step in range(STEPS)]
        for features, gradients in zip(run["features"], run["response_gradient"], strict=True)
    ]
    return np.array(parts), DEPTH**-0.5 * run["forward_response"][:, :STEPS]


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_parts_add_up(activation):
    """To the response of every block of every network, whose own increment and those above it have no part."""
    parts, responses = by_origin(activation, 24, 2)
    np.testing.assert_allclose(parts.sum(axis=-1).swapaxes(2, 3), responses, rtol=1e-9, atol=1e-13)
    assert np.all(parts[..., *np.triu_indices(DEPTH)] == 0)
    assert np.abs(parts[:, 1:, :, -1, 0]).min() > 1e-6


def expected_parts():
    """The same in the limit, (STEPS, P, L, L), from the recursion of linear networks: how the increment of every block
    follows r_l^j, the Gaussian part of W_l^T g_l^j / sqrt(n), through the equations of the stream."""
    gram, samples = TASK.inputs @ TASK.inputs.T / 2, TASK.samples
    limit = linear_dynamics(gram, TASK.targets[:, 0], DEPTH, 1.0, RATE, STEPS)
    steps_of, step = np.repeat(np.arange(STEPS + 1), samples), 1 / DEPTH
    chi = (limit.outputs - TASK.targets[:, 0]) / samples
    pulse = np.where(steps_of[:, None] == np.arange(STEPS), RATE * chi.reshape(-1, 1), 0)
    earlier = np.arange(STEPS) < steps_of[:, None]
    later = np.arange(STEPS) > steps_of[:, None]
    drift_h = limit.forward_response - earlier * (limit.features[:-1] @ pulse)
    drift_g = limit.backward_response - later.T * (limit.gradients[1:] @ pulse.T)
    found = np.zeros((STEPS, samples, DEPTH, DEPTH))
    for layer in range(DEPTH):
        h, g = np.zeros((DEPTH + 1, len(steps_of), STEPS)), np.zeros((DEPTH + 1, STEPS, STEPS))
        for _ in range(2 * STEPS):  # every pass makes one step final
            for block in reversed(range(DEPTH)):
                source = step**0.5 * np.eye(STEPS) * (block == layer)
                g[block] = g[block + 1] + source + step * drift_g[block] @ h[block]
            for block in range(DEPTH):
                h[block + 1] = h[block] + step * drift_h[block] @ g[block + 1]
        increments = np.diff(h, axis=0)
        for k in range(STEPS):
            for a in range(samples):
                found[k, a, layer] = step**0.5 * increments[:, k * samples + a] @ limit.gradients[layer + 1, :STEPS, k]
    totals = step * np.einsum("lfj,ljk->lfk", limit.forward_response, limit.gradients[1:])
    expected = [[totals[:, k * samples + a, k] for a in range(samples)] for k in range(STEPS)]
    return np.tril(found, -1), np.array(expected)


@pytest.mark.slow
def test_parts_of_linear_networks():
    """Networks of width n and 2n, extrapolated in 1/n, against the exact sensitivities of the limit."""
    expected, totals = expected_parts()
    np.testing.assert_allclose(expected.sum(axis=-1), totals, rtol=1e-9, atol=1e-12)  # two roads to A
    (small, _), (large, _) = by_origin("identity", 64, 512), by_origin("identity", 128, 512)
    mean = 2 * large.mean(axis=0) - small.mean(axis=0)
    bound = 2 * sampling_bound(large) + sampling_bound(small) + 24 / (64 * 128)
    assert np.all(np.abs(mean - expected) < bound)
    assert np.abs(expected).max() > 2 * np.max(bound)
