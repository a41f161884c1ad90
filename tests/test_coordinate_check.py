"""coordinate_check: right networks pass, others fail, and the table's slopes are those that are measured."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import slow
from own_model import ROLES, Network

import nfd_jax as nfd
from nfd_jax.dynamics import autodiff
from nfd_jax.parametrization import ONE, ZERO, L, N, Role, alpha_gamma, resolve
from nfd_jax.statistics import Slope
from nfd_jax.tools._coordinates import CHANGE, PROPAGATING, SIZE, UPDATE, Coordinate, CoordinateCheck
from nfd_jax.tools._experiment import Experiment, expectations
from nfd_jax.tools.coordinate_check import squared_loss
from nfd_jax.verdict import Verdict

KINDS = {"up": "inner", "stream": "stream", "outputs": "output"}
IMAGES = {".embed.weight": "embedded", ".blocks[0].up.weight": "up", ".blocks[0].down.weight": "down"}
IMAGES |= {".head.weight": "outputs"}
INNER = {"adam": optax.scale_by_adam, "sgd": optax.identity}
RATES = {"adam": 0.02, "sgd": 0.1}


@pytest.fixture(autouse=True)
def loose():
    """optax itself adds integers to floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def data():
    generator = np.random.default_rng(0)
    return jnp.asarray(generator.standard_normal((4, 16))), jnp.asarray(generator.choice([-1.0, 1.0], (4, 16)))


def build_in(parametrization, optimizer="adam", branch=None):
    """Networks trained by a row of the table, with the branch multipliers of another where given."""
    row = resolve(parametrization)

    def build(key, width, depth):
        model = Network(key, 16, width, depth, 16, resolve(branch or row).branch(depth))
        scaled = nfd.scale_rates(
            row, model, roles=ROLES, width=width, depth=depth, optimizer=optimizer, dimensions={".embed.weight": 16}
        )
        return scaled.model, optax.chain(scaled(INNER[optimizer]()), optax.scale_by_learning_rate(RATES[optimizer]))

    return build


def check(parametrization="depth_mup", build=None, package=nfd, **options):
    optimizer = options.get("optimizer", "adam")
    inputs, targets = data()
    arguments = {
        "inputs": inputs,
        "targets": targets,
        "build": build or build_in(parametrization, optimizer),
        "features": Network.features,
        "parametrization": parametrization,
        "roles": ROLES,
        "kinds": KINDS,
        "images": IMAGES,
        "widths": (32, 128),
        "depths": (2, 8),
        "seeds": 10,
    }
    return package.coordinate_check(**arguments | options)


def failed(found):
    return {(row.quantity, row.name, row.axis) for row in found.failures}


@pytest.mark.parametrize(("parametrization", "optimizer"), [slow("depth_mup", "adam"), ("complete_p", "sgd")])
def test_right_networks_pass(parametrization, optimizer):
    """Sixteen outputs on four samples, so that few seeds decide every line."""
    found = check(parametrization, optimizer=optimizer)
    assert found.passed, str(found)


@pytest.mark.parametrize(
    ("name", "model", "optimizer"),
    [
        slow("depth_mup", nfd.ResNet(1, "relu"), "sgd"),
        slow("complete_p", nfd.ResNet(1, "relu", block="post", centred=True), "adam"),
        slow("depth_mup_corrected", nfd.ResNet(1, "tanh", block="inner"), "adam"),
        ("mup", nfd.MLP(2, "tanh"), "adam"),
    ],
)
def test_networks_of_this_package(name, model, optimizer):
    """Those that `train_networks` trains, seen from outside: each has the slopes of its row."""
    row, task = resolve(name), nfd.datasets.digits(16, range(8))
    structure, is_resnet = model.structure, isinstance(model, nfd.ResNet)

    def build(key, width, depth):
        deep = dataclasses.replace(model, depth=depth) if is_resnet else model
        recipe = nfd.Training(parametrization=row, optimizer=optimizer, train_input=True, train_readout=True)
        dynamics, _ = nfd.network_dynamics(task, deep, recipe, width=width)
        network, roles = dynamics.init(key).network, partial(autodiff.trainable, ("input", "hidden", "readout"))
        by_role = optax.chain(dynamics.directions(network), optax.scale_by_learning_rate(RATES[optimizer]))

        def update(gradient, state, parameters):
            updates, state = by_role.update(roles(gradient), state, roles(parameters))
            return autodiff.with_weights(gradient, updates), state

        return network, optax.GradientTransformation(lambda network: by_role.init(roles(network)), update)

    def features(network, inputs):
        """The image of the last matrix of the first block is read off the stream, before a last activation."""
        outputs, stream = network.features(inputs)
        found = {"embedded": stream[0], "stream": stream[-1], "outputs": outputs}
        first, (hidden, _) = stream[0], network.hidden[0]
        if structure.matrices == 2:
            found["inner"] = network.multiplier(Role.INNER) * first @ network.inner[0][0][0][0].T
            first = jnp.tanh(found["inner"])
        else:
            first = structure.apply(structure.maps[0], first)
        return found | {"hidden": network.multiplier(Role.HIDDEN) * first @ hidden[0].T}

    inner = {"inner": "inner"} if structure.matrices == 2 else {}
    images = {".input": "embedded", ".hidden[0][0]": "hidden", ".readout": "outputs"}
    found = nfd.coordinate_check(
        build,
        features,
        jnp.asarray(task.inputs),
        jnp.asarray(task.targets),
        parametrization=row,
        roles={f".{role}*": role for role in ("input", *inner, "hidden", "readout")},
        kinds={"stream": "stream", "outputs": "output"} | inner,
        images=images | ({".inner[0][0][0]": "inner"} if inner else {}),
        optimizer=optimizer,
        loss=lambda outputs, labels: optax.softmax_cross_entropy(outputs, labels).mean(),
        widths=(64, 256),
        depths=(4, 16) if is_resnet else (1,),
        steps=1,
        seeds=20 if optimizer == "sgd" else 8,  # Adam's updates scatter less
    )
    assert found.passed, str(found)


