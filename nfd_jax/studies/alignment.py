"""Claim 14: the backward-feature angle at initialisation against depth, and the spectrum that it follows from."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from nfd_jax.seeds import seed_key
from nfd_jax.statistics import Sampled, bootstrap, combined, fit_power
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_most
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._stream import Scales, angles
from nfd_jax.studies._study import Arrays, Cell, Results, Study

MLP, SMALL, LARGE, CURVE, OURS = "MLP", "b = L^-1", "b = L^-1/4", "b = s L^-1/2", "our block"
FLAT, NEAR, RATIO, WITHIN = 0.05, 0.02, 0.1, 0.1  # allowances: exponents of 0, angles, ratios, exponents of others
SHALLOWEST = 8  # layers from which the fit of the MLP goes: 1 / sqrt(1 + 2 (l - 1) (2 l - 1) / (6 l)) is a power there


@dataclass(frozen=True)
class Sizes:
    """The grid: `strengths` s of branches s L^-1/2, `horizons` T of our own block."""

    depths: tuple[int, ...] = (32, 128, 500)
    mlp_depth: int = 64
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    horizons: tuple[float, ...] = (0.25, 1.0, 4.0)
    width: int = 200
    seeds: int = 24


def cells(sizes: Sizes) -> list[Cell]:
    """The MLP, and every family of residual networks at every depth; spectra at the largest."""
    if sizes.mlp_depth < 2 * SHALLOWEST:
        raise ValueError(f"mlp_depth of study 'alignment' must be at least {2 * SHALLOWEST}, got {sizes.mlp_depth}")
    families = [
        (SMALL, 1.0),
        (LARGE, 1.0),
        *((CURVE, s) for s in sizes.strengths),
        *((OURS, T) for T in sizes.horizons),
    ]
    grid = [(L, name, at, max(sizes.depths) == L) for L in sizes.depths for name, at in families]
    every = [(sizes.mlp_depth, MLP, 1.0, True), *grid]
    return [{"family": name, "scale": at, "depth": L, "moments": moments} for L, name, at, moments in every]


def measure(family: str, scale: float, depth: int, moments: bool, width: int, seeds: int) -> Arrays:
    """The cosine at every layer of every network, and that which the moments of its kernel predict."""
    found = [
        angles(seed_key(seed), scales_of(family, scale, depth), depth, width, moments)
        for seed in own_seeds(seeds, family, scale, depth)
    ]
    cosine, spectra = (np.asarray(jax.device_get(each), np.float64) for each in zip(*found, strict=True))
    record = {"cosine": (("seed", "layer"), cosine)}
    return record | ({"predicted": (("seed", "layer"), spectra[..., 0] / np.sqrt(spectra[..., 1]))} if moments else {})


def scales_of(family: str, scale: float, depth: int) -> Scales:
    """The stream of a cell."""
    if family == OURS:
        return Scales.ours(depth, scale)
    powers = {MLP: 0.0, SMALL: 1.0, LARGE: 0.25, CURVE: 0.5}
    return Scales.source(scale * depth ** -powers[family])


def _last(results: Results, family: str, scale: float) -> Curve:
    """The mean cosine of the last layer against depth."""
    chosen = results.where(family=family, scale=scale)
    return chosen.curve("depth", lambda record: bootstrap(np.mean, record.cosine.values[:, -1]))


def _along(results: Results, name: str = "cosine") -> Sampled:
    """Means over seeds at all layers of the MLP."""
    return bootstrap(lambda values: values.mean(axis=0), results.one(family=MLP)[name].values)


def _fitted(sizes: Sizes) -> np.ndarray:
    """Layers of the MLP between which its exponent is fitted, evenly spaced in their logarithm."""
    return np.unique(np.geomspace(SHALLOWEST, sizes.mlp_depth, 7).round().astype(int))


def _ratio(results: Results, family: str, scale: float, depth: int) -> Sampled:
    """Measured over predicted cosine at the last layer, means over seeds of both."""
    record = results.one(family=family, scale=scale, depth=depth)
    pairs = np.stack([record.cosine.values[:, -1], record.predicted.values[:, -1]], axis=1)
    return bootstrap(lambda pair: pair[:, 0].mean() / pair[:, 1].mean(), pairs)


def _furthest(results: Results) -> Sampled:
    """The largest |cos at the least depth / cos at the largest - 1| of all strengths."""

    def largest(*curves: np.ndarray) -> float:
        return float(np.max([np.abs(curve[0] / curve[-1] - 1) for curve in curves]))

    return combined(largest, *(_last(results, CURVE, s).values for s in results.sizes.strengths))


def conclude(results: Results) -> list[Finding]:
    """Exponents in depth, whether all depths make one curve, and angles beside both predictions of them."""
    sizes, deepest = results.sizes, max(results.sizes.depths)
    layers = _fitted(sizes)
    law = fit_power(layers, _along(results).map(lambda values: values[layers - 1]))
    named = f"cos theta_l ~ l^p, MLP, l = {layers[0]} to {layers[-1]}"
    found = [
        Finding(named, "FSF: degenerate", about(-0.5, WITHIN), law),
        Finding(named, "an angle that depth leaves", about(0, WITHIN), law),
    ]
    for s in sizes.strengths:
        curve = _last(results, CURVE, s)
        found += curve.findings(f"cos theta_L ~ L^p, b = {s:g} L^-1/2", ("FSF: nontrivial", about(0, FLAT)))
    for T in sizes.horizons:
        curve = _last(results, OURS, T)
        found += curve.findings(f"cos theta_L ~ L^p, our block, T = {T:g}", ("theory 2: b ~ L^-1/2", about(0, FLAT)))
    rest = _last(results, SMALL, 1.0).map(lambda values: 1 - values)
    found += rest.findings("1 - cos theta_L ~ L^p, b = L^-1", ("FSF: one curve, trivial", about(-1, WITHIN)))
    found += _last(results, LARGE, 1.0).findings(
        "cos theta_L ~ L^p, b = L^-1/4", ("FSF: one curve, degenerate", about(-0.25, WITHIN))
    )
    least = f"largest difference of cos between L = {min(sizes.depths)} and {deepest} at one sqrt(L) b, relative"
    found.append(Finding(least, "FSF: one curve; a tenth is ours", at_most(0.1), _furthest(results).estimate()))
    for family, scale, depth, name in _named(sizes):
        measured = _ratio(results, family, scale, depth).estimate()
        found.append(Finding(f"cos / (M_1 / sqrt(M_2)), {name}", "FSF: spectrum of K", about(1, RATIO), measured))
    for family, scale, depth, name in _named(sizes):
        cosine = bootstrap(np.mean, results.one(family=family, scale=scale, depth=depth).cosine.values[:, -1])
        closed = about(float(scales_of(family, scale, depth).cosine(depth)), NEAR)
        found.append(
            Finding(f"cos theta_L, {name}", "free matrices, relu' afresh in every layer", closed, cosine.estimate())
        )
    return found


def _named(sizes: Sizes) -> list[tuple[str, float, int, str]]:
    """Families at their largest depth, and how a table calls them."""
    deepest = max(sizes.depths)
    return [
        (MLP, 1.0, sizes.mlp_depth, f"MLP, L = {sizes.mlp_depth}"),
        *((CURVE, s, deepest, f"b = {s:g} L^-1/2, L = {deepest}") for s in sizes.strengths),
        *((OURS, T, deepest, f"our block, T = {T:g}, L = {deepest}") for T in sizes.horizons),
    ]


def draw(results: Results) -> list[Panel]:
    """The MLP along its layers; one curve in sqrt(L) b; and the angle along depth at several scales of branches."""
    return [_mlp(results), _one_curve(results), _own(results), _against_depth(results)]


def _mlp(results: Results) -> Panel:
    sizes = results.sizes
    layers, every = _fitted(sizes), np.arange(1, sizes.mlp_depth + 1)
    cosine, predicted = (
        _along(results, name).map(lambda values: values[layers - 1]) for name in ("cosine", "predicted")
    )
    lines = [
        Line.of("measured", layers, cosine, fit_power(layers, cosine), -0.5),
        Line.of("M_1 / sqrt(M_2) of K", layers, predicted),
        Line("free matrices", every, Scales.source(1.0).cosine(every), curve=True),
    ]
    return Panel(f"ReLU MLP (b = 1), n = {sizes.width}", "layer l", "cos theta_l", lines)


def _scaled(results: Results, depth: int, name: str) -> tuple[np.ndarray, Sampled]:
    """sqrt(L) b of the source's networks of one depth, all three families, with a mean over seeds."""
    sizes = results.sizes
    points = [(SMALL, 1.0, depth**-0.5), *((CURVE, s, s) for s in sizes.strengths), (LARGE, 1.0, depth**0.25)]
    points.sort(key=lambda point: point[2])
    values = [
        bootstrap(np.mean, results.one(family=family, scale=scale, depth=depth)[name].values[:, -1])
        for family, scale, _ in points
    ]
    return np.array([at for _, _, at in points]), combined(lambda *each: np.stack(each), *values)


