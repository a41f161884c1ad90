"""Revealed matrices: what holds exactly, whatever the noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import final_state, input_coordinates, prepare

import nfd_jax as nfd
from nfd_jax.dynamics.initial import Initial
from nfd_jax.matrices.dense import DenseMatrices
from nfd_jax.matrices.noise import BACKWARD, FORWARD, PlainNoise
from nfd_jax.matrices.revealed import RevealedMatrices, Side

WIDTH, DEPTH, SAMPLES, STEPS = 96, 3, 3, 4
RANK = SAMPLES * STEPS
ROUNDING = 8 * WIDTH * float(np.finfo(np.float64).eps)  # of inner products of WIDTH terms of order one, a few times


def trained(coupled, matched, **options):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(SAMPLES, 2))
    inputs[2] = inputs[0]  # a dependent sample, whose rows stay zero
    task = nfd.Task(inputs, np.array([1.0, -1.0, 1.0]))
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


def rows(basis):
    return np.asarray(basis).reshape(DEPTH, RANK, WIDTH)


def test_bases_stay_orthonormal(matrices):
    for side in matrices.sides:
        queries = rows(side.queries)
        lengths = np.einsum("lmn,lmn->lm", queries, queries) / WIDTH
        used = lengths > 0.5
        gram = np.einsum("lmn,lkn->lmk", queries, queries) / WIDTH
        np.testing.assert_allclose(gram, used[:, :, None] * np.eye(RANK), rtol=0, atol=ROUNDING)
        np.testing.assert_array_equal(queries[~used], 0)
        np.testing.assert_array_equal(rows(side.images)[~used], 0)


def test_duplicates_add_no_rank_and_training_adds_some(matrices):
    forward = np.any(rows(matrices.sides[FORWARD].queries), axis=-1).reshape(DEPTH, STEPS, SAMPLES)
    assert not forward[:, :, 2].any()
    assert forward[:, 0, :2].all()
    assert forward[1:, 1:, :2].all()
    assert not forward[0, 1:].any()  # h_0 does not move where the input matrix is frozen
    backward = np.any(rows(matrices.sides[BACKWARD].queries), axis=-1).reshape(DEPTH, STEPS, SAMPLES)
    assert backward[-1].sum() == 1  # V, for every sample and step
    assert backward[:-1, :, :2].all()


def test_one_matrix_in_both_directions(matrices):
    """<W x, s> / sqrt(n) = <x, W^T s> / sqrt(n) for all stored queries where coupled, and not where decoupled."""
    forward, backward = matrices.sides
    left = np.einsum("lmn,lkn->lmk", rows(forward.images), rows(backward.queries)) / WIDTH
    right = np.einsum("lmn,lkn->lmk", rows(forward.queries), rows(backward.images)) / WIDTH
    if matrices.coupled:
        np.testing.assert_allclose(left, right, rtol=0, atol=ROUNDING)
        assert np.abs(left).max() > 1e-2
    else:
        assert np.abs(left - right).max() > 1e-2


@partial(jax.jit, static_argnums=1)
def images(matrices, direction, layer, vectors):
    """Images under the trained matrix of vectors in the span of what was queried, so that nothing is fresh.

    A backward query comes after the forward one of its step, so the last step at which it may come is the last.
    """
    step = STEPS if direction == FORWARD else STEPS - 1
    return matrices.query(direction, layer, jnp.asarray(step), vectors, keep=False)[0]


def combinations(queries, direction, seed):
    """Random combinations of the queries that precede such a query."""
    weights = np.random.default_rng(seed).normal(size=(SAMPLES, RANK))
    weights[:, (STEPS - direction) * SAMPLES :] = 0
    return weights * np.any(queries, axis=1)


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
def test_images_are_linear_and_repeatable(matrices, direction):
    """In the span of what was queried there is nothing fresh: images add up, and equal queries have equal ones."""
    queries = rows(matrices.sides[direction].queries)
    for layer in range(DEPTH):
        block = combinations(queries[layer], direction, layer) @ queries[layer]
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
    forward, backward = found.sides
    initial, learned = np.asarray(found.trained.initial), np.asarray(found.trained.learned)
    expected = (1 - 0.5 * 0.3) ** STEPS if options == "decayed" else 1.0
    np.testing.assert_allclose(initial, expected, rtol=1e-13)
    assert np.abs(learned).max() > 1e-2
    for layer in range(DEPTH):
        qx, y = rows(forward.queries)[layer], rows(forward.images)[layer]
        qs, z = rows(backward.queries)[layer], rows(backward.images)[layer]
        for direction, queries, image, opposite, low_rank in (
            (FORWARD, qx, y, qs, learned[layer]),
            (BACKWARD, qs, z, qx, learned[layer].T),
        ):
            weights = combinations(queries, direction, layer)
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

    shape = {"depth": DEPTH, "width": WIDTH, "steps": STEPS, "batch": SAMPLES}
    noise = PlainNoise(jax.random.key(0))
    matrices = RevealedMatrices.create(noise, **shape, coupled=True, dtype=np.dtype("float32"))
    for side in matrices.sides:
        for basis in side:
            assert basis.shape == (DEPTH, STEPS, SAMPLES, WIDTH)
            assert basis.dtype == jnp.float32
            assert not np.asarray(basis).any()


# ------------------------------------------------------------------ what is too short to be revealed


def revealed(dtype=np.float64, coupled=True, width=WIDTH, batch=SAMPLES, steps=3):
    """One matrix with a forward and a backward block revealed: the matrices, the queries, the forward images."""
    rng, shape = np.random.default_rng(1), (batch, width)
    noise = PlainNoise(jax.random.key(0))
    start = RevealedMatrices.create(
        noise, depth=1, width=width, steps=steps, batch=batch, coupled=coupled, dtype=np.dtype(dtype)
    )
    x, g = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
    y, _, after = start.query(FORWARD, *where(0), x, keep=True)
    z, _, after = after.query(BACKWARD, *where(0), g, keep=True)
    return after, (x, y), (g, z)


def where(step):
    """Layer 0 at a step."""
    return jnp.int32(0), jnp.int32(step)


def known_image(matrices, vectors):
    """Qs <Z, x>, the mean image of a vector orthogonal to all forward queries."""
    backward = matrices.sides[BACKWARD]
    along = backward.images[0, 0] @ vectors.T / vectors.shape[1]
    return along.T @ backward.queries[0, 0]


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_short_remainders_have_the_image_of_their_response(coupled, keep):
    """Rows new by less than ten roundings: their image moves by Qs <Z, x> where coupled, and not at all where not."""
    matrices, (x, y), _ = revealed(coupled=coupled, width=4096)
    unit = np.asarray(matrices.sides[BACKWARD].images[0, 0, 0])  # Z, along which the response is largest
    unit = unit - np.asarray(x).T @ np.linalg.solve(x @ x.T, x @ unit)
    moved = jnp.asarray(np.tile(2 * float(np.finfo(np.float64).eps) * unit, (SAMPLES, 1)))
    image, handle, after = matrices.query(FORWARD, *where(1), x + moved, keep=keep)
    expected = known_image(matrices, moved) if coupled else jnp.zeros_like(y)
    if keep:
        assert not np.any(np.asarray(handle)[SAMPLES:])
        assert not np.any(after.sides[FORWARD].queries[0, 1])
    scale = np.abs(known_image(matrices, moved)).mean()
    # the entries of the image are rounded, the response is the same in all: their mean along it is not
    along = np.asarray(matrices.sides[BACKWARD].queries[0, 0, 0])
    found, wanted = ((part * along).mean(axis=1) for part in (np.asarray(image - y), np.asarray(expected)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=0.2 * scale)


def test_a_direction_that_turns_out_to_be_noise_has_one_image_stored_or_not():
    """A basis a little off orthonormal, so that the second round of projection takes back what the first found new."""
    matrices, (x, y), _ = revealed(steps=4)
    side = matrices.sides[FORWARD]
    mixed = np.eye(SAMPLES) + 1e-9 * np.random.default_rng(2).normal(size=(SAMPLES, SAMPLES))
    side = Side(*(part.at[0, 0].set(mixed @ part[0, 0]) for part in side))
    matrices = RevealedMatrices((side, matrices.sides[BACKWARD]), matrices.trained, matrices.noise, True)
    mix = np.random.default_rng(3).normal(size=(SAMPLES, SAMPLES))
    for keep in (True, False):
        image, _, _ = matrices.query(FORWARD, *where(1), mix @ x, keep=keep)
        np.testing.assert_allclose(image, mix @ y, rtol=0, atol=1e-12)


# ------------------------------------------------------------------ numbers that are not finite, or hardly


def test_rows_that_are_not_finite_have_images_that_are_not():
    """And leave the images of the other rows, and the bases, alone."""
    matrices, (x, _), _ = revealed()
    clean, handle, _ = matrices.query(FORWARD, *where(1), x.at[1].set(2 * x[2]), keep=True)
    for bad in (jnp.nan, jnp.inf):
        image, found, after = matrices.query(FORWARD, *where(1), x.at[1, 5].set(bad), keep=True)
        assert np.isnan(image[1]).all()
        assert np.isnan(np.asarray(found)[:, 1]).all()  # and so will be every update that it takes part in
        np.testing.assert_allclose(image[np.array([0, 2])], clean[np.array([0, 2])], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(found[:, 0], handle[:, 0], rtol=0, atol=ROUNDING)
        assert all(np.all(np.isfinite(part)) for side in after.sides for part in side)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_large_and_small_queries_in_single_precision(keep, size):
    """Squares of their entries overflow or vanish: a query times a power of two has the image times this power."""
    power = float(2 ** np.round(np.log2(size)))
    matrices, (x, _), _ = revealed(np.float32)
    query = x[::-1] + 0.5
    ordinary, handle, _ = matrices.query(FORWARD, *where(1), query, keep=keep)
    image, scaled, _ = matrices.query(FORWARD, *where(1), power * query, keep=keep)
    np.testing.assert_array_equal(image, power * ordinary)
    np.testing.assert_array_equal(scaled, power * handle)