@pytest.mark.parametrize("optimizer", [slow("adam"), "sgd"])
def test_a_frozen_role(optimizer):
    """Its effective update is exactly zero, and all other lines have the slopes of what still trains."""
    row = resolve("depth_mup_corrected")
    row = dataclasses.replace(row, inner=dataclasses.replace(row.inner, sgd=ZERO, adam=ZERO))
    found = check(row, optimizer=optimizer)
    assert found.passed, str(found)
    lines = {line.axis: line for line in found.rows if (line.quantity, line.name) == (UPDATE, "up")}
    assert {(line.expectation, line.verdict) for line in lines.values()} == {("zero", Verdict.SUPPORTED)}
    # the inner matrix's own change would be flat in L
    (change,) = (line for line in found.rows if (line.quantity, line.name, line.axis) == (CHANGE, "up", "L"))
    assert change.expected == (0.0, 0.0)
    moving = check(row, build_in("depth_mup_corrected", optimizer), optimizer=optimizer, depths=(2,), seeds=2)
    assert (UPDATE, "up", "n") in failed(moving)


def test_standard_parametrization_is_no_mup():
    found = check("depth_mup", build_in("sp", branch="depth_mup"), depths=(2,))
    assert failed(found) >= {(UPDATE, "up", "n"), (UPDATE, "down", "n")}, str(found)


@pytest.mark.parametrize(
    ("slope", "margin", "verdict"),
    [
        (0.6, 0.0, Verdict.SUPPORTED),
        (-0.2, 0.1, Verdict.SUPPORTED),
        (0.25, 0.45, Verdict.SUPPORTED),  # anywhere in the range is right
        (0.7, 0.0, Verdict.CONTRADICTED),
        (-0.3, 0.1, Verdict.CONTRADICTED),
        (3.0, 2.0, Verdict.CONTRADICTED),
        (0.25, 0.55, Verdict.UNDECIDED),
        (-0.3, 0.25, Verdict.UNDECIDED),  # -0.5 is not ruled out, nor is 0
        (0.0, 20.0, Verdict.UNDECIDED),
        (None, 0.0, Verdict.CONTRADICTED),
    ],
)
def test_verdicts(slope, margin, verdict):
    fitted = None if slope is None else Slope(slope, 0.1, 9)
    line = Coordinate(UPDATE, "w", "n", (8, 16), np.ones((2, 2)), (0.0, 0.5), fitted, 0.15, margin)
    found = CoordinateCheck("", (line,), 0.15)
    assert line.verdict is verdict
    assert (found.passed, bool(found.failures), bool(found.undecided)) == tuple(
        verdict == each for each in (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.UNDECIDED)
    )
    ends = {Verdict.SUPPORTED: "passed", Verdict.CONTRADICTED: "FAILED: 1 of 1 lines"}
    assert found.conclusion == ends.get(verdict, "UNDECIDED: 1 of 1 lines; more seeds or a wider span decide")