def _one_curve(results: Results) -> Panel:
    lines = []
    for depth in results.sizes.depths:
        at, values = _scaled(results, depth, "cosine")
        lines.append(Line(f"L = {depth}", at, values.values, values.half_widths, joined=False))
    at, predicted = _scaled(results, max(results.sizes.depths), "predicted")
    lines.append(Line("M_1 / sqrt(M_2) of K, largest L", at, predicted.values, predicted.half_widths))
    fine, deep = np.geomspace(at[0], at[-1], 60), max(results.sizes.depths)
    closed = [float(Scales.source(s * deep**-0.5).cosine(deep)) for s in fine]
    lines.append(Line("free matrices", fine, closed, curve=True))
    return Panel("source's ResNet: one curve", "sqrt(L) b", "cos theta_L", lines, log_y=False)


def _own(results: Results) -> Panel:
    sizes, lines = results.sizes, []
    at = [T**0.5 for T in sizes.horizons]
    for depth in sizes.depths:
        parts = [
            bootstrap(np.mean, results.one(family=OURS, scale=T, depth=depth).cosine.values[:, -1])
            for T in sizes.horizons
        ]
        values = combined(lambda *each: np.stack(each), *parts)
        lines.append(Line(f"L = {depth}", at, values.values, values.half_widths, joined=False))
    fine, deep = np.geomspace(at[0], at[-1], 60), max(sizes.depths)
    lines.append(Line("free matrices", fine, [float(Scales.ours(deep, s * s).cosine(deep)) for s in fine], curve=True))
    return Panel("our block: its own curve", "sqrt(T) = sqrt(L) b", "cos theta_L", lines, log_y=False)


