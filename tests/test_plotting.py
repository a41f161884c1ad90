"""What `nfd.plotting` draws: the numbers of lines, bands, bars and maps, and what they are called."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from scipy.stats import t as student

import nfd_jax as nfd
from nfd_jax.solvers.trajectory import ErrorBars, HeldOut
from nfd_jax.tools._stability import TRAINS

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

SEEDS, STEPS, SAMPLES, DEPTH, WIDTH = 5, 3, 4, 2, 6


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture(scope="module")
def task():
    return nfd.datasets.digits(SAMPLES).holding_out(nfd.datasets.digits(3, split="test"))


def kernels_of(vectors):
    return np.einsum("...an,...bn->...ab", vectors, vectors) / vectors.shape[-1]


def made(task, seeds=SEEDS, **settings):
    """A run of known numbers, of an ensemble or of one member."""
    rng, leading = np.random.default_rng(3), (seeds,) if seeds else ()
    features = rng.normal(size=(*leading, STEPS + 1, DEPTH + 1, SAMPLES, WIDTH))
    observed = {
        "feature_kernel": kernels_of(features),
        "gradient_kernel": -kernels_of(features),
        "neuron_features": features,
        "feature_size": np.sqrt((features**2).mean(axis=-1)),
        "ranks": rng.integers(1, 9, size=(*leading, STEPS + 1, 2, DEPTH)),
        "forward_response": rng.normal(size=(*leading, STEPS + 1, DEPTH, SAMPLES)),
    }
    names = {**nfd.observables.kernels.axes, **nfd.observables.neurons.axes, **nfd.observables.sizes.axes}
    held_out = HeldOut(
        rng.normal(size=(*leading, 2, 3, 1)), rng.uniform(1, 2, size=(*leading, 2)), np.array([0, STEPS])
    )
    return nfd.Trajectory(
        task,
        rng.normal(size=(*leading, STEPS + 1, SAMPLES, 1)),
        rng.uniform(1, 2, size=(*leading, STEPS + 1)),
        tuple(range(seeds or 1)),
        {"depth": DEPTH, **settings},
        observed,
        held_out=held_out,
        axes={**names, **nfd.observables.ranks.axes},
    )


@pytest.fixture
def nets(task):
    return made(task, solver="training", width=64, backward="untied")


def estimate(task):
    run = made(task, 0, solver="limit", closure="coupled")
    bars = {}
    for name in ("loss", "outputs"):
        shape = getattr(run, name).shape
        bars[name] = ErrorBars(np.full(shape, 0.1), np.full(shape, 0.02), np.zeros(shape), np.full(shape, 2.0))
    return nfd.Trajectory(task, run.outputs, run.loss, (0,), run.settings, errors=bars)


def band(axes):
    """Places, low and high ends of the one band."""
    (collection,) = axes.collections
    (path,) = collection.get_paths()
    x, y = path.vertices.T
    places = np.unique(x)
    return places, *(np.array([end(y[x == at]) for at in places]) for end in (np.min, np.max))


def bars(axes, number=0):
    """Low and high ends of a container of error bars."""
    (segments,) = axes.containers[number].lines[2]
    return np.array([segment[:, 1] for segment in segments.get_segments()]).T


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("average", ["mean", "log"])
def test_bands_of_losses_are_student_intervals_of_those_that_finished(nets, axes, average):
    nets.loss[1, 2:] = np.nan
    assert nfd.plotting.loss(nets, axes, average=average) is axes
    good = nets.loss[[0, 2, 3, 4]]
    good = np.log(good) if average == "log" else good
    half = student.ppf(0.975, 3) * good.std(axis=0, ddof=1) / 2
    back = np.exp if average == "log" else np.asarray
    np.testing.assert_allclose(axes.lines[0].get_ydata(), back(good.mean(axis=0)), rtol=1e-12)
    places, low, high = band(axes)
    np.testing.assert_array_equal(places, range(STEPS + 1))
    np.testing.assert_allclose(low, back(good.mean(axis=0) - half), rtol=1e-12)
    np.testing.assert_allclose(high, back(good.mean(axis=0) + half), rtol=1e-12)
    assert texts(axes) == ["untied networks, n = 64 (1 of 5 diverged)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "loss")
    assert axes.get_yscale() == ("log" if average == "log" else "linear")


@pytest.mark.parametrize("points", [False, True])
def test_an_estimate_has_its_own_interval(task, axes, points):
    run = estimate(task)
    nfd.plotting.loss(run, axes, points=points)
    low, high = bars(axes) if points else band(axes)[1:]
    np.testing.assert_allclose([low, high], [run.loss - 0.22, run.loss + 0.22], rtol=1e-12)  # 2 x 0.1 + 0.02
    assert texts(axes) == ["coupled limit"]


def test_one_solution_has_no_band(task, axes):
    run = made(task, 0, closure="decoupled")
    nfd.plotting.loss(run, axes, label="mine", color="k")
    assert not axes.collections
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), run.loss)
    assert texts(axes) == ["mine"]
    assert axes.lines[0].get_color() == "k"


@pytest.mark.parametrize("name", ["held_out_loss", "held_out_accuracy", "accuracy"])
def test_held_out_numbers_and_accuracies(nets, axes, name):
    nfd.plotting.loss(nets, axes, name=name)
    steps = [0, STEPS] if name.startswith("held_out") else range(STEPS + 1)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), steps)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), nets.mean(name), rtol=1e-12)
    assert axes.lines[0].get_linestyle() == ("--" if name.startswith("held_out") else "-")


def test_a_saved_run_is_drawn_alike(nets, tmp_path):
    nets.to_dataset().to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    found = []
    with xr.open_dataset(tmp_path / "run.nc", engine="h5netcdf") as stored:
        for run in (nets, stored):
            axes = nfd.plotting.loss(run, Figure().subplots())
            found.append((axes.lines[0].get_ydata(), *band(axes), texts(axes)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_current_axes_are_the_default(nets):
    figure, axes = pyplot.subplots()
    assert nfd.plotting.loss(nets) is axes
    pyplot.close(figure)


# ------------------------------------------------------------------ along the depth


@pytest.mark.parametrize(("name", "low"), [("feature_kernel", 0.0), ("gradient_kernel", None)])
def test_a_kernel_is_the_mean_over_members(nets, axes, name, low):
    nfd.plotting.kernel(nets, axes, name=name, snapshot=2, layer=1)
    expected = nets.observed[name][:, 2, 1].mean(axis=0)
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), expected, rtol=1e-12)
    assert axes.get_title() == "t = 0.5, step 2"
    ends = (-np.abs(expected).max(), np.abs(expected).max()) if expected.min() < 0 else (0.0, expected.max())
    assert image.get_clim() == pytest.approx(ends)
    assert len(axes.figure.axes) == 2  # with its scale


def test_kernels_share_a_scale_that_is_given(nets, axes):
    nfd.plotting.kernel(nets, axes, vmin=-3.0, vmax=3.0, colorbar=False)
    (image,) = axes.images
    assert image.get_clim() == (-3.0, 3.0)
    assert image.get_cmap().name == "RdBu_r"
    assert len(axes.figure.axes) == 1


def test_paths_of_neurons(nets, axes):
    nfd.plotting.neurons(nets, axes, count=2, sample=3, member=1, snapshots=(0, -1))
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    expected = [nets.observed["neuron_features"][1, step, :, 3, neuron] for step in (0, STEPS) for neuron in (0, 1)]
    for line, path in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [0, 0.5, 1])
        np.testing.assert_array_equal(line.get_ydata(), path)
    assert drawn[0].get_color() == drawn[2].get_color() != drawn[1].get_color()
    assert drawn[0].get_linestyle() != drawn[2].get_linestyle()
    assert texts(axes) == ["before training", f"step {STEPS}"]
    assert axes.get_xlabel() == "layer time t"


def test_paths_of_neurons_over_training(nets, axes):
    nfd.plotting.neurons(nets, axes, along="step", count=3, layer=1)
    for neuron, line in enumerate(axes.lines):
        np.testing.assert_array_equal(line.get_ydata(), nets.observed["neuron_features"][0, :, 1, 0, neuron])
    assert len(axes.lines) == 3
    assert axes.get_title() == "t = 0.5"


def test_a_spectrum_has_the_eigenvalues_of_every_layer(nets, axes):
    nfd.plotting.spectrum(nets, axes, count=3)
    found = np.log(np.linalg.eigvalsh(nets.observed["feature_kernel"][:, -1])[..., ::-1][..., :3])
    half = student.ppf(0.975, SEEDS - 1) * found.std(axis=0, ddof=1) / SEEDS**0.5
    for number, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_ydata(), np.exp(found.mean(axis=0)[:, number]), rtol=1e-10)
    (path,) = axes.collections[1].get_paths()
    assert path.vertices[:, 1].max() == pytest.approx(np.exp(found.mean(axis=0) + half)[:, 1].max())
    assert len(axes.lines) == len(axes.collections) == 3
    assert axes.get_yscale() == "log"


def test_eigenvalues_that_are_rounding_are_left_out(task, axes):
    run = made(task, 0)
    run.observed["feature_kernel"][:] = np.ones((SAMPLES, SAMPLES)) + 1e-9 * np.eye(SAMPLES)
    nfd.plotting.spectrum(run, axes, count=2)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), SAMPLES)
    assert np.isnan(axes.lines[1].get_ydata()).all()


def test_ranks_of_every_matrix(nets, axes):
    nfd.plotting.ranks(nets, axes, basis="backward")
    for matrix, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_ydata(), nets.observed["ranks"][:, :, 1, matrix].mean(axis=0))
    assert texts(axes) == ["matrix 1", "matrix 2"]
    with pytest.raises(ValueError, match="basis='updates' is of runs with a resolution, and this one is exact"):
        nfd.plotting.ranks(nets, axes, basis="updates")


@pytest.mark.parametrize(("name", "places"), [("feature_size", [0, 0.5, 1]), ("forward_response", [1, 2])])
def test_profiles(nets, axes, name, places):
    """With and without names of axes."""
    nfd.plotting.profile(nets, name, axes, snapshot=1)
    members = nets.observed[name][:, 1].mean(axis=-1)
    half = student.ppf(0.975, SEEDS - 1) * members.std(axis=0, ddof=1) / SEEDS**0.5
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), places)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), members.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(band(axes)[2], members.mean(axis=0) + half, rtol=1e-12)
    assert texts(axes) == ["step 1"]


def test_a_real_run_has_what_is_drawn(axes):
    """Neurons are the features and gradients themselves, so that their kernels are those that are observed."""

    @nfd.observables.axes(**nfd.observables.kernels.axes, **nfd.observables.neurons.axes)
    def both(snapshot):
        return nfd.observables.kernels(snapshot) | nfd.observables.neurons(snapshot)

    run = nfd.solve_limit(nfd.datasets.digits(2), nfd.ResNet(2), steps=1, particles=64, noise="plain", observe=both)
    for kind in ("feature", "gradient"):
        expected = kernels_of(run.observed[f"neuron_{kind}s"])
        np.testing.assert_allclose(run.observed[f"{kind}_kernel"], expected, rtol=1e-6, atol=1e-9)
    nfd.plotting.neurons(run, axes, name="neuron_gradients", count=1)
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), run.observed["neuron_gradients"][0, :, 0, 0])


# ------------------------------------------------------------------ against rates and sizes


def swept(losses, widths=(8, 16), depths=(2,)):
    """A sweep of losses (widths, depths, rates, seeds) at two steps."""
    rates = 2.0 ** np.arange(losses.shape[2])
    both = np.stack([np.full_like(losses, 9.0), losses], axis=-1)
    names = ("width", "depth", "learning_rate", "seed")
    coordinates = {"width": list(widths), "depth": list(depths), "learning_rate": rates, "step": [0, 5]}
    return xr.Dataset({"loss": ((*names, "step"), both)}, coordinates)


def test_transfer_marks_the_best_rate_and_what_diverged(axes):
    losses = np.random.default_rng(0).uniform(1, 2, size=(2, 1, 4, 3))
    losses[1, 0, 3, 2] = np.inf
    nfd.plotting.transfer(swept(losses), axes)
    for number, count in enumerate((4, 3)):
        members = losses[number, 0, :count]
        half = student.ppf(0.975, 2) * members.std(axis=1, ddof=1) / 3**0.5
        (drawn, _, _) = axes.containers[number].lines
        np.testing.assert_array_equal(drawn.get_xdata(), 2.0 ** np.arange(count))
        np.testing.assert_allclose(drawn.get_ydata(), members.mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(bars(axes, number)[1], members.mean(axis=1) + half, rtol=1e-12)
        stars = [line for line in axes.lines if line.get_marker() == "*"]
        assert stars[number].get_xdata() == 2.0 ** members.mean(axis=1).argmin()
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[], [8.0]]
    lowest = min(losses[number, 0, :count].mean(axis=1).min() for number, count in enumerate((4, 3)))
    assert axes.get_ylim() == pytest.approx((lowest / 2, 18.0))  # twice the loss before training
    assert texts(axes) == ["n = 8", "n = 16"]


def test_transfer_takes_one_axis_of_sizes(axes):
    losses = np.random.default_rng(0).uniform(1, 2, size=(2, 2, 3, 3))
    both = swept(losses, depths=(2, 4))
    with pytest.raises(ValueError, match=r"several widths and depths; choose one of either: sweep.sel\(width="):
        nfd.plotting.transfer(both, axes)
    nfd.plotting.transfer(both.sel(width=[16]), axes, step=0)
    assert texts(axes) == ["L = 2", "L = 4"]
    np.testing.assert_array_equal(axes.containers[0].lines[0].get_ydata(), 9)


def ensemble(task, outputs, loss):
    return nfd.Trajectory(task, outputs, loss, tuple(range(len(loss))), {})


def around(task, size, centre, count=400, seed=0):
    """Networks whose outputs scatter by size^-1/2 about 1/2, and whose losses have a mean of `centre`."""
    rng = np.random.default_rng([seed, size])
    outputs = 0.5 + size**-0.5 * rng.normal(size=(count, 2, SAMPLES, 1))
    return ensemble(task, outputs, centre + 0.01 * rng.normal(size=(count, 2)))


@pytest.mark.parametrize("exact", [True, False])
def test_distances_from_a_limit_and_their_power_laws(task, exact):
    """Of a law that is known: losses above the limit's by 2/n, outputs n^-1/2 away."""
    runs = {size: around(task, size, 1 + 2 / size) for size in (4, 8, 16, 32)}
    if exact:
        limit = nfd.Trajectory(task, np.full((2, SAMPLES, 1), 0.5), np.full(2, 1.0), (0,), {})
    else:
        limit = ensemble(task, np.full((4, 2, SAMPLES, 1), 0.5), 1 + np.array([[-1e-4], [1e-4], [0], [0]]) * [1, 1])
    for name, power, expected in (("loss", -1, [2 / size for size in runs]), ("outputs", -0.5, None)):
        gaps = nfd.plotting.gaps(runs, limit, name=name)
        by_hand = [run.loss[:, -1].mean() - limit.loss[..., -1].mean() for run in runs.values()]
        if name == "outputs":
            by_hand = [np.sqrt(np.mean((run.outputs[:, -1] - 0.5) ** 2)) for run in runs.values()]
            expected = [size**-0.5 for size in runs]
        np.testing.assert_allclose(gaps.values, by_hand, rtol=1e-12)
        assert np.all(np.abs(gaps.values - expected) < 5 * gaps.errors)
        axes = nfd.plotting.convergence(runs, limit, Figure().subplots(), name=name)
        slope = nfd.statistics.fit_power(list(runs), gaps)
        assert abs(slope.value - power) < 5 * slope.standard_error < 0.5
        assert texts(axes) == [f"n^p, p = {slope}"]
        (drawn, _, _) = axes.containers[0].lines
        np.testing.assert_allclose(drawn.get_ydata(), gaps.values, rtol=1e-12)
        np.testing.assert_allclose(bars(axes)[1], gaps.values + gaps.half_widths, rtol=1e-12)
        law = next(line for line in axes.lines if len(line.get_xdata()) == 50)
        assert law.get_ydata()[-1] == pytest.approx(slope(32))
        assert (axes.get_xlabel(), axes.get_xscale(), axes.get_yscale()) == ("width n", "log", "log")


