"""What the studies of large rates measure: gradients and exponents by hand, borders of known position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from helpers import prepare
from test_datasets import write

import nfd_jax as nfd
from nfd_jax import studies
from nfd_jax.studies import _rate_search, _rates, persistence, stability
from nfd_jax.studies._study import Results
from nfd_jax.tools._stability import RULES


@pytest.mark.parametrize("loss", _rates.LOSSES)
def test_quantities(loss):
    """The norm of a sample's gradient by autodiff from a layer on, and what changed in outputs and features."""
    task, model, width = _rates.task(loss, 5), nfd.MLP(2, _rates.he_relu), 16
    options = {"parametrization": "sp", "train_input": True, "train_readout": True, "observe": _rates.quantities}
    dynamics = prepare(task, model, width, learning_rate=0.1, **options).autodiff
    state, inputs, targets = dynamics.init(jax.random.key(0)), jnp.asarray(task.inputs), jnp.asarray(task.targets)
    start = jax.tree.map(jnp.copy, state.network)
    for k in range(2):
        now = state.network
        state, record = jax.jit(dynamics.step)(state, jnp.int32(k), jnp.asarray(0.1), inputs, targets)

    def value(last):
        outputs = _rates.he_relu(last) @ now.readout
        if loss == "mse":
            return 0.5 * jnp.sum((outputs - targets) ** 2)
        return -jnp.sum(targets * jax.nn.log_softmax(outputs))

    (outputs, h), (before, first) = now.features(inputs), start.features(inputs)
    norms = jnp.linalg.norm(jax.grad(value)(h[-1]), axis=1)
    found = record.observed
    np.testing.assert_allclose(found["gradients"][-1], jnp.sqrt(jnp.mean(norms**2)), rtol=1e-12)
    np.testing.assert_allclose(found["logits"], jnp.sqrt(jnp.mean((outputs - before) ** 2)), rtol=1e-10)
    np.testing.assert_allclose(found["features"], jnp.sqrt(jnp.mean((h - first) ** 2, axis=(1, 2))), rtol=1e-10)


def test_exponents_and_borders():
    """Of exact laws; what overflowed counts as much, and NaN as nothing known."""
    widths, at = (8, 32, 128), (0.0, 0.5, 1.0, 1.5)
    powers = 1.2 - np.array(at) * np.ones((4, 1))
    slopes = _rates.exponents(widths, np.array(widths, float)[:, None, None] ** powers)
    np.testing.assert_allclose(slopes, powers, atol=1e-12)
    assert _rates.border(slopes, at).value == pytest.approx(1.2)
    assert _rates.border(slopes + 1, at).value == 1.5
    assert _rates.border(slopes - 2, at).value == 0.0
    assert np.isnan(_rates.border(slopes * np.nan, at).value)
    values = np.array([1.0, np.inf, np.inf])[:, None]
    assert _rates.exponents(widths, values)[0] > 20
    assert np.isnan(_rates.exponents(widths, values * np.nan)).all()
    sticks = _rates.largest(np.array([1.0, 3.0, 2.0, np.nan, 1.0]), axis=0)
    np.testing.assert_array_equal(sticks, [1, 3, 3, np.inf, np.inf])


def test_borders_and_best_rates_of_known_losses():
    """Losses at the end that fall to a parabola's bottom and then diverge beyond 2^3; dead units beyond 2^5."""
    logs = np.arange(-4.0, 8.0)[:, None] + np.array([0.0, 0.25])
    reached = np.where(logs < 3, np.exp(0.1 * (logs - 0.6) ** 2) / 10, np.where(logs > 5, 0.4, np.inf))
    losses = np.concatenate([np.ones((*logs.shape, 1)), np.repeat(reached[..., None], 8, axis=-1)], axis=-1)
    np.testing.assert_allclose(np.log2(_rate_search.border(logs, losses, next(iter(RULES)), 0.5)), [2.5, 2.75])
    np.testing.assert_allclose(np.log2(_rate_search.best(logs, reached)), 0.6)
    assert np.isnan(_rate_search.best(logs, np.exp(-logs))).all()
    assert np.isinf(_rate_search.border(logs[:5], losses[:5], "stays finite", 0.5)).all()


def test_rates_of_mup_at_the_output_of_sp():
    """An abc shift away from muP but for the readout's size."""
    mup, ours = nfd.parametrization.resolve("mup"), stability.MUP_AT_SP
    N, D = nfd.parametrization.N, nfd.parametrization.D
    shifted = mup.shifted(nfd.Role.INPUT, D**0.5).shifted(nfd.Role.HIDDEN, N**0.5).shifted(nfd.Role.READOUT, N)
    for role in (nfd.Role.INPUT, nfd.Role.HIDDEN, nfd.Role.READOUT):
        for name in ("multiplier", "sgd", "adam"):
            assert getattr(ours[role], name).is_close(getattr(shifted[role], name))
    assert ours.initial_output() == nfd.parametrization.resolve("sp").initial_output()


