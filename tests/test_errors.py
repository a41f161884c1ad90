"""Bad arguments: errors that name the argument, its value and the way out, before anything is compiled.

Run on the package as users have it: where `CHECKED` asks for checks of types, on a second copy without them.
"""

import itertools
import math
import subprocess
import sys
import time
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfd_jax as nfd


@pytest.fixture
def solvers(plain, monkeypatch):
    """The three of them by name, on a task of two samples; to reach a compiled program is a failure."""

    def reached(*_, **__):
        raise AssertionError("compiled before the arguments were checked")

    for module, name in (("loop", "run"), ("ensemble", "train"), ("ensemble", "create")):
        monkeypatch.setattr(sys.modules[f"nfd_jax.runtime.{module}"], name, reached)
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
        solvers[name](steps=2, learning_rate=0.1, **{SIZE[name]: 128})


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


SEEDS = "seeds must be at most 1000000"
BOUNDED = [
    (NAMES := ("solve_network", "train_networks"), {"seeds": 10**9}, f"{SEEDS}, got 1000000000; give a smaller number"),
    (NAMES, {"seeds": range(10**12)}, f"{SEEDS} numbers, got more; give fewer"),
    (NAMES, {"seeds": range(10**30)}, f"{SEEDS} numbers, got more"),
    (NAMES, {"seeds": np.arange(2 * 10**6)}, f"{SEEDS} numbers, got more"),
    (NAMES, {"seeds": [2**64]}, "seeds must be at most 18446744073709551615, got 18446744073709551616"),
    (("solve_limit",), {"seed": 2**64}, "seed must be at most 18446744073709551615, got 18446744073709551616"),
    (SIZE, {"steps": 10**9}, "steps must be at most 1000000, got 1000000000"),
    (SIZE, {"evaluate_at": range(10**12)}, "evaluate_at must be at most 1000000 numbers, got more"),
    (NAMES, {"width": 10**12}, "width must be at most 2147483647, got 1000000000000"),
    (("solve_limit",), {"particles": 10**12}, "particles must be at most 2147483647, got 1000000000000"),
]


@pytest.mark.parametrize(("name", "options", "message"), [(n, o, m) for names, o, m in BOUNDED for n in names])
def test_counts_are_checked_before_anything_is_counted_out(solvers, name, options, message):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        solvers[name](**options)
    assert time.monotonic() - start < 2  # a billion of them take minutes and 24 GB


@EVERY
def test_sizes_that_no_memory_holds_are_refused_at_once(solvers, name, monkeypatch):
    """By arithmetic: Sobol points for so many particles alone would take seconds."""
    monkeypatch.setattr(
        sys.modules["nfd_jax.runtime.memory"], "of_state", lambda *_: pytest.fail("arrays were looked at")
    )
    monkeypatch.setattr(sys.modules["nfd_jax.runtime.memory"], "per_device", lambda: 2**34)
    with pytest.raises(ValueError, match=r"needs about .* GiB, .* have 16\.0 GiB; use .* than 2000000000"):
        solvers[name](**{SIZE[name]: 2 * 10**9})


@pytest.mark.parametrize("depth", [2**31, 10**30])
def test_depths_beyond_the_indices(plain, depth):
    for model in (plain.ResNet, plain.MLP):
        with pytest.raises(ValueError, match=f"depth must be at most 2147483647, got {depth}; give a smaller number"):
            model(depth)


BOOLEANS = ["no", "False", 1, 0, None]


@pytest.mark.parametrize("value", BOOLEANS)
def test_what_is_no_boolean(plain, solvers, value):
    """A string would count as true, whatever it says."""
    task, data = plain.Task(np.eye(4), np.ones(4)), (np.eye(2), np.ones(2))
    made = {
        "normalise": lambda: plain.Task(*data, normalise=value),
        "replacement": lambda: task.minibatches(2, replacement=value),
        "centred": lambda: plain.ResNet(2, centred=value),
    }
    made |= {"normalise ": lambda: plain.datasets.digits(4, normalise=value)}
    for argument in ("train_input", "train_readout", *(["progress"] if value is not None else [])):
        for name, solve in solvers.items():
            made[f"{argument}{' ' * len(name)}"] = lambda solve=solve, argument=argument: solve(**{argument: value})
    for argument, make in made.items():
        with pytest.raises(TypeError, match=f"{argument.strip()} must be True or False, got {value!r}"):
            make()


def test_booleans_of_numpy(plain):
    assert plain.ResNet(2, centred=np.bool_(True)) == plain.ResNet(2, centred=True)
    assert plain.Task(np.eye(2), np.ones(2), replacement=np.bool_(False)).replacement is False


