"""Feature speed: forward derivatives against finite steps, kernels against Jacobians, closed forms, bad input."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_model import Network

import nfd_jax as nfd
from nfd_jax.dynamics import autodiff
from nfd_jax.studies import _stream, isometry
from nfd_jax.studies._stream import Scales, free_cosine
from nfd_jax.tools.coordinate_check import squared_loss
from nfd_jax.tools.network_speed import step_quantities

RATE = 1e-2
INPUTS, TARGETS = (jax.random.normal(jax.random.key(seed), (3, 4)) for seed in (1, 2))
MODEL = Network(jax.random.key(0), 4, 6, 2, 4, 0.5)
ROUNDING = 1e-12  # relative: some thousand of float64


def features(model, inputs):
    return {name: values for name, values in model.features(inputs).items() if name not in ("up", "down")}


def speed(model=MODEL, function=features, inputs=INPUTS, targets=TARGETS, package=nfd, **options):
    arguments = {"output": "outputs", "optimizer": optax.sgd(RATE)} | options
    return package.feature_speed(model, function, inputs, targets, **arguments)


def cosine(one, other):
    return float(np.sum(one * other) / np.sqrt(np.sum(one**2) * np.sum(other**2)))


@pytest.fixture(scope="module")
def step():
    """Of MODEL: gradients by ordinary autodiff, the two layers' backward passes by the model's own continuation, and
    movements by two finite steps whose errors of second order cancel."""
    parameters, static = eqx.partition(MODEL, eqx.is_inexact_array)

    def loss(parameters):
        return squared_loss(eqx.combine(parameters, static)(INPUTS), TARGETS)

    def rest(stream, blocks):
        for block in blocks:
            stream = stream + MODEL.branch * jax.vmap(block.down)(jnp.tanh(jax.vmap(block.up)(stream)))
        return squared_loss(jax.vmap(MODEL.head)(stream), TARGETS)

    gradients = jax.grad(loss)(parameters)
    before = features(MODEL, INPUTS)

    def moved(scale):
        after = jax.tree.map(lambda w, g: w - scale * g, parameters, gradients)
        found = features(eqx.combine(after, static), INPUTS)
        return {name: found[name] - before[name] for name in found}

    small = 1e-5
    ahead, behind = moved(small), moved(-small)
    speeds = {name: RATE * np.asarray(ahead[name] - behind[name]) / (2 * small) for name in ahead}
    pulls = {
        "embedded": jax.grad(rest)(before["embedded"], MODEL.blocks),
        "stream": jax.grad(rest)(before["stream"], []),
    }
    squares = [RATE * float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves((gradients.embed, gradients.blocks))]
    return speeds, {name: np.asarray(pull) for name, pull in pulls.items()}, moved(RATE), squares


@pytest.mark.parametrize("function", [features, eqx.filter_jit(features)])
def test_a_model_of_ones_own(function, step):
    """Features made under jit are followed too."""
    found = speed(function=function)
    moved, pulls, whole, squares = step
    assert found.names == ("embedded", "stream")
    for place, name in enumerate(found.names):
        size = moved[name].size
        np.testing.assert_allclose(found.speed[place], np.sqrt(np.mean(moved[name] ** 2)), rtol=1e-8)
        np.testing.assert_allclose(found.moved[place], np.sqrt(np.mean(whole[name] ** 2)), rtol=ROUNDING)
        np.testing.assert_allclose(found.backward[place], size**0.5 * np.linalg.norm(pulls[name]), rtol=ROUNDING)
        np.testing.assert_allclose(found.cosine[place], cosine(-pulls[name], moved[name]), rtol=1e-8)
    np.testing.assert_allclose(found.decay, [sum(squares[:2]), sum(squares)], rtol=ROUNDING)
    np.testing.assert_allclose(found.through, found.decay, rtol=ROUNDING)
    np.testing.assert_allclose(found.sensitivity, found.speed / found.loss_decay, rtol=ROUNDING)
    assert abs(found.loss_change / -found.loss_decay - 1) < 0.1
    assert "stream" in str(found)


def test_any_optimizer_and_layers_by_pattern():
    """The formula holds to rounding for what Adam adds, decay included, and by whichever way layers are named."""
    optimizer = optax.adamw(RATE, weight_decay=0.1)
    found = speed(optimizer=optimizer)
    np.testing.assert_allclose(found.through, found.decay, rtol=1e-10)
    layers = {"embedded": ".embed.*", "stream": [".blocks[*].up.*", ".blocks[*].down.*"]}
    named = speed(optimizer=optimizer, layers=layers)
    np.testing.assert_allclose(named.decay, found.decay, rtol=ROUNDING)


def test_a_later_step():
    """Of the optimizer's state: momentum 0.9 moves 1.9 times as far along the same gradient."""
    parameters, static = eqx.partition(MODEL, eqx.is_inexact_array)
    gradients = jax.grad(lambda p: squared_loss(eqx.combine(p, static)(INPUTS), TARGETS))(parameters)
    optimizer = optax.sgd(RATE, momentum=0.9)
    _, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
    first, later = speed(optimizer=optimizer), speed(optimizer=optimizer, state=state)
    np.testing.assert_allclose(later.speed, 1.9 * first.speed, rtol=1e-10)
    np.testing.assert_allclose(later.cosine, first.cosine, rtol=1e-10)


