"""Revealed matrices: what holds exactly, whatever the noise."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from helpers import final_state, input_coordinates, prepare

import nfd_jax as nfd
from nfd_jax.dynamics.initial import Initial
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.dense import DenseMatrices
from nfd_jax.matrices.noise import BACKWARD, FORWARD, PlainNoise, gaussians
from nfd_jax.matrices.revealed import NEVER, RevealedMatrices

WIDTH, DEPTH, SAMPLES, STEPS = 96, 3, 3, 4
RANK = SAMPLES * STEPS
ROUNDING = 8 * WIDTH * float(np.finfo(np.float64).eps)  # of inner products of WIDTH terms of order one, a few times


def trained(coupled, matched, **options):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES, 2))
    inputs[1] = inputs[0]  # a dependent sample, which reveals nothing
    task = nfd.Task(inputs, np.array([1.0, 1.0, -1.0]))
    problem, explicit, _ = prepare(task, nfd.ResNet(DEPTH, "tanh"), steps=STEPS, **options)
    layers = Initial(DEPTH, WIDTH, 2, 1, STEPS, SAMPLES, coupled, matched).layers(jax.random.key(0))
    state, _ = final_state(explicit, problem, explicit.start(layers), input_coordinates(inputs), task.targets)
    return state.layers.hidden


@pytest.fixture(scope="module", params=[(True, False), (False, False), (True, True)])
def matrices(request):
    """Revealed matrices after four steps of training: coupled, decoupled; coupled with matched noise."""
    return trained(*request.param)


@pytest.fixture(scope="module")
def decayed():
    return trained(True, False, momentum=0.5, weight_decay=0.3)


def test_bases_stay_orthonormal(matrices):
    for revealed in matrices.revealed:
        queries = np.asarray(revealed.queries)
        lengths = np.einsum("lmn,lmn->lm", queries, queries) / WIDTH
        used = lengths > 0.5
        gram = np.einsum("lmn,lkn->lmk", queries, queries) / WIDTH
        np.testing.assert_allclose(gram, used[:, :, None] * np.eye(RANK), rtol=0, atol=ROUNDING)
        np.testing.assert_array_equal(queries[~used], 0)
        np.testing.assert_array_equal(np.asarray(revealed.images)[~used], 0)


def test_duplicates_add_no_rank_and_training_adds_some(matrices):
    # h_0 does not move where the input matrix is frozen, and g_L is V for every sample and step
    expected = [[2] + [2 * STEPS] * (DEPTH - 1), [2 * STEPS] * (DEPTH - 1) + [1]]
    np.testing.assert_array_equal(matrices.ranks, expected)
    for rank, revealed in zip(expected, matrices.revealed, strict=True):
        np.testing.assert_array_equal(revealed.counts.values, rank)
        np.testing.assert_array_equal(np.any(revealed.queries, axis=-1), np.arange(RANK) < np.array(rank)[:, None])
        for steps, count in zip(np.asarray(revealed.steps), rank, strict=True):
            np.testing.assert_array_equal(steps[:count], np.arange(count) // 2)
            np.testing.assert_array_equal(steps[count:], NEVER)


def test_one_matrix_in_both_directions(matrices):
    """<W x, s> / sqrt(n) = <x, W^T s> / sqrt(n) for all stored queries where coupled, and not where decoupled."""
    forward, backward = matrices.revealed
    left = np.einsum("lmn,lkn->lmk", forward.images, backward.queries) / WIDTH
    right = np.einsum("lmn,lkn->lmk", forward.queries, backward.images) / WIDTH
    if matrices.coupled:
        np.testing.assert_allclose(left, right, rtol=0, atol=ROUNDING)
        assert np.abs(left).max() > 1e-2
    else:
        assert np.abs(left - right).max() > 1e-2


@partial(jax.jit, static_argnums=1)
def images(matrices, direction, layer, vectors):
    """Images under the trained matrix of vectors in the span of what was queried, so that nothing is fresh."""
    return matrices.query(direction, layer, jnp.asarray(STEPS), vectors, keep=False)[0]


def combinations(queries, seed):
    """Random combinations of queries."""
    return np.random.default_rng(seed).normal(size=(SAMPLES, RANK)) * np.any(queries, axis=1)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_images_are_linear_and_repeatable(matrices, direction):
    """In the span of what was queried there is nothing fresh: images add up, and equal queries have equal ones."""
    queries = np.asarray(matrices.revealed[direction].queries)
    for layer in range(DEPTH):
        block = combinations(queries[layer], layer) @ queries[layer]
        block[2] = 2 * block[0] - 3 * block[1]
        found = np.asarray(images(matrices, direction, jnp.asarray(layer), jnp.asarray(block)))
        size = np.abs(block).max() * np.abs(found).max()
        np.testing.assert_allclose(found[2], 2 * found[0] - 3 * found[1], rtol=0, atol=ROUNDING * size)
        again = np.asarray(images(matrices, direction, jnp.asarray(layer), jnp.asarray(block[[1, 0, 2]])))
        np.testing.assert_allclose(again[[1, 0, 2]], found, rtol=0, atol=ROUNDING * size)


@pytest.mark.parametrize("options", ["plain", "decayed"])
def test_trained_matrix_by_hand(request, matrices, decayed, options):
    """On revealed queries the trained matrix is initial W^0 + Qs^T learned Qx / sqrt(n), with its transpose."""
    found = decayed if options == "decayed" else matrices
    forward, backward = found.revealed
    initial, learned = np.asarray(found.trained.initial), np.asarray(found.trained.learned)
    expected = (1 - 0.5 * 0.3) ** STEPS if options == "decayed" else 1.0
    np.testing.assert_allclose(initial, expected, rtol=1e-13)
    assert np.abs(learned).max() > 1e-2
    for layer in range(DEPTH):
        qx, y = np.asarray(forward.queries)[layer], np.asarray(forward.images)[layer]
        qs, z = np.asarray(backward.queries)[layer], np.asarray(backward.images)[layer]
        for direction, queries, image, opposite, low_rank in (
            (FORWARD, qx, y, qs, learned[layer]),
            (BACKWARD, qs, z, qx, learned[layer].T),
        ):
            weights = combinations(queries, layer)
            by_hand = initial[layer] * weights @ image + weights @ low_rank.T @ opposite
            result = images(found, direction, jnp.asarray(layer), jnp.asarray(weights @ queries))
            tolerance = ROUNDING * RANK * max(1.0, np.abs(by_hand).max())
            np.testing.assert_allclose(result, by_hand, rtol=0, atol=tolerance)


def test_dense_matrices_multiply():
    rng = np.random.default_rng(0)
    forward, copies = (rng.normal(size=(2, 5, 5)) for _ in range(2))
    vectors = jnp.asarray(rng.normal(size=(3, 5)))
    layer = jnp.asarray(1)
    for backward in (None, jnp.asarray(copies)):
        matrices = DenseMatrices(jnp.asarray(forward), backward)
        for direction in (FORWARD, BACKWARD):
            result = matrices.query(direction, layer, layer, vectors, keep=True)[0]
            matrix = forward[1] if direction == FORWARD else (forward if backward is None else copies)[1].T
            np.testing.assert_allclose(result, np.asarray(vectors) @ matrix.T / 5**0.5, rtol=1e-13)


def test_nothing_is_revealed_at_first():
    from nfd_jax.matrices.noise import PlainNoise

    shape = {"depth": DEPTH, "width": WIDTH, "capacity": RANK}
    noise = PlainNoise(jax.random.key(0))
    matrices = RevealedMatrices.create(noise, **shape, coupled=True, dtype=np.dtype("float32"))
    assert not np.asarray(matrices.ranks).any()
    for revealed in matrices.revealed:
        for basis in (revealed.queries, revealed.images):
            assert basis.shape == (DEPTH, RANK, WIDTH)
            assert basis.dtype == jnp.float32
            assert not np.asarray(basis).any()


# ------------------------------------------------------------------ what is too short to be revealed


@partial(jax.jit, static_argnums=1, static_argnames="keep")
def query(matrices, direction, layer, step, vectors, *, keep):
    return matrices.query(direction, layer, step, vectors, keep=keep)


def revealed(dtype=np.float64, coupled=True, width=WIDTH, batch=SAMPLES, steps=3):
    """One matrix with a forward and a backward block revealed: the matrices, the queries, the forward images."""
    rng, shape = np.random.default_rng(1), (batch, width)
    noise = PlainNoise(jax.random.key(0))
    start = RevealedMatrices.create(
        noise, depth=1, width=width, capacity=steps * batch, coupled=coupled, dtype=np.dtype(dtype)
    )
    x, g = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    y, _, after = query(start, FORWARD, *where(0), x, keep=True)
    z, _, after = query(after, BACKWARD, *where(0), g, keep=True)
    return after, (x, y), (g, z)


def where(step):
    """Layer 0 at a step."""
    return jnp.int32(0), jnp.int32(step)


def known_image(matrices, vectors):
    """Qs <Z, x>, the mean image of a vector orthogonal to all forward queries."""
    backward = matrices.revealed[BACKWARD]
    return (backward.images[0] @ vectors.T / vectors.shape[1]).T @ backward.queries[0]


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_short_remainders_have_the_image_of_their_response(coupled, keep):
    """Rows new by less than ten roundings: their image moves by Qs <Z, x> where coupled, and not at all where not."""
    matrices, (x, y), _ = revealed(coupled=coupled, width=4096)
    unit = np.asarray(matrices.revealed[BACKWARD].images[0, 0])  # Z, along which the response is largest
    unit = unit - np.asarray(x).T @ np.linalg.solve(x @ x.T, x @ unit)
    moved = jnp.asarray(np.tile(2 * float(np.finfo(np.float64).eps) * unit, (SAMPLES, 1)))
    image, coordinates, after = query(matrices, FORWARD, *where(1), x + moved, keep=keep)
    expected = known_image(matrices, moved) if coupled else jnp.zeros_like(y)
    assert not np.any(np.asarray(coordinates)[SAMPLES:])
    np.testing.assert_array_equal(after.ranks, matrices.ranks)
    scale = np.abs(known_image(matrices, moved)).mean()
    # the entries of the image are rounded, the response is the same in all: their mean along it is not
    along = np.asarray(matrices.revealed[BACKWARD].queries[0, 0])
    found, wanted = ((part * along).mean(axis=1) for part in (np.asarray(image - y), np.asarray(expected)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.2 * scale)


def test_a_direction_that_turns_out_to_be_noise_has_one_image_stored_or_not():
    """A basis a little off orthonormal, so that the second round of projection takes back what the first found new."""
    matrices, (x, y), _ = revealed(steps=4)
    mixed = np.eye(SAMPLES) + 1e-9 * np.random.default_rng(2).normal(size=(SAMPLES, SAMPLES))
    rows = [
        part.at[0, :SAMPLES].set(mixed @ part[0, :SAMPLES]) for part in (matrices.both.queries, matrices.both.images)
    ]
    matrices = eqx.tree_at(lambda tree: (tree.both.queries, tree.both.images), matrices, rows)
    mix = np.random.default_rng(3).normal(size=(SAMPLES, SAMPLES))
    for keep in (True, False):
        image, _, _ = query(matrices, FORWARD, *where(1), mix @ x, keep=keep)
        np.testing.assert_allclose(image, mix @ y, rtol=0, atol=1e-12)


def test_members_side_by_side_are_read_as_one_is():
    """Their states have a leading axis, and so has what is read of them."""
    every = [revealed(width=width)[0] for width in (32, 32)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
    np.testing.assert_array_equal(together.ranks, np.stack([one.ranks for one in every], axis=1))
    for half, halves in zip(together.revealed, zip(*(one.revealed for one in every), strict=True), strict=True):
        jax.tree.map(np.testing.assert_array_equal, half, jax.tree.map(lambda *leaves: jnp.stack(leaves), *halves))


# ------------------------------------------------------------------ space by rank


@pytest.mark.parametrize("matched", [False, slow(True)])
def test_a_repeated_sample_takes_no_space(matched):
    """Every sample twice, after all others: the same training, the same numbers, and as many directions."""
    rng, samples = np.random.default_rng(2), 2
    inputs, targets, found = rng.normal(size=(samples, 2)), np.array([1.0, -1.0]), []
    coordinates = input_coordinates(inputs)
    for copies in (1, 2):
        chosen = np.tile(np.arange(samples), copies)
        task = nfd.Task(inputs[chosen], targets[chosen])
        problem, explicit, _ = prepare(task, nfd.ResNet(DEPTH, "tanh"), steps=STEPS)
        initial = Initial(DEPTH, WIDTH, 2, 1, STEPS, samples * copies, matched=matched)
        state = explicit.start(initial.layers(jax.random.key(0)))
        state, outputs = final_state(explicit, problem, state, coordinates[chosen], targets[chosen][:, None])
        hidden = state.layers.hidden
        for ranks, revealed in zip(hidden.ranks, hidden.revealed, strict=True):
            np.testing.assert_array_equal(ranks, revealed.counts.values)
            assert revealed.queries.shape[1] == STEPS * samples * copies
        found.append((outputs[:, :samples], hidden.ranks))
        np.testing.assert_allclose(outputs, np.tile(found[0][0], (1, copies, 1)), rtol=0, atol=ROUNDING)
    np.testing.assert_array_equal(found[1][1], found[0][1])
    assert np.max(found[1][1]) == STEPS * samples
    assert np.abs(np.diff(found[0][0], axis=0)).min() > 1e-3


@pytest.mark.parametrize("coupled", [True, False])
def test_normals_stay_with_their_queries(coupled):
    """A row that reveals something has its own normals, whatever the rank of those above it."""
    matrices, (x, _), _ = revealed(coupled=coupled)
    new = jnp.asarray(np.random.default_rng(6).normal(size=x.shape))
    _, _, full = query(matrices, FORWARD, *where(1), new, keep=True)
    _, _, last = query(matrices, FORWARD, *where(1), new.at[:-1].set(x[:-1]), keep=True)
    count = matrices.ranks[FORWARD, 0]
    np.testing.assert_array_equal(last.ranks[FORWARD], count + 1)
    np.testing.assert_array_equal(full.ranks[FORWARD], count + SAMPLES)
    normals = gaussians(jax.random.key(0), FORWARD, *where(1), new)
    backward = matrices.revealed[BACKWARD].queries[0, :SAMPLES]
    for after, row, normal in ((full, count + SAMPLES - 1, normals[-1]), (last, count, normals[-1])):
        image = after.revealed[FORWARD].images[0, row]
        rest = [part - (backward @ part / WIDTH) @ backward if coupled else part for part in (image, normal)]
        np.testing.assert_allclose(*rest, rtol=0, atol=ROUNDING)


def trained_by_hand(members, key, blocks):
    """Images and effective images of steps of query blocks `(steps, directions, batch, WIDTH)`, and ranks: of a network
    alone or one of several members under vmap."""
    steps, _, batch, _ = blocks.shape
    options = {"depth": 2, "width": WIDTH, "capacity": steps * batch, "coupled": True, "dtype": blocks.dtype}
    matrices = RevealedMatrices.create(PlainNoise(key), **options, members=members)
    images, every = [], matrices.no_coordinates(batch)
    for step in range(steps):
        layer, address = jnp.int32(step % 2), jnp.int32(step)
        y, forward, matrices = matrices.query(FORWARD, layer, address, blocks[step, FORWARD], keep=True)
        z, backward, matrices = matrices.query(BACKWARD, layer, address, blocks[step, BACKWARD], keep=True)
        gradient, matrices = matrices.add_gradient(matrices.trained, layer, backward, forward)
        matrices, every = matrices.with_parameters(gradient), every.at[layer].set(forward)
        images += [y, z]
    images.append(matrices.query(FORWARD, jnp.int32(0), jnp.int32(steps), blocks[1, FORWARD], keep=False)[0])
    return jnp.stack(images), matrices.effective_images(every), matrices.ranks


@pytest.mark.slow
def test_members_with_ranks_of_their_own():
    """Each has the numbers that it has alone, whatever the ranks of the others."""
    blocks = np.random.default_rng(3).normal(size=(3, 3, 2, 2, WIDTH))  # members, steps, directions, batch
    blocks[1, :, FORWARD, 1] = blocks[1, :, FORWARD, 0]
    blocks[1, 1:, BACKWARD, 0] = 0
    blocks[2, 2] = blocks[2, 0]
    keys, blocks = jax.random.split(jax.random.key(4), len(blocks)), jnp.asarray(blocks)
    together = jax.jit(jax.vmap(partial(trained_by_hand, bases.MEMBERS), axis_name=bases.MEMBERS))(keys, blocks)
    np.testing.assert_array_equal(together[2], [[[4, 2], [4, 2]], [[2, 1], [3, 1]], [[2, 2], [2, 2]]])
    for member, arguments in enumerate(zip(keys, blocks, strict=True)):
        alone = jax.jit(partial(trained_by_hand, None))(*arguments)
        np.testing.assert_array_equal(together[2][member], alone[2])
        for side_by_side, by_itself in zip(together[:2], alone[:2], strict=True):
            np.testing.assert_allclose(side_by_side[member], by_itself, rtol=0, atol=ROUNDING * np.abs(by_itself).max())


def test_nothing_is_written_over_what_is_known():
    """A count too large by one, where the compiler would move the block over the last direction: loudly wrong."""
    matrices, (x, _), _ = revealed(steps=2)
    counts = bases.Counts(jnp.full_like(matrices.both.counts.values, SAMPLES + 1))
    planted = eqx.tree_at(lambda tree: tree.both.counts, matrices, counts)
    new = jnp.asarray(np.random.default_rng(7).normal(size=x.shape))
    assert np.isfinite(query(matrices, FORWARD, *where(1), new, keep=True)[0]).all()
    assert np.isnan(query(planted, FORWARD, *where(1), new, keep=True)[0]).all()


# ------------------------------------------------------------------ numbers that are not finite, or hardly


def test_rows_that_are_not_finite_have_images_that_are_not():
    """And leave the images of the other rows, and the bases, alone."""
    matrices, (x, _), _ = revealed()
    clean, coordinates, _ = query(matrices, FORWARD, *where(1), x.at[1].set(2 * x[2]), keep=True)
    for bad in (jnp.nan, jnp.inf):
        image, found, after = query(matrices, FORWARD, *where(1), x.at[1, 5].set(bad), keep=True)
        assert np.isnan(image[1]).all()
        assert np.isnan(np.asarray(found)[:, 1]).all()  # and so will be every update that it takes part in
        np.testing.assert_allclose(image[np.array([0, 2])], clean[np.array([0, 2])], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(found[:, 0], coordinates[:, 0], rtol=0, atol=ROUNDING)
        assert all(np.all(np.isfinite(part)) for part in jax.tree.leaves(after.revealed))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_large_and_small_queries_in_single_precision(keep, size):
    """Squares of their entries overflow or vanish: a query times a power of two has the image times this power."""
    power = float(2 ** np.round(np.log2(size)))
    matrices, (x, _), _ = revealed(np.float32)
    rows = x[::-1] + 0.5
    ordinary, coordinates, _ = query(matrices, FORWARD, *where(1), rows, keep=keep)
    image, scaled, _ = query(matrices, FORWARD, *where(1), power * rows, keep=keep)
    np.testing.assert_array_equal(image, power * ordinary)
    np.testing.assert_array_equal(scaled, power * coordinates)
