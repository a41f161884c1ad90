"""Claim 10: how features and gradients change along the depth of a trained network: the diversity exponent kappa."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax.statistics import Slope, bootstrap
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about
from nfd_jax.studies._panels import Level, Line, Panel
from nfd_jax.studies._study import Arrays, Cell, Results, Study

EXPONENTS = {"depth_mup": 0.5, "complete_p": 1.0}  # 1 - kappa
NAMES = {"depth_mup": "depth-muP (1/2, 1/2)", "complete_p": "CompleteP (1, 0)"}
FIELDS = {"feature": "h", "gradient": "g"}
# Lags e of the fit. Above, the curvature of h_t shows. Below, so do single blocks: under CompleteP the weights' initial
# part adds (e / L)^1/2, which the learned part, of order e, exceeds for e L >> 1 only.
SHORTEST, LONGEST = 1 / 32, 1 / 8
RANGE = f"1/{1 / SHORTEST:g} <= e <= 1/{1 / LONGEST:g}"


@dataclass(frozen=True)
class Sizes:
    """The grid. The rate fits the targets within the steps: half of it does not, and twice of it overshoots."""

    depths: tuple[int, ...] = (128, 256, 512, 1024)
    width: int = 256
    seeds: int = 6
    activation: str = "relu"
    samples: int = 4
    steps: int = 5
    learning_rate: float = 2.0


def cells(sizes: Sizes) -> list[Cell]:
    """Both rows at every depth, one program a depth."""
    if min(sizes.depths) < 2 / LONGEST:  # the lags 1 / L and 2 / L, at least
        raise ValueError(f"depths of study 'diversity' must be at least {2 / LONGEST:g}, got {min(sizes.depths)}")
    return [{"parametrization": row, "depth": depth} for depth in sizes.depths for row in EXPONENTS]


def measure(
    parametrization: str,
    depth: int,
    width: int,
    seeds: int,
    activation: str,
    samples: int,
    steps: int,
    learning_rate: float,
) -> Arrays:
    """Diversity of features and gradients before training and before the last step, at every lag, and the losses; not
    a number where training diverged."""
    run = nfd.solve_network(
        nfd.datasets.digits(samples),
        nfd.ResNet(depth, activation, block="post", centred=True),
        width=width,
        steps=steps,
        learning_rate=learning_rate,
        seeds=seeds,
        parametrization=parametrization,
        observe=observables.diversity,
        progress=False,
    )
    axes, lost = ("seed", "time", "lag"), np.logical_and(run.diverged_at[:, None] >= 0, [False, True])[..., None]
    ends = {name: run.observed[f"{name}_diversity"][:, [0, steps - 1]].astype(np.float64) for name in FIELDS}
    found = {name: (axes, np.where(lost, np.nan, values)) for name, values in ends.items()}
    return {"loss": (("seed", "step"), run.loss), **found}


def _curve(results: Results, row: str, depth: int, name: str, time: int) -> Curve:
    """The diversity at all lags e, root mean square over seeds. `time`: 0 untrained, -1 trained."""
    values = results.one(parametrization=row, depth=depth)[name].values[:, time]
    lags = 2.0 ** np.arange(values.shape[1]) / depth
    return Curve(lags.tolist(), bootstrap(lambda x: np.sqrt(np.mean(x**2, axis=0)), values))


def _exponent(results: Results, row: str, depth: int, name: str, time: int) -> Slope:
    """1 - kappa, from the lags between `SHORTEST` and `LONGEST`."""
    curve = _curve(results, row, depth, name, time)
    within = [place for place, lag in enumerate(curve.sizes) if SHORTEST <= lag <= LONGEST]
    return Curve([curve.sizes[place] for place in within], curve.values.map(lambda values: values[within])).law


def conclude(results: Results) -> list[Finding]:
    """Exponents in e at the largest depth: trained networks, and untrained ones beside them."""
    deepest = max(results.sizes.depths)
    found = []
    for row, expected in EXPONENTS.items():
        for name, symbol in FIELDS.items():
            found.append(
                Finding(
                    f"|{symbol}^(t+e)L - {symbol}^tL| ~ e^(1-kappa), trained, {NAMES[row]}, L = {deepest}",
                    "TP6",
                    about(expected, 0.1),
                    _exponent(results, row, deepest, name, -1),
                )
            )
    for row in EXPONENTS:  # nothing but noise, whatever its size
        found.append(
            Finding(
                f"|h^(t+e)L - h^tL| ~ e^p, untrained, {NAMES[row]}, L = {deepest}",
                "theory section 5",
                about(0.5, 0.1),
                _exponent(results, row, deepest, "feature", 0),
            )
        )
    return found


def draw(results: Results) -> list[Panel]:
    """Diversity against e at the largest depth, and the exponents against L."""
    depths = results.sizes.depths
    panels = []
    for row, expected in EXPONENTS.items():
        lines = []
        for name, symbol in FIELDS.items():
            for time, when in ((-1, "trained"), (0, "untrained")):
                line = _curve(results, row, max(depths), name, time).line(
                    f"{symbol}, {when}", expected if time else None, fitted=False
                )
                lines.append(replace(line, slope=_exponent(results, row, max(depths), name, time)))
        title = f"{NAMES[row]}, L = {max(depths)}, fitted for {RANGE}"
        panels.append(Panel(title, "lag e in layer time", "rms of h^(t+e)L - h^tL, and of g's", lines))
    lines = []
    for row in EXPONENTS:
        for name, symbol in FIELDS.items():
            slopes = [_exponent(results, row, depth, name, -1) for depth in depths]
            values, bars = [slope.value for slope in slopes], [slope.half_width() for slope in slopes]
            lines.append(Line(f"{symbol}, {NAMES[row]}, trained", depths, values, bars))
    levels = [Level(f"1 - kappa = {value:g}", value, 0.1) for value in sorted(set(EXPONENTS.values()))]
    return [*panels, Panel("exponents", "depth L", "exponent in e", lines, levels, log_y=False)]


STUDY = Study(
    name="diversity",
    number=10,
    claim="|h^(t+e)L - h^tL| ~ e^(1-kappa) in trained networks, kappa = 1/2 at (1/2, 1/2) and 0 at (1, 0)",
    source="TP6 sections 5 and 7",
    setting="two classes of digits, TP6's block (ReLU, mean subtracted), hidden matrices trained by SGD; finite L, "
    f"lags {RANGE}, where TP6 takes L to infinity before e to 0",
    sizes={
        "smoke": Sizes(depths=(32, 64), width=32, seeds=3, samples=2, steps=3),
        "laptop": Sizes(),
        "accelerator": Sizes(depths=(128, 256, 512, 1024, 2048), width=2048, seeds=16, samples=8),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["depth"] + 128,
)
