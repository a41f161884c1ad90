"""Loops of one's own, recipes, chunks, ensembles of limits, and blocks and optimizers from outside."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import slow
from helpers import prepare, run_both

import nfd_jax as nfd
from nfd_jax.runtime import loop

ROUNDING = 1e-12  # some thousand roundings: programs of one step and of chunks of steps may sum in another order
MODEL = nfd.ResNet(3, "tanh")


def by_hand(dynamics, problem, steps, seed=0):
    """Outputs before every step and after the last one, in a loop as the README shows it."""
    state, step = dynamics.init(nfd.seed_key(seed)), eqx.filter_jit(dynamics.step)
    outputs = []
    for number, rate, inputs, targets in problem.steps():
        state, record = step(state, number, rate, inputs, targets)
        outputs.append(record.outputs)
    return np.stack([*outputs, dynamics.evaluate(state, jnp.int32(steps), problem.batch(0)[0])])


@pytest.mark.parametrize("solver", ["limit", "revealed", "dense"])
def test_a_loop_of_ones_own_is_the_solver(task, solver, monkeypatch):
    """Step by step, and in a chunk of one and a chunk of two."""
    monkeypatch.setattr(loop, "TICK", 1e9)
    recipe = nfd.Training(3, 1.0, momentum=0.5, train_readout=True)
    if solver == "limit":
        made = nfd.limit_dynamics(task, MODEL, recipe, particles=256, closure="decoupled")
        run = nfd.solve_limit(task, MODEL, recipe, particles=256, closure="decoupled").outputs
    else:
        made = nfd.network_dynamics(task, MODEL, recipe, width=24, engine=solver)
        run = nfd.train_networks(task, MODEL, recipe, width=24, engine=solver, seeds=1).outputs[0]
    np.testing.assert_allclose(by_hand(*made, 3), run, rtol=0, atol=ROUNDING)
    assert np.abs(np.diff(run, axis=0)).max() > 1e-2


def test_the_last_pass_says_what_an_evaluation_would(task, monkeypatch):
    """Without a program for that, where the memory of a step is small; of held-out samples with one."""
    options = {"width": 24, "seeds": 2, "steps": 3, "learning_rate": 2.0}
    before = loop._evaluate._cache_size()
    by_pass = nfd.solve_network(task, MODEL, **options)
    assert loop._evaluate._cache_size() == before
    nfd.solve_network(task.holding_out(nfd.datasets.digits(2)), MODEL, **options)
    assert loop._evaluate._cache_size() == before + 1
    monkeypatch.setattr(loop, "ROOM", 0)
    evaluated = nfd.solve_network(task, MODEL, **options)
    assert loop._evaluate._cache_size() == before + 2
    for name, count in (("outputs", 4), ("loss", 4), ("batch_loss", 3)):
        values, others = getattr(by_pass, name), getattr(evaluated, name)
        assert values.shape[1] == count
        np.testing.assert_allclose(values, others, rtol=0, atol=ROUNDING, err_msg=name)
    assert np.abs(np.diff(by_pass.outputs, axis=1)).max() > 1e-2


def test_the_last_pass_goes_forward_alone(task):
    dynamics, problem = nfd.network_dynamics(task, MODEL, steps=2, width=24, engine="revealed")
    (number, rate, *batch), _ = problem.steps()
    step, state = eqx.filter_jit(dynamics.step), dynamics.init(nfd.seed_key(0))
    for last in (False, True):
        after, record = step(state, number, rate, *batch, np.bool_(last))
        found = [half.counts.values for half in after.layers.hidden.revealed]
        assert np.all(found[0] == task.samples)
        assert np.all((found[1] > 0) != last)
        np.testing.assert_array_equal(record.outputs, dynamics.evaluate(state, number, batch[0]))


def test_equal_programs_share_a_compiled_one(task):
    """Rows, richness, horizons and depths up to the capacity differ in traced units only."""
    options = {"particles": 128, "steps": 2, "capacity": 4, "noise": "plain"}
    nfd.solve_limit(task, nfd.ResNet(4), **options)
    before = loop.run_chunk._cache_size()
    for depth, change in ((4, {"parametrization": "complete_p"}), (2, {"richness": 0.5}), (3, {"learning_rate": 2.0})):
        nfd.solve_limit(task, nfd.ResNet(depth, horizon=0.7), **options, **change)
    assert loop.run_chunk._cache_size() == before
    nfd.solve_limit(task, nfd.ResNet(4, "tanh"), **options)
    assert loop.run_chunk._cache_size() == before + 1


# ------------------------------------------------------------------ the recipe

SOLVERS = pytest.mark.parametrize(
    "solver", [nfd.solve_limit, nfd.solve_network, nfd.train_networks, nfd.sweep, nfd.suggest_learning_rate]
)


@SOLVERS
def test_every_solver_shows_and_takes_all_of_a_recipe(solver):
    shown = inspect.signature(solver).parameters
    for name, field in inspect.signature(nfd.Training).parameters.items():
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].default == field.default
    assert shown["training"].default is None


def test_keywords_replace_those_of_a_recipe(task):
    recipe, size = nfd.Training(4, 0.7, "mup", train_input=True), {"width": 12, "seeds": 2}
    named = {"steps": 4, "learning_rate": 0.7, "parametrization": "mup", "train_input": True}
    one, other = nfd.train_networks(task, MODEL, recipe, **size), nfd.train_networks(task, MODEL, **named, **size)
    np.testing.assert_array_equal(one.outputs, other.outputs)
    assert one.settings == other.settings
    changed = nfd.train_networks(task, MODEL, recipe, learning_rate=0.2, **size)
    assert changed.settings["learning_rate"] == [0.2] * 4
    assert changed.settings["parametrization"] == "mup"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"training": 10}, TypeError, "training must be an nfd.Training, got 10; give its arguments by name"),
        ({"rate": 0.1}, TypeError, "unexpected keyword argument 'rate'"),
        ({"optimizer": nfd.Optimizer("sgd"), "momentum": 0.5}, ValueError, "momentum=0.5 is of an optimizer by name"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"observe": 3}, TypeError, "observe must be a function of a Snapshot that returns arrays by name, got 3"),
    ],
)
def test_bad_recipes(plain, arguments, error, message):
    if "optimizer" in arguments:
        arguments = arguments | {"optimizer": plain.Optimizer("sgd")}
    with pytest.raises(error, match=message):
        plain.train_networks(plain.datasets.digits(2), plain.ResNet(2), **arguments)


def test_a_recipe_can_not_change():
    recipe = nfd.Training()
    with pytest.raises(AttributeError):
        recipe.steps = 3


# ------------------------------------------------------------------ chunks


@pytest.mark.parametrize("longest", [1, 3, 32])
def test_numbers_do_not_depend_on_chunks(task, monkeypatch, longest):
    """Mini-batches, evaluations, a schedule, and what is observed after the last step."""
    held_out = nfd.datasets.digits(3, split="test")
    batches = nfd.datasets.digits(6).minibatches(2).holding_out(held_out)
    options = {"width": 12, "seeds": 2, "steps": 7, "evaluate_at": (0, 4, 7), "observe": nfd.observables.sizes}
    options["learning_rate"] = optax.exponential_decay(0.5, 1, 0.9)
    chunks, run_chunk = [], loop.run_chunk

    def counted(dynamics, state, train, chunk, **keywords):
        chunks.append(int(chunk.steps))
        return run_chunk(dynamics, state, train, chunk, **keywords)

    monkeypatch.setattr(loop, "run_chunk", counted)
    monkeypatch.setattr(loop, "TICK", 1e9)  # as long as they may be
    monkeypatch.setattr(loop, "LONGEST", longest)
    run = nfd.train_networks(batches, MODEL, **options)
    assert chunks == {1: [1] * 8, 3: [1, 2, 1, 3, 1], 32: [1, 2, 1, 3, 1]}[longest]
    monkeypatch.setattr(loop, "LONGEST", 2)
    other = nfd.train_networks(batches, MODEL, **options)
    for name in ("outputs", "loss", "batch_loss"):
        np.testing.assert_allclose(getattr(run, name), getattr(other, name), rtol=1e-12)
    np.testing.assert_allclose(run.held_out.outputs, other.held_out.outputs, rtol=1e-12)
    assert run.observed["feature_size"].shape == (2, 8, 4, 2)
    np.testing.assert_allclose(run.observed["feature_size"], other.observed["feature_size"], rtol=1e-12)


def test_much_that_is_observed_makes_chunks_short(task, monkeypatch):
    seen, run_chunk = [], loop.run_chunk
    features = 8 * (MODEL.depth + 1) * 4 * 12  # bytes of one step
    monkeypatch.setattr(loop, "RECORDED", 3 * features)

    def counted(dynamics, state, train, chunk, **keywords):
        seen.append(len(chunk.batches))
        return run_chunk(dynamics, state, train, chunk, **keywords)

    monkeypatch.setattr(loop, "run_chunk", counted)
    everything = {"observe": lambda snapshot: {"all": snapshot.features}}
    nfd.train_networks(task, MODEL, width=12, steps=5, seeds=1, **everything)
    assert set(seen) == {2}  # features, outputs and the loss
    assert sum(1 for _ in seen) >= 3


# ------------------------------------------------------------------ ensembles of limits


@pytest.mark.parametrize("noise", [slow("matched"), "plain"])
def test_members_of_a_limit_are_its_solutions(task, noise):
    options = {"particles": 160, "steps": 3, "noise": noise}
    together = nfd.solve_limit(task, MODEL, seeds=[4, 1, 7], **options)
    assert together.outputs.shape == (3, 4, 4, 1)
    assert together.standard_error("loss").shape == (4,)
    for member, seed in enumerate(together.seeds):
        alone = nfd.solve_limit(task, MODEL, seed=seed, **options)
        np.testing.assert_allclose(together.outputs[member], alone.outputs, rtol=0, atol=ROUNDING)
    assert len(np.unique(together.loss[:, -1])) == 3


def test_two_grids_of_one_path(task):
    """Half the depth at refinement 2 follows the path of the whole depth, and that of no other seed."""
    options = {"particles": 512, "steps": 2, "capacity": 16, "learning_rate": 1.0}
    fine = nfd.solve_limit(task, nfd.ResNet(16), seeds=6, **options)
    coarse = nfd.solve_limit(task, nfd.ResNet(8), seeds=6, refinement=2, **options)
    other = nfd.solve_limit(task, nfd.ResNet(8), seeds=6, **options)
    near, far = ((fine.outputs - each.outputs).std(axis=0).max() for each in (coarse, other))
    assert near < 0.5 * far


def test_estimates_take_one_seed(task):
    with pytest.raises(ValueError, match=r"seeds=3 are of single solutions; .* give it one seed"):
        nfd.solve_limit(task, MODEL, seeds=3, tolerance=0.1)
    with pytest.raises(ValueError, match=r"capacity \(in blocks, at least the depth\) must be at least 3, got 2"):
        nfd.solve_limit(task, MODEL, capacity=2)


# ------------------------------------------------------------------ blocks and optimizers from outside


def gate(x):
    return x * jax.nn.sigmoid(x)


BLOCKS = {
    "norm": (("rms_norm", "phi"), ()),
    "gate": ("tanh", gate, ()),
    "three matrices": (("rms_norm", "phi"), "phi", gate, ("phi", "centre")),
}


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_ones_own_is_the_same_on_both_roads(name, untied):
    """Features, gradients and training by explicit passes over dense matrices, and by autodiff."""
    task, model = nfd.datasets.digits(3), nfd.ResNet(3, "relu", block=BLOCKS[name], centred=name == "norm")
    kernels = {"observe": nfd.observables.kernels}
    prepared = prepare(task, model, 14, untied, train_input=True, momentum=0.5, learning_rate=0.5, **kernels)
    passes, autodiff = run_both(prepared, prepared.network(2), task)
    np.testing.assert_allclose(passes.outputs, autodiff.outputs, rtol=0, atol=1e-11)
    for kernel, values in autodiff.observed.items():
        np.testing.assert_allclose(passes.observed[kernel], values, rtol=1e-9, atol=1e-11)
    assert np.abs(np.diff(autodiff.outputs, axis=0)).max() > 1e-2
    assert model.structure.matrices == len(BLOCKS[name]) - 1


def test_a_block_of_ones_own_in_the_limit(task):
    """The same chain by name and by maps is the same program; another one has other numbers."""
    options = {"particles": 128, "steps": 2, "noise": "plain"}
    named = nfd.solve_limit(task, nfd.ResNet(3, block="pre_inner"), **options)
    spelled = nfd.solve_limit(task, nfd.ResNet(3, block=("phi", "phi", ())), **options)
    np.testing.assert_array_equal(named.outputs, spelled.outputs)
    normed = nfd.solve_limit(task, nfd.ResNet(3, block=(("rms_norm", "phi"), "phi", ())), **options)
    assert np.abs(normed.outputs - named.outputs).max() > 1e-3


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        ("none", ValueError, "unknown block 'none'"),
        (("phi",), TypeError, "block must be one of .* or a sequence of at least two maps"),
        (("phi", "nothing"), ValueError, "unknown stage of a block 'nothing'"),
        (("phi", 3), TypeError, "a map of a block must be a stage or a sequence of stages, got 3"),
        (("phi", lambda x: x[:1]), TypeError, "must map rows .* to rows of this shape by jax"),
        (("phi", lambda x: np.tanh(x)), TypeError, "must map rows .* to rows of this shape by jax"),
    ],
)
def test_bad_blocks(block, error, message):
    with pytest.raises(error, match=message):
        nfd.ResNet(2, block=block)


def test_an_optimizer_from_outside(task):
    """Nesterov's momentum, linear in gradients, on both roads of one law; Lion by autodiff alone."""
    nesterov = nfd.Optimizer.of(optax.trace(0.8, nesterov=True), "sgd", linear=True, name="nesterov")
    model, size = nfd.ResNet(2, "tanh"), {"width": 12, "steps": 4}
    prepared = prepare(task, model, 12, optimizer=nesterov, learning_rate=0.3)
    passes, autodiff = run_both(prepared, prepared.network(0), task)
    np.testing.assert_allclose(passes.outputs, autodiff.outputs, rtol=0, atol=1e-12)
    heavy_ball = run_both(prepare(task, model, 12, momentum=0.8, learning_rate=0.3), prepared.network(0), task)[1]
    assert np.abs(heavy_ball.outputs - autodiff.outputs).max() > 1e-3
    limit = nfd.solve_limit(task, model, steps=3, particles=160, noise="plain", optimizer=nesterov)
    assert np.all(np.isfinite(limit.outputs))
    lion = nfd.Optimizer.of(optax.scale_by_lion(), "adam", name="lion")
    run = nfd.train_networks(task, model, optimizer=lion, learning_rate=0.01, seeds=2, **size)
    assert np.all(np.diff(run.mean("loss")) < 0)
    with pytest.raises(ValueError, match="optimizer 'lion' does not keep the learned part of a matrix low rank"):
        nfd.solve_network(task, model, optimizer=lion, **size)
    with pytest.raises(ValueError, match="linear=True, but the directions of optimizer 'custom' are not linear"):
        nfd.Optimizer.of(optax.scale_by_sign(), "adam", linear=True)


def test_what_is_no_optimizer(plain):
    with pytest.raises(TypeError, match="optimizer must be an optax transformation, got 'lion'"):
        plain.Optimizer.of("lion", "adam")


def test_directions_of_an_optimizer_are_by_role(task):
    """Twice eta is twice the first step of a custom transformation, whose rate is that of its family."""
    plain = nfd.Optimizer.of(optax.identity(), "sgd", linear=True)
    steps = [
        nfd.train_networks(task, MODEL, steps=1, width=8, seeds=1, learning_rate=0.3, optimizer=each).outputs
        for each in (plain, "sgd")
    ]
    np.testing.assert_array_equal(*steps)


def test_states_are_pytrees_of_arrays(task):
    dynamics, _ = nfd.limit_dynamics(task, MODEL, particles=64, noise="plain", steps=2)
    state = jax.eval_shape(dynamics.init, nfd.seed_key(0))
    assert all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(state))
    assert jax.tree.leaves(dynamics)
    with pytest.raises(ValueError, match="give initial, or call start"):
        eqx.tree_at(lambda tree: tree, dynamics, type(dynamics)(dynamics.settings, dynamics.units)).init(
            nfd.seed_key(0)
        )
    assert jnp.ndim(dynamics.units.blocks) == 0
