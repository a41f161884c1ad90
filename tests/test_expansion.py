"""The limit of infinite depth: which networks have it, in which powers of 1/L it is approached, and what it is."""

import functools
import math
from dataclasses import replace

import jax
import numpy as np
import pytest
from cases import slow
from scipy.stats import t as student

import nfd_jax as nfd
from nfd_jax import analytic
from nfd_jax.parametrization import ZERO, L, N, Power, Role, resolve
from nfd_jax.solvers import multilevel
from nfd_jax.solvers.expansion import powers

CLOSURES = ("coupled", "decoupled")
WHOLE, HALF = (1.0, 2.0), (0.5, 1.0)


def silu(x):
    return jax.nn.silu(x)


def model(block="pre", activation="tanh", **options):
    return nfd.ResNet(math.inf, activation, block=block, **options)


@pytest.mark.parametrize(
    ("network", "row", "expected"),
    [
        (model("pre", "relu"), "depth_mup", WHOLE),
        (model("pre", "relu"), "depth_mup_corrected", WHOLE),  # has no inner matrix
        (model("inner"), "depth_mup", WHOLE),
        (model("inner", "relu"), "depth_mup", HALF),  # a kink feels how far the inner images move
        (model("pre_inner", silu), "depth_mup", HALF),  # may have one
        (model("inner_post"), "depth_mup", WHOLE),
        (model("post", "abs", centred=True), "depth_mup", HALF),
        *((model(block, "relu"), "complete_p", WHOLE) for block in ("pre", "post", "inner", "pre_inner", "inner_post")),
        (model("pre"), nfd.alpha_gamma(1.5, -0.5), WHOLE),
        (model("pre"), nfd.alpha_gamma(0.75, 0.25), HALF),  # what is random fades as L^-1/2
        (model("pre"), nfd.alpha_gamma(1.25, -0.25), (1.0, 1.5)),
        (model("inner"), nfd.alpha_gamma(1, 0.5), HALF),  # what is learned fades
    ],
)
def test_powers(network, row, expected):
    row = resolve(row)
    assert powers(network, row, ("hidden",)) == pytest.approx(expected)
    for role in Role:  # other conventions of the same training
        row = row.shifted(role, N**0.7 * L**-0.4 * Power(factor=3.0))
    assert powers(network, row, ("hidden",)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("network", "row", "reason"),
    [
        (model(), "mup", r"'mup' scales branches as L\^-0, and features grow without bound"),
        (model(branch_scale=0.1), "depth_mup", r"branch_scale=0\.1 does not fall with depth"),
        (model("inner"), "depth_mup_corrected", r"block='inner'.* makes grow what inner weights learn as L\^0\.5"),
        (model("post", "relu"), "depth_mup", r"makes grow the sum of the means of all branches as L\^0\.5"),
        (model("inner_post", silu), "depth_mup", r"makes grow the sum of the means of all branches as L\^0\.5"),
        (model(), nfd.alpha_gamma(0.5, 0.25), r"what hidden weights learn as L\^0\.25"),
        (model("post"), nfd.alpha_gamma(1.5, -0.5), r"the movement of images of hidden weights as L\^0\.5"),
        (model("inner", "relu"), nfd.alpha_gamma(0.75, 0.25), r"approaches its limit as L\^-0\.25, too slowly"),
        (model(), "ntp", "parametrization 'ntp' has no limit that learns features as n grows"),
    ],
)
def test_what_has_no_limit_is_refused(network, row, reason, plain):
    """Before anything is compiled, with the reason and a way out."""
    shown = plain.ResNet(**vars(network))
    row = row if isinstance(row, str) else plain.alpha_gamma(row.alpha, row.alpha - row.hidden.sgd.depth)
    with pytest.raises(ValueError, match=reason) as found:
        plain.solve_limit(plain.datasets.digits(2), shown, parametrization=row)
    assert "finite depth" in str(found.value) or "solve_network" in str(found.value)


