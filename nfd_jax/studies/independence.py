"""Claim 4: training with an independent copy of the weights in the backward pass (the gradient independence
assumption, GIA): where it changes what is learned, and where not.

Tied and untied networks of three architectures, at the rate that is best for the tied ones. Rates are multiples of
1 / K, K the tangent kernel of one sample at initialisation, which grows with depth but under depth-muP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import nfd_jax as nfd
from nfd_jax.models import AbstractModel
from nfd_jax.statistics import bootstrap
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_least, falling
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import halved, own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

ARCHITECTURES = {"plain": "plain deep net", "mup": "muP ResNet", "depth_mup": "depth-muP ResNet"}
BACKWARDS = ("tied", "untied")
NEGLIGIBLE = 0.02  # of the loss before training


@dataclass(frozen=True)
class Sizes:
    """The grid. `cifar10`: a folder with the files of CIFAR-10, to run it beside digits."""

    depths: tuple[int, ...] = (2, 4, 8, 16)
    rates: tuple[float, ...] = (1.0, 2.0, 4.0)
    width: int = 128
    samples: int = 256
    batch: int = 32
    steps: int = 60
    seeds: int = 36
    cifar10: str = ""


def cells(sizes: Sizes) -> list[Cell]:
    """Tied and untied networks of every architecture and depth."""
    halved("seeds", sizes.seeds)
    if sizes.cifar10 and not Path(sizes.cifar10).is_dir():
        raise ValueError(f"cifar10 of study 'independence' must be the folder of its files, got {sizes.cifar10!r}")
    return [
        {"data": data, "architecture": architecture, "depth": depth, "backward": backward}
        for data in ("digits", *([sizes.cifar10] if sizes.cifar10 else []))
        for architecture in ARCHITECTURES
        for depth in sizes.depths
        for backward in BACKWARDS
    ]


def measure(
    data: str,
    architecture: str,
    depth: int,
    backward: str,
    rates: Sequence[float],
    width: int,
    samples: int,
    batch: int,
    steps: int,
    seeds: int,
) -> Arrays:
    """Losses on training and test samples along training, at every rate."""
    splits = {}
    for split in ("train", "test"):
        options = {"classes": tuple(range(10)), "split": split}
        draw = nfd.datasets.digits if data == "digits" else lambda *a, **k: nfd.datasets.cifar10(data, *a, **k)
        splits[split] = draw(samples, **options)
    task = splits["train"].holding_out(splits["test"]).minibatches(batch, seed=0)
    model, kernel = _model(architecture, depth)
    at = np.linspace(0, steps, 7).round().astype(int)
    found = nfd.sweep(
        task,
        model,
        widths=[width],
        learning_rates=[rate / kernel for rate in rates],
        seeds=own_seeds(seeds, data, architecture, depth),  # both kinds start with the same forward weights
        steps=steps,
        parametrization="depth_mup" if architecture == "depth_mup" else "mup",
        backward=backward,
        evaluate_at=[int(step) for step in at],
        progress=False,
    ).isel(width=0, depth=0)
    axes = ("rate", "seed", "evaluation")
    return {
        "train": (axes, found.loss.values),
        "test": (axes, found.held_out_loss.values),
        "diverged_at": (axes[:2], found.diverged_at.values),
        "steps": (axes[2:], at),
    }


def _model(architecture: str, depth: int) -> tuple[AbstractModel, float]:
    """An architecture with its tangent kernel K at initialisation, of one sample with <h_0, h_0> = 1."""
    if architecture == "plain":
        return nfd.MLP(depth + 1, _scaled_relu), float(depth)
    branch = 1.0 if architecture == "mup" else 1 / depth
    return nfd.ResNet(depth), branch * depth / 2 * (1 + branch / 2) ** (depth - 1)


def _scaled_relu(x: jnp.ndarray) -> jnp.ndarray:
    """ReLU times sqrt(2), which keeps the size of Gaussian features from layer to layer."""
    return 2**0.5 * jnp.maximum(x, 0)


def _final(
    results: Results, data: str, architecture: str, depth: int, name: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Final losses of tied and untied networks at the best rate of tied ones, over the loss before training, and the
    rate. Every other seed chooses the rate; the rest are compared. None of it is a number where all rates diverge."""
    pair = [results.one(data=data, architecture=architecture, depth=depth, backward=backward) for backward in BACKWARDS]
    # a rate at which a member of either kind diverges is no candidate
    usable = np.all([(kept.diverged_at.values < 0).all(axis=1) for kept in pair], axis=0)
    if not usable.any():
        nothing = np.full(pair[0].sizes["seed"] // 2, np.nan)
        return nothing, nothing, np.nan
    choosing = np.where(usable[:, None], pair[0].train.values[:, ::2, -1], np.inf)
    best, start = (
        int(np.argmin(choosing.mean(axis=1))),
        float(np.mean([kept[name].values[0, :, 0].mean() for kept in pair])),
    )
    tied, untied = (kept[name].values[best, 1::2, -1] / start for kept in pair)
    return tied, untied, results.sizes.rates[best]


def _gaps(results: Results, data: str, architecture: str, name: str) -> Curve:
    """Untied less tied loss at every depth."""
    pairs = [_final(results, data, architecture, depth, name) for depth in results.sizes.depths]
    return Curve.of(results.sizes.depths, [bootstrap(np.mean, untied - tied) for tied, untied, _ in pairs])


def _note(results: Results, data: str, architecture: str) -> str:
    """The depths at which there is nothing to compare."""
    found = {depth: _final(results, data, architecture, depth, "train")[2] for depth in results.sizes.depths}
    lost = [str(depth) for depth, rate in found.items() if np.isnan(rate)]
    return f" (all rates diverge at L = {', '.join(lost)})" if lost else ""


def _data(results: Results) -> list[str]:
    return ["digits", *([results.sizes.cifar10] if results.sizes.cifar10 else [])]


def conclude(results: Results) -> list[Finding]:
    """The gap as a number at the largest depth, and its exponent in L."""
    found, depths = [], results.sizes.depths
    for data in _data(results):
        label = "digits" if data == "digits" else "CIFAR-10"
        for architecture, name in ARCHITECTURES.items():
            holds = architecture == "depth_mup"
            expected, note = about(0, NEGLIGIBLE) if holds else at_least(NEGLIGIBLE), _note(results, data, architecture)
            for loss in ("train", "test"):
                gap = _gaps(results, data, architecture, loss)
                quantity = f"untied - tied {loss} loss over initial, {name}, L = {depths[-1]}, {label}{note}"
                found.append(Finding(quantity, "NFD", expected, gap.values.estimate(-1)))
            slope = falling(_gaps(results, data, architecture, "train").law)
            quantity = f"untied - tied train loss ~ L^p, {name}, {label}{note}"
            found.append(Finding(quantity, "NFD", about(-1, 0.4) if holds else at_least(-0.4), slope))
            if holds:
                found.append(Finding(quantity, "TP6, DHT", about(0, 0.4), slope))
    return found


def draw(results: Results) -> list[Panel]:
    """Losses along training as in NFD's figure, and the gap against L."""
    panels, depths = [], results.sizes.depths
    for data in _data(results):
        label = "digits" if data == "digits" else "CIFAR-10"
        for loss in ("train", "test"):
            for architecture, name in ARCHITECTURES.items():
                lines = []
                for depth in (depths[0], depths[-1]):
                    _, _, rate = _final(results, data, architecture, depth, loss)
                    for backward in BACKWARDS if np.isfinite(rate) else ():
                        kept = results.one(data=data, architecture=architecture, depth=depth, backward=backward)
                        values = kept[loss].values[results.sizes.rates.index(rate)]
                        mean = bootstrap(lambda x: x.mean(axis=0), values)
                        lines.append(Line.of(f"{backward}, L = {depth}", kept.steps.values, mean))
                panels.append(Panel(f"{name}, {label}", "training step", f"{loss} loss", lines, log_x=False))
        for loss in ("train", "test"):
            lines = [_gaps(results, data, each, loss).line(name, fitted=False) for each, name in ARCHITECTURES.items()]
            title = f"untied - tied {loss} loss over initial, {label}"
            panels.append(Panel(title, "depth L", "gap", lines, log_y=False))
    return panels


STUDY = Study(
    name="independence",
    number=4,
    claim="tied and untied networks learn alike (GIA) in depth-muP ResNets as L grows, and do not in plain deep nets"
    " and muP ResNets",
    source="NFD",
    setting="ten classes of digits, width 128, squared loss, mini-batches of SGD, hidden matrices trained, the rate"
    " best for tied networks (chosen on other seeds); a gap of 0.02 of the initial loss counts; NFD's data, steps and"
    " rates are not fully known",
    sizes={
        "smoke": Sizes(depths=(2, 4), rates=(0.25, 0.5), width=32, samples=20, batch=10, steps=6, seeds=4),
        "laptop": Sizes(),
        "accelerator": Sizes(rates=(0.5, 1.0, 2.0, 4.0), samples=1024, batch=64, steps=1000, seeds=32),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["depth"] + 4,
    least={"depths": 2},
)
