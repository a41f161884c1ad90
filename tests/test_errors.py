"""Bad arguments: errors that name the argument, its value and the way out, before anything is compiled.

Run on a second copy of the package without the run-time type checks of the test mode, as users have it.
"""

import math
import subprocess
import sys
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfd_jax as nfd


@pytest.fixture
def solvers(plain, monkeypatch):
    """The three of them by name, on a task of two samples; to reach a compiled program is a failure."""
    engine = sys.modules["nfd_jax.engine"]

    def reached(*_, **__):
        raise AssertionError("compiled before the arguments were checked")

    for name in ("run", "run_members"):
        monkeypatch.setattr(engine, name, reached)
    for module in ("particles", "network", "training"):
        monkeypatch.setattr(sys.modules[f"nfd_jax.{module}"], "_create", reached)
    task, model = plain.Task(np.eye(2), np.ones(2)), plain.ResNet(2)

    def bind(solver):
        return lambda task=task, model=model, **options: solver(task, model, **options)

    return {name: bind(getattr(plain, name)) for name in ("solve_limit", "solve_network", "train_networks")}


SIZE = {"solve_limit": "particles", "solve_network": "width", "train_networks": "width"}
EVERY = pytest.mark.parametrize("name", SIZE)
NETWORKS = pytest.mark.parametrize("name", ["solve_network", "train_networks"])


@EVERY
def test_the_guard_is_reached_by_good_arguments(solvers, name):
    with pytest.raises(AssertionError, match="compiled before"):
        solvers[name](steps=2, learning_rate=0.1, **{SIZE[name]: 64})


@EVERY
@pytest.mark.parametrize("value", [0, -3])
def test_counts_below_one(solvers, name, value):
    for argument in ("steps", SIZE[name]):
        with pytest.raises(ValueError, match=f"{argument} must be at least 1, got {value}"):
            solvers[name](**{argument: value})


@EVERY
@pytest.mark.parametrize("value", [2.5, 4.0, "4", None, True, math.inf])
def test_counts_that_are_no_integers(solvers, name, value):
    for argument in ("steps", *([SIZE[name]] if value is not None or name != "solve_limit" else [])):
        with pytest.raises(TypeError, match=f"{argument} must be an integer, got {value!r}"):
            solvers[name](**{argument: value})


@pytest.mark.parametrize("value", [0, -1])
def test_depth_below_one(plain, value):
    with pytest.raises(ValueError, match=f"depth must be at least 1, got {value}"):
        plain.ResNet(value)


@pytest.mark.parametrize("value", [1.5, "8", math.nan, None, True])
def test_depth_that_is_no_integer(plain, value):
    with pytest.raises(TypeError, match=f"depth must be an integer, got {value!r}"):
        plain.ResNet(value)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_bad_horizon(plain, value):
    with pytest.raises(ValueError, match=f"horizon must be a finite number above 0, got {value}"):
        plain.ResNet(4, horizon=value)


@NETWORKS
def test_infinite_depth_in_finite_trainers(plain, solvers, name):
    with pytest.raises(ValueError, match=r"depth must be a finite integer here, got inf; pass ResNet"):
        solvers[name](model=plain.ResNet(math.inf))


@EVERY
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_bad_rates(solvers, name, value):
    for argument in ("learning_rate", "momentum", "weight_decay"):
        with pytest.raises(ValueError, match=f"{argument} must be a finite number at least 0, got {value}"):
            solvers[name](**{argument: value})


@EVERY
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_bad_richness(solvers, name, value):
    with pytest.raises(ValueError, match=f"richness must be a finite number above 0, got {value}"):
        solvers[name](richness=value)


@EVERY
def test_rates_that_are_no_numbers(solvers, name):
    for argument in ("learning_rate", "momentum", "weight_decay"):
        with pytest.raises(TypeError, match=f"{argument} must be a real number, got '0.1'"):
            solvers[name](**{argument: "0.1"})


