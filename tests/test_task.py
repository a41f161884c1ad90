"""Tasks and losses: values by hand, gradients by autodiff, data checked at the door (bad data in test_errors.py)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import prepare, run_both
from scipy.special import log_softmax, softmax

import nfd_jax as nfd
from nfd_jax._functions import described
from nfd_jax.solvers import estimate, multilevel
from nfd_jax.task import loss_curvature, loss_gradient, loss_value

INPUTS = np.arange(6.0).reshape(3, 2)


def test_one_output_from_a_vector():
    task = nfd.Task(INPUTS.astype(int), np.array([1, -1, 0]))
    assert (task.samples, task.dimension, task.outputs) == (3, 2, 1)
    assert task.inputs.dtype == task.targets.dtype == np.float64
    np.testing.assert_array_equal(task.targets, [[1.0], [-1.0], [0.0]])


def test_labels_become_probabilities():
    task = nfd.Task(INPUTS, np.array([2, 0, 2]), loss="cross_entropy")
    np.testing.assert_array_equal(task.targets, [[0, 0, 1], [1, 0, 0], [0, 0, 1]])
    assert nfd.Task(INPUTS, np.zeros(3), loss="cross_entropy").outputs == 2
    assert nfd.Task(INPUTS, np.zeros(3), loss="cross_entropy", classes=5).outputs == 5
    soft = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_array_equal(nfd.Task(INPUTS, soft, loss="cross_entropy").targets, soft)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        nfd.Task(INPUTS, np.zeros(3)).loss = "mse"


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_losses(loss):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(4, 3))
    targets = np.eye(3)[rng.integers(3, size=4)] if loss == "cross_entropy" else rng.normal(size=(4, 3))
    value = loss_value(loss, jnp.asarray(outputs), jnp.asarray(targets))
    by_hand = {
        "mse": 0.5 * ((outputs - targets) ** 2).sum(1).mean(),
        "cross_entropy": -(targets * log_softmax(outputs, axis=1)).sum(1).mean(),
    }[loss]
    assert value == pytest.approx(by_hand, rel=1e-14)
    gradient = loss_gradient(loss, jnp.asarray(outputs), jnp.asarray(targets))
    fitted = outputs if loss == "mse" else softmax(outputs, axis=1)
    np.testing.assert_allclose(gradient, (fitted - targets) / 4, rtol=0, atol=1e-15)
    curvature = loss_curvature(loss, jnp.asarray(outputs), jnp.asarray(targets))
    if loss == "mse":
        np.testing.assert_array_equal(curvature, 1.0)
    else:
        exact = [np.linalg.eigvalsh(np.diag(p) - np.outer(p, p))[-1] for p in fitted]
        assert np.all((np.array(exact) <= curvature * (1 + 1e-12)) & (curvature <= 0.5))


def test_held_out_samples_are_not_trained_on(task):
    """As many of them as of the others, so that the shapes are the same."""
    both = task.holding_out(nfd.datasets.digits(4, split="test"))
    options = {"width": 8, "steps": 3, "seeds": 2}
    alone, beside = (nfd.train_networks(each, nfd.ResNet(2, "tanh"), **options).outputs for each in (task, both))
    np.testing.assert_allclose(beside, alone, rtol=0, atol=1e-12)
    assert np.abs(np.diff(alone, axis=1)).max() > 1e-3


# ------------------------------------------------------------------ losses of one's own


def squared(outputs, targets):
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=1)


def rounded(outputs, targets):
    """Quadratic near the targets, linear far away, and not the same for all outputs."""
    scale = 1 + jnp.arange(outputs.shape[1], dtype=outputs.dtype)[None]
    return jnp.sum(scale * (jnp.sqrt(1 + (outputs - targets) ** 2) - 1), axis=1)


SOLVERS = {
    "limit": lambda task, model: nfd.solve_limit(task, model, particles=256, steps=3, learning_rate=1.0, noise="plain"),
    "training": lambda task, model: nfd.train_networks(task, model, width=16, steps=3, learning_rate=1.0, seeds=2),
}


def with_loss(loss, scale=1.0):
    inputs, targets = np.random.default_rng(0).normal(size=(5, 6)), scale * np.eye(2)[[0, 1, 1, 0, 1]]
    test = nfd.Task(inputs[:2], targets[:2], loss=loss)
    return nfd.Task(inputs, targets, loss=loss, batch_size=3, held_out=test)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_known_loss_given_as_a_function(solver):
    """Mini-batches, two outputs, held-out samples, classes: every number is that of the loss by name."""
    model = nfd.ResNet(2, "tanh")
    runs = [SOLVERS[solver](with_loss(loss), model) for loss in ("mse", squared)]
    for name in ("outputs", "loss", "batch_loss", "accuracy"):
        np.testing.assert_allclose(*(getattr(run, name) for run in runs), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(*(run.held_out.loss for run in runs), rtol=1e-9)
    assert runs[1].settings["loss"] == runs[1].to_dataset().attrs["loss_name"] == described(squared)


@pytest.mark.parametrize("outputs", [1, 3])
def test_explicit_passes_and_autodiff_agree_on_a_loss(outputs):
    generator = np.random.default_rng(1)
    task = nfd.Task(generator.normal(size=(4, 5)), 2 * generator.normal(size=(4, outputs)), loss=rounded)
    model = nfd.ResNet(3, "tanh")
    prepared = prepare(task, model, width=12, train_input=True, train_readout=True)
    passes, autodiff = run_both(prepared, prepared.network(0), task)
    np.testing.assert_allclose(passes.outputs, autodiff.outputs, rtol=0, atol=1e-11)
    by_hand = (1 + np.arange(outputs)) * (np.sqrt(1 + (passes.outputs - task.targets) ** 2) - 1)
    np.testing.assert_allclose(passes.loss, by_hand.sum(-1).mean(-1), rtol=1e-12)
    assert np.ptp(passes.loss) > 0.1


def test_errors_of_estimates_are_those_of_the_loss():
    """A hundred times the squared loss has a hundred times the bars; where outputs fit their targets, all that is left
    is of second order, half the variance of the mean by hand."""
    drawn = np.random.default_rng(2).normal(size=(6, 2, 3, 2))  # replicates, steps, samples, outputs
    targets = drawn[:, 1].mean(axis=0)
    bars = {}
    for scale, loss in ((1, "mse"), (100, lambda f, y: 100 * squared(f, y))):
        replicates = object.__new__(estimate.Replicates)
        replicates.task = nfd.Task(np.eye(3), targets, loss=loss)
        term = multilevel.Term(64, 2, False)
        replicates.found = {term: [{"outputs": outputs} for outputs in drawn]}
        bars[scale] = estimate.combine(replicates, {term: 1.0}, {term: 6}, None).errors["loss"].standard_error
    np.testing.assert_allclose(bars[100], 100 * bars[1], rtol=1e-12)
    by_hand = 0.5 * (drawn[:, 1].var(axis=0, ddof=1) / 6).sum(axis=-1).mean()
    assert bars[1][1] == pytest.approx(by_hand, rel=1e-12)


def test_a_loss_is_part_of_a_record(tmp_path):
    """Of one-hot targets, whose numbers are the same for two losses."""
    task = nfd.Task(np.eye(2), np.eye(2))
    options = {"width": 4, "steps": 1, "seeds": 1, "checkpoint": tmp_path}
    nfd.train_networks(task, nfd.ResNet(1), **options)
    for loss in ("cross_entropy", squared):
        with pytest.raises(ValueError, match=r"is of a run with loss='mse', and loss='.*' was asked for"):
            nfd.train_networks(dataclasses.replace(task, loss=loss), nfd.ResNet(1), **options)


def test_a_loss_that_reads_another_global_is_compiled_anew(monkeypatch):
    task = nfd.Task(np.eye(2), np.ones(2), loss=weighted)
    options = {"width": 8, "steps": 1, "seeds": 1}
    before = nfd.train_networks(task, nfd.ResNet(1), **options)
    monkeypatch.setitem(globals(), "WEIGHT", 3.0)
    after = nfd.train_networks(task, nfd.ResNet(1), **options)
    assert after.settings["loss"] != before.settings["loss"]
    assert after.loss[0, 0] == pytest.approx(3 * before.loss[0, 0], rel=1e-12)


WEIGHT = 1.0


def weighted(outputs, targets):
    return WEIGHT * squared(outputs, targets)


def test_labels_for_a_loss_of_ones_own():
    task = nfd.Task(INPUTS, np.array([2, 0, 2]), loss=rounded, classes=3)
    np.testing.assert_array_equal(task.targets, np.eye(3)[[2, 0, 2]])
    np.testing.assert_array_equal(task.labels, [2, 0, 2])
    assert nfd.Task(INPUTS, np.array([2, 0, 2]), loss=rounded).outputs == 1
    assert nfd.datasets.digits(4, loss=rounded).loss is rounded


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda f, y: jnp.mean((f - y) ** 2), r"makes \(\), float64 from .* no mean over samples"),
        (lambda f, y: (f - y) ** 2, r"makes \(1, 1\), float64 from .* with a sum over outputs"),
        (lambda f, y: np.asarray(f - y)[:, 0], "raises TracerArrayConversionError"),
        (lambda f, y: f[0] - y[0], r"makes \(1,\), float64 from \(3, 1\), \(3, 1\)"),
        (lambda f: f[:, 0], "raises TypeError: .* takes 1 positional argument but 2 were given"),
        (lambda f, y: ((f - y)[:, 0], 0.0), "raises TypeError"),
        (lambda f, y: (f > y)[:, 0], r"raises TypeError: grad requires real-valued outputs"),
        (lambda f, y: ((f - y) ** 2).sum(1).astype(jnp.float16), r"makes \(1,\), float16 from"),
    ],
)
def test_functions_that_are_no_losses(loss, message):
    with pytest.raises(TypeError, match=f"loss must be a name or a function .*, which {message}"):
        nfd.Task(INPUTS, np.zeros(3), loss=loss)


def test_losses_that_cannot_be_hashed():
    class Loss:
        __hash__ = None

        def __call__(self, outputs, targets):
            return squared(outputs, targets)

    with pytest.raises(TypeError, match="loss must be hashable"):
        nfd.Task(INPUTS, np.zeros(3), loss=Loss())


# ------------------------------------------------------------------ batches and held-out samples


def test_every_epoch_is_a_permutation_without_replacement():
    task = nfd.Task(np.eye(7), np.zeros(7)).minibatches(3, seed=5)
    batches = task.batches(6)  # three epochs of two batches, one sample left out of each
    assert batches.shape == (6, 3)
    for epoch in batches.reshape(3, 6):
        assert len(set(epoch.tolist())) == 6
    assert len({tuple(epoch) for epoch in batches.reshape(3, 6)}) == 3
    np.testing.assert_array_equal(task.batches(4), batches[:4])
    assert np.any(task.minibatches(3, seed=6).batches(6) != batches)


def test_batches_with_replacement_are_uniform():
    task = nfd.Task(np.eye(4), np.zeros(4)).minibatches(4, replacement=True)
    batches = task.batches(2500)
    counts = np.bincount(batches.ravel(), minlength=4)
    assert np.abs(counts - 2500).max() < 4.5 * (2500 * 0.75) ** 0.5  # binomial, fails once in 36,000 seeds
    assert max(len(set(batch)) for batch in batches.tolist()) == 4 > min(len(set(b)) for b in batches.tolist())


def test_full_batches_keep_the_order():
    task = nfd.Task(np.eye(3), np.zeros(3))
    assert task.full_batch
    assert task.minibatches(3).full_batch
    np.testing.assert_array_equal(task.minibatches(3).batches(2), [[0, 1, 2]] * 2)


def test_normalised_inputs_have_squared_length_d():
    raw = nfd.Task(INPUTS + 1, np.zeros(3))
    np.testing.assert_array_equal(raw.inputs, INPUTS + 1)
    scaled = nfd.Task(INPUTS + 1, np.zeros(3), normalise=True)
    np.testing.assert_allclose((scaled.inputs**2).sum(1), 2, rtol=1e-15)
    np.testing.assert_array_equal(scaled.minibatches(2).inputs, scaled.inputs)


# ------------------------------------------------------------------ classes


@pytest.mark.parametrize(
    ("targets", "options", "labels"),
    [
        ([1.0, -1.0, 1.0], {}, [1, -1, 1]),
        (np.eye(3), {}, [0, 1, 2]),
        (np.eye(3)[[2, 0, 2]] - 1 / 3, {}, [2, 0, 2]),
        ([2, 0, 2], {"loss": "cross_entropy"}, [2, 0, 2]),
        ([[0.2, 0.8], [0.9, 0.1], [0.0, 1.0]], {"loss": "cross_entropy"}, [1, 0, 1]),
    ],
)
def test_labels_and_accuracies(targets, options, labels):
    task = nfd.Task(INPUTS, np.asarray(targets), **options)
    np.testing.assert_array_equal(task.labels, labels)
    right = task.targets - task.targets.mean(axis=1, keepdims=True) * (task.outputs > 1)
    assert task.accuracy(right) == 1.0
    assert task.accuracy(-right) == 0.0
    one_wrong = np.stack([right, right])
    one_wrong[1, 2] *= -1
    np.testing.assert_allclose(task.accuracy(one_wrong), [1, 2 / 3], rtol=1e-15)
    assert task.accuracy(np.zeros_like(right)) == 0.0  # a tie is no answer
    for bad in (np.nan, np.inf):
        one_wrong[0, 0, 0] = bad
        np.testing.assert_array_equal(np.isnan(task.accuracy(one_wrong)), [True, False])


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        ([1.0, -1.0, 0.5], {}, r"one output needs targets -1 and \+1, got \[0.5\] for sample 2"),
        ([0.0, 1.0, 1.0], {}, r"one output needs targets -1 and \+1, got \[0.0\] for sample 0"),
        ([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0]], {}, r"rows of targets must be one-hot, got \[0.5, 0.0\] for sample 2"),
        ([[2.0, 1.0, 0.0]] * 3, {}, "rows of targets must be one-hot"),
        (np.ones((3, 2)), {}, "rows of targets must be one-hot"),
        ([[0.2, 0.8], [0.5, 0.5], [0, 1]], {"loss": "cross_entropy"}, r"one largest, got \[0.5, 0.5\] for sample 1"),
    ],
)
def test_targets_that_are_no_classes(targets, options, message):
    task = nfd.Task(INPUTS, np.asarray(targets), **options)
    with pytest.raises(ValueError, match=f"this task has no classes, so that there is no accuracy: .*{message}"):
        task.accuracy(np.zeros((3, task.outputs)))


def test_arrays_are_the_tasks_own():
    """Later changes of what it was made from do not reach it, and nobody can write into it."""
    inputs, targets = np.eye(2), np.ones((2, 1))
    held_out = nfd.Task(inputs, targets)
    task = nfd.Task(inputs, targets, held_out=held_out)
    for samples in (task, held_out, task.minibatches(1), task.holding_out(task)):
        inputs[0, 0], targets[0, 0] = 5.0, 5.0
        np.testing.assert_array_equal(samples.inputs, np.eye(2))
        np.testing.assert_array_equal(samples.targets, np.ones((2, 1)))
        for array in (samples.inputs, samples.targets):
            with pytest.raises(ValueError, match="read-only"):
                array[0, 0] = 5.0
        inputs[0, 0], targets[0, 0] = 1.0, 1.0


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_lengths_whose_squares_no_float_holds(size):
    task = nfd.Task(size * np.array([[3.0, 4.0]]), np.ones(1), normalise=True)
    np.testing.assert_allclose(task.inputs, 2**0.5 * np.array([[0.6, 0.8]]))