def test_two_seeds_decide_nothing():
    """An unscaled network with Adam, whose updates grow as n: with intervals of tens nothing passes."""
    found = check("depth_mup", build_in("sp", branch="depth_mup"), widths=(8, 16), depths=(1,), seeds=2)
    assert not found.passed
    assert {row.name for row in found.undecided if row.quantity == UPDATE} >= {"up", "down"}, str(found)
    assert "UNDECIDED" in str(found)


def test_a_wrong_depth_rule():
    """depth-muP's rates in branches of CompleteP: only depth tells, by L^-1/2 in every matrix of a block."""
    found = check("complete_p", build_in("depth_mup", branch="complete_p"))
    assert failed(found) >= {(UPDATE, "up", "L"), (UPDATE, "down", "L")}
    slopes = {row.name: row.slope.value for row in found.rows if (row.quantity, row.axis) == (UPDATE, "L")}
    assert slopes["up"] == pytest.approx(-0.5, abs=0.3)


def test_slopes_of_a_synthetic_law():
    """A "network" whose parameter moves by n^-1/2 exactly."""

    def build(key, width, depth):
        del depth
        return {"w": jnp.ones(width), "v": jnp.zeros(())}, optax.scale(-1.0 * float(width) ** -0.5)

    found = nfd.coordinate_check(
        build,
        lambda model, inputs: {"w": model["w"] * inputs, "f": model["w"].sum() * inputs},
        jnp.ones(()),
        None,
        parametrization=alpha_gamma(1.0, 0.0, name="own"),
        roles={"['w']": "readout", "['v']": "unscaled"},
        kinds={"w": N**-0.5, "f": "output"},
        loss=lambda outputs, _: outputs,
        widths=(4, 16),
        depths=(1,),
        steps=1,
        seeds=2,
    )
    rows = {(row.quantity, row.name): row for row in found.rows}
    assert rows[CHANGE, "w"].slope.value == pytest.approx(-0.5)
    assert rows[CHANGE, "w"].verdict is Verdict.SUPPORTED
    assert rows[CHANGE, "f"].slope.value == pytest.approx(0.5)
    assert rows[SIZE, "w"].values.shape == (2, 2)
    assert (CHANGE, "f", "n") in failed(found)


def test_propagating_updates():
    """A change in two parts: w x with w = n^-1/2 t after t steps, and x + u with u = n^-1 t on its way."""

    def build(key, width, depth):
        del depth
        powers = {"w": width**-0.5, "u": 1.0 / width, "v": 0.0}
        model = {name: jnp.ones(width) if name == "w" else jnp.zeros(width) for name in powers}
        partition = optax.partition(
            {name: optax.scale(-power) for name, power in powers.items()}, {n: n for n in powers}
        )
        return model, partition

    def features(model, inputs):
        x = inputs + model["u"]
        return {"x": x, "image": model["w"] * x, "f": (model["w"] + model["u"]).sum() + 0 * x}

    found = nfd.coordinate_check(
        build,
        features,
        jnp.ones(()),
        None,
        parametrization=alpha_gamma(1.0, 0.0, name="own"),
        roles={"['w']": "readout", "['u']": "readout", "['v']": "unscaled"},
        kinds={"f": "output"},
        images={"['w']": "image", "['u']": "x"},
        loss=lambda outputs, _: outputs[0],
        widths=(4, 16),
        depths=(1,),
        steps=1,
        seeds=2,
    )
    rows = {(row.quantity, row.name): row for row in found.rows}
    assert rows[UPDATE, "image"].values[0] == pytest.approx([-(1 - 1 / n) * -(n**-0.5) for n in (4, 16)])
    assert rows[PROPAGATING, "image"].slope.value == pytest.approx(-1.0)
    assert rows[PROPAGATING, "image"].values[0] == pytest.approx([1 / 4, 1 / 16])
    assert not rows[PROPAGATING, "x"].values.any()
    assert {rows[PROPAGATING, name].verdict for name in ("x", "image")} == {None}
    assert "propagating update" in str(found)


def test_zero_readouts_and_divergence():
    """A start at zero is not judged; updates that are zero, or not finite, fail."""

    def zero(key, width, depth):
        model, optimizer = build_in("mup")(key, width, depth)
        return eqx.tree_at(lambda m: (m.head.weight, m.head.bias), model, replace_fn=jnp.zeros_like), optimizer

    options = {"widths": (8, 16), "depths": (1,), "seeds": 2}
    found = check("mup", zero, steps=1, **options)
    verdicts = {(row.quantity, row.name): row.verdict for row in found.rows}
    assert verdicts[SIZE, "outputs"] is None
    assert verdicts[UPDATE, "up"] is Verdict.CONTRADICTED
    assert "zero" in str(found)
    broken = check("mup", lambda *size: (build_in("mup")(*size)[0], optax.scale(jnp.nan)), **options)
    assert (UPDATE, "up", "n") in failed(broken)
    assert "diverged" in str(broken)


