"""Claim 1: networks of width n approach the limit as n^-1/2 each, and as 1/n in the mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import bootstrap, combined, normal
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

CLOSURE_OF = {"tied": "coupled", "untied": "decoupled"}


@dataclass(frozen=True)
class Sizes:
    """The grid. A network of width n is trained `neurons / n` times."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    neurons: int = 2**18
    activation: str = "relu"
    depth: int = 4
    samples: int = 4
    steps: int = 4
    learning_rate: float = 1.0
    tolerance: float = 2e-3


def cells(sizes: Sizes) -> list[Cell]:
    """Both limits, and networks of every width."""
    return [
        {"backward": backward, "width": width, "seeds": seeds, "tolerance": tolerance}
        for backward in CLOSURE_OF
        for width, seeds, tolerance in (
            (None, 1, sizes.tolerance),
            *((width, max(8, sizes.neurons // width), None) for width in sizes.widths),
        )
    ]


def measure(
    backward: str,
    width: int | None,
    seeds: int,
    tolerance: float | None,
    activation: str,
    depth: int,
    samples: int,
    steps: int,
    learning_rate: float,
) -> Arrays:
    """Final outputs of networks, or of the limit (`width=None`) with their standard errors."""
    task, model = nfd.datasets.digits(samples), nfd.ResNet(depth, activation)
    shared = {"steps": steps, "learning_rate": learning_rate, "progress": False}
    if width is None:
        options = {"closure": CLOSURE_OF[backward], "tolerance": tolerance, "budget": 1e4}
        limit = nfd.solve_limit(task, model, **options, **shared)
        errors = limit.errors["outputs"].standard_error[-1, :, 0]
        return {"outputs": (("sample",), limit.outputs[-1, :, 0]), "errors": (("sample",), errors)}
    members = own_seeds(seeds, backward, width)
    runs = nfd.solve_network(task, model, width=width, seeds=members, backward=backward, **shared)
    return {"outputs": (("seed", "sample"), runs.outputs[:, -1, :, 0])}


def _gaps(results: Results, backward: str) -> tuple[Curve, Curve]:
    """Mean distances (rms over samples and seeds), and signed distances of the means, along the targets."""
    kept = results.one(backward=backward, width=None)
    # one error for all samples, at its full size: outputs of one solution move together
    end, error = kept.outputs.values, kept.errors.values
    limit = normal(0.0, 1.0)
    signs = np.sign(nfd.datasets.digits(results.sizes.samples).targets[:, 0])

    def moments(outputs: np.ndarray) -> np.ndarray:
        return np.stack([outputs.mean(axis=0), (outputs**2).mean(axis=0)])

    networks = results.where(backward=backward).curve("width", lambda each: bootstrap(moments, each.outputs.values))
    found = networks.values  # (widths, 2, samples)

    def distance(moments: np.ndarray, shift: np.ndarray) -> np.ndarray:
        f = end + shift * error
        return np.sqrt(np.mean(moments[:, 1] - 2 * moments[:, 0] * f + f**2, axis=1))

    def bias(moments: np.ndarray, shift: np.ndarray) -> np.ndarray:
        return np.mean(signs * (moments[:, 0] - end), axis=1) - shift * np.mean(error)

    each, mean = (Curve(networks.sizes, combined(gap, found, limit)) for gap in (distance, bias))
    return each, mean


def conclude(results: Results) -> list[Finding]:
    """Exponents in n of both distances, tied and untied."""
    found = []
    for backward, closure in CLOSURE_OF.items():
        each, mean = _gaps(results, backward)
        found += each.findings(f"|f_n - f| of one network ~ n^p, {backward} to {closure}", ("NFD", about(-0.5, 0.1)))
        found += mean.findings(f"E f_n - f ~ n^p, {backward} to {closure}", ("NFD", about(-1, 0.25)))
    return found


def draw(results: Results) -> list[Panel]:
    """Both distances against n."""
    single, average = [], []
    for backward, closure in CLOSURE_OF.items():
        each, mean = _gaps(results, backward)
        single.append(each.line(f"{backward} to {closure}", -0.5))
        average.append(mean.size(f"{backward} to {closure}", -1.0))
    return [
        Panel("one network", "width n", "rms of f_n - f", single),
        Panel("mean over networks", "width n", "|E f_n - f| along the targets", average),
    ]


STUDY = Study(
    name="width",
    number=1,
    claim="networks approach the limit as n^-1/2 each, and as 1/n in the mean, at fixed L",
    source="NFD",
    setting="two classes of digits, depth-muP, hidden matrices trained by SGD, outputs after the last step",
    sizes={
        "smoke": Sizes(widths=(16, 32), neurons=1024, depth=2, steps=2, tolerance=2e-2),
        "laptop": Sizes(),
        "accelerator": Sizes(widths=(64, 128, 256, 512, 1024, 2048), neurons=2**21, depth=16, tolerance=1e-3),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    least={"widths": 2},
)