def _against_depth(results: Results) -> Panel:
    lines = [
        _last(results, SMALL, 1.0).line(SMALL, fitted=False),
        *(_last(results, CURVE, s).line(f"b = {s:g} L^-1/2", 0.0) for s in results.sizes.strengths),
        _last(results, LARGE, 1.0).line(LARGE, -0.25),
    ]
    return Panel("b ~ L^-1/2 alone keeps an angle", "depth L", "cos theta_L", lines)


STUDY = Study(
    name="alignment",
    number=14,
    claim="cos(theta) ~ l^-1/2 in ReLU MLPs, a function of sqrt(L) b in ResNets; M_1 / sqrt(M_2) of the spectrum",
    source="FSF sections 3 and 4",
    setting="h <- sqrt(1 - b^2) h + b W relu(h), W He-normal, and our own block, untrained: one Gaussian input, "
    "ends frozen, eta_l = eta / (L |grad_l|^2); beside both sources a closed form of ours for gates drawn afresh in "
    "every layer, which those of a residual stream are not",
    sizes={
        "smoke": Sizes(depths=(4, 16), mlp_depth=16, strengths=(0.5, 2.0), horizons=(1.0,), width=32, seeds=3),
        "laptop": Sizes(),
        "accelerator": Sizes(depths=(32, 125, 500, 2000), strengths=(0.125, 0.25, 0.5, 1.0, 2.0), width=1024, seeds=16),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["depth"] * (3 if cell["moments"] else 1),
    least={"depths": 2},
)
