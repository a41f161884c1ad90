"""Bases in isolation: reconstruction, orthonormality and rank of any block, and kernels at many rows and columns."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from hypothesis import given, settings

from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.orthonormal import inner, magnitudes, norms, orthonormalise, product

WIDTH, BATCH, BLOCKS = 48, 4, 2
RANK = BATCH * BLOCKS
DTYPES = (np.float32, np.float64)
ROUNDING = {dtype: float(np.finfo(dtype).eps) for dtype in DTYPES}


@functools.cache
def known_basis(dtype):
    """Orthonormal rows, one of them zero, and room for a block that stays empty: `(1, RANK + BATCH, WIDTH)`."""
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, RANK)))[0].T * WIDTH**0.5
    rows[RANK - 1] = 0
    empty = np.zeros((BATCH, WIDTH))
    return jnp.asarray(np.concatenate([rows, empty])[None], dtype)


@functools.cache
def split(dtype):
    basis, where = known_basis(dtype), (jnp.asarray(0), jnp.asarray(RANK))
    return jax.jit(lambda query: bases.split(basis, *where, query))


KINDS = st.sampled_from(["free", "zero", "tiny", "known", "repeated", "combined", "close"])
BLOCK = st.tuples(
    st.lists(KINDS, min_size=BATCH, max_size=BATCH),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-2, 1e-4, 1e-6, 1e-9, 1e-12]),
)


def make_block(kinds, seed, gap, dtype):
    """Rows of given kinds; a row that must be new to the basis and the rows above it is True in `new`, one that must
    not be is False, and one closer than rounding can tell is None."""
    rng = np.random.default_rng(seed)
    known = np.asarray(known_basis(np.float64)).reshape(-1, WIDTH)[: RANK - 1]
    rows, new = [], []
    for kind in kinds:
        free, above = rng.normal(size=WIDTH), [row for row in rows if np.any(row)]
        kind = "free" if not above and kind in ("repeated", "combined", "close") else kind
        first = above[0] if above else free
        length = np.abs(first).max()
        row, verdict = {
            "free": (free, True),
            "zero": (0 * free, False),
            "tiny": (1e-12 * free, True),
            "known": (rng.uniform(0.5, 2, size=len(known)) @ known, False),
            "repeated": (first, False),
            "combined": (first + length * known[0], False),
            "close": (first + length * gap * free, None),
        }[kind]
        if kind == "close" and gap > 1e3 * ROUNDING[dtype]:
            verdict = True
        rows.append(row.astype(dtype).astype(np.float64))
        new.append(verdict)
    return np.array(rows).astype(dtype), new


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(block=BLOCK)
def test_split(dtype, block):
    query, new = make_block(*block, dtype)
    found = split(dtype)(jnp.asarray(query))
    eps, query = ROUNDING[dtype], query.astype(np.float64)
    directions, rows = (np.asarray(part, np.float64) for part in (found.directions, found.rows))
    triangular, coordinates = (
        sum(np.asarray(term, np.float64) for term in terms) for terms in (found.triangular, found.coordinates)
    )
    active = np.asarray(found.active)
    known = np.asarray(known_basis(dtype), np.float64)[0]
    assert all(np.all(np.isfinite(part)) for part in (rows, triangular, coordinates))

    for row, verdict in enumerate(new):
        assert verdict is None or active[row] == verdict, (row, block)
    assert not directions[~active].any()
    first = np.asarray(found.triangular.high)
    np.testing.assert_array_equal(np.tril(first[:, active][active], -1), 0)
    assert np.all(np.diag(first)[active] > 0)

    # orthonormal to each other and to the basis: a sum of WIDTH products has an error below WIDTH roundings, and the
    # shift of the last pass takes 10 BATCH roundings off the diagonal
    gram = directions @ directions.T / WIDTH
    np.testing.assert_allclose(gram, np.diag(active * 1.0), rtol=0, atol=(WIDTH + 10 * BATCH) * eps)
    np.testing.assert_allclose(directions @ known.T / WIDTH, 0, rtol=0, atol=WIDTH * eps)

    # Each row comes back, remainders included. Its RANK + BATCH terms are rounded a few times in two rounds. The factor
    # of a block is applied by its inverse, which multiplies roundings by the condition number: of the rows above, and
    # at most that of the shifted Gram matrix.
    rebuilt = coordinates.T @ known + triangular.T @ rows
    length = np.sqrt(np.mean(query**2, axis=1))
    error = np.sqrt(np.mean((rebuilt - query) ** 2, axis=1))
    share = np.where(active & (length > 0), np.diag(first) / np.where(length > 0, length, 1), 1)
    above = np.minimum.accumulate(np.concatenate([[1.0], share[:-1]]))
    condition = 1 / np.maximum(above, (10 * BATCH * eps) ** 0.5)
    bound = 4 * (RANK + BATCH) * eps * condition * length
    assert np.all(error <= bound), (error, bound)


def test_remainders_of_directions_that_turn_out_to_be_noise():
    """A row that the first round takes for new and the second does not is given back in full all the same."""
    rng = np.random.default_rng(4)
    known = np.asarray(known_basis(np.float64))
    mixed = (np.eye(RANK) + 1e-9 * rng.normal(size=(RANK, RANK))) @ known[0, :RANK]
    mixed[RANK - 1] = 0
    basis = known.copy()
    basis[0, :RANK] = mixed  # one projection leaves 1e-9 of a row within the span
    query = rng.uniform(0.5, 2, size=(BATCH, RANK)) @ mixed
    query[0] = rng.normal(size=WIDTH)
    found = bases.split(jnp.asarray(basis), jnp.asarray(0), jnp.asarray(RANK), jnp.asarray(query))
    np.testing.assert_array_equal(found.active, [True, False, False, False])
    assert np.all(np.diag(found.triangular.high)[1:] < 1e-6)  # what the first round took for a direction
    coordinates, triangular = (sum(map(np.asarray, part)) for part in (found.coordinates, found.triangular))
    rebuilt = coordinates.T @ basis[0] + triangular.T @ np.asarray(found.rows)
    rounding = 4 * (RANK + BATCH) * ROUNDING[np.float64] * np.abs(query).max()
    np.testing.assert_allclose(rebuilt, query, rtol=0, atol=rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_orthonormalise_keeps_orthonormal_rows(dtype):
    """A block that is orthonormal already, shifted or not, is its own factor."""
    rows = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, BATCH)))[0].T * WIDTH**0.5
    rows = jnp.asarray(rows, dtype)
    found = orthonormalise(rows, jnp.zeros(BATCH, dtype))
    # the shift of the last pass, 10 BATCH roundings, shortens rows by half of it; inner products add WIDTH roundings
    tolerance = (5 * BATCH + WIDTH) * ROUNDING[dtype]
    np.testing.assert_allclose(found.directions, rows, rtol=0, atol=tolerance * np.abs(rows).max())
    np.testing.assert_allclose(found.triangular, np.eye(BATCH), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_of_rows_decides(dtype):
    """Gram-Schmidt order: the first rows span the same space whatever follows them."""
    rng = np.random.default_rng(2)
    rows = jnp.asarray(rng.normal(size=(BATCH, WIDTH)), dtype)
    changed = rows.at[-1].set(jnp.asarray(rng.normal(size=WIDTH), dtype))
    first, second = split(dtype)(rows), split(dtype)(changed)
    tolerance = 10 * WIDTH * ROUNDING[dtype]  # rows of condition number below 10
    np.testing.assert_allclose(first.directions[:-1], second.directions[:-1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("capacity", [slow(RANK + BATCH), 5, slow(7)])
def test_nothing_beyond_the_count_is_read(capacity):
    """Rows past it may hold anything, also where the tiles that are read do not divide the capacity."""
    query = jnp.asarray(np.random.default_rng(3).normal(size=(BATCH, WIDTH)))
    known = np.asarray(known_basis(np.float64))[0]
    for count in range(min(RANK, capacity) + 1):
        basis = known_basis(np.float64)[:, :capacity].at[0, count:].set(jnp.nan)
        found = bases.split(basis, jnp.asarray(0), jnp.asarray(count), query)
        np.testing.assert_allclose(found.coordinates.high[:count], known[:count] @ query.T / WIDTH, rtol=0, atol=1e-13)
        assert np.all(np.isfinite(found.directions))
        assert not any(np.asarray(term)[count:].any() for term in found.coordinates)


def test_active_rows_come_first():
    """In their order, with zero rows after them."""
    rows = jnp.arange(1.0, 9.0).reshape(4, 2)
    for active, expected in (([1, 1, 1, 1], [0, 1, 2, 3]), ([0, 1, 0, 1], [1, 3]), ([0, 0, 0, 0], [])):
        found = bases.compact(jnp.asarray(active, bool), rows)[0]
        np.testing.assert_array_equal(found[: len(expected)], rows[jnp.asarray(expected, int)])
        assert not np.any(found[len(expected) :])


def test_a_block_that_does_not_fit_is_not_a_number():
    """`dynamic_update_slice` alone would put it over the rows before, and nobody would know."""
    basis, rows = jnp.ones((2, 6, 3)), jnp.full((2, 3), 2.0)
    fits = bases.write(basis, 1, 4, rows)
    np.testing.assert_array_equal(fits[1, 4:], 2)
    np.testing.assert_array_equal(fits[1, :4], 1)
    assert np.isnan(bases.write(basis, 1, 5, rows)[1]).any()


def test_counts_of_members_are_the_largest():
    """One for all members, and unbatched, so that an offset is one number."""
    active = jnp.asarray([[True, False], [True, True], [False, False]])

    def one(values, active):
        counts = bases.Counts(values, bases.MEMBERS).add(1, active)
        return counts.values, counts[1]

    together = jax.vmap(one, out_axes=(0, None), axis_name=bases.MEMBERS)
    values, offset = together(jnp.zeros((3, 2), jnp.int32), active)
    assert offset == 2
    np.testing.assert_array_equal(values, [[0, 2]] * 3)


def test_coordinates_are_known_better_than_one_number_holds():
    """Those of new rows and of repeated ones, against float64: one rounding would shift all particles alike."""
    rng, shape = np.random.default_rng(5), (1, 2 * BATCH, 40_000)
    query = jnp.asarray(rng.normal(size=(BATCH, shape[2])) + rng.normal(size=(1, shape[2])), jnp.float32)
    where, split = jnp.asarray(0), jax.jit(bases.split)
    new = split(jnp.zeros(shape, jnp.float32), where, jnp.asarray(0), query)
    basis = bases.write(jnp.zeros(shape, jnp.float32), where, jnp.asarray(0), new.rows)
    again = split(basis, where, jnp.asarray(BATCH), query)
    rows, exact = np.asarray(new.rows, np.float64), np.asarray(query, np.float64)
    exact = np.linalg.solve(rows @ rows.T, rows @ exact.T)
    # the entries of a remainder are rounded, about twice, to an eps of their own, and independently
    independent = 6 * 2 / shape[2] ** 0.5
    # what is left of a repeated row is less than an eps, and rounded as a whole: of the mean of numbers that scatter by
    # one rounding, of variance 1/12, this takes exp(-2 pi^2 / 12) / pi of an eps at most, its first Fourier coefficient
    together = np.exp(-2 * np.pi**2 / 12) / np.pi
    repeated = jax.tree.map(lambda part: part[:BATCH], again.coordinates)
    for terms, most in ((new.triangular, independent), (repeated, independent + together)):
        high, low = (np.asarray(term, np.float64) for term in terms)
        error, alone = np.abs(high + low - exact).max(), np.abs(high - exact).max()
        assert error < most * ROUNDING[np.float32] * np.abs(exact).max()
        assert alone > 5 * error


@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitudes(dtype):
    """Powers of two within a factor of four of the largest entry, for all numbers of normal size."""
    bits = jnp.finfo(dtype)
    largest = np.array([1.0, 3.0, 1e-30, 1e30, float(bits.max), 8 * float(bits.smallest_normal)])
    rows = jnp.asarray(largest[:, None] * np.array([0.1, -1.0, 0.5]), dtype)
    found = np.asarray(magnitudes(rows), np.float64)
    np.testing.assert_array_equal(np.log2(found) % 1, 0)
    assert np.all((largest / found >= 1) & (largest / found <= 4))
    np.testing.assert_array_equal(magnitudes(jnp.zeros((1, 3), dtype)), 1)
    assert np.isnan(magnitudes(jnp.asarray([[1.0, jnp.nan], [jnp.inf, 0.0]], dtype))).all()


# ------------------------------------------------------------------ long rows


COLUMNS = 40_000  # past 16,384 float64 and 32,768 float32, where jax 0.10.2 reads other rows (test_canary.py)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_kernels_of_long_rows(dtype, batch):
    """Every sum over n has an error below n u times the sum of magnitudes, u half the machine epsilon; a blocked sum
    is far better, of order sqrt(n), which is what a wrong row would have to hide in."""
    rng = np.random.default_rng(batch)
    a, b = (rng.normal(size=(batch, COLUMNS)).astype(dtype) for _ in range(2))
    basis = rng.normal(size=(1, 2 * batch, COLUMNS)).astype(dtype)
    coordinates = rng.normal(size=(2 * batch, batch)).astype(dtype)
    where = (jnp.asarray(0), jnp.asarray(2 * batch))

    @jax.jit
    def kernels(a, b, basis, coordinates):
        return (
            inner(a, b),
            norms(a),
            bases.combine(basis, *where, coordinates),
            bases.project(basis, *where, a),
            jnp.sum((a - product(inner(a, b), b)) ** 2, axis=1),
        )

    products, lengths, combined, (found, rest), reduced = jax.tree.map(
        lambda x: np.asarray(x, np.float64), kernels(*map(jnp.asarray, (a, b, basis, coordinates)))
    )
    a, b, basis, coordinates = (x.astype(np.float64) for x in (a, b, basis, coordinates))
    eps = ROUNDING[dtype]
    sums = 4 * COLUMNS**0.5 * eps  # relative to the root mean square, which is one here

    np.testing.assert_allclose(products, a @ b.T / COLUMNS, rtol=0, atol=sums)
    np.testing.assert_allclose(lengths, np.sqrt(np.mean(a**2, axis=1)), rtol=0, atol=sums)
    terms = 2 * batch + 2
    total, magnitude = coordinates.T @ basis[0], np.abs(coordinates).T @ np.abs(basis[0])
    np.testing.assert_array_less(np.abs(combined - total), terms * eps * magnitude)

    expected, left = np.empty_like(found), a
    for j in (slice(batch), slice(batch, None)):  # two tiles
        expected[j] = basis[0, j] @ left.T / COLUMNS
        left = left - expected[j].T @ basis[0, j]
    np.testing.assert_allclose(found, expected, rtol=0, atol=sums * terms)
    largest = np.abs(basis[0]).sum(axis=0)
    np.testing.assert_array_less(np.abs(rest - left), terms * (sums * largest + eps * (np.abs(a) + largest)))

    square = np.sum((a - (a @ b.T / COLUMNS) @ b) ** 2, axis=1)
    np.testing.assert_allclose(reduced, square, rtol=terms * sums)
