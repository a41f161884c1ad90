"""scale_rates: the table's training of a model that it doesn't know, through any optax optimizer."""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_model import ROLES, Network

import nfd_jax as nfd
from nfd_jax.parametrization import ONE, ZERO, D, L, N, Power, Role, resolve

WIDTH, DEPTH, INPUTS = 12, 2, 7
MATRICES = {".embed.weight": Role.INPUT, ".blocks[1].up.weight": Role.INNER, ".blocks[1].down.weight": Role.HIDDEN}
MATRICES |= {".blocks[1].up.bias": Role.BIAS, ".head.weight": Role.READOUT}
INNER = {
    "sgd": optax.identity,
    "adam": lambda: optax.scale_by_adam(eps=1e-3),
    "adamw": lambda: optax.scale_by_adam(eps=1e-3, eps_root=1e-6),
}


@pytest.fixture(autouse=True)
def loose():
    """optax itself adds integers to floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def network(seed=0, branch=0.5):
    return Network(jax.random.key(seed), INPUTS, WIDTH, DEPTH, 2, branch)


def scaled(parametrization="depth_mup", model=None, **options):
    arguments = {"roles": ROLES, "width": WIDTH, "depth": DEPTH} | options
    return nfd.scale_rates(parametrization, network() if model is None else model, **arguments)


def batch():
    generator = np.random.default_rng(0)
    return jnp.asarray(generator.standard_normal((5, INPUTS))), jnp.asarray(generator.standard_normal((5, 2)))


def train(model, optimizer, steps=3, forward=lambda model, inputs: model(inputs)):
    """Outputs along training."""
    inputs, targets = batch()
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            outputs = forward(model, inputs)
            return 10 * jnp.mean((outputs - targets) ** 2), outputs

        (_, outputs), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, outputs

    found = []
    for _ in range(steps):
        model, state, outputs = step(model, state)
        found.append(outputs)
    return np.array(found)


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("sp", "adamw"),
        ("ntp", "sgd"),
        ("ntp", "adamw"),
        ("mup", "sgd"),
        ("depth_mup", "adamw"),
        ("depth_mup_corrected", "sgd"),
        ("complete_p", "sgd"),
        ("complete_p", "adamw"),
    ],
)
def test_the_table_by_hand(name, optimizer):
    """Training is that of weights in the table's own convention, with its multipliers, rates and eps written out."""
    row, rate, decay = resolve(name), 0.02, 0.1
    at = {"width": WIDTH, "depth": DEPTH}

    def sizes(path):
        return at | {"dimension": INPUTS if path == ".embed.weight" else 1}

    usual = network()
    ours = scaled(name, usual, optimizer=optimizer)
    chain = optax.chain(ours(INNER[optimizer]()), optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate))
    found = train(ours.model, chain)

    roles = {path: _role_of(path) for path in paths(usual)}
    scalings = {path: row[role] for path, role in roles.items() if role}

    def multiplied(model, power):
        def leaf(path, value):
            name = jax.tree_util.keystr(path)
            return value * power(name) if eqx.is_inexact_array(value) and name in scalings else value

        return jax.tree_util.tree_map_with_path(leaf, model)

    def table_weights(path):  # from std fan-in^-1/2 (1 for biases) to the row's own
        return (scalings[path].std * resolve("sp")[roles[path]].std ** -1)(**sizes(path))

    multipliers = {path: scaling.multiplier(**sizes(path)) for path, scaling in scalings.items()}
    epsilons = {path: scaling.epsilon(**sizes(path)) for path, scaling in scalings.items()}
    rates = {path: scaling.rate(optimizer)(**sizes(path)) for path, scaling in scalings.items()}

    def by_hand(path):  # one optimizer a parameter, its eps the table's
        factor = epsilons.get(path, 1.0)
        directions = {
            "sgd": optax.identity,
            "adam": lambda: optax.scale_by_adam(eps=1e-3 * factor),
            "adamw": lambda: optax.scale_by_adam(eps=1e-3 * factor, eps_root=1e-6 * factor**2),
        }
        return optax.chain(
            directions[optimizer](),
            optax.scale(rates.get(path, 1.0)),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(rate),
        )

    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path), eqx.filter(usual, eqx.is_inexact_array)
    )
    hand = optax.partition({path: by_hand(path) for path in roles}, lambda _: labels)  # a module is callable itself
    expected = train(
        multiplied(usual, table_weights),
        hand,
        forward=lambda model, inputs: multiplied(model, lambda path: multipliers[path])(inputs),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def _role_of(path):
    if path.startswith(".embed"):
        return Role.INPUT
    kinds = {"up.weight": Role.INNER, "down.weight": Role.HIDDEN, "up.bias": Role.BIAS, "head.weight": Role.READOUT}
    return next((role for end, role in kinds.items() if path.endswith(end)), None)


@pytest.mark.parametrize("optimizer", INNER)
def test_abc_shift(optimizer):
    """A model that multiplies its weights itself, and draws them larger in return, trains the same."""
    factors = {role: N ** (-0.5 + 0.2 * k) * L ** (0.3 * k) * D**-0.5 for k, role in enumerate(Role)}
    plain = scaled(optimizer=optimizer)

    def multiplied(model, exponent):
        def leaf(path, array):
            name = jax.tree_util.keystr(path)
            if name not in plain.parameters or plain.parameters[name].role == "unscaled":
                return array
            dimension = INPUTS if name == ".embed.weight" else 1
            power = factors[Role(plain.parameters[name].role)] ** exponent
            return array * power(width=WIDTH, depth=DEPTH, dimension=dimension)

        return jax.tree_util.tree_map_with_path(leaf, model)

    other = scaled(
        model=multiplied(network(), -1),
        optimizer=optimizer,
        multipliers=factors,
        stds={role.value: resolve("sp")[role].std * factor**-1 for role, factor in factors.items()},
    )

    def chain(of):
        return optax.chain(of(INNER[optimizer]()), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.02))

    found = train(other.model, chain(other), forward=lambda model, inputs: multiplied(model, 1)(inputs))
    np.testing.assert_allclose(found, train(plain.model, chain(plain)), rtol=1e-9, atol=1e-12)