ADAM = {"optimizer": "adam"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ADAM | {"epsilon": 0}, "epsilon must be a finite number above 0, got 0"),
        (ADAM | {"epsilon": 1e-310}, "epsilon must not be lost in float64, got 1e-310, which is 0 there"),
        (ADAM | {"betas": "ab"}, "betas must be two numbers, got 'ab'"),
        (ADAM | {"betas": np.array(0.9)}, r"betas must be two numbers, got array\(0\.9\)"),
        ({"betas": (0.9, 0.999)}, r"betas=\(0\.9, 0\.999\) is Adam's; leave it out for optimizer='sgd'"),
        ({"epsilon": 1e-8}, "epsilon=1e-08 is Adam's; leave it out for optimizer='sgd'"),
    ],
)
def test_what_is_adams(solvers, options, message):
    with pytest.raises(ValueError, match=message):
        solvers["train_networks"](**options)


def test_a_budget_of_no_estimate(solvers):
    with pytest.raises(ValueError, match=r"budget=10\.0 is of an estimate; give a tolerance or depth=math\.inf"):
        solvers["solve_limit"](budget=10.0)


@EVERY
def test_decay_that_changes_signs(solvers, name):
    with pytest.raises(ValueError, match=r"learning_rate=0\.4 at step 3 times weight_decay=3 is above 1, and W <- "):
        solvers[name](steps=5, learning_rate=lambda step: 0.1 * (1 + step if step < 4 else 1), weight_decay=3.0)
    with pytest.raises(AssertionError, match="compiled before"):  # weights that fade at once are allowed
        solvers[name](steps=2, learning_rate=0.25, weight_decay=4.0)


@EVERY
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda step: "x", "learning_rate at step 0 must be a real number, got 'x'"),
        (lambda step: None, "learning_rate at step 0 must be a real number, got None"),
        (lambda step: np.array([0.1]), r"learning_rate at step 0 must be a real number, got array\(\[0\.1\]\)"),
        (lambda step: 1 / (1 - step), "learning_rate must be a number, or a schedule .* at step 1 it raises ZeroDiv"),
        (lambda: 0.1, "learning_rate must be a number, or a schedule .* at step 0 it raises TypeError"),
    ],
)
def test_odd_schedules(solvers, name, schedule, message):
    with pytest.raises(TypeError, match=message):
        solvers[name](steps=4, learning_rate=schedule)


@EVERY
@pytest.mark.parametrize(
    ("observe", "error", "message"),
    [
        (lambda s: {"a": np.asarray(s.outputs)}, TypeError, "observe is traced by jax, .* TracerArrayConversionError"),
        (lambda s: {"a": float(s.outputs[0, 0])}, TypeError, "observe is traced by jax, .* ConcretizationTypeError"),
        (lambda s: {"a": s.outputs[s.outputs > 0]}, TypeError, "observe is traced by jax, .* NonConcreteBoolean"),
        (lambda s: {"a": s.outputs if s.step else 0}, TypeError, "observe is traced by jax, .* TracerBoolConversion"),
        (lambda s: {"a": "x"}, TypeError, "observe must return arrays, got 'x' of type str for 'a'"),
        (lambda s: {"a": None}, TypeError, "observe must return arrays, got None of type NoneType for 'a'"),
        (lambda s: {"a": jax.random.key(0)}, TypeError, "observe must return arrays of numbers, got a random key"),
        (lambda s: {"a/b": s.outputs}, ValueError, "observe must return names without '/', .* got 'a/b'"),
    ],
)
def test_odd_observers(plain, name, observe, error, message):
    task, size = plain.Task(np.eye(2), np.ones(2)), {SIZE[name]: 64}
    with pytest.raises(error, match=message):
        getattr(plain, name)(task, plain.ResNet(1), steps=1, observe=observe, **size)


@EVERY
@pytest.mark.parametrize(("value", "error"), [("", ValueError), (3, TypeError), (True, TypeError), (b"x", TypeError)])
def test_checkpoints_that_are_no_folder(solvers, name, value, error):
    with pytest.raises(error, match=f"checkpoint must be the path of a folder, got {value!r}"):
        solvers[name](checkpoint=value)


