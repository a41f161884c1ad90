"""stable_rate: borders and exponents that are known, networks under standard parametrization, and refusals."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfd_jax as nfd
from nfd_jax.tools import _stability as stability
from nfd_jax.tools._stability import BOUNDED, FINITE, NOTHING, TRAINS, StableRate, WidthRates
from nfd_jax.verdict import Verdict

POWER = -0.75


def build(key, width):
    """One weight of curvature n^(3/4), times a number of its seed: gradient descent is stable below 2 / curvature."""
    scale = jax.random.uniform(key, (), minval=0.9, maxval=1.1)
    return {"w": jnp.ones(()), "curvature": scale * float(width) ** -POWER}, optax.sgd


def features(model, inputs):
    curvature = jax.lax.stop_gradient(model["curvature"])
    return {"f": jnp.sqrt(curvature) * model["w"] * inputs}


ONE, NONE = jnp.ones(1), jnp.zeros(1)
OPTIONS = {"output": "f", "widths": (4, 16, 64), "steps": 40, "seeds": 4, "rates": (1e-4, 1e2), "resolution": 0.02}


def found(package=nfd, **options):
    arguments = {"build": build, "features": features, "inputs": ONE, "targets": NONE} | OPTIONS
    return package.stable_rate(**arguments | options)


@pytest.fixture(scope="module")
def quadratic():
    return found(expected=POWER)


def test_the_border_of_a_quadratic_is_found(quadratic):
    """In every seed: |1 - eta curvature| = 1 there, but for what forty steps leave of the growth beyond."""
    assert quadratic.widths == (4, 16, 64)
    for each in (*quadratic.found, quadratic.tested):
        keys = [jax.random.fold_in(nfd.seed_key(seed), each.width) for seed in range(4)]
        curvatures = np.array([float(build(key, each.width)[0]["curvature"]) for key in keys])
        np.testing.assert_allclose(each.rates[TRAINS], 2 / curvatures, rtol=0.03)
        np.testing.assert_allclose(each.rates[BOUNDED] * curvatures - 1, math.sqrt(10) ** (1 / 40), rtol=0.03)
    assert quadratic.slope.agrees(POWER, 0.02)
    assert quadratic.tested.width == 128
    assert quadratic.verdict is quadratic.prediction is Verdict.SUPPORTED
    assert {each.left for each in quadratic.found} == {("logits",) * 4}


def test_what_is_printed_and_drawn(quadratic, tmp_path):
    text = str(quadratic)
    assert "promised -0.75 ± 0.15: supported" in text
    assert "logits 4/4" in text
    assert "n = 128: predicted" in text
    assert quadratic.plot(tmp_path / "rates.png").stat().st_size > 0


@pytest.mark.parametrize(("rate", "spread", "verdict"), [(-1.0, 0.01, "contradicted"), (-0.5, 3.0, "undecided")])
def test_verdicts(rate, spread, verdict):
    def at(width):
        logs = rate * math.log(width) + spread * np.array([-1.0, 0.0, 1.0])
        return WidthRates(width, {rule: np.exp(logs) for rule in stability.RULES}, (NOTHING,) * 3)

    # seeds side by side would have one slope; widths draw afresh
    widths = [at(8), WidthRates(32, {rule: at(32).rates[rule][::-1] for rule in stability.RULES}, (NOTHING,) * 3)]
    result = StableRate("", tuple(widths), at(64), -0.5, 0.15)
    assert result.verdict == verdict
    assert result.prediction == ("undecided" if spread > 1 else "supported")
    assert StableRate("", tuple(widths), at(64), None, 0.15).verdict is None


def test_dead_units_are_not_stable():
    """A network that gave up has the loss of outputs of 0, below that at the start; a large loss on the way is fine."""
    steps = np.arange(9)
    falls = 2.0 * np.exp(-steps)
    spike = np.where(steps == 1, 1e9, falls)
    dead, lost = np.where(steps > 0, 0.5, 2.0), np.where(steps > 3, np.nan, falls)
    losses = np.stack([falls, spike, dead, lost, dead])[:, None]
    assert np.isinf(stability.settled(lost))
    assert [places.item() for places in stability.brackets(TRAINS, losses, 0.5)] == [1, 2]
    assert [places.item() for places in stability.brackets(BOUNDED, losses, 0.5)] == [0, 1]
    assert [places.item() for places in stability.brackets(FINITE, losses, 0.5)] == [2, 3]
    assert [places.item() for places in stability.brackets(FINITE, losses[:3], 0.5)] == [2, 3]


class Absolute(eqx.Module):
    """Units that can't die, under standard parametrization."""

    layers: list

    def __init__(self, key, width):
        sizes = (8, width, width, 4)
        keys = jax.random.split(key, 3)
        self.layers = [
            jax.random.normal(k, (a, b)) / a**0.5 for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

    def features(self, inputs):
        first = inputs @ self.layers[0]
        last = jnp.abs(first) @ self.layers[1]
        return {"first": first, "last": last, "f": jnp.abs(last) @ self.layers[2]}


def cross_entropy(outputs, targets):
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(outputs), axis=-1))


