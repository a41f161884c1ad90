"""The comparison, its table, figure and record, and the command line around them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from matplotlib.collections import LineCollection

import nfd_jax as nfd
from nfd_jax import statistics
from nfd_jax.io import cli, plotting, records
from nfd_jax.plotting import _positions
from nfd_jax.runtime.provenance import PACKAGES
from nfd_jax.solvers.resolution import RESOLUTION
from nfd_jax.studies import _comparison_table as comparison_table
from nfd_jax.studies import compare as comparison
from nfd_jax.studies.compare import Comparison

SMALL = Comparison(depths=(2,), widths=(8, 16), steps=2, seeds=4, particles=128, limit_seeds=2)


LONGER = replace(SMALL, widths=(8,), steps=6, seeds=3, particles=256, activation="tanh")


@pytest.fixture(scope="module")
def dataset():
    return comparison.compare(nfd.datasets.digits(2), SMALL, progress=False)


def in_batches(held_out=4, size=2):
    return nfd.datasets.digits(6).minibatches(size).holding_out(nfd.datasets.digits(held_out, split="test"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def batched(runs):
    return comparison.compare(in_batches(), LONGER, folder=runs, progress=False)


def test_cells_are_the_solvers_own_numbers(dataset):
    task = nfd.datasets.digits(2)
    network = nfd.train_networks(
        task, nfd.ResNet(2), width=16, seeds=4, backward="untied", steps=2, learning_rate=1.0, progress=False
    )
    cell = dataset.sel(backward="untied", depth=2, width=16)
    np.testing.assert_array_equal(cell.network_outputs, network.outputs)
    limit = nfd.solve_limit(
        task, nfd.ResNet(2), particles=128, closure="decoupled", seeds=2, steps=2, learning_rate=1.0, progress=False
    )
    np.testing.assert_array_equal(dataset.limit_loss.sel(closure="decoupled", depth=2), limit.loss)


def test_finished_runs_are_never_run_again(dataset, tmp_path, monkeypatch):
    """Whatever depths and widths are asked for beside them; of another rate, or other data, all are."""
    task, runs, trained = nfd.datasets.digits(2), [], comparison._trained

    def counted(task, setup, run):
        runs.append(run)
        return trained(task, setup, run)

    monkeypatch.setattr(comparison, "_trained", counted)
    fewer = comparison.compare(task, replace(SMALL, widths=(8,)), folder=tmp_path, progress=False)
    assert sorted(map(str, runs)) == [  # threads share them
        "L = 2, coupled limit",
        "L = 2, decoupled limit",
        "L = 2, tied networks, n = 8",
        "L = 2, untied networks, n = 8",
    ]
    assert comparison.compare(task, replace(SMALL, widths=(8,)), folder=tmp_path, progress=False).identical(fewer)
    assert len(runs) == 4
    assert comparison.compare(task, SMALL, folder=tmp_path, progress=False).identical(dataset)
    assert [run.width for run in runs[4:]] == [16, 16]
    comparison.compare(task, replace(SMALL, widths=(8,), learning_rate=0.5), folder=tmp_path, progress=False)
    other = nfd.datasets.digits(2, classes=(0, 2))
    comparison.compare(other, replace(SMALL, widths=(8,)), folder=tmp_path, progress=False)
    assert len(runs) == 6 + 4 + 4
    more = comparison.compare(task, replace(SMALL, widths=(8,), seeds=5), folder=tmp_path, progress=False)
    assert sorted(run.kind for run in runs[14:]) == ["tied", "untied"]  # the limits are there
    np.testing.assert_array_equal(more.limit_loss, dataset.limit_loss)


@pytest.mark.slow
def test_batches_and_held_out_samples_are_the_solvers_own(batched):
    shared = {"steps": 6, "learning_rate": 1.0, "progress": False}
    networks = nfd.train_networks(in_batches(), nfd.ResNet(2, "tanh"), width=8, seeds=3, **shared)
    cell = batched.sel(backward="tied", depth=2, width=8)
    np.testing.assert_array_equal(batched.step, networks.steps)
    np.testing.assert_array_equal(batched.held_out_step, networks.held_out.steps)
    np.testing.assert_array_equal(cell.network_outputs, networks.outputs)
    np.testing.assert_array_equal(cell.network_held_out_loss, networks.held_out.loss)
    for name in ("loss", "held_out_loss", "held_out_accuracy"):
        np.testing.assert_allclose(cell[f"network_mean_{name}"], networks.mean(name), rtol=1e-12)
        np.testing.assert_allclose(cell[f"network_{name}_error"], networks.standard_error(name), rtol=1e-12)
    limit = batched.sel(closure="coupled", depth=2)
    np.testing.assert_allclose(limit.limit_mean_held_out_loss, limit.limit_held_out_loss.mean("limit_seed"))
    assert batched.attrs["held_out_samples"] == 4
    assert not any("resolution" in name for name in batched)


def test_what_is_extra_is_evaluated_at_few_steps():
    full = nfd.datasets.digits(6)
    for task in (full, full.minibatches(6)):
        assert replace(SMALL, steps=300).training(task).evaluate_at is None
    for task in (in_batches(), full.minibatches(2), replace(in_batches(), batch_size=None)):
        assert LONGER.training(task).evaluate_at == list(range(7))
        found = replace(SMALL, steps=300).training(task).evaluate_at
        assert (found[0], found[-1], len(found)) == (0, 300, 25)
        assert set(np.diff(found)) <= {12, 13}


def test_batches_and_held_out_samples_decide_a_record(batched, runs, monkeypatch):
    trained = []
    monkeypatch.setattr(comparison, "_trained", lambda task, setup, run: trained.append(run) or pytest.fail("trained"))
    assert comparison.compare(in_batches(), LONGER, folder=runs, progress=False).identical(batched)
    plain = in_batches()
    others = [
        (in_batches(held_out=3), LONGER),
        (in_batches(size=3), LONGER),
        (replace(plain, held_out=None), LONGER),
        (replace(plain, batch_seed=1), LONGER),
        (plain, replace(LONGER, steps=5)),
    ]
    run = comparison.Run("coupled", 2)
    known = [comparison.depends_on(task, setup, run) for task, setup in [(plain, LONGER), *others]]
    assert all(known.count(each) == 1 for each in known)
    monkeypatch.setattr(comparison, "EVALUATIONS", 3)
    assert comparison.depends_on(plain, LONGER, run)["evaluate_at"] == [0, 2, 4, 6]
    assert "evaluate_at" not in comparison.depends_on(nfd.datasets.digits(2), SMALL, run)  # as records always were
    assert not trained


def test_a_resolution_decides_a_record(monkeypatch):
    """That of limits of more than so many queries, unasked: here of more than four."""
    run = comparison.Run("coupled", 2)
    before = comparison.depends_on(in_batches(), LONGER, run)
    monkeypatch.setattr("nfd_jax.solvers.resolution.EXACT", 4)
    assert comparison.depends_on(in_batches(), LONGER, run) == before | {"resolution": RESOLUTION}


@pytest.mark.slow
def test_a_resolution_is_kept(batched, runs, monkeypatch):
    """That of limits, which are made anew. Networks are dense, and there."""
    made, trained = [], comparison._trained
    monkeypatch.setattr("nfd_jax.solvers.resolution.EXACT", 4)
    monkeypatch.setattr(comparison, "_trained", lambda *run: made.append(run[2].kind) or trained(*run))
    found = comparison.compare(in_batches(), LONGER, folder=runs, progress=False)
    assert sorted(made) == ["coupled", "decoupled"]
    assert found.network_loss.identical(batched.network_loss)
    assert (found.limit_resolution == RESOLUTION).all()
    assert (found.limit_directions > 0).all()
    assert found.limit_directions.dims == ("closure", "depth")
    assert "network_resolution" not in found
    most = found.limit_directions.max().item()
    assert f"resolution {RESOLUTION}, at most {most} directions revealed of a matrix." in comparison_table.table(found)


def test_table_and_figure_of_held_out_samples(batched, dataset, tmp_path):
    text = comparison_table.table(batched)
    assert "held-out loss        accuracy" in text
    assert "held-out loss and accuracy: on 4 samples that nothing is trained on." in text
    assert "held" not in comparison_table.table(dataset)
    cell = batched.sel(backward="tied", depth=2, width=8).isel(step=-1, held_out_step=-1)
    (line,) = (line for line in text.splitlines() if " tied networks" in line)
    assert f"{cell.network_mean_held_out_accuracy.item():.3f} ± " in line
    figure = plotting.comparison(batched)
    assert "4 held-out samples" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert sum(line.get_linestyle() == "--" and len(line.get_xdata()) == 7 for line in figure.axes[0].lines) == 2
    plotting.save(figure, tmp_path / "compare.png")


def test_losses_over_more_than_a_decade_are_on_a_log_scale(batched):
    for factor, scale in ((0.5, "linear"), (0.01, "log")):
        known = batched.copy(deep=True)
        for kind in ("limit", "network"):
            for name, axis in plotting.FOLLOWED.items():
                known[f"{kind}_mean_{name}"][:] = 1.0
                known[f"{kind}_mean_{name}"][{axis: -1}] = factor
        assert plotting.comparison(known).axes[0].get_yscale() == scale


def test_every_run_lands_in_its_cell(monkeypatch):
    """Stand-in solvers whose outputs spell out their arguments."""
    task, setup = nfd.datasets.digits(2), replace(SMALL, depths=(3, 5, 2))

    def trajectory(value, members):
        shape = (*members, setup.steps + 1)
        return nfd.Trajectory(task, np.full((*shape, 2, 1), value), np.full(shape, value), (0,), {"noise": "none"})

    def limit(task, model, training, *, closure, seeds, **_):
        run = trajectory(1000.0 * model.depth + 10 * (closure == "coupled"), (len(seeds),))
        return replace(
            run, loss=run.loss + np.array(seeds)[:, None], outputs=run.outputs + np.array(seeds).reshape(-1, 1, 1, 1)
        )

    def networks(task, model, training, *, width, backward, seeds, engine, **_):
        assert engine == "auto"
        return trajectory(1000.0 * model.depth + width + 0.5 * (backward == "tied"), (len(seeds),))

    monkeypatch.setattr(comparison, "solve_limit", limit)
    monkeypatch.setattr(comparison, "train_networks", networks)
    got = comparison.compare(task, setup, progress=False)
    want = 1000.0 * got.depth + 10 * (got.closure == "coupled") + got.limit_seed
    assert (got.limit_outputs == want).all()
    assert (got.limit_loss == want).all()
    want = 1000.0 * got.depth + got.width + 0.5 * (got.backward == "tied")
    assert (got.network_outputs == want).all()
    assert (got.network_loss == want).all()


def test_positions_and_distances_of_known_outputs(dataset):
    """Networks put a known way along the line between the limits are found there, with the error they were given."""
    known = dataset.copy(deep=True)
    limits = known.limit_outputs.mean("limit_seed")
    known["limit_outputs"] = limits.expand_dims(limit_seed=known.limit_seed, axis=2)
    origin, line = (
        limits.sel(closure="decoupled", drop=True),
        (limits.sel(closure="coupled", drop=True) - limits.sel(closure="decoupled", drop=True)),
    )
    offsets = np.array([0.1, 0.2, 0.3, 0.4])
    along = known.network_loss.isel(step=0) * 0 + offsets
    known["network_outputs"] = (origin + along * line).transpose(*dataset.network_outputs.dims)
    known["diverged_at"] = known.diverged_at.where(known.seed != known.seed[3], 1)  # the last one is left out
    got = comparison.summarise(known)
    error = offsets[:3].std(ddof=1) / 3**0.5
    np.testing.assert_allclose(got.position, 0.2, rtol=1e-10)
    np.testing.assert_allclose(got.position_error, error, rtol=1e-10)
    np.testing.assert_allclose(got.distance.sel(closure="decoupled"), 0.2 / error, rtol=1e-10)
    np.testing.assert_allclose(got.distance.sel(closure="coupled"), -0.8 / error, rtol=1e-10)


def test_extrapolation_is_the_weighted_fit(dataset):
    inverse = 1 / dataset.width.values
    cell = dataset.isel(backward=0, depth=0)
    weight = 1 / cell.position_error.values
    _, intercept = np.polyfit(inverse, cell.position.values, 1, w=weight)
    design = weight[:, None] * np.stack([inverse, np.ones(2)], axis=1)
    covariance = np.linalg.inv(design.T @ design)
    np.testing.assert_allclose(cell.infinite_position, intercept, rtol=1e-9)
    np.testing.assert_allclose(cell.infinite_position_error, covariance[1, 1] ** 0.5, rtol=1e-9)


def test_table_has_a_line_a_cell_and_names_divergence(dataset):
    text = comparison_table.table(dataset)
    assert sum("networks" in line and "±" in line for line in text.splitlines()) == 4 + 2  # and the extrapolations
    assert sum("limit " in line and "±" in line for line in text.splitlines()) == 2
    assert "diverged" not in text
    diverged = comparison.compare(nfd.datasets.digits(2), replace(SMALL, learning_rate=1e200), progress=False)
    assert "diverged and are left out" in comparison_table.table(diverged)


def test_record_round_trip_with_provenance(dataset, tmp_path):
    path = records.save(dataset, tmp_path / "compare.nc", {"seed": 3})
    back = records.load(path)
    assert back.identical(dataset.assign_attrs(back.attrs))
    assert json.loads(back.attrs["arguments"]) == {"seed": 3}
    assert set(json.loads(back.attrs["versions"])) == set(PACKAGES)
    assert "cpu" in back.attrs["device"].lower() or "gpu" in back.attrs["device"].lower()
    assert [file.name for file in tmp_path.iterdir()] == ["compare.nc"]


def test_bars_and_bands_are_intervals(dataset, monkeypatch):
    """Student's, with the degrees of freedom of the members that are left: all of them go through one quantile."""
    known = dataset.copy(deep=True)
    known["diverged_at"] = known.diverged_at.where((known.width != 16) | (known.seed != 3), 1)
    known = comparison.summarise(known)
    cell = known.sel(backward="tied", depth=2)
    assert _positions.half_widths(cell, "position") == pytest.approx(
        cell.position_error.values * [statistics.quantile(3), statistics.quantile(2)]
    )
    assert _positions.half_widths(cell, "infinite_position") == pytest.approx(
        statistics.quantile(2) * cell.infinite_position_error
    )
    before = _heights(plotting.comparison(known))
    monkeypatch.setattr(_positions, "quantile", lambda freedom: 10 * statistics.quantile(freedom))
    after = _heights(plotting.comparison(known))
    assert before.max() > 0
    np.testing.assert_allclose(after, 10 * before, rtol=1e-6, atol=1e-12)
    assert "2 standard errors" not in plotting.comparison(known).get_suptitle()


