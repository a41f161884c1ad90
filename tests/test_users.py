"""The main paths of every solver and command in single precision, as users have it, without checks of types; in one
process of its own, so that programs are shared."""

import subprocess
import sys

import numpy as np
from helpers import sampling_bound
from strict import STRICT

import nfd_jax as nfd
from nfd_jax import analytic
from nfd_jax.io import records

DEPTH, STEPS, PARTICLES, SAMPLES = 2, 2, 256, 2
SIZES = f"--depths {DEPTH} --widths 8 --steps {STEPS} --samples {SAMPLES} --seeds 3 --limit-seeds 4"
RUN = f"""
import sys
from pathlib import Path
import numpy as np, nfd_jax as nfd
from nfd_jax.io.cli import main

folder = Path(sys.argv[1])
for command in ("compare {SIZES} --particles {PARTICLES} --activation identity", "claims interaction --scale smoke"):
    sys.argv = ["nfd-jax", *command.split(), "--output", str(folder / command.split()[0])]
    main()

task, model = nfd.datasets.digits({SAMPLES}), nfd.ResNet({DEPTH}, "identity")
shared = dict(steps={STEPS}, learning_rate=1.0, progress=False)
networks = dict(width=8, seeds=3, **shared)
runs = dict(
    limit=nfd.solve_limit(task, model, particles={PARTICLES}, **shared),
    revealed=nfd.solve_network(task, model, observe=nfd.observables.kernels, **networks),
    dense=nfd.train_networks(task, model, optimizer="adam", **networks | dict(learning_rate=0.1)))
swept = nfd.sweep(task, model, widths=[8], learning_rates=[0.5, 1.0], seeds=3, steps={STEPS}, progress=False)
suggested = nfd.suggest_learning_rate(task, model, width=8, seeds=3)
np.savez(folder / "found.npz", swept=swept.loss.values, suggested=suggested.learning_rate,
    **{{f"{{name}} {{key}}": value for name, run in runs.items()
       for key, value in dict(outputs=run.outputs, loss=run.loss, **run.observed).items()}})
"""


def test_main_paths_in_single_precision(tmp_path):
    done = subprocess.run([sys.executable, *STRICT, "-c", RUN, str(tmp_path)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert "untied networks" in done.stdout
    assert "12 interaction" in done.stdout
    found = dict(np.load(tmp_path / "found.npz"))
    for name in found:
        assert np.isfinite(found[name]).all(), name
        assert found[name].dtype == (np.float64 if name == "suggested" else np.float32), name
    assert found["limit loss"][-1] < found["limit loss"][0]
    compared = records.load(tmp_path / "compare" / "compare.nc")
    task = nfd.datasets.digits(SAMPLES)
    gram, targets = task.inputs @ task.inputs.T / task.dimension, task.targets[:, 0]
    expected, bounds = {}, {}
    for closure in ("coupled", "decoupled"):
        limits = compared.limit_outputs.sel(closure=closure).values[0, :, :, :, 0].astype(float)
        expected[closure] = analytic.linear_outputs(gram, targets, DEPTH, 1.0, 1.0, STEPS, closure)
        bounds[closure] = sampling_bound(limits) + 4 / PARTICLES  # and a bias of order 1 / n
        assert np.all(np.abs(limits.mean(axis=0) - expected[closure]) < bounds[closure])
    # which tells the closures apart
    assert np.any(np.abs(expected["coupled"] - expected["decoupled"]) > bounds["coupled"] + bounds["decoupled"])
