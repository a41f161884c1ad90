"""solve_network and train_networks have one law; runs are reproducible, and members do not see each other."""

import functools

import numpy as np
import optax
import pytest
from cases import slow
from helpers import PERMUTATIONS, two_sample_p

import nfd_jax as nfd
from nfd_jax.runtime import memory

SEEDS = 384
SOLVED, TRAINED = range(SEEDS), range(10_000, 10_000 + SEEDS)  # disjoint
SMALLEST = 1 / (1 + PERMUTATIONS)


@functools.cache
def outputs(solver, backward, width, activation, options=()):
    """Outputs (seeds, steps + 1, 4, 1) of the same task, before training included."""
    task = nfd.datasets.digits(4)
    train, seeds = {"solve": (nfd.solve_network, SOLVED), "train": (nfd.train_networks, TRAINED)}[solver]
    run = train(
        task,
        nfd.ResNet(8, activation),
        width=width,
        steps=4,
        learning_rate=3.0,  # where tied and untied networks differ by most of a standard deviation
        seeds=seeds,
        backward=backward,
        **dict(options),
    )
    assert set(run.diverged_at.tolist()) == {-1}
    return run.outputs


@pytest.mark.parametrize("backward", ["tied", "untied"])
def test_law_of_networks(backward):
    """Mean and standard deviation of every output at every step. False alarm 5e-5 a test (exact permutation test)."""
    solved, trained = outputs("solve", backward, 64, "tanh"), outputs("train", backward, 64, "tanh")
    assert solved.shape == trained.shape == (SEEDS, 5, 4, 1)
    assert two_sample_p(solved, trained) > SMALLEST


def test_law_tells_tied_from_untied():
    """The same test, applied to laws that differ, fails."""
    assert two_sample_p(outputs("solve", "tied", 64, "tanh"), outputs("train", "untied", 64, "tanh")) == SMALLEST


@pytest.mark.slow
def test_law_with_more_queries_than_neurons():
    """Sixteen queries of matrices of width 8: the rank of both bases ends, and the law is still that of networks."""
    solved = outputs("solve", "tied", 8, "tanh")
    assert np.all(np.isfinite(solved))
    assert two_sample_p(solved, outputs("train", "tied", 8, "tanh")) > SMALLEST


OPTIONS = (
    ("train_input", True),
    ("train_readout", True),
    ("richness", 0.8),
    ("momentum", 0.5),
    ("weight_decay", 0.3),
    ("learning_rate", optax.exponential_decay(0.3, 1, 0.8)),
)


@pytest.mark.slow
def test_law_with_every_layer_trained():
    """Inputs enter the solver in coordinates of their span, and decay shrinks what is not revealed yet."""
    task = nfd.datasets.digits(4)
    run = [
        solver(task, nfd.ResNet(8, "relu"), width=32, steps=4, seeds=seeds, **dict(OPTIONS)).outputs
        for solver, seeds in ((nfd.solve_network, SOLVED), (nfd.train_networks, TRAINED))
    ]
    assert two_sample_p(*run) > SMALLEST


@pytest.mark.parametrize("replacement", [slow(False), True])
def test_law_of_minibatches(replacement):
    """Queries of changing samples (repeated within a batch, with replacement); evaluations that are not stored, whose
    law is asked about step by step."""
    train = nfd.datasets.digits(6, classes=(0, 1, 2), loss="cross_entropy")
    test = nfd.datasets.digits(3, classes=(0, 1, 2), loss="cross_entropy", split="test")
    task = train.minibatches(4, replacement=replacement, seed=3).holding_out(test)
    if replacement:
        assert min(len(set(batch)) for batch in task.batches(4).tolist()) < 4
    options = {"width": 32, "steps": 4, "learning_rate": 2.0, "train_input": True, "evaluate_at": (0, 2, 4)}
    solved, trained = (
        solver(task, nfd.ResNet(4, "relu"), seeds=seeds, **options)
        for solver, seeds in ((nfd.solve_network, SOLVED), (nfd.train_networks, TRAINED))
    )
    assert solved.outputs.shape == (SEEDS, 3, 6, 3)
    assert solved.held_out.outputs.shape == (SEEDS, 3, 3, 3)
    for name in ("outputs", "loss", "batch_loss"):
        assert two_sample_p(getattr(solved, name), getattr(trained, name)) > SMALLEST
    assert two_sample_p(solved.held_out.outputs, trained.held_out.outputs) > SMALLEST
    # another order of the batches is another law
    other = nfd.solve_network(task.minibatches(4, seed=4), nfd.ResNet(4, "relu"), seeds=SOLVED, **options)
    assert two_sample_p(other.outputs[:, 1:], trained.outputs[:, 1:]) == SMALLEST


