"""Claim 5: the Gram matrices of features and gradients stay nondegenerate along training.

The measure is the smallest eigenvalue of a Gram matrix over the mean of its diagonal: 1 for orthogonal vectors, 0 for
dependent ones. With one output g_L = V for every sample, so gradients are taken below the last block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Sampled, bootstrap
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_least
from nfd_jax.studies._panels import Level, Line, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

PLACES = {  # kernel, and layer time t, by the name of the variable
    "features_middle": ("feature_kernel", 0.5),
    "features_end": ("feature_kernel", 1.0),
    "gradients_start": ("gradient_kernel", 0.0),
    "gradients_middle": ("gradient_kernel", 0.5),
}


@dataclass(frozen=True)
class Sizes:
    """The grid: networks of all widths, and the coupled limit (`particles`)."""

    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    activations: tuple[str, ...] = ("relu", "tanh")
    particles: int = 4096
    depth: int = 16
    samples: int = 8
    steps: int = 8
    learning_rate: float = 1.0
    seeds: int = 8


def cells(sizes: Sizes) -> list[Cell]:
    """Every width of every activation; `width=None` is the limit."""
    return [
        {"activation": activation, "width": width}
        for activation in sizes.activations
        for width in (*sizes.widths, None)
    ]


def measure(
    activation: str,
    width: int | None,
    particles: int,
    depth: int,
    samples: int,
    steps: int,
    learning_rate: float,
    seeds: int,
) -> Arrays:
    """Smallest relative eigenvalues before every update, and the loss."""
    task, model = nfd.datasets.digits(samples), nfd.ResNet(depth, activation)
    shared = {
        "steps": steps,
        "learning_rate": learning_rate,
        "observe": nfd.observables.kernels,
        "evaluate_at": [steps],
        "progress": False,
    }
    if width is None:
        members = own_seeds(seeds, activation, width)
        runs = [nfd.solve_limit(task, model, particles=particles, seed=seed, **shared) for seed in members]
        kernels = {name: np.stack([run.observed[name] for run in runs]) for name in runs[0].observed}
        loss = np.stack([run.loss for run in runs])
    else:
        run = nfd.train_networks(
            task, model, width=width, seeds=own_seeds(seeds, activation, width), engine="auto", **shared
        )
        kernels, loss = run.observed, run.loss
    found = {}
    for place, (name, time) in PLACES.items():
        grams = np.asarray(kernels[name][:, :steps, round(time * depth)], np.float64)
        finite = np.all(np.isfinite(grams), axis=(-2, -1), keepdims=True)
        kept = np.where(finite, grams, np.eye(samples))
        smallest = np.linalg.eigvalsh(kept)[..., 0] / (np.trace(kept, axis1=-2, axis2=-1) / samples)
        smallest = np.where(finite[..., 0, 0], smallest, np.nan)  # where training diverged
        found[place] = (("seed", "update"), smallest)
    return found | {"loss": (("seed", "step"), loss)}


def _along_widths(results: Results, activation: str, place: str) -> Curve:
    """The mean smallest eigenvalue before the last step."""
    networks = results.where(activation=activation)
    return networks.curve("width", lambda record: bootstrap(np.mean, record[place].values[:, -1]))


def _kept(results: Results, activation: str, place: str) -> Sampled:
    """The lowest mean along training over the mean before it, in the limit."""
    values = results.one(activation=activation, width=None)[place].values
    return bootstrap(lambda x: x.mean(axis=0).min() / x.mean(axis=0)[0], values)


def _title(place: str) -> str:
    kernel, time = PLACES[place]
    return f"{kernel.split('_')[0]}s, t = {time:g}"


def conclude(results: Results) -> list[Finding]:
    """What is kept along training in the limit, and the exponent in n of what is left at its end."""
    found = []
    for activation in results.sizes.activations:
        for place in PLACES:
            of = f"smallest eigenvalue of {_title(place)}, {activation}"
            kept = _kept(results, activation, place).estimate()
            found.append(Finding(f"{of}: lowest over initial", "NFD; a tenth is ours", at_least(0.1), kept))
            networks = _along_widths(results, activation, place)
            found += networks.findings(f"{of}: ~ n^p after training", ("NFD", about(0, 0.25)))
    return found


def draw(results: Results) -> list[Panel]:
    """Smallest eigenvalues along training at several widths, the limit as a thick line of its own."""
    panels = []
    for activation in results.sizes.activations:
        for place in PLACES:
            lines, sizes = [], results.sizes
            for width in (*sizes.widths, None):
                values = results.one(activation=activation, width=width)[place].values
                label = "coupled limit" if width is None else f"n = {width}"
                mean = bootstrap(lambda x: x.mean(axis=0), values)
                lines.append(Line.of(label, np.arange(values.shape[1]), mean))
            title, zero = f"{_title(place)}, {activation}", Level("0", 0.0)
            panels.append(Panel(title, "training step", "smallest eigenvalue", lines, [zero], False, False))
    return panels


STUDY = Study(
    name="degeneracy",
    number=5,
    claim="Gram matrices of features and gradients stay nondegenerate along training",
    source="NFD",
    setting="two classes of digits, depth-muP, L = 16, hidden matrices trained by SGD; eigenvalues over the mean of the"
    " diagonal; a tenth of the initial one counts as kept",
    sizes={
        "smoke": Sizes(widths=(32, 64), activations=("relu",), particles=128, depth=4, samples=3, steps=2, seeds=2),
        "laptop": Sizes(),
        "accelerator": Sizes(widths=(64, 256, 1024, 4096, 16_384), particles=32_768, depth=64, steps=32, seeds=16),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: 1.0 if cell["width"] else 4.0,
    least={"widths": 2},
)
