"""Studies: verdicts follow from intervals, cells are measured once, and every study runs at the smallest scale."""

import json
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import wraps

import jax
import laws
import numpy as np
import pytest
import xarray as xr
from cases import quick

from nfd_jax import statistics, studies
from nfd_jax.io import cli, records
from nfd_jax.runtime import identity
from nfd_jax.statistics import Estimate, bootstrap, fit_power, quantile, stacked
from nfd_jax.studies import _study as module
from nfd_jax.studies import collapse, independence, interaction, nonlinearity, transfer
from nfd_jax.studies._findings import Finding, about, at_least, at_most
from nfd_jax.studies._panels import Level, Line, Map, Panel
from nfd_jax.verdict import Verdict


@dataclass(frozen=True)
class Sizes:
    widths: tuple[int, ...] = (2, 4)
    seeds: int = 4


MEASURED = []


def measure(width, seeds):
    if width == KILLED_AT:
        raise KeyboardInterrupt
    MEASURED.append(width)
    return {"gap": (("seed",), helped(width) + np.random.default_rng(width).standard_normal(seeds) / 100)}


def helped(width):
    return OFFSET / width


OFFSET, KILLED_AT = 3.0, None


def gaps(results):
    return stacked([bootstrap(np.mean, kept.gap.values) for _, kept in results.along("width")])


def conclude(results):
    return [Finding("gap ~ n^p", "a test", about(-1, 0.2), fit_power(results.sizes.widths, gaps(results)))]


def draw(results):
    widths, found = results.sizes.widths, gaps(results)
    line = Line.of("gap", widths, found, fit_power(widths, found), -1.0)
    curve = Line("law", widths, OFFSET / np.array(widths), curve=True)
    grid = Map("map", "x", "y", [0, 1], [0, 1], np.eye(2), [["a", "b"], ["c", "d"]], [("border", [0, 1], [0, 1])])
    return [Panel("gaps", "n", "gap", [line, curve], [Level("level", 0.5, 0.1)]), grid]


@pytest.fixture
def example():
    MEASURED.clear()
    return module.Study(
        name="example",
        number=0,
        claim="gaps fall",
        source="a test",
        setting="numbers",
        sizes={"smoke": Sizes(), "laptop": Sizes(seeds=8), "accelerator": Sizes(seeds=16)},
        cells=lambda sizes: [{"width": width} for width in sizes.widths],
        measure=measure,
        conclude=conclude,
        draw=draw,
        least={"widths": 2},
    )


@pytest.mark.parametrize(
    ("predicted", "value", "error", "verdict"),
    [
        (about(-1, 0.25), -0.9, 0.05, Verdict.SUPPORTED),
        (about(-1, 0.25), -0.5, 0.05, Verdict.CONTRADICTED),
        (about(-1, 0.25), -0.8, 0.05, Verdict.UNDECIDED),  # its interval leaves the prediction on one side
        (about(-1, 0.25), -1.0, 1.0, Verdict.UNDECIDED),  # it holds the prediction, and everything else
        (at_least(0), 0.5, 0.1, Verdict.SUPPORTED),
        (at_least(0), -0.5, 0.1, Verdict.CONTRADICTED),
        (at_least(0), 0.1, 0.1, Verdict.UNDECIDED),
        (at_most(1), 0.5, 0.1, Verdict.SUPPORTED),
        (at_most(1), 1.5, 0.1, Verdict.CONTRADICTED),
        (about(-1, 0.25), math.nan, 0.1, Verdict.UNDECIDED),
        (about(-1, 0.25), -1.0, math.inf, Verdict.UNDECIDED),
    ],
)
def test_verdicts_follow_from_intervals(predicted, value, error, verdict):
    assert Finding("x", "y", predicted, Estimate(value, error, 50)).verdict is verdict


def test_cells_are_measured_once(example, tmp_path):
    first = studies.run(example, "smoke", folder=tmp_path)
    assert MEASURED == [2, 4]
    again = studies.run(example, "smoke", folder=tmp_path)
    assert MEASURED == [2, 4]
    assert again.findings[0].measured == first.findings[0].measured
    assert first.findings[0].verdict is Verdict.SUPPORTED
    more = studies.run(example, "smoke", folder=tmp_path, sizes={"widths": [2, 4, 8]})
    assert MEASURED == [2, 4, 8]
    assert more.results.sizes == Sizes((2, 4, 8))
    studies.run(example, "laptop", folder=tmp_path)
    assert MEASURED == [2, 4, 8, 2, 4]


