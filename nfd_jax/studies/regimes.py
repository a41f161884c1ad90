"""Claim 17: under standard parametrization the loss decides what large rates do: regimes of eta ~ n^-a.

A regime is that of three exponents in the width, of outputs, features and gradients each, never of how large a loss is:
stable where none grows, controlled divergence where outputs alone do, catastrophic where features or gradients do too.
What is expected is derived in `_rates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nfd_jax.studies import _rates
from nfd_jax.studies._findings import Finding, Prediction, about, at_least, at_most
from nfd_jax.studies._panels import Level, Line, Map, Panel
from nfd_jax.studies._rates import LOSSES, border, estimate, exponents, largest, sampled
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

NAMES = {"logits": "f_t - f_0", "features": "h_t - h_0", "gradients": "dL/dh"}
HALF, QUARTER = 0.5, 0.25  # exponents a whose own exponents are judged
SHOWN = 2.0  # an exponent in a figure, at most
GROWS = 0.125  # an exponent that is none of 0


@dataclass(frozen=True)
class Sizes:
    """The grid: eta = rate (n / 32)^-a / (32 (layers - 1)). Of what is stable by linear counting with three layers of
    width 64, rates are three times as much for cross-entropy, where the first step's outputs are then large, and three
    quarters for squared loss. Networks of more layers than `shallow` have `deep_widths`; those of as many are trained
    by all `batches`, the others by the first."""

    layers: tuple[int, ...] = (2, 3, 8)
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    deep_widths: tuple[int, ...] = (64, 128, 256, 512)
    shallow: int = 3
    exponents: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    rates: tuple[float, ...] = (42.0, 2.9)  # of LOSSES
    seeds: int = 16
    samples: int = 16
    batches: tuple[int, ...] = (16, 4)
    steps: int = 8
    units: str = "relu"

    def __post_init__(self) -> None:
        if min(self.layers) < 2 or not {HALF, QUARTER} <= set(self.exponents) or len(self.rates) != len(LOSSES):
            raise ValueError(
                f"needs networks of at least 2 layers, exponents with {HALF} and {QUARTER} and one of "
                f"rates for {' and '.join(LOSSES)}, got layers={self.layers}, exponents={self.exponents}, "
                f"rates={self.rates}"
            )
        if max(self.batches) > self.samples:
            raise ValueError(f"needs batches of at most samples={self.samples}, got batches={self.batches}")

    @property
    def curves(self) -> list[dict[str, Any]]:
        """Loss, layers and batch of all that is compared across widths."""
        shapes = [(layers, self.batches[0]) for layers in self.layers]
        shapes += [(self.shallow, batch) for batch in self.batches[1:] if self.shallow in self.layers]
        return [{"loss": loss, "layers": layers, "batch": batch} for loss in LOSSES for layers, batch in shapes]

    def across(self, layers: int) -> tuple[int, ...]:
        """The widths of networks of as many layers."""
        return self.widths if layers <= self.shallow else self.deep_widths


def cells(sizes: Sizes) -> list[Cell]:
    """Every curve and width; rates of all exponents are side by side."""
    rates = dict(zip(LOSSES, sizes.rates, strict=True))
    return [
        curve | {"width": width, "rate": rates[curve["loss"]]}
        for curve in sizes.curves
        for width in sizes.across(curve["layers"])
    ]


def measure(
    loss: str,
    layers: int,
    batch: int,
    width: int,
    rate: float,
    exponents: Sequence[float],
    seeds: int,
    samples: int,
    steps: int,
    units: str,
) -> Arrays:
    """The largest so far of what each of the regimes is of, after every step, over layers too, and the loss."""
    rates = [_rates.rate(rate, layers, width, a) for a in exponents]
    members = own_seeds(seeds, loss, layers, batch, width, units)
    task = _rates.task(loss, samples).minibatches(batch)
    found = _rates.trained(task, layers, width, rates, members, steps, units)
    found |= {name: found[name].max(axis=-1) for name in ("features", "gradients")}
    axes = ("exponent", "seed", "step")
    return {name: (axes, largest(found[name], axis=-1)) for name in NAMES} | {"loss": (axes, found["loss"])}


def _exponents(results: Results, curve: dict[str, Any], name: str) -> np.ndarray:
    """Exponents in n `(seeds, a)` of the largest until the last step."""
    chosen = results.where(**curve)
    values = np.stack([kept[name].values[:, :, -1] for _, kept in chosen.along("width")])
    return exponents(results.sizes.across(curve["layers"]), np.moveaxis(values, 1, 2))


def _called(results: Results, curve: dict[str, Any]) -> str:
    """Its layers, and its batch where that is not the first."""
    other = f", batches of {curve['batch']}" if curve["batch"] != results.sizes.batches[0] else ""
    return f"{LOSSES[curve['loss']]}, {curve['layers']} layers{other}"


def predictions(loss: str, layers: int, steps: int) -> list[tuple[str, float | None, str, Prediction]]:
    """What is expected of the largest until the last step: the quantity, the exponent a of the rate or None for the a
    at which the quantity begins to grow with n, the source, and the prediction.

    Borders differ by 1/2 and exponents by as much or more: 0.2 is allowed, and what is said to grow, or to grow more
    than under cross-entropy, has to by 1/8, half of the least step between the exponents of the grid.
    """
    hidden = layers > 2
    claimed, counted = "Haas et al." if hidden else "by counting", "by counting"
    found: list[tuple[str, float | None, str, Prediction]] = [("logits", None, "Haas et al.", about(1, 0.2))]
    if loss == "mse":  # features: n^((t-1)(1-a)) times the first step, n^(1/2-a), or n^(-1/2-a) without a hidden matrix
        found.append(("features", None, counted, about((steps - (0.5 if hidden else 1.5)) / steps, 0.2)))
        least = {"logits": HALF + GROWS, "features": GROWS, "gradients": GROWS}
        found += [(name, HALF, claimed, at_least(power)) for name, power in least.items()]
        return [*found, ("logits", HALF, "linear counting, half of it", at_least(steps / 4))]
    if hidden:
        found.append(("features", None, claimed, about(0.5, 0.2)))
    else:
        found.append(("features", QUARTER, counted, at_most(0)))  # n^(-1/2-a), and from the second step on n^-2a
    expected = {"logits": 0.5, "features": 0.0 if hidden else -1.0, "gradients": 0.0}
    found += [(name, HALF, claimed, about(power, 0.2)) for name, power in expected.items()]
    return [*found, ("gradients", QUARTER, claimed, at_least(GROWS))]


def conclude(results: Results) -> list[Finding]:
    """Where outputs and features begin to grow with n, and the exponents at two rates, beside what counting gives."""
    sizes, found = results.sizes, []
    for curve in sizes.curves:
        of = _called(results, curve)
        for name, a, source, predicted in predictions(curve["loss"], curve["layers"], sizes.steps):
            powers = _exponents(results, curve, name)
            if a is None:
                measured = border(powers, sizes.exponents)
                quantity = f"a below which {NAMES[name]} grows with n at eta ~ n^-a, {of}"
            else:
                measured = estimate(powers[:, sizes.exponents.index(a)])
                quantity = f"{NAMES[name]} ~ n^p at eta ~ n^-{a:g}, {of}"
            found.append(Finding(quantity, source, predicted, measured))
    return found


def draw(results: Results) -> list[Panel | Map]:
    """Exponents in n against a after the last step, and the size of what moved over width and rate."""
    sizes, panels = results.sizes, []
    for curve in sizes.curves:
        lines = []
        for name in NAMES:
            power = sampled(_exponents(results, curve, name))
            lines.append(Line.of(NAMES[name], sizes.exponents, power.map(lambda p: np.minimum(p, SHOWN))))
        hidden = curve["layers"] > 2
        a, first = np.array(sizes.exponents), {"1 - a": 1.0, **({"1/2 - a": 0.5} if hidden else {})}
        lines += [Line(label, a, start - a, curve=True) for label, start in first.items()]
        label = f"exponent in n, {SHOWN:g} where larger"
        zero = [Level("0", 0.0)]
        panels.append(Panel(_called(results, curve), "a, of eta ~ n^-a", label, lines, zero, False, False))
    return [*panels, *(_map(results, loss) for loss in LOSSES)]


def _map(results: Results, loss: str) -> Map:
    """Features that moved, and in every field what outputs, features and gradients have been at most."""
    sizes, layers = results.sizes, min(results.sizes.layers, key=lambda each: abs(each - 3))
    widths, chosen = sizes.across(layers), results.where(loss=loss, layers=layers, batch=sizes.batches[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {
            name: np.log10(np.stack([np.median(kept[name][:, :, -1], axis=1) for _, kept in chosen.along("width")], 1))
            for name in NAMES
        }
    text = [
        ["\n".join(f"{round(logs[name][row, column], 1) + 0.0:.1f}" for name in NAMES) for column in range(len(widths))]
        for row in range(len(sizes.exponents))
    ]
    ends = [np.log2(widths[0]), np.log2(widths[-1])]
    borders = [("outputs grow below", ends, [1.0, 1.0])]
    if loss == "cross_entropy" and layers > 2:
        borders.append(("features grow below", ends, [0.5, 0.5]))
    values = np.clip(np.nan_to_num(logs["features"], nan=3, posinf=3, neginf=-3), -3, 3)
    title = (
        f"log10 of the largest {', '.join(NAMES.values())}, shade {NAMES['features']}\n{LOSSES[loss]}, {layers} layers"
    )
    return Map(title, "log2 n", "a, of eta ~ n^-a", np.log2(widths), sizes.exponents, values, text, borders)


STUDY = Study(
    name="regimes",
    number=17,
    claim="at eta ~ n^-a under standard parametrization cross-entropy is stable for a >= 1, has diverging logits with "
    "stable features and gradients for 1/2 <= a < 1, and diverges in all for a < 1/2; squared loss diverges for a < 1",
    source="Haas et al.",
    setting="16 Gaussian inputs of four classes, ReLU with He's factor, all weights trained by SGD on full batches, "
    "and with three layers on batches of 4 too; of each quantity its largest root mean square until the last step, "
    "over layers too; not the source's data; networks of two layers have no hidden matrix, and their features can't "
    "diverge at a >= 0 under cross-entropy",
    sizes={
        "smoke": Sizes(
            (3,), (16, 64), (16, 64), 3, (0.25, 0.5, 1.0, 1.25), seeds=3, samples=6, batches=(6, 3), steps=3
        ),
        "laptop": Sizes(),
        "accelerator": Sizes(
            widths=(64, 256, 1024, 4096),
            deep_widths=(64, 256, 1024, 2048),
            seeds=16,
            samples=32,
            batches=(32, 8),
            steps=16,
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["layers"] * cell["width"] ** 1.5,
    least={"widths": 2, "deep_widths": 2, "exponents": 2, "rates": 2},
)
