"""A run killed at any point goes on from its checkpoint and ends with the same bits; other runs are refused."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import nfd_jax as nfd
from nfd_jax.runtime import loop as engine
from nfd_jax.runtime import memory
from nfd_jax.runtime.files import partial_of
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.solvers import multilevel

STEPS = 5


class Killed(BaseException):
    """What no code may catch."""


def task():
    rng = np.random.default_rng(0)
    held_out = nfd.Task(rng.normal(size=(2, 3)), np.ones(2))
    return nfd.Task(rng.normal(size=(4, 3)), rng.normal(size=4)).minibatches(2).holding_out(held_out)


def total(sweep):
    return {"h": (sweep.features**2).mean((1, 2)), "g": (sweep.gradients**2).mean()}


MODEL = nfd.ResNet(2, "tanh")
RUNS = {
    "limit": lambda **options: nfd.solve_limit(
        task(), MODEL, steps=STEPS, particles=256, momentum=0.5, train_input=True, observe=total, **options
    ),
    "networks": lambda **options: nfd.solve_network(task(), MODEL, steps=STEPS, width=16, seeds=3, **options),
    "dense": lambda **options: nfd.train_networks(
        task(), MODEL, steps=STEPS, width=16, seeds=3, momentum=0.5, evaluate_at=(0, 5), **options
    ),
}


def limited(patch, calls):
    """The program dies before the next training step after so many."""
    original, count = engine._jitted_step, iter(range(calls))

    def dying(*arguments):
        if next(count, None) is None:
            raise Killed
        return original(*arguments)

    patch.setattr(engine, "_jitted_step", dying)


def kill(monkeypatch, calls, run):
    """A run that dies after so many training steps."""
    with monkeypatch.context() as patch:
        limited(patch, calls)
        with pytest.raises(Killed):
            run()


def same(one, other):
    assert one.outputs.dtype == other.outputs.dtype
    for name in ("outputs", "loss", "batch_loss", "steps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("outputs", "loss", "steps"):
        np.testing.assert_array_equal(getattr(one.held_out, name), getattr(other.held_out, name))
    assert one.observed.keys() == other.observed.keys()
    for name, values in one.observed.items():
        np.testing.assert_array_equal(values, other.observed[name])


@pytest.mark.parametrize("kind", RUNS)
def test_resumed_runs_end_with_the_same_bits(kind, tmp_path, monkeypatch):
    """Members run one at a time here: a kill leaves some finished, one under way, some not begun."""
    monkeypatch.setattr(memory, "BUDGET", 1)
    run = RUNS[kind]
    whole = run()
    options = {"checkpoint": tmp_path / "here", "checkpoint_every": 2}
    for calls in (0, 3, 1, 3) if kind == "limit" else (3, 6, 4):  # of the limit, the last after the last update
        kill(monkeypatch, calls, lambda: run(**options))
    again = run(**options)
    same(again, whole)
    with monkeypatch.context() as patch:  # a finished run is not trained again
        limited(patch, 0)
        same(run(**options), whole)


def test_resumed_estimates_end_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(multilevel, "PILOT", 3)
    monkeypatch.setattr(multilevel, "PILOT_DIFFERENCES", 3)

    def run(**options):
        return nfd.solve_limit(
            task(), nfd.ResNet(8, "tanh"), steps=2, particles=512, noise="plain", tolerance=10.0, **options
        )

    whole = run()
    options = {"checkpoint": tmp_path, "checkpoint_every": 2}
    for calls in (5, 7):
        kill(monkeypatch, calls, lambda: run(**options))
    again = run(**options)
    same(again, whole)
    assert again.settings == whole.settings
    with monkeypatch.context() as patch:
        limited(patch, 0)
        same(run(**options), whole)


def test_a_half_written_archive_is_never_read(tmp_path, monkeypatch):
    """It has another name until it is whole."""
    RUNS["limit"](checkpoint=tmp_path)
    (archive,) = tmp_path.iterdir()
    content = archive.read_bytes()
    archive.unlink()
    partial_of(archive).write_bytes(content[: len(content) // 2])
    kill(monkeypatch, 0, lambda: RUNS["limit"](checkpoint=tmp_path))  # it starts from the beginning


def test_a_damaged_archive_is_refused(tmp_path):
    for content in (b"", b"something else", b"PK\x03\x04 and no more"):
        (tmp_path / "run.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.npz' is not an archive of nfd_jax \(.*\); remove it"):
            RUNS["limit"](checkpoint=tmp_path)


def test_another_run_is_refused_by_name(tmp_path, monkeypatch):
    options = {"steps": 3, "width": 8, "seeds": 1, "checkpoint": tmp_path}
    nfd.train_networks(task(), MODEL, **options)
    with monkeypatch.context() as patch:
        limited(patch, 0)
        nfd.train_networks(task(), MODEL, **options)
        for change, message in (
            ({"steps": 4}, "steps=3, and steps=4 was asked for"),
            ({"width": 16}, "width=8, and width=16"),
            ({"seeds": 2}, r"seeds=\[0\], and seeds=\[0, 1\]"),
            ({"learning_rate": 0.25}, r"learning_rate=\[0.5, 0.5, 0.5\], and learning_rate=\[0.25, 0.25, 0.25\]"),
            ({"backward": "untied"}, "backward='tied', and backward='untied'"),
        ):
            with pytest.raises(ValueError, match=f"checkpoint .* is of a run with {message}"):
                nfd.train_networks(task(), MODEL, **(options | change))
        with pytest.raises(ValueError, match="of a run with data="):
            nfd.train_networks(nfd.Task(task().inputs, 2 * task().targets).minibatches(2), MODEL, **options)
        with pytest.raises(ValueError, match="of a run with activation='tanh', and activation='relu'"):
            nfd.train_networks(task(), nfd.ResNet(2, "relu"), **options)


def test_functions_of_one_name_are_told_apart(tmp_path, monkeypatch):
    def run(slope, power):
        return nfd.train_networks(
            task(),
            nfd.ResNet(2, lambda x: slope * jnp.tanh(x)),
            width=8,
            steps=2,
            seeds=1,
            observe=lambda sweep: {"moment": (sweep.features**power).mean()},
            checkpoint=tmp_path,
        )

    first = run(2.0, 2)
    with monkeypatch.context() as patch:
        limited(patch, 0)
        same(run(2.0, 2), first)  # other functions, of the same code and constants
        with pytest.raises(ValueError, match="of a run with activation="):
            run(3.0, 2)
        with pytest.raises(ValueError, match="of a run with observe="):
            run(2.0, 4)


def test_processes_do_not_share_a_half_written_file(tmp_path):
    """Two that write one archive: each replaces it by a whole one."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from nfd_jax.runtime.store import Checkpoint\n"
        f"kept = Checkpoint(Path({str(tmp_path)!r}), 1, {{}})\n"
        "for turn in range(150): kept.write('one', {'numbers': np.full(20_000, int(sys.argv[1]))})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(index)]) for index in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    (found,) = tmp_path.iterdir()
    assert len(set(Checkpoint(tmp_path, 1, {}).read(found.stem)["numbers"])) == 1


def test_bad_checkpoints(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"checkpoint folder '.*file' can't be written .*; choose another"):
        RUNS["limit"](checkpoint=tmp_path / "file")
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        RUNS["limit"](checkpoint=tmp_path, checkpoint_every=0)
