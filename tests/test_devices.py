"""More than one device: the numbers of one device, no array of basis size on the wire, clusters of processes.

The number of devices is fixed when jax starts, so every run here is a process of its own. Their programs are not
optimised below the level of arrays, which takes most of the time of compilation and changes nothing above it.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from cases import slow
from strict import STRICT

from nfd_jax.io import records
from nfd_jax.io.cluster import Cluster
from nfd_jax.matrices.basis import TILE

DEPTH, STEPS, WIDEST = 2, 2, 64

SOLVE = f"""
import json, sys
import jax, numpy as np, nfd_jax as nfd
from nfd_jax.runtime import devices

task, model = nfd.datasets.digits(2), nfd.ResNet({DEPTH}, "relu")
shared = dict(steps={STEPS}, progress=False)
both = dict(train_input=True, train_readout=True, momentum=0.5)
observe = lambda sweep: {{"h": sweep.features[-1], **nfd.observables.kernels(sweep)}}
runs = dict(
    quick=dict(
        matched=lambda: nfd.solve_limit(task, model, particles={WIDEST}, closure="coupled", **both, **shared),
        long=lambda: nfd.solve_limit(task, model, particles={WIDEST}, resolution=0.05, momentum=0.5, **shared),
        revealed=lambda: nfd.solve_network(
            task, model, width=60, seeds=3, backward="untied", observe=observe, **shared),
        dense=lambda: nfd.train_networks(task, model, width=16, seeds=9, **both, **shared)),
    slow=dict(
        plain=lambda: nfd.solve_limit(task, model, particles=60, closure="decoupled", noise="plain", **shared),
        few=lambda: nfd.solve_limit(task, model, particles=40, noise="plain", observe=observe, **shared),
        prime=lambda: nfd.solve_network(task, model, width=61, seeds=3, **shared),
        untied=lambda: nfd.train_networks(task, model, width=16, seeds=3, backward="untied", **shared)))[sys.argv[2]]

def numbers():
    found = {{name: run() for name, run in runs.items()}}
    swept = nfd.sweep(task, model, widths=[16], learning_rates=[0.1, 0.5, 0.9], seeds=3, **shared).loss.values
    return {{"sweep loss": swept}} | {{f"{{name}} {{key}}": value for name, run in found.items()
            for key, value in dict(outputs=run.outputs, loss=run.loss, **run.observed).items()}}

def split():
    count = lambda layout: layout.devices if layout else 1
    return dict(widths=[count(devices.particles("width", width)) for width in (64, 60, 61)],
                members=[(filled, count(layout)) for filled, layout in map(devices.members, (3, 8, 9))])

np.savez(sys.argv[1] + "8", split=json.dumps(split()), **numbers())
with jax.default_device(jax.devices()[0]):  # asks for one device
    np.savez(sys.argv[1] + "1", split=json.dumps(split()), **numbers())
"""


def start(code, *arguments, devices=1, **environment):
    """A process of its own with so many CPU devices, in float64."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
    set_here = {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "true",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, *STRICT, "-c", code, *map(str, arguments)],
        env=kept | set_here | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes, code=0):
    """What they wrote to stdout and stderr, once all have ended as expected; none is left behind."""
    try:
        texts = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, texts, strict=True):
        assert process.returncode == code, errors
    return texts


def rounding(scale, depth=DEPTH, steps=STEPS, width=WIDEST):
    """How far apart float64 runs may be that add up in different orders.

    Two sums of n products differ by at most n eps times the sum of their sizes. Every one of the 2 L (K + 1) queries
    takes such sums of what those before it left, a handful each (twice projected and orthonormalised, reused,
    combined): 16, with their growth on the way. A draw, particle or member in the wrong place shows in the first
    digits, 12 orders above.
    """
    return 16 * 2 * depth * (steps + 1) * width * np.finfo(np.float64).eps * scale


@pytest.fixture(scope="module", params=["quick", slow("slow")])
def solved(request, tmp_path_factory):
    """Several solvers, on one device and on eight."""
    folder = tmp_path_factory.mktemp("solved")
    finish(start(SOLVE, f"{folder}/", request.param, devices=8))
    return [dict(np.load(folder / f"{devices}.npz")) for devices in (1, 8)]