def test_standard_is_left_alone():
    ours = scaled("sp")
    for parameter in ours.parameters.values():
        assert (parameter.initial, parameter.rate, parameter.epsilon) == (1, 1, 1)
    assert eqx.tree_equal(ours.model, network())


def test_initial_values():
    """Hidden and input weights keep theirs in every muP row, the readout is n^-1/2 as large; gains are kept."""
    model = eqx.tree_at(lambda m: m.head.weight, network(), replace_fn=lambda w: 5 * w)
    before, after = paths(model), paths(scaled("mup", model).model)
    for path, array in before.items():
        factor = WIDTH**-0.5 if path == ".head.weight" else 1.0
        np.testing.assert_allclose(after[path], factor * array, rtol=1e-12)


def test_known_factors():
    """Adam rates and eps of depth-muP in the convention of ordinary layers."""
    parameters = scaled("depth_mup").parameters
    assert parameters[".blocks[1].down.weight"].rate == pytest.approx(WIDTH**-1 * DEPTH**-0.5)
    assert parameters[".blocks[1].down.weight"].epsilon == pytest.approx(WIDTH**-1 * DEPTH**-0.5)
    assert parameters[".blocks[1].up.bias"].rate == pytest.approx(DEPTH**-0.5)
    assert parameters[".head.weight"].rate == pytest.approx(WIDTH**-1)
    assert parameters[".embed.weight"].rate == pytest.approx(1 / INPUTS)
    assert parameters[".embed.bias"].rate == 1
    assert parameters[".head.bias"].rate == 1
    sgd = scaled("complete_p", optimizer="sgd").parameters
    assert sgd[".blocks[0].up.weight"].rate == pytest.approx(DEPTH)
    assert sgd[".embed.weight"].rate == pytest.approx(WIDTH / INPUTS)
    assert sgd[".blocks[0].up.weight"].epsilon == 1