def test_powers_of_the_table():
    """Exponents of the largest rate, from the sizes of updates: features allow one, outputs the other."""
    for (name, optimizer), powers in stability.POWERS.items():
        row = stability.MUP_AT_SP if name == "mup_at_sp" else nfd.parametrization.resolve(name)
        roles = (nfd.Role.INPUT, nfd.Role.HIDDEN, nfd.Role.READOUT)
        stream = max(power.width for power in row.stream_updates(optimizer, roles))
        outputs = max(power.width for power in row.output_updates(optimizer, roles))
        assert powers == (-stream, -max(outputs, stream))


def test_a_search_comes_closer():
    """Borders of every seed, by every rule, and best rates: each between two rates that are nearer with every round."""
    trains, grows, breaks, best = np.array([[3.1, 4.7], [3.9, 6.2], [5.3, 6.3], [0.4, -3.6]])

    def losses(logs):
        end = np.where(logs < trains, 0.1 * np.exp(0.01 * (logs - best) ** 2), np.where(logs < grows, 0.9, 20.0))
        end = np.where(logs < breaks, end, np.inf)
        return np.concatenate([np.ones((*logs.shape, 1)), np.repeat(end[..., None], 8, axis=-1)], axis=-1)

    shares = np.array([0.25, 0.75])
    logs, every = _rate_search.search(losses, -12.0, 24.0, 8, 4, shares, 0.5)
    assert logs.shape == (32, 2)
    assert np.all(np.diff(logs, axis=0) > 0)
    np.testing.assert_array_equal(every, losses(logs))
    for rule, border in zip(RULES, (trains, breaks, grows), strict=True):
        np.testing.assert_allclose(np.log2(_rate_search.border(logs, every, rule, 0.5)), border, atol=3 / 2**4)
    np.testing.assert_allclose(np.log2(_rate_search.best(logs, every[..., -1])), best, atol=1e-6)


def test_a_search_without_a_border():
    """Where all rates are stable, or none, it looks around the best one."""
    logs, places = np.arange(8.0)[:, None] + np.zeros(2), _rate_search.spread(8, np.array([0.25, 0.75]))
    ends = np.stack([0.1 + 0.01 * (logs[:, 0] - 3) ** 2, np.full(8, np.inf)], axis=1)
    losses = np.concatenate([np.ones((8, 2, 1)), np.repeat(ends[..., None], 8, axis=-1)], axis=-1)
    found = _rate_search.closer(logs, losses, 0.5, places)
    assert np.all((found[:, 0] > 2) & (found[:, 0] < 4))
    assert np.all((found[:, 1] > 0) & (found[:, 1] < 1))


def test_error_of_a_resolution():
    """What twice the resolution changes, of the same seeds, widens an interval by three times as much; the slope of
    such changes that of an exponent."""
    sizes = persistence.Sizes(widths=(256, 1024, 4096), seeds=4, resolution=0.1)
    half = sizes.half
    rng = np.random.default_rng(0)
    every = []
    for width in sizes.widths:
        fine = width**0.5 * np.exp(0.1 * rng.standard_normal(4))
        for resolution, values in ((0.1, fine), (0.2, 2 * width**0.25 * fine[:2])):
            cell = {**half, "width": width, "engine": "revealed", "resolution": resolution}
            every.append((cell, xr.Dataset({"image": ("seed", values)})))
    results = Results(sizes, every)
    changes = [persistence._change(results, half, width, "image", persistence._log) for width in sizes.widths]
    np.testing.assert_allclose(changes, np.log(2) + 0.25 * np.log(sizes.widths), rtol=1e-12)
    plain = persistence._curve(results, half, "image", np.mean).law
    law = persistence._law(results, half, "image", np.mean)
    assert law.value == plain.value
    assert law.half_width() == pytest.approx(plain.half_width() + 3 * 0.25)
    between = persistence._between(results, "image", persistence._log)
    assert between.half_width() > 3 * 0.25 * np.log(4)


def test_large_rates_on_cifar10(tmp_path):
    """Files of CIFAR-10's own format, of noise: the search runs on them and finds what is stable."""
    rng = np.random.default_rng(0)
    images = {f"data_batch_{k}": (rng.integers(256, size=(8, 3072), dtype=np.uint8), np.arange(8)) for k in range(1, 6)}
    folder = write(tmp_path / "cifar", images)
    sizes = {"data": [str(folder)], "batches": [4], "rates": 4, "seeds": 2, "steps": 4}
    report = studies.run(studies.STUDIES["stability"], "smoke", folder=tmp_path, sizes=sizes, progress=False)
    assert len(report.results.cells) == 4
    for cell, kept in report.results.cells:
        assert cell["data"] == str(folder)
        assert np.all(kept["largest"] > 0)
    task = stability._task(str(folder), "cross_entropy", 4)
    assert task.dimension == 3072
    np.testing.assert_array_equal(task.labels, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="batches of at most 4 samples"):
        studies.run(studies.STUDIES["stability"], "smoke", folder=tmp_path, sizes={"batches": [8]})
