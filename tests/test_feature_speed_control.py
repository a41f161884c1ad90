"""Rates by measured speed: shares of the loss decay, speeds by a second road, and what can go wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfd_jax as nfd

LAYERS = {".layers[*].*": "layer *", ".head": None}


@pytest.fixture(autouse=True)
def loose():
    """optax itself adds integers to floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array


class Network(eqx.Module):
    """Three layers whose gradients differ by orders of magnitude."""

    layers: list[Linear]
    head: jax.Array

    def __init__(self, seed=0, width=5, scales=(0.2, 3.0, 1.0)):
        rng = np.random.default_rng(seed)
        self.layers = [
            Linear(
                jnp.asarray(scale * rng.standard_normal((width, width))), jnp.asarray(rng.standard_normal(width) / 9)
            )
            for scale in scales
        ]
        self.head = jnp.asarray(rng.standard_normal(width))

    def features(self, inputs):
        h, found = inputs, {}
        for number, layer in enumerate(self.layers):
            h = (h if number == 0 else jnp.tanh(h)) @ layer.weight.T + layer.bias[None]
            found[f"layer {number}"] = h
        return found | {"f": h @ self.head}


RNG = np.random.default_rng(1)
X, Y = jnp.asarray(RNG.standard_normal((4, 5))), jnp.asarray(RNG.standard_normal(4))


def loss(model, inputs=X):
    return 0.5 * jnp.mean((model.features(inputs)["f"] - Y) ** 2)


def contributions(gradients, updates):
    """<g, u> by path."""
    both = zip(jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(updates), strict=True)
    return {jax.tree_util.keystr(path): float(jnp.sum(g * u)) for (path, g), u in both}


def of_layers(found, count=3):
    return [found[f".layers[{at}].weight"] + found[f".layers[{at}].bias"] for at in range(count)]


def updated(control, model=None, value=None, inputs=None, gradients=None):
    model = Network() if model is None else model
    gradients = jax.grad(loss)(model) if gradients is None else gradients
    updates, state = control.update(gradients, control.init(model), model, value=value, inputs=inputs)
    return gradients, updates, state


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        (None, [1 / 3, 1 / 3, 1 / 3]),
        ({"layer 0": 1, "layer *": 2.0}, [0.2, 0.4, 0.4]),
        ({"layer 1": 0.0, "*": 5.0}, [0.5, 0, 0.5]),
    ],
)
def test_shares_are_as_asked(shares, expected):
    gradients, updates, state = updated(nfd.feature_speed_control(LAYERS, shares=shares))
    found = contributions(gradients, updates)
    np.testing.assert_allclose(of_layers(found), expected, rtol=1e-12)
    assert found[".head"] == 0
    assert not np.any(updates.head)
    norms = of_layers(contributions(gradients, gradients))
    np.testing.assert_allclose(list(state.norms.values()), norms, rtol=1e-12)
    np.testing.assert_allclose(list(state.rates.values()), np.divide(expected, norms), rtol=1e-12)
    assert max(norms) > 10 * min(norms)


def test_the_loss_falls_by_the_rate():
    """To first order, and by the rate times its excess where a minimum is given."""
    model, rate = Network(), 1e-4
    for minimum, expected in ((None, rate), (0.1, rate * (float(loss(model)) - 0.1))):
        chain = optax.chain(nfd.feature_speed_control(LAYERS, minimum=minimum), optax.scale_by_learning_rate(rate))
        chain = optax.with_extra_args_support(chain)
        gradients, updates, _ = updated(chain, value=loss(model))
        assert -sum(contributions(gradients, updates).values()) == pytest.approx(expected, rel=1e-12)
        fallen = float(loss(model)) - float(loss(optax.apply_updates(model, updates)))
        assert fallen == pytest.approx(expected, rel=0.02)
    _, updates, _ = updated(nfd.feature_speed_control(LAYERS, minimum=1e9), value=loss(model))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))  # below its minimum there is nothing to ask for


