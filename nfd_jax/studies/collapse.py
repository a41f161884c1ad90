"""Claim 7: in blocks of two matrices the inner one's learning collapses under depth-muP; a correction restores it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax.statistics import Sampled, bootstrap, fit_power, stacked
from nfd_jax.studies.findings import Finding, about
from nfd_jax.studies.panels import Line, Panel
from nfd_jax.studies.study import Arrays, Cell, Results, Study

ROWS = {"depth_mup": "depth-muP", "depth_mup_corrected": "corrected"}
INNER = {"depth_mup": -0.5, "depth_mup_corrected": 0.0}  # predicted for (W1 - W1^0) h / sqrt(n)
ALLOWANCE = 0.2  # the competing predictions are 1/2 apart


@dataclass(frozen=True)
class Sizes:
    """The grid. At the first rate a step is linear in it, at the second depth-muP learns."""

    depths: tuple[int, ...] = (4, 16, 64, 256)
    width: int = 512
    seeds: int = 8
    activation: str = "relu"
    samples: int = 4
    steps: int = 4
    learning_rates: tuple[float, ...] = (1e-3, 0.5)


def cells(sizes: Sizes) -> list[Cell]:
    """Both rows and all rates of a depth share a program."""
    return [
        {"depth": depth, "learning_rate": rate, "parametrization": row}
        for depth in sizes.depths
        for rate in sizes.learning_rates
        for row in ROWS
    ]


def measure(
    depth: int,
    learning_rate: float,
    parametrization: str,
    width: int,
    seeds: int,
    activation: str,
    samples: int,
    steps: int,
) -> Arrays:
    """Movement of the images of inner and outer matrices by their own learning, root mean square over blocks, entries
    and samples before every update; the first step's change of f along the targets; the losses."""
    task = nfd.datasets.digits(samples)
    run = nfd.solve_network(
        task,
        nfd.ResNet(depth, activation, block="inner"),
        width=width,
        steps=steps,
        learning_rate=learning_rate,
        seeds=seeds,
        parametrization=parametrization,
        observe=observables.effective_updates,
        progress=False,
    )
    moved = run.observed["effective_update"].astype(np.float64)
    outputs = run.outputs.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        inner, outer = (np.sqrt(np.mean(moved[:, :, place::2] ** 2, axis=(2, 3))) for place in (0, 1))
        change = np.mean((outputs[:, 1] - outputs[:, 0]) * task.targets, axis=(1, 2))
    return {
        "inner": (("seed", "update"), inner),
        "outer": (("seed", "update"), outer),
        "change": (("seed",), change),
        "loss": (("seed", "step"), run.loss),
    }


def _movement(results: Results, rate: float, row: str, name: str, update: int) -> tuple[list[int], Sampled]:
    """Movement after so many updates at every depth, root mean square over seeds. Depths at which a network diverged
    before are left out."""
    kept = [
        (depth, record[name].values[:, update])
        for depth, record in results.where(learning_rate=rate, parametrization=row).along("depth")
        if np.all(np.isfinite(record[name].values[:, update]))
    ]
    if len(kept) < 2:
        raise ValueError(
            f"networks of {ROWS[row]} diverge at eta = {rate:g} at all depths but {len(kept)}: lower the rates"
        )
    values = np.stack([column for _, column in kept], axis=1)
    return [depth for depth, _ in kept], bootstrap(lambda x: np.sqrt(np.mean(x**2, axis=0)), values)


def _contributions(results: Results) -> Sampled:
    """What outer and inner matrices contribute to the first step's change of f under the corrected row, and the ratio
    of these, `(3, depths)`. At first order the rows differ by the factor sqrt(L) of the inner matrices' rate alone:
    change = outer + inner under depth-muP, outer + sqrt(L) inner under the correction."""
    depths, rate = results.sizes.depths, min(results.sizes.learning_rates)
    both = np.stack(
        [
            [results.one(depth=depth, learning_rate=rate, parametrization=row)["change"].values for depth in depths]
            for row in ROWS
        ]
    )
    factor = np.sqrt(depths)

    def apart(changes: np.ndarray) -> np.ndarray:
        plain, corrected = changes.mean(axis=0)
        inner = (corrected - plain) / (factor - 1)
        return np.stack([plain - inner, factor * inner, factor * inner / (plain - inner)])

    return bootstrap(apart, both.transpose(2, 0, 1))  # seeds are those of U and V at all depths and rows


