"""Long training: what a resolution keeps, what it drops, and that nothing else changes."""

import functools
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from helpers import PERMUTATIONS, two_sample_p
from scipy.stats import f as f_distribution
from scipy.stats import t as student

import nfd_jax as nfd
from nfd_jax._checks import Outcome
from nfd_jax.dynamics import initial
from nfd_jax.matrices.compressed import CompressedMatrices
from nfd_jax.matrices.noise import BACKWARD, FORWARD, PlainNoise
from nfd_jax.matrices.orthonormal import norms
from nfd_jax.matrices.resolution import Capacity
from nfd_jax.runtime import capacity, loop, memory
from nfd_jax.solvers import multilevel

FINE = 1e-7  # of what float64 can tell from 0: the exact law
WIDTH, BATCH, CAPACITY = 48, 3, 24
QUIET = {"progress": False}
RNG = np.random.default_rng(0)


def matrices(resolution, *, coupled=True):
    """Two of them with nothing revealed."""
    noise = PlainNoise(jax.random.key(0))
    capacity = Capacity(CAPACITY, CAPACITY)
    options = {"depth": 2, "width": WIDTH, "capacity": capacity, "coupled": coupled, "dtype": np.dtype(float)}
    return CompressedMatrices.create(noise, resolution, **options)


@functools.partial(jax.jit, static_argnames=("direction", "layer"))
def ask(matrices, direction, layer, step, vectors):
    image, _, matrices = matrices.query(direction, jnp.int32(layer), step, vectors, keep=True)
    return image, matrices


def asked(resolution, blocks, *, coupled=True):
    """Matrices that were asked blocks of both directions in turn, layer 1 only."""
    hidden = matrices(resolution, coupled=coupled)
    for step, block in enumerate(blocks):
        for direction, vectors in zip((FORWARD, BACKWARD), block, strict=True):
            _, hidden = ask(hidden, direction, 1, jnp.int32(step), vectors)
    return hidden


def drifting(steps, size):
    """Blocks that move by a part of their length from step to step, as those of training do."""
    first = RNG.normal(size=(2, BATCH, WIDTH))
    return [first + size * step * RNG.normal(size=first.shape) / 8 for step in range(steps)]


# ------------------------------------------------------------------ what has been revealed is one matrix


@pytest.mark.parametrize("resolution", [0.02, 0.3])
def test_both_directions_see_one_matrix(resolution):
    """<g, W x> = <W^T g, x> for all blocks so far, dropped parts included: what makes gradients gradients."""
    blocks = drifting(4, 0.3)
    hidden = asked(resolution, blocks)
    images = {}
    for direction in (FORWARD, BACKWARD):
        every = [ask(hidden, direction, 1, jnp.int32(9), block[direction])[0] for block in blocks]
        images[direction] = np.concatenate(every)
    x, g = (np.concatenate([block[direction] for block in blocks]) for direction in (FORWARD, BACKWARD))
    forward, backward = g @ images[FORWARD].T, images[BACKWARD] @ x.T
    np.testing.assert_allclose(forward, backward, atol=1e-11 * np.abs(forward).max())
    ranks = np.asarray(hidden.ranks)
    assert ranks[:2, 1].max() < len(x) if resolution == 0.3 else ranks[:2, 1].min() > BATCH
    assert not ranks[:, 0].any()


def test_images_are_linear():
    """Of a matrix; and untied copies are two, whose dropped parts have images of zero."""
    hidden = asked(0.3, drifting(3, 0.2))
    x, y = RNG.normal(size=(2, BATCH, WIDTH))
    _, hidden = ask(hidden, FORWARD, 1, jnp.int32(7), jnp.concatenate([x, y]))
    one, other, both = (ask(hidden, FORWARD, 1, jnp.int32(8), part)[0] for part in (x, y, x - 3 * y))
    np.testing.assert_allclose(both, one - 3 * other, atol=1e-10)
    size = np.mean(one**2) ** 0.5
    assert 0.8 < size < 1.2  # of unit queries: no part of them is lost
    untied = asked(0.3, drifting(3, 0.2), coupled=False)
    _, untied = ask(untied, FORWARD, 1, jnp.int32(7), x)
    image, after = ask(untied, FORWARD, 1, jnp.int32(8), 1.01 * x)
    np.testing.assert_allclose(image, 1.01 * ask(untied, FORWARD, 1, jnp.int32(8), x)[0], atol=1e-11)
    np.testing.assert_array_equal(after.ranks, untied.ranks)