@pytest.mark.slow
@pytest.mark.optimised
def test_cross_entropy_stays_trainable_beyond_squared_loss():
    """Standard parametrization: the exponents of Haas et al., for a user's own network."""
    draw = np.random.default_rng(0)
    inputs = draw.standard_normal((16, 8))
    inputs = jnp.asarray(inputs * 8**0.5 / np.linalg.norm(inputs, axis=1, keepdims=True))
    targets = jnp.asarray(np.eye(4)[draw.integers(4, size=16)])
    both = {}
    for loss, expected in ((None, -1.0), (cross_entropy, -0.5)):
        both[expected] = found(
            build=lambda key, width: (Absolute(key, width), optax.sgd),
            features=Absolute.features,
            inputs=inputs,
            targets=targets,
            widths=(32, 64, 128),
            steps=60,
            resolution=0.125,
            expected=expected,
            seeds=6,
            **({"loss": loss} if loss else {}),
        )
        assert both[expected].verdict is not Verdict.CONTRADICTED, str(both[expected])
        assert both[expected].slope.agrees(expected, 0.15, confidence=1 - 1e-4)
    squared, entropy = both[-1.0].slope, both[-0.5].slope
    assert squared.value + 0.2 < entropy.value


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rates": (1e-4, 1e-3)}, ValueError, "all beyond the best one are stable in 4 of 4 seeds"),
        ({"rates": (1e3, 1e6)}, ValueError, "all diverge, give a smaller first one"),
        ({"rates": (1.0, 1.0)}, ValueError, "rates must be a stable one and a larger one"),
        ({"rates": 1.0}, TypeError, "rates must be two numbers"),
        ({"rates": (0.0, 1.0)}, ValueError, "rates must be a finite number above 0"),
        ({"widths": (4,)}, ValueError, "widths must be at least 2 different integers"),
        ({"predict": 16}, ValueError, r"predict must be a width that the law is not fitted to, \(4, 16, 64\), got 16"),
        ({"seeds": 1}, ValueError, "seeds must be at least two for an interval, got 1"),
        ({"steps": 3}, ValueError, "steps must be at least 4, got 3"),
        ({"inputs": jnp.array([jnp.nan])}, ValueError, r"inputs must be finite, which inputs\[0\] is not"),
        ({"loss": lambda f, _: jnp.log(-jnp.sum(f**2))}, ValueError, "loss must be finite at the start, and is not at"),
        ({"loss": lambda f, _: f}, TypeError, "loss must return one real number"),
        ({"output": "g"}, ValueError, "output='g' is not what features returns; it has f"),
        ({"features": lambda model, x: model["w"] * x}, TypeError, "features must return a mapping"),
        ({"features": None}, TypeError, "features must be a function, got None"),
        ({"build": lambda key, width: {}}, TypeError, "build must return a model and its optimizer"),
        ({"build": lambda key, width: (build(key, width)[0], float)}, TypeError, "must take a rate to an optax transf"),
        (
            {"build": lambda key, width: (build(key, width)[0], lambda rate: optax.sgd(float(rate)))},
            TypeError,
            "the optimizer of build gets a rate that jax traces, and raises",
        ),
    ],
)
def test_bad_arguments(options, error, message, plain):
    with pytest.raises(error, match=message):
        found(plain, **options)
