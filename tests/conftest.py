"""Strict mode: float64, no implicit promotion of dtypes or ranks, shapes checked, warnings are errors."""

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("nfd_jax", "beartype.beartype"):
    import nfd_jax as nfd


@pytest.fixture
def task() -> nfd.Task:
    """Four handwritten digits of two classes."""
    return nfd.datasets.digits(4)