def test_equal_shares_of_a_linear_network_in_closed_form():
    """f = w_2 w_1 x: both gradients by hand, and the movement of the hidden number, eta / 2 over its gradient."""
    parameters, x, y = {"first": jnp.array(0.3), "second": jnp.array(-2.0)}, 1.7, 0.4

    def hidden(parameters):
        return parameters["first"] * x

    gradients = jax.grad(lambda p: 0.5 * (p["second"] * hidden(p) - y) ** 2)(parameters)
    control = nfd.feature_speed_control()
    updates, _ = control.update(gradients, control.init(parameters), parameters)
    error = -2.0 * 0.3 * x - y
    assert updates["first"] == pytest.approx(0.5 / (error * -2.0 * x), rel=1e-12)
    assert updates["second"] == pytest.approx(0.5 / (error * 0.3 * x), rel=1e-12)
    assert hidden(updates) == pytest.approx(0.5 / (error * -2.0), rel=1e-12)  # (1/2) / b, as the angle is 0


def test_quadratic_rates_converge():
    """Near the minimum of 1/2 lambda w^2, the rate times its excess is eta / (2 lambda): a constant factor a step."""
    chain = optax.chain(nfd.feature_speed_control(minimum=0.0), optax.scale_by_learning_rate(0.5))
    w = {"w": jnp.array(1.0)}
    state = chain.init(w)
    for _ in range(60):
        updates, state = chain.update({"w": 8 * w["w"]}, state, w, value=4 * w["w"] ** 2)
        w = optax.apply_updates(w, updates)
    assert w["w"] == pytest.approx(0.75**60, rel=1e-10)
    np.testing.assert_allclose(optax.tree.get(state, "rates")["['w']"], 1 / 16, rtol=1e-10)


def test_stacked_layers_are_layers():
    """A stack along a first axis trains as a list of the same arrays."""
    listed = {"layers": [jnp.array([0.1, 2.0]), jnp.array([3.0, -1.0]), jnp.array([0.0, 0.5])], "head": jnp.ones(2)}
    stacked = {"layers": jnp.stack(listed["layers"]), "head": listed["head"]}
    names = {"['layers']*": "block", "['head']": "head"}
    one = nfd.feature_speed_control(names, stacked=["['layers']"], shares={"block": 1, "head": 2})
    several = nfd.feature_speed_control(names | {"['layers']*": "block *"}, shares={"block *": 1, "head": 2})
    found, state = one.update(stacked, one.init(stacked))
    expected, _ = several.update(listed, several.init(listed))
    np.testing.assert_allclose(found["layers"], jnp.stack(expected["layers"]), rtol=1e-12)
    np.testing.assert_allclose(found["head"], expected["head"], rtol=1e-12)
    assert state.rates["block"].shape == (3,)


# ------------------------------------------------------------------ features


def features(model, inputs):
    return {name: each for name, each in model.features(inputs).items() if name != "f"}


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        ({"layer 2": 0.5}, {"layer 2": 0.5}),
        ({"layer 0": 1e-3, "layer 2": 1e3}, {"layer 0": 1e-3}),
        (2.0, {"fastest": 2.0}),
    ],
)
def test_features_move_at_their_speed(speed, expected):
    """By a second road: features after a small step, in float64."""
    rate, model = 1e-6, Network()
    control = nfd.feature_speed_control(LAYERS, features=features, speed=speed, shares={"layer 0": 3, "*": 1})
    gradients, updates, _ = updated(control, model, inputs=X)
    after = optax.apply_updates(model, jax.tree.map(lambda u: -rate * u, updates))
    moved = {
        name: float(np.sqrt(np.mean((each - before) ** 2))) / rate
        for (name, each), before in zip(features(after, X).items(), features(model, X).values(), strict=True)
    }
    moved["fastest"] = max(moved.values())
    for name, value in expected.items():
        assert moved[name] == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(np.divide(*of_layers(contributions(gradients, updates))[:2]), 3, rtol=1e-12)


def test_features_that_are_one_array():
    control = nfd.feature_speed_control(features=lambda p: 3 * p["w"], speed=6.0)
    parameters = {"w": jnp.array([1.0, 1.0])}
    updates, _ = control.update({"w": jnp.array([1.0, -1.0])}, control.init(parameters), parameters)
    np.testing.assert_allclose(updates["w"], [2.0, -2.0], rtol=1e-12)


# ------------------------------------------------------------------ within optax and jax


def train(transformation, steps=7, jit=True, inputs=None, **options):
    """Parameters after training, and rates of the first layer before every step."""
    model = Network(**options)
    transformation = optax.with_extra_args_support(transformation)
    state = transformation.init(model)

    def step(model, state):
        value, gradients = jax.value_and_grad(loss)(model)
        updates, state = transformation.update(gradients, state, model, value=value, inputs=inputs)
        return optax.apply_updates(model, updates), state, updates

    step, rates, lengths = jax.jit(step) if jit else step, [], []
    for _ in range(steps):
        model, state, updates = step(model, state)
        rates.append(float(optax.tree.get(state, "rates")["layer 0"]))
        lengths.append(float(optax.tree.norm(updates)))
    return model, rates, lengths


