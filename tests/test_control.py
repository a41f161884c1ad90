"""The network, the closed form and the measurements of study control, each by a second road."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from cases import slow
from helpers import sampling_bound

import nfd_jax as nfd
from nfd_jax.studies import _frozen_ends as network
from nfd_jax.studies import _study, control

WIDTH, DEPTH = 24, 5
X = jnp.asarray(nfd.datasets.digits(4).inputs)
Y = jnp.asarray(nfd.datasets.digits(4).targets[:, 0])


def streams(hidden, ends, x, branch):
    """Features behind every block, by hand in numpy."""
    h, found = np.asarray(x) @ np.asarray(ends.embed).T, []
    for matrix in np.asarray(hidden):
        h = math.sqrt(1 - branch**2) * h + branch * np.maximum(h, 0) @ matrix.T
        found.append(h)
    return found


@pytest.mark.parametrize("branch", [1.0, 0.4])
def test_balanced_networks(branch):
    """Features of size 1 behind every block, and the outputs of the equation."""
    hidden, ends = network.initial(jax.random.key(0), DEPTH, WIDTH, 64)
    last, outputs = network.forward(hidden, ends, X, branch)
    np.testing.assert_allclose(last, streams(hidden, ends, X, branch)[-1], rtol=1e-10)
    np.testing.assert_allclose(outputs, np.asarray(last) @ np.asarray(ends.readout) / WIDTH, rtol=1e-10)
    assert abs(np.mean(np.square(last)) - 1) > 0.01
    balanced, ends = network.balanced(hidden, ends, X, branch)
    for h in streams(balanced, ends, X, branch):
        assert np.mean(h**2) == pytest.approx(1, rel=1e-10)
    ratios = np.asarray(balanced / hidden)
    np.testing.assert_allclose(ratios, ratios[:, :1, :1] * np.ones_like(ratios), rtol=1e-8)


@pytest.mark.parametrize("equal", [True, False])
def test_sensitivity_by_a_small_step(equal):
    """Under control's rates, 1 / |grad|^2 of every matrix, or one rate for all."""
    hidden, ends = network.initial(jax.random.key(1), DEPTH, WIDTH, 64)

    def loss(hidden):
        return jnp.mean(-Y * network.forward(hidden, ends, X, 1.0)[1])

    gradient = np.asarray(jax.grad(loss)(hidden))
    norms = np.sum(gradient**2, axis=(1, 2), keepdims=True)
    after = hidden - 1e-6 * gradient / (norms * 1e3 if equal else norms.mean() * 1e3)
    moved = network.forward(after, ends, X, 1.0)[0] - network.forward(hidden, ends, X, 1.0)[0]
    expected = float(np.sqrt(np.mean(moved**2)) / (loss(hidden) - loss(after)))
    found = control._sensitivity(hidden, ends, X, -Y, 1.0, equal=equal)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("architecture", "depth"), [slow("mlp", 6), ("resnet", 9)])
def test_the_angle_of_wide_networks(architecture, depth):
    """The closed form, within the sampling error of 64 networks and a correction of the order of L/n."""
    seeds, width = 64, 160
    found = control.measure("start", architecture, depth, width, seeds, "", 0, 0, 0.0, 0.0, 0)
    branch = network.branch_of(architecture, depth)
    logs = np.log(found["table"][1] * control._cosine(architecture, depth))
    assert abs(logs.mean()) < sampling_bound(logs) + depth / width < 0.2
    assert control._cosine("mlp", 64) == pytest.approx((1 + 63 * 127 / 192) ** -0.5, rel=1e-12)
    assert control._cosine("mlp", 1) == 1
    by_pairs = np.mean([[1 + 2 * branch**2 * min(k, j) for k in range(depth)] for j in range(depth)])
    assert control._cosine(architecture, depth) == pytest.approx(by_pairs**-0.5, rel=1e-12)


@pytest.mark.parametrize("rule", ["table", "polyak", "control"])
def test_training_takes_the_part_that_is_asked_for(rule):
    """Of the loss, at a small rate; under the table, twice the rate times sum_l |grad_l|^2 over b^2 L."""
    rate = 1e-4
    arguments = {"samples": 4, "steps": control.APART, "lowest": rate, "ratio": 2.0, "rates": 2, "rule": rule}
    found = control.measure("training", "mlp", DEPTH, WIDTH, 2, **arguments)
    loss, speed = found["loss"][1], found["speed"][1]
    assert loss.shape == (2, 2, control.APART + 1)
    assert speed.shape == (2, 2, 1)
    fallen = (loss[..., :-1] - loss[..., 1:]) / loss[..., :-1]
    if rule == "table":
        hidden, ends = network.initial(nfd.seed_key(1000 * DEPTH), DEPTH, WIDTH, 64)
        gradient = jax.grad(lambda hidden: 0.5 * jnp.mean((network.forward(hidden, ends, X, 1.0)[1] - Y) ** 2))(hidden)
        expected = 2 * rate / DEPTH * float(jnp.sum(gradient**2)) / loss[0, 0, 0] * np.array([1, 2])
        np.testing.assert_allclose(fallen[0, :, 0], expected, rtol=0.01)
    else:
        np.testing.assert_allclose(fallen, rate * np.array([1, 2])[None, :, None] * np.ones_like(fallen), rtol=0.01)
    if rule == "control":  # set to 1 for outputs of 0
        np.testing.assert_allclose(speed, 1, atol=0.3)


def test_rates_are_chosen_and_judged_on_different_seeds():
    """Every other seed finds the second rate best, at which the rest do badly. Their loss is what is reported."""
    steps, choosing, judging = control.APART, np.array([1.0, 0.1, 1.0]), np.array([1.0, 2.0, 0.1])
    losses = np.repeat(np.stack([choosing, judging] * 4)[..., None], steps + 1, axis=2)
    speed = np.repeat(np.stack([choosing, 3 * judging] * 4)[..., None], 1, axis=2)
    axes = ("seed", "rate")
    record = xr.Dataset({"loss": ((*axes, "step"), losses), "speed": ((*axes, "apart"), speed)})
    cell = {"kind": "training", "architecture": "mlp", "rule": "adam", "depth": 3}
    results = _study.Results(replace(control.Sizes(), steps=steps), [(cell, record)])
    judged = control._judged(results, "mlp", "adam", 3)
    np.testing.assert_allclose(np.exp(judged.values), [2.0] * (steps + 1) + [6.0])
    assert judged.freedom == 3
    with pytest.raises(ValueError, match="one half chooses the rate, the other judges it"):
        control.cells(replace(control.Sizes(), train_seeds=3))
    with pytest.raises(ValueError, match="steps of study 'control' must be a multiple of 5, got 7"):
        control.cells(replace(control.Sizes(), steps=7))
