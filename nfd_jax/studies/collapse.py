"""Claim 7: in blocks of two matrices the inner one's learning collapses under depth-muP; a correction restores it.

Beside the movement of pre-activations stands what it does to the outputs: the inner matrices' share of the first change
of f, in ordinary (tied) networks and in those with an independent copy of the weights in the backward pass (untied,
whose limit NFD describes), against the recursion of `nfd.analytic` at infinite width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import nfd_jax as nfd
from nfd_jax import analytic, observables
from nfd_jax.statistics import bootstrap, normal
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._study import Arrays, Cell, Results, Study

ROWS = {"depth_mup": "depth-muP", "depth_mup_corrected": "corrected"}
INNER = {"depth_mup": -0.5, "depth_mup_corrected": 0.0}  # predicted for (W1 - W1^0) h / sqrt(n)
ALLOWANCE = 0.2  # the competing predictions are 1/2 apart
CLOSURE_OF = {"tied": "coupled", "untied": "decoupled"}
BLOCK = "inner"
COUNTING, RECURSION = "counting, theory section 6", "recursion, nfd.analytic"  # sources
FINITE = 0.1  # of the recursion's exponents and shares, for the width


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
    """Both rows and all rates of a depth share a program; untied networks make their first step alone."""
    return [
        {"depth": depth, "backward": backward, "learning_rate": rate, "parametrization": row}
        for depth in sizes.depths
        for backward in CLOSURE_OF
        for rate in (sizes.learning_rates if backward == "tied" else (min(sizes.learning_rates),))
        for row in ROWS
    ]


def measure(
    depth: int,
    backward: str,
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
        nfd.ResNet(depth, activation, block=BLOCK),
        width=width,
        steps=steps,
        learning_rate=learning_rate,
        seeds=seeds,
        parametrization=parametrization,
        backward=backward,
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


def _movement(
    results: Results, rate: float, row: str, name: str, update: int, backward: str = "tied"
) -> tuple[Curve, str]:
    """Movement after so many updates, root mean square over seeds, at every depth at which no network had diverged; and
    a note of what was left out."""
    found = {
        depth: record[name].values[:, update]
        for depth, record in results.where(learning_rate=rate, parametrization=row, backward=backward).along("depth")
    }
    kept = [depth for depth, column in found.items() if np.all(np.isfinite(column))]
    lost = [str(depth) for depth in found if depth not in kept]
    note = f", without L = {', '.join(lost)} (diverged)" if lost else ""
    if not kept:
        kept = list(found)
    moved = bootstrap(lambda x: np.sqrt(np.mean(x**2, axis=0)), np.stack([found[depth] for depth in kept], axis=1))
    return Curve(kept, moved), note


def _first_step(outer: np.ndarray, inner: np.ndarray, factor: np.ndarray) -> dict[str, np.ndarray]:
    """What outer and inner matrices add to the first change of f by their own learning, the inner ones in the corrected
    row, whose inner rate is larger by `factor`; the change itself and the inner matrices' share of it in both rows."""
    change = {"depth_mup": outer + inner, "depth_mup_corrected": outer + factor * inner}
    share = {"depth_mup": inner, "depth_mup_corrected": factor * inner}
    return {
        "outer": outer,
        "inner": factor * inner,
        "ratio": factor * inner / outer,
        **{f"change, {name}": change[row] for row, name in ROWS.items()},
        **{f"share, {name}": share[row] / change[row] for row, name in ROWS.items()},
    }


def _measured(results: Results, backward: str) -> dict[str, Curve]:
    """The parts of the first step over eta, along the targets, at every depth. At first order the rows differ by the
    factor sqrt(L) of the inner matrices' rate alone, which tells the parts apart."""
    depths, rate = results.sizes.depths, min(results.sizes.learning_rates)
    found = results.where(backward=backward, learning_rate=rate)
    both = np.stack(
        [[found.one(depth=depth, parametrization=row)["change"].values for depth in depths] for row in ROWS]
    )
    factor = np.sqrt(depths)

    def apart(changes: np.ndarray) -> np.ndarray:
        plain, corrected = changes.mean(axis=0) / rate
        inner = (corrected - plain) / (factor - 1)
        return np.stack(list(_first_step(plain - inner, inner, factor).values()))

    parts = bootstrap(apart, both.transpose(2, 0, 1))  # seeds are those of U and V at all depths and rows
    names = _first_step(factor, factor, factor)
    return {name: Curve(depths, parts.map(lambda rows, at=at: rows[at])) for at, name in enumerate(names)}


def _expected(sizes: Sizes, backward: str) -> dict[str, np.ndarray]:
    """The same at infinite width, by recursion. The outputs before training are zero on average."""
    task = nfd.datasets.digits(sizes.samples)
    gram, targets = task.inputs @ task.inputs.T / task.dimension, task.targets[:, 0]
    kernels = [
        analytic.tangent_kernels(sizes.activation, gram, depth, block=BLOCK, closure=CLOSURE_OF[backward])
        for depth in sizes.depths
    ]
    outer, inner = (
        np.array([targets @ each[role] @ targets for each in kernels]) / len(targets) ** 2
        for role in ("hidden", "inner")
    )
    return _first_step(outer, inner, np.sqrt(sizes.depths))


def _exponent_of(values: np.ndarray, measured: Curve) -> float:
    """The exponent of the recursion's values, no exact power law, fitted with the weights of the measured ones."""
    errors = np.where(np.isfinite(measured.values.errors), measured.values.errors, np.abs(values))
    return Curve(measured.sizes, normal(values, errors)).law.value


