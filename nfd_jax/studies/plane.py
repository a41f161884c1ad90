"""Claim 9: the (alpha, gamma) plane of branch scales L^-alpha and rates: what is stable, and what learns features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax._types import Array
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.statistics import STEEPEST, Sampled, Slope, bootstrap
from nfd_jax.studies._findings import Finding, about, at_least, at_most
from nfd_jax.studies._panels import Line, Map, Panel
from nfd_jax.studies._study import Arrays, Cell, Results, Study

SPACING = 0.25  # of the exponents that a grid of quarters tells apart
HALF = SPACING / 2  # an exponent further than this from 0 is nearer to a neighbour's
NAMED = {(0.5, 0.5): "depth-muP", (1.0, 0.0): "CompleteP"}


@dataclass(frozen=True)
class Sizes:
    """The grid. Rates are small, so that a step is linear in them wherever one can be: exponents are of that order."""

    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    gammas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    depths: tuple[int, ...] = (8, 16, 32, 64, 128)
    width: int = 512
    seeds: int = 8
    activation: str = "relu"
    samples: int = 2
    learning_rate: float = 1e-2


def cells(sizes: Sizes) -> list[Cell]:
    """The whole plane at one depth: its points share a compiled program."""
    lost = [name for (alpha, gamma), name in NAMED.items() if alpha not in sizes.alphas or gamma not in sizes.gammas]
    if lost:
        raise ValueError(f"alphas and gammas of study 'plane' must have the points {list(NAMED)}, got no {lost[0]}")
    return [{"depth": depth} for depth in sizes.depths]


def measure(
    depth: int,
    alphas: Sequence[float],
    gammas: Sequence[float],
    width: int,
    seeds: int,
    activation: str,
    samples: int,
    learning_rate: float,
) -> Arrays:
    """Root mean squares over samples, of every seed: the last features before training, and what one step changes in
    them and in the outputs. Infinite where a step left no finite number."""
    task = nfd.datasets.digits(samples)
    model = nfd.ResNet(depth, activation, block="post", centred=True)
    found = np.zeros((3, len(alphas), len(gammas), seeds))
    for row, alpha in enumerate(alphas):
        for column, gamma in enumerate(gammas):
            run = nfd.solve_network(
                task,
                model,
                width=width,
                steps=1,
                learning_rate=learning_rate,
                seeds=seeds,
                parametrization=nfd.alpha_gamma(alpha, gamma),
                observe=_last_features,
                progress=False,
            )
            last = run.observed["last"].astype(np.float64)
            outputs = run.outputs.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                parts = last[:, 0], last[:, 1] - last[:, 0], outputs[:, 1] - outputs[:, 0]
                sizes = np.stack([np.sqrt(np.mean(part**2, axis=(1, 2))) for part in parts])
            found[:, row, column] = np.where(np.isfinite(sizes), sizes, np.inf)
    axes = ("alpha", "gamma", "seed")
    return {name: (axes, values) for name, values in zip(("initial", "features", "outputs"), found, strict=True)}


def _last_features(snapshot: Snapshot) -> dict[str, Array]:
    return {"last": snapshot.features[-1]}


def _values(results: Results, name: str) -> np.ndarray:
    """A quantity of all depths, `(seeds, depths, alphas, gammas)`."""
    return np.stack([kept[name].values for _, kept in results.along("depth")]).transpose(3, 0, 1, 2)


def _rms(values: np.ndarray) -> np.ndarray:
    """Over seeds."""
    return np.sqrt(np.mean(values**2, axis=0))


def _exponents(results: Results, name: str) -> Sampled:
    """Exponents in L, `(alphas, gammas)`: least squares of logarithms. What is finite at the first depth and not at all
    grows faster than any power: its exponent counts as `STEEPEST`. What diverges at the first has none, NaN. The seeds
    of all points and depths are resampled together, for they share U and V."""
    logs = np.log(results.sizes.depths)
    centred = logs - logs.mean()

    def fitted(values: np.ndarray) -> np.ndarray:
        mean = _rms(values)
        finite = np.isfinite(mean).all(axis=0)
        slopes = np.tensordot(centred, np.log(np.where(finite, mean, 1.0)), 1) / np.sum(centred**2)
        return np.where(finite, slopes, np.where(np.isfinite(mean[0]), STEEPEST, np.nan))

    return bootstrap(fitted, _values(results, name))


def _classes(initial: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """What exponents say of every point: faithful, stable, nontrivial, `(3, alphas, gammas)`."""
    faithful = initial < HALF
    return np.stack([faithful, faithful & (outputs < HALF), outputs > -HALF])


def _expected(sizes: Sizes) -> np.ndarray:
    """The same as the theory has it."""
    alpha, gamma = np.meshgrid(sizes.alphas, sizes.gammas, indexing="ij")
    return np.stack([alpha >= 0.5, (alpha >= 0.5) & (alpha + gamma >= 1), alpha + gamma <= 1])


def _share(results: Results) -> Sampled:
    """The share of points at which all classes are the theory's. What is nontrivial is asked where alpha >= 1/2: below,
    features grow without bounds, and outputs move with them at any gamma."""
    expected = _expected(results.sizes)
    initial, outputs = _exponents(results, "initial"), _exponents(results, "outputs")
    both = Sampled(
        np.stack([initial.values, outputs.values]),
        np.stack([initial.draws, outputs.draws], axis=1),  # the same seeds in every resample
        initial.freedom,
    )

    def agreeing(pair: np.ndarray) -> float:
        agree = _classes(*pair) == expected
        agree[2] |= ~expected[0]
        if not np.all(np.isfinite(pair)):
            return np.nan
        return float(np.mean(np.all(agree, axis=0)))

    return both.map(agreeing)


def _deviation(results: Results, name: str) -> Sampled:
    """The largest |exponent - (1 - alpha - gamma)| of all stable points."""
    alpha, gamma = np.meshgrid(results.sizes.alphas, results.sizes.gammas, indexing="ij")
    stable = _expected(results.sizes)[1]
    return _exponents(results, name).map(lambda found: np.max(np.abs(found - (1 - alpha - gamma))[stable]))


def _points(sizes: Sizes) -> list[tuple[float, float]]:
    """The line alpha + gamma = 1, and a point on either side of it."""
    wanted = [*((alpha, 1 - alpha) for alpha in (0.5, 0.75, 1.0)), (0.5, 0.0), (1.0, 1.0)]
    return [(a, g) for a, g in wanted if a in sizes.alphas and g in sizes.gammas]


def _name(alpha: float, gamma: float) -> str:
    name = NAMED.get((alpha, gamma))
    return f"({alpha:g}, {gamma:g})" + (f" {name}" if name else "")


def conclude(results: Results) -> list[Finding]:
    """Exponents at several points, the largest deviation, and how much of the plane is as the theory has it."""
    sizes, outputs = results.sizes, _exponents(results, "outputs")
    initial, features = _exponents(results, "initial"), _exponents(results, "features")
    place = {alpha: row for row, alpha in enumerate(sizes.alphas)}
    across = {gamma: column for column, gamma in enumerate(sizes.gammas)}
    found = [
        Finding(
            f"|f_1 - f_0| ~ L^p at {_name(alpha, gamma)}",
            "TP6",
            about(1 - alpha - gamma, HALF),
            outputs.estimate(place[alpha], across[gamma]),
        )
        for alpha, gamma in _points(sizes)
    ]
    for alpha, gamma in NAMED:
        at = place[alpha], across[gamma]
        found.append(
            Finding(f"change of h_L ~ L^p at {_name(alpha, gamma)}", "TP6", about(0, HALF), features.estimate(*at))
        )
    for alpha in (a for a in sizes.alphas if a <= 0.5):
        predicted = about(0, HALF) if alpha == 0.5 else at_least(HALF)
        named = f"initial |h_L| ~ L^p at alpha = {alpha:g}"
        found.append(Finding(named, "TP6", predicted, initial.estimate(place[alpha], 0)))
    largest = "largest |p - (1 - alpha - gamma)| of stable points"
    return [
        *found,
        Finding(f"{largest}, f", "TP6", at_most(HALF), _deviation(results, "outputs").estimate()),
        Finding(f"{largest}, h_L", "TP6", at_most(HALF), _deviation(results, "features").estimate()),
        Finding(
            "share of points faithful, stable, nontrivial (alpha >= 1/2) as stated",
            "TP6",
            at_least(1),
            _share(results).estimate(),
        ),
    ]


def _text(initial: float, outputs: float) -> str:
    faithful, stable, nontrivial = _classes(np.array(initial), np.array(outputs))
    words = "unstable" if not stable else "learns" if nontrivial else "trivial"
    shown = f">= {STEEPEST:g}" if outputs >= STEEPEST else f"{outputs:+.2f}" if np.isfinite(outputs) else "none"
    return f"{shown}\n{words}" + ("" if faithful else ",\nnot faithful")


def draw(results: Results) -> list[Panel | Map]:
    """The plane with the theory's borders, and some of its points against L."""
    sizes = results.sizes
    outputs, initial = _exponents(results, "outputs"), _exponents(results, "initial")
    text = [
        [_text(initial.values[row, column], outputs.values[row, column]) for row in range(len(sizes.alphas))]
        for column in range(len(sizes.gammas))
    ]
    low, high = min(sizes.gammas) - HALF, max(sizes.gammas) + HALF
    borders = [
        ("alpha = 1/2", (0.5, 0.5), (low, high)),
        ("alpha + gamma = 1", (1 - high, 1 - low), (high, low)),
    ]
    on_line = [(alpha, gamma) for alpha, gamma in _points(sizes) if alpha + gamma == 1]
    off_line = [point for point in _points(sizes) if point not in on_line]

    def against_depth(point: tuple[float, float]) -> Line:
        row, column = sizes.alphas.index(point[0]), sizes.gammas.index(point[1])
        found = bootstrap(_rms, _values(results, "outputs")[..., row, column])
        estimate = outputs.estimate(row, column)
        intercept = np.mean(np.log(found.values) - estimate.value * np.log(sizes.depths))
        slope = Slope(estimate.value, estimate.standard_error, estimate.freedom, intercept=float(intercept))
        return Line.of(_name(*point), sizes.depths, found, slope, 1 - sum(point))

    shades = np.clip(outputs.values.T, -1.5, 1.5)  # exponential growth would leave no shades for the rest
    return [
        Map("exponent of |f_1 - f_0| in L", "alpha", "gamma", sizes.alphas, sizes.gammas, shades, text, borders),
        *(
            Panel(title, "depth L", "rms of f_1 - f_0", [against_depth(point) for point in points])
            for title, points in (("one step, alpha + gamma = 1", on_line), ("one step, off that line", off_line))
        ),
    ]


STUDY = Study(
    name="plane",
    number=9,
    claim="stable iff alpha >= 1/2 and alpha + gamma >= 1, nontrivial iff alpha + gamma <= 1; |f_1 - f_0| ~ "
    "L^(1 - alpha - gamma)",
    source="TP6 section 7",
    setting="two digits, TP6's block (ReLU, mean subtracted), hidden matrices trained by one small step of SGD; TP6's "
    "statement holds for SGD and Adam",
    sizes={
        "smoke": Sizes(alphas=(0.25, 0.5, 1.0), gammas=(0.0, 0.5, 1.0), depths=(4, 8), width=32, seeds=3),
        "laptop": Sizes(),
        "accelerator": Sizes(depths=(8, 16, 32, 64, 128, 256, 512), width=4096, seeds=16),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["depth"] + 32,
    least={"depths": 2},
)
