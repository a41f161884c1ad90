"""Claim 13: the feature speed formula, |df_v| |b_v| cos(theta_v) = sum_{l <= v} eta_l |grad_l|^2 at first order: where
it holds, how it is left at finite rates, and by how much it fails where the backward pass is no derivative."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Sampled, bootstrap
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_most
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study
from nfd_jax.tools.network_speed import step_quantities

# (class, block, activation), parametrization, loss, optimizer
VARIANTS: dict[str, tuple[tuple[str, str, str], str, str, str]] = {
    "pre, relu": (("ResNet", "pre", "relu"), "depth_mup", "mse", "sgd"),
    "pre, tanh, NTP, Adam": (("ResNet", "pre", "tanh"), "ntp", "mse", "adam"),
    "post, relu, CompleteP": (("ResNet", "post", "relu"), "complete_p", "cross_entropy", "sgd"),
    "inner, tanh, corrected": (("ResNet", "inner", "tanh"), "depth_mup_corrected", "cross_entropy", "sgd"),
    "pre_inner, gelu": (("ResNet", "pre_inner", "gelu"), "depth_mup", "mse", "sgd"),
    "inner_post, relu, SP": (("ResNet", "inner_post", "relu"), "sp", "cross_entropy", "sgd"),
    "MLP, relu, muP": (("MLP", "", "relu"), "mup", "cross_entropy", "sgd"),
    "MLP, tanh, muP": (("MLP", "", "tanh"), "mup", "mse", "sgd"),
}
SLOWER = {"adam": 0.02, "sp": 0.1}  # rates of these, over that of the others: Adam's are of another kind
TIED = {"tied": True, "untied": False, "coupled": True, "decoupled": False}  # whether g is a derivative
ONE, SEVERAL = "one input", "trained"
NOTHING = 1e-6  # relative: what is left of the formula at no rate, of roundings and second differences
FAILS = 0.01  # relative: by less than this a formula would not be seen to fail


@dataclass(frozen=True)
class Sizes:
    """The grid: `rates` of the measured step, over `learning_rate`, at which hardly any ReLU flips;
    `widths` beside the limits of `particles`, with more seeds."""

    rates: tuple[float, ...] = (1e-4, 1e-5, 1e-6)
    width: int = 64
    depth: int = 6
    widths: tuple[int, ...] = (64, 256, 1024)
    particles: int = 2048
    blocks: int = 8
    steps: int = 5
    samples: int = 4
    seeds: int = 6
    network_seeds: int = 96
    variant_seeds: int = 32
    learning_rate: float = 0.5


def cells(sizes: Sizes) -> list[Cell]:
    """Every variant before and after training; and closures at every width for one input, and after training."""
    variants = [
        {"kind": name, "trained": k, "width": sizes.width, "seeds": sizes.variant_seeds}
        for name in VARIANTS
        for k in (0, sizes.steps)
    ]
    every, widest = sizes.widths, max(sizes.widths)
    along = [("tied", sizes.steps, width) for width in every] + [("tied", 0, widest)]
    along += [("untied", k, widest) for k in (0, sizes.steps)]
    along += [(kind, k, None) for kind in ("coupled", "decoupled") for k in (0, sizes.steps)]
    closures = [
        {"kind": kind, "trained": k, "width": width, "seeds": sizes.network_seeds if width else sizes.seeds}
        for kind, k, width in along
    ]
    return [*variants, *closures]


def measure(
    kind: str,
    trained: int,
    width: int | None,
    rates: tuple[float, ...],
    depth: int,
    particles: int,
    blocks: int,
    samples: int,
    seeds: int,
    learning_rate: float,
) -> Arrays:
    """Of variants `rest`: the left side of the formula over the right one, minus 1, of all layers behind a block, at
    every rate. Of closures the same at a rate that is small, with angles and speeds."""
    chosen = own_seeds(seeds, kind, trained, width)
    if kind in VARIANTS:
        prepare, system = partial(nfd.network_dynamics, width=width), _variant(kind, depth, samples, learning_rate)
        found = [
            [_rest(step_quantities(prepare, *system, rate=learning_rate * r, trained=trained, seed=s)) for r in rates]
            for s in chosen
        ]
        return {"rest": (("seed", "rate", "layer"), np.array(found))}
    task = nfd.datasets.digits(1 if trained == 0 else samples)
    training = nfd.Training(max(1, trained), learning_rate)
    if width is None:
        prepare = partial(nfd.limit_dynamics, closure=kind, particles=particles)
    else:
        prepare = partial(nfd.network_dynamics, backward=kind, engine="revealed", width=width)
    system, rate = (task, nfd.ResNet(blocks), training), 1e-6 * learning_rate
    every = [step_quantities(prepare, *system, rate=rate, trained=trained, seed=seed) for seed in chosen]
    axes = ("seed", "layer")
    return {
        "rest": (axes, np.array([_rest(each) for each in every])),
        "cosine": (axes, np.array([each["cosine"][1:] for each in every])),
        "speed": (axes, np.array([each["speed"][1:] / rate for each in every])),
    }


def _variant(kind: str, depth: int, samples: int, learning_rate: float) -> tuple[nfd.Task, Any, nfd.Training]:
    """Task, model and recipe; all weights train."""
    (name, block, activation), row, loss, optimizer = VARIANTS[kind]
    model = nfd.MLP(depth, activation) if name == "MLP" else nfd.ResNet(depth, activation, block=block)
    several = {"classes": (0, 1, 2), "loss": loss} if loss == "cross_entropy" else {}
    rate = learning_rate * SLOWER.get(optimizer, SLOWER.get(row, 1.0))
    recipe = nfd.Training(1, rate, parametrization=row, optimizer=optimizer, train_input=True, train_readout=True)
    return nfd.datasets.digits(samples, **several), model, recipe


def _rest(found: dict[str, np.ndarray]) -> np.ndarray:
    """Left over right side, minus 1, behind every block; not a number where nothing is left to descend."""
    with np.errstate(all="ignore"):  # where training diverged
        left, right = (found["cosine"] * found["speed"] * found["backward"])[1:], found["decay"][1:]
        return np.divide(left - right, right, out=np.full_like(right, np.nan), where=right != 0)


def _law(results: Results, name: str, trained: int) -> tuple[Curve, Sampled]:
    """The rest, root mean square over layers, against the rate; and the largest of all layers that is left without the
    part that is proportional to it, from the two smallest rates. Both of the median network: one in which a ReLU flips
    has a rest that does not fall smoothly."""
    values, rates = results.one(kind=name, trained=trained).rest.values, np.array(results.sizes.rates)
    order = np.argsort(rates)
    small, next_ = rates[order[:2]]
    sizes = bootstrap(lambda rest: np.median(np.sqrt(np.mean(rest**2, axis=2)), axis=0), values)
    without = (next_ * values[:, order[0]] - small * values[:, order[1]]) / (next_ - small)
    return Curve(results.sizes.rates, sizes), bootstrap(lambda rest: np.median(np.abs(rest).max(axis=1)), without)


def _gap(results: Results, kind: str, trained: int, width: int | None) -> Sampled:
    """The mean rest at the last layer."""
    return bootstrap(np.mean, results.one(kind=kind, trained=trained, width=width).rest.values[:, -1])


def deficit(blocks: int, layer: int | None = None) -> float:
    """Left over right side minus 1 for one input where the backward matrices are independent of the forward ones, ReLU,
    T = 1, at initialisation, as n grows; at the last of `blocks` layers, or at one of them.

    |phi(h_{l-1})|^2 grows as q^l along depth and |g_l|^2 as q^-l, q = 1 + T / (2 L), so that all l terms on the right
    are equal. On the left stands the overlap of g_l with what the forward matrices make of g_v, which stays |g_v|^2. As
    L grows this is -delta(T) of theory section 3, at t T.
    """
    q, v = 1 + 1 / (2 * blocks), blocks if layer is None else layer
    return float((q**v - 1) / (v * (q - 1) * q ** (v - 1)) - 1)


def _approach(results: Results, name: str) -> Curve:
    """Root mean square over layers and seeds of what a tied network's `name` differs from the limit's, after training,
    relative."""
    trained = results.sizes.steps
    limit = results.one(kind="coupled", trained=trained)[name].values

    def off(values: np.ndarray, limit: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values / limit.mean(axis=0) - 1) ** 2)))

    parts = [
        bootstrap(off, results.one(kind="tied", trained=trained, width=n)[name].values, limit)
        for n in results.sizes.widths
    ]
    return Curve.of(results.sizes.widths, parts)


def _when(trained: int) -> str:
    return f"after {trained} steps" if trained else "at init"


def conclude(results: Results) -> list[Finding]:
    """The rest against the rate, what is left at none, and where the formula fails."""
    sizes, found = results.sizes, []
    for name in VARIANTS:
        for trained in (0, sizes.steps):
            curve, left = _law(results, name, trained)
            of = f"{name}, {_when(trained)}"
            found.append(Finding(f"rest / right side ~ eta^p, {of}", "FSF theorem 1", about(1, 0.1), curve.law))
            found.append(
                Finding(f"rest / right side at eta = 0, {of}", "FSF; 1e-6 is ours", at_most(NOTHING), left.estimate())
            )
    for kind, derivative in TIED.items():
        width = max(sizes.widths) if kind in ("tied", "untied") else None
        for trained in (0, sizes.steps):
            gap = _gap(results, kind, trained, width).estimate()
            of = f"left / right side - 1 at h_L, {kind}{'' if width is None else f', n = {width}'}, {_when(trained)}"
            found.append(Finding(of, "FSF theorem 1", about(0, 1e-4 if derivative else FAILS), gap))
            if not derivative and trained == 0:
                found.append(Finding(of, "theory 3, -delta(T)", about(deficit(sizes.blocks), 0.02), gap))
    for name in ("cosine", "speed"):
        of = f"|{name}_n / {name} of the limit - 1| ~ n^p, tied, {_when(sizes.steps)}"
        found += _approach(results, name).findings(of, ("theory 3: sqrt(n) of one network", about(-0.5, 0.1)))
    return found


def draw(results: Results) -> list[Panel]:
    """The rest against the rate, where the formula fails along depth, and networks beside the limit."""
    sizes, panels = results.sizes, []
    for trained in (0, sizes.steps):
        lines = [_law(results, name, trained)[0].line(name) for name in VARIANTS]
        panels.append(Panel(f"first order only, {_when(trained)}", "rate of the step", "rest / right side", lines))
    layers, lines = np.arange(1, sizes.blocks + 1), []
    for kind in TIED:
        width = max(sizes.widths) if kind in ("tied", "untied") else None
        values = results.one(kind=kind, trained=0, width=width).rest.values
        lines.append(Line.of(kind, layers / sizes.blocks, bootstrap(lambda rest: 1 + rest.mean(axis=0), values)))
    closed = [1 + deficit(sizes.blocks, int(v)) for v in layers]
    lines.append(Line("1 - delta(t T)", layers / sizes.blocks, closed, curve=True))
    panels.append(Panel("one input, at init", "layer time t", "left / right side", lines, log_x=False, log_y=False))
    approach = [_approach(results, name).line(name, -0.5) for name in ("cosine", "speed")]
    panels.append(
        Panel(f"tied networks, {_when(sizes.steps)}", "width n", "relative difference from the limit", approach)
    )
    return panels


STUDY = Study(
    name="identity",
    number=13,
    claim="|df_v| |b_v| cos(theta_v) = sum_{l <= v} eta_l |grad_l|^2 to first order in the rates, at any time",
    source="FSF theorem 1",
    setting="digits, one small step in float64, all layers v; blocks, MLP, losses, rows, Adam with -sum <grad_l, dW_l> "
    "on the right; then ReLU, depth-muP, T = 1, tied and untied networks and both limits, where g is a derivative and "
    "where it is not; rests of the median network, as that of one in which a ReLU flips does not fall smoothly",
    sizes={
        "smoke": Sizes((1e-4, 1e-5), 16, 2, (16, 32), 64, 2, 1, 2, 2, 4, 4),
        "laptop": Sizes(),
        "accelerator": Sizes(width=256, depth=32, widths=(64, 256, 1024, 4096), particles=16_384, blocks=64, seeds=16),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: 1.0 if cell["kind"] in VARIANTS else 3.0,
    least={"rates": 2, "widths": 2},
)
