"""Chunks of members at once: the numbers, settings and failures of one thread."""

import contextlib
import io
import threading
import time

import jax
import numpy as np
import pytest

import nfd_jax as nfd
from nfd_jax.runtime import loop, memory, threads


@pytest.fixture
def bar():
    with threads.Bar(total=4000, file=io.StringIO()) as bar:
        yield bar


@contextlib.contextmanager
def threading_seen(monkeypatch):
    """The threads that train."""
    seen, run = set(), loop.run

    def counted(*arguments, **options):
        seen.add(threading.get_ident())
        time.sleep(0.05)  # for long enough that no thread takes all
        return run(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", counted)
        yield seen


@pytest.fixture
def several_chunks(monkeypatch):
    """One member a chunk, on a machine of so many cores."""
    monkeypatch.setattr(memory, "CACHED", 1)

    def train(cores, task, **options):
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(cores), raising=False)
        with threading_seen(monkeypatch) as seen:
            found = nfd.train_networks(task, nfd.ResNet(3, "relu"), width=16, steps=4, seeds=6, **options)
        assert len(seen) == cores
        return found

    return train


def test_numbers_are_those_of_one_thread(several_chunks, task):
    alone, shared = several_chunks(1, task), several_chunks(3, task)
    assert shared.seeds == alone.seeds
    np.testing.assert_array_equal(shared.outputs, alone.outputs)
    np.testing.assert_array_equal(shared.loss, alone.loss)
    assert len(np.unique(shared.loss[:, -1])) == 6


def test_each_thread_has_the_settings_of_the_first(several_chunks, task):
    """A context manager of jax holds for the thread that entered it; here for all that it starts."""
    with jax.enable_x64(False):
        assert several_chunks(2, task).outputs.dtype == np.float32
    assert several_chunks(2, task).outputs.dtype == np.float64


def test_settings_are_left_as_they_were():
    def settings(_: int):
        return {name: getattr(jax.config, f"jax_{name}") for name in threads.SETTINGS}

    here = settings(None)
    changed = {"debug_nans": True, "numpy_rank_promotion": "warn", "default_matmul_precision": "highest"}
    with jax.debug_nans(True), jax.numpy_rank_promotion("warn"), jax.default_matmul_precision("highest"):
        assert threads.each(settings, range(4), 2) == [here | changed] * 4
    assert threads.each(settings, range(4), 2) == [here] * 4


def test_random_numbers_follow_the_settings(several_chunks, task):
    with jax.threefry_partitionable(False):
        alone, shared = several_chunks(1, task), several_chunks(3, task)
    np.testing.assert_array_equal(shared.loss, alone.loss)
    assert np.all(shared.loss[:, 0] != several_chunks(1, task).loss[:, 0])


def test_a_killed_run_goes_on_in_several_threads(several_chunks, task, tmp_path, monkeypatch):
    """Each chunk has an archive of its own; those that are there are not trained again."""
    whole = several_chunks(2, task)
    kept = several_chunks(2, task, checkpoint=tmp_path)
    archives = sorted(path.name for path in tmp_path.iterdir())
    assert archives == [f"members-{member}.npz" for member in range(6)]
    for member in (1, 4):
        (tmp_path / f"members-{member}.npz").unlink()
    steps = []
    run_chunk = loop.run_chunk

    def counted(dynamics, state, train, chunk, **options):
        steps.append(int(chunk.steps))
        return run_chunk(dynamics, state, train, chunk, **options)

    monkeypatch.setattr(loop, "run_chunk", counted)
    again = several_chunks(3, task, checkpoint=tmp_path)
    assert sum(steps) == 2 * 4
    np.testing.assert_array_equal(kept.outputs, whole.outputs)
    np.testing.assert_array_equal(again.outputs, whole.outputs)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_stops_all_threads(bar, error):
    """The other thread stops at its next step, what has not begun never does, and the failure itself is raised."""
    begun, stopped = [], []

    def work(item):
        begun.append(item)
        if item == 1:
            raise error("this one")
        try:
            for _ in range(3000):
                bar.update()
                time.sleep(0.01)
        except InterruptedError:
            stopped.append(item)
            raise

    with pytest.raises(error, match="this one"):
        threads.each(work, range(20), 2)
    assert stopped
    assert set(stopped) == set(begun) - {1}
    assert len(begun) <= 3  # the failed thread may have taken one more before it was told


def test_several_threads_advance_one_bar(bar):
    threads.each(lambda _: [bar.update() for _ in range(500)], range(8), 4)
    assert bar.n == 4000


def test_as_many_threads_as_memory_has_room_for(several_chunks, task, monkeypatch):
    monkeypatch.setattr(memory, "BUDGET", 1)
    with pytest.raises(AssertionError):  # one thread only
        several_chunks(3, task)
    several_chunks(1, task)


def test_replicates_are_those_of_one_thread(task, monkeypatch):
    """An estimate draws as many at once as there are cores."""

    def estimate(cores):
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(cores), raising=False)
        with threading_seen(monkeypatch) as seen:
            found = nfd.solve_limit(
                task, nfd.ResNet(4, "relu"), steps=2, particles=64, noise="plain", tolerance=0.5, seed=3
            )
        return found, len(seen)

    (alone, one), (shared, several) = estimate(1), estimate(3)
    assert (one, several > 1) == (1, True)
    assert shared.settings == alone.settings
    np.testing.assert_array_equal(shared.outputs, alone.outputs)
    np.testing.assert_array_equal(shared.errors["loss"].half_width, alone.errors["loss"].half_width)


def test_threads_within_threads(monkeypatch):
    """Those of one solution are not many more than the cores."""
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(3), raising=False)
    assert threads.count() == 3
    assert threads.each(lambda _: threads.count(), range(3), 3) == [1, 1, 1]
    assert threads.at_once(memory.BUDGET // 2) == 2
    assert threads.at_once(2 * memory.BUDGET) == 1


def test_several_devices_need_no_threads(monkeypatch):
    assert threads.count() >= 1
    monkeypatch.setattr(threads.devices, "device_count", lambda: 2)
    assert threads.count() == 1
