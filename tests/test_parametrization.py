"""The exponent table: its rows by hand, other conventions of the same training, and both engines on it."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import prepare, two_sample_p

import nfd_jax as nfd
from nfd_jax import finite, training
from nfd_jax.optimizers import Optimizer
from nfd_jax.parametrization import ONE, PARAMETRIZATIONS, D, L, N, Power, Role, resolve
from nfd_jax.task import loss_gradient

SIZES = {"width": 16, "depth": 9, "dimension": 25}


def values(name, role):
    scaling = resolve(name)[role]
    return [power(**SIZES) for power in (scaling.std, scaling.multiplier, scaling.sgd, scaling.adam)]


@pytest.mark.parametrize(
    ("name", "role", "expected"),
    [  # std, multiplier, SGD rate, Adam rate at n = 16, L = 9, d = 25
        ("sp", Role.INPUT, [1 / 5, 1, 1, 1]),
        ("sp", Role.HIDDEN, [1 / 4, 1, 1, 1]),
        ("sp", Role.READOUT, [1 / 4, 1, 1, 1]),
        ("ntp", Role.INPUT, [1, 1 / 5, 1, 1 / 20]),
        ("ntp", Role.HIDDEN, [1, 1 / 4, 1, 1 / 16]),
        ("ntp", Role.READOUT, [1, 1 / 4, 1, 1 / 4]),
        ("mup", Role.INPUT, [1, 1 / 5, 16, 1 / 5]),
        ("mup", Role.HIDDEN, [1, 1 / 4, 16, 1 / 4]),
        ("mup", Role.READOUT, [1, 1 / 16, 16, 1]),
        ("depth_mup", Role.HIDDEN, [1, 1 / 4, 16, 1 / 12]),
        ("depth_mup", Role.READOUT, [1, 1 / 16, 16, 1]),
        ("complete_p", Role.HIDDEN, [1, 1 / 4, 16 * 9, 1 / 4]),
        ("depth_mup_corrected", Role.INNER, [1, 1 / 4, 16 * 3, 1 / 4]),
        ("depth_mup_corrected", Role.HIDDEN, [1, 1 / 4, 16, 1 / 12]),
    ],
)
def test_rows_by_hand(name, role, expected):
    np.testing.assert_allclose(values(name, role), expected, rtol=1e-14)


def test_branches_by_hand():
    expected = {"sp": 2, "ntp": 2, "mup": 2, "depth_mup": 2 / 3, "depth_mup_corrected": 2 / 3, "complete_p": 2 / 9}
    assert set(expected) == set(PARAMETRIZATIONS)
    for name, branch in expected.items():
        assert resolve(name).branch(9, 4.0) == pytest.approx(branch, rel=1e-15)


def test_the_family_holds_its_members():
    for name, (alpha, gamma, inner) in {
        "mup": (0, 0, None),
        "depth_mup": (0.5, 0.5, None),
        "depth_mup_corrected": (0.5, 0.5, 0),
        "complete_p": (1, 0, None),
    }.items():
        assert nfd.alpha_gamma(alpha, gamma, inner=inner, name=name) == resolve(name)
    row = nfd.alpha_gamma(0.75, 0.25)
    assert (row.hidden.sgd, row.hidden.adam, row.alpha) == (N * L**0.5, N**-0.5 * L**-0.25, 0.75)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 0.5), (1.0, 0.0), (1.5, -0.5), (3.0, -2.0)])
def test_the_line_of_feature_learning(alpha, gamma):
    """alpha + gamma = 1: L coherent updates of L^-gamma, each through a branch of L^-alpha, move the stream by 1."""
    row = nfd.alpha_gamma(alpha, gamma)
    for optimizer in ("sgd", "adam"):
        for role in (Role.INNER, Role.HIDDEN, Role.BIAS):
            assert row.update(role, optimizer) == L**-gamma
        assert set(row.stream_updates(optimizer)) == set(row.output_updates(optimizer)) == {ONE}
    assert nfd.alpha_gamma(alpha, 0.0, inner=gamma).inner == row.inner


def test_numbers_that_are_no_exponents(plain):
    for value in (math.nan, -math.inf):
        with pytest.raises(ValueError, match=f"gamma must be a finite number, got {value}"):
            plain.alpha_gamma(1.0, value)
        with pytest.raises(ValueError, match=f"inner must be a finite number, got {value}"):
            plain.alpha_gamma(1.0, 0.0, inner=value)
    with pytest.raises(ValueError, match="alpha must be a finite number at least 0, got -1"):
        plain.alpha_gamma(-1.0, 0.0)
    with pytest.raises(TypeError, match="gamma must be a real number, got '0'"):
        plain.alpha_gamma(1.0, "0")


def test_powers():
    power = N * L**-0.5 * D**2
    assert (str(power), str(N * N**-1)) == ("n L^-0.5 d^2", "1")
    assert power(width=4, depth=4, dimension=3) == pytest.approx(18, rel=1e-14)
    assert (N**400 * L**-400)(width=10**6, depth=10**6) == 1
    assert Power() == ONE


# ------------------------------------------------------------------ other conventions of the same training

OPTIMIZERS = {
    "sgd": {"momentum": 0.5, "weight_decay": 0.1, "learning_rate": 0.3},
    "adam": {"epsilon": 0.1, "learning_rate": 0.05},
    "adamw": {"epsilon": 0.1, "weight_decay": 0.3, "learning_rate": 0.05},
}
FACTOR = N**0.7 * L**-0.4 * D**0.2


def trained(row, optimizer, **options):
    task, model = nfd.datasets.digits(4), nfd.ResNet(3, "tanh", block="inner")
    options = OPTIMIZERS[optimizer] | {"train_input": True, "train_readout": True} | options
    return nfd.train_networks(
        task, model, width=8, steps=5, seeds=2, parametrization=row, optimizer=optimizer, **options
    ).outputs


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["sp", "depth_mup_corrected"])
def test_a_shift_changes_nothing(name, optimizer):
    """A factor moved between multiplier, standard deviation, rate and Adam's eps, in every role: five steps in float64
    differ by rounding. Adam's eps of 0.1 is felt."""
    options = {"learning_rate": 0.01} if name == "sp" else {}
    plain, row = trained(name, optimizer, **options), resolve(name)
    assert np.abs(plain[:, -1] - plain[:, 0]).max() > 0.01
    for power, role in enumerate((Role.INPUT, Role.INNER, Role.HIDDEN, Role.READOUT), start=1):
        row = row.shifted(role, FACTOR**power)
    np.testing.assert_allclose(trained(row, optimizer, **options), plain, rtol=0, atol=1e-9)