def test_queries_that_are_not_kept_have_the_law():
    """Means and covariances of images of a block in which some queries are known and some depend on others: those of a
    Gaussian matrix conditioned on what was asked before, by dense algebra. Two thousand draws, 5 sigma."""
    hidden, draws = asked(FINE, drifting(2, 0.5)), 2000
    known, new = np.asarray(hidden.revealed[FORWARD].queries[1, :2]), RNG.normal(size=(2, WIDTH))
    block = np.concatenate([known, new, 0.3 * new[:1] - 2 * known[1:], new.sum(0)[None]])

    @jax.jit
    @jax.vmap
    def images(key):
        other = eqx.tree_at(lambda tree: tree.noise, hidden, PlainNoise(key))
        return other.query(FORWARD, jnp.int32(1), jnp.int32(5), jnp.asarray(block), keep=False)[0]

    found = np.asarray(images(jax.random.split(jax.random.key(7), draws)))
    qx, y, qs, z = (np.asarray(getattr(each, name)[1]) for each in hidden.revealed for name in ("queries", "images"))
    coordinates = block @ qx.T / WIDTH
    rest = block - coordinates @ qx
    mean = coordinates @ y + rest @ z.T / WIDTH @ qs
    free = np.eye(WIDTH) - qs.T @ qs / WIDTH  # images have no more chance along what the other direction knows
    gram = rest @ rest.T / WIDTH
    error = np.sqrt(np.outer(np.diag(gram), np.diag(free)) / draws)
    assert np.all(np.abs(found.mean(0) - mean) < 5.5 * error + 1e-6)
    along = np.einsum("dan,dbn->dab", found - mean, found - mean)
    spread = np.sqrt(np.trace(free) * (np.outer(np.diag(gram), np.diag(gram)) + gram**2) / draws)
    assert np.all(np.abs(along.mean(0) - np.trace(free) * gram) < 5 * spread + 1e-6)
    np.testing.assert_allclose(found[:, :2], np.broadcast_to(y[:2], found[:, :2].shape), atol=1e-6)
    np.testing.assert_allclose(found[:, 5], found[:, 2] + found[:, 3], atol=1e-5)


def test_only_what_is_new_is_revealed():
    """As many directions as singular values above the resolution, whatever the unit of the queries."""
    scales = np.array([1.0, 0.03, 0.0004])
    block = np.linalg.qr(RNG.normal(size=(WIDTH, BATCH)))[0].T * WIDTH**0.5
    mixed = np.linalg.qr(RNG.normal(size=(BATCH, BATCH)))[0] @ (scales[:, None] * block)
    for resolution, rank in ((1e-4, 3), (5e-3, 2), (0.3, 1)):
        for unit in (1.0, 2.0**40, 2.0**-40):
            after = ask(matrices(resolution), FORWARD, 1, jnp.int32(0), unit * mixed)[1]
            assert int(after.ranks[FORWARD, 1]) == rank, (resolution, unit)


# ------------------------------------------------------------------ updates


