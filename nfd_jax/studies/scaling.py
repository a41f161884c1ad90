"""Claim 6: over width and depth the loss falls towards the limit's loss as a power law, with diminishing returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Estimate, Sampled, bootstrap, combined, normal, quantile
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, falling
from nfd_jax.studies._panels import Level, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study


@dataclass(frozen=True)
class Sizes:
    """The grid. `depths` are those of the limit, `network_depths` some of them, doubling like `widths`; a network of
    width n is trained `neurons / n` times. `fraction`: of the limit's loss, within which a loss counts as arrived."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    depths: tuple[int, ...] = (8, 16, 32)
    network_depths: tuple[int, ...] = (16,)
    neurons: int = 2**17
    samples: int = 8
    steps: int = 3
    learning_rate: float = 1.0
    tolerance: float = 5e-3
    particles: int = 2048
    fraction: float = 0.05


def cells(sizes: Sizes) -> list[Cell]:
    """The coupled limit at every depth and at infinite depth, and networks of every width at some of the depths."""
    lost = sorted(set(sizes.network_depths) - set(sizes.depths))
    if lost:
        raise ValueError(f"network_depths of study 'scaling' must be among depths {sizes.depths}, got {lost[0]}")
    limit = {"width": None, "count": sizes.particles, "tolerance": sizes.tolerance}
    limits: list[Cell] = [{"depth": depth, **limit} for depth in (None, *sizes.depths)]
    return limits + [
        {"depth": depth, "width": width, "count": max(8, sizes.neurons // width), "tolerance": None}
        for depth in sizes.network_depths
        for width in sizes.widths
    ]


def measure(
    depth: int | None,
    width: int | None,
    count: int,
    tolerance: float | None,
    samples: int,
    steps: int,
    learning_rate: float,
) -> Arrays:
    """Final losses of `count` networks; or of the limit (`width=None`), solved with `count` particles, with the half
    width of its 95 % interval, which bounds the discretisation error at infinite depth (`depth=None`) too."""
    task, model = nfd.datasets.digits(samples), nfd.ResNet(math.inf if depth is None else depth, "relu")
    shared = {"steps": steps, "learning_rate": learning_rate, "progress": False}
    if width is None:
        options = {"particles": count, "tolerance": tolerance, "budget": 1e4, "seed": own_seeds(1, depth)[0]}
        limit = nfd.solve_limit(task, model, closure="coupled", **options, **shared)
        return {"loss": limit.loss[-1], "half_width": limit.errors["loss"].half_width[-1]}
    runs = nfd.train_networks(task, model, width=width, seeds=own_seeds(count, depth, width), engine="auto", **shared)
    return {"loss": (("seed",), runs.loss[:, -1])}


def _limit(results: Results, depth: int | None) -> Sampled:
    kept = results.one(depth=depth, width=None)
    # a stream of resamples for every depth: estimates of different seeds
    return normal(kept.loss.item(), kept.half_width.item() / quantile(math.inf), seed=1 + (depth or 0))


def _over_width(results: Results, depth: int) -> tuple[Curve, Curve]:
    """Mean losses of all widths, and their excess over the limit of the same depth."""
    networks = [(width, kept) for width, kept in results.where(depth=depth).along("width") if width is not None]
    # a diverged network makes the mean not finite, which the fit refuses: no seed is left out silently
    losses = [bootstrap(np.mean, kept.loss.values, seed=place) for place, (_, kept) in enumerate(networks)]
    return _with_excess([width for width, _ in networks], losses, _limit(results, depth))


def _over_depth(results: Results) -> tuple[Curve, Curve]:
    """Losses of the limit at all depths, and their excess over the loss at infinite depth."""
    depths = list(results.sizes.depths)
    return _with_excess(depths, [_limit(results, depth) for depth in depths], _limit(results, None))


def _with_excess(sizes: list[int], losses: list[Sampled], limit: Sampled) -> tuple[Curve, Curve]:
    curve = Curve.of(sizes, losses)
    return curve, Curve(sizes, combined(np.subtract, curve.values, limit))


def _arrival(curve: Curve, goal: float) -> Estimate:
    """The size at which the fitted law of the excess falls to `goal`; not a number where it never does."""
    excess = curve.values
    spread = np.outer((1, -1), excess.errors) / math.sqrt(2)  # two rows of the right standard deviations: the weights

    def reaches(values: np.ndarray) -> float:
        law = Curve(curve.sizes, Sampled(values, values + spread, excess.freedom)).law
        exponent = (math.log(goal) - law.intercept) / law.value if law.value < 0 else math.nan
        return math.exp(exponent) if law.sign > 0 and abs(exponent) < 50 else math.nan

    return excess.map(reaches).estimate()


def _doubling(symbol: str, curve: Curve, limit: float, fraction: float) -> Finding:
    """What doubling the first size at or past the point of arrival takes off the excess: half of it by the claimed
    laws. Not a number where that point, or twice the size after it, lies outside the grid."""
    sizes, excess, arrival = curve.sizes, curve.values, _arrival(curve, fraction * limit)
    past = [place for place, size in enumerate(sizes[:-1]) if size >= arrival.value]
    expected = about(0.5, 0.15)  # a law of exponent -1/2 has 0.29
    if not past or not math.isfinite(arrival.half_width()):
        quantity = f"share of the excess that doubling {symbol} takes off within {fraction:.0%}: out of the grid"
        return Finding(quantity, "NFD", expected, Estimate(math.nan, math.nan, excess.freedom))
    gain = excess.map(lambda values: (values[past[0]] - values[past[0] + 1]) / values[past[0]])
    quantity = (
        f"share of the excess that doubling {symbol} = {sizes[past[0]]} takes off; within {fraction:.0%} of the limit "
        f"from {symbol} = {arrival.value:.0f} ± {arrival.half_width():.0f}"
    )
    return Finding(quantity, "NFD", expected, gain.estimate())


def conclude(results: Results) -> list[Finding]:
    """Exponents of the excess over the limit in n and in L, and what is gained past the point of arrival."""
    sizes, found = results.sizes, []
    for depth in sizes.network_depths:
        quantity, (_, excess) = f"E loss(n, L) - loss(inf, L) ~ n^p, L = {depth}", _over_width(results, depth)
        found.append(Finding(quantity, "NFD", about(-1, 0.25), falling(excess.law)))  # n^-1/2 against 1/n
    _, deeper = _over_depth(results)
    quantity = f"loss(inf, L) - loss(inf, inf) ~ L^p, L = {deeper.sizes[0]} to {deeper.sizes[-1]}"
    found.append(Finding(quantity, "NFD", about(-1, 0.25), falling(deeper.law)))  # L^-1/2 against 1/L
    deepest = sizes.network_depths[-1]
    _, wider = _over_width(results, deepest)
    losses = [float(_limit(results, depth).values) for depth in (deepest, None)]
    return [
        *found,
        _doubling("n", wider, losses[0], sizes.fraction),
        _doubling("L", deeper, losses[1], sizes.fraction),
    ]


def draw(results: Results) -> list[Panel]:
    """Loss against width and depth, the limits as levels, and the excess over them with the fitted laws."""
    infinite = _limit(results, None)
    level = Level("n = inf, L = inf", float(infinite.values), float(infinite.half_widths))
    losses, excesses = [], []
    for depth in results.sizes.network_depths:
        means, excess = _over_width(results, depth)
        losses.append(means.line(f"networks, L = {depth}", fitted=False))
        excesses.append(excess.line(f"L = {depth}", -1.0))
    levels = [
        Level(f"n = inf, L = {depth}", float(limit.values), float(limit.half_widths))
        for depth in results.sizes.network_depths
        for limit in (_limit(results, depth),)
    ]
    limits, deeper = _over_depth(results)
    in_depth, excess = [limits.line("limit", fitted=False)], [deeper.line("coupled limit", -1.0)]
    return [
        Panel("loss against width", "width n", "final loss", losses, levels, log_y=False),
        Panel("loss against depth", "depth L", "final loss", in_depth, [level], log_y=False),
        Panel("excess over the limit of the same depth", "width n", "E loss(n, L) - loss(inf, L)", excesses),
        Panel("excess over infinite depth", "depth L", "loss(inf, L) - loss(inf, inf)", excess),
    ]


STUDY = Study(
    name="scaling",
    number=6,
    claim="loss falls towards the limit's as 1/n and 1/L, and past some size a doubling buys less than a stated amount",
    source="NFD",
    setting="two classes of digits, one-matrix depth-muP, hidden matrices trained by a few full-batch steps of SGD, "
    "training loss after the last; tied networks against the coupled limit; NFD's own tasks and sizes are larger",
    sizes={
        "smoke": Sizes(
            widths=(8, 16),
            depths=(2, 4),
            network_depths=(4,),
            neurons=512,
            samples=2,
            steps=2,
            tolerance=1.0,
            particles=256,
        ),
        "laptop": Sizes(),
        "accelerator": Sizes(
            widths=(32, 64, 128, 256, 512, 1024),
            depths=(2, 4, 8, 16, 32, 64),
            network_depths=(2, 8, 64),
            neurons=2**19,
            samples=16,
            steps=5,
            tolerance=2e-3,
            particles=8192,
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    least={"widths": 2, "depths": 2},
)