def test_eps_has_to_move():
    """So that the test above sees a shift that forgets it; likewise the rate."""
    row = resolve("depth_mup")
    shifted = row.shifted(Role.HIDDEN, FACTOR)
    plain = trained(row, "adam")
    for name in ("adam", "epsilon"):
        wrong = type(row.hidden)(**(vars(shifted.hidden) | {name: getattr(row.hidden, name)}))
        changed = type(row)(**(vars(shifted) | {"hidden": wrong}))
        assert np.abs(trained(changed, "adam") - plain).max() > 1e-4, name


def test_richness_divides_outputs_under_adam():
    """Adam's rate is multiplied by gamma: a network of richness gamma is one with other targets, f gamma."""
    task, model = nfd.datasets.digits(4), nfd.ResNet(3, "tanh")
    gamma, options = 3.0, {"width": 8, "steps": 4, "seeds": 2, "optimizer": "adam", "learning_rate": 0.05}
    rich = nfd.train_networks(task, model, richness=gamma, epsilon=1e-30, **options)
    scaled = nfd.Task(task.inputs, task.targets * gamma)
    plain = nfd.train_networks(scaled, model, **(options | {"learning_rate": 0.05 * gamma}), epsilon=1e-30)
    np.testing.assert_allclose(rich.outputs * gamma, plain.outputs, rtol=0, atol=1e-9)


# ------------------------------------------------------------------ revealed matrices and dense ones

LAWS = {
    "post": (nfd.ResNet(3, "abs", block="post", centred=True), "depth_mup", {"train_readout": True}),
    "inner": (nfd.ResNet(2, "tanh", block="inner"), "depth_mup_corrected", {"train_input": True}),
    "pre_inner, ntp": (nfd.ResNet(2, "relu", block="pre_inner"), "ntp", {"learning_rate": 0.3}),
    "mlp, sp": (nfd.MLP(3, "tanh"), "sp", {"learning_rate": 0.05, "train_input": True, "train_readout": True}),
}