def _heights(figure):
    """Of all bars and bands."""
    found = []
    for axis in figure.axes:
        found += [patch.get_height() for patch in axis.patches]
        for collection in axis.collections:
            if isinstance(collection, LineCollection):
                found += [np.ptp(segment[:, 1]) for segment in collection.get_segments()]
            else:
                # the height of a band at each of its places
                (path,) = collection.get_paths()
                places, values = path.vertices.T
                found += [np.ptp(values[places == place]) for place in np.unique(places)]
    return np.array(found)


def test_nothing_of_a_table_is_nan(dataset):
    """Where too few are left for a standard error, none is printed."""
    known = dataset.copy(deep=True)
    for marks in ("diverged_at", "limit_diverged_at"):
        known[marks] = known[marks] * 0
    text = comparison_table.table(comparison.summarise(known))
    assert "none" in text
    assert "nan" not in text


def test_figure_is_written(dataset, tmp_path):
    path = plotting.save(plotting.comparison(dataset), tmp_path / "compare.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_command_line(tmp_path, capsys, monkeypatch):
    sizes = {name.replace("_", "-"): value for name, value in asdict(SMALL).items()}
    words = {name: value if isinstance(value, tuple) else (value,) for name, value in sizes.items()}
    arguments = [word for name, values in words.items() for word in (f"--{name}", *map(str, values))]
    monkeypatch.setattr(
        "sys.argv", ["nfd-jax", "compare", "--samples", "2", *arguments, "--output", str(tmp_path / "out")]
    )
    cli.main()
    assert "tied networks" in capsys.readouterr().out
    record = records.load(tmp_path / "out" / "compare.nc")
    assert json.loads(record.attrs["arguments"])["particles"] == 128
    assert (tmp_path / "out" / "compare.png").exists()


def test_the_first_look_comes_first(dataset, tmp_path, monkeypatch):
    """Two depths and three widths, before anything else is trained, and the same numbers as in the whole."""
    large = replace(SMALL, depths=(2, 3, 4), widths=(8, 12, 16, 20))
    made, seen = [], []

    def trained(task, setup, run):
        made.append(run)
        like = dataset.isel(depth=0, closure=0, backward=0, width=0)
        kind = "limit" if run.width is None else "network"
        values = {name: like[f"{kind}_{name}"].values + len(made) for name in ("outputs", "loss")}
        marks = like.limit_diverged_at if run.width is None else like.diverged_at
        return values | {"diverged_at": marks.values, "noise": np.array("plain")}

    def look(found):
        seen.append((found, len(made)))

    monkeypatch.setattr(comparison, "_trained", trained)
    monkeypatch.setattr("nfd_jax.runtime.threads.count", lambda: 1)
    options = {"folder": tmp_path, "progress": False, "first_look": look}
    whole = comparison.compare(nfd.datasets.digits(2), large, **options)
    ((first, count),) = seen
    assert count == 2 * 2 * (1 + 3)
    assert (first.depth.values.tolist(), first.width.values.tolist()) == ([2, 3], [8, 12, 16])
    assert len(made) == len(set(made)) == 2 * 3 * (1 + 4)
    for name in ("network_loss", "limit_outputs", "position"):
        np.testing.assert_array_equal(
            first[name],
            whole[name].sel(depth=[2, 3]).sel(width=[8, 12, 16])
            if "width" in first[name].dims
            else whole[name].sel(depth=[2, 3]),
        )
    seen.clear()
    comparison.compare(nfd.datasets.digits(2), SMALL, **options)
    assert not seen  # there is no more than what it would show


def test_limits_of_all_depths_share_a_program(monkeypatch):
    """Room for the deepest, of which the numbers are the same."""
    asked = []
    monkeypatch.setattr(comparison, "solve_limit", lambda *_, **options: asked.append(options) or pytest.skip("seen"))
    setup = replace(SMALL, depths=(2, 5))
    with pytest.raises(pytest.skip.Exception):
        comparison._trained(nfd.datasets.digits(2), setup, comparison.Run("coupled", 2))
    assert asked[0]["capacity"] == 5


def test_command_line_in_batches(tmp_path, capsys, monkeypatch):
    """Six samples: the digits that are held out are few, or as many as there are."""
    tasks = []
    monkeypatch.setattr(comparison, "compare", lambda task, *_, **__: tasks.append(task) or pytest.skip("seen"))
    for words in (["--held-out", "4"], ["--batch-size", "2", "--held-out", "0"], ["--batch-size", "2"]):
        command = ["nfd-jax", "compare", "--samples", "6", *words, "--output", str(tmp_path)]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(pytest.skip.Exception):
            cli.main()
    assert [task.batch_size for task in tasks] == [None, 2, 2]
    assert [task.held_out and task.held_out.samples for task in tasks] == [4, None, 120]
    np.testing.assert_array_equal(tasks[2].held_out.inputs, nfd.datasets.digits(120, split="test").inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": ()}, "depths"),
        ({"widths": 4}, "widths must be a sequence of integers, got 4"),
        ({"widths": (4, 10**11)}, "widths must be at most 2147483647, got 100000000000"),
        ({"seeds": 10**9}, "seeds .* must be at most 1000000, got 1000000000"),
        ({"seed": 2**64 - 1}, "the last seed must be at most 18446744073709551615"),
        ({"depths": (4, 4)}, "depths"),
        ({"widths": (0,)}, "widths must be at least 1, got 0"),
        ({"activation": "sine"}, "activation"),
        ({"horizon": 0.0}, "horizon"),
        ({"steps": 0}, "steps"),
        ({"seeds": 1}, "seeds"),
        ({"limit_seeds": 1}, "limit_seeds"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Comparison(**arguments)


@pytest.mark.parametrize("sizes", [{"widths": (4, 2 * 10**9)}, {"depths": (2, 2**31 - 1)}, {"particles": 2 * 10**9}])
def test_memory_of_all_runs_is_checked_first(task, monkeypatch, sizes):
    for name in ("solve_limit", "train_networks"):
        monkeypatch.setattr(f"nfd_jax.studies.compare.{name}", lambda *_, **__: pytest.fail("a run has started"))
    with pytest.raises(ValueError, match=r"this run needs about .* GiB, .* use"):
        comparison.compare(task, Comparison(**{"depths": (2,), "widths": (4,), "steps": 1} | sizes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--seeds", "1"], r"^nfd-jax: seeds \(a standard error needs two\) must be at least 2, got 1$"),
        (["compare", "--depths"], r"^nfd-jax: depths must be at least one number, each given once, got \(\)$"),
        (["compare", "--widths", "4", "100000000000"], "^nfd-jax: widths must be at most 2147483647, got 100000000000"),
        (["compare", "--batch-size", "0"], "^nfd-jax: batch_size must be at least 1, got 0$"),
        (["compare", "--batch-size", "17"], "^nfd-jax: batch_size must be at most the 16 samples of the task, got 17$"),
        (["compare", "--held-out", "-1"], "^nfd-jax: held_out must be at least 0, got -1$"),
        (
            ["compare", "--held-out", "121"],
            "^nfd-jax: held_out=121 can't be drawn: samples=121 needs 61 test images of digit 0, but there are 60; ask",
        ),
        (["compare", "--horizon", "nan"], "^nfd-jax: horizon must be a finite number above 0, got nan$"),
        (["compare", "--processes", "2"], "^nfd-jax: --coordinator, --processes and --process-id go together"),
        (["study", "width", "--process-id", "2"], "^nfd-jax: --coordinator, --processes and --process-id go together"),
    ],
)
def test_the_command_line_names_the_argument(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["nfd-jax", *arguments, "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        cli.main()


def test_the_command_line_describes_every_size(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nfd-jax", "compare", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert "Depths L of the networks" in printed
    assert "of process 0" in printed


def test_unwritable_output_is_refused_before_any_run(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setattr("sys.argv", ["nfd-jax", "compare", "--output", str(blocked / "out")])
    with pytest.raises(SystemExit, match="can't be written"):
        cli.main()