def test_a_kill_loses_the_cell_under_way(example, tmp_path, monkeypatch):
    """And nothing else: the next run measures that cell, whatever half-written file the last one left."""
    assert module.grid(example, Sizes()) == [{"width": 2, "seeds": 4}, {"width": 4, "seeds": 4}]
    monkeypatch.setattr(f"{__name__}.KILLED_AT", 4)
    with pytest.raises(KeyboardInterrupt):
        studies.run(example, "smoke", folder=tmp_path)
    (kept,) = tmp_path.rglob("*.npz")
    (kept.parent / ".0123.npz.host-1.partial").write_bytes(b"half")
    monkeypatch.undo()
    MEASURED.clear()
    studies.run(example, "smoke", folder=tmp_path)
    assert MEASURED == [4]


def test_records_of_another_revision_are_not_used(example, tmp_path, monkeypatch):
    """Of the study, or of the numerical core: `tests/test_identity.py` sees to it that they are raised."""
    studies.run(example, "smoke", folder=tmp_path)
    studies.run(replace(example, revision=2), "smoke", folder=tmp_path)
    assert MEASURED == [2, 4, 2, 4]
    monkeypatch.setattr(identity, "REVISION", identity.REVISION + 1)
    studies.run(example, "smoke", folder=tmp_path)
    assert MEASURED == [2, 4] * 3
    assert len(list(tmp_path.rglob("*.npz"))) == 6