def test_eight_devices_give_the_numbers_of_one(solved):
    one, eight = solved
    assert set(one) == set(eight)
    assert len(one) > 6
    for name in set(one) - {"split"}:
        scale = np.max(np.abs(one[name]))
        assert scale > 1e-3, name
        assert one[name].shape == eight[name].shape
        assert np.max(np.abs(one[name] - eight[name])) < rounding(scale), name
    # other sums, hence other last digits: the work was divided
    assert any(np.any(one[name] != eight[name]) for name in set(one) - {"split"})


def test_as_many_devices_as_divide_the_width(solved):
    one, eight = (json.loads(str(numbers["split"])) for numbers in solved)
    assert one == {"widths": [1, 1, 1], "members": [[3, 1], [8, 1], [9, 1]]}
    assert eight == {"widths": [8, 6, 1], "members": [[3, 3], [8, 8], [16, 8]]}


COMPILE = """
import jax, numpy as np, nfd_jax as nfd
from nfd_jax.runtime import devices, ensemble, loop
width, depth, steps, samples = 512, 3, 6, 2
task = nfd.Task(np.random.default_rng(0).normal(size=(samples, 3)), np.array([1.0, -1.0]))
model = nfd.ResNet(depth)
recipe = nfd.Training(steps, momentum=0.5, train_input=True, train_readout=True)
particles, (_, members) = devices.particles("width", width), devices.members(8)
keys = jax.random.split(jax.random.key(0), 8)
KINDS = dict(
    limit=(*nfd.limit_dynamics(task, model, recipe, particles=width), particles, 1),
    network=(*nfd.network_dynamics(task, model, recipe, width=width, engine="revealed"), particles, 2),
    dense=(*nfd.network_dynamics(task, model, recipe, width=32), members, 8))
assert KINDS["limit"][0].initial.matched
for kind, (dynamics, problem, layout, count) in KINDS.items():
    several = count > 1
    state = ensemble.create(dynamics, keys[:count] if several else keys[0], members=several, layout=layout)
    rates = np.full((count, steps) if several else steps, 0.5)
    chunk = loop.Chunk.of(problem.data, rates, 0, steps, steps)
    lowered = loop.run_chunk.lower(dynamics, state, problem.data.train, chunk, members=several, layout=layout)
    compiled = lowered.compile({"xla_disable_hlo_passes": ""})  # all that users have
    memory = compiled.memory_analysis()
    print(f"=== {kind} {memory.alias_size_in_bytes} {memory.output_size_in_bytes} {memory.temp_size_in_bytes}")
    print(sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.dtype == np.float64))
    print(compiled.as_text())
"""
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter)(?:-start)?\("
)


def test_what_devices_exchange():
    """From the programs that run: sums of query-by-query size, and the records; no basis leaves its device."""
    ((text, _),) = finish(start(COMPILE, devices=8))
    programs = re.split(r"^=== ", text, flags=re.MULTILINE)[1:]
    assert len(programs) == 3
    for program in programs:
        kind, alias, output, temporary = program.split("\n", 1)[0].split()
        whole = int(program.split("\n", 2)[1])
        found = COLLECTIVE.findall(program)
        sizes = [
            int(np.prod([int(axis) for axis in axes.split(",") if axis]))
            for shapes, _ in found
            for axes in re.findall(r"\w\d+\[([\d,]*)\]", shapes)
        ]
        assert found
        # at most a tile of rows against a query and its fresh part, or against two members; a block is 2 x 512
        # and of eight members the records of a chunk: 6 steps of 2 samples
        assert max(sizes) <= (8 * 6 * 2 if kind == "dense" else 4 * TILE), kind
        assert {name for _, name in found} == {"all-gather" if kind == "dense" else "all-reduce"}
        # the state is divided, up to what is small and everywhere, and updated where it is
        assert int(output) < whole / 6
        assert int(alias) > 0.95 * int(output)
        assert int(temporary) < whole / 6 or kind == "dense"


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


COMMAND = "import sys; from nfd_jax.io.cli import main; sys.argv[0] = 'nfd-jax'; main()"
SIZES = "--depths 1 --widths 8 --steps 2 --samples 2 --seeds 3 --limit-seeds 2 --particles 64"
SMALL = ("compare", *SIZES.split(" "))