def _count(steps: int) -> str:
    return f"{steps} step" + ("s" if steps > 1 else "")


def conclude(results: Results) -> list[Finding]:
    """Exponents in L of both matrices' movements, and of what the inner ones contribute to f."""
    small, learning = min(results.sizes.learning_rates), max(results.sizes.learning_rates)
    last = results.sizes.steps - 1
    found = []
    for row, name in ROWS.items():
        for rate, update, when in ((small, 1, "first step"), (learning, last, f"{_count(last)} at eta = {learning:g}")):
            found.append(
                Finding(
                    f"(W1 - W1^0) h / sqrt(n) ~ L^p, {name}, {when}",
                    "NFD v1",
                    about(INNER[row], ALLOWANCE),
                    fit_power(*_movement(results, rate, row, "inner", update)),
                )
            )
    found += [
        Finding(
            f"(W2 - W2^0) phi / sqrt(n) ~ L^p, {name}, first step",
            "counting, theory section 6",
            about(-0.5, ALLOWANCE),
            fit_power(*_movement(results, small, row, "outer", 1)),
        )
        for row, name in ROWS.items()
    ]
    parts = _contributions(results)
    sentences = (
        "outer matrices' part of f_1 - f_0 ~ L^p, corrected",
        "inner matrices' part of f_1 - f_0 ~ L^p, corrected",
        "ratio of inner to outer part ~ L^p, corrected",
    )
    for place, (sentence, expected) in enumerate(zip(sentences, (0.0, 0.5, 0.5), strict=True)):
        part = parts.map(lambda values, place=place: values[place])
        slope = fit_power(results.sizes.depths, part)
        found.append(Finding(sentence, "counting, theory section 6", about(expected, ALLOWANCE), slope))
    return found


def draw(results: Results) -> list[Panel]:
    """Movements of both matrices, the loss reached, and their parts in the first change of f, against L."""
    depths, small, learning = results.sizes.depths, min(results.sizes.learning_rates), max(results.sizes.learning_rates)
    last = results.sizes.steps - 1
    panels = []
    learned = f"{_count(last)}, eta = {learning:g}"
    for rate, update, title, matrices in ((small, 1, "first step", 2), (learning, last, learned, 1)):
        lines = []
        for row, name in ROWS.items():
            for matrix, expected in (("inner", INNER[row]), ("outer", -0.5))[:matrices]:
                at, found = _movement(results, rate, row, matrix, update)
                lines.append(Line.of(f"{matrix}, {name}", at, found, fit_power(at, found), expected))
        panels.append(Panel(title, "depth L", "rms of (W - W^0) x / sqrt(n)", lines))
    parts, lines = _contributions(results), []
    for place, (name, expected) in enumerate((("outer part", 0.0), ("inner part", 0.5))):
        found = parts.map(lambda values, place=place: values[place] / small)
        lines.append(Line.of(name, depths, found, fit_power(depths, found), expected))
    losses = []
    for row, name in ROWS.items():
        records = [record for _, record in results.where(learning_rate=learning, parametrization=row).along("depth")]
        final = stacked([bootstrap(lambda x: x.mean(0), record.loss.values[:, -1]) for record in records])
        losses.append(Line(name, depths, final.values, 2 * final.errors))
    panels.append(Panel(f"{_count(last + 1)}, eta = {learning:g}", "depth L", "mean training loss", losses))
    return [*panels, Panel("first step, corrected", "depth L", "(f_1 - f_0) / eta, along the targets", lines)]


STUDY = Study(
    name="collapse",
    number=7,
    claim="two-matrix blocks: the inner pre-activation moves by L^-1/2 under depth-muP, by L^0 with the correction",
    source="NFD v1",
    setting="two classes of digits, blocks W2 phi(W1 h) (ReLU), hidden matrices trained by SGD, full batch; NFD's own "
    "setting is known in outline only",
    sizes={
        "smoke": Sizes(depths=(4, 16), width=32, seeds=3, samples=2, steps=2),
        "laptop": Sizes(),
        "accelerator": Sizes(depths=(4, 8, 16, 32, 64, 128, 256, 512, 1024), width=4096, seeds=16),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["depth"] + 32,
    least={"depths": 2, "learning_rates": 2},
)
