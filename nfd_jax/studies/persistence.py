"""Claim 20: at eta ~ n^-1/2 networks under standard parametrization have a limit in which hidden features move.

The networks are revealed, of widths that no dense matrix has. By the counting of `_rates`, at a = 1/2 hidden images
move by n^0, feature kernels too, and outputs by n^(1/2), so that outputs over n^(1/2) and the classes that they choose
have a limit. At a = 1, where outputs move by n^0, hidden images move by n^(-1/2), and kernels by n^-1: images move
along the readout, which is nearly orthogonal to the features, and the square of the movement is n^-1 too. At a = 1/2
the former is n^(-1/2) and the square n^0, which prevails where the rate is large enough.

The limit is a random one: the first gradient of the loss depends on the outputs at the start, which are of order 1 and
differ from seed to seed. So single networks keep their spread as n grows once they have trained, unlike kernels at the
start, whose spread falls as n^(-1/2); what converges is the law over seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Estimate, Sampled, bootstrap, combined
from nfd_jax.studies import _rates
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

HALF, ONE = 0.5, 1.0  # exponents a of the rate
QUANTITIES = {  # by name: what it is, and its exponent in n at a = 1/2 and at a = 1
    "image": ("hidden effective update", 0.0, -0.5),
    "kernel_change": ("change of the last feature kernel", 0.0, -1.0),
    "logits": ("outputs over n^(1/2)", 0.0, -0.5),
}
SPREADS = {"kernel_start": ("at the start", -0.5), "kernel": ("after training", 0.0)}


@dataclass(frozen=True)
class Sizes:
    """The grid: eta = `learning_rate` (n / 32)^-a / (32 (layers - 1)), a = 1/2 and 1; dense networks at one width."""

    widths: tuple[int, ...] = (64, 256, 1024, 4096, 16_384, 65_536)
    dense: int = 256
    layers: int = 4
    learning_rate: float = 40.0
    seeds: int = 96
    samples: int = 6
    steps: int = 6

    def __post_init__(self) -> None:
        if self.dense not in self.widths or self.layers < 3:
            raise ValueError(
                f"study 'persistence' needs at least 3 layers and its dense networks at one of widths {self.widths}, "
                f"got layers={self.layers} and dense={self.dense}"
            )


def cells(sizes: Sizes) -> list[Cell]:
    """Revealed networks of all widths at both rates, and dense ones at one of each."""
    revealed = [{"a": a, "width": width, "engine": "revealed"} for a in (HALF, ONE) for width in sizes.widths]
    return [*revealed, {"a": HALF, "width": sizes.dense, "engine": "dense"}]


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
    a: float, width: int, engine: str, layers: int, learning_rate: float, seeds: int, samples: int, steps: int
) -> Arrays:
    """What has moved after the last step, one number a seed, and kernels before and after training."""
    task = _rates.task("cross_entropy", samples)
    run = nfd.train_networks(
        task,
        nfd.MLP(layers - 1, _rates.he_relu),
        width=width,
        seeds=own_seeds(seeds, a, width, engine),
        engine=engine,
        steps=steps,
        learning_rate=_rates.rate(learning_rate, layers, width, a),
        parametrization="sp",
        train_input=True,
        train_readout=True,
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
    }
    return {name: ("seed", values) for name, values in found.items()}


def _log(values: np.ndarray) -> Sampled:
    return bootstrap(lambda x: np.log(x.mean()), values)


def _spread(values: np.ndarray) -> Sampled:
    return bootstrap(lambda x: x.std(ddof=1), values)


def _curve(results: Results, a: float, name: str, function: Callable[[np.ndarray], Sampled]) -> Curve:
    chosen = results.where(a=a, engine="revealed")
    return chosen.curve("width", lambda kept: function(kept[name].values))


def conclude(results: Results) -> list[Finding]:
    """What keeps moving and what does not, what has converged, what scatters, and whether dense networks agree."""
    sizes, found = results.sizes, []
    for name, (called, *powers) in QUANTITIES.items():
        for a, power in zip((HALF, ONE), powers, strict=True):
            law = _curve(results, a, name, lambda x: bootstrap(np.mean, x)).law
            source = "Haas et al." if a == HALF else "by counting"
            found.append(Finding(f"{called} ~ n^p at a = {a:g}", source, about(power, 0.15), law))
    for name, (when, power) in SPREADS.items():
        law = _curve(results, HALF, name, _spread).law
        quantity = f"spread of the last feature kernel over seeds ~ n^p, {when}, a = 1/2"
        found.append(Finding(quantity, "by counting", about(power, 0.2), law))
    wide, far = (sizes.widths[place] for place in (-1, (len(sizes.widths) - 1) // 2))
    for name in (*QUANTITIES, "kernel"):
        called = QUANTITIES[name][0] if name in QUANTITIES else "last feature kernel"
        ends = [results.one(a=HALF, engine="revealed", width=width)[name].values for width in (wide, far)]
        gap = combined(lambda x, y: x - y, *map(_log, ends)).estimate()
        quantity = f"log({called} at n = {wide} / at n = {far}), a = 1/2"
        found.append(Finding(quantity, "Haas et al.; 0.25 is ours", about(0, 0.25), gap))
    rights = [results.one(a=HALF, engine="revealed", width=width)["right"].values for width in (wide, far)]
    gap = combined(lambda x, y: x - y, *(bootstrap(np.mean, each) for each in rights)).estimate()
    quantity = f"share of samples in their class at n = {wide}, less that at n = {far}, a = 1/2"
    found.append(Finding(quantity, "Haas et al.; 0.15 is ours", about(0, 0.15), gap))
    return [*found, *(_engines(results, name) for name in ("image", "kernel", "logits"))]


def _engines(results: Results, name: str) -> Finding:
    """Dense networks against revealed ones of the same width, which have the same law."""
    width = results.sizes.dense
    both = [results.one(a=HALF, engine=engine, width=width)[name].values for engine in ("dense", "revealed")]
    gap: Estimate = combined(lambda x, y: x - y, *map(_log, both)).estimate()
    return Finding(
        f"log({name}, dense / revealed) at n = {width}, a = 1/2", "one law; 0.25 is ours", about(0, 0.25), gap
    )


def draw(results: Results) -> list[Panel]:
    """What moves, and the spread of kernels, against the width; classes that are right."""
    panels = []
    for name, (called, *powers) in QUANTITIES.items():
        curves = [_curve(results, a, name, lambda x: bootstrap(np.mean, x)) for a in (HALF, ONE)]
        lines = [curve.line(f"a = {a:g}", power) for curve, a, power in zip(curves, (HALF, ONE), powers, strict=True)]
        panels.append(Panel(called, "width n", "mean over seeds", lines))
    spreads = [_curve(results, HALF, name, _spread).line(when, power) for name, (when, power) in SPREADS.items()]
    panels.append(Panel("last feature kernel, a = 1/2", "width n", "standard deviation over seeds", spreads))
    for name, called in (("kernel", "last feature kernel"), ("right", "samples in their class")):
        mean = _curve(results, HALF, name, lambda x: bootstrap(np.mean, x))
        panels.append(
            Panel(f"{called}, a = 1/2", "width n", "mean over seeds", [Line.of("revealed", mean.sizes, mean.values)])
        )
    return panels


STUDY = Study(
    name="persistence",
    number=20,
    claim="at eta ~ n^-1/2 networks under standard parametrization and cross-entropy have a limit as n grows, in which "
    "hidden features keep moving",
    source="Haas et al.",
    setting="four layers, revealed matrices, few Gaussian inputs of four classes, ReLU with He's factor, all weights "
    "trained by a few steps of full-batch SGD; the limit is random through the outputs at the start, so that means "
    "over seeds are compared; not the source's data, and far shorter training",
    sizes={
        "smoke": Sizes((32, 128), 32, 3, seeds=4, samples=3, steps=2),
        "laptop": Sizes(),
        "accelerator": Sizes((64, 512, 4096, 32_768, 262_144, 1_048_576), dense=4096, seeds=32, samples=8, steps=8),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: float(cell["width"]),
    least={"widths": 2},
)