def test_cells_in_each_others_place_are_refused(example, tmp_path):
    studies.run(example, "smoke", folder=tmp_path)
    one, other = sorted(tmp_path.rglob("*.npz"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(ValueError, match=r"is of a run with width=\d, and width=\d was asked for"):
        studies.run(example, "smoke", folder=tmp_path)


def test_no_flipped_bit_is_read_as_another_number(example, tmp_path):
    example = replace(example, conclude=lambda results: [])  # which takes longest
    report = studies.run(example, "smoke", folder=tmp_path)
    path, expected = sorted(tmp_path.rglob("*.npz"))[0], report.results.cells
    content, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in rng.integers(8 * len(content), size=200):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = studies.run(example, "smoke", folder=tmp_path).results.cells
        except ValueError as error:
            refused += str(path) in str(error)
            continue
        for (_, one), (_, other) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.gap, other.gap)
    assert refused > 0


@pytest.mark.parametrize("content", [b"", b"not a record", None])
def test_a_broken_cell_is_named_and_the_next_study_runs(content, example, tmp_path, monkeypatch, capsys):
    """`None`: cut in half."""
    second = replace(example, name="second")
    monkeypatch.setattr(studies, "STUDIES", {"example": example, "second": second})
    studies.run(example, "smoke", folder=tmp_path)
    path = sorted(tmp_path.rglob("*.npz"))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(
        ValueError, match=rf"study 'example': record '{path}' is not an archive of nfd_jax .*; remove it"
    ):
        cli.claims(("example", "second"), "smoke", tmp_path)
    assert "second" in capsys.readouterr().out
    assert (tmp_path / "second.nc").exists()


def test_padding_decides_nothing(example):
    cell = {"width": 2, "seeds": 4}
    assert module.depends_on(example, cell | {"capacity": 8}) == module.depends_on(example, cell)


@pytest.mark.parametrize("row", interaction.NAMES)
def test_interaction_does_not_depend_on_capacity(row):
    """Matrices past the last block take no part, so that `capacity` is no part of an address. In float64, sums in
    another order differ by rounding."""
    own, larger = (interaction.measure(row, 2, 16, 2, 2, 2, 1.0, capacity) for capacity in (2, 5))
    for name, (_, values) in own.items():
        np.testing.assert_allclose(larger[name][1], values, rtol=1e-10)


def test_optimum_of_a_parabola():
    """The bottom between the rates; none at an end of the grid, or beside a rate at which networks diverge."""
    rates = 2.0 ** np.arange(5)
    logs = (np.log2(rates) - 1.8) ** 2
    assert transfer._optimum(logs, rates) == pytest.approx(2**1.8)
    assert math.isnan(transfer._optimum(np.log2(rates), rates))
    assert math.isnan(transfer._optimum(np.where(rates > 4, np.inf, logs), rates))


def test_report(example, tmp_path):
    report = studies.run(example, "smoke", folder=tmp_path)
    written = {path.suffix for path in report.save(tmp_path)}
    assert written == {".nc", ".txt", ".svg", ".png"}
    assert "gaps fall" in report.table()
    kept = records.load(tmp_path / "example.nc")
    assert kept.verdict.item() == "supported"
    assert kept.low.item() < kept.measured.item() < kept.high.item()
    assert json.loads(kept.attrs["arguments"])["sizes"]["seeds"] == 4
    assert "1 supported, 0 contradicted, 0 undecided" in studies.summary([report])


@pytest.mark.parametrize(
    ("scale", "sizes", "error", "message"),
    [
        ("huge", {}, ValueError, "unknown scale 'huge'"),
        ("smoke", {"width": 3}, ValueError, "unknown size of study 'example' 'width'.*'seeds', 'widths'"),
        ("smoke", {"widths": ["3"]}, TypeError, r"'widths' of study 'example' must be like \(2, 4\), got \('3',\)"),
        ("smoke", {"seeds": 2.5}, TypeError, "'seeds' of study 'example' must be like 4, got 2.5"),
        ("smoke", {"seeds": 1}, ValueError, "'seeds' of study 'example' must be at least 2"),
        ("smoke", {"seeds": 10**9}, ValueError, "'seeds' of study 'example' must be at most 1000000, got 1000000000"),
        ("smoke", {"widths": []}, ValueError, r"'widths' of study 'example' must be at least 2 different .* got \[\]"),
        ("smoke", {"widths": [2]}, ValueError, r"'widths' .* must be at least 2 different entries .*, got \[2\]"),
        ("smoke", {"widths": [2, 2]}, ValueError, r"'widths' .* must be at least 2 different entries .*, got \[2, 2\]"),
        ("smoke", {"widths": [2, 0]}, ValueError, "'widths' of study 'example' must be at least 1, got 0"),
        ("smoke", {"widths": [2, -1]}, ValueError, "'widths' of study 'example' must be at least 1, got -1"),
        ("smoke", {"widths": [2, 10**11]}, ValueError, "'widths' .* must be at most 2147483647, got 100000000000"),
        ("smoke", [3], TypeError, r"sizes of study 'example' must map names to sizes, got \[3\]"),
        ("smoke", {"widths": 3}, TypeError, r"'widths' of study 'example' must be like \(2, 4\), got 3"),
    ],
)
def test_bad_sizes(example, tmp_path, scale, sizes, error, message):
    with pytest.raises(error, match=message):
        studies.run(example, scale, folder=tmp_path, sizes=sizes)
    assert not MEASURED


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("width", {"widths": []}, r"'widths' .* must be at least 2 different entries .*, got \[\]"),
        ("reuse", {"activations": []}, r"'activations' .* must be at least 1 different entries .*, got \[\]"),
        ("transfer", {"depths": [4]}, r"'depths' .* must be at least 2 different entries .*, got \[4\]"),
        ("depth", {"activations": ["relu", "sine"]}, "unknown activation 'sine'"),
        ("width", {"learning_rate": math.nan}, "'learning_rate' of study 'width' must be a finite number above 0"),
        ("reuse", {"horizons": [1.0, 0.0]}, "'horizons' of study 'reuse' must be a finite number above 0, got 0.0"),
        ("plane", {"alphas": [0.5, 0.75]}, "alphas and gammas of study 'plane' must have the points .*, got no Comp"),
        ("plane", {"gammas": [0.5, -0.5]}, "'gammas' of study 'plane' must be a finite number at least 0, got -0.5"),
        ("diversity", {"depths": [8, 16]}, "depths of study 'diversity' must be at least 16, got 8"),
        ("scaling", {"network_depths": [3]}, r"network_depths of study 'scaling' must be among depths \(2, 4\), got 3"),
        ("transfer", {"rates": 2}, "needs rates of at least 3 and a ratio above 1 .*, got rates=2"),
        ("transfer", {"ratio": 0.5}, "needs rates of at least 3 and a ratio above 1 .* ratio=0.5"),
        ("nonlinearity", {"activations": ["relu", "tanh"]}, "activations of study 'nonlinearity' must have 'abs'"),
        ("regimes", {"exponents": [0.5, 1.0]}, r"needs .* exponents with 0.5 and 0.25 .* got .*exponents=\(0.5, 1.0\)"),
        ("regimes", {"layers": [1, 3]}, r"needs networks of at least 2 layers, .* got layers=\(1, 3\)"),
        ("updates", {"layers": [1, 3]}, r"needs networks of at least 2 layers, got layers=\(1, 3\)"),
        ("stability", {"data": ["/nowhere"]}, r"data teacher, digits or a folder of CIFAR-10, .*'/nowhere'"),
        ("stability", {"rows": ["ntp"]}, "needs .* rows of sp, mup, mup_at_sp, .* got .*'ntp'"),
        ("persistence", {"dense": 64}, r"dense networks at one of widths \(32, 128\), .* dense=64"),
        ("persistence", {"resolution": 0.6}, "a resolution below 0.5 .*, got .*resolution=0.6"),
        ("persistence", {"batch": 3}, "^study 'persistence': needs .* a batch below samples=3, got .* batch=3"),
        ("regimes", {"batches": [7]}, r"needs batches of at most samples=6, got batches=\(7,\)"),
        ("independence", {"cifar10": "/nowhere"}, "cifar10 of study 'independence' must be the folder of its files"),
    ],
)
def test_sizes_that_no_study_could_conclude_from(tmp_path, name, sizes, message):
    """Refused before the first cell."""
    with pytest.raises(ValueError, match=message):
        studies.run(studies.STUDIES[name], "smoke", folder=tmp_path, sizes=sizes)
    assert not [*tmp_path.rglob("*.n*")]