@EVERY
def test_bad_schedules(solvers, name):
    with pytest.raises(ValueError, match="learning_rate at step 2 must be a finite number at least 0, got -1"):
        solvers[name](steps=4, learning_rate=lambda step: 1.0 - step)


@NETWORKS
@pytest.mark.parametrize("value", [0, -2])
def test_seed_counts_below_one(solvers, name, value):
    with pytest.raises(ValueError, match=f"seeds must be at least 1, got {value}"):
        solvers[name](seeds=value)


@NETWORKS
@pytest.mark.parametrize("value", [[], [1, 1], [0, -1]])
def test_bad_seed_lists(solvers, name, value):
    with pytest.raises(ValueError, match="seeds must be at least"):
        solvers[name](seeds=value)


@NETWORKS
@pytest.mark.parametrize("value", [1.5, "3", None, True, [0.5], ["1"]])
def test_seeds_that_are_no_integers(solvers, name, value):
    with pytest.raises(TypeError, match="seeds must be an integer"):
        solvers[name](seeds=value)


def test_bad_seed_of_the_limit(solvers):
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        solvers["solve_limit"](seed=-1)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
        solvers["solve_limit"](seed=0.5)


UNKNOWN = [
    ("solve_limit", "closure", "tied", "coupled"),
    ("solve_limit", "noise", "none", "matched"),
    ("solve_network", "backward", "coupled", "tied"),
    ("train_networks", "backward", "coupled", "tied"),
    ("solve_network", "parametrization", "mu_p", "depth_mup"),
    ("train_networks", "parametrization", "mu_p", "depth_mup"),
    ("train_networks", "optimizer", "lbfgs", "sgd"),
    ("train_networks", "engine", "fast", "auto"),
    ("solve_network", "optimizer", "lbfgs", "sgd"),
]


@pytest.mark.parametrize(("name", "argument", "value", "known"), UNKNOWN)
def test_unknown_names_list_the_known(solvers, name, argument, value, known):
    with pytest.raises(ValueError, match=rf"{argument} {value!r}.*{known!r}"):
        solvers[name](**{argument: value})


def test_unknown_activation_and_loss(plain):
    with pytest.raises(ValueError, match=r"unknown activation 'sine'; choose one of .*'relu'"):
        plain.ResNet(4, "sine")
    with pytest.raises(ValueError, match=r"unknown loss 'hinge'; choose one of 'mse'"):
        plain.Task(np.eye(2), np.ones(2), loss="hinge")
    with pytest.raises(ValueError, match=r"unknown loss 'hinge'"):
        plain.datasets.digits(4, loss="hinge")


@EVERY
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ((), ValueError, r"evaluate_at must be at least one step from 0 to 4, got \(\)"),
        ((0, 5), ValueError, r"evaluate_at must be at least one step from 0 to 4, got \(0, 5\)"),
        ((-1,), ValueError, "evaluate_at must be at least 0, got -1"),
        ((0.5,), TypeError, r"evaluate_at must be an integer, got 0\.5"),
        (3, TypeError, "evaluate_at must be a sequence of steps from 0 to 4, got 3"),
    ],
)
def test_bad_evaluations(solvers, name, value, error, message):
    with pytest.raises(error, match=message):
        solvers[name](steps=4, evaluate_at=value)


@EVERY
def test_more_memory_than_there_is(solvers, name, monkeypatch):
    """Refused with the figures and a way out."""
    monkeypatch.undo()  # sizes come from the function that makes the state
    monkeypatch.setattr(sys.modules["nfd_jax.memory"], "per_device", lambda: 2**20)
    ways = {"solve_limit": "fewer particles", "solve_network": "a smaller width", "train_networks": "solve_network"}
    with pytest.raises(ValueError, match=rf"needs about .* GiB, and 1 cpu device.* have 0\.0 GiB; use .*{ways[name]}"):
        solvers[name](steps=100, **{SIZE[name]: 4096})