@pytest.mark.slow
def test_the_command_on_two_processes(tmp_path):
    """Process 0 prints and writes, and the dataset is that of one process."""
    port, folders = free_port(), {name: tmp_path / name for name in ("alone", "0", "1")}
    joined = [
        f"--coordinator localhost:{port} --processes 2 --process-id {index} --output {folders[str(index)]}".split()
        for index in range(2)
    ]
    alone, first, second = finish(
        start(COMMAND, *SMALL, "--output", folders["alone"]),
        *(start(COMMAND, *SMALL, *options, devices=2) for options in joined),
    )

    def printed(output):  # threads of gloo may write in the middle of each other's lines
        return [line for line in output.splitlines() if "[Gloo]" not in line and "peer ranks" not in line]

    lines = [line for line in printed(first[0]) if not line.startswith("wrote")]
    assert len(lines) > 5
    assert lines == [line for line in alone[0].splitlines() if not line.startswith("wrote")]
    assert not any(line.strip() for line in printed(second[0]))
    assert "run/s" in first[1]
    assert "run/s" not in second[1]
    assert sorted(path.name for path in folders["0"].iterdir()) == ["compare.nc", "compare.png", "runs"]
    assert len(list((folders["0"] / "runs").glob("*.npz"))) == 4
    assert not [path for path in folders["1"].rglob("*") if path.is_file()]

    one, two = (records.load(folders[name] / "compare.nc") for name in ("alone", "0"))
    assert (one.attrs["processes"], two.attrs["processes"]) == ("1", "2")
    assert two.attrs["device"].startswith("4 x")
    for name in ("limit_outputs", "network_outputs", "limit_loss", "network_loss"):
        scale = float(np.abs(one[name]).max())
        assert float(np.abs(one[name] - two[name]).max()) < rounding(scale, depth=1), name


LAUNCHED = """
import jax, nfd_jax as nfd
from nfd_jax.runtime import devices
from nfd_jax.io.cluster import Cluster
first = Cluster(distributed=True).join()
assert first == (jax.process_index() == 0)
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
assert jax.config.jax_cpu_collectives_implementation == "gloo"
filled, layout = devices.members(3)  # all processes take part, whatever the count
assert (filled, layout.devices) == (4, 4)
task, model = nfd.datasets.digits(2), nfd.ResNet(2)
for solve, name in ((nfd.solve_limit, "particles"), (nfd.solve_network, "width")):
    try:
        solve(task, model, **{name: 1001})
    except ValueError as error:
        assert str(error) == f"{name} must be a multiple of the 4 devices of 2 processes, got 1001; use 1004"
    else:
        raise AssertionError("taken")
assert devices.agreed(jax.process_index() == 0)  # the first decides
"""


def test_a_launcher_is_found():
    """The variables that SLURM sets for a step of two tasks; jax derives the port from the number of the job."""
    lowest = 2**16 - 2**12
    for port in np.random.default_rng().permutation(np.arange(lowest, 2**16)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("localhost", int(port)))
            break
    job = {"SLURM_JOB_ID": str(port - lowest), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    tasks = [job | {"SLURM_PROCID": index, "SLURM_LOCALID": index} for index in "01"]
    finish(*(start(LAUNCHED, devices=2, **variables) for variables in tasks))


def test_no_cluster_to_join(tmp_path):
    """A message that says what to give, before anything is computed."""
    ((_, errors),) = finish(start(COMMAND, *SMALL, "--distributed", "--output", tmp_path), code=1)
    assert errors.startswith("nfd-jax: no cluster to join (")
    assert "SLURM" in errors
    assert "--coordinator HOST:PORT --processes N --process-id I" in errors
    assert "Traceback" not in errors


def test_one_process_joins_nothing():
    assert Cluster().join()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "localhost:1234"}, "go together, missing --processes, --process-id: under SLURM"),
        ({"processes": 2, "process_id": 1}, "go together, missing --coordinator"),
        ({"coordinator": "localhost:1234", "process_id": 0}, "go together, missing --processes:"),
        ({"coordinator": "localhost", "processes": 2, "process_id": 0}, "must be HOST:PORT, got 'localhost'"),
        ({"coordinator": "localhost:http", "processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "localhost:99999", "processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator": "localhost:1234", "processes": 0, "process_id": 0}, "processes must be at least 1, got 0"),
        ({"coordinator": "localhost:1234", "processes": 2, "process_id": 2}, "at least 0 and below 2, got 2"),
        ({"coordinator": "localhost:1234", "processes": 2, "process_id": -1}, "at least 0 and below 2, got -1"),
    ],
)
def test_incomplete_or_wrong_addresses(given, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**given)
