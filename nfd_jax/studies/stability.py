"""Claim 18: the largest stable rate against the width, by loss, parametrization and optimizer.

A rate is stable where the loss, averaged over the last quarter of the steps, has come at least half the way to what it
is at the best rate (`nfd.stable_rate`); by other rules, where the loss stays finite, or within ten times the first one.

By the counting of `_rates`, under SGD the outputs allow eta ~ n^-1 under squared loss and the features eta ~ n^(-1/2)
under cross-entropy. muP's rates at SP's output, which is n^(1/2) times muP's, move hidden images by eta n^(1/2) and the
outputs by eta n, too. Adam moves entries by the rate itself: hidden images by eta n under SP and by eta under muP's
rates, and along SP's readout the outputs by n^(1/2) times that: eta ~ n^-1 and n^0 where features decide, under
cross-entropy, and n^(-3/2) and n^(-1/2) where outputs do, under squared loss. muP keeps its rates.

Networks of ReLU can lose most of their units and go on with a few, at rates far beyond those: so units that can't die
are the main row, |h|, and ReLU stands beside it. Under Adam the counting of outputs is of the first step alone: steps
of a given size do not amplify one another, and outputs that are too large come back. Losses stay finite at any rate,
seeds go on to train octaves apart by whatever they come back to, and what counting is of shows in the largest rate at
which the loss stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import nfd_jax as nfd
from nfd_jax.parametrization import ONE, D, N, Scaling
from nfd_jax.solvers.networks import Networks
from nfd_jax.statistics import Slope, bootstrap, fit_slope
from nfd_jax.studies import _rate_search, _rates
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._rates import LOSSES
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study
from nfd_jax.tools._stability import BOUNDED, FINITE, TRAINS, settled

MUP_AT_SP = replace(  # muP's rates in SP's convention, and SP's output
    nfd.parametrization.resolve("sp"),
    name="mup_at_sp",
    input=Scaling(D**-0.5, ONE, sgd=N * D**-1, adam=D**-1),
    hidden=Scaling(N**-0.5, ONE, sgd=ONE, adam=N**-1),
    readout=Scaling(N**-0.5, ONE, sgd=N**-1, adam=N**-1),
)
ROWS = {"sp": "SP", "mup": "muP", "mup_at_sp": "muP's rates, SP's output"}
POWERS = {  # of the largest stable rate, by row and optimizer: under cross-entropy, and under squared loss
    ("sp", "sgd"): (-0.5, -1.0),
    ("mup", "sgd"): (0.0, 0.0),
    ("mup_at_sp", "sgd"): (-0.5, -1.0),
    ("sp", "adam"): (-1.0, -1.5),
    ("mup", "adam"): (0.0, 0.0),
    ("mup_at_sp", "adam"): (0.0, -0.5),
}
RULES = {TRAINS: "largest", FINITE: "finite", BOUNDED: "bounded"}  # and the name of its array
VARIED = ("units", "data", "layers", "batch")  # one at a time, under SP by SGD
NAMES = ("row", "optimizer", "loss", *VARIED)  # what tells curves apart
ALLOWED = 0.2
EVERY = 4  # steps: of mini-batches, whose loss over all samples takes a pass of its own


@dataclass(frozen=True)
class Sizes:
    """The grid. Every seed is trained at as many `rates` from `lowest` over some octaves, and then, in each of the
    other `rounds`, at as many around what it has found of the borders of `RULES` and of its best rate.

    The first of units, data, layers and batches are those of the main rows; the others stand beside SP by SGD. Data may
    be a folder of CIFAR-10's files. Networks of more layers than the first have `deep_widths`."""

    widths: tuple[int, ...] = (64, 256, 1024)
    deep_widths: tuple[int, ...] = (64, 256, 512)
    rows: tuple[str, ...] = tuple(ROWS)
    optimizers: tuple[str, ...] = ("sgd", "adam")
    units: tuple[str, ...] = ("abs", "relu")
    data: tuple[str, ...] = ("teacher", "digits")
    layers: tuple[int, ...] = (3, 8)
    batches: tuple[int, ...] = (16, 4)
    lowest: float = 2.0**-17
    octaves: float = 24.0
    rates: int = 8
    rounds: int = 3
    seeds: int = 5
    samples: int = 16
    steps: int = 200

    def __post_init__(self) -> None:
        wrong = {*self.rows} - {*ROWS}, {*self.optimizers} - {"sgd", "adam"}
        folders = [each for each in self.data if each not in ("teacher", "digits") and not Path(each).is_dir()]
        if self.rates < 3 or any(wrong) or folders or max(self.batches) > self.samples:
            raise ValueError(
                f"needs at least 3 rates, rows of {', '.join(ROWS)}, optimizers sgd or adam, data "
                f"teacher, digits or a folder of CIFAR-10, and batches of at most {self.samples} samples, got "
                f"rates={self.rates}, rows={self.rows}, optimizers={self.optimizers}, data={self.data}, "
                f"batches={self.batches}"
            )

    @property
    def main(self) -> dict[str, Any]:
        """What the main rows have of `VARIED`."""
        return dict(zip(VARIED, (self.units[0], self.data[0], self.layers[0], self.batches[0]), strict=True))

    def across(self, layers: int) -> tuple[int, ...]:
        """The widths of networks of as many layers."""
        return self.widths if layers <= self.layers[0] else self.deep_widths


