"""Parts of a grid: every cell in one of them, as dear as the others, and conclusions only when all cells are there."""

import subprocess
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfd_jax as nfd
from nfd_jax import studies
from nfd_jax.io import cli
from nfd_jax.runtime import provenance
from nfd_jax.runtime.claims import claim
from nfd_jax.runtime.parts import Part
from nfd_jax.solvers import sweep as sweeps
from nfd_jax.statistics import Estimate
from nfd_jax.studies import _study as module
from nfd_jax.studies import about

COSTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=30)


@given(COSTS, st.integers(1, 12))
def test_parts_are_a_division_of_all_cells_and_even(costs, count):
    """No part is dearer than the mean by more than the dearest cell: it had at most the mean before its last."""
    places = [Part(index, count).places(costs) for index in range(1, count + 1)]
    assert sorted(place for part in places for place in part) == list(range(len(costs)))
    dearest = max(sum(costs[place] for place in part) for part in places)
    assert dearest <= sum(costs) / count + max(costs) + 1e-9 * sum(costs)


def test_cells_of_one_cost_are_dealt_out():
    assert [sorted(Part(index, 3).places([1.0] * 7)) for index in (1, 2, 3)] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [sorted(Part(index, 2).places([1.0, 2.0, 3.0])) for index in (1, 2)] == [[2], [0, 1]]
    assert [str(Part(3, 4).turned(by)) for by in range(3)] == ["part 3 of 4", "part 4 of 4", "part 1 of 4"]


def array(**variables):
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in variables.items()}


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, array(ID=3, MIN=1, MAX=8, COUNT=8, STEP=1), Part()),  # in Python only where it is asked for
        ("all", array(ID=3, MIN=1, MAX=8, COUNT=8, STEP=1), Part()),
        ("slurm", {}, Part()),
        ("slurm", {"SLURM_JOB_ID": "3"}, Part()),
        ("slurm", array(ID=3, MIN=1, MAX=8, COUNT=8, STEP=1), Part(3, 8)),
        ("slurm", array(ID=0, MIN=0, MAX=3, COUNT=4), Part(1, 4)),
        ("slurm", array(ID=16, MIN=12, MAX=16, COUNT=3, STEP=2), Part(3, 3)),
        ("slurm", array(ID=0, MIN=0, MAX=15, COUNT=4, STEP=4), Part(1, 4)),  # --array=0-15:4, however MAX is meant
        ("slurm", array(ID=12, MIN=0, MAX=12, COUNT=4, STEP=4), Part(4, 4)),
        ("slurm", array(ID=7, MIN=7, MAX=7, COUNT=1, STEP=1), Part()),
        ("3/8", array(ID=1, MIN=1, MAX=2, COUNT=2), Part(3, 8)),
        (Part(2, 3), {}, Part(2, 3)),
    ],
)
def test_which_part(given, environment, expected):
    assert Part.of(given, environment) == expected


@pytest.mark.parametrize(
    "given", ["0/8", "9/8", "1/0", "-1/8", "8", "1/2/3", "a/b", "", " ", "1.5/2", "1/9999999", "SLURM"]
)
def test_parts_that_are_none(given, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"part .*must be"):
        Part.of(given, {})
    monkeypatch.setattr("sys.argv", ["nfd-jax", "study", "width", f"--part={given}", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"nfd-jax: part .*must be"):
        cli.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "environment",
    [
        array(ID=1, MIN=1, MAX=7, COUNT=3, STEP=1),  # --array=1,5,7
        array(ID=1),
        array(ID="one", MIN=1, MAX=2, COUNT=2),
        array(ID=9, MIN=1, MAX=2, COUNT=2),
        array(ID=2, MIN=1, MAX=3, COUNT=2, STEP=2),
    ],
)
def test_arrays_that_divide_nothing(environment):
    with pytest.raises(
        ValueError, match=r"part 'slurm' needs an array of evenly spaced .* got SLURM_ARRAY_TASK_ID=.*'all'"
    ):
        Part.of("slurm", environment)


def test_parts_of_another_type():
    with pytest.raises(TypeError, match=r"part must be 'k/N' .*, got \(1, 2\) of type tuple"):
        Part.of((1, 2))
    with pytest.raises(ValueError, match=r"part must be .*, got '3/2'"):
        Part(3, 2)


# ------------------------------------------------------------------ studies


@dataclass(frozen=True)
class Sizes:
    widths: tuple[int, ...] = (1, 2, 3, 4)


MEASURED = []


def measure(width):
    MEASURED.append(width)
    return {"gap": 1.0 / width}