@pytest.mark.parametrize("resolution", [0.3, 0.05, 1e-6])
def test_updates_lose_less_than_the_resolution(resolution):
    """|U - U P| <= resolution |U|, step by step and with what cancels in the sum, and the gradient is U P."""
    hidden = matrices(resolution)
    add = jax.jit(lambda hidden, g, x: hidden.add_gradient(hidden.trained, jnp.int32(1), g.T, x.T))
    x = RNG.normal(size=(BATCH, WIDTH))
    x[1] = x[0] + 0.05 * x[1]
    for step in range(4):
        g = RNG.normal(size=(BATCH, WIDTH))
        g[1] = -g[0]  # the common part of x_0 and x_1 cancels
        gradient, hidden = add(hidden, g * 1e-3, x + 0.1 * step * RNG.normal(size=x.shape))
        count = int(hidden.ranks[2, 1])
        assert count <= CAPACITY - BATCH
    x = RNG.normal(size=(BATCH, WIDTH))
    gradient, hidden = add(hidden, g * 1e-3, x)
    whole = (g.T * 1e-3) @ x / WIDTH
    kept = np.asarray(gradient.learned[1]).T @ np.asarray(hidden.updates.rows[1]) / WIDTH
    lost = np.linalg.norm(whole - kept) / np.linalg.norm(whole)
    assert lost <= resolution * (1 + 1e-9) + 1e-7
    rows = np.asarray(hidden.updates.rows[1][: int(hidden.ranks[2, 1])])
    np.testing.assert_allclose(rows @ rows.T / WIDTH, np.eye(len(rows)), atol=1e-12)


def test_an_update_of_nothing_takes_no_room():
    """Weights of zero, as at a loss of zero; and numbers that are not finite stay so and take none."""
    x = RNG.normal(size=(BATCH, WIDTH))
    for g, finite in ((np.zeros_like(x), True), (np.full_like(x, np.nan), False)):
        hidden = matrices(0.05)
        gradient, after = hidden.add_gradient(hidden.trained, jnp.int32(0), jnp.asarray(g.T), jnp.asarray(x.T))
        assert not np.asarray(after.ranks).any()
        assert np.isfinite(gradient.learned).all() == finite


# ------------------------------------------------------------------ against the exact law

OPTIONS = {
    "neither": {},
    # a rate at which it does not diverge: samples that become parallel differ by rounding, which has other normals
    "ends": {"train_input": True, "train_readout": True, "momentum": 0.5, "weight_decay": 0.2, "learning_rate": 0.2},
    "richness": {"richness": 0.7, "parametrization": "complete_p", "noise": "plain"},
}


CASES = [
    (nfd.ResNet(3, "tanh"), "coupled", "ends"),
    slow(nfd.MLP(2, "tanh"), "decoupled", "neither"),
    slow(nfd.ResNet(2, "relu", block="pre_inner"), "coupled", "richness"),
]


@pytest.mark.parametrize(("model", "closure", "options"), CASES)
def test_a_fine_resolution_is_the_exact_solution(model, closure, options):
    """On the same normals, which are those of the exact solution where batches have one sample."""
    task = nfd.datasets.digits(3).minibatches(1, seed=1)
    shared = {"steps": 7, "learning_rate": 1.0, "particles": 256, "closure": closure, **OPTIONS[options], **QUIET}
    exact, fine = (nfd.solve_limit(task, model, resolution=value, **shared) for value in (0.0, FINE))
    np.testing.assert_allclose(fine.outputs, exact.outputs, atol=1e-6)
    assert fine.ranks[0] <= 7
    coarse = nfd.solve_limit(task, model, resolution=0.5, **shared)
    assert np.abs(coarse.outputs - exact.outputs).max() > 1e-4  # what the test would not see otherwise


@functools.cache
def long_run(resolution, **changes):
    options = {"steps": 24, "learning_rate": 1.0, "particles": 256, "noise": "plain", **QUIET, **changes}
    return nfd.solve_limit(nfd.datasets.digits(4), nfd.ResNet(4, "tanh"), resolution=resolution, **options)


def test_errors_fall_with_the_resolution():
    """Of outputs, and of the logarithm of the loss, on one path; ranks grow slowly meanwhile."""
    finest = long_run(1e-5)
    off = [np.abs(long_run(value).outputs - finest.outputs).max() for value in (0.2, 0.05, 0.01)]
    assert off[0] > 2 * off[1] > 4 * off[2]
    assert off[2] < 5e-3
    loss = np.abs(np.log(long_run(0.01).loss / finest.loss)).max()
    assert loss < 0.05
    ranks = [max(long_run(value).ranks) for value in (0.2, 0.05, 0.01)]
    assert ranks[0] < ranks[1] < ranks[2] < 50 < max(finest.ranks) <= 96


