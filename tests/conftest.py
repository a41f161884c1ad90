"""Strict mode: float64, no implicit promotion of dtypes or ranks, shapes checked, warnings are errors."""

import sys

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("nfd_jax", "beartype.beartype"):
    import nfd_jax as nfd


@pytest.fixture(autouse=True, scope="module")
def free_programs():
    """Compiled programs are kept as memory maps, of which a process may have 65,530: too few for all tests in one."""
    yield
    jax.clear_caches()


@pytest.fixture
def task() -> nfd.Task:
    """Four handwritten digits of two classes."""
    return nfd.datasets.digits(4)


@pytest.fixture(scope="module")
def plain():
    """The package as users import it, without the run-time type checks of the test mode."""

    def taken():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "nfd_jax"}

    checked = taken()
    import nfd_jax

    yield nfd_jax
    taken()
    sys.modules.update(checked)
