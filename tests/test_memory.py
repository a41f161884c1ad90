"""Memory of revealed matrices: linear in width, and no copies of whole bases; from the compiled programs."""

import functools
import os
import re
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
from cases import slow

import nfd_jax as nfd
from nfd_jax.matrices.matched import least_width
from nfd_jax.runtime import ensemble, loop

DEPTH, STEPS, SAMPLES, WIDTH, MEMBERS = 6, 8, 2, 2048, 2


@functools.cache
def compiled(solver, width):
    """The training step that the public function would run: of the limit with matched noise, or of two members
    of an ensemble of networks."""
    rng = np.random.default_rng(0)
    task = nfd.Task(rng.normal(size=(SAMPLES, 3)), np.array([1.0, -1.0]))
    resolution = 0.05 if "long" in solver else 0.0
    if "network" in solver:
        make = functools.partial(nfd.network_dynamics, width=width, engine="revealed", resolution=resolution)
    else:
        assert width >= least_width(SAMPLES, STEPS, 1)
        make = functools.partial(nfd.limit_dynamics, particles=width, resolution=resolution)
    dynamics, problem = make(task, nfd.ResNet(DEPTH, "relu"), steps=STEPS)
    members = "network" in solver
    keys = jax.random.split(jax.random.key(0), MEMBERS) if members else jax.random.key(0)
    state = jax.eval_shape(functools.partial(ensemble.create, members=members), dynamics, keys)
    rates = np.full((MEMBERS, STEPS) if members else STEPS, 0.5)  # of every member
    chunk = loop.Chunk.of(problem.data, rates, 0, STEPS, STEPS)
    lowered = loop.run_chunk.lower(dynamics, state, problem.data.train, chunk, members=members, layout=None)
    return lowered.compile({"xla_disable_hlo_passes": ""})  # all that users have


SOLVERS = pytest.mark.parametrize("solver", ["limit", "network", "long limit", slow("long network")])
BASIS = {"limit": DEPTH * STEPS * SAMPLES * WIDTH * 8}  # bytes
BASIS["long limit"] = BASIS["limit"]  # of a capacity for as many
BASIS["network"] = BASIS["long network"] = MEMBERS * BASIS["limit"]


@pytest.mark.parametrize("solver", ["limit", slow("network")])
def test_memory_doubles_with_the_width(solver):
    """What does not grow, the learned coordinates and factors of a block, is a few percent here."""
    small, large = (compiled(solver, width).memory_analysis() for width in (WIDTH, 2 * WIDTH))
    sizes = [found.argument_size_in_bytes + found.temp_size_in_bytes for found in (small, large)]
    assert 1.9 < sizes[1] / sizes[0] < 2.02
    # four bases and, for matched noise, one of what is known: four vectors a query, and the data
    assert sizes[0] < (5.5 if solver == "network" else 10) * BASIS[solver]


@SOLVERS
def test_no_copy_of_a_basis(solver):
    found = compiled(solver, WIDTH).memory_analysis()
    # the gradient of the images of updates is as large as these
    assert found.temp_size_in_bytes < (2 if "long" in solver else 1) * BASIS[solver]
    assert found.alias_size_in_bytes > 0.95 * found.output_size_in_bytes  # the state is updated in place


@SOLVERS
def test_bases_are_sliced(solver):
    """Also where members have ranks of their own: nothing of the size of a basis is copied, gathered or scattered."""
    members = f"{MEMBERS}," * ("network" in solver)
    bases = [f"f64[{members}{count},{STEPS * SAMPLES},{WIDTH}]" for count in (2 * DEPTH, DEPTH)]
    bases = bases if "long" in solver else bases[:1]  # of both directions, and of updates
    text = compiled(solver, WIDTH).as_text()
    assert all(f"= {basis}" in text for basis in bases)
    for line in text.splitlines():
        moved = re.search(r" (copy|gather|scatter|transpose)\(", line)
        assert not (moved and any(basis in line for basis in bases)), line


@SOLVERS
def test_no_square_array(solver):
    """Nothing in the program has as many elements as a quarter of n x n."""
    text = compiled(solver, WIDTH).as_text()
    shapes = {tuple(int(axis) for axis in axes.split(",")) for axes in re.findall(r"\w\d+\[([\d,]+)\]", text)}
    assert any(WIDTH in shape for shape in shapes)
    assert max(int(np.prod(shape)) for shape in shapes) < WIDTH**2 // 4


LARGE = """
import resource, numpy as np, nfd_jax as nfd
task, model = nfd.datasets.digits(4), nfd.ResNet(16, "relu")
limit = nfd.solve_limit(task, model, steps=4, particles=65_536, progress=False)
nets = nfd.solve_network(task, model, steps=4, width=65_536, seeds=1, progress=False)
assert np.all(np.isfinite(limit.outputs)) and np.all(np.isfinite(nets.outputs))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_large_widths_fit():
    """One 65,536 x 65,536 matrix in float32 alone is 16 GB."""
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", LARGE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    peak = int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
    assert resource.RUSAGE_SELF == 0
    assert peak < 8e9