def _count(steps: int) -> str:
    return f"{steps} step" + ("s" if steps > 1 else "")


def conclude(results: Results) -> list[Finding]:
    """Exponents in L of both matrices' movements, and of what the inner ones contribute to f."""
    small, learning = min(results.sizes.learning_rates), max(results.sizes.learning_rates)
    last, found = results.sizes.steps - 1, []
    for row, name in ROWS.items():
        for rate, update, backward, when in (
            (small, 1, "tied", "first step"),
            (small, 1, "untied", "first step, untied"),
            (learning, last, "tied", f"{_count(last)} at eta = {learning:g}"),
        ):
            moved, note = _movement(results, rate, row, "inner", update, backward)
            quantity = f"(W1 - W1^0) h / sqrt(n) ~ L^p, {name}, {when}{note}"
            found += moved.findings(quantity, ("NFD v1", about(INNER[row], ALLOWANCE)))
    for row, name in ROWS.items():
        moved, note = _movement(results, small, row, "outer", 1)
        quantity = f"(W2 - W2^0) phi / sqrt(n) ~ L^p, {name}, first step{note}"
        found += moved.findings(quantity, (COUNTING, about(-0.5, ALLOWANCE)))
    return [*found, *(finding for backward in CLOSURE_OF for finding in _outputs(results, backward))]


def _outputs(results: Results, backward: str) -> list[Finding]:
    """What the first step does to f: by counting, by what rates that transfer ask for, and by recursion."""
    depths, parts, expected = results.sizes.depths, _measured(results, backward), _expected(results.sizes, backward)
    found = []
    if backward == "tied":  # untied, inner matrices do nothing whose exponent could be told
        for name, quantity, exponent in (
            ("outer", "outer matrices' part of f_1 - f_0 ~ L^p", 0.0),
            ("inner", "inner matrices' part of f_1 - f_0 ~ L^p, corrected", 0.5),
            ("ratio", "ratio of inner to outer part ~ L^p, corrected", 0.5),
        ):
            found += parts[name].findings(f"{quantity}, tied", (COUNTING, about(exponent, ALLOWANCE)))
    for name in ROWS.values():
        change, share = parts[f"change, {name}"], parts[f"share, {name}"]
        exponent = _exponent_of(expected[f"change, {name}"], change)
        predictions = ("a rate that transfers", about(0, ALLOWANCE)), (RECURSION, about(exponent, FINITE))
        found += change.findings(f"f_1 - f_0 ~ L^p, {name}, {backward}", *predictions)
        quantity = f"inner matrices' share of f_1 - f_0, {name}, {backward}"
        if backward == "tied":
            exponent = _exponent_of(expected[f"share, {name}"], share)
            found += share.findings(f"{quantity} ~ L^p", (RECURSION, about(exponent, FINITE)))
        for place in (0, -1):
            predicted = about(float(expected[f"share, {name}"][place]), FINITE)
            at = f"{quantity}, L = {depths[place]}"
            found.append(Finding(at, RECURSION, predicted, share.values.estimate(place)))
    return found


def draw(results: Results) -> list[Panel]:
    """Movements of both matrices, the loss reached, and their parts in the first change of f, against L."""
    sizes, small, learning = results.sizes, min(results.sizes.learning_rates), max(results.sizes.learning_rates)
    depths, last, panels = sizes.depths, sizes.steps - 1, []
    learned = f"{_count(last)}, eta = {learning:g}"
    for rate, update, title, matrices in ((small, 1, "first step", 2), (learning, last, learned, 1)):
        lines = []
        for row, name in ROWS.items():
            for matrix, exponent in (("inner", INNER[row]), ("outer", -0.5))[:matrices]:
                moved, _ = _movement(results, rate, row, matrix, update)
                lines.append(moved.line(f"{matrix}, {name}", exponent))
        panels.append(Panel(f"{title}, tied", "depth L", "rms of (W - W^0) x / sqrt(n)", lines))
    losses = []
    for row, name in ROWS.items():
        runs = results.where(learning_rate=learning, parametrization=row, backward="tied")
        final = runs.curve("depth", lambda record: bootstrap(lambda x: x.mean(0), record.loss.values[:, -1]))
        losses.append(final.line(name, fitted=False))
    panels.append(Panel(f"{_count(last + 1)}, eta = {learning:g}, tied", "depth L", "mean training loss", losses))
    fine = np.unique(np.geomspace(min(depths), max(depths), 20).astype(int)).tolist()
    for part, label, log_y in (("change", "(f_1 - f_0) / eta, along the targets", True), ("share", "share", False)):
        lines = []
        for backward in CLOSURE_OF:
            parts = _measured(results, backward)
            curves = _expected(replace(sizes, depths=tuple(fine)), backward)
            for name in ROWS.values():
                entry = "_" if lines else "recursion (lines)"  # of the legend, one for all
                lines.append(Line(entry, fine, curves[f"{part}, {name}"], curve=True))
                line = parts[f"{part}, {name}"].line(f"{name}, {backward}", fitted=False)
                lines.append(replace(line, joined=False))
        title = "first step" if part == "change" else "inner matrices' share of the first step"
        panels.append(Panel(title, "depth L", label, lines, log_y=log_y))
    return panels


STUDY = Study(
    name="collapse",
    number=7,
    claim="two-matrix blocks: the inner pre-activation moves by L^-1/2 under depth-muP, by L^0 with the correction",
    source="NFD v1",
    setting="two classes of digits, blocks W2 phi(W1 h) (ReLU), hidden matrices trained by SGD, full batch; untied "
    "networks, of which NFD's limit is one, beside the tied ones; NFD's own setting is known in outline only",
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
