"""A run killed at any point goes on from its checkpoint and ends with the same bits; other runs are refused."""

import contextlib
import json
import os
import subprocess
import sys
import time
from threading import Barrier

import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow

import nfd_jax as nfd
from nfd_jax.runtime import claims, loop, memory, store
from nfd_jax.runtime.files import partial_of
from nfd_jax.runtime.store import Checkpoint, Record
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
    """The program dies before the next chunk of training steps after so many."""
    original, count = loop.run_chunk, iter(range(calls))

    def dying(*arguments, **options):
        if next(count, None) is None:
            raise Killed
        return original(*arguments, **options)

    patch.setattr(loop, "run_chunk", dying)


def kill(monkeypatch, calls, run):
    """A run that dies after so many chunks."""
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
    for calls in (0, 3, 1, 3) if kind == "limit" else (3, 3, 2):  # of the limit, the last after the last update
        kill(monkeypatch, calls, lambda: run(**options))
    again = run(**options)
    same(again, whole)
    assert not list((tmp_path / "here").glob("*-part-*"))  # it is one archive
    with monkeypatch.context() as patch:  # a finished run is not trained again
        limited(patch, 0)
        same(run(**options), whole)


@pytest.mark.parametrize("kind", RUNS)
def test_a_checkpoint_writes_what_is_new(kind, tmp_path, monkeypatch):
    """Every step of every member is in one part."""
    monkeypatch.setattr(memory, "BUDGET", 1)
    written, write = [], Record.append

    def counted(record, new, state):
        written.append((record.name, new))
        write(record, new, state)

    monkeypatch.setattr(Record, "append", counted)
    run = RUNS[kind](checkpoint=tmp_path, checkpoint_every=1)
    members = {name for name, _ in written}
    assert len(members) == len(run.seeds)
    for member in members:
        losses = [array for name, new in written if name == member for key, array in new.items() if "batch/" in key]
        assert [len(array) for array in losses] == 2 * STEPS * [1]  # outputs and loss


@pytest.mark.parametrize("resolution", [0.0, slow(0.1)])
def test_resumed_estimates_end_with_the_same_bits(tmp_path, monkeypatch, resolution):
    monkeypatch.setattr(multilevel, "PILOT", 3)
    monkeypatch.setattr(multilevel, "PILOT_DIFFERENCES", 3)

    def run(**options):
        return nfd.solve_limit(
            task(),
            nfd.ResNet(8, "tanh"),
            steps=2,
            particles=512,
            noise="plain",
            tolerance=10.0,
            resolution=resolution,
            **options,
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


@pytest.mark.parametrize("other", [lambda state: {"a": jnp.zeros(3), "b": state}, lambda state: {}])
def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch, other):
    """Of the same run, as numbers are the same; whole runs have no state, and are read."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "arrays_of", lambda state: {"state-0-9": np.zeros(3)} | store.arrays_of(other(state)))
        kill(monkeypatch, 2, lambda: RUNS["limit"](checkpoint=tmp_path, checkpoint_every=1))
    with pytest.raises(ValueError, match=r"was left by another version of nfd_jax, .* remove it, or finish"):
        RUNS["limit"](checkpoint=tmp_path, checkpoint_every=1)


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
        (tmp_path / "members-0.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"members-0\.npz' is not an archive of nfd_jax \(.*\); remove it"):
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


@pytest.mark.slow
def test_processes_do_not_share_a_half_written_file(tmp_path):
    """Two that write one archive: each replaces it by a whole one."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from nfd_jax.runtime.store import Checkpoint\n"
        f"kept = Checkpoint(Path({str(tmp_path)!r}), 1, {{}})\n"
        "for turn in range(150): kept.record('one').write({'numbers': np.full(20_000, int(sys.argv[1]))})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(index)]) for index in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    (found,) = tmp_path.iterdir()
    assert len(set(Checkpoint(tmp_path, 1, {}).record(found.stem).read()["numbers"])) == 1


