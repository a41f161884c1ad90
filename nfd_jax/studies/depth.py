"""Claim 2: the limit with L blocks approaches that of infinite depth as 1/L, in both closures.

Solutions with L and 2L blocks follow one Brownian path, so that Monte-Carlo error nearly cancels in their difference.
Where the distance from infinite depth falls as L^p, so does this difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

import nfd_jax as nfd
from nfd_jax.statistics import Sampled, bootstrap
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

CLOSURES = ("coupled", "decoupled")


@dataclass(frozen=True)
class Sizes:
    """The grid: pairs of L and 2L blocks for every L of `depths`."""

    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    activations: tuple[str, ...] = ("relu", "tanh")
    particles: int = 1024
    seeds: int = 8
    samples: int = 4
    steps: int = 4
    learning_rate: float = 1.0


def cells(sizes: Sizes) -> list[Cell]:
    """Every depth in both closures."""
    return [
        {"activation": activation, "closure": closure, "depth": depth, "capacity": 2 * max(sizes.depths)}
        for activation in sizes.activations
        for closure in CLOSURES
        for depth in sizes.depths
    ]


def measure(
    activation: str,
    closure: str,
    depth: int,
    capacity: int,
    particles: int,
    seeds: int,
    samples: int,
    steps: int,
    learning_rate: float,
) -> Arrays:
    """Outputs and loss along training with L and 2L blocks on one path; `capacity` lets all depths share a program."""
    pair = [
        nfd.solve_limit(
            nfd.datasets.digits(samples),
            nfd.ResNet(2 * depth // refinement, activation),
            closure=closure,
            seeds=own_seeds(seeds, activation, closure, depth),
            particles=particles,
            refinement=refinement,
            capacity=capacity,
            steps=steps,
            learning_rate=learning_rate,
            progress=False,
        )
        for refinement in (2, 1)
    ]
    outputs = np.stack([run.outputs[..., 0] for run in pair], axis=1)
    losses = np.stack([run.loss for run in pair], axis=1)
    return {
        "outputs": (("seed", "grid", "step", "sample"), outputs),
        "loss": (("seed", "grid", "step"), losses),
    }


def _gaps(results: Results, activation: str, closure: str) -> Curve:
    """What doubling every depth changes in the final loss."""

    def change(record: xr.Dataset) -> Sampled:
        return bootstrap(np.mean, record.loss.values[:, 0, -1] - record.loss.values[:, 1, -1])

    return results.where(activation=activation, closure=closure).curve("depth", change)


def conclude(results: Results) -> list[Finding]:
    """The exponent in L of every activation and closure."""
    return [
        finding
        for activation in results.sizes.activations
        for closure in CLOSURES
        for finding in _gaps(results, activation, closure).findings(
            f"loss_L - loss_2L ~ L^p, {closure}, {activation}", ("NFD", about(-1, 0.25))
        )
    ]


def draw(results: Results) -> list[Panel]:
    """What doubling changes, against L."""
    panels = []
    for activation in results.sizes.activations:
        lines = [_gaps(results, activation, closure).size(closure, -1.0) for closure in CLOSURES]
        panels.append(Panel(activation, "depth L", "|loss at L - loss at 2L|", lines))
    return panels


STUDY = Study(
    name="depth",
    number=2,
    claim="the limit with L blocks approaches that of infinite depth as 1/L, in both closures",
    source="NFD",
    setting="two classes of digits, depth-muP, hidden matrices trained by SGD, limits with L and 2L blocks on one path",
    sizes={
        "smoke": Sizes(depths=(2, 4), activations=("relu",), particles=256, seeds=2, steps=1),
        "laptop": Sizes(),
        "accelerator": Sizes(depths=(4, 8, 16, 32, 64, 128, 256), particles=16_384, samples=8, steps=8),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: 30 + cell["depth"],
    least={"depths": 2},
)