@pytest.mark.slow
def test_the_law_of_networks():
    """Mean and standard deviation of outputs at every step, at a quarter of the resolution of long runs and with
    tied networks. False alarm 5e-5 (exact permutation test)."""
    task, model = nfd.datasets.digits(4), nfd.ResNet(8, "tanh")
    options = {"width": 64, "steps": 6, "learning_rate": 3.0, **QUIET}
    solved = nfd.solve_network(task, model, resolution=0.005, seeds=range(384), **options)
    trained = nfd.train_networks(task, model, seeds=range(1000, 1384), **options)
    smallest = 1 / (1 + PERMUTATIONS)
    assert two_sample_p(solved.outputs, trained.outputs) > smallest
    untied = nfd.train_networks(task, model, seeds=range(1000, 1384), backward="untied", **options)
    assert two_sample_p(solved.outputs, untied.outputs) == smallest


@pytest.mark.slow
@pytest.mark.parametrize("width", [64, 256, 512])
def test_the_law_of_networks_over_fifty_steps(width):
    """As above, to losses of a thousandth of the first."""
    task, model = nfd.datasets.digits(4), nfd.ResNet(4, "tanh")
    options = {"width": width, "steps": 50, "learning_rate": 1.0, **QUIET}
    solved = nfd.solve_network(task, model, resolution=0.005, seeds=range(192), **options)
    trained = nfd.train_networks(task, model, seeds=range(1000, 1192), **options)
    assert trained.mean("loss")[-1] < 2e-3 * trained.mean("loss")[0]
    assert two_sample_p(solved.outputs, trained.outputs) > 1 / (1 + PERMUTATIONS)


# ------------------------------------------------------------------ estimates


@pytest.mark.slow
def test_error_bars_of_long_training():
    """Against the exact recursion of a linear network; standard errors at a false-alarm rate of 5e-5 over all entries,
    and what the bars say of the resolution, which they measure."""
    gram, targets, steps = np.array([[1.0, 0.3], [0.3, 0.8]]), np.array([1.0, -0.5]), 16
    task, model = nfd.Task(np.linalg.cholesky(gram) * 2**0.5, targets), nfd.ResNet(4, "identity")
    options = {"steps": steps, "learning_rate": 1.0, "particles": 256, "tolerance": 100.0, **QUIET}
    run = nfd.solve_limit(task, model, resolution=0.05, **options)
    expected = nfd.analytic.linear_outputs(gram, targets, 4, 1.0, 1.0, steps, "coupled")
    bars = run.errors["outputs"]
    quantile = student.isf(5e-5 / 2 / expected.size, multilevel.PILOT_DIFFERENCES - 1)
    bound = (quantile * bars.standard_error + bars.resolution_error)[..., 0]
    assert np.all(np.abs(run.outputs[..., 0] - expected) <= bound + (4 / 256) ** 2)
    assert run.settings["resolutions"] == [0.2, 0.1, 0.05]
    assert "resolution 0.05" in run.summary()
    assert 0 < max(run.ranks) <= 2 * steps
    assert 0 < bars.resolution_error[1:].max() < 0.02
    assert np.all(run.errors["loss"].resolution_error[1:] > 0)


@pytest.mark.slow
def test_two_grids_on_one_path_have_ranks_of_their_own():
    """And differ no more than those of the exact law do: the ratio of two standard deviations of 24 differences each
    on the same noise, within what independent ones have at 5e-5."""
    task, spread = nfd.datasets.digits(3), {}
    for resolution in (0.0, 0.05):
        options = {"steps": 12, "learning_rate": 1.0, "particles": 128, "resolution": resolution, **QUIET}
        options |= {"noise": "plain", "seeds": 24}
        fine = nfd.solve_limit(task, nfd.ResNet(8, "tanh"), capacity=8, **options)
        coarse = nfd.solve_limit(task, nfd.ResNet(4, "tanh"), refinement=2, capacity=8, **options)
        spread[resolution] = (fine.outputs - coarse.outputs)[:, -1].std(axis=0, ddof=1)
        assert np.all(spread[resolution] < 0.5 * fine.outputs[:, -1].std(axis=0, ddof=1))
    largest = f_distribution.isf(5e-5 / 3, 23, 23) ** 0.5
    assert np.all(spread[0.05] < largest * spread[0.0])