@pytest.mark.parametrize("name", LAWS)
def test_both_engines_have_one_law(name):
    """Means and standard deviations of outputs after three steps, over 400 networks of width 24 each; false alarm
    5e-5."""
    model, row, options = LAWS[name]
    task = nfd.datasets.digits(3)
    options = {"width": 24, "steps": 3, "learning_rate": 1.0, "parametrization": row} | options
    dense = nfd.train_networks(task, model, seeds=range(400), **options)
    revealed = nfd.solve_network(task, model, seeds=range(400, 800), **options)
    assert np.abs(dense.mean()[-1] - dense.mean()[0]).max() > 5 * dense.standard_error()[-1].max()
    assert two_sample_p(dense.outputs[:, [0, -1]], revealed.outputs[:, [0, -1]]) > 5e-5


@pytest.mark.parametrize(("closure", "expected"), [("coupled", 3.0), ("decoupled", 1.0)])
def test_first_step_of_a_deep_linear_mlp(closure, expected):
    """f_1 = eta sum_l <x_l, x_l> <g_l, g_l'>: every hidden matrix adds eta where the backward pass has the transpose;
    where it has a copy, only the last does. Matched noise leaves rounding and O(1/n)."""
    task = nfd.Task(np.ones((1, 4)), np.ones(1))
    run = nfd.solve_limit(task, nfd.MLP(4, "identity"), steps=1, learning_rate=0.1, closure=closure, particles=2048)
    assert run.outputs[1, 0, 0] == pytest.approx(0.1 * expected, abs=2e-3)


def test_deep_mlp_to_a_tolerance():
    run = nfd.solve_limit(nfd.datasets.digits(2), nfd.MLP(3, "tanh"), steps=2, tolerance=0.02)
    assert run.tolerance_met
    assert np.all(run.errors["loss"].discretisation_error == 0)
    networks = nfd.solve_network(nfd.datasets.digits(2), nfd.MLP(3, "tanh"), width=2048, steps=2, seeds=8)
    far = np.abs(run.loss - networks.mean("loss"))[1:]
    # five standard errors of the networks' mean beside the estimate's own; their bias is of order 1 / 2048
    assert np.all(far < run.errors["loss"].half_width[1:] + 5 * networks.standard_error("loss")[1:] + 4 / 2048)


def test_what_has_no_limit_is_refused():
    task = nfd.datasets.digits(2)
    with pytest.raises(ValueError, match=r"parametrization 'ntp' has no limit that learns features.*output n\^0\.5"):
        nfd.solve_limit(task, nfd.ResNet(2), parametrization="ntp")
    for model, row in (
        (nfd.ResNet(math.inf, block="post"), "depth_mup"),
        (nfd.ResNet(math.inf), "complete_p"),
        (nfd.ResNet(math.inf, branch_scale=0.1), "depth_mup"),
    ):
        with pytest.raises(ValueError, match="depth=inf needs a ResNet with block='pre'"):
            nfd.solve_limit(task, model, parametrization=row)
    row = resolve("mup")
    wrong = type(row)(**(vars(row) | {"hidden": type(row.hidden)(ONE, N**-1, N, N)}))
    with pytest.raises(ValueError, match=r"hidden weights std x multiplier = n\^-1, and .* need n\^-0\.5; use train"):
        nfd.solve_network(task, nfd.ResNet(2), parametrization=wrong)


ADAM = {"optimizer": "adam"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; choose one of 'sgd', 'adam', 'adamw'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum=0.9 is for optimizer='sgd'; set betas for 'adam'"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "weight_decay=0.1 is decoupled here; use optimizer='adamw'"),
        (ADAM | {"betas": (0.9, 1.0)}, r"betas must be below 1, got \(0.9, 1.0\)"),
        (ADAM | {"betas": (0.9,)}, r"betas must be two numbers, got \(0.9,\)"),
        (ADAM | {"betas": np.array(0.9)}, r"betas must be two numbers, got array\(0.9\)"),
        ({"momentum": 1.5}, "momentum must be below 1, got 1.5"),
        ({"momentum": 1}, "momentum must be below 1, got 1"),
        (ADAM | {"epsilon": -1.0}, "epsilon must be a finite number above 0, got -1.0"),
        ({"parametrization": "muP"}, "unknown parametrization 'muP'; choose one of 'sp', 'ntp', 'mup'"),
    ],
)
def test_bad_optimizers(plain, options, message):
    with pytest.raises(ValueError, match=message):
        plain.train_networks(plain.datasets.digits(2), plain.ResNet(2), **options)