def test_every_size_of_every_study_fits_it():
    for study in studies.STUDIES.values():
        for scale in studies.SCALES:
            sizes = study.sizes[scale]
            named = {field.name: getattr(sizes, field.name) for field in fields(sizes)}
            given = {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}
            assert module.sized(study, scale, given) == sizes
            assert module.grid(study, sizes)
            assert set(study.least) <= set(named)


def test_names_and_numbers():
    assert all(name == study.name for name, study in studies.STUDIES.items())
    numbers = [study.number for study in studies.STUDIES.values()]
    assert numbers == sorted(set(numbers))
    assert all(set(study.sizes) == set(studies.SCALES) for study in studies.STUDIES.values())


@contextmanager
def as_users():
    """Single precision, as users run studies: in double, rates are stable that are not for them."""
    with jax.enable_x64(False):
        yield


# the others take over eight seconds, of several limits each
@pytest.mark.parametrize("name", quick(studies.STUDIES, "updates", "alignment", "interaction"))
def test_every_study_runs_and_resumes(name, tmp_path):
    """From nothing to a written report; a second run measures nothing, and finds the same."""
    study = studies.STUDIES[name]

    @wraps(study.measure)
    def measured(**_):
        pytest.fail("measured again")

    with as_users():
        report = studies.run(study, "smoke", folder=tmp_path, progress=False)
        again = studies.run(replace(study, measure=measured), "smoke", folder=tmp_path, progress=False)
    assert report.findings
    assert all(isinstance(finding.verdict, Verdict) for finding in report.findings)
    decided = [finding for finding in report.findings if finding.verdict is not Verdict.UNDECIDED]
    assert all(np.isfinite(finding.measured.value) for finding in decided)
    assert repr(again.findings) == repr(report.findings)  # where some are not a number
    assert all(path.stat().st_size for path in report.save(tmp_path))


@pytest.fixture(scope="module", params=studies.STUDIES)
def report(request):
    """Of a study at the smallest scale, of records by law."""
    return laws.report(request.param, scale="smoke")


