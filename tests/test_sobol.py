"""Scrambled Sobol points: nets, uniform, addressed by key and dimension."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, qmc

from nfd_jax.matrices.sobol import DIMENSIONS, SobolPoints, _sobol_generators

WIDTH = 1024


def spread(key, dimensions, width=WIDTH, dtype=np.float64):
    source = SobolPoints.create(jax.random.key(key), dimensions, width)
    return source.replace(jnp.zeros((dimensions, width), dtype), jnp.arange(dimensions))


def rows(*arguments, **options):
    return np.asarray(spread(*arguments, **options))


def test_generators_are_those_of_scipy():
    generators = _sobol_generators(7, 6)
    bits = (np.arange(64)[:, None] >> np.arange(6)) & 1
    points = np.bitwise_xor.reduce(np.where(bits[None] > 0, generators[:, None, :], 0), axis=2) / 2.0**32
    expected = qmc.Sobol(7, scramble=False).random(64)
    np.testing.assert_array_equal(points[:, np.arange(64) ^ (np.arange(64) >> 1)], expected.T)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_dimension_is_stratified(dtype):
    """One particle in each of `WIDTH` cells of equal probability, but for the few that lie within a rounding of an
    edge; independent particles would leave 1 / e of the cells empty."""
    values = rows(0, 300, dtype=dtype)
    assert np.abs(values).max() < 1
    cells = np.floor((values.astype(float) + 1) / 2 * WIDTH).astype(int)
    assert min(len(np.unique(row)) for row in cells) > 0.98 * WIDTH


def test_first_two_dimensions_are_a_net():
    """One point in every elementary interval of area 1 / WIDTH, whatever its shape."""
    first, second = (rows(3, 2) + 1) / 2
    for power in range(11):
        cells = np.floor(first * 2**power).astype(int) * WIDTH + np.floor(second * 2 ** (10 - power)).astype(int)
        assert len(np.unique(cells)) == WIDTH


def test_a_particle_over_keys_is_uniform():
    """Any particle and dimension, also where the number of particles is no power of two."""
    every = jax.jit(jax.vmap(lambda key: spread(key, 2, width=37)))(jnp.arange(400))
    values = np.asarray(every)[..., [0, 36]]  # keys, dimensions, particles
    assert all(kstest(column, "uniform", (-1, 2)).pvalue > 1e-5 for column in values.reshape(400, 4).T)
    for particle in range(2):  # its coordinates are independent
        assert abs(np.corrcoef(values[..., particle].T)[0, 1]) < 5 / 20


def test_numbers_depend_on_key_and_dimension_only():
    np.testing.assert_array_equal(rows(1, 5), rows(1, 9)[:5])
    np.testing.assert_array_equal(rows(1, 5)[:, :500], rows(1, 5, width=500))
    assert np.abs(rows(1, 5) - rows(2, 5)).min() > 0


def test_rows_without_a_dimension_are_left_alone():
    source = SobolPoints.create(jax.random.key(0), 4, WIDTH)
    ones = jnp.ones((3, WIDTH))
    found = source.replace(ones, jnp.array([2, 3, 4]))
    np.testing.assert_array_equal(found[2], ones[2])
    np.testing.assert_array_equal(found[:2], rows(0, 4)[2:])
    np.testing.assert_array_equal(source[4:].replace(ones, jnp.arange(3)), ones)
    assert len(SobolPoints.create(jax.random.key(0), 2 * DIMENSIONS, 4).shifts) == DIMENSIONS