# ------------------------------------------------------------------ capacity, members, checkpoints


def test_capacity_grows_and_changes_nothing(monkeypatch):
    grown = {}
    for room in (8, 256):
        monkeypatch.setattr(initial, "MOST_ROOM", room)
        shared = {"particles": 256, "noise": "matched", "momentum": 0.5, **QUIET}
        grown[room] = nfd.solve_limit(
            nfd.datasets.digits(4),
            nfd.ResNet(2, "tanh"),
            steps=6,
            resolution=0.02,
            observe=nfd.observables.ranks,
            **shared,
        )
    assert max(grown[8].ranks) > 8
    np.testing.assert_allclose(grown[8].outputs, grown[256].outputs, atol=1e-9)
    np.testing.assert_array_equal(grown[8].observed["ranks"], grown[256].observed["ranks"])
    # those of the last step: the pass after it sees more
    np.testing.assert_array_equal(grown[8].observed["ranks"][-2][:2].max(), grown[8].ranks[0])


@pytest.mark.slow
def test_members_have_ranks_of_their_own(monkeypatch):
    """Side by side they share offsets, and each has its numbers."""
    monkeypatch.setattr(initial, "MOST_ROOM", 8)
    options = {"steps": 5, "width": 64, "resolution": 0.05, "learning_rate": 1.0, **QUIET}
    task, model = nfd.datasets.digits(3), nfd.ResNet(2, "relu")
    together = nfd.solve_network(task, model, seeds=3, **options)
    for seed in range(3):
        alone = nfd.solve_network(task, model, seeds=[seed], **options)
        np.testing.assert_allclose(together.outputs[seed], alone.outputs[0], atol=1e-9)


@pytest.mark.slow
def test_matched_noise_lasts_as_long_as_there_is_room():
    """With few particles it is plain from some step on, and the run goes on."""
    few = long_run(0.01, particles=128, noise="matched")
    assert np.isfinite(few.outputs).all()
    assert few.loss[-1] < few.loss[0] / 10
    assert np.abs(few.outputs[0]).max() < 0.1 * np.abs(long_run(0.01).outputs[0]).max()


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    """After its capacity has grown."""
    monkeypatch.setattr(initial, "MOST_ROOM", 8)
    task, model = nfd.datasets.digits(3), nfd.ResNet(2, "tanh")
    options = {"steps": 6, "particles": 128, "resolution": 0.02, "momentum": 0.5, "checkpoint_every": 5, **QUIET}
    options |= {"noise": "plain"}
    whole = nfd.solve_limit(task, model, **options)
    seen, after = [], loop._write

    def dying(record, step, *arguments):
        written = after(record, step, *arguments)
        if step == 5:
            seen.append(step)
            raise KeyboardInterrupt
        return written

    monkeypatch.setattr(loop, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        nfd.solve_limit(task, model, checkpoint=tmp_path, **options)
    monkeypatch.setattr(loop, "_write", after)
    assert seen == [5]
    resumed = nfd.solve_limit(task, model, checkpoint=tmp_path, **options)
    np.testing.assert_array_equal(resumed.outputs, whole.outputs)
    assert resumed.ranks == whole.ranks
    assert max(whole.ranks) > 8


# ------------------------------------------------------------------ arguments


def test_long_runs_have_a_resolution_unasked():
    task, model = nfd.datasets.digits(2), nfd.ResNet(1, "tanh")
    short, long = (
        nfd.solve_limit(task, model, steps=steps, particles=64, noise="plain", **QUIET) for steps in (10, 300)
    )
    assert "resolution" not in short.settings
    assert long.settings["resolution"] == 0.02
    assert long.loss[-1] < 1e-6
    assert "directions revealed" in long.summary()
    assert max(long.ranks) < 60


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-0.1, ValueError, "resolution must be a finite number at least 0, got -0.1"),
        (1, ValueError, "resolution must be below 1, a part"),
        (float("nan"), ValueError, "resolution must be a finite number"),
        ("fine", TypeError, "resolution must be a real number, got 'fine'"),
    ],
)
def test_bad_resolutions(value, error, message, plain):
    nfd, task, model = plain, plain.datasets.digits(2), plain.ResNet(1)
    for solver in (nfd.solve_limit, nfd.solve_network):
        with pytest.raises(error, match=message):
            solver(task, model, resolution=value)
    with pytest.raises(error, match=message):
        nfd.sweep(task, model, widths=[8], engine="revealed", resolution=value)