def cells(sizes: Sizes) -> list[Cell]:
    """Rows of every parametrization, optimizer and loss, and those of SP by SGD with one thing changed."""
    rows: list[dict[str, Any]] = [
        {"row": row, "optimizer": optimizer} | sizes.main for optimizer in sizes.optimizers for row in sizes.rows
    ]
    every = zip(VARIED, (sizes.units, sizes.data, sizes.layers, sizes.batches), strict=True)
    sp = {"row": "sp", "optimizer": "sgd"} | sizes.main
    rows += [sp | {name: value} for name, values in every for value in values[1:]]
    rows = [row | {"loss": loss} for row in rows for loss in LOSSES]
    return [row | {"width": width} for row in rows for width in sizes.across(row["layers"])]


def _task(data: str, loss: str, samples: int) -> nfd.Task:
    if data == "teacher":
        return _rates.task(loss, samples)
    four = range(4)
    if data == "digits":
        return nfd.datasets.digits(samples, four, loss=loss)
    return nfd.datasets.cifar10(data, samples, four, loss=loss)


def measure(
    row: str,
    optimizer: str,
    loss: str,
    units: str,
    data: str,
    layers: int,
    batch: int,
    width: int,
    lowest: float,
    octaves: float,
    rates: int,
    rounds: int,
    seeds: int,
    samples: int,
    steps: int,
) -> Arrays:
    """Of every seed the largest rate that is stable by each rule, infinite where all are and NaN where none is, and the
    best one."""
    task = _task(data, loss, samples).minibatches(batch)
    members = own_seeds(seeds, row, optimizer, loss, units, data, layers, batch, width)
    recipe = nfd.Training(
        steps=steps,
        learning_rate=1.0,
        parametrization=MUP_AT_SP if row == MUP_AT_SP.name else row,
        optimizer=optimizer,
        train_input=True,
        train_readout=True,
        evaluate_at=None if batch == samples else range(0, steps + 1, EVERY),
    )
    model = nfd.MLP(layers - 1, _rates.activation(units))
    networks, trivial = Networks.of(task, model, recipe, width, "tied", "dense"), _trivial(task)

    def losses(logs: np.ndarray) -> np.ndarray:
        """`(rates, seeds, evaluations)`, at log2 rates `(rates, seeds)`."""
        each = np.repeat(2.0 ** logs.reshape(-1, 1), steps, axis=1)
        own = tuple(members) * len(logs)
        found = networks.train(own, rates=each, progress=False)
        run = nfd.Trajectory.of(found, task, networks.problem.data, own, networks.arguments)
        return run.loss.reshape(*logs.shape, -1).astype(np.float64)

    # no two seeds try the same rates, so that their borders scatter by what the grid leaves open too
    shares = (np.random.default_rng(members[0]).permutation(seeds) + 0.5) / seeds
    logs, every = _rate_search.search(losses, np.log2(lowest), octaves, rates, rounds, shares, trivial)
    found = {name: _rate_search.border(logs, every, rule, trivial) for rule, name in RULES.items()}
    found["best"] = _rate_search.best(logs, settled(every))
    return {name: ("seed", values) for name, values in found.items()}


def _trivial(task: nfd.Task) -> float:
    """The loss of outputs of 0."""
    targets = task.targets
    return float(np.log(targets.shape[1]) if task.loss == "cross_entropy" else 0.5 * np.mean(np.sum(targets**2, 1)))


def _values(results: Results, name: str, row: dict[str, Any]) -> np.ndarray:
    """Rates of one row `(seeds, widths)`; not a number where a seed has none."""
    values = np.stack([kept[name].values for _, kept in results.where(**row).along("width")], axis=1)
    return np.where(np.isfinite(values), values, np.nan)


def _law(results: Results, name: str, row: dict[str, Any]) -> Slope:
    """The exponent in n, of geometric means over seeds; not a number where a seed has no rate."""
    values = _values(results, name, row)
    if not np.isfinite(values).all():
        return Slope(np.nan, np.nan, len(values) - 1)
    return fit_slope(results.sizes.across(row["layers"]), values, average="log")


def _line(results: Results, name: str, row: dict[str, Any], label: str) -> Line:
    logs = np.log(_values(results, name, row))
    middle = bootstrap(lambda x: np.exp(x.mean(axis=0)), logs)
    return Line.of(label, results.sizes.across(row["layers"]), middle, _law(results, name, row))