NO_INTERVAL = re.compile(r"± (inf|nan)|\b(inf|nan) ±")


def test_a_smoke_run_says_that_it_is_one(report):
    """Wherever verdicts are read, which a few tiny points decide, and in the figure."""
    for text in (report.table(), studies.summary([report])):
        assert module.SMOKE in " ".join(text.split())
        assert not NO_INTERVAL.search(text)
    title = report.figure().get_suptitle()
    assert module.SMOKE in " ".join(title.split())
    assert module.SMOKE not in " ".join(replace(report, scale="laptop").table().split())


def test_bars_and_bands_are_intervals(report, monkeypatch):
    """All of them go through one quantile: a planted `2 *` is not Student's, and would stay as it is."""
    before = _bars(report, report.panels)
    monkeypatch.setattr(statistics, "quantile", lambda *arguments: 10 * quantile(*arguments))
    after = _bars(report, report.study.draw(report.results))
    assert any(np.isfinite(bars).any() for bars in before)
    for bars, wider in zip(before, after, strict=True):
        np.testing.assert_allclose(wider, 10 * bars, rtol=1e-10)


def _bars(report, panels):
    """Half the widths of all bars and bands that a study draws; but for allowances, which no measurement decides."""
    panels = [panel for panel in panels if isinstance(panel, Panel)]
    levels = [level.half_width for panel in panels for level in panel.levels if report.study.name != "diversity"]
    lines = [line.bars for panel in panels for line in panel.lines if line.bars is not None]
    return [np.asarray(bars, float) for bars in (*lines, *levels)]


@pytest.fixture(scope="module")
def diverged(report):
    """The same where nothing that was measured is finite."""

    def lost(kept):
        return kept.map(lambda each: each * np.nan if each.dtype.kind == "f" else each * 0)

    results = replace(report.results, cells=[(cell, lost(kept)) for cell, kept in report.results.cells])
    return replace(report, results=results, findings=tuple(report.study.conclude(results)))


def test_a_study_concludes_where_everything_diverged(diverged):
    """Undecided, and said so: in the line of what can't be known, and above all lines."""
    assert {finding.verdict for finding in diverged.findings} == {Verdict.UNDECIDED}
    assert not NO_INTERVAL.search(diverged.table())
    lost = f"not finite (diverged, or beyond all that was tried) in {len(diverged.results.cells)} of"
    assert lost in " ".join(diverged.table().split())


@pytest.mark.slow
def test_a_report_of_nothing_finite_is_written(diverged, tmp_path):
    assert all(path.stat().st_size for path in diverged.save(tmp_path))


RATES = ("learning_rate", "learning_rates", "rates", "lowest")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in studies.STUDIES if name not in ("reuse", "width", "scaling", "alignment", "isometry")]
)
def test_a_study_runs_at_rates_that_diverge(name, tmp_path):
    """Measured too, and not only concluded. Those with limits to a tolerance spend their whole budget; two take first
    derivatives only, of which no rate takes part."""
    study = studies.STUDIES[name]
    sizes = study.sizes["smoke"]
    was = {each.name: getattr(sizes, each.name) for each in fields(sizes) if each.name in RATES}
    assert was
    huge = {
        key: [1e25 * rate for rate in value] if isinstance(value, tuple) else 1e25 * value
        for key, value in was.items()
        if not isinstance(value, int)
    }
    with as_users():
        report = studies.run(study, "smoke", folder=tmp_path, sizes=huge, progress=False)
    assert "not finite" in report.table()
    assert all(path.stat().st_size for path in report.save(tmp_path))