def test_one_neuron_after_the_other():
    """h_v = w_v h_{v-1}, by hand: all cosines are 1, and every layer moves by what the ones before it add up to."""
    weights, x, y = np.array([2.0, -1.5, 0.5]), 1.2, 0.3

    def chain(model, x):
        h, found = x, {}
        for place, w in enumerate(model):
            h = w * h
            found[f"h{place}"] = h
        return found

    found = speed([jnp.array(w) for w in weights], chain, jnp.array([[x]]), jnp.array([[y]]), output="h2")
    h = np.cumprod(weights) * x
    pulls = (h[-1] - y) * h[-1] / h
    gradients = pulls * np.concatenate([[x], h[:-1]])
    moved = [-RATE * sum(gradients[k] * h[v] / weights[k] for k in range(v + 1)) for v in range(2)]
    np.testing.assert_allclose(found.cosine, [1, 1], rtol=ROUNDING)
    np.testing.assert_allclose(found.speed, np.abs(moved), rtol=ROUNDING)
    np.testing.assert_allclose(found.backward, np.abs(pulls[:2]), rtol=ROUNDING)
    np.testing.assert_allclose(found.decay, RATE * np.cumsum(gradients**2)[:2], rtol=ROUNDING)
    np.testing.assert_allclose(found.loss_decay, RATE * np.sum(gradients**2), rtol=ROUNDING)


# ------------------------------------------------------------------ spectra

RATES = {".embed.*": 0.5, ".blocks[1].up.*": 2.0}


@pytest.fixture(scope="module")
def kernel():
    """K of the stream from explicit Jacobians, and the Jacobian from the embedding to it."""
    parameters, static = eqx.partition(MODEL, eqx.is_inexact_array)
    jacobians = jax.jacrev(lambda parameters: features(eqx.combine(parameters, static), INPUTS)["stream"].ravel())(
        parameters
    )
    parts = [
        rate * np.asarray(J).reshape(len(J), -1) @ np.asarray(J).reshape(len(J), -1).T
        for rate, layer in ((0.5, jacobians.embed), (2.0, jacobians.blocks[1].up))
        for J in jax.tree.leaves(layer)
    ]

    def rest(stream):
        for block in MODEL.blocks:
            stream = stream + MODEL.branch * jax.vmap(block.down)(jnp.tanh(jax.vmap(block.up)(stream)))
        return stream.ravel()

    start = features(MODEL, INPUTS)["embedded"]
    return sum(parts), np.asarray(jax.jacrev(rest)(start)).reshape(start.size, start.size)


SPECTRA = {
    "kernel": partial(nfd.feature_spectrum, feature="stream", rates=RATES),
    "jacobian": partial(nfd.jacobian_spectrum, start="embedded", end="stream"),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name, kernel):
    """Exact eigenvalues against a matrix made otherwise; estimates within their stated errors of the exact ones."""
    matrix = kernel[0] if name == "kernel" else kernel[1] @ kernel[1].T
    exact = SPECTRA[name](MODEL, features, INPUTS)
    values = np.linalg.eigvalsh(matrix)[::-1]
    np.testing.assert_allclose(exact.eigenvalues, values, rtol=1e-9, atol=1e-9 * values[0])
    moments = [np.mean(values), np.mean(values**2)]
    np.testing.assert_allclose([m.value for m in exact.moments], moments, rtol=1e-10)
    np.testing.assert_allclose(exact.cosine.value, moments[0] / moments[1] ** 0.5, rtol=1e-10)
    np.testing.assert_allclose(exact.condition, values[0] / values[-1], rtol=1e-6)
    assert exact.exact
    assert exact.cosine.standard_error == 0
    found = SPECTRA[name](MODEL, features, INPUTS, largest=2, leading=3, probes=200)
    assert not found.exact
    assert np.isnan(found.condition)
    for one, other in zip(
        (*found.moments, found.cosine, found.spread), (*exact.moments, exact.cosine, exact.spread), strict=True
    ):
        assert 0 < one.standard_error < abs(other.value)
        assert abs(one.value - other.value) < 5 * one.standard_error + abs(other.value) / 200  # and the bias of a ratio
    variance = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / len(matrix) ** 2  # of one probe's M_1
    np.testing.assert_allclose(found.moments[0].standard_error, (variance / 200) ** 0.5, rtol=0.35)  # 6 % by chance
    gaps = np.abs(found.eigenvalues[:, None] - values).min(axis=1)
    assert np.all(gaps <= found.residuals + 1e-9 * values[0])
    np.testing.assert_allclose(found.eigenvalues, values[:3], rtol=1e-6)


