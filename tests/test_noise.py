"""Matched noise: orthonormal, orthogonal to what it lists and to nothing else, imposed where there is room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest

import nfd_jax as nfd
from nfd_jax.matrices.matched import MatchedNoise, least_width
from nfd_jax.matrices.noise import BACKWARD, FORWARD, PlainNoise, gaussians
from nfd_jax.matrices.orthonormal import orthonormalise
from nfd_jax.matrices.revealed import RevealedMatrices

WIDTH, BATCH, STEPS, INITIAL = 256, 2, 3, 3
EPS = float(np.finfo(np.float64).eps)


@jax.jit
def forward_query(matrices, step, vectors):
    return matrices.query(FORWARD, jnp.asarray(0), step, vectors, keep=True)[::2]


@jax.jit
def backward_query(matrices, step, vectors):
    return matrices.query(BACKWARD, jnp.asarray(0), step, vectors, keep=True)[::2]


@pytest.fixture(scope="module", params=["identity", "tanh"])
def record(request):
    """Three steps of queries of one matrix: the readout, and for every draw its direction, its query directions and
    its fresh part."""
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(INITIAL, WIDTH)))
    initial = orthonormalise(rows, jnp.zeros(INITIAL)).directions
    noise = MatchedNoise.create(jax.random.key(5), initial, 1, STEPS * BATCH)
    shape = {"depth": 1, "width": WIDTH, "capacity": STEPS * BATCH}
    # decoupled, so that the image of a new direction is its fresh part
    matrices = RevealedMatrices.create(noise, **shape, coupled=False, dtype=np.dtype("float64"))
    phi = nfd.ResNet(1, request.param).structure.phi
    draws = []
    for step in range(STEPS):
        h, g = (jnp.asarray(rng.normal(size=(BATCH, WIDTH))) for _ in range(2))
        # correlated with what is known, as a trained network's
        forward, backward = matrices.revealed
        h = h + backward.queries[0, :BATCH] + initial[:BATCH]
        g = g + forward.images[0, :BATCH] + forward.queries[0, :BATCH]
        for direction, query, vectors in ((FORWARD, forward_query, phi(h)), (BACKWARD, backward_query, g)):
            _, matrices = query(matrices, jnp.asarray(step), vectors)
            revealed, new = matrices.revealed[direction], slice(step * BATCH, (step + 1) * BATCH)
            draws.append((direction, np.asarray(revealed.queries[0, new]), np.asarray(revealed.images[0, new])))
    return np.asarray(initial), draws


def overlap(a, b):
    return np.abs(a @ b.T / WIDTH).max()


# A fresh part is orthogonal to every known row to the rounding of sums of WIDTH products, a few times over.
ROUNDING = 8 * WIDTH * EPS


def test_fresh_parts_are_orthonormal(record):
    _, draws = record
    for _, _, fresh in draws:
        np.testing.assert_allclose(fresh @ fresh.T / WIDTH, np.eye(BATCH), rtol=0, atol=ROUNDING)


def test_fresh_parts_are_orthogonal_to_what_is_known(record):
    """Query and readout; earlier images of the same direction and queries of the opposite one."""
    initial, draws = record
    for index, (direction, query, fresh) in enumerate(draws):
        assert overlap(fresh, initial) < ROUNDING
        assert overlap(fresh, query) < ROUNDING
        for other, earlier_query, earlier_fresh in draws[:index]:
            assert overlap(fresh, earlier_fresh if other == direction else earlier_query) < ROUNDING


def test_dependent_queries_keep_every_orthogonality():
    """Rows that repeat earlier ones, first, last or all, take no space: the others have what they always have."""
    rng, batch = np.random.default_rng(1), 3
    initial = orthonormalise(jnp.asarray(rng.normal(size=(1, WIDTH))), jnp.zeros(1)).directions
    capacity = STEPS * batch
    noise = MatchedNoise.create(jax.random.key(5), initial, 1, capacity)
    shape = {"depth": 1, "width": WIDTH, "capacity": capacity}
    matrices = RevealedMatrices.create(noise, **shape, coupled=False, dtype=np.dtype("float64"))
    before = {direction: [] for direction in (FORWARD, BACKWARD)}  # what the fresh parts of a direction must not see
    repeated = {FORWARD: ([2], [0], [0, 1, 2]), BACKWARD: ([0, 1], [1], [2])}
    first = {}
    for step in range(STEPS):
        for direction, query in ((FORWARD, forward_query), (BACKWARD, backward_query)):
            rows = rng.normal(size=(batch, WIDTH))
            dependent = repeated[direction][step]
            rows[dependent] = np.asarray(initial) if step == 0 else first[direction][-1]
            if step == 0 and direction == FORWARD:
                rows[2] = rows[0] + rows[1]
            first.setdefault(direction, rows)
            count = int(matrices.ranks[direction, 0])
            _, matrices = query(matrices, jnp.asarray(step), jnp.asarray(rows))
            new = int(matrices.ranks[direction, 0]) - count
            assert new == batch - len(dependent) + (step == 0 and direction == BACKWARD)  # V itself is new once
            revealed = matrices.revealed[direction]
            queries, fresh = (np.asarray(part)[0, count : count + new] for part in (revealed.queries, revealed.images))
            np.testing.assert_allclose(fresh @ fresh.T / WIDTH, np.eye(new), rtol=0, atol=ROUNDING)
            for known in (initial, queries, *before[direction]):
                assert not new or not len(known) or overlap(fresh, known) < ROUNDING
            before[direction].append(fresh)
            before[1 - direction].append(queries)
    known = matrices.noise.known
    for direction in (FORWARD, BACKWARD):
        rows = np.concatenate([np.asarray(initial), *before[direction]])
        rank = np.linalg.matrix_rank(rows)
        assert int(known.counts[direction]) == rank < len(initial) + 2 * capacity
        used = np.asarray(known.rows)[direction, :rank]
        np.testing.assert_allclose(used @ used.T / WIDTH, np.eye(rank), rtol=0, atol=ROUNDING)


def test_other_constraints_are_not_imposed(record):
    """What is not listed overlaps by order 1 / sqrt(n), so that the test above can fail."""
    _, draws = record
    free = [
        overlap(fresh, earlier_query if other == direction else earlier_fresh)
        for index, (direction, _, fresh) in enumerate(draws)
        for other, earlier_query, earlier_fresh in draws[:index]
    ]
    assert max(free) > 1e-3


def test_room():
    """The count by hand: readouts, two vectors a sample and step, the query, the block."""
    batch, steps, outputs = 4, 10, 1
    for evaluated, block in ((0, 4), (4, 4), (9, 9)):
        width = 4 * (outputs + 2 * batch * steps + 2 * block)
        assert least_width(batch, steps, outputs, evaluated) == width


def test_noise_is_plain_from_where_room_ends():
    """Of long training: one readout, two rows a step, two of the query and two of the block, by hand up to a quarter of
    64 particles. What comes later is what plain noise has, and constrains nothing."""
    width, steps, rng = 64, 8, np.random.default_rng(2)
    initial = orthonormalise(jnp.asarray(rng.normal(size=(1, width))), jnp.zeros(1)).directions
    key = jax.random.key(5)
    noise = MatchedNoise.create(key, initial, 1, steps * BATCH)

    @jax.jit
    def draw(noise, step, rows):
        return noise.draw(FORWARD, jnp.asarray(0), step, rows, keep=True, needed=jnp.asarray(True))

    plain = []
    for step in range(steps):
        rows = orthonormalise(jnp.asarray(rng.normal(size=(BATCH, width))), jnp.zeros(BATCH)).directions
        fresh, noise = draw(noise, jnp.asarray(step), rows)
        normals, _ = PlainNoise(key).draw(FORWARD, jnp.asarray(0), jnp.asarray(step), rows, keep=True)
        plain.append(np.array_equal(fresh, normals))
        assert plain[-1] or overlap(fresh, initial) < ROUNDING
    assert plain == [1 + 2 * step + 2 * 2 > 64 / 4 for step in range(steps)] == 6 * [False] + 2 * [True]
    assert np.asarray(noise.known.counts.values).tolist() == [1 + 2 * 6, 1 + 2 * 6]


def test_plain_noise_is_normal_and_addressed():
    """Standard normals, other ones at every address, the same ones at the same."""
    key, like = jax.random.key(0), jnp.zeros((4, 1000))
    draws = {}
    for direction in (FORWARD, BACKWARD):
        for layer in (0, 1):
            for step in (0, 1):
                address = (direction, jnp.asarray(layer), jnp.asarray(step))
                values, source = PlainNoise(key).draw(*address, like, keep=True)
                np.testing.assert_array_equal(values, gaussians(key, *address, like))
                assert isinstance(source, PlainNoise)
                draws[direction, layer, step] = np.asarray(values).ravel()
    every = np.stack(list(draws.values()))
    assert kstest(every.ravel(), "norm").pvalue > 1e-5
    correlation = np.corrcoef(every)[np.triu_indices(len(every), 1)]
    assert np.abs(correlation).max() < 5.5 / every.shape[1] ** 0.5  # 28 pairs, below 1e-6 together