# ------------------------------------------------------------------ reproducibility


def small(solver, seeds, steps=3):
    rng = np.random.default_rng(0)
    task = nfd.Task(rng.normal(size=(2, 3)), np.array([1.0, -1.0]))
    return solver(task, nfd.ResNet(3, "tanh"), width=16, steps=steps, learning_rate=0.5, seeds=seeds)


SOLVERS = pytest.mark.parametrize("solver", [nfd.solve_network, nfd.train_networks])
ROUNDING = 1e-13  # three steps of a network of depth 3 and width 16: some hundred roundings of numbers of order one


@SOLVERS
def test_same_seed_same_numbers(solver):
    """Bit for bit, and an int counts from zero."""
    first, again, listed = (small(solver, seeds) for seeds in (3, 3, [0, 1, 2]))
    np.testing.assert_array_equal(first.outputs, again.outputs)
    np.testing.assert_array_equal(first.outputs, listed.outputs)
    assert first.outputs.shape == (3, 4, 2, 1)
    np.testing.assert_allclose(first.loss, 0.5 * ((first.outputs - first.task.targets) ** 2).sum(3).mean(2), rtol=1e-12)
    assert first.seeds == listed.seeds == (0, 1, 2)
    assert len(np.unique(first.outputs[:, -1, 0, 0])) == 3
    other = small(solver, [3, 4, 5])
    assert np.abs(other.outputs - first.outputs).min() > 1e-9


@SOLVERS
def test_members_do_not_see_each_other(solver):
    """To rounding: programs for other numbers of members may sum in another order."""
    together, alone = small(solver, [7, 0, 2]), small(solver, 1)
    np.testing.assert_allclose(together.outputs[1], alone.outputs[0], rtol=0, atol=ROUNDING)
    np.testing.assert_array_equal(small(solver, [2, 7, 0]).outputs[2], together.outputs[1])


@SOLVERS
def test_chunks_of_members_change_nothing(solver, monkeypatch):
    together = small(solver, 3)
    monkeypatch.setattr(memory, "BUDGET", 1)  # one at a time
    np.testing.assert_allclose(small(solver, 3).outputs, together.outputs, rtol=0, atol=ROUNDING)


@SOLVERS
def test_longer_runs_begin_as_shorter_ones(solver):
    """To rounding: revealed matrices with room for more steps are other programs."""
    short, long = small(solver, 3, steps=3), small(solver, 3, steps=5)
    np.testing.assert_allclose(long.outputs[:, :4], short.outputs, rtol=0, atol=ROUNDING)
    assert np.abs(long.outputs[:, 5] - short.outputs[:, 3]).min() > 1e-6


def test_members_of_other_ranks():
    """Where units are dead the rank of a narrow matrix is another for every seed; each member is as it is alone."""
    task = nfd.datasets.digits(2)

    def ranked(seeds):
        def observe(snapshot):
            return {"ranks": snapshot.matrices.ranks}

        model, options = nfd.ResNet(3, "relu"), {"width": 4, "steps": 3, "learning_rate": 0.5}
        return nfd.solve_network(task, model, seeds=seeds, observe=observe, **options)

    together = ranked(range(8))
    ranks = together.observed["ranks"]
    assert len(np.unique(ranks[:, -1], axis=0)) > 2
    assert np.all(np.diff(ranks, axis=1) >= 0)
    for seed in range(0, 8, 3):
        alone = ranked([seed])
        np.testing.assert_array_equal(ranks[seed], alone.observed["ranks"][0])
        np.testing.assert_allclose(together.outputs[seed], alone.outputs[0], rtol=0, atol=100 * ROUNDING)