def test_the_kernel_moves_features(kernel):
    """cos(theta) = b^T K b / (|b| |K b|) for SGD at the rates of K, above the least that its condition allows."""

    def update(gradients, parameters):
        def chosen(path, gradient):
            layer = jax.tree_util.keystr(path)
            rate = 0.5 if layer.startswith(".embed") else 2.0 if layer.startswith(".blocks[1].up") else 0.0
            return -rate * gradient

        return jax.tree_util.tree_map_with_path(chosen, gradients)

    optimizer = optax.stateless(update)
    found = speed(optimizer=optimizer)
    pull = np.asarray(
        jax.grad(lambda h: squared_loss(jax.vmap(MODEL.head)(h), TARGETS))(features(MODEL, INPUTS)["stream"])
    )
    np.testing.assert_allclose(found.cosine[1], cosine(pull.ravel(), kernel[0] @ pull.ravel()), rtol=1e-10)
    assert found.cosine[1] > nfd.feature_spectrum(MODEL, features, INPUTS, "stream", rates=RATES).least_cosine


# ------------------------------------------------------------------ networks of this package, and limits

TASK = nfd.datasets.digits(2)
CLASSES = nfd.datasets.digits(3, classes=(0, 1, 2), loss="cross_entropy")
BOTH = {"train_input": True, "train_readout": True}
NETWORKS = {
    "dense": (TASK, nfd.ResNet(2), {"width": 8, **BOTH, "richness": 2.0}),
    "adam": (
        CLASSES,
        nfd.ResNet(2, "tanh", block="inner"),
        {"width": 8, **BOTH, "optimizer": "adam", "learning_rate": 0.02},
    ),
    "ntp": (CLASSES, nfd.MLP(3, "gelu"), {"width": 8, "parametrization": "ntp", **BOTH, "richness": 0.5}),
    "revealed": (
        CLASSES,
        nfd.ResNet(2, "tanh", block="inner"),
        {"width": 16, "engine": "revealed", "parametrization": "sp", **BOTH, "learning_rate": 0.01},
    ),
    "coupled": (TASK, nfd.ResNet(2, "tanh"), {"width": None, "particles": 64}),
    "untied": (TASK, nfd.ResNet(2), {"width": 8, "backward": "untied"}),
    "decoupled": (TASK, nfd.ResNet(2, "tanh"), {"width": None, "particles": 64, "closure": "decoupled"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_limits(name):
    """Two equations in all units: movements through the loss gradients are the decay of the layers, and all layers' are
    the change of the loss. Neither holds where the backward pass is no derivative."""
    task, model, options = NETWORKS[name]
    found = nfd.network_speed(task, model, trained=1, **options)
    rest = np.max(np.abs(found.through - found.decay)[1:] / found.decay[1:])
    change = abs(found.loss_change / found.loss_decay + 1)
    if name in ("untied", "decoupled"):
        assert rest > 0.01
        assert change > 0.01
    else:
        assert rest < 1e-4
        assert change < 1e-4
    np.testing.assert_allclose(found.moved, found.speed, rtol=ROUNDING)


def test_the_small_step_is_the_derivative():
    """Of a dense network, by the transposed backward pass."""
    recipe = nfd.Training(2, [1.0, 0.0].__getitem__, observe=nfd.observables.sizes)
    dynamics, problem = nfd.network_dynamics(TASK, nfd.ResNet(2, "tanh"), recipe, width=8)
    state = dynamics.init(nfd.seed_key(3))
    x, y = problem.batch(0)
    weights = autodiff.trainable(dynamics.settings.trained, state.network)
    after, _ = dynamics.step(state, jnp.int32(0), jnp.asarray(1.0), x, y)
    update = jax.tree.map(lambda a, b: a - b, autodiff.trainable(dynamics.settings.trained, after.network), weights)

    def h(weights):
        return autodiff.with_weights(state.network, weights).features(x)[1]

    value, pull_back = jax.vjp(h, weights)
    (moved,) = jax.linear_transpose(pull_back, value)((update,))
    found = nfd.network_speed(TASK, nfd.ResNet(2, "tanh"), width=8, seed=3, rate=1e-6)
    np.testing.assert_allclose(found.speed[1:], 1e-6 * np.sqrt(np.mean(moved**2, axis=(1, 2)))[1:], rtol=1e-5)


def test_networks_approach_the_limit():
    """Linear blocks before training, for which the angle has a closed form: the limit by particles at once, networks as
    n^-1/2, their bias as 1 / n."""
    task, L = nfd.datasets.digits(1), 3
    b2 = 1 / L
    expected = free_cosine(b2 * (2 + b2) / (1 + b2) ** 2, np.arange(1, L + 1))
    model = nfd.ResNet(L, "identity")
    limit = nfd.network_speed(task, model, width=None, particles=512)
    np.testing.assert_allclose(limit.cosine[1:], expected, atol=0.01)
    for width in (16, 64):
        networks = partial(nfd.network_dynamics, width=width)
        every = [step_quantities(networks, task, model, nfd.Training(), seed=seed) for seed in range(8)]
        cosines, speeds = (np.array([each[name] for each in every]) for name in ("cosine", "speed"))
        assert np.all(np.abs(cosines[:, 1:].mean(axis=0) - expected) < 3 * width**-0.5 / 8**0.5 + 2 / width)
        assert np.all(np.abs(speeds[:, 1:].mean(axis=0) / limit.speed[1:] - 1) < 12 * width**-0.5 / 8**0.5 + 10 / width)


# ------------------------------------------------------------------ the studies' own networks


def test_streams():
    """One sweep along depth finds the angles and moments that the tools find in the same network, layer by layer."""
    depth, width = 3, 5
    scales = Scales.source(0.6)
    key = jax.random.key(4)
    first, last, hidden = jax.random.split(key, 3)
    weights = list(jax.random.normal(hidden, (depth, width, width)) * (2 / width) ** 0.5)
    h0, v = jax.random.normal(first, (1, width)), jax.random.normal(last, (width,))

    def stream(weights, h):
        found = {}
        for place, W in enumerate(weights):
            h = scales.skip * h + scales.branch * jax.nn.relu(h) @ W.T
            found[f"h{place}"] = h
        return found | {"f": jnp.sum(h[0] * v)}

    share = optax.stateless(lambda gradients, _: jax.tree.map(lambda g: -g / jnp.sum(g**2), gradients))
    found = speed(weights, stream, h0, jnp.zeros(()), output="f", optimizer=share, loss=lambda f, y: f)
    cosines, moments = _stream.angles(key, scales, depth, width, True)
    np.testing.assert_allclose(cosines, found.cosine, rtol=1e-10)
    np.testing.assert_allclose(found.decay, np.arange(1, depth + 1), rtol=1e-10)  # equal shares
    gradients = jax.grad(lambda weights: stream(weights, h0)["f"])(weights)
    for place in range(depth):
        rates = {f"[{layer}]": float(1 / jnp.sum(gradients[layer] ** 2)) / depth for layer in range(place + 1)}
        spectrum = nfd.feature_spectrum(weights, stream, h0, f"h{place}", rates=rates)
        np.testing.assert_allclose(moments[place], [each.value for each in spectrum.moments], rtol=1e-10)


def test_the_closed_form():
    """Against kernels multiplied out, with gates drawn afresh in every layer, of a ResNet and an MLP."""
    rng, width, depth = np.random.default_rng(0), 300, 8
    for scales in (Scales.source(1.0), Scales.source(0.4), Scales(1.0, 0.5, 1.0)):
        K, found = np.zeros((width, width)), []
        q = scales.skip**2 + scales.branch**2 * scales.variance / 2
        for layer in range(depth):
            gates = rng.random(width) < 0.5
            W = rng.standard_normal((width, width)) * (scales.variance / width) ** 0.5
            A = scales.skip * np.eye(width) + scales.branch * W * gates
            K = A @ K @ A.T + q**layer * np.eye(width)
            found.append(np.trace(K) / width / np.sqrt(np.sum(K**2) / width))
        np.testing.assert_allclose(found, scales.cosine(np.arange(1, depth + 1)), atol=0.02)  # sd 0.003 at this width
    assert free_cosine(0.0, 9) == 1


def test_orthogonal_layers():
    """Q is orthogonal and of either determinant; linear ones align features at every depth."""
    found = isometry.measure("identity", 3, "orthogonal", width=6, seeds=2)
    np.testing.assert_allclose(found["cosine"][1], 1, rtol=1e-9)
    np.testing.assert_allclose(found["spread"][1], 0, atol=1e-12)
    Q = isometry._orthogonal(jax.random.normal(jax.random.key(0), (20, 6, 6)))
    np.testing.assert_allclose(Q @ Q.swapaxes(1, 2), np.broadcast_to(np.eye(6), Q.shape), atol=1e-12)
    assert set(np.sign(np.linalg.det(Q))) == {-1.0, 1.0}


# ------------------------------------------------------------------ bad input


def without(model, inputs):
    found = features(model, inputs)
    return found | {"stream": found["stream"] + 0.0}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"layers": ["streams"]},
            ValueError,
            "layers names 'streams', which features does not return; it has embedded",
        ),
        ({"layers": {"stream": ".block.*"}}, ValueError, "layers: no parameter takes '.block.*'"),
        ({"layers": "stream"}, TypeError, "layers must be names of features, or map them"),
        ({"layers": []}, ValueError, "layers must name a feature, got none"),
        ({"output": "f"}, ValueError, "output names 'f', which features does not return"),
        ({"loss": lambda f, y: f - y}, TypeError, "loss must return one real number, got"),
        ({"loss": 3}, TypeError, "loss must be a function of outputs and targets, got 3"),
        ({"optimizer": 0.1}, TypeError, "optimizer must be an optax transformation"),
        ({"function": 3}, TypeError, "features must be a function of a model and inputs, got 3"),
        ({"function": lambda model, x: model(x)}, TypeError, "features must return a mapping from names to arrays"),
        (
            {"function": lambda model, x: {"outputs": 1.0}},
            TypeError,
            "features must return arrays of real .* 'outputs'",
        ),
        ({"function": without}, ValueError, "features returns 'stream', but makes nothing of that array"),
        ({"inputs": INPUTS.at[0, 0].set(jnp.nan)}, ValueError, r"inputs must be finite, which inputs\[0, 0\] is not"),
        ({"model": {"a": 1}}, ValueError, "model must hold arrays of inexact dtype"),
        ({"loss": lambda f, y: 0.0 * jnp.sum(f)}, ValueError, "the gradient of the loss is zero in every parameter"),
        ({"optimizer": optax.sgd(1e308)}, ValueError, "feature 'embedded' has a .* that is not finite"),
    ],
)
def test_bad_input(plain, options, error, message):
    with pytest.raises(error, match=message):
        speed(package=plain, **options)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("kernel", {"feature": "h"}, ValueError, "feature names 'h', which features does not return"),
        ("kernel", {"rates": {".head": 1.0}}, ValueError, "rates: no parameter takes '.head'"),
        ("kernel", {"rates": -1.0}, ValueError, "rate of .embed.weight must be a finite number at least 0"),
        ("kernel", {"rates": {".head.*": 1.0}}, ValueError, "the kernel of 'stream' is zero"),
        ("kernel", {"probes": 1}, ValueError, "probes must be at least 2, got 1"),
        (
            "jacobian",
            {"start": "outputs"},
            ValueError,
            "nothing of the array .* 'outputs' enters",
        ),
    ],
)
def test_bad_spectra(name, options, error, message):
    with pytest.raises(error, match=message):
        SPECTRA[name](MODEL, features, INPUTS, **options)


def test_bad_networks():
    with pytest.raises(ValueError, match="must be plain SGD for revealed matrices and limits"):
        nfd.network_speed(TASK, nfd.ResNet(2), width=8, engine="revealed", momentum=0.5)
    with pytest.raises(ValueError, match="rate must be a finite number above 0, got 0"):
        nfd.network_speed(TASK, nfd.ResNet(2), width=8, rate=0)
    with pytest.raises(ValueError, match="is not finite after trained=2 steps; lower learning_rate"):
        nfd.network_speed(TASK, nfd.ResNet(2), width=8, trained=2, learning_rate=1e200)


def test_a_dead_layer_is_named():
    """Nothing is divided by zero: warnings are errors here."""
    dead = eqx.tree_at(lambda model: model.head.weight, MODEL, jnp.zeros((4, 6)))
    found = speed(dead)
    assert found.dead == ("embedded", "stream")
    assert not found.cosine.any()
    assert "dead" in str(found)
    assert np.all(found.sensitivity == 0)