@pytest.mark.parametrize("optimizer", INNER)
@pytest.mark.parametrize("base", [None, (WIDTH // 2, 1)])
def test_a_role_of_rate_zero_does_not_move(optimizer, base):
    row = resolve("depth_mup")
    row = replace(row, inner=replace(row.inner, sgd=ZERO, adam=ZERO))
    found = scaled(row, optimizer=optimizer, base=base)
    transformation = optax.chain(found(INNER[optimizer]()), optax.scale_by_learning_rate(0.1))
    parameters = eqx.filter(found.model, eqx.is_inexact_array)
    updates, _ = transformation.update(parameters, transformation.init(parameters), parameters)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        role = found.parameters[jax.tree_util.keystr(path)].role
        assert bool(jnp.any(update != 0)) == (role != "inner"), path
    assert "inner   " in str(found)
    assert " 0 = 0 " in str(found)


def test_base():
    """At the base nothing changes; elsewhere factors are ratios."""
    for parameter in scaled("depth_mup", base=(WIDTH, DEPTH)).parameters.values():
        assert (parameter.initial, parameter.rate, parameter.epsilon) == pytest.approx((1, 1, 1))
    half = scaled("depth_mup", base=(WIDTH // 2, 1))
    assert half.parameters[".blocks[1].down.weight"].rate == pytest.approx(1 / 2 * DEPTH**-0.5)
    assert half.parameters[".head.weight"].initial == pytest.approx(2**-0.5)
    assert "a base of n = 6, L = 1" in str(half)


def test_dividing_gradients_is_multiplying_eps():
    gradients, factor = jnp.linspace(-1.0, 1.0, 9), 1e-3
    for root in (0.0, 1e-4):
        one = optax.scale_by_adam(eps=0.1, eps_root=root)
        other = optax.scale_by_adam(eps=0.1 * factor, eps_root=root * factor**2)
        first, second = one.init(gradients), other.init(gradients)
        for scale in (1.0, -3.0, 0.2):
            left, first = one.update(scale * gradients / factor, first)
            right, second = other.update(scale * gradients, second)
            np.testing.assert_allclose(left, right, rtol=1e-12)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda ours: optax.chain(
            optax.clip_by_global_norm(1.0),
            ours(optax.scale_by_adam()),
            optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.1, 10)),
        ),
        lambda ours: optax.MultiSteps(optax.chain(ours(optax.scale_by_adam()), optax.scale(-0.1)), 2),
        lambda ours: ours(optax.adam(optax.linear_schedule(0.1, 0.0, 10))),
        lambda ours: optax.chain(ours(optax.trace(0.9)), optax.scale(-0.1)),
        lambda ours: optax.chain(ours(optax.contrib.schedule_free_adamw(0.1))),
        lambda ours: optax.chain(
            optax.masked(ours(optax.scale_by_adam()), lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
            optax.scale(-0.1),
        ),
    ],
)
def test_inside_other_tools_of_optax(wrap):
    ours = scaled()
    outputs = train(ours.model, wrap(ours))
    assert np.all(np.isfinite(outputs))
    assert np.abs(outputs[-1] - outputs[0]).max() > 1e-3


def test_parts_of_the_model():
    """Two optimizers, each for its own parameters."""
    ours, sgd = scaled(), scaled(optimizer="sgd")
    labels = jax.tree.map(
        lambda leaf: "matrix" if leaf.ndim > 1 else "vector", eqx.filter(network(), eqx.is_inexact_array)
    )
    both = optax.partition({"matrix": ours(optax.scale_by_adam()), "vector": sgd(optax.identity())}, lambda _: labels)
    gradients = jax.tree.map(jnp.ones_like, eqx.filter(ours.model, eqx.is_inexact_array))
    updates, _ = both.update(gradients, both.init(gradients), gradients)
    found = paths(updates)
    np.testing.assert_allclose(found[".blocks[0].up.bias"], sgd.parameters[".blocks[0].up.bias"].rate, rtol=1e-9)
    np.testing.assert_allclose(found[".head.weight"], ours.parameters[".head.weight"].rate, rtol=1e-6)


def test_ensembles():
    """scale_rates may be called under vmap, and its transformation on members side by side."""
    arrays, static = eqx.partition(network(), eqx.is_inexact_array)

    def one(arrays):
        ours = scaled(model=eqx.combine(arrays, static))
        transformation = ours(optax.scale_by_adam())
        updates, _ = transformation.update(arrays, transformation.init(arrays))
        return updates, eqx.filter(ours.model, eqx.is_inexact_array)

    members = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), arrays)
    together = jax.jit(jax.vmap(one))(members)
    alone = one(jax.tree.map(lambda leaf: 2 * leaf, arrays))
    for path, leaf in paths(alone).items():
        np.testing.assert_allclose(paths(together)[path][1], leaf, rtol=1e-6)