def test_a_frozen_inner_matrix_has_a_limit_where_a_trained_one_has_none():
    row = resolve("depth_mup_corrected")
    frozen = replace(row, inner=replace(row.inner, sgd=ZERO, adam=ZERO))
    assert powers(model("inner", "relu"), frozen, ("hidden",)) == WHOLE  # nothing moves inside
    grows = replace(row, input=replace(row.input, sgd=row.input.sgd * L))
    assert powers(model(), grows, ("hidden",)) == WHOLE
    with pytest.raises(ValueError, match=r"what input weights learn as L\^1;"):
        powers(model(), grows, ("input", "hidden"))


# ------------------------------------------------------------------ what it is


GRAM, TARGETS, RATE, STEPS = np.array([[1.0, 0.3], [0.3, 0.8]]), np.array([1.0, -0.5]), 0.4, 3


def complete_p(depth, closure):
    """The linear network with branches 1/L and rates L eta, exactly: noise of a block 1/L^2, and learned parts 1/L."""
    return analytic.linear_outputs(GRAM, TARGETS, depth, 1.0 / depth, RATE * depth, STEPS, closure)


@functools.cache
def flow():
    """At L = infinity, by polynomials in 1/L through finite depths; the closures agree there."""
    depths = (16, 24, 32, 48, 64, 96)
    weights = [math.prod(x / (x - other) for other in depths if other != x) for x in depths]
    ends = [sum(w * complete_p(x, closure) for w, x in zip(weights, depths, strict=True)) for closure in CLOSURES]
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-6)
    return ends[0]


def bound(run):
    """Of all entries together, at a false-alarm rate of 5e-5 for sampling beside what extrapolation may leave."""
    bars = run.errors["outputs"]
    quantile = student.isf(5e-5 / 2 / bars.standard_error.size, multilevel.PILOT_DIFFERENCES - 1)
    return quantile * bars.standard_error + bars.discretisation_error + 1e-12


@pytest.mark.parametrize("closure", ["coupled", slow("decoupled")])
def test_the_linear_network_under_complete_p(closure):
    """Whatever the closure: where branches fall as 1/L, responses through the stream fade."""
    task = nfd.Task(np.linalg.cholesky(GRAM) * 2**0.5, TARGETS)
    options = {"closure": closure, "parametrization": "complete_p", "particles": 512}
    run = nfd.solve_limit(task, nfd.ResNet(math.inf, "identity"), steps=STEPS, learning_rate=RATE, **options)
    assert np.all(np.abs(run.outputs[..., 0] - flow()) <= bound(run)[..., 0])
    gap = np.abs(complete_p(4, "coupled") - complete_p(4, "decoupled")).max()
    assert bound(run).max() < gap  # and the bars say something
    assert np.all(np.abs(run.outputs[..., 0] - flow()).max() < np.abs(complete_p(4, closure) - flow()).max())


@pytest.mark.slow
@pytest.mark.parametrize(("block", "closure", "share"), [("inner", "coupled", 2), ("inner_post", "decoupled", 1)])
def test_first_step_of_linear_two_matrix_blocks_under_complete_p(block, closure, share):
    """f_1 = eta <x, x> <g, g> summed over the matrices, at any eta: features move along V alone, to which the inputs
    are orthogonal. The inner matrix moves images by W2^T V, which W2 takes back to V where it is the same matrix."""
    task, rate = nfd.Task(np.ones((1, 4)), np.ones(1)), 0.3
    options = {"closure": closure, "parametrization": "complete_p", "particles": 256}
    run = nfd.solve_limit(task, nfd.ResNet(math.inf, "identity", block=block), steps=1, learning_rate=rate, **options)
    assert np.abs(run.outputs[1, 0, 0] - share * rate) <= bound(run)[1, 0, 0]
    assert bound(run).max() < 0.2 * rate