def conclude(results):
    gaps = [float(record.gap) for _, record in results.cells]
    return [studies.Finding("gap", "a test", about(0.5, 1), Estimate(np.mean(gaps), 0.1, 10))]


@pytest.fixture
def example(monkeypatch):
    MEASURED.clear()
    study = module.Study(
        "example", "gaps fall", {"smoke": Sizes()}, lambda sizes: [{"width": width} for width in sizes.widths],
        measure, conclude, cost=lambda cell: cell["width"],
    )  # fmt: skip
    monkeypatch.setattr(studies, "STUDIES", {"example": study})
    return study


def test_a_study_in_parts(example, tmp_path):
    """Of widths 1 to 4 the parts are 4 + 1 and 3 + 2; the last concludes, of the same numbers."""
    with pytest.raises(nfd.Incomplete, match=r"2 of 4 cells are not in '.*example.cells' yet: .* --part all"):
        studies.run(example, "smoke", folder=tmp_path, part="1/2")
    assert MEASURED == [1, 4]
    report = studies.run(example, "smoke", folder=tmp_path, part="2/2")
    assert MEASURED == [1, 4, 2, 3]
    assert studies.run(example, "smoke", folder=tmp_path).findings == report.findings
    assert MEASURED == [1, 4, 2, 3]
    whole = studies.run(example, "smoke", folder=tmp_path / "whole")
    assert whole.findings == report.findings


def test_a_part_does_not_wait_for_cells_of_others(example, tmp_path, monkeypatch):
    monkeypatch.setattr("nfd_jax.runtime.store.sleep", lambda _: pytest.fail("waits"))
    record = module.record_of(example, tmp_path, {"width": 3})
    record.folder.mkdir(parents=True)
    with claim(record.path), pytest.raises(nfd.Incomplete, match="2 of 4"):
        studies.run(example, "smoke", folder=tmp_path, part="1/2")


def test_what_a_failed_part_left_is_made_by_all(example, tmp_path):
    with pytest.raises(nfd.Incomplete):
        studies.run(example, "smoke", folder=tmp_path, part="2/2")
    studies.run(example, "smoke", folder=tmp_path, part="all")
    assert MEASURED == [2, 3, 1, 4]


def test_what_is_missing_and_its_seconds(example, tmp_path, monkeypatch):
    """Nothing is measured or written for it; recorded seconds over recorded costs give those of the rest."""
    found = studies.missing(example, "smoke", folder=tmp_path / "new")
    assert (found.count, list(found.costs), found.seconds) == (4, [1, 2, 3, 4], None)
    assert "width 4    40.0% of the cost\n" in found.table()
    assert "costs are relative" in found.table()
    assert not (tmp_path / "new").exists()
    assert MEASURED == []
    now = [0.0]
    monkeypatch.setattr("nfd_jax.runtime.store.perf_counter", lambda: now[0])

    def slow(width):
        now[0] += 100 * width if width == 4 else 50 * width
        return measure(width)

    with pytest.raises(nfd.Incomplete):
        studies.run(replace(example, measure=slow), "smoke", folder=tmp_path, part="1/2")
    found = studies.missing(example, "smoke", folder=tmp_path)
    assert [cell["width"] for cell in found.cells] == [2, 3]
    assert found.mean_rate == 90  # 450 seconds, cost 5
    assert found.seconds == 450
    assert sorted(found.rates) == [50, 100]
    assert "together about 7.5 min by 2 recorded cells on " in found.table()
    assert "(4.17 min to 8.33 min by" in found.table()
    assert "about 3 min\n" in found.table()
    assert not studies.missing(example, "smoke", folder=tmp_path, part="1/2").cells


def test_archives_without_provenance_are_read(example, tmp_path, monkeypatch):
    """As they were before they had any."""
    studies.run(example, "smoke", folder=tmp_path)
    for path in tmp_path.rglob("*.npz"):
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive.files if key != "made"}
        np.savez(path, **arrays)
    MEASURED.clear()
    studies.run(example, "smoke", folder=tmp_path)
    assert not MEASURED
    assert studies.missing(example, "smoke", folder=tmp_path, sizes={"widths": [4, 5]}).seconds is None


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["nfd-jax", *map(str, arguments)])
    cli.main()
    return capsys.readouterr()