def test_text_and_figure(tmp_path):
    """Depth is not judged where features grow exponentially; paths may depend on the depth."""

    def images(depth):
        return {f".blocks[{depth - 1}].down.weight": "down"}

    found = check("mup", images=images, widths=(8, 16), depths=(1, 2), seeds=2)
    assert {row.verdict for row in found.rows if row.axis == "L"} == {None}
    lines = str(found).splitlines()
    assert lines[0] == "mup, adam, 2 seeds, steps: 2; widths 8 to 16 at L = 1, depths 1 to 2 at n = 8"
    assert len(lines) == 3 + len(found.rows)
    assert found.plot(tmp_path / "check.png").stat().st_size > 10_000


def test_first_updates_of_the_table():
    """Theory section 6, by counting."""
    sp, mup, tangent = resolve("sp"), resolve("mup"), resolve("ntp")
    assert sp.update(Role.HIDDEN, "sgd") == N**0.5
    assert sp.update(Role.READOUT, "sgd") == N
    assert tangent.update(Role.HIDDEN, "sgd") == N**-0.5
    for optimizer in ("sgd", "adam", "adamw"):
        assert {mup.update(role, optimizer) for role in Role} == {ONE}
        assert {resolve("complete_p").update(role, optimizer) for role in Role} == {ONE}
        assert resolve("depth_mup").update(Role.HIDDEN, optimizer) == L**-0.5
        assert resolve("depth_mup_corrected").update(Role.INNER, optimizer) == ONE
        assert resolve("depth_mup_corrected").update(Role.HIDDEN, optimizer) == L**-0.5
        assert set(resolve("depth_mup").stream_updates(optimizer)) == {ONE}
        assert set(resolve("complete_p").output_updates(optimizer)) == {ONE}
        assert set(tangent.output_updates(optimizer, [Role.READOUT])) == {ONE}
        assert L**0.5 in resolve("depth_mup_corrected").stream_updates(optimizer)
    assert mup.initial_output() == N**-0.5
    assert sp.initial_output() == ONE


def test_losses_of_samples():
    """Numbers and vectors of one entry have one loss: the mean over samples."""
    outputs, targets = jnp.asarray([1.0, 2.0, 4.0]), jnp.asarray([0.0, 2.0, 1.0])
    assert squared_loss(outputs, targets) == squared_loss(outputs[:, None], targets[:, None]) == pytest.approx(10 / 6)
    with pytest.raises(ValueError, match=r"shape of the outputs, \(3, 1\), for the squared loss, got \(3,\)"):
        squared_loss(outputs[:, None], targets)


def test_frozen_parameters_are_unscaled():
    """The inner matrices of corrected depth-muP move the stream by L^1/2, unless they are said not to train."""
    images = {".blocks[0].down.weight": "down"}
    experiment = Experiment(build_in("mup"), Network.features, squared_loss, KINDS, images, 1)
    frozen = {".blocks[*].up.weight": "unscaled", ".blocks[*].up.bias": "unscaled"}
    stream = {}
    for name, roles in {"trained": ROLES, "frozen": ROLES | frozen}.items():
        row = resolve("depth_mup_corrected")
        stream[name] = expectations(experiment, row, "adam", roles, *data(), (8, 16), 2)[CHANGE, "stream"]
    assert set(stream["trained"]) == {ONE, L**0.5}
    assert set(stream["frozen"]) == {ONE}