def test_what_has_no_resolution():
    task, model = nfd.datasets.digits(2), nfd.ResNet(1)
    with pytest.raises(ValueError, match=r"resolution=0.1 is of revealed matrices; use engine='revealed'"):
        nfd.train_networks(task, model, resolution=0.1)
    with pytest.raises(ValueError, match="observe=ranks needs revealed matrices"):
        nfd.train_networks(task, model, observe=nfd.observables.ranks)
    with pytest.raises(ValueError, match="learned part of a matrix low rank"):
        nfd.solve_network(task, model, resolution=0.1, optimizer="adam")
    with pytest.raises(ValueError, match=r"resolution=0.3 is too coarse for error bars, .* at 1.2, .* try 0.02"):
        nfd.solve_limit(task, model, resolution=0.3, tolerance=0.1)


def test_rows_that_do_not_fit_are_not_written_over_others():
    """What the loop never lets happen."""
    hidden = asked(1e-6, [RNG.normal(size=(2, BATCH, WIDTH)) for _ in range(CAPACITY // BATCH)])
    images, updates = hidden.needed(BATCH)
    assert int(images) == CAPACITY + BATCH
    assert int(updates) == BATCH
    image, _ = ask(hidden, FORWARD, 1, jnp.int32(99), RNG.normal(size=(BATCH, WIDTH)))
    assert np.isnan(image).any()
    assert norms(hidden.revealed[0].queries[1]).all()


@pytest.mark.parametrize("held_out", [False, slow(True)])
def test_fitted_samples_are_evaluated_as_training_has_seen_them(held_out):
    """What was dropped of them is not drawn at the end, where a loss of 1e-9 would become one of resolution^4."""
    task = nfd.datasets.digits(4)
    if held_out:
        task = task.holding_out(nfd.datasets.digits(6, split="test"))
    options = {"particles": 256, "learning_rate": 2.0, "resolution": 0.1, "noise": "plain", **QUIET}
    shorter, longer = (nfd.solve_limit(task, nfd.ResNet(4, "tanh"), steps=steps, **options) for steps in (100, 101))
    assert longer.loss[100] < 1e-6 * longer.loss[0]
    np.testing.assert_allclose(shorter.outputs, longer.outputs[:101], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_run_that_memory_ends_keeps_what_it_has(monkeypatch):
    """With an outcome that says so, a way out, and the numbers of the steps that there were."""
    monkeypatch.setattr(initial, "MOST_ROOM", 12)
    task, model = nfd.datasets.digits(4), nfd.ResNet(2, "tanh")
    options = {"steps": 12, "particles": 128, "resolution": 0.01, "noise": "plain", **QUIET}
    whole = nfd.solve_limit(task, model, **options)
    monkeypatch.setattr(capacity, "memory", SimpleNamespace(of_state=memory.of_state, is_enough=lambda *_: False))
    short = nfd.solve_limit(task, model, **options)
    done = len(short.loss) - 1
    assert 0 < done < 12
    assert short.outcomes == (Outcome.OUT_OF_MEMORY,)
    assert f"after {done} of 12 steps" in short.summary()
    assert "coarser resolution" in short.summary()
    np.testing.assert_allclose(short.outputs, whole.outputs[: done + 1], atol=1e-9)
    np.testing.assert_array_equal(short.steps, range(done + 1))
