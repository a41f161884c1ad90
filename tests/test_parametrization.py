"""The exponent table: its rows by hand, other conventions of the same training, and both engines on it."""

import functools
import math
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick, slow
from helpers import copied, final_state, layers_of, prepare, run_both, two_sample_p

import nfd_jax as nfd
from nfd_jax import parametrization
from nfd_jax.parametrization import ONE, PARAMETRIZATIONS, ZERO, D, L, N, Power, Role, resolve
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


def test_a_row_prints_as_a_table():
    """For people; its repr, which records keep, still makes the row."""
    row = resolve("depth_mup_corrected").shifted(Role.READOUT, N)
    lines = str(row).splitlines()
    assert lines[0] == "depth_mup_corrected: branches times sqrt(T) L^-0.5, rates times eta"
    assert len(lines) == 2 + len(Role)
    assert max(map(len, lines)) < 80
    for line, role in zip(lines[2:], Role, strict=True):
        parts = [part.strip() for part in line.split("  ") if part.strip()]
        assert parts[0] == role.value
        assert parts[1:] == [str(getattr(row[role], name)) for name in ("std", "multiplier", "sgd", "adam", "epsilon")]
    assert eval(repr(row), vars(parametrization)) == row


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


def test_constant_factors(plain):
    twice = N * Power(factor=2)
    assert (str(twice), str(twice**2), str(Power(factor=2)), str(ZERO)) == ("2 n", "4 n^2", "2", "0")
    assert twice(width=8, depth=3) == pytest.approx(16, rel=1e-14)
    assert (twice**-1)(width=8, depth=3) == pytest.approx(1 / 16, rel=1e-14)
    assert twice * twice**-1 == ONE
    assert ZERO * N**3 * twice == ZERO == ZERO**0.5  # there is one zero, whatever it is shifted by
    assert (ZERO(width=5, depth=1), ZERO**0) == (0.0, ONE)
    third = Power(width=0.7, depth=0.1, factor=49.0)
    assert (N**-0.5 * third * third**-1).is_close(N**-0.5)
    assert not any((N * third).is_close(other) for other in (third, N**2 * third, N * twice, ZERO))
    power = plain.parametrization.Power
    for factor in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"factor must be a finite number at least 0, got {factor}"):
            power(factor=factor)
    with pytest.raises(ValueError, match=r"a power of factor 0 has no inverse, got 0 \*\* -2"):
        plain.parametrization.ZERO**-2
    one = plain.parametrization.ONE
    for name in ("std", "multiplier", "epsilon"):
        scalings = {"std": one, "multiplier": one, "epsilon": one, name: plain.parametrization.ZERO}
        with pytest.raises(ValueError, match=f"{name} can't be 0, only the rates sgd and adam"):
            plain.parametrization.Scaling(sgd=one, adam=one, **scalings)


def with_rates(name, role, factor):
    """A row with the rates of one role times a constant."""
    row = resolve(name)
    constant = Power(factor=factor)
    scaling = replace(row[role], sgd=row[role].sgd * constant, adam=row[role].adam * constant)
    return replace(row, **{role.value: scaling})


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("role", [Role.INPUT, Role.INNER, Role.HIDDEN, Role.READOUT])
def test_a_role_of_rate_zero_does_not_move(role, untied):
    """And both engines agree on the rest, momentum included; weight decay acts on it as on the others."""
    task, model, width = nfd.datasets.digits(3), nfd.ResNet(2, "tanh", block="inner"), 12
    row = with_rates("depth_mup", role, 0.0)
    options = {"parametrization": row, "train_input": True, "train_readout": True, "momentum": 0.5}
    for decay in (0.0, 0.1):
        prepared = prepare(task, model, width, untied, steps=4, **options, weight_decay=decay)
        network = prepared.network(1)
        layers, before = copied(layers_of(network)), copied(network)
        sweeps, autodiff = run_both(prepared, copied(network), task)
        np.testing.assert_allclose(sweeps.outputs, autodiff.outputs, rtol=0, atol=1e-12)
        assert np.abs(sweeps.outputs[-1] - sweeps.outputs[0]).max() > 1e-2
    problem, explicit, _ = prepare(task, model, width, steps=4, **options)
    inputs, targets = jnp.asarray(task.inputs), jnp.asarray(task.targets)
    state, _ = final_state(explicit, problem, explicit.start(layers), inputs / 8, targets)
    both = {Role.INNER: state.layers.hidden.forward[::2], Role.HIDDEN: state.layers.hidden.forward[1::2]}
    both |= {Role.INPUT: state.layers.input, Role.READOUT: state.layers.readout}
    initial = layers_of(before)
    start = {Role.INNER: initial.hidden.forward[::2], Role.HIDDEN: initial.hidden.forward[1::2]}
    start |= {Role.INPUT: initial.input, Role.READOUT: initial.readout}
    for other, now in both.items():
        assert bool(jnp.all(now == start[other])) == (other is role), other


@pytest.mark.parametrize("optimizer", ["sgd", slow("adam")])
def test_twice_the_rate(optimizer):
    """Of every role is twice eta; of one it is not."""
    options = {"learning_rate": 0.02, "epsilon": 0.1} if optimizer == "adam" else {"learning_rate": 0.2}
    options |= {"momentum": 0.0, "weight_decay": 0.0}
    row, plain = resolve("depth_mup"), trained("depth_mup", optimizer, **options)
    for role in (Role.INPUT, Role.INNER, Role.HIDDEN, Role.READOUT):
        changed = with_rates("depth_mup", role, 2.0)
        row = replace(row, **{role.value: changed[role]})
        assert np.abs(trained(changed, optimizer, **options) - plain).max() > 1e-3
    twice = options | {"learning_rate": 2 * options["learning_rate"]}
    np.testing.assert_allclose(
        trained(row, optimizer, **options), trained("depth_mup", optimizer, **twice), rtol=0, atol=1e-12
    )


