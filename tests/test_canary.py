"""Does the installed XLA CPU compiler get a per-row mat-vec plus reduction right?"""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement


def test_compiler_canary():
    # jaxlib 0.10.2 fuses this and, past 128 KiB of output (16,384 rows of
    # float64, 32,768 of float32), silently reads other rows' inputs (jax #39103).
    rows, size = 40_000, 3
    rng = np.random.default_rng(0)
    points = rng.normal(size=(rows, size))
    matrix = rng.normal(size=(size, size))

    def quadratic(point, matrix):
        return jnp.sum(jnp.square(matrix @ point))

    compiled = jax.jit(jax.vmap(quadratic, in_axes=(0, None)))
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(True):
            x, m = points.astype(dtype), matrix.astype(dtype)
            got = np.asarray(compiled(x, m))
        assert got.dtype == dtype
        x, m = x.astype(np.float64), m.astype(np.float64)
        expected = np.square(x @ m.T).sum(axis=1)
        # forward rounding bound: ~3 * size + 2 operations, on the absolute values
        scale = np.square(np.abs(x) @ np.abs(m).T).sum(axis=1)
        bound = 4 * (size + 1) * np.finfo(dtype).eps * scale
        wrong = np.flatnonzero(~(np.abs(got - expected) <= bound))
        assert wrong.size == 0, (
            f"jax {jax.__version__}, {np.dtype(dtype)}: {wrong.size} of {rows} rows "
            f"wrong, the first is {wrong[0]}; this compiler must not be used"
        )


@pytest.mark.parametrize("package", ["jax", "jaxlib"])
def test_the_broken_compiler_cannot_be_installed(package):
    """By the installed package's own requirements, which pip resolves."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("nfd_jax")]
    (bounds,) = [requirement.specifier for requirement in requirements if requirement.name == package]
    assert "0.10.2" not in bounds
    assert "0.10.1" in bounds
