"""Strict mode: float64, no implicit promotion of dtypes or ranks, warnings are errors.

Most tests run programs of a few milliseconds that take seconds to compile, so that compilation is kept short: programs
are not optimised, but in tests marked `optimised`, which take longer to run or are about programs themselves, and a
program is compiled once for all workers, child processes and later runs, which find it in `.programs`. `OPTIMISED=1
pytest` compiles everything as users do, as `.ci/wheel` does. `CHECKED=1 pytest` checks the type and the shape of every
argument and result of the package, for a fifth more time, as `.ci/newest` and `.ci/oldest` do.
"""

import contextlib
import gc
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

MOST_BYTES = 2**31  # of programs of earlier runs, those of some fifteen; past that all are compiled anew
MOST_MAPS = 8_000  # of compiled programs, with some 1.3 GB; past 65,530 a process ends at once
OPTIMISED, CHECKED = (os.environ.get(name, "") not in ("", "0") for name in ("OPTIMISED", "CHECKED"))
if not OPTIMISED:  # read when jax starts
    # moving what is invariant out of loops runs some fifteen times, a sixth of compilation; tests of memory, which that
    # decides on, have it
    flags = ["--xla_cpu_parallel_codegen_split_count=1", "--xla_disable_hlo_passes=while-loop-invariant-code-motion"]
    # later ones end at once, as they do not know it, and take three times as long for a step
    if version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ |= {"XLA_FLAGS": " ".join(flags), "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # set by the first process; the others inherit it
    programs = Path(__file__).parent.parent / ".programs"
    if programs.exists() and sum(file.stat().st_size for file in programs.iterdir()) > MOST_BYTES:
        shutil.rmtree(programs)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(programs)
os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it warns of every program that is read
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # where each instruction is from: a sixth of compilation

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("nfd_jax", "beartype.beartype") if CHECKED else contextlib.nullcontext():
    import nfd_jax as nfd


def pytest_collection_finish():
    """What is imported stays: looking through it for garbage, again and again, takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def make_room():
    """Free programs where there are many."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def compiled(request):
    """Optimised or not; one slow test may compile as much as a module of fast ones."""
    optimised = OPTIMISED or request.node.get_closest_marker("optimised") is not None
    jax.config.update("jax_disable_most_optimizations", not optimised)
    yield
    if OPTIMISED or request.node.get_closest_marker("slow") is not None:
        make_room()


@pytest.fixture(autouse=True, scope="module")
def freed():
    yield
    make_room()


@pytest.fixture
def task() -> nfd.Task:
    """Four handwritten digits of two classes."""
    return nfd.datasets.digits(4)


@pytest.fixture(scope="module")
def plain():
    """The package as users import it, without the checks of types that `CHECKED` asks for."""
    if not CHECKED:
        yield nfd
        return

    def taken():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "nfd_jax"}

    checked = taken()
    import nfd_jax

    yield nfd_jax
    taken()
    sys.modules.update(checked)