def test_half_precision_stays():
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, network())
    ours = scaled(model=model)
    gradients = eqx.filter(ours.model, eqx.is_inexact_array)
    transformation = ours(optax.scale_by_adam())
    updates, _ = transformation.update(gradients, transformation.init(gradients))
    assert {leaf.dtype for leaf in jax.tree.leaves((gradients, updates))} == {jnp.dtype(jnp.bfloat16)}


def test_roles_by_a_function_and_of_any_tree():
    tree = {"w": jnp.ones((WIDTH, 4)), "v": jnp.ones((1, WIDTH)), "count": jnp.arange(3), "name": "mine"}
    ours = nfd.scale_rates(
        "mup", tree, width=WIDTH, roles=lambda path, leaf: Role.INPUT if leaf.shape[1] == 4 else "readout"
    )
    assert {path: parameter.role for path, parameter in ours.parameters.items()} == {
        "['w']": "input",
        "['v']": "readout",
    }
    assert ours.model["name"] == "mine"
    assert ours.model["count"] is tree["count"]


def test_stacked_blocks():
    """Blocks of one array with a leading depth axis, as scanned layers have them."""
    tree = {"w": jnp.ones((DEPTH, WIDTH, WIDTH)), "b": jnp.ones((DEPTH, WIDTH)), "c": jnp.ones((WIDTH, 1, 1))}
    roles = {"['w']": "hidden", "*": "bias"}
    ours = nfd.scale_rates("depth_mup", tree, width=WIDTH, depth=DEPTH, roles=roles)
    assert ours.parameters["['w']"].rate == pytest.approx(WIDTH**-1 * DEPTH**-0.5)


