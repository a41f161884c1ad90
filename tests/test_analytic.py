"""The oracles themselves, against hand computation, adaptive integration and dense networks."""

import ast
import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick, slow
from scipy.integrate import dblquad
from scipy.special import ndtr
from scipy.stats import t as student

import nfd_jax as nfd
from nfd_jax import analytic, parametrization
from nfd_jax.analytic import (
    gaussian_kernels,
    gaussian_means,
    initial_kernels,
    linear_dynamics,
    linear_outputs,
    tangent_kernel,
    tangent_kernels,
)
from nfd_jax.dynamics.autodiff import with_weights
from nfd_jax.dynamics.module import Shape, create_network

ACTIVATIONS = {
    "identity": (lambda x: x, lambda x: np.ones_like(x)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
    "abs": (np.abs, np.sign),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "gelu": (lambda x: x * ndtr(x), lambda x: ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
}
GRAM = np.array([[1.0, 0.3, 0.2], [0.3, 1.2, -0.4], [0.2, -0.4, 0.8]])
TARGETS = np.array([1.0, -1.0, 0.5])
CLOSURES = ("coupled", "decoupled")


def test_stands_apart_from_the_package():
    nodes = [
        node for path in Path(analytic.__file__).parent.glob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ]
    modules = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    roots = {module.split(".")[0] for module in modules if not module.startswith("nfd_jax.analytic.")}
    assert roots == {"math", "collections", "dataclasses", "typing", "numpy", "scipy"}


# ------------------------------------------------------------------ statistics and dense networks


def assert_mean(small, large, expected, remainder):
    """The mean over members, extrapolated from width n to infinity by 2 m(2n) - m(n), is `expected`.

    Within the standard error at a false-alarm rate below 1e-5 for the whole array, plus `remainder`, a
    bound on what is left at order 1 / (n * 2n).
    """
    estimate = 2 * large.mean(0) - small.mean(0)
    error = np.sqrt(4 * large.var(0, ddof=1) / len(large) + small.var(0, ddof=1) / len(small))
    quantile = student.isf(0.5e-5 / estimate.size, min(len(small), len(large)) - 1)
    np.testing.assert_array_less(np.abs(estimate - expected), quantile * error + remainder)


def draw_ends(rng, members, width, gram):
    """h_0 (members, n, P) with Gram matrix exactly `gram`, and V (members, n, 1) orthogonal to it."""
    basis = np.linalg.qr(rng.normal(size=(members, width, len(gram) + 1)))[0] * math.sqrt(width)
    return basis[..., :-1] @ np.linalg.cholesky(gram).T, basis[..., -1:]


def train_dense(rng, members, width, gram, targets, depth, eta, steps, tied):
    """Theory section 2 with dense matrices, T = 1: outputs (members, steps + 1, P), and the overlap
    <g_l, W_l^0 h_{l-1}> / sqrt(n) of the last trained step and first sample, (members, L)."""
    h0, readout = draw_ends(rng, members, width, gram)
    scale = 1 / math.sqrt(depth * width)
    forward = [rng.normal(size=(members, width, width)) for _ in range(depth)]
    backward = forward if tied else [rng.normal(size=(members, width, width)) for _ in range(depth)]
    start = list(forward)
    backward = list(backward)
    outputs, overlap = np.empty((members, steps + 1, len(targets))), np.empty((members, depth))
    for k in range(steps + 1):
        h, g = [h0], [readout]
        for weight in forward:
            h.append(h[-1] + scale * weight @ h[-1])
        outputs[:, k] = (readout.transpose(0, 2, 1) @ h[-1])[:, 0] / width
        if k == steps:
            return outputs, overlap
        for weight in reversed(backward):
            g.insert(0, g[0] + scale * weight.transpose(0, 2, 1) @ g[0])
        chi = (outputs[:, k] - targets) / len(targets)
        for block in range(depth):
            overlap[:, block] = ((start[block] @ h[block][..., :1]) * g[block + 1]).sum((1, 2)) / width**1.5
            update = eta * scale * g[block + 1] * (h[block] @ chi[..., None]).transpose(0, 2, 1)
            forward[block] = forward[block] - update
            backward[block] = forward[block] if tied else backward[block] - update
    raise AssertionError("unreachable")


CASES = {  # gram, targets, depth, eta, steps
    "two blocks": (np.eye(1), np.ones(1), 2, 0.8, 5),
    "eight blocks": (np.eye(1), np.ones(1), 8, 0.5, 4),
    "three samples": (GRAM, TARGETS, 4, 1.0, 4),
}

# What extrapolation leaves is c / (n * 2n); the largest c resolved with many more members is 19 +- 5.
REMAINDER = 24 / (48 * 96)


@functools.cache
def ensemble(name, width, members, tied):
    """Outputs and overlaps of `members` dense networks, drawn 32 at a time."""
    gram, targets, depth, eta, steps = CASES[name]
    rng = np.random.default_rng(width)
    parts = [train_dense(rng, 32, width, gram, targets, depth, eta, steps, tied) for _ in range(members // 32)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


# ------------------------------------------------------------------ Gaussian expectations


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("correlation", [0.6, -0.95])
def test_gaussian_kernels_by_adaptive_integration(activation, correlation):
    """Polar coordinates, so that the kinks of relu and abs lie on rays and split the angle exactly."""
    spread, angle = np.array([0.9, 1.6]), math.acos(correlation)
    covariance = np.outer(spread, spread) * np.array([[1, correlation], [correlation, 1]])
    kernels = gaussian_kernels(activation, covariance)
    kinks = sorted((turn + offset) % (2 * math.pi) for turn in (0, angle) for offset in (math.pi / 2, -math.pi / 2))
    corners = [kinks[-1] - 2 * math.pi, *kinks]
    for function, kernel in zip(ACTIVATIONS[activation], kernels, strict=True):

        def density(radius, theta, function=function):
            u, v = spread[0] * radius * math.cos(theta), spread[1] * radius * math.cos(theta - angle)
            return function(u) * function(v) * radius * math.exp(-(radius**2) / 2) / (2 * math.pi)

        pieces = itertools.pairwise(corners)
        total = sum(dblquad(density, a, b, 0, 9, epsabs=1e-9, epsrel=1e-9)[0] for a, b in pieces)
        assert kernel[0, 1] == pytest.approx(total, abs=1e-8)
        assert kernel[1, 0] == kernel[0, 1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gaussian_kernels_of_singular_covariances(activation):
    """Equal, opposite and vanishing samples: one-dimensional expectations on a fine grid."""
    phi, slope = ACTIVATIONS[activation]
    z = np.arange(-10, 10, 1e-3) + 5e-4
    weight = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * 1e-3
    x = 1.3 * z
    covariance = 1.69 * np.array([[1.0, 1, -1, 0], [1, 1, -1, 0], [-1, -1, 1, 0], [0, 0, 0, 0]])
    for function, kernel in zip((phi, slope), gaussian_kernels(activation, covariance), strict=True):
        samples = np.stack([function(x), function(x), function(-x), function(np.zeros_like(x))])
        np.testing.assert_allclose(kernel, (weight * samples) @ samples.T, rtol=0, atol=3e-7)
        assert kernel[0, 0] == kernel[0, 1] == kernel[1, 1]


def test_proportional_samples_keep_full_accuracy():
    """Their correlation is 1 up to rounding, and 1e-16 there must not become 1e-8 in the derivative."""
    rng = np.random.default_rng(0)
    samples = np.outer(rng.uniform(0.1, 10, size=20), rng.normal(size=5))
    _, slopes = gaussian_kernels("relu", samples @ samples.T)
    np.testing.assert_allclose(slopes, 0.5, rtol=0, atol=1e-14)


@pytest.mark.parametrize("variance", [0.04, 4.0, 25.0])
def test_quadrature_is_accurate_at_any_variance(variance):
    """E[gelu(u)^2] = E[u^2 ndtr(u)^2] in closed form, by integrating by parts twice."""
    value = gaussian_kernels("gelu", [[variance]])[0].item()
    root = math.sqrt(1 + 2 * variance)
    expected = variance / math.pi * (math.atan(root) + variance / ((1 + variance) * root))
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "gelu", "identity"])
def test_activations_as_functions(activation, given):
    """With their derivative, or with differences in its place."""
    phi, slope = ACTIVATIONS[activation]
    expected = gaussian_kernels(activation, GRAM)
    found = gaussian_kernels(phi, GRAM, slope if given else None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14 if given else 1e-12)
    np.testing.assert_allclose(
        gaussian_means(phi, np.diag(GRAM)), gaussian_means(activation, np.diag(GRAM)), atol=1e-14
    )


def test_derivatives_of_a_function_by_another_road():
    """Price's theorem: E[phi'(u) phi'(v)] is the derivative of E[phi(u) phi(v)] in the covariance of u and v."""

    def softplus(x):
        return np.logaddexp(0, x)

    step = 1e-3
    up, down = (gaussian_kernels(softplus, [[1.0, 0.4 + h], [0.4 + h, 0.8]])[0][0, 1] for h in (step, -step))
    slopes = gaussian_kernels(softplus, [[1.0, 0.4], [0.4, 0.8]])[1]
    assert slopes[0, 1] == pytest.approx((up - down) / (2 * step), abs=step**2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gaussian_means(activation):
    phi, _ = ACTIVATIONS[activation]
    z = np.arange(-10, 10, 1e-3) + 5e-4
    weight = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * 1e-3
    expected = [weight @ phi(spread * z) for spread in (0.0, 0.5, 1.7)]
    np.testing.assert_allclose(gaussian_means(activation, [0.0, 0.25, 1.7**2]), expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: np.maximum(x, 0), "slope must be finite and smooth.*'relu' and 'abs' have closed forms"),
        (np.sign, "activation must be finite and smooth"),
        (lambda x: np.log(np.abs(x) - 20), "activation must be finite"),
        (np.sum, "activation must act elementwise"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_functions_that_the_grid_can_not_integrate(function, message):
    with pytest.raises(ValueError, match=message):
        gaussian_kernels(function, GRAM)


# ------------------------------------------------------------------ before training


@pytest.mark.parametrize("activation", ["relu", "abs", "tanh", "gelu"])
def test_initial_kernels_of_dense_networks(activation):
    depth, horizon, gram = 4, 1.5, GRAM[:2, :2]
    phi, slope = ACTIVATIONS[activation]
    measured = {}
    for width, members in ((48, 768), (96, 384)):
        rng = np.random.default_rng(width)
        h0, g = draw_ends(rng, members, width, gram)
        g = np.repeat(g, len(gram), axis=2)
        h, scale = [h0], math.sqrt(horizon / depth / width)
        weights = [rng.normal(size=(members, width, width)) for _ in range(depth)]
        for weight in weights:
            h.append(h[-1] + scale * weight @ phi(h[-1]))
        tangent = np.zeros((members, 2, 2))
        for x, weight in zip(reversed(h[:-1]), reversed(weights), strict=True):
            active = phi(x).transpose(0, 2, 1) @ phi(x) / width
            tangent += horizon / depth * active * (g.transpose(0, 2, 1) @ g) / width
            g = g + scale * slope(x) * (weight.transpose(0, 2, 1) @ g)
        ends = [h[-1].transpose(0, 2, 1) @ h[-1] / width, g.transpose(0, 2, 1) @ g / width, tangent]
        measured[width] = np.stack(ends, axis=1)
    kernels = initial_kernels(activation, gram, depth, horizon)
    expected = np.stack([kernels.features[-1], kernels.gradients[0], kernels.tangent])
    assert_mean(measured[48], measured[96], expected, 0.0)


def test_initial_kernels_of_two_blocks_written_out():
    step = 0.75
    phi0, slope0 = gaussian_kernels("tanh", GRAM)
    phi1, slope1 = gaussian_kernels("tanh", GRAM + step * phi0)
    kernels = initial_kernels("tanh", GRAM, 2, 2 * step)
    np.testing.assert_allclose(kernels.features[2], GRAM + step * phi0 + step * phi1, rtol=1e-14)
    np.testing.assert_allclose(kernels.gradients[0], (1 + step * slope1) * (1 + step * slope0), rtol=1e-14)
    np.testing.assert_allclose(kernels.tangent, step * (phi0 * (1 + step * slope1) + phi1), rtol=1e-14)
    np.testing.assert_array_equal(kernels.times, [0, 0.5, 1])


@pytest.mark.parametrize("horizon", [0.25, 1.0, 2.0])
def test_linear_kernels_are_exponentials(horizon):
    kernels = initial_kernels("identity", GRAM, math.inf, horizon)
    growth = np.exp(horizon * kernels.times)[:, None, None]
    np.testing.assert_allclose(kernels.features, GRAM * growth, rtol=0, atol=1e-10)
    np.testing.assert_allclose(kernels.gradients, math.exp(horizon) / growth * np.ones((3, 3)), rtol=0, atol=1e-10)
    np.testing.assert_allclose(kernels.tangent, GRAM * horizon * math.exp(horizon), rtol=0, atol=1e-10)


def test_relu_kernels_of_one_sample_are_exponentials():
    """Phi(H) = H / 2 and Phidot = 1 / 2 on the diagonal: everything grows at rate T / 2."""
    kernels = initial_kernels("relu", [[2.0]], math.inf, 1.5, points=9)
    np.testing.assert_allclose(kernels.features[:, 0, 0], 2 * np.exp(0.75 * kernels.times), rtol=1e-11)
    np.testing.assert_allclose(kernels.gradients[:, 0, 0], np.exp(0.75 * (1 - kernels.times)), rtol=1e-11)
    assert kernels.tangent.item() == pytest.approx(1.5 * math.exp(0.75), rel=1e-11)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_infinite_depth_is_the_limit_of_finite_depth(activation):
    """Errors fall as 1/L, and one extrapolation brings them to 1/L^2."""
    coarse, fine = (tangent_kernel(activation, GRAM, depth) for depth in (64, 128))
    limit = tangent_kernel(activation, GRAM, math.inf)
    ratio = np.abs(coarse - limit).max() / np.abs(fine - limit).max()
    assert ratio == pytest.approx(2, abs=0.03)
    assert np.abs(2 * fine - coarse - limit).max() < 5 / 128**2


BRANCHES = [
    slow("inner", "relu", False),
    slow("pre_inner", "tanh", False),
    ("inner_post", "relu", True),
    ("post", "gelu", False),
]


@functools.cache
def autodiff_kernels(block, activation, centred, width, members):
    """Tangent kernels by role of dense networks, tied and untied, (2, members, P, P): n times the gradient of f, by
    autodiff, times what a step adds to the weights, with exact inner products of h_0 and V. Both kinds have the same
    weights in the forward pass."""
    model = nfd.ResNet(3, activation, 1.5, block, centred)
    row, shape = parametrization.resolve("depth_mup"), Shape(width, 2, 1, untied=True)
    first, last = draw_ends(np.random.default_rng(width), members, width, np.eye(2))
    inputs = jnp.asarray(math.sqrt(2) * np.linalg.cholesky(GRAM[:2, :2]))

    @jax.jit
    def one(key, first, last):
        network = create_network(key, model, row, shape)
        weights = {"input": first, "inner": network.inner, "hidden": network.hidden, "readout": last}

        def rows(weights):
            """Derivatives of the outputs, (P, numbers) by role, of the matrices in the forward pass."""
            found = jax.jacrev(lambda own: with_weights(network, own)(inputs)[:, 0])(weights)
            places = {"inner": itertools.chain(*found["inner"]), "hidden": found["hidden"]}
            arrays = {role: [forward for forward, _ in pairs] for role, pairs in places.items()}
            arrays |= {role: [found[role]] for role in ("input", "readout")}
            return {
                r: jnp.concatenate([p.reshape(2, -1) for p in parts], axis=1) for r, parts in arrays.items() if parts
            }

        def tied(pairs):
            return tuple((forward, None) for forward, _ in pairs)

        single = {"inner": tuple(map(tied, network.inner)), "hidden": tied(network.hidden)}
        slopes, updates = rows(weights | single), rows(weights)
        return {role: [width * slope @ way[role].T for way in (slopes, updates)] for role, slope in slopes.items()}

    each = [
        one(jax.random.key(seed), *map(jnp.asarray, ends)) for seed, ends in enumerate(zip(first, last, strict=True))
    ]
    return {role: np.stack([found[role] for found in each], axis=1) for role in each[0]}


@pytest.mark.parametrize(("block", "activation", "centred"), BRANCHES)
def test_tangent_kernels_of_dense_networks(block, activation, centred):
    """By role, tied and untied, by autodiff of the package's own networks."""
    small, large = (autodiff_kernels(block, activation, centred, width, 64) for width in (64, 128))
    assert set(small) == set(analytic.ROLES) - ({"inner"} if block in ("pre", "post") else set())
    for place, closure in enumerate(CLOSURES):
        options = {"block": block, "centred": centred, "closure": closure}
        expected = tangent_kernels(activation, GRAM[:2, :2], 3, 1.5, **options)
        for role in small:
            assert_mean(small[role][place], large[role][place], expected[role], 1e-12)
            assert (expected[role].max() > 0.01) != (role == "inner" and closure == "decoupled")


@pytest.mark.parametrize("depth", [3, math.inf])
def test_linear_branches_of_two_matrices(depth):
    """All kernels are those of one matrix, and both matrices have its tangent kernel; so has an untied network's last
    one, in which a step moves f as in the untied linear network of one matrix."""
    single = initial_kernels("identity", GRAM, depth, 0.8)
    assert not single.tangents["inner"].any()
    for block in ("inner", "pre_inner", "inner_post"):
        double = initial_kernels("identity", GRAM, depth, 0.8, block=block)
        for name in ("times", "features", "activations", "gradients"):
            np.testing.assert_allclose(getattr(double, name), getattr(single, name), rtol=1e-10)
        for role in ("inner", "hidden"):
            np.testing.assert_allclose(double.tangents[role], single.tangent, rtol=1e-10)
        untied = tangent_kernels("identity", GRAM, depth, 0.8, block=block, closure="decoupled")
        step = linear_outputs(GRAM, TARGETS, depth, 0.8, 0.3, 1, "decoupled")[1]
        np.testing.assert_allclose(0.3 * untied["hidden"] @ TARGETS / 3, step, rtol=0, atol=1e-8)
        assert not untied["inner"].any()


@pytest.mark.parametrize("block", ["inner", "pre_inner", "inner_post"])
def test_two_blocks_of_two_matrices_written_out(block):
    """tanh, T = 1.5: every kernel by hand."""
    step, kernels = 0.75, initial_kernels("tanh", GRAM, 2, 1.5, block=block)
    features, passed = [GRAM], []
    for _ in range(2):
        first = gaussian_kernels("tanh", features[-1]) if block == "pre_inner" else (features[-1], 1.0)
        between = gaussian_kernels("tanh", first[0])
        last = gaussian_kernels("tanh", between[0]) if block == "inner_post" else (between[0], 1.0)
        features.append(features[-1] + step * last[0])
        passed.append((first, between, last))
    (first0, between0, last0), (first1, between1, last1) = passed
    above = 1 + step * first1[1] * between1[1] * last1[1]
    np.testing.assert_allclose(kernels.features, features, rtol=1e-14)
    np.testing.assert_allclose(
        kernels.gradients[0], above * (1 + step * first0[1] * between0[1] * last0[1]), rtol=1e-14
    )
    hidden = step * (between0[0] * last0[1] * above + between1[0] * last1[1])
    inner = step * (first0[0] * between0[1] * last0[1] * above + first1[0] * between1[1] * last1[1])
    np.testing.assert_allclose(kernels.tangents["hidden"], hidden, rtol=1e-14)
    np.testing.assert_allclose(kernels.tangents["inner"], inner, rtol=1e-14)
    np.testing.assert_allclose(kernels.tangents["input"], GRAM * kernels.gradients[0], rtol=1e-14)
    np.testing.assert_allclose(kernels.tangents["readout"], kernels.features[-1], rtol=1e-14)
    corrected = tangent_kernel("tanh", GRAM, 2, 1.5, block=block, rates={"inner": 2**0.5, "hidden": 1})
    np.testing.assert_allclose(corrected, hidden + 2**0.5 * inner, rtol=1e-14)


@pytest.mark.parametrize("closure", CLOSURES)
@pytest.mark.parametrize(("block", "activation"), [("inner", "relu"), ("pre_inner", np.tanh), ("inner_post", "tanh")])
def test_infinite_depth_of_two_matrices(block, activation, closure):
    """Errors fall as 1/L, in every role."""
    coarse, fine, limit = (
        tangent_kernels(activation, GRAM[:2, :2], depth, block=block, closure=closure) for depth in (32, 64, math.inf)
    )
    for role, kernel in limit.items():
        assert np.abs(2 * fine[role] - coarse[role] - kernel).max() < 5 / 64**2
        assert np.abs(coarse[role] - kernel).max() > 1e-4 or not kernel.any() or closure == "decoupled"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tangent_kernel("relu", GRAM, 2, block="outer"), "block must be one of pre, post, inner"),
        (lambda: tangent_kernel("relu", GRAM, 2, closure="tied"), "closure must be one of coupled, decoupled"),
        (
            lambda: tangent_kernel("relu", GRAM, 2, rates={"outer": 1}),
            "roles input, inner, hidden, readout; got 'outer'",
        ),
        (lambda: tangent_kernel("relu", GRAM, math.inf, rates={"inner": math.inf}), "rates must be finite"),
        (lambda: tangent_kernel("relu", GRAM, math.inf, block="post"), "depth must be finite.*centred=True"),
    ],
)
def test_kernels_that_do_not_exist(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------ the linear network


@pytest.mark.parametrize("depth", [1, 2, 7, 64])
def test_first_step_in_closed_form(depth):
    coupled, decoupled = (linear_outputs([[1]], [1], depth, 1.0, 0.7, 1, closure) for closure in CLOSURES)
    assert coupled[1, 0] == pytest.approx(0.7 * (1 + 1 / depth) ** (depth - 1), rel=1e-13)
    assert decoupled[1, 0] == pytest.approx(0.7 * ((1 + 1 / depth) ** depth - 1), rel=1e-13)
    assert coupled[0, 0] == decoupled[0, 0] == 0


def test_two_blocks_two_steps_by_hand():
    """The tied network with a = h_1^0 and b = g_1^0, <a, a> = <b, b> = 3/2 and <a, b> = 0, written out."""
    eta = 0.8
    p = eta  # -eta chi_0
    f1 = 1.5 * p
    q = eta * (1 - f1)  # -eta chi_1
    overlap = 1 + p * q / 4  # <a, h_1^2> / <a, a>, where h_1^2 = a + p b / 2 + q (b + p a / 2) / 2
    drift = p * 1.5 * overlap + q * (1.5 * overlap + 1.5 * p * (p + q) / 4)
    f2 = 1.5 * (p + q) / 2 + drift / 2
    np.testing.assert_allclose(linear_outputs([[1]], [1], 2, 1.0, eta, 2)[:, 0], [0, f1, f2], rtol=1e-13)


@pytest.mark.parametrize("depth", [5, math.inf])
def test_small_first_step_is_the_tangent_kernel(depth):
    """Coupled: -eta K chi exactly, at any rate. Decoupled, one sample: less by the deficit of section 3."""
    horizon, eta = 0.8, 0.9
    coupled, decoupled = (linear_outputs(GRAM, TARGETS, depth, horizon, eta, 1, c)[1] for c in CLOSURES)
    kernel = tangent_kernel("identity", GRAM, depth, horizon)
    np.testing.assert_allclose(coupled, eta * kernel @ TARGETS / 3, rtol=0, atol=1e-8)
    if depth == math.inf:
        deficit = 1 - (1 - math.exp(-horizon)) / horizon
        np.testing.assert_allclose(decoupled, (1 - deficit) * coupled, rtol=0, atol=1e-8)


def by_generators(gram, targets, depth, horizon, eta, steps, coupled):
    """The same limit the long way: each vector by its coefficients on h_0, V and the Gaussian parts u, r
    of every block and query, whose covariance grows with the queries. Nothing is cut or joined."""
    samples, scale = len(targets), math.sqrt(horizon / depth)
    queries = (steps + 1) * samples
    u = [samples + 1 + block * (queries + steps) + np.arange(queries) for block in range(depth)]
    r = [indices[-1] + 1 + np.arange(steps) for indices in u]
    size = r[-1][-1] + 1
    covariance = np.zeros((size, size))
    covariance[:samples, :samples], covariance[samples, samples] = gram, 1
    h, g = np.zeros((depth + 1, queries, size)), np.zeros((depth + 1, steps, size))
    outputs, chi = np.zeros((steps + 1, samples)), np.zeros((steps, samples))
    for k in range(steps + 1):
        for a in range(samples):
            i = k * samples + a
            h[0, i, a] = 1
            for block in range(depth):
                overlap = h[block] @ covariance @ h[block, i]
                covariance[u[block], u[block][i]] = covariance[u[block][i], u[block]] = overlap
                learned = scale * eta * (chi * overlap.reshape(-1, samples)[:-1]).sum(axis=1)
                weight = (coupled * h[block, i, r[block]] - learned)[:k]
                h[block + 1, i] = h[block, i] + scale * weight @ g[block + 1, :k]
                h[block + 1, i, u[block][i]] += scale
            outputs[k, a] = h[depth, i] @ covariance[:, samples]
        if k == steps:
            break
        chi[k] = (outputs[k] - targets) / samples
        g[depth, k, samples] = 1
        for block in reversed(range(depth)):
            overlap = g[block + 1] @ covariance @ g[block + 1, k]
            covariance[r[block], r[block][k]] = covariance[r[block][k], r[block]] = overlap
            learned = scale * eta * (chi * overlap[:, None])[:k].ravel()
            weight = coupled * g[block + 1, k, u[block]][: k * samples] - learned
            g[block, k] = g[block + 1, k] + scale * weight @ h[block, : k * samples]
            g[block, k, r[block][k]] += scale
    reuse_h = np.stack([h[block][:, r[block]] for block in range(depth)]) * coupled / scale
    reuse_g = np.stack([g[block + 1][:, u[block]] for block in range(depth)]) * coupled / scale
    grams = [x @ covariance @ x.transpose(0, 2, 1) for x in (h, g)]
    return outputs, *grams, reuse_h, reuse_g


@pytest.mark.parametrize("closure", CLOSURES)
@pytest.mark.parametrize("eta", [0.7, 2.0])
def test_every_field_against_explicit_generators(closure, eta):
    gram, targets = GRAM[:2, :2], TARGETS[:2]
    limit = linear_dynamics(gram, targets, 4, 1.3, eta, 4, closure)
    expected = by_generators(gram, targets, 4, 1.3, eta, 4, closure == "coupled")
    fields = (limit.outputs, limit.features, limit.gradients, limit.forward_response, limit.backward_response)
    for found, wanted in zip(fields, expected, strict=True):
        assert np.abs(wanted).max() > 0.1 or closure == "decoupled"
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("name", quick(CASES, "two blocks", "three samples"))
@pytest.mark.parametrize("closure", CLOSURES)
def test_training_of_dense_networks(name, closure):
    """Outputs over several steps."""
    gram, targets, depth, eta, steps = CASES[name]
    tied = closure == "coupled"
    small, large = ensemble(name, 48, 768, tied)[0], ensemble(name, 96, 384, tied)[0]
    expected = linear_outputs(gram, targets, depth, 1.0, eta, steps, closure)
    assert_mean(small, large, expected, REMAINDER)


def test_reuse_of_dense_networks():
    """<g, W h> / sqrt(n) at the last step is zero without reuse: it ties A, B and both kernels together."""
    gram, targets, depth, eta, steps = CASES["eight blocks"]
    limit = linear_dynamics(gram, targets, depth, 1.0, eta, steps)
    last, scale = steps - 1, 1 / math.sqrt(depth)
    through_g = np.einsum("lj,lj->l", limit.forward_response[:, last], limit.gradients[1:, last])
    through_h = np.einsum("li,li->l", limit.backward_response[:, last], limit.features[:-1, last])
    expected = scale * (through_g + through_h)
    small, large = ensemble("eight blocks", 48, 768, True)[1], ensemble("eight blocks", 96, 384, True)[1]
    assert np.abs(expected).min() > 0.05
    assert_mean(small, large, expected, REMAINDER)


@pytest.mark.slow
def test_bias_of_dense_networks_falls_as_one_over_width():
    gram, targets, depth, eta, steps = CASES["three samples"]
    expected = linear_outputs(gram, targets, depth, 1.0, eta, steps)[2]
    signs = np.sign(targets) / 3
    means, errors = np.empty(2), np.empty(2)
    for index, (width, members) in enumerate(((24, 8192), (48, 8192))):
        gap = (ensemble("three samples", width, members, True)[0][:, 2] - expected) @ signs
        means[index], errors[index] = gap.mean(), gap.std(ddof=1) / math.sqrt(members)
    slope = math.log2(means[1] / means[0])
    error = math.hypot(*(errors / means)) / math.log(2)
    assert 5 * error < 0.25  # so that rates 1/2 and 2 are excluded
    assert abs(slope + 1) < 5 * error + 0.1


@pytest.mark.parametrize("closure", CLOSURES)
def test_symmetries(closure):
    base = linear_outputs(GRAM, TARGETS, 6, 1.0, 0.6, 4, closure)
    order = [2, 0, 1]
    permuted = linear_outputs(GRAM[np.ix_(order, order)], TARGETS[order], 6, 1.0, 0.6, 4, closure)
    np.testing.assert_allclose(permuted, base[:, order], rtol=0, atol=1e-13)
    twice = linear_outputs(np.tile(GRAM, (2, 2)), np.tile(TARGETS, 2), 6, 1.0, 0.6, 4, closure)
    np.testing.assert_allclose(twice, np.tile(base, 2), rtol=0, atol=1e-13)
    # h_0 -> 2 h_0 and f -> 2 f leave training unchanged at a quarter of the rate.
    scaled = linear_outputs(4 * GRAM, 2 * TARGETS, 6, 1.0, 0.15, 4, closure)
    np.testing.assert_allclose(scaled, 2 * base, rtol=0, atol=1e-13)
    # More steps continue the same run.
    np.testing.assert_allclose(linear_outputs(GRAM, TARGETS, 6, 1.0, 0.6, 2, closure), base[:3], rtol=0, atol=1e-13)


@pytest.mark.parametrize("closure", CLOSURES)
def test_infinite_depth_outputs(closure):
    """The gap to depth L falls as 1/L, and extrapolation through other depths gives the same limit."""
    arguments = (1.0, 0.5, 4, closure)
    limit = linear_outputs(GRAM, TARGETS, math.inf, *arguments)
    runs = {depth: linear_outputs(GRAM, TARGETS, depth, *arguments) for depth in (20, 40, 80, 160)}
    weights = [math.prod(x / (x - other) for other in runs if other != x) for x in runs]
    extrapolated = np.tensordot(weights, list(runs.values()), axes=1)
    np.testing.assert_allclose(limit, extrapolated, rtol=0, atol=2e-5)
    ratio = np.abs(runs[80] - limit).max() / np.abs(runs[160] - limit).max()
    assert ratio == pytest.approx(2, abs=0.1)


def test_argument_errors():
    with pytest.raises(ValueError, match="activation must be one of"):
        gaussian_kernels("sine", [[1.0]])
    with pytest.raises(ValueError, match="gram must be a square matrix"):
        initial_kernels("relu", [1.0, 2.0], 4)
    with pytest.raises(ValueError, match="gram must be symmetric"):
        initial_kernels("relu", [[1.0, 0.5], [0.2, 1.0]], 4)
    with pytest.raises(ValueError, match="depth must be a positive whole number"):
        tangent_kernel("relu", [[1.0]], 2.5)
    with pytest.raises(ValueError, match="targets must have one entry"):
        linear_outputs([[1.0]], [1.0, 2.0], 4)
    with pytest.raises(ValueError, match="closure must be"):
        linear_outputs([[1.0]], [1.0], 4, closure="tied")
    with pytest.raises(ArithmeticError, match="known to"):
        linear_outputs([[1.0]], [1.0], math.inf, learning_rate=0.5, steps=3, tolerance=0.0)