@EVERY
def test_wrong_kinds_of_task_and_model(plain, solvers, name):
    with pytest.raises(TypeError, match=r"task must be an nfd\.Task, got tuple; make one with"):
        solvers[name](task=(np.eye(2), np.ones(2)))
    with pytest.raises(TypeError, match=r"model must be an nfd\.ResNet or nfd\.MLP, got int"):
        solvers[name](model=4)


@pytest.mark.parametrize("size", [0, 5, -1])
def test_bad_batches(plain, size):
    task = plain.Task(np.eye(4), np.ones(4))
    with pytest.raises(ValueError, match=rf"batch_size must be at .* got {size}"):
        task.minibatches(size)
    with pytest.raises(ValueError, match="batch_seed must be at least 0, got -1"):
        task.minibatches(2, seed=-1)


def test_held_out_samples_that_do_not_fit(plain):
    task = plain.Task(np.eye(4), np.ones(4))
    with pytest.raises(ValueError, match="held_out must have the dimension of the task, 4, got 3"):
        task.holding_out(plain.Task(np.eye(3), np.ones(3)))
    with pytest.raises(ValueError, match="held_out must have the outputs of the task, 1, got 2"):
        task.holding_out(plain.Task(np.eye(4), np.ones((4, 2))))
    with pytest.raises(TypeError, match=r"task must be an nfd\.Task, got ndarray"):
        task.holding_out(np.eye(4))


def test_inputs_that_cannot_be_normalised(plain):
    with pytest.raises(ValueError, match=r"inputs\[1\] is zero and can't be normalised; leave it out"):
        plain.Task(np.array([[1.0, 0.0], [0.0, 0.0]]), np.ones(2), normalise=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_data_that_is_not_finite(plain, value):
    data = np.ones((3, 2))
    data[1, 0] = value
    with pytest.raises(ValueError, match=rf"inputs must be finite, got {value} at index \(1, 0\)"):
        plain.Task(data, np.ones(3))
    with pytest.raises(ValueError, match=rf"targets must be finite, got {value} at index \(1, 0\)"):
        plain.Task(np.ones((3, 2)), data)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.ones((3, 2)), np.ones(2), "got 3 inputs and 2 targets"),
        (np.ones(3), np.ones(3), r"inputs must be a non-empty array with 2 axes, got shape \(3,\)"),
        (np.ones((0, 3)), np.ones(0), r"inputs must be a non-empty array"),
        (np.ones((3, 2)), np.ones((3, 1, 1)), r"targets must be a non-empty array with 1 or 2 axes"),
    ],
)
def test_data_of_wrong_shapes(plain, inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        plain.Task(inputs, targets)


def test_data_that_is_no_array(plain):
    with pytest.raises(TypeError, match="inputs must be an array of real numbers"):
        plain.Task([["a", "b"]], [1.0])
    with pytest.raises(TypeError, match="inputs must be an array of real numbers"):
        plain.Task([[1.0], [1.0, 2.0]], [1.0, 2.0])
    with pytest.raises(TypeError, match="targets must be an array of real numbers"):
        plain.Task([[1.0]], [1.0 + 2.0j])


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        ([0, 3, 1], 3, "integer labels from 0 to 2, got 3"),
        ([0, -1, 1], None, "integer labels from 0 to 1, got -1"),
        ([0, 0.5, 1], None, "integer labels from 0 to 1, got 0.5"),
        ([0, 0, 0], 1, "classes must be at least 2, got 1"),
        ([[0.5, 0.6]] * 3, None, "row sums"),
        ([[-0.5, 1.5]] * 3, None, "rows of probabilities"),
        ([[1.0]] * 3, None, "rows of probabilities"),
    ],
)
def test_labels_outside_the_classes(plain, targets, classes, message):
    with pytest.raises(ValueError, match=message):
        plain.Task(np.ones((3, 2)), targets, loss="cross_entropy", classes=classes)


