"""Claim 19: the refined coordinate check under standard parametrization at eta ~ n^-1/2: updates of every layer.

What the image of a weight changes by is (W_t - W_0) x_t + W_0 (x_t - x_0): an effective update and a propagating one.
By the counting of `_rates`, at a = 1/2 and under cross-entropy, of every step:

    input     effective n^-1: all there is, as inputs don't change
    hidden    effective n^0; propagating as its input moves, by a matrix that keeps sizes: n^-1 for the first matrix,
              which sees the input layer move, and n^0 for those behind it
    readout   effective n^(1/2); propagating n^(1/2), as hidden updates lie along it: n coherent terms of
              n^-1/2; without a hidden matrix the input layer's updates, of n^-1, along it: n^(-1/2)

This is where the first step's outputs are large already, as they are for large n at any rate. Where they are not, later
steps fit the data before the outputs grow with n, and all exponents fall: at a quarter of the rate here, the readout's
effective update was n^(0.16 ± 0.07) after eight steps, three layers, n = 64 to 1024, and n^(0.49 ± 0.16) after one. At
eight layers and n = 64 to 512 it does not grow after eight steps at this rate either, though after one it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nfd_jax.studies import _rates
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._rates import ROLES, estimate, exponents
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

A = 0.5  # of eta ~ n^-a
ALLOWED = 0.2  # exponents of parts differ by multiples of 1/2


@dataclass(frozen=True)
class Sizes:
    """The grid: eta = `learning_rate` (n / 32)^-1/2 / (32 (layers - 1)); what `at` steps is judged."""

    layers: tuple[int, ...] = (2, 3, 8)
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    deep_widths: tuple[int, ...] = (64, 128, 256, 512)
    shallow: int = 3
    learning_rate: float = 42.0
    seeds: int = 16
    samples: int = 16
    at: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        if min(self.layers) < 2:
            raise ValueError(f"needs networks of at least 2 layers, got layers={self.layers}")

    def across(self, layers: int) -> tuple[int, ...]:
        """The widths of networks of as many layers."""
        return self.widths if layers <= self.shallow else self.deep_widths


def cells(sizes: Sizes) -> list[Cell]:
    """Every number of layers and width."""
    return [{"layers": layers, "width": width} for layers in sizes.layers for width in sizes.across(layers)]


def measure(layers: int, width: int, learning_rate: float, seeds: int, samples: int, at: tuple[int, ...]) -> Arrays:
    """Root mean squares of the parts of every layer, at some steps."""
    rates = [_rates.rate(learning_rate, layers, width, A)]
    task, members = _rates.task("cross_entropy", samples), own_seeds(seeds, layers, width)
    found = _rates.trained(task, layers, width, rates, members, max(at))
    axes = ("seed", "step")
    return {name: ((*axes, "matrix") if "hidden" in name else axes, found[name][0][:, list(at)]) for name in ROLES}


def parts(layers: int) -> dict[tuple[str, int | None], float]:
    """Expected exponents at eta ~ n^-1/2, by part and hidden matrix."""
    hidden = layers - 2
    found: dict[tuple[str, int | None], float] = {("effective_input", None): -1.0}
    for matrix in dict.fromkeys((0, hidden - 1)) if hidden else ():
        found["effective_hidden", matrix] = 0.0
        found["propagating_hidden", matrix] = -1.0 if matrix == 0 else 0.0
    through = 0.5 if hidden else -0.5
    return found | {("effective_readout", None): 0.5, ("propagating_readout", None): through}


def _values(results: Results, layers: int, part: str, matrix: int | None, step: int) -> np.ndarray:
    """`(widths, seeds)`."""
    each = [kept[part].values[:, step] for _, kept in results.where(layers=layers).along("width")]
    return np.stack([values if matrix is None else values[:, matrix] for values in each])


def _name(part: str, matrix: int | None) -> str:
    kind, role = part.split("_")
    return f"{kind}, {role}" if matrix is None else f"{kind}, {role} {matrix + 1}"


def conclude(results: Results) -> list[Finding]:
    """The exponent of every part at the first of the steps and the last."""
    found, sizes = [], results.sizes
    for layers in sizes.layers:
        for (part, matrix), power in parts(layers).items():
            for step in dict.fromkeys((0, len(sizes.at) - 1)):
                slopes = exponents(sizes.across(layers), _values(results, layers, part, matrix, step))
                quantity = f"{_name(part, matrix)} ~ n^p, {layers} layers, t = {sizes.at[step]}"
                found.append(Finding(quantity, "Haas et al., counting", about(power, ALLOWED), estimate(slopes)))
    return found


def draw(results: Results) -> list[Panel]:
    """Every part against the width at the last step, a panel a number of layers, and exponents against the step."""
    sizes, panels, along = results.sizes, [], []
    for layers in sizes.layers:
        widths, lines, exponent = sizes.across(layers), [], []
        for (part, matrix), power in parts(layers).items():
            values = np.log(_values(results, layers, part, matrix, -1))
            mean = _rates.sampled(values.T).map(np.exp)
            lines.append(Line.of(_name(part, matrix), widths, mean, predicted=power))
            slopes = [exponents(widths, _values(results, layers, part, matrix, k)) for k in range(len(sizes.at))]
            of_steps = _rates.sampled(np.stack(slopes, axis=1))
            exponent.append(Line.of(_name(part, matrix), sizes.at, of_steps))
        panels.append(Panel(f"{layers} layers, t = {sizes.at[-1]}", "width n", "root mean square", lines))
        along.append(Panel(f"{layers} layers", "step t", "exponent in n", exponent, log_y=False))
    return [*panels, *along]


STUDY = Study(
    name="updates",
    number=19,
    claim="at eta ~ n^-1/2 under standard parametrization and cross-entropy, hidden layers learn features at a speed "
    "that does not depend on the width, while the input layer's updates vanish and the logits diverge",
    source="Haas et al.",
    setting="the refined coordinate check, (W_t - W_0) x_t and W_0 (x_t - x_0) of every layer; 16 Gaussian inputs of "
    "four classes, ReLU with He's factor, all weights trained by full-batch SGD; not the source's data",
    sizes={
        "smoke": Sizes((3,), (16, 64), (16, 64), seeds=3, samples=6, at=(1, 3)),
        "laptop": Sizes(),
        "accelerator": Sizes(
            widths=(64, 256, 1024, 4096), deep_widths=(64, 256, 1024, 2048), seeds=16, samples=32, at=(1, 2, 4, 8, 16)
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["layers"] * cell["width"] ** 1.5,
    least={"widths": 2, "deep_widths": 2},
)