@pytest.mark.parametrize(
    ("role", "shape"),
    [
        ("hidden", (3 * WIDTH, WIDTH)),  # fused
        ("hidden", (WIDTH, WIDTH, 3, 3)),
        ("inner", (3, WIDTH // 3, WIDTH)),  # heads
        ("hidden", (WIDTH, 8 * WIDTH // 3 + 1)),  # rounded
        ("bias", (WIDTH, 1, 3, 3)),  # a depthwise convolution
        ("bias", (DEPTH, WIDTH, 1, 3)),
        ("bias", (3, WIDTH // 3)),
        ("bias", (8 * WIDTH // 3 + 1,)),
        ("readout", (WIDTH,)),
        ("readout", (WIDTH, WIDTH)),  # as many outputs
        ("readout", (1, 3, WIDTH // 3)),
        ("input", (5, 3, WIDTH // 3)),
    ],
)
def test_shapes_that_may_be_right(role, shape):
    tree = {"w": jnp.ones(shape), "other": jnp.ones((WIDTH, WIDTH))}
    ours = nfd.scale_rates("mup", tree, width=WIDTH, depth=DEPTH, roles={"['w']": role, "*": "hidden"})
    rates = {"hidden": 1 / WIDTH, "inner": 1 / WIDTH, "bias": 1, "readout": 1 / WIDTH, "input": 1 / 5}
    assert ours.parameters["['w']"].rate == pytest.approx(rates[role])


@pytest.mark.parametrize(
    ("role", "shape", "message"),
    [
        ("hidden", (WIDTH, 8), r"96 entries, fewer than n\^2 at width=12; say 'input' or 'readout' where one axis"),
        ("inner", (8, WIDTH), r"96 entries, fewer than n\^2"),
        ("hidden", (WIDTH * WIDTH,), "it takes a matrix"),
        ("bias", (1,), r"1 entries, fewer than n\^1 at width=12; say 'unscaled' where every axis is fixed"),
        ("readout", (7,), r"7 entries, fewer than n\^1"),
        (
            "bias",
            (WIDTH, 2 * WIDTH),
            "two axes that are multiples of width=12, .* say 'inner' or 'hidden' for a matrix",
        ),
        ("readout", (5, WIDTH + 1), "its size is no multiple of width=12"),
    ],
)
def test_shapes_that_are_wrong(role, shape, message):
    tree = {"w": jnp.ones(shape), "other": jnp.ones((WIDTH, WIDTH))}
    with pytest.raises(ValueError, match=rf"\['w'\] of shape .* can't have the role '{role}': .*{message}"):
        nfd.scale_rates("mup", tree, width=WIDTH, depth=DEPTH, roles={"['w']": role, "*": "hidden"})


def test_widths_of_narrower_models():
    """Factors of n itself need n; ratios of n do not. The bottleneck is the width of a model that has one."""
    with pytest.raises(
        ValueError, match=r"width=6 is the size of no axis of \(12, 12\), \(12,\); correct it, or give base="
    ):
        scaled(width=6)
    at_half, usual = scaled(width=6, base=(3, 1)).parameters, scaled(base=(6, 1)).parameters
    assert {path: parameter.rate for path, parameter in at_half.items()} == pytest.approx(
        {path: parameter.rate for path, parameter in usual.items()}
    )
    bottleneck = {"up": jnp.ones((WIDTH, WIDTH // 4)), "down": jnp.ones((WIDTH // 4, WIDTH))}
    with pytest.raises(ValueError, match="give as width the narrowest of the sizes that grow"):
        nfd.scale_rates("mup", bottleneck, width=WIDTH, roles={"*": "hidden"})
    assert (
        nfd.scale_rates("mup", bottleneck, width=WIDTH // 4, roles={"*": "hidden"}).parameters["['up']"].rate == 1 / 3
    )


def test_the_first_pattern_wins():
    ours = scaled(roles={".blocks[0].up.weight": "unscaled"} | ROLES)
    assert ours.parameters[".blocks[0].up.weight"].role == "unscaled"
    assert ours.parameters[".blocks[1].up.weight"].role == "inner"


def test_the_table_as_text():
    lines = str(scaled()).splitlines()
    assert lines[0] == "depth_mup, adam, n = 12, L = 2"
    row = next(line for line in lines if line.startswith(".blocks[1].down.weight"))
    assert "(12, 12)" in row
    assert "hidden" in row
    assert f"n^-1 L^-0.5 = {WIDTH**-1 * DEPTH**-0.5:.3g}" in row
    assert len(lines) == 2 + len(paths(network()))


def test_input_dimensions():
    """The axis that is not the width; asked for where two could be it."""
    square = {"w": jnp.ones((WIDTH, WIDTH))}
    ours = nfd.scale_rates("mup", square, width=WIDTH, roles={"*": "input"})
    assert ours.parameters["['w']"].rate == pytest.approx(1 / WIDTH)
    ours = nfd.scale_rates("mup", square, width=WIDTH, roles={"*": "input"}, dimensions={"*": 1})
    assert ours.parameters["['w']"].rate == 1
    wide = {"w": jnp.ones((2 * WIDTH, 3 * WIDTH))}
    with pytest.raises(ValueError, match=r"\['w'\] of shape \(24, 36\) has 2 axes .* Give it: dimensions"):
        nfd.scale_rates("mup", wide, width=WIDTH, roles={"*": "input"}, base=(1, 1))


def without(path):
    return {pattern: role for pattern, role in ROLES.items() if pattern != path}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parametrization": "mupp"}, ValueError, "unknown parametrization 'mupp'; choose one of 'sp', 'ntp', 'mup'"),
        ({"optimizer": "muon"}, ValueError, "unknown optimizer 'muon'; choose one of 'sgd', 'adam', 'adamw'"),
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"roles": ROLES | {".tail.*": "hidden"}}, ValueError, r"roles: no parameter takes '\.tail\.\*'"),
        ({"roles": {"*.up.*": "inner"} | ROLES}, ValueError, "or all that fit were taken by patterns before"),
        ({"roles": without(".head.bias")}, ValueError, r"none for: \.head\.bias \(2,\)$"),
        ({"roles": lambda path, leaf: None}, ValueError, r"none for: \.embed\.weight \(12, 7\), \.embed\.bias"),
        ({"roles": ROLES | {".head.weight": "output"}}, ValueError, "unknown role in roles 'output'; .*'unscaled'"),
        ({"roles": "hidden"}, TypeError, "roles must map patterns to roles, or be a function, got str"),
        (
            {"roles": ROLES | {".blocks[*].up.bias": "hidden"}},
            ValueError,
            r"\.up\.bias of shape \(12,\) can't have the role 'hidden': .* inside a branch is a 'bias'",
        ),
        (
            {"roles": ROLES | {".blocks[*].up.weight": "bias"}},
            ValueError,
            r"of shape \(12, 12\) can't have the role 'bias': it has two axes that are multiples of width=12",
        ),
        ({"width": 11}, ValueError, r"\.embed\.weight of shape \(12, 7\) .* its size is no multiple of width=11"),
        ({"base": 64}, TypeError, r"base must be \(width, depth\)"),
        ({"base": (64, 0)}, ValueError, r"base\[1\], a depth, must be at least 1, got 0"),
        ({"multipliers": {"readout": 0.5}}, TypeError, r"multipliers\['readout'\] must be an nfd.*Power, got 0\.5"),
        ({"multipliers": {"outer": None}}, ValueError, "unknown role in multipliers 'outer'"),
        ({"stds": {"unscaled": None}}, ValueError, "unknown role in stds 'unscaled'"),
        ({"dimensions": [3]}, TypeError, r"dimensions must map patterns to sizes, .*, got \[3\]"),
        ({"multipliers": [N]}, TypeError, r"multipliers must map roles to powers, .*, got \[Power"),
        ({"stds": [N]}, TypeError, r"stds must map roles to powers, .*, got \[Power"),
        ({"width": 10**12}, ValueError, "width must be at most 2147483647, got 1000000000000"),
        ({"dimensions": {".head.weight": 3}}, ValueError, r"dimensions: no parameter takes '\.head\.weight'"),
        ({"dimensions": {".embed.weight": 0}}, ValueError, r"dimensions of \.embed\.weight must be at least 1, got 0"),
    ],
)
def test_bad_arguments(plain, options, error, message):
    arguments = {"parametrization": "depth_mup", "model": network(), "roles": ROLES, "width": WIDTH, "depth": DEPTH}
    with pytest.raises(error, match=message):
        plain.scale_rates(**arguments | options)


@pytest.mark.parametrize("value", [0.1, None, "adam", optax.adam])
def test_what_is_no_transformation(plain, value):
    with pytest.raises(TypeError, match=r"scaled\(...\) takes an optax transformation, such as .*, got"):
        plain.scale_rates("depth_mup", network(), roles=ROLES, width=WIDTH, depth=DEPTH)(value)


def test_a_model_without_parameters():
    with pytest.raises(ValueError, match="model must hold arrays of inexact dtype to train, got dict without any"):
        nfd.scale_rates("mup", {"n": jnp.arange(3)}, width=3, roles={})


def test_another_tree_is_noticed():
    transformation = scaled()(optax.identity())
    with pytest.raises(ValueError, match=r"parameter \['other'\] that the model given to scale_rates does not have"):
        transformation.update({"other": jnp.ones(3)}, transformation.init({"other": jnp.ones(3)}))


def test_powers():
    assert math.isclose((D * N)(width=2, depth=1, dimension=3), 6)
    assert Power() == ONE