def test_rates_are_chosen_and_judged_on_different_seeds():
    """Every other seed finds the second rate best, at which the rest do badly. Their loss is what is reported."""
    choosing, judging = np.array([1.0, 0.1, 1.0]), np.array([1.0, 2.0, 0.1])
    losses = np.stack([choosing, judging] * 4)
    cell = {"block": "pre", "parametrization": "depth_mup", "depth": 2, "width": 8}
    results = module.Results(None, [(cell, xr.Dataset({"loss": (("rate", "seed"), losses.T)}))])
    found = transfer._judged(results, "pre", "depth_mup", 2)
    np.testing.assert_allclose(np.exp(found.values), [2.0, *judging])
    assert found.freedom == 3
    sizes = replace(nonlinearity.Sizes(), activations=("abs", "relu"))
    fields = {name: (("rate", "seed", "time", "kind"), np.ones((3, 8, 2, 3))) for name in nonlinearity.FIELDS}
    record = xr.Dataset({"loss": (("rate", "seed"), losses.T), **fields})
    results = module.Results(sizes, [({"activation": name}, record) for name in sizes.activations])
    np.testing.assert_allclose(np.exp(nonlinearity._found(results)["loss"].values), [2.0, 2.0])
    for study in ("transfer", "nonlinearity"):
        assert "half" in studies.STUDIES[study].setting
        with pytest.raises(ValueError, match="one half chooses the rate, the other judges it"):
            module.grid(studies.STUDIES[study], replace(studies.STUDIES[study].sizes["smoke"], seeds=3))


def test_collapse_tells_parts_of_the_first_step_apart():
    """Given the changes of f that the recursion has, it finds the recursion's parts."""
    sizes, rate = collapse.Sizes(depths=(4, 16), samples=2), 1e-3
    found = []
    for backward in collapse.CLOSURE_OF:
        expected = collapse._expected(sizes, backward)
        for place, depth in enumerate(sizes.depths):
            for row, name in collapse.ROWS.items():
                change = rate * expected[f"change, {name}"][place] * np.array([0.9, 1.1])
                cell = {"depth": depth, "backward": backward, "learning_rate": rate, "parametrization": row}
                found.append((cell, xr.Dataset({"change": (("seed",), change)})))
    results = module.Results(replace(sizes, learning_rates=(rate, 0.5)), found)
    for backward in collapse.CLOSURE_OF:
        expected = collapse._expected(sizes, backward)
        for name, values in collapse._measured(results, backward).items():
            np.testing.assert_allclose(values.values.values, expected[name], rtol=1e-10, atol=1e-12)
    assert not expected["inner"].any()


def test_independence_on_cifar(tmp_path):
    """Given a folder of CIFAR-10, its cells follow those of digits, and train on what is there."""
    draw = np.random.default_rng(0)
    for name in (*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"):
        pixels = draw.integers(0, 256, (20, 3072), dtype=np.uint8)
        labels = np.arange(20, dtype=np.uint8)[:, None] % 10
        (tmp_path / f"{name}.bin").write_bytes(np.concatenate([labels, pixels], axis=1).tobytes())
    sizes = replace(independence.STUDY.sizes["smoke"], cifar10=str(tmp_path))
    grid = module.grid(independence.STUDY, sizes)
    assert [cell["data"] for cell in grid] == ["digits"] * (len(grid) // 2) + [str(tmp_path)] * (len(grid) // 2)
    found = independence.measure(**grid[-1])
    assert all(np.isfinite(found[name][1]).all() for name in ("train", "test"))
    assert not np.allclose(found["train"][1], independence.measure(**grid[len(grid) // 2 - 1])["train"][1])


def _fails(**cell):
    raise RuntimeError("too large")


def test_command_line(tmp_path, capsys, monkeypatch):
    arguments = ["claims", "interaction", "--scale", "smoke", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["nfd-jax", *arguments])
    cli.main()
    printed = capsys.readouterr().out
    assert "12 interaction" in printed
    assert printed.count("undecided") > 1  # in a line, and in the count of them
    assert (tmp_path / "claims.txt").read_text().splitlines()[0].startswith("quantity")
    monkeypatch.setitem(studies.STUDIES, "plane", replace(studies.STUDIES["plane"], measure=_fails))
    monkeypatch.setattr("sys.argv", ["nfd-jax", "claims", "plane", *arguments[1:]])
    with pytest.raises(SystemExit, match="study 'plane': too large"):
        cli.main()
    assert "12 interaction" in capsys.readouterr().out  # the rest has run all the same
    monkeypatch.setattr("sys.argv", ["nfd-jax", "study", "interaction", "--sizes", "{", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="--sizes must be JSON"):
        cli.main()
