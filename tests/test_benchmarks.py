"""What `make benchmarks` makes of the scripts' results: figures with names, and flags that follow from intervals."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def laptop(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("laptop", FOLDER / "laptop.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "laptop", module)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_every_benchmark_is_run(laptop):
    """But what they share, and the one that needs other versions of jax."""
    scripts = {path.stem for path in FOLDER.glob("*.py") if "tyro.cli" in path.read_text()}
    assert set(laptop.SMALL) == scripts - {"laptop", "carried_buffers"}


def test_figures_have_names_and_repeats_share_one(laptop):
    result = {
        "sizes": {"seconds": 9},
        "rows": [
            {"width": 4, "seconds": {"dense": 1.0, "revealed": 2.0}, "first_call": 7.0, "over": [1, 2]},
            {"size": "n", "values": [8, 16], "seconds": [3.0, 4.0], "bytes": [5, 6]},
            {"seconds": 1.5, "rate": 2},
            {"seconds": 2.5, "rate": 3},
        ],
    }
    assert list(laptop.figures(result)) == [
        ("width 4 seconds dense", 1.0),
        ("width 4 seconds revealed", 2.0),
        ("n seconds 0", 3.0),
        ("n seconds 1", 4.0),
        ("n bytes 0", 5.0),
        ("n bytes 1", 6.0),
        ("seconds", 1.5),
        ("seconds", 2.5),
    ]


def test_ratios_have_honest_intervals(laptop):
    """1 is outside of one in a hundred where nothing has moved."""
    runs = np.exp(0.1 * np.random.default_rng(0).standard_normal((2000, 2, 3)))
    found = [laptop.ratio(list(now), list(before)) for now, before in runs]
    outside = sum(not low <= 1 <= high for _, low, high in found)
    assert binom.ppf(5e-5, 2000, 0.01) <= outside <= binom.ppf(1 - 5e-5, 2000, 0.01)
    assert all(low < middle < high for middle, low, high in found)


def test_flags(laptop):
    stored = {"growth": {"seconds": [1.0, 1.02, 0.98], "bytes": [5e6] * 3, "noisy seconds": [1.0, 3.0, 0.5]}}
    found = {
        "growth": {"seconds": [2.0, 2.03, 1.96], "bytes": [6e6] * 3, "noisy seconds": [2.0, 5.0, 0.9], "new": [1.0] * 3}
    }
    lines = {re.split(r"\s{2,}", line)[1]: line for line in laptop.table(found, stored).splitlines()[2:-1]}
    assert lines["seconds"].endswith("slower")
    assert "2.00 (" in lines["seconds"]
    assert lines["bytes"].endswith("more")
    assert lines["noisy seconds"].endswith(")")  # three runs that differ so say nothing
    assert laptop.table(found, stored).endswith("2 figures slower or larger beyond the noise")
    assert laptop.table(stored, found).endswith("0 figures slower or larger beyond the noise")
    assert "faster" in laptop.table(stored, found)
    assert laptop.table(stored, stored).count("1.00 (") == 3


def test_a_machine_has_a_file(laptop):
    kind = laptop.machine()
    assert set(kind) == {"processor", "cores", "devices", "platform", "jax"}
    assert laptop.stored_at(kind).parent == FOLDER / "measured" / "laptop"
    assert laptop.stored_at(kind | {"jax": "9.9"}) != laptop.stored_at(kind)
    for path in (FOLDER / "measured" / "laptop").glob("*.json"):
        stored = json.loads(path.read_text())
        assert laptop.stored_at(stored["machine"]) == path
        assert not stored["busy"]
