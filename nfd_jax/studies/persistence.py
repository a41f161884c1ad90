"""Claim 20: at eta ~ n^-1/2 networks under standard parametrization have a limit in which hidden features move.

The networks are revealed, of widths that no dense matrix has. By the counting of `_rates`, at a = 1/2 hidden images
move by n^0, feature kernels too, and outputs by n^(1/2), so that outputs over n^(1/2) and the classes that they choose
have a limit. At a = 1, where outputs move by n^0, hidden images move by n^(-1/2), and kernels by n^-1: images move
along the readout, which is nearly orthogonal to the features, and the square of the movement is n^-1 too. At a = 1/2
the former is n^(-1/2) and the square n^0, which prevails where the rate is large enough.

The limit is a random one: the first gradient of the loss depends on the outputs at the start, which are of order 1 and
differ from seed to seed. So single networks keep their spread as n grows once they have trained, unlike kernels at the
start, whose spread falls as n^(-1/2); what converges is the law over seeds.

At a = 1/2 outputs of n^(1/2) leave no loss gradient where a sample is in its class: the wider, the sooner training is
over, whatever the number of steps. At a = 1 it goes on.

By counting, batches of a few samples at a time change none of these exponents.

So many steps need revealed matrices with a `resolution`. What that leaves is measured with the first seeds once more at
twice the resolution, on the same noise; three times the change is part of every half-width, as in `solve_limit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Estimate, Slope, bootstrap, combined, quantile
from nfd_jax.studies import _rates
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

HALF, ONE = 0.5, 1.0  # exponents a of the rate
WIDE = 10_000
QUANTITIES = {  # by name: what it is, and its exponent in n at a = 1/2 and at a = 1
    "image": ("hidden effective update", 0.0, -0.5),
    "kernel_change": ("change of the last feature kernel", 0.0, -1.0),
    "logits": ("outputs over n^(1/2)", 0.0, -0.5),
}
SPREADS = {"kernel_start": ("at the start", -0.5), "kernel": ("after training", 0.0)}
Measured = TypeVar("Measured", bound=Estimate)
COARSER, ERROR = 2, 3  # times the resolution; its error in changes from there


@dataclass(frozen=True)
class Sizes:
    """The grid: eta = `learning_rate` (n / 32)^-a / (32 (layers - 1)), a = 1/2, of `wide_seeds` beyond n = 10,000, and
    of `fewer_seeds`, at most half as many, with a `batch` of fewer samples, at a rate as much smaller, and at a = 1,
    where less scatters; dense networks at one width. A quarter of the seeds is trained at twice the resolution too."""

    widths: tuple[int, ...] = (64, 256, 1024, 4096, 16_384, 65_536)
    dense: int = 256
    layers: int = 4
    learning_rate: float = 40.0
    seeds: int = 64
    wide_seeds: int = 16
    fewer_seeds: int = 12
    samples: int = 6
    batch: int = 2
    steps: int = 200
    resolution: float = 0.02

    def __post_init__(self) -> None:
        known = self.dense in self.widths and self.layers >= 3 and self.resolution < 1 / COARSER
        if not known or self.batch >= self.samples:
            raise ValueError(
                f"needs at least 3 layers, its dense networks at one of widths {self.widths}, a "
                f"resolution below {1 / COARSER} and a batch below samples={self.samples}, got layers={self.layers}, "
                f"dense={self.dense}, resolution={self.resolution} and batch={self.batch}"
            )

    @property
    def half(self) -> Cell:
        """Full batches at a = 1/2."""
        return {"a": HALF, "batch": self.samples}

    @property
    def curves(self) -> tuple[Cell, Cell, Cell]:
        """Full batches at a = 1/2 and a = 1, and small ones at a = 1/2."""
        return self.half, {"a": ONE, "batch": self.samples}, {"a": HALF, "batch": self.batch}


def cells(sizes: Sizes) -> list[Cell]:
    """Revealed networks of all widths on every curve at two resolutions, and dense ones at one of each."""
    found: list[Cell] = []
    for width in sizes.widths:
        most = sizes.wide_seeds if width > WIDE else sizes.seeds
        fewer = min(sizes.fewer_seeds, most // 2)
        for curve, seeds in zip(sizes.curves, (most, fewer, fewer), strict=True):
            rate = sizes.learning_rate * curve["batch"] / sizes.samples  # as much a sample
            cell = {**curve, "width": width, "engine": "revealed", "learning_rate": rate}
            found.append(cell | {"seeds": seeds, "resolution": sizes.resolution})
            found.append(cell | {"seeds": max(2, seeds // 4), "resolution": COARSER * sizes.resolution})
    dense = {"width": sizes.dense, "engine": "dense", "learning_rate": sizes.learning_rate}
    return [*found, {**sizes.half, **dense, "seeds": sizes.seeds, "resolution": 0.0}]


@nfd.observables.axes(kernel=("layer", "sample", "other_sample"), image=("matrix",))
def seen(snapshot: nfd.Snapshot) -> dict[str, Any]:
    """Kernels <phi(h), phi(h)> of every layer, and root mean square effective updates of the hidden matrices."""
    x = _rates.he_relu(snapshot.features)
    images = snapshot.effective_images()
    return {
        "kernel": jnp.einsum("lan,lbn->lab", x, x) / x.shape[-1],
        "image": jnp.sqrt(jnp.mean(images**2, axis=(-2, -1))),
    }


def measure(
    a: float,
    batch: int,
    width: int,
    engine: str,
    seeds: int,
    resolution: float,
    layers: int,
    learning_rate: float,
    samples: int,
    steps: int,
) -> Arrays:
    """What has moved after the last step, one number a seed, and kernels before and after training, each of the samples
    in the batch that it is seen on."""
    task = _rates.task("cross_entropy", samples)
    run = nfd.train_networks(
        task.minibatches(batch),
        nfd.MLP(layers - 1, _rates.he_relu),
        width=width,
        seeds=own_seeds(seeds, a, batch, width, engine),
        engine=engine,
        resolution=resolution,
        steps=steps,
        learning_rate=_rates.rate(learning_rate, layers, width, a),
        parametrization="sp",
        train_input=True,
        train_readout=True,
        evaluate_at=[0, steps],
        observe=seen,
        progress=False,
    )
    kernel, outputs = (np.asarray(each, np.float64) for each in (run.observed["kernel"][:, :, -1], run.outputs))
    moved = outputs[:, -1] - outputs[:, 0]
    right = outputs[:, -1].argmax(axis=-1) == task.targets.argmax(axis=-1)
    found = {
        "image": np.asarray(run.observed["image"][:, -1, -1], np.float64),
        "kernel_change": np.sqrt(np.mean((kernel[:, -1] - kernel[:, 0]) ** 2, axis=(1, 2))),
        "logits": np.sqrt(np.mean(moved**2, axis=(1, 2)) / width),
        "right": np.where(np.isfinite(moved).all(axis=(1, 2)), right.mean(axis=1), np.nan),
        "kernel_start": np.mean(kernel[:, 0], axis=(1, 2)),
        "kernel": np.mean(kernel[:, -1], axis=(1, 2)),
        "loss": np.asarray(run.loss[:, -1], np.float64),
    }
    return {name: ("seed", values) for name, values in found.items()}


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(values.mean())


def _deviation(values: np.ndarray) -> np.ndarray:
    return values.std(ddof=1)


def _called(sizes: Sizes, curve: Cell) -> str:
    return f"a = {curve['a']:g}" + (f", batches of {curve['batch']}" if curve["batch"] < sizes.samples else "")


def _powers(sizes: Sizes, curve: Cell) -> dict[str, float]:
    """The exponent in n of each of `QUANTITIES` that is of the same samples before and after training."""
    other = {"kernel_change"} if curve["batch"] < sizes.samples else set()
    return {name: powers[curve["a"] == ONE] for name, (_, *powers) in QUANTITIES.items() if name not in other}


def _values(results: Results, curve: Cell, width: int, name: str, *, coarser: bool = False) -> np.ndarray:
    """Of revealed networks at the resolution, or at twice that, one a seed."""
    times = COARSER if coarser else 1
    resolution = times * results.sizes.resolution
    return results.one(**curve, width=width, engine="revealed", resolution=resolution)[name].values


def _change(results: Results, curve: Cell, width: int, name: str, function: Callable[[np.ndarray], Any]) -> float:
    """What twice the resolution changes in a function of the seeds, on the same noise."""
    coarser = _values(results, curve, width, name, coarser=True)
    return float(function(coarser) - function(_values(results, curve, width, name)[: len(coarser)]))


def _widened(measured: Measured, change: float) -> Measured:
    """With the error of the resolution in its half-width."""
    more = ERROR * abs(change) / quantile(measured.freedom)
    return replace(measured, standard_error=measured.standard_error + more)


def _curve(results: Results, curve: Cell, name: str, function: Callable[[np.ndarray], Any]) -> Curve:
    widths = results.sizes.widths
    return Curve.of(widths, [bootstrap(function, _values(results, curve, width, name)) for width in widths])


def _law(results: Results, curve: Cell, name: str, function: Callable[[np.ndarray], Any]) -> Slope:
    """The exponent in n, with the error of the resolution."""
    logs, changes = np.log(results.sizes.widths), []
    for width in results.sizes.widths:
        changes.append(_change(results, curve, width, name, lambda values: np.log(function(values))))
    centred = logs - logs.mean()
    return _widened(_curve(results, curve, name, function).law, float(centred @ changes / np.sum(centred**2)))


def _between(results: Results, name: str, function: Callable[[np.ndarray], Any]) -> Estimate:
    """A function of the seeds at the largest width, less that at the middle one, at a = 1/2."""
    ends = _ends(results)
    parts = [bootstrap(function, _values(results, results.sizes.half, width, name)) for width in ends]
    wide, far = (_change(results, results.sizes.half, width, name, function) for width in ends)
    return _widened(combined(lambda x, y: x - y, *parts).estimate(), wide - far)


def _ends(results: Results) -> tuple[int, int]:
    widths = results.sizes.widths
    return widths[-1], widths[(len(widths) - 1) // 2]


def conclude(results: Results) -> list[Finding]:
    """What keeps moving and what does not, what has converged, what scatters, and whether dense networks agree."""
    sizes, found, (wide, far) = results.sizes, [], _ends(results)
    for curve in sizes.curves:
        source = "Haas et al." if curve["a"] == HALF else "by counting"
        for name, power in _powers(sizes, curve).items():
            quantity = f"{QUANTITIES[name][0]} ~ n^p at {_called(sizes, curve)}"
            found.append(Finding(quantity, source, about(power, 0.15), _law(results, curve, name, np.mean)))
    for name, (when, power) in SPREADS.items():
        law = _law(results, sizes.half, name, _deviation)
        quantity = f"spread of the last feature kernel over seeds ~ n^p, {when}, a = 1/2"
        found.append(Finding(quantity, "by counting", about(power, 0.2), law))
    for name in (*QUANTITIES, "kernel"):
        called = QUANTITIES[name][0] if name in QUANTITIES else "last feature kernel"
        quantity = f"log({called} at n = {wide} / at n = {far}), a = 1/2"
        found.append(Finding(quantity, "Haas et al.; 0.25 is ours", about(0, 0.25), _between(results, name, _log)))
    quantity = f"share of samples in their class at n = {wide}, less that at n = {far}, a = 1/2"
    found.append(Finding(quantity, "Haas et al.; 0.15 is ours", about(0, 0.15), _between(results, "right", np.mean)))
    return [*found, *(_engines(results, name) for name in ("image", "kernel", "logits"))]


def _engines(results: Results, name: str) -> Finding:
    """Dense networks against revealed ones of the same width, which have the same law."""
    width = results.sizes.dense
    dense = results.one(**results.sizes.half, engine="dense", width=width)[name].values
    parts = [bootstrap(_log, each) for each in (dense, _values(results, results.sizes.half, width, name))]
    gap = combined(lambda x, y: x - y, *parts).estimate()
    measured = _widened(gap, _change(results, results.sizes.half, width, name, _log))
    quantity = f"log({name}, dense / revealed) at n = {width}, a = 1/2"
    return Finding(quantity, "one law; 0.25 is ours", about(0, 0.25), measured)


def draw(results: Results) -> list[Panel]:
    """What moves, and the spread of kernels, against the width; classes that are right."""
    sizes, panels = results.sizes, []
    for name, (called, *_) in QUANTITIES.items():
        lines = [
            _curve(results, curve, name, np.mean).line(_called(sizes, curve), powers[name])
            for curve in sizes.curves
            if name in (powers := _powers(sizes, curve))
        ]
        panels.append(Panel(called, "width n", "mean over seeds", lines))
    spreads = [
        _curve(results, sizes.half, name, _deviation).line(when, power) for name, (when, power) in SPREADS.items()
    ]
    panels.append(Panel("last feature kernel, a = 1/2", "width n", "standard deviation over seeds", spreads))
    for name, called in (("kernel", "last feature kernel"), ("right", "samples in their class")):
        mean = _curve(results, sizes.half, name, np.mean)
        lines = [Line.of("revealed", mean.sizes, mean.values)]
        panels.append(Panel(f"{called}, a = 1/2", "width n", "mean over seeds", lines, log_y=False))
    losses = [(_called(sizes, curve), _curve(results, curve, "loss", np.mean)) for curve in sizes.curves]
    lines = [Line.of(label, curve.sizes, curve.values) for label, curve in losses]
    return [*panels, Panel(f"loss after {sizes.steps} steps", "width n", "mean over seeds", lines)]


STUDY = Study(
    name="persistence",
    number=20,
    claim="at eta ~ n^-1/2 networks under standard parametrization and cross-entropy have a limit as n grows, in which "
    "hidden features keep moving",
    source="Haas et al.",
    setting="four layers, revealed matrices, few Gaussian inputs of four classes, ReLU with He's factor, all weights "
    "trained by 200 steps of SGD on full batches, and on batches of 2 at a third of the rate; the limit is random "
    "through the outputs at the start, so that means over seeds are compared; half-widths contain the error of the "
    "resolution; not the source's data",
    sizes={
        "smoke": Sizes((32, 128), 32, 3, seeds=8, wide_seeds=8, fewer_seeds=4, samples=3, steps=4, resolution=0.1),
        "laptop": Sizes(),
        "accelerator": Sizes(
            (64, 512, 4096, 32_768, 262_144, 1_048_576), dense=4096, seeds=64, wide_seeds=32, fewer_seeds=16, steps=400
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["seeds"] * float(cell["width"]),
    revision=3,
    least={"widths": 2},
)