def test_bad_checkpoints(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"checkpoint folder '.*file' can't be written .*; choose another"):
        RUNS["limit"](checkpoint=tmp_path / "file")
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        RUNS["limit"](checkpoint=tmp_path, checkpoint_every=0)


# ------------------------------------------------------------------ records that grow


def grown(folder, arguments=("a",)):
    return Record(folder, {"arguments": list(arguments)}, "run")


def test_a_growing_record_writes_what_is_new(tmp_path):
    """Every part once, the state alone each time: not all of it again."""
    record, each, before = grown(tmp_path), np.arange(10_000.0), {}
    assert record.read() is None
    for turn in range(5):
        record.append({f"at {turn}": each + turn}, {"state": np.array(turn)})
        written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        assert sorted(written) == [*(f"run-part-{part:03d}.npz" for part in range(turn + 1)), "run.npz"]
        assert (tmp_path / "run.npz").stat().st_size < each.nbytes / 10
        assert all(written[name] == before[name] for name in before if "part" in name)
        before = written
    found = grown(tmp_path).read()
    assert found["state"] == 4
    for turn in range(5):
        np.testing.assert_array_equal(found[f"at {turn}"], each + turn)
    record.write(found)  # finished: one archive
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    assert grown(tmp_path).read().keys() == found.keys()


def test_a_kill_between_part_and_state(tmp_path, monkeypatch):
    """The part does not count, and the one that takes its place may have other names."""
    record, write = grown(tmp_path), Record._write
    record.read()
    record.append({"first": np.ones(2)}, {"done": np.array(1)})
    with monkeypatch.context() as patch:
        patch.setattr(
            Record,
            "_write",
            lambda self, path, *rest: pytest.fail("dead") if "part" not in path.name else write(self, path, *rest),
        )
        with pytest.raises(pytest.fail.Exception):
            record.append({"lost": np.ones(2)}, {"done": np.array(2)})
    again = grown(tmp_path)
    found = again.read()
    assert (set(found), int(found["done"])) == ({"first", "done"}, 1)
    again.append({"second": np.zeros(2)}, {"done": np.array(3)})
    found = grown(tmp_path).read()
    assert (set(found), int(found["done"])) == ({"first", "second", "done"}, 3)


def test_parts_of_another_record_or_none_are_refused(tmp_path):
    for folder, arguments in (("one", "a"), ("two", "b")):
        (tmp_path / folder).mkdir()
        record = grown(tmp_path / folder, arguments)
        record.read()
        record.append({"x": np.ones(1)}, {})
    part = tmp_path / "one" / "run-part-000.npz"
    part.write_bytes((tmp_path / "two" / "run-part-000.npz").read_bytes())
    with pytest.raises(ValueError, match=r"run-part-000\.npz' is of a run with part of="):
        grown(tmp_path / "one").read()
    part.unlink()
    with pytest.raises(ValueError, match=r"run\.npz' lacks its part run-part-000\.npz; remove it"):
        grown(tmp_path / "one").read()


def test_records_without_a_name_have_that_of_their_arguments(tmp_path):
    one, same, other = (Record(tmp_path, {"b": 1, "a": value}) for value in (2, 2, 3))
    one.write({"x": np.ones(1)})
    assert same.read() is not None
    assert other.read() is None
    assert one.path == same.path != other.path


# ------------------------------------------------------------------ claims


SHARING = """
import os, sys, time
from pathlib import Path
import numpy as np
from nfd_jax.runtime import store
folder, seconds, together = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
store.POLL = 0.05
(folder / f"ready-{os.getpid()}").touch()
while len(list(folder.glob("ready-*"))) < together:
    time.sleep(0.01)
def make(place):
    (folder / f"made-{place}-{os.getpid()}").touch()
    print(place, flush=True)
    time.sleep(seconds)
    return {"value": np.array(10 * place)}
records = [store.Record(folder, {"place": place}) for place in range(6)]
found = store.shared(records, make)
assert [int(each["value"]) for each in found] == [0, 10, 20, 30, 40, 50]
"""