def test_updates_of_a_frozen_role():
    row = with_rates("depth_mup", Role.HIDDEN, 0.0)
    for optimizer in ("sgd", "adam"):
        assert row.update(Role.HIDDEN, optimizer) == ZERO
        assert row.stream_updates(optimizer, (Role.HIDDEN,)) == row.output_updates(optimizer, (Role.HIDDEN,)) == ()
        others = [role for role in Role if role is not Role.HIDDEN]
        assert row.output_updates(optimizer) == resolve("depth_mup").output_updates(optimizer, others)


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
@pytest.mark.parametrize("name", ["sp", slow("depth_mup_corrected")])
def test_a_shift_changes_nothing(name, optimizer):
    """A factor moved between multiplier, standard deviation, rate and Adam's eps, in every role: five steps in float64
    differ by rounding. Adam's eps of 0.1 is felt."""
    options = {"learning_rate": 0.01} if name == "sp" else {}
    plain, row = trained(name, optimizer, **options), resolve(name)
    assert np.abs(plain[:, -1] - plain[:, 0]).max() > 0.01
    for power, role in enumerate((Role.INPUT, Role.INNER, Role.HIDDEN, Role.READOUT), start=1):
        row = row.shifted(role, FACTOR**power)
    np.testing.assert_allclose(trained(row, optimizer, **options), plain, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_a_shift_changes_nothing_where_rates_have_factors(factor):
    """Explicit passes, which want images of size 1 whatever their convention, and autodiff; shifts with factors."""
    task, model = nfd.datasets.digits(4), nfd.ResNet(3, "tanh", block="inner")
    plain = row = with_rates("depth_mup", Role.INNER, factor)
    for power, role in enumerate((Role.INPUT, Role.INNER, Role.HIDDEN, Role.READOUT), start=1):
        row = row.shifted(role, FACTOR**power * Power(factor=7.0**power))
    assert row.inner.sgd == ZERO if factor == 0 else row.inner.sgd.factor > 0
    assert row.update(Role.INNER, "adam").is_close(plain.update(Role.INNER, "adam"))
    options = {"width": 16, "steps": 3, "seeds": 2, "train_input": True, "train_readout": True}
    for solver in (nfd.train_networks, nfd.solve_network):
        shifted, expected = (solver(task, model, parametrization=r, **options).outputs for r in (row, plain))
        np.testing.assert_allclose(shifted, expected, rtol=0, atol=1e-9)
        changed = solver(task, model, parametrization="depth_mup", **options).outputs
        assert np.abs(changed - expected).max() > 1e-3
    nfd.limit_dynamics(task, model, parametrization=row, particles=128)  # powers of n that cancel to rounding


@pytest.mark.slow
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


@pytest.mark.parametrize("name", quick(LAWS, "pre_inner, ntp"))
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


@pytest.mark.slow
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


@functools.cache
def first_updates(name, optimizer, width, depth):
    """Root mean square of what one step adds to the image of every role's weights in block 0, by seed."""
    seeds = 96 if name == "sp" else 32  # its outputs scatter most
    row, task = resolve(name), nfd.datasets.digits(4)
    model = nfd.ResNet(depth, "tanh", block="inner")
    options = {"optimizer": optimizer, "epsilon": 1e-12 if optimizer == "adam" else None}
    everything = {"train_input": True, "train_readout": True}
    dynamics = prepare(task, model, width, parametrization=row, **options, **everything).autodiff
    inputs, targets = jnp.asarray(task.inputs), jnp.asarray(task.targets)
    step, rate = jnp.asarray(0), jnp.asarray(1e-3)

    def one(key):
        before = dynamics.init(key).network
        state, _ = dynamics.step(dynamics.start(before), step, rate, inputs, targets)
        _, features = before.features(inputs)
        inside = jnp.tanh(before.multiplier(Role.INNER) * features[0] @ before.inner[0][0][0][0].T)
        moved = jax.tree.map(lambda a, b: a - b, state.network, before)
        images = {
            Role.INPUT: inputs @ moved.input.T,
            Role.INNER: features[0] @ moved.inner[0][0][0][0].T,
            Role.HIDDEN: inside @ moved.hidden[0][0][0].T,
            Role.READOUT: features[-1] @ moved.readout,
        }
        chi = loss_gradient(task.loss, before(inputs), targets)  # SGD's updates are in proportion to it, Adam's are not
        unit = jnp.sqrt((chi**2).mean()) if optimizer == "sgd" else 1.0
        return {role.value: before.multiplier(role) * jnp.sqrt((x**2).mean()) / unit for role, x in images.items()}

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds))
    return {role: np.asarray(values) for role, values in found.items()}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        slow("sp", "sgd"),
        slow("ntp", "adam"),
        slow("depth_mup", "sgd"),
        slow("depth_mup_corrected", "sgd"),
        ("depth_mup_corrected", "adam"),
        slow("complete_p", "adam"),
    ],
)
def test_first_updates_have_the_stated_exponents(name, optimizer):
    """In n, and in L where branches are scaled with it: the inner matrix of the corrected row is flat in L where that
    of depth-muP falls as L^-1/2."""
    row, small, wide, deep = resolve(name), (32, 4), (128, 4), (32, 33)  # from 33 blocks on they are one array
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