def test_command_line(example, tmp_path, monkeypatch, capsys):
    """In an array job a command runs its part, says so, and ends well; the last one concludes."""
    command = ("claims", "--scale", "smoke", "--output", tmp_path)
    assert "4 of 4 cells to measure" in run(monkeypatch, capsys, *command, "--dry-run").out
    for name, value in array(ID=10, MIN=10, MAX=11, COUNT=2, STEP=1).items():
        monkeypatch.setenv(name, value)
    said = run(monkeypatch, capsys, *command)
    assert "part 1 of 2, as task 10 of a SLURM array job; --part all runs everything" in said.err
    assert "example: 2 of 4 cells are not in" in said.out
    assert MEASURED == [1, 4]
    assert not list(tmp_path.glob("*.*"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "11")
    assert "2 of 2 cells of part 2 of 2 to measure" in run(monkeypatch, capsys, *command, "--dry-run").out
    said = run(monkeypatch, capsys, "study", "example", *command[1:], "--part", "1/2")
    assert "SLURM" not in said.err  # it was asked for
    said = run(monkeypatch, capsys, *command)
    assert {path.name for path in tmp_path.glob("*.*")} == {"example.nc", "example.txt", "claims.txt"}
    assert MEASURED == [1, 4, 2, 3]
    MEASURED.clear()
    run(monkeypatch, capsys, *command[:-1], tmp_path / "whole", "--part", "all")
    assert MEASURED == [1, 2, 3, 4]


def test_the_last_part_prints_all_claims(example, tmp_path, monkeypatch, capsys):
    """A study that other parts have finished while this one was at the next is concluded after all."""

    def late(width):
        studies.run(example, "smoke", folder=tmp_path, part="all")
        return measure(width)

    second = replace(example, name="second", measure=late)
    monkeypatch.setattr(studies, "STUDIES", {"example": example, "second": second})
    with pytest.raises(nfd.Incomplete):
        studies.run(replace(second, measure=measure), "smoke", folder=tmp_path, part="1/2")
    said = run(monkeypatch, capsys, "claims", "--scale", "smoke", "--output", tmp_path, "--part", "1/2")
    assert "cells are not in" not in said.out
    table = (tmp_path / "claims.txt").read_text()
    assert table.index("example") < table.index("second")


# ------------------------------------------------------------------ sweeps


def test_a_sweep_in_parts(task, tmp_path, monkeypatch):
    model, sizes = nfd.ResNet(1, "tanh"), []
    options = {"widths": (4, 6, 8), "depths": (2,), "learning_rates": (0.2,), "seeds": 2, "steps": 2}
    whole, train = nfd.sweep(task, model, **options), sweeps._train
    monkeypatch.setattr(sweeps, "_train", lambda plan, cell: sizes.append(cell.width) or train(plan, cell))
    with pytest.raises(nfd.Incomplete, match="2 of 3 cells"):
        nfd.sweep(task, model, folder=tmp_path, part="1/2", **options)
    assert sizes == [8]
    assert nfd.sweep(task, model, folder=tmp_path, part="2/2", **options).identical(whole)
    assert sizes == [8, 4, 6]
    with pytest.raises(ValueError, match=r"part must have a folder=\.\.\. that all parts share, got '1/2' and none"):
        nfd.sweep(task, model, part="1/2", **options)
    with pytest.raises(ValueError, match=r"part must be .*, got 'some'"):
        nfd.sweep(task, model, part="some", **options)


# ------------------------------------------------------------------ provenance


def git(folder, *arguments):
    options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *options, *arguments], check=True, capture_output=True)


def test_commit_and_whether_it_was_clean(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    look = provenance.checkout.__wrapped__
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert look(package) == {}  # no repository
    git(tmp_path, "init")
    assert look(package) == {}  # another's, that does not track it
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "--message", "first")
    first = look(package)
    assert len(first["commit"]) == 40
    assert first["clean"] == "True"
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as a hook of git may have it
    assert look(package) == first
    (package / "__init__.py").write_text("changed = True")
    assert look(package) == first | {"clean": "False"}
    (package / "__init__.py").write_text("")
    (package / "new.py").write_text("")
    assert look(package)["clean"] == "False"
    monkeypatch.setenv("PATH", "")  # no git
    assert look(package) == {}


def test_records_say_what_made_them(example, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["python", "my script.py"])
    monkeypatch.setattr(provenance, "checkout", lambda folder: {"commit": "1f" * 20, "clean": "True"})
    studies.run(example, "smoke", folder=tmp_path)
    record = module.record_of(example, tmp_path, {"width": 3})
    record.read()
    made = record.made
    assert (made["commit"], made["clean"], made["command"]) == ("1f" * 20, "True", "python 'my script.py'")
    assert made["revision"] == record.arguments["revision"]
    assert made["device"].startswith("1 x cpu")
    assert made["seconds"] >= 0