def sharing(folder, seconds, together):
    """A process that makes records, each in so many seconds, once there are so many such processes."""
    arguments = [sys.executable, "-c", SHARING, str(folder), str(seconds), str(together)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_share_the_records_of_a_folder(tmp_path):
    """Each is made once, both make some, and both have all at the end."""
    workers = [sharing(tmp_path, 0.3, 2) for _ in range(2)]
    ended = [(*worker.communicate(timeout=60), worker.returncode) for worker in workers]
    assert [code for *_, code in ended] == [0, 0], ended
    made = [path.name.split("-")[1:] for path in tmp_path.glob("made-*")]
    assert sorted(place for place, _ in made) == list("012345")
    assert len({process for _, process in made}) == 2
    assert not list(tmp_path.glob(".*"))


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path, monkeypatch):
    dying = sharing(tmp_path, 100, 1)
    assert dying.stdout.readline() == b"0\n"  # it is making the first
    dying.kill()
    dying.communicate()
    (left,) = tmp_path.glob(".*.claim-*")
    said = json.loads(left.read_text())
    assert said["process"] == dying.pid
    assert said["host"]
    assert said["since"]
    monkeypatch.setattr(store, "sleep", lambda _: pytest.fail("waits for a process that is gone"))
    found = store.shared([Record(tmp_path, {"place": 0})], lambda place: {"value": np.array(7)})
    assert found[0]["value"] == 7
    assert not list(tmp_path.glob(".*"))


def claim_of_another_host(record, age):
    file = record.path.with_name(f".{record.path.name}.claim-0")
    file.write_text(json.dumps({"host": "elsewhere", "process": os.getpid(), "since": "then"}))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def test_the_claim_of_another_host_is_respected_up_to_the_limit(tmp_path, monkeypatch, capsys):
    record = Record(tmp_path, {"place": 0})
    claim_of_another_host(record, claims.LIMIT - 60)
    with record.claimed() as own:
        assert not own
    claim_of_another_host(record, claims.LIMIT + 60)
    with record.claimed() as own:
        assert own
        with Record(tmp_path, {"place": 0}).claimed() as other:  # taken over once
            assert not other
    claim_of_another_host(record, 0)
    monkeypatch.setattr(store, "sleep", lambda _: record.write({"value": np.array(3)}))  # meanwhile, there
    found = store.shared([record], lambda place: pytest.fail("made twice"))
    assert found[0]["value"] == 3
    assert "waiting for 1 records of host elsewhere" in capsys.readouterr().err


def test_who_works_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "SIGN", 0.01)
    record = Record(tmp_path, {"place": 0})
    with record.claimed():
        (file,) = tmp_path.glob(".*.claim-*")
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 0


def test_a_failure_gives_the_claim_back(tmp_path):
    record = Record(tmp_path, {"place": 0})
    with contextlib.suppress(Killed):
        store.shared([record], dies)
    assert not list(tmp_path.iterdir())


def dies(place):
    raise Killed


def test_records_of_other_arguments_are_refused_before_any_is_made(tmp_path):
    Record(tmp_path, {"steps": 3}, "second").write({"x": np.ones(1)})
    records = [Record(tmp_path, {"steps": 4}, name) for name in ("first", "second")]
    with pytest.raises(ValueError, match="is of a run with steps=3, and steps=4 was asked for"):
        store.shared(records, lambda place: pytest.fail("made"))


def test_threads_share_the_records(tmp_path):
    """Two are being made at once, each once, and all are found in their order."""
    records, made, together = [Record(tmp_path, {"place": place}) for place in range(4)], [], Barrier(2, timeout=60)

    def make(place):
        together.wait()
        made.append(place)
        return {"value": np.array(place)}

    found = store.shared(records, make, at_once=2)
    assert [int(each["value"]) for each in found] == [0, 1, 2, 3]
    assert sorted(made) == [0, 1, 2, 3]


def test_what_is_not_recorded_is_made_in_order():
    made = []
    found = store.shared([None] * 3, lambda place: made.append(place) or {"x": np.array(place)}, made.append)
    assert made == [0, 0, 1, 1, 2, 2]
    assert [int(each["x"]) for each in found] == [0, 1, 2]