def test_gaps_have_the_error_of_the_limit_too(task):
    runs = {size: around(task, size, 1.0) for size in (4, 8)}
    bars = ErrorBars(np.full(2, 0.05), np.zeros(2), np.zeros(2), np.full(2, 2.0))
    limit = nfd.Trajectory(task, np.zeros((2, SAMPLES, 1)), np.ones(2), (0,), {}, errors={"loss": bars})
    expected = np.hypot(0.1 / student.ppf(0.975, 1e9), 0.01 / 400**0.5)  # of a half-width of 0.1
    np.testing.assert_allclose(nfd.plotting.gaps(runs, limit).errors, expected, rtol=0.2)  # 400 resamples


def test_a_negative_law_is_drawn_by_its_size(axes):
    measured = nfd.statistics.normal([-1.0, -0.5, -0.25], [0.01, 0.01, 0.5])
    nfd.plotting.power_law([2, 4, 8], measured, axes, size="L", label="bias")
    np.testing.assert_allclose(axes.containers[0].lines[0].get_ydata(), [1, 0.5, 0.25])
    assert texts(axes)[0].startswith("bias: L^p, p = -1.0")
    assert axes.get_xlabel() == "depth L"
    assert axes.get_ylim()[0] > 0


def test_stable_rates_have_intervals_over_seeds_and_the_prediction(axes):
    logs = {width: -np.log(width) + 0.1 * np.random.default_rng(width).normal(size=6) for width in (16, 32, 64)}
    widths = [nfd.WidthRates(width, {TRAINS: np.exp(each)}, ("loss",) * 6) for width, each in logs.items()]
    *found, tested = widths
    result = nfd.StableRate("", tuple(found), tested, -1.0, 0.1)
    nfd.plotting.stable_rates(result, axes)
    for place, each in enumerate(logs.values()):
        half = student.ppf(0.975, 5) * each.std(ddof=1) / 6**0.5
        assert axes.containers[0].lines[0].get_ydata()[place] == pytest.approx(np.exp(each.mean()))
        assert bars(axes)[:, place] == pytest.approx(np.exp([each.mean() - half, each.mean() + half]))
    white = axes.containers[1]
    assert white.lines[0].get_ydata() == pytest.approx(np.exp(result.predicted.value))
    assert bars(axes, 1).ravel() == pytest.approx(np.exp(result.predicted.interval))
    assert texts(axes) == [f"{TRAINS}: {result.slope}", "predicted"]
    with pytest.raises(TypeError, match=r"stable_rates takes what nfd\.stable_rate returned, got 3"):
        nfd.plotting.stable_rates(3, axes)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda run, axes: nfd.plotting.kernel(run, axes), "no feature_kernel in this run.*observe=nfd.observables.k"),
        (lambda run, axes: nfd.plotting.neurons(run, axes), "no neuron_features .*observe=nfd.observables.neurons"),
        (lambda run, axes: nfd.plotting.ranks(run, axes), "no ranks in this run.*observe=nfd.observables.ranks"),
        (lambda run, axes: nfd.plotting.profile(run, "mine", axes), "no mine in this run.*an observe function that"),
        (lambda run, axes: nfd.plotting.loss(run, axes, name="held_out_loss"), r"no held_out_loss .*holding_out\(test"),
        (lambda run, axes: nfd.plotting.loss(run, axes, name="seed"), "unknown name 'seed'; choose one of 'loss', 'ac"),
        (lambda run, axes: nfd.plotting.profile(run, "outputs", axes), "axes .*was not observed along training"),
        (lambda run, axes: nfd.plotting.transfer(run.to_dataset(), axes), "transfer takes the dataset of nfd.sweep"),
        (lambda run, axes: nfd.plotting.positions(run.to_dataset(), axes), "positions takes the dataset of nfd_jax.st"),
        (lambda run, axes: nfd.plotting.convergence({2: run}, run, axes), "runs must be at least two by their width"),
    ],
)
def test_data_without_what_is_asked_for(task, axes, draw, message):
    plain = nfd.Trajectory(nfd.datasets.digits(SAMPLES), np.zeros((3, 2, SAMPLES, 1)), np.ones((3, 2)), (0, 1, 2), {})
    with pytest.raises(ValueError, match=message):
        draw(plain, axes)
    assert not axes.lines


def test_places_that_are_not_there(nets, axes):
    for options, message in (
        ({"layer": 3}, "layer=3 is none of the 3 that feature_kernel has, 0 to 2"),
        ({"snapshot": -5}, "snapshot=-5 is none of the 4 that feature_kernel has, 0 to 3"),
        ({"name": "feature_size"}, "feature_size must be one matrix"),
    ):
        with pytest.raises(ValueError, match=message):
            nfd.plotting.kernel(nets, axes, **options)
    with pytest.raises(ValueError, match="count must be at most 6, got 7"):
        nfd.plotting.neurons(nets, axes, count=7)


def test_nothing_is_left_of_a_run_that_diverged(nets, axes):
    nets.loss[:] = np.nan
    with pytest.raises(ValueError, match="all 5 members of this run diverged"):
        nfd.plotting.loss(nets, axes)
