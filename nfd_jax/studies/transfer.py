"""Claim 8: under the right parametrization the best learning rate does not move with depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Estimate, Sampled, Slope, bootstrap, combined
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_least, at_most
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import halved
from nfd_jax.studies._study import Arrays, Cell, Results, Study

# block and parametrization of every row, what it is called, and who states that its best rate stays
ROWS = {
    ("pre", "depth_mup"): ("one matrix, depth-muP", "TP6, NFD"),
    ("pre_inner", "depth_mup"): ("two matrices, depth-muP", None),
    ("pre_inner", "depth_mup_corrected"): ("two matrices, corrected", "NFD v1"),
    ("pre_inner", "complete_p"): ("two matrices, CompleteP", "CompleteP"),
}


@dataclass(frozen=True)
class Sizes:
    """The grid: eta = `lowest * ratio^i`, i below `rates`."""

    depths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    width: int = 64
    lowest: float = 0.25
    ratio: float = 2**0.5
    rates: int = 11
    seeds: int = 16
    samples: int = 8
    steps: int = 4
    particles: int = 1024
    limit_seeds: int = 4


def cells(sizes: Sizes) -> list[Cell]:
    """Networks of every row and depth, and the limit of the first row at the last depth."""
    halved("seeds", sizes.seeds)
    if sizes.rates < 3 or sizes.ratio <= 1:
        raise ValueError(
            f"study 'transfer' needs rates of at least 3 and a ratio above 1 for an optimum inside the grid, got "
            f"rates={sizes.rates} and ratio={sizes.ratio}"
        )
    networks = [
        {"block": block, "parametrization": row, "depth": depth, "capacity": max(sizes.depths)}
        for block in ("pre", "pre_inner")
        for depth in sizes.depths
        for row in [row for own, row in ROWS if own == block]
    ]
    block, row = next(iter(ROWS))
    limit = {"block": block, "parametrization": row, "depth": sizes.depths[-1], "width": None}
    return [*networks, {**limit, "particles": sizes.particles, "seeds": sizes.limit_seeds}]


def measure(
    block: str,
    parametrization: str,
    depth: int,
    width: int | None,
    seeds: int,
    samples: int,
    steps: int,
    lowest: float,
    ratio: float,
    rates: int,
    capacity: int = 0,
    particles: int = 0,
) -> Arrays:
    """Final losses at every rate, of networks, or of the limit (`width=None`) from independent sets of particles.

    Depths have seeds of their own; rates share them.
    """
    task, model = nfd.datasets.digits(samples), nfd.ResNet(depth, "relu", block=block)
    members, grid = range(1000 * depth, 1000 * depth + seeds), _grid(lowest, ratio, rates)
    recipe = {"steps": steps, "parametrization": parametrization, "progress": False}
    if width is not None:
        run = nfd.sweep(
            task,
            model,
            widths=[width],
            learning_rates=grid,
            seeds=members,
            engine="revealed",
            capacity=capacity,
            **recipe,
        )
        loss = run.loss.values[0, 0, :, :, -1]
    else:
        loss = [
            nfd.solve_limit(task, model, learning_rate=rate, particles=particles, seeds=members, **recipe).loss[:, -1]
            for rate in grid
        ]
    return {"loss": (("rate", "seed"), np.array(loss))}


def _grid(lowest: float, ratio: float, rates: int) -> list[float]:
    return [lowest * ratio**place for place in range(rates)]


def _rates(sizes: Sizes) -> np.ndarray:
    return np.array(_grid(sizes.lowest, sizes.ratio, sizes.rates))


def _logs(losses: np.ndarray) -> np.ndarray:
    """Mean log loss over seeds, `(rates,)`; infinite at a rate at which any member diverged: it is not usable."""
    usable = np.isfinite(losses).all(axis=0)
    return np.where(usable, np.log(np.where(np.isfinite(losses), losses, 1.0)).mean(axis=0), np.inf)


def _losses(results: Results, block: str, row: str, depth: int, *, limit: bool = False) -> np.ndarray:
    """Final losses of networks or of the limit, `(seeds, rates)`."""
    chosen = results.where(block=block, parametrization=row, depth=depth)
    kept = next(kept for cell, kept in chosen.cells if (cell["width"] is None) == limit)
    return kept.loss.values.T.astype(np.float64)


def _sampled(results: Results, block: str, row: str, depth: int, *, limit: bool = False) -> Sampled:
    """Mean log losses with resamples over seeds, `(rates,)`; all rates of a seed are drawn together."""
    losses = _losses(results, block, row, depth, limit=limit)
    usable = np.isfinite(losses).all(axis=0)
    found = bootstrap(lambda x: np.where(usable, _logs(x), 0.0), losses, seed=depth)
    return found.map(lambda x: np.where(usable, x, np.inf))


def _judged(results: Results, block: str, row: str, depth: int) -> Sampled:
    """Mean log losses of every other seed, `(1 + rates,)`: first at the rate that is best for the rest, then at all
    rates. Both halves are resampled, and every resample chooses anew. Infinite where a member of either half diverged.
    """
    losses = _losses(results, block, row, depth)
    usable = np.isfinite(losses).all(axis=0)

    def both(choosing: np.ndarray, judging: np.ndarray) -> np.ndarray:
        logs = np.where(usable, _logs(judging), 0.0)  # a spread of infinite numbers is none
        return np.append(logs[np.argmin(np.where(usable, _logs(choosing), np.inf))], logs)

    found = bootstrap(both, losses[::2], losses[1::2], seed=depth)
    return found.map(lambda x: np.where(np.append(usable.any(), usable), x, np.inf))


def _optimum(logs: np.ndarray, rates: np.ndarray) -> float:
    """The rate at the bottom of the parabola, in the logarithm of the rate, through the best mean log loss and its
    neighbours; not a number where the best one is at an end of the grid or beside an unusable rate."""
    best = int(np.argmin(logs))
    if best in (0, len(logs) - 1) or not np.isfinite(logs[best - 1 : best + 2]).all():
        return np.nan
    low, middle, high = logs[best - 1 : best + 2]
    shift = 0.5 * (low - high) / max(low - 2 * middle + high, 1e-12)
    return float(np.exp(np.log(rates[best]) + shift * np.log(rates[1] / rates[0])))


def _optima(results: Results, block: str, row: str) -> Curve:
    """Best rates at every depth at which they are inside the grid, in the sample and in every resample."""
    rates, depths, found = _rates(results.sizes), [], []
    for depth in results.sizes.depths:
        each = _sampled(results, block, row, depth).map(lambda logs: _optimum(logs, rates))
        if np.isfinite(each.values) and np.isfinite(each.draws).all():
            depths.append(depth)
            found.append(each)
    return Curve.of(depths, found) if found else Curve([], Sampled(np.zeros(0), np.zeros((2, 0)), 1))


def _drift(results: Results, block: str, row: str) -> tuple[Slope | Estimate, str]:
    """The exponent in L of the best rate, and what was left out of it: depths whose optimum is not inside the grid."""
    optima = _optima(results, block, row)
    outside = [depth for depth in results.sizes.depths if depth not in optima.sizes]
    note = f", without L = {', '.join(map(str, outside))} (optimum not inside the grid)" if outside else ""
    if not {results.sizes.depths[0], results.sizes.depths[-1]} <= set(optima.sizes):
        # the depths that leave the grid are those that drift: the others alone would say too little
        return Estimate(np.nan, np.nan, 1), note
    return optima.law, note


def _diverged(results: Results, block: str, row: str) -> int:
    kept = [kept for cell, kept in results.where(block=block, parametrization=row).cells if cell["width"] is not None]
    return sum(int(np.sum(~np.isfinite(each.loss.values))) for each in kept)


def conclude(results: Results) -> list[Finding]:
    """Drift of the best rate and gain of depth in every row; the rate that the limit alone predicts."""
    depths, rates, found = results.sizes.depths, _rates(results.sizes), []
    for (block, row), (name, source) in ROWS.items():
        drift, note = _drift(results, block, row)
        note += f" ({lost} diverged)" if (lost := _diverged(results, block, row)) else ""
        if source is None:
            size = Estimate(abs(drift.value), drift.standard_error, drift.freedom)
            found.append(
                Finding(f"|p| of best eta ~ L^p, {name}{note}", "NFD v1, TP6; 0.1 is ours", at_least(0.1), size)
            )
        else:
            found.append(Finding(f"best eta ~ L^p, {name}{note}", source, about(0, 0.1), drift))
    middle = depths[len(depths) // 2 - 1]
    for (block, row), (name, source) in ROWS.items():
        if source is not None:
            ends = [_judged(results, block, row, depth) for depth in (middle, depths[-1])]
            ratio = combined(lambda shallow, deep: deep[0] - shallow[0], *ends).estimate()
            quantity = f"log(loss at L = {depths[-1]} / loss at L = {middle}), best eta each, {name}"
            found.append(Finding(quantity, "TP6" if block == "pre" else source, at_most(0), ratio))
    block, row = next(iter(ROWS))
    limit = _sampled(results, block, row, depths[-1], limit=True).map(lambda logs: _optimum(logs, rates))
    network = _sampled(results, block, row, depths[-1])
    both = combined(lambda logs, rate: np.log2(_optimum(logs, rates) / rate), network, limit)
    judged = _judged(results, block, row, depths[-1])
    paid = combined(lambda logs, rate: _between(logs[1:], rates, rate) - logs[0], judged, limit)
    at = f"n = {results.sizes.width}, L = {depths[-1]}, one matrix"
    return [
        *found,
        Finding(f"log2 of best eta over the limit's, {at}", "TP6, NFD", about(0, 0.5), both.estimate()),
        Finding(
            f"log(loss at the limit's eta / loss at the best one), {at}", "TP6, NFD", at_most(0.1), paid.estimate()
        ),
    ]


def _between(logs: np.ndarray, rates: np.ndarray, rate: float) -> float:
    """Mean log loss at a rate between those of the grid, linear in the logarithm of the rate: above a convex curve; not
    a number where every rate of the grid diverges."""
    usable = np.isfinite(logs)
    if not usable.any():
        return np.nan
    return float(np.interp(np.log(rate), np.log(rates[usable]), logs[usable], left=np.nan, right=np.nan))


def draw(results: Results) -> list[Panel]:
    """Loss against rate at every depth, a panel a row, and the best rate and its loss against depth."""
    sizes, rates, panels, best, bottom = results.sizes, _rates(results.sizes), [], [], []
    for (block, row), (name, _) in ROWS.items():
        lines = [(f"L = {depth}", _sampled(results, block, row, depth)) for depth in sizes.depths]
        if block == "pre":
            lines.append(
                (f"limit, L = {sizes.depths[-1]}", _sampled(results, block, row, sizes.depths[-1], limit=True))
            )
        curves = [_curve(*line, rates) for line in lines]
        panels.append(Panel(name, "log2 eta", "mean log loss", curves, log_x=False, log_y=False))
        optima, (drift, _) = _optima(results, block, row), _drift(results, block, row)
        if optima.sizes:
            best.append(optima.line(name, fitted=isinstance(drift, Slope)))
        losses = [_judged(results, block, row, depth).map(lambda logs: logs[0]) for depth in sizes.depths]
        bottom.append(Curve.of(sizes.depths, losses).line(name, fitted=False))
    return [
        *panels,
        Panel("best learning rate", "depth L", "best eta", best),
        Panel("loss at the best learning rate", "depth L", "mean log loss", bottom, log_y=False),
    ]


def _curve(label: str, logs: Sampled, rates: np.ndarray) -> Line:
    """Mean log losses up to four times the loss of doing nothing, 1/2; beyond, the rate is far too large."""
    shown = logs.values < np.log(2)
    return Line.of(
        label, np.log2(rates[shown]).tolist(), Sampled(logs.values[shown], logs.draws[:, shown], logs.freedom)
    )


STUDY = Study(
    name="transfer",
    number=8,
    claim="the best rate does not move with depth: one-matrix depth-muP (TP6, NFD), two-matrix corrected (NFD v1), "
    "CompleteP; under two-matrix depth-muP it does",
    source="TP6, NFD v1, CompleteP",
    setting="two classes of digits, ReLU, hidden matrices trained by a few full-batch steps of SGD, blocks W phi(h), "
    "W2 phi(W1 phi(h)), training loss after the last step; losses at the best rate are of one half of the seeds, "
    "which the other half chose; the sources train longer, TP6 and CompleteP by Adam",
    sizes={
        "smoke": Sizes(
            depths=(2, 4), width=16, lowest=0.5, ratio=2.0, rates=5, seeds=4, samples=2, steps=2, particles=64
        ),
        "laptop": Sizes(),
        "accelerator": Sizes(
            depths=(2, 4, 8, 16, 32, 64, 128), width=512, rates=13, seeds=32, samples=16, steps=10, particles=8192
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    least={"depths": 2},
)