@pytest.mark.parametrize("shift", [N**-0.5, L**0.25])
def test_first_updates_do_not_depend_on_the_convention(shift):
    for name in ("sp", "ntp", "depth_mup"):
        row = resolve(name)
        for role in Role:
            other = row.shifted(role, shift)
            for optimizer in ("sgd", "adam"):
                for each in Role:
                    moved, same = other.update(each, optimizer), row.update(each, optimizer)
                    assert (moved.width, moved.depth) == pytest.approx((same.width, same.depth))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parametrization": "mu"}, ValueError, "unknown parametrization 'mu'"),
        ({"optimizer": "muon", "build": build_in("mup")}, ValueError, "unknown optimizer 'muon'"),
        ({"widths": (64,)}, ValueError, r"widths must be at least 2 different integers, got \(64,\)"),
        ({"depths": ()}, ValueError, r"depths must be at least 1 different integers, got \(\)"),
        ({"seeds": 1}, ValueError, "seeds must be at least two for an interval, got 1"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"widths": 64}, TypeError, "widths must be a sequence of integers, got 64"),
        ({"widths": None}, TypeError, "widths must be a sequence of integers, got None"),
        ({"widths": (64, 96.0)}, TypeError, r"widths must be an integer, got 96\.0"),
        ({"depths": 2}, TypeError, "depths must be a sequence of integers, got 2"),
        ({"allowance": -1}, ValueError, "allowance must be a finite number at least 0, got -1"),
        (
            {"allowance": 0.5},
            ValueError,
            r"allowance must be below 0\.5, by which exponents of the table differ, got 0\.5",
        ),
        ({"kinds": {"up": "inner"}}, ValueError, r"exactly one 'output', the feature that enters the loss, got \[\]"),
        ({"kinds": KINDS | {"up": "middle"}}, ValueError, "unknown kind of 'up' in kinds 'middle'"),
        ({"kinds": KINDS | {"left": "inner"}}, ValueError, "kinds names 'left', which features does not return; it"),
        ({"images": {".head.weight": "left"}}, ValueError, "images names 'left', which features does not return"),
        ({"images": {".tail.weight": "up"}}, ValueError, r"images names \.tail\.weight, which is no parameter with"),
        ({"images": {".head.bias": "outputs"}}, ValueError, r"images names \.head\.bias, which is no parameter with"),
        ({"images": dict.fromkeys(IMAGES, "up")}, ValueError, "images must name a feature of its own for every matrix"),
        ({"build": lambda *size: build_in("mup")(*size)[0]}, TypeError, "build must return a model and an optax"),
        ({"images": ["up"]}, TypeError, r"images must map paths of matrices to features, or be .* got \['up'\]"),
        ({"images": lambda depth: [depth]}, TypeError, r"images must map paths of matrices .* got \[2\]"),
        ({"features": lambda *_: (1, 2)}, TypeError, "features must return a mapping from names to arrays, got tuple"),
        (
            {"features": lambda *given: Network.features(*given) | {"up": None}},
            TypeError,
            "features must return arrays of real numbers, got None for 'up'",
        ),
        (
            {"targets": jnp.ones(4)},
            ValueError,
            r"targets must have the shape of the outputs, \(4, 16\), for the squared loss, got \(4,\); reshape",
        ),
        ({"inputs": jnp.full((4, 16), jnp.nan)}, ValueError, r"inputs must be finite, which inputs\[0, 0\] is not"),
        ({"targets": jnp.ones((4, 16)).at[1, 2].set(jnp.inf)}, ValueError, r"targets\[1, 2\] is not; clean the data"),
        (
            {"build": lambda key, n, _: build_in("depth_mup")(key, n, 2)},
            ValueError,
            "build must make networks of the de",
        ),
        ({"build": 3}, TypeError, "build must be a function, got 3"),
        ({"loss": "mse"}, TypeError, "loss must be a function, got 'mse'"),
        ({"seeds": 10**9}, ValueError, "seeds must be at most 1000000, got 1000000000"),
        (
            {"build": lambda *size: (build_in("mup")(*size)[0], 0.1)},
            TypeError,
            "build must return a model and an optax",
        ),
        ({"targets": None}, ValueError, r"shape of the outputs, \(4, 16\), for the squared loss, got NoneType"),
        ({"loss": lambda f, y: f - y}, TypeError, r"loss must return one real number, got .*shape=\(4, 16\)"),
        ({"loss": lambda f, y: jnp.sum(f * 1j)}, TypeError, "loss must return one real number, got .*complex"),
        ({"loss": lambda f, y: (jnp.sum(f), f)}, TypeError, r"loss must return one real number, got \("),
        (
            {"roles": {"*": "hidden"}},
            ValueError,
            r"\.embed\.weight can't have the role 'hidden', .* grows as n\^2: its shape is \(32, 16\) at width 32 and "
            r"\(128, 16\) at width 128",
        ),
        (
            {"roles": ROLES | {".blocks[*].down.weight": "readout"}},
            ValueError,
            r"\.down\.weight can't have the role 'readout', whose number of entries grows as n\^1",
        ),
    ],
)
def test_bad_arguments(plain, monkeypatch, options, error, message):
    monkeypatch.setattr(eqx, "filter_jit", lambda *_: pytest.fail("compiled before the arguments were checked"))
    with pytest.raises(error, match=message):
        check(**{"package": plain, "build": build_in("depth_mup")} | options)