def _called(results: Results, row: dict[str, Any], *names: str) -> str:
    """Its parametrization, optimizer and loss, or those named of them, and in what it differs from the main rows."""
    shown = {
        "row": ROWS[row["row"]],
        "optimizer": {"sgd": "SGD", "adam": "Adam"}[row["optimizer"]],
        "loss": LOSSES[row["loss"]],
    }
    varied = {
        "units": row["units"],
        "data": row["data"] if row["data"] in ("teacher", "digits") else "CIFAR-10",
        "layers": f"{row['layers']} layers",
        "batch": f"batches of {row['batch']}",
    }
    other = [varied[name] for name, value in results.sizes.main.items() if row[name] != value]
    return ", ".join([*(shown[name] for name in names or shown), *other])


def _rows(results: Results) -> list[dict[str, Any]]:
    """What tells the curves apart, in order."""
    found = [{name: cell[name] for name in NAMES} for cell, _ in results.cells]
    return [row for place, row in enumerate(found) if row not in found[:place]]


def _rules(optimizer: str) -> dict[str, str]:
    """Those of `RULES` that tell rates apart: under Adam all losses stay finite."""
    return {rule: name for rule, name in RULES.items() if optimizer == "sgd" or rule != FINITE}


def conclude(results: Results) -> list[Finding]:
    """Exponents of the largest stable and of the best rate in every row, and by the other rules under SP or Adam."""
    found = []
    for row in _rows(results):
        power = POWERS[row["row"], row["optimizer"]][list(LOSSES).index(row["loss"])]
        stated = row["row"] != "mup_at_sp" and row["optimizer"] == "sgd"
        names = {"largest": "largest stable rate", "best": "best rate"}
        if row["optimizer"] == "adam" or (row["row"], row["units"]) == ("sp", results.sizes.units[0]):
            names |= {name: f"largest {name} rate" for name in _rules(row["optimizer"]).values() if name not in names}
        for name, called in names.items():
            source = "Haas et al." if stated and name == "largest" else "by counting"
            law = _law(results, name, row)
            found.append(Finding(f"{called} ~ n^p, {_called(results, row)}", source, about(power, ALLOWED), law))
    return found


def draw(results: Results) -> list[Panel]:
    """The largest stable rate and the best one against the width, a panel an optimizer; one thing changed; rules."""
    panels, rows, sizes = [], _rows(results), results.sizes
    main = [row for row in rows if sizes.main.items() <= row.items()]
    for name, called in (("largest", "largest stable rate"), ("best", "best rate")):
        for optimizer in sizes.optimizers:
            own = [row for row in main if row["optimizer"] == optimizer]
            lines = [_line(results, name, row, _called(results, row, "row", "loss")) for row in own]
            panels.append(Panel(f"{called}, {_called(results, own[0], 'optimizer')}", "width n", "rate eta", lines))
    sp = [row for row in rows if (row["row"], row["optimizer"]) == ("sp", "sgd")]
    for loss, called in LOSSES.items() if sp else ():
        own = [row for row in sp if row["loss"] == loss]
        lines = [_line(results, "largest", row, _called(results, row, "row")) for row in own]
        panels.append(Panel(f"largest stable rate, SP, SGD, {called}", "width n", "rate eta", lines))
    for optimizer in sizes.optimizers:
        own = [row for row in main if row["optimizer"] == optimizer]
        first = [row for row in own if row["row"] == own[0]["row"]]
        lines = [
            _line(results, name, row, f"{_called(results, row, 'loss')}, {rule}")
            for row in first
            for rule, name in _rules(optimizer).items()
        ]
        title = f"by rule, {_called(results, own[0], 'row', 'optimizer')}"
        panels.append(Panel(title, "width n", "largest rate that ...", lines))
    return panels


STUDY = Study(
    name="stability",
    number=18,
    claim="under standard parametrization the largest stable rate falls as n^-1 with squared loss and as n^(-1/2) with "
    "cross-entropy, and under muP not at all",
    source="Haas et al.",
    setting="three layers, units |h| that can't die, 16 Gaussian inputs of four classes, all weights trained by 200 "
    "full-batch steps; beside them ReLU, digits, eight layers and mini-batches; stable is what comes half the way to "
    "the best rate's loss; not the source's data; best rates are those of the training loss",
    sizes={
        "smoke": Sizes(
            (16, 32),
            (16, 32),
            ("sp",),
            ("sgd",),
            ("abs",),
            ("teacher",),
            (3,),
            (4, 2),
            rates=6,
            rounds=2,
            seeds=3,
            samples=4,
            steps=12,
        ),
        "laptop": Sizes(),
        "accelerator": Sizes(
            widths=(64, 256, 1024, 4096),
            deep_widths=(64, 256, 1024),
            batches=(64, 16),
            rates=12,
            seeds=8,
            samples=64,
            steps=400,
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: (cell["layers"] - 2) * float(cell["width"]) ** 1.5,
    revision=4,
    least={"widths": 2, "deep_widths": 2},
)