def test_betas_may_be_an_array(plain):
    optimizers = sys.modules["nfd_jax.optimizers"]
    for betas in ([0.9, 0.99], np.array([0.9, 0.99])):
        assert optimizers.Optimizer.create("adam", 0.0, 0.0, betas).betas == (0.9, 0.99)


def test_bad_models(plain):
    with pytest.raises(ValueError, match="unknown block 'two'; choose one of 'pre', 'post', 'inner'"):
        plain.ResNet(2, block="two")
    with pytest.raises(ValueError, match="branch_scale must be a finite number at least 0, got -1"):
        plain.ResNet(2, branch_scale=-1)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        plain.MLP(0)
    with pytest.raises(TypeError, match="depth must be an integer, got inf"):
        plain.MLP(math.inf)


# ------------------------------------------------------------------ what each row says of the first update

SEEDS = 96


@functools.cache
def first_updates(name, optimizer, width, depth):
    """Root mean square of what one step adds to the image of every role's weights in block 0, by seed."""
    row, task = resolve(name), nfd.datasets.digits(4)
    model = nfd.ResNet(depth, "tanh", block="inner")
    problem = prepare(
        task,
        model,
        width=width,
        parametrization_name=row,
        optimizer=Optimizer.create(optimizer, 0.0, 0.0, epsilon=1e-12 if optimizer == "adam" else None),
        train_input=True,
        train_readout=True,
    )
    inputs, targets = jnp.asarray(task.inputs), jnp.asarray(task.targets)
    step, rate = jnp.asarray(0), jnp.asarray(1e-3)
    shape = finite.Shape(width, task.dimension, task.outputs)

    def one(key):
        before = finite.create_network(key, model, row, shape)
        state, _ = training.train_step(
            problem.settings, None, training.start(problem.settings, before), step, rate, inputs, targets
        )
        _, features = before.sweep(inputs)
        inside = jnp.tanh(before.multiplier(Role.INNER) * features[0] @ before.inner[0][0][0].T)
        moved = jax.tree.map(lambda a, b: a - b, state.network, before)
        images = {
            Role.INPUT: inputs @ moved.input.T,
            Role.INNER: features[0] @ moved.inner[0][0][0].T,
            Role.HIDDEN: inside @ moved.hidden[0][0][0].T,
            Role.READOUT: features[-1] @ moved.readout,
        }
        chi = loss_gradient(task.loss, before(inputs), targets)  # SGD's updates are in proportion to it, Adam's are not
        unit = jnp.sqrt((chi**2).mean()) if optimizer == "sgd" else 1.0
        return {role.value: before.multiplier(role) * jnp.sqrt((x**2).mean()) / unit for role, x in images.items()}

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), SEEDS))
    return {role: np.asarray(values) for role, values in found.items()}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("sp", "sgd"),
        ("ntp", "adam"),
        ("depth_mup", "sgd"),
        ("depth_mup_corrected", "sgd"),
        ("depth_mup_corrected", "adam"),
        ("complete_p", "adam"),
    ],
)
def test_first_updates_have_the_stated_exponents(name, optimizer):
    """In n, and in L where branches are scaled with it: the inner matrix of the corrected row is flat in L where that
    of depth-muP falls as L^-1/2."""
    row, small, wide, deep = resolve(name), (32, 4), (128, 4), (32, 32)
    for axis, large in (("width", wide), ("depth", deep)):
        if axis == "depth" and row.alpha == 0:
            continue
        sizes = [size[axis == "depth"] for size in (small, large)]
        for role in (Role.INPUT, Role.INNER, Role.HIDDEN, Role.READOUT):
            values = [first_updates(name, optimizer, *size)[role.value] for size in (small, large)]
            slope = nfd.statistics.fit_slope(sizes, np.stack(values, axis=1), average="log")
            expected = getattr(row.update(role, optimizer), axis)
            # five standard errors over the seeds, and 0.15 for corrections in 1/n and 1/L between these sizes
            assert abs(slope.value - expected) < 5 * slope.standard_error + 0.15, (axis, role, slope, expected)
            assert slope.standard_error < 0.07  # so that exponents half a power apart are told apart