def test_classes_that_do_not_fit(plain):
    with pytest.raises(ValueError, match="classes=3 is for loss='cross_entropy' only"):
        plain.Task(np.ones((3, 2)), np.ones(3), classes=3)
    with pytest.raises(ValueError, match="classes=3"):
        plain.Task(np.ones((3, 2)), [[0.5, 0.5]] * 3, loss="cross_entropy", classes=3)


def test_bad_digits(plain):
    with pytest.raises(ValueError, match=r"samples=1000 needs 500 train images of digit 0, but there are \d+; ask"):
        plain.datasets.digits(1000)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        plain.datasets.digits(0)
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        plain.datasets.digits(4, split="validation")
    for classes in ((0,), (0, 0), (0, 10), (0, -1)):
        with pytest.raises(ValueError, match="classes must be at least two distinct digits from 0 to 9"):
            plain.datasets.digits(4, classes=classes)
    for classes in (3, None):
        with pytest.raises(TypeError, match=f"classes must be a sequence of integers, got {classes}"):
            plain.datasets.digits(4, classes=classes)
    for classes, wrong in (([[0], [1]], r"\[0\]"), (("0", "1"), "'0'"), ((0.0, 1.0), r"0\.0")):
        with pytest.raises(TypeError, match=f"classes must be an integer, got {wrong}"):
            plain.datasets.digits(4, classes=classes)
    with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
        plain.datasets.gaussian(4, 0)


@pytest.mark.parametrize(
    "value",
    [np.bool_(True), np.array(True), jnp.array(True), np.array("a"), np.str_("a"), np.array(1j), np.array(None)],
)
def test_scalars_that_are_no_real_numbers(plain, value):
    with pytest.raises(TypeError, match="horizon must be a real number, got"):
        plain.ResNet(4, horizon=value)


def test_scalars_that_are_real_numbers(plain):
    for value in (2, np.float32(2), np.int64(2), np.array(2.0), jnp.array(2), jnp.array(2, jnp.bfloat16), Fraction(2)):
        assert plain.ResNet(4, horizon=value).horizon == 2.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.tanh, r"got <ufunc 'tanh'>, which raises TracerArrayConversionError .* jax\.numpy, not numpy or math"),
        (math.tanh, "got <built-in function tanh>, which raises"),
        (lambda x: max(x, 0), "which raises TracerBoolConversionError"),
        (lambda x: x @ x, "which raises"),
        (jax.nn.softmax, "which raises ValueError"),  # mixes the entries of an axis, which a number does not have
        (jnp.sum, r"which makes \(\), float64 from \(2, 3\), float64"),
        (lambda x: x > 0, r"which makes \(\), bool from"),
        (lambda x: x.astype(jnp.float16), r"which makes \(\), float16 from"),
        (lambda x: (x, x), "which makes tuple, no array from"),
        (str, "which raises"),
    ],
)
def test_functions_that_are_no_activations(plain, value, message):
    for model in (plain.ResNet, plain.MLP):
        with pytest.raises(TypeError, match=f"activation must be a name or a scalar function .*{message}"):
            model(4, value)


def test_activations_that_cannot_be_hashed(plain):
    class Sine:
        __hash__ = None

        def __call__(self, x):
            return jnp.sin(x)

    with pytest.raises(TypeError, match="activation must be hashable to be compiled once, got <"):
        plain.ResNet(4, Sine())


def test_activations_are_traced_once():
    """Before anything starts on a device, at no cost when models are made again and again."""
    traced = []

    def sine(x):
        traced.append(x.shape)
        return jnp.sin(x)

    models = {nfd.ResNet(depth, sine) for depth in (1, 2, 3)}
    assert len(models) == 3
    assert traced == [(), (2, 3)]


def test_checks_of_activations_start_no_device():
    code = (
        "import jax; from jax._src import xla_bridge; import nfd_jax; nfd_jax.ResNet(2, jax.nn.silu); nfd_jax.MLP(2)\n"
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
