"""Claim 1: networks of width n approach the limit as n^-1/2 each, and as 1/n in the mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Sampled, bootstrap, combined, fit_power, normal, stacked
from nfd_jax.studies.findings import Finding, about
from nfd_jax.studies.panels import Line, Panel
from nfd_jax.studies.study import Arrays, Cell, Results, Study

CLOSURE_OF = {"tied": "coupled", "untied": "decoupled"}


@dataclass(frozen=True)
class Sizes:
    """The grid. A network of width n is trained `neurons / n` times."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    neurons: int = 2**19
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
        limit = nfd.solve_limit(task, model, closure=CLOSURE_OF[backward], tolerance=tolerance, **shared)
        errors = limit.errors["outputs"].standard_error[-1, :, 0]
        return {"outputs": (("sample",), limit.outputs[-1, :, 0]), "errors": (("sample",), errors)}
    # outputs of many small networks: bases of a run longer than they are wide save nothing
    runs = nfd.solve_network(task, model, width=width, seeds=seeds, backward=backward, **shared)
    return {"outputs": (("seed", "sample"), runs.outputs[:, -1, :, 0])}


def _gaps(results: Results, backward: str) -> tuple[list[int], Sampled, Sampled]:
    """Widths; mean distances (rms over samples and seeds); signed distances of the means, along the targets."""
    networks = [(width, kept) for width, kept in results.where(backward=backward).along("width") if width is not None]
    kept = results.one(backward=backward, width=None)
    limit = normal(kept.outputs.values, kept.errors.values)
    signs = np.sign(nfd.datasets.digits(results.sizes.samples).targets[:, 0])
    each, mean = [], []
    for place, (_, ensemble) in enumerate(networks):
        outputs = ensemble.outputs.values
        squares = bootstrap(lambda x: np.stack([x.mean(0), (x**2).mean(0)]), outputs, seed=place)
        each.append(combined(lambda m, f: np.sqrt(np.mean(m[1] - 2 * m[0] * f + f**2)), squares, limit))
        mean.append(combined(lambda m, f: np.mean(signs * (m[0] - f)), squares, limit))
    return [width for width, _ in networks], stacked(each), stacked(mean)


def conclude(results: Results) -> list[Finding]:
    """Exponents in n of both distances, tied and untied."""
    found = []
    for backward, closure in CLOSURE_OF.items():
        widths, each, mean = _gaps(results, backward)
        of = f"{backward} to {closure}"
        found += [
            Finding(f"|f_n - f| of one network ~ n^p, {of}", "NFD", about(-0.5, 0.1), fit_power(widths, each)),
            Finding(f"E f_n - f ~ n^p, {of}", "NFD", about(-1, 0.25), fit_power(widths, mean)),
        ]
    return found


def draw(results: Results) -> list[Panel]:
    """Both distances against n."""
    single, average = [], []
    for backward, closure in CLOSURE_OF.items():
        widths, each, mean = _gaps(results, backward)
        label = f"{backward} to {closure}"
        single.append(Line.of(label, widths, each, fit_power(widths, each), -0.5))
        average.append(Line.of(label, widths, mean.map(abs), fit_power(widths, mean.map(abs)), -1.0))
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
)