def test_a_chain_with_clipping_and_a_schedule_jit_or_not():
    schedule = optax.exponential_decay(0.05, 1, 0.5)
    control = nfd.feature_speed_control(LAYERS, minimum=0.0, features=features, every=2)
    chain = optax.chain(control, optax.clip_by_global_norm(0.3), optax.scale_by_learning_rate(schedule))
    model, rates, lengths = train(chain, inputs=X, steps=4)
    other, others, _ = train(chain, inputs=X, steps=4, jit=False)
    np.testing.assert_allclose(rates, others, rtol=1e-9)
    for one, two in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)
    bounds = 0.3 * 0.05 * 0.5 ** np.arange(4)
    assert np.all(lengths <= bounds * (1 + 1e-6))  # optax has schedules in float32
    np.testing.assert_allclose(lengths[0], bounds[0], rtol=1e-6)


def test_rates_change_at_every_kth_step():
    _, rates, _ = train(optax.chain(nfd.feature_speed_control(LAYERS, every=3), optax.scale_by_learning_rate(0.01)))
    changes = np.diff(rates) != 0
    assert changes.tolist() == [False, False, True, False, False, True]


def test_lower_precision_stays():
    parameters = {"w": jnp.array([1e-3, 2e-3], jnp.bfloat16)}
    control = nfd.feature_speed_control()
    updates, state = control.update(parameters, control.init(parameters), parameters)
    assert updates["w"].dtype == jnp.bfloat16
    assert state.rates["['w']"].dtype == jnp.result_type(float)
    np.testing.assert_allclose(np.sum(np.asarray(updates["w"] * parameters["w"], float)), 1, rtol=0.02)


# ------------------------------------------------------------------ what goes wrong


def test_a_dead_layer_is_left_alone():
    """It never divides by zero, the others keep their shares, and nothing moves where all are dead."""
    model = Network()
    dead = eqx.tree_at(
        lambda g: g.layers[1], jax.grad(loss)(model), replace_fn=lambda g: jax.tree.map(jnp.zeros_like, g)
    )
    gradients, updates, state = updated(nfd.feature_speed_control(LAYERS), gradients=dead)
    np.testing.assert_allclose(of_layers(contributions(gradients, updates)), [1 / 3, 0, 1 / 3], rtol=1e-12)
    assert state.rates["layer 1"] == 0
    none = jax.tree.map(jnp.zeros_like, dead)
    for control in (nfd.feature_speed_control(LAYERS), nfd.feature_speed_control(LAYERS, features=features)):
        _, updates, state = updated(control, gradients=none, inputs=X)
        assert all(np.isfinite(leaf).all() and not np.any(leaf) for leaf in jax.tree.leaves((updates, state.rates)))


def test_a_layer_with_hardly_any_gradient_takes_no_huge_step():
    gradients = {"a": jnp.array([1.0]), "b": jnp.array([1e-12])}
    control = nfd.feature_speed_control(spread=100.0)
    updates, state = control.update(gradients, control.init(gradients))
    assert state.rates["['b']"] == pytest.approx(100, rel=1e-9)
    assert updates["a"].item() == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("wrong", ["gradient", "loss"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(wrong):
    model, control = Network(), nfd.feature_speed_control(LAYERS, minimum=0.0, every=2)
    gradients, value = jax.grad(loss)(model), loss(model)
    bad = eqx.tree_at(lambda g: g.layers[2].weight, gradients, replace_fn=lambda g: g.at[0, 0].set(jnp.nan))
    state = control.init(model)
    update = jax.jit(lambda g, state, value: control.update(g, state, model, value=value))
    _, first = update(gradients, state, value)
    broken = (bad, first, value) if wrong == "gradient" else (gradients, first, jnp.inf)
    updates, state = update(*broken)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert {name: int(count) for name, count in state.skipped.items()} == {
        "layer 0": 0,
        "layer 1": 0,
        "layer 2": int(wrong == "gradient"),
    }
    assert int(state.skipped_other) == int(wrong == "loss")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, state.rates, first.rates))
    updates, _ = update(gradients, state, value)
    np.testing.assert_allclose(of_layers(contributions(gradients, updates)), value / 3, rtol=1e-12)