def test_numbers_that_float32_does_not_hold(plain, solvers):
    """Finite, or not 0, in float64: the run would be of other numbers than those given."""

    def task(inputs=1.0, targets=1.0):
        return plain.Task(inputs * np.eye(2), targets * np.ones(2))

    large, lost = "must be finite in float32, got {}, which overflows", "must not be lost in float32, got {}, which is"
    cases = [
        ({"learning_rate": 1e39}, "learning_rate " + large.format(r"1e\+39")),
        ({"learning_rate": 1e-50}, "learning_rate " + lost.format("1e-50")),
        ({"richness": 1e30}, r"richness \(its square.*\) " + large.format(r"1e\+30")),
        ({"richness": 1e-30}, r"richness \(its square.*\) " + lost.format("1e-30")),
        ({"task": task(1e300)}, "inputs " + large.format(r"1e\+300")),
        ({"task": task(1e-300)}, "every sample of inputs " + lost.format("1e-300")),
        ({"task": task(targets=1e300)}, "targets " + large.format(r"1e\+300")),
        ({"task": task().holding_out(task(1e300))}, "held-out inputs " + large.format(r"1e\+300")),
        ({"model": plain.ResNet(4, horizon=1e300)}, r"horizon=1e\+300.* " + large.format(r"5e\+149")),
        ({"model": plain.ResNet(4, horizon=1e-300)}, "horizon=1e-300.* " + lost.format("5e-151")),
        ({"model": plain.ResNet(4, branch_scale=1e-50)}, "branch_scale=1e-50.* " + lost.format("1e-50")),
        ({"momentum": 1 - 1e-12}, "momentum must be below 1, got 0.999999999999 in float32"),
    ]
    reached = ({"branch_scale": 0}, {"branch_scale": 1e-30}, {"horizon": 1e-60})
    with jax.enable_x64(False):
        for solve in solvers.values():
            for options, message in cases:
                with pytest.raises(ValueError, match=message):
                    solve(**options)
            for options in reached:
                with pytest.raises(AssertionError, match="compiled before"):
                    solve(model=plain.ResNet(4, **options))
            with pytest.raises(AssertionError, match="compiled before"):  # a schedule that fades
                solve(steps=4, learning_rate=lambda step: 10.0 ** (-30 * step))
    for solve in solvers.values():
        with pytest.raises(AssertionError, match="compiled before"):
            solve(learning_rate=1e-50)


def test_exponents_that_overflow(plain, solvers):
    row = plain.alpha_gamma(0.5, -300)
    with pytest.raises(ValueError, match=r"overflows at n = .*, L = 64, d = 2; use smaller exponents or sizes"):
        solvers["solve_network"](model=plain.ResNet(64), parametrization=row)


@EVERY
def test_more_memory_than_there_is(solvers, name, monkeypatch):
    """Refused with the figures and a way out."""
    monkeypatch.undo()  # sizes come from the function that makes the state
    monkeypatch.setattr(sys.modules["nfd_jax.runtime.memory"], "per_device", lambda: 2**20)
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
    for wrong in ([1.0 + 2.0j], np.ones(1) * 1j, jnp.array([1j]), ["1"], np.array([1], object), [10**400], None):
        with pytest.raises(TypeError, match="targets must be an array of real numbers"):
            plain.Task([[1.0]], wrong)
    with pytest.raises(ValueError, match="targets must be an array without masked entries"):
        plain.Task([[1.0]], np.ma.array([1.0], mask=[True]))
    for right in (jnp.ones(1, jnp.bfloat16), np.ones(1, bool), np.ma.array([1.0]), np.ones(1, np.float16)):
        assert plain.Task([[1.0]], right).targets == 1.0


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        ([0, 3, 1], 3, "integer labels from 0 to 2, got 3"),
        ([0, -1, 1], None, "integer labels from 0 to 1, got -1"),
        ([0, 0.5, 1], None, "integer labels from 0 to 1, got 0.5"),
        ([0, 0, 0], 1, "classes must be at least 2, got 1"),
        ([0, 10**9, 1], None, r"integer labels below 1000000, got 1e\+09; number the classes from 0"),
        ([0, 1e300, 1], None, r"integer labels below 1000000, got 1e\+300"),
        ([0, 0, 0], 10**9, "classes must be at most 1000000, got 1000000000"),
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
    with pytest.raises(ValueError, match=r"samples=2000000000 of dimension=1000 make an array .* this machine has"):
        plain.datasets.gaussian(2 * 10**9, 1000)
    with pytest.raises(ValueError, match="classes must be at most 1000000 numbers, got more"):
        plain.datasets.digits(4, itertools.count())
    with pytest.raises(TypeError, match=r"teacher must take z of shape \(4, 1\) to targets, .* raises ValueError"):
        plain.datasets.gaussian(4, teacher=lambda z: z @ z)


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
        (np.tanh, r"got <ufunc 'tanh'>, which raises TracerArrayConversionError: .* jax\.numpy, not numpy or math"),
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