def test_features_whose_movement_is_not_finite():
    parameters = {"w": jnp.array([1.0])}
    control = nfd.feature_speed_control(features=lambda p: jnp.log(p["w"] - 1))
    updates, state = control.update(parameters, control.init(parameters), parameters)
    assert updates["w"].item() == state.rates["['w']"] == 0
    assert (int(state.steps), int(state.skipped_other)) == (0, 1)


CASES = {
    "nothing fits": (
        {"layers": {".blocks[*]": "b", "*": "rest"}},
        {},
        ValueError,
        r"layers: nothing fits '.blocks\[\*\]'",
    ),
    "no layer": ({"layers": {".layers[*].*": "l"}}, {}, ValueError, r"give every parameter a layer.*none for \.head"),
    "all frozen": ({"layers": {"*": None}}, {}, ValueError, "at least one layer that is trained"),
    "no name": ({"layers": {"*": 3}}, {}, TypeError, r"layers\['\*'\] must be a name, or None, got 3"),
    "more stars": ({"layers": {"*": "a * *"}}, {}, ValueError, "no more [*] than its pattern"),
    "no share": (
        {"layers": LAYERS, "shares": {"layer 0": 1}},
        {},
        ValueError,
        "give every layer a share; none for layer 1",
    ),
    "share of none": ({"layers": LAYERS, "shares": {"l": 1, "*": 1}}, {}, ValueError, "shares: nothing fits 'l'"),
    "negative share": ({"layers": LAYERS, "shares": {"*": -1}}, {}, ValueError, r"shares\['\*'\] must be .* got -1"),
    "no shares": ({"layers": LAYERS, "shares": {"*": 0}}, {}, ValueError, "shares must not all be 0"),
    "stack of none": ({"layers": LAYERS, "stacked": ["x"]}, {}, ValueError, "stacked: nothing fits 'x'"),
    "stack as text": ({"layers": LAYERS, "stacked": "x"}, {}, TypeError, r"write \['x'\]"),
    "stacks differ": (
        {"layers": {"*": "all"}, "stacked": [".layers[0].weight"]},
        {},
        ValueError,
        "must all have the same first axis",
    ),
    "every": ({"every": 0}, {}, ValueError, "every must be at least 1, got 0"),
    "spread": ({"spread": 0.5}, {}, ValueError, "spread must be a finite number at least 1"),
    "minimum": ({"minimum": np.nan}, {}, ValueError, "minimum must be a finite number"),
    "no loss": ({"minimum": 0.0}, {}, ValueError, "minimum needs the loss"),
    "not scalar": (
        {"minimum": 0.0},
        {"value": jnp.ones(4)},
        TypeError,
        r"value must be the loss, one real number, got .*\[4\]",
    ),
    "not real": ({}, {"value": jnp.array(1)}, TypeError, "value must be the loss, one real number, got int"),
    "speed of nothing": ({"speed": 2.0}, {}, ValueError, "speed=2.0 is that of features"),
    "no function": ({"features": 3}, {}, TypeError, "features must be a function of parameters, got 3"),
    "no speed": ({"features": features, "speed": 0.0}, {}, ValueError, "speed must be a finite number above 0"),
    "not returned": (
        {"features": features, "speed": {"stream": 1.0}},
        {"inputs": X},
        ValueError,
        "speed names stream, which features does not return; it has layer 0, layer 1, layer 2",
    ),
    "no array": ({"features": lambda p: {"a": 3}}, {}, TypeError, "features must return arrays .* for 'a'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case, plain):
    options, given, error, message = CASES[case]
    with pytest.raises(error, match=message):
        updated(plain.feature_speed_control(**options), **given)


def test_updates_of_another_tree_and_no_parameters():
    control = nfd.feature_speed_control()
    state = control.init({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"of the tree given to init, with layers \['a'\]; got \['b'\]"):
        control.update({"b": jnp.ones(2)}, state)
    moving = nfd.feature_speed_control(features=lambda p: p["a"])
    with pytest.raises(ValueError, match=r"call update\(gradients, state, parameters\)"):
        moving.update({"a": jnp.ones(2)}, state)
    with pytest.raises(ValueError, match="arrays of floating dtype"):
        control.init({"a": 3})
    with pytest.raises(TypeError, match=r"parameters must be real, which \['a'\] are not"):
        control.init({"a": jnp.ones(2, complex)})


# ------------------------------------------------------------------ scales

BALANCE = {
    "scales": {".layers[*].weight": "layer *"},
    "readout": [".head"],
    "output": "f",
    "of": "layer 2",
    "layers": LAYERS,
}


def test_scales_are_balanced():
    """Features are of size 1, and the sensitivity is as asked, also by a small step of the transformation."""
    balanced = nfd.balance_scales(Network(), Network.features, X, Y, speed=0.3, **BALANCE)
    model, rate = balanced.model, 1e-6
    for name, each in features(model, X).items():
        assert np.sqrt(np.mean(each**2)) == pytest.approx(1, rel=3e-3)
        assert balanced.sizes[name] == pytest.approx(1, rel=3e-3)
    _, updates, _ = updated(nfd.feature_speed_control(LAYERS), model)
    after = optax.apply_updates(model, jax.tree.map(lambda u: -rate * u, updates))
    moved = np.sqrt(np.mean((after.features(X)["layer 2"] - model.features(X)["layer 2"]) ** 2))
    assert moved / (loss(model) - loss(after)) == pytest.approx(0.3, rel=3e-3)
    assert balanced.sensitivity == pytest.approx(0.3, rel=2e-3)
    for name in ("head", "layers"):
        before, ours = (jax.tree.leaves(getattr(each, name)) for each in (Network(), model))
        factors = [factor for path, factor in balanced.factors.items() if path.startswith(f".{name}")]
        for one, other, factor in zip(before, ours, factors, strict=True):
            np.testing.assert_allclose(other, factor * one, rtol=1e-12)
    assert balanced.factors[".layers[0].bias"] == 1
    assert "sensitivity |df|_rms / |dloss| of layer 2: 0.3" in str(balanced)


BAD = {
    "no feature": (
        {"scales": {".layers[0].weight": "up"}},
        ValueError,
        r"scales names 'up' \(for .layers\[0\].weight\)",
    ),
    "no weight": ({"scales": {".up": "layer 0"}}, ValueError, "scales: nothing fits '.up'"),
    "no readout": ({"readout": []}, ValueError, "readout must name at least one"),
    "readout": ({"readout": [".out"]}, ValueError, "readout: nothing fits '.out'"),
    "readout as text": ({"readout": ".head"}, TypeError, r"write \['.head'\]"),
    "of": ({"of": "last"}, ValueError, "of must be a feature, got 'last'; features returns layer 0"),
    "output": ({"output": "y"}, ValueError, "output must be a feature, got 'y'"),
    "loss": ({"loss": lambda outputs, targets: outputs}, TypeError, "loss must return one real number"),
    "speed": ({"speed": -1.0}, ValueError, "speed must be a finite number above 0"),
    "layers": ({"layers": {"x": "y"}}, ValueError, "layers: nothing fits 'x'"),
    "another weight": (
        {"scales": {".layers[0].weight": "layer 2"}, "size": 50.0},
        ValueError,
        "the size of feature 'layer 2' is off by a factor of .* name the weights in which it is linear",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_scales_are_named(case, plain):
    changes, error, message = BAD[case]
    with pytest.raises(error, match=message):
        plain.balance_scales(Network(), Network.features, X, Y, **(BALANCE | changes))


def test_features_that_are_not_in_order():
    def backwards(model, inputs):
        return dict(reversed(model.features(inputs).items()))

    with pytest.raises(ValueError, match=r"in the order in which they are computed, .*: layer 1, layer 2 changed"):
        nfd.balance_scales(Network(), backwards, X, Y, **BALANCE)


def test_a_feature_that_is_zero_has_no_scale():
    zero = eqx.tree_at(lambda m: m.layers[0], Network(), replace_fn=lambda layer: jax.tree.map(jnp.zeros_like, layer))
    with pytest.raises(ValueError, match="the size of feature 'layer 0' can't be set"):
        nfd.balance_scales(zero, Network.features, X, Y, **BALANCE)
    silent = eqx.tree_at(lambda m: m.head, Network(), replace_fn=jnp.zeros_like)
    with pytest.raises(ValueError, match=r"the sensitivity of feature 'layer 2' must be positive .*draw \.head not 0"):
        nfd.balance_scales(silent, Network.features, X, Y, **BALANCE)
