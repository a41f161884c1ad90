"""What follows from the cells of study `reuse`: exponents in L, n and T beside published statements, and panels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nfd_jax.statistics import Sampled, bootstrap, stacked
from nfd_jax.studies import _responses as of
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, Prediction, about, at_least
from nfd_jax.studies._panels import Level, Line, Panel
from nfd_jax.studies._study import Results

DIRECTIONS = ("forward", "backward")
GAPS = (("NFD", -1), ("TP6, DHT", 0))  # exponents of what coupled and decoupled limits differ by
RATES = {"identity": 1.0, "relu": 0.5}  # c of delta(T)
BINS = 16  # of the distance of blocks, over L

# The exponents in L of every quantity. What NFD's L^-2 refers to is not known, so each reading has a line where it can
# be told; TP6 and DHT keep a response of one sign of L^-1 a block. Allowances: below half of what readings differ by.
Readings = tuple[tuple[str, Prediction], ...]
BLOCK: Readings = (
    ("NFD, if |a_l| ~ L^-2", about(-4, 0.8)),
    ("NFD, if a_l^2 ~ L^-2; TP6, DHT", about(-2, 0.8)),
)
SQUARES: Readings = (
    ("NFD, if sum a_l^2 ~ L^-2", about(-2, 0.4)),
    ("NFD, if a_l^2 ~ L^-2; TP6, DHT", about(-1, 0.4)),
)
SUM: Readings = (
    ("NFD, if |sum a_l| ~ L^-2", about(-4, 0.8)),
    ("NFD, if (sum a_l)^2 ~ L^-2", about(-2, 0.8)),
    ("TP6, DHT: survives", about(0, 0.8)),
)
COHERENCE: Readings = (("blocks of one sign", about(0, 0.4)), ("blocks of random signs", about(-1, 0.4)))
NEIGHBOUR: Readings = (
    ("NFD, if |a_l| ~ L^-2 by one block", about(-4, 0.8)),
    ("NFD, if a_l^2 ~ L^-2 by one block", about(-2, 0.8)),
)


def places(results: Results, axis: str) -> dict[Any, dict[str, int | float]]:
    """The arguments of the cells along an axis, by its values."""
    sizes = results.sizes
    middle = {"depth": sizes.depth, "width": sizes.width, "horizon": 1.0}
    return {value: middle | {axis: value} for value in getattr(sizes, f"{axis}s")}


def along(results: Results, axis: str, name: str, step: int, measure: Callable[[np.ndarray], Sampled]) -> Curve:
    """What `measure` makes of the records `name` of tied networks at a step, `(seeds, samples, ...)`, along an axis."""
    at, where = results.sizes.steps.index(step), places(results, axis)
    networks = [results.one(kind="networks", backward="tied", **arguments) for arguments in where.values()]
    return Curve.of(list(where), [measure(each[name].values[:, at]) for each in networks])


def gaps(results: Results, axis: str, name: str, step: int) -> Curve:
    """Coupled less decoupled limits, or along widths tied less untied networks."""
    at, where, found = results.sizes.steps.index(step), places(results, axis), []
    for arguments in where.values():
        if axis == "width":
            pair = [results.one(kind="networks", backward=backward, **arguments) for backward in ("tied", "untied")]
        else:
            of_limits = {name: value for name, value in arguments.items() if name != "width"}
            pair = [results.one(kind="limits", closure=closure, **of_limits) for closure in ("coupled", "decoupled")]
        found.append(_gap(*(each[name].values[:, at].reshape(each.sizes["seed"], -1) for each in pair)))
    return Curve.of(list(where), found)


def _gap(one: np.ndarray, other: np.ndarray) -> Sampled:
    """Size of the difference of mean outputs, its own sampling variance taken off."""

    def size(a: np.ndarray, b: np.ndarray) -> float:
        noise = a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b)
        square = np.mean((a.mean(axis=0) - b.mean(axis=0)) ** 2 - noise)
        return np.sign(square) * np.sqrt(np.abs(square))

    return bootstrap(size, one, other)


def _up_to(fraction: float) -> Callable[[np.ndarray], Sampled]:
    """Share of the response from distances up to this fraction of L, or at 0 from the block below alone."""

    def share(by_distance: np.ndarray) -> Sampled:
        furthest = max(1, int(fraction * (by_distance.shape[-1] + 1)))
        return of.profile(by_distance).map(lambda shares: shares[:furthest].sum())

    return share


def _deficits(results: Results, activation: str) -> Sampled:
    found = []
    for horizon in results.sizes.horizons:
        pairs = results.one(kind="first step", activation=activation, horizon=horizon).change.values.T  # of one noise
        found.append(bootstrap(lambda pairs: 1 - pairs[:, 1].mean() / pairs[:, 0].mean(), pairs))
    return stacked(found)


def _delta(horizon: float, activation: str) -> float:
    """The closed form of theory section 3."""
    rate = RATES[activation]
    return 1 - (1 - math.exp(-rate * horizon)) / (rate * horizon)


def conclude(results: Results) -> list[Finding]:
    """Exponents in L, n and T beside both published statements, and delta(T)."""
    return [
        *_at_start(results),
        *_responses_against_depth(results),
        *_origins_against_depth(results),
        *_against_width_and_time(results),
        *_closed_form(results),
    ]


def _at_start(results: Results) -> list[Finding]:
    start, quantity = results.sizes.steps[0], "share at init, mean square response"
    in_depth = along(results, "depth", "backward", start, of.with_chance)
    # per image, of whose square h has the share T / L
    per_image = in_depth.map(lambda square: square * np.array(in_depth.sizes))
    return [
        *along(results, "width", "backward", start, of.with_chance).findings(
            f"{quantity} ~ n^p", ("NFD", about(-1, 0.2))
        ),
        *per_image.findings(f"{quantity} ~ L^p", ("NFD", about(0, 0.2))),
    ]


def _responses_against_depth(results: Results) -> list[Finding]:
    """Every quantity beside the exponents that the readings of published statements give it."""
    steps = results.sizes.steps
    first_and_last = dict.fromkeys((steps[1], steps[-1]))
    return [
        finding
        for direction, step in [*(("forward", step) for step in first_and_last), ("backward", steps[-1])]
        for quantity, measure, readings in (
            ("mean square of a_l", of.of_a_block, BLOCK),
            ("sum of a_l^2", of.sum_of_squares, SQUARES),
            ("(sum of a_l)^2", of.square_of_sum, SUM),
            ("coherence (sum a)^2 / (L sum a^2)", of.coherence, COHERENCE),
        )
        for finding in along(results, "depth", direction, step, measure).findings(
            f"{quantity} ~ L^p, {direction}, step {step}", *readings
        )
    ]


def _origins_against_depth(results: Results) -> list[Finding]:
    """Signs of blocks, parts of the response by distance, and what the closures differ by."""
    steps, found = results.sizes.steps, []
    for step in dict.fromkeys((steps[1], steps[-1])):
        shares = along(results, "depth", "forward", step, of.one_sign).values
        quantity = f"share of blocks of one sign, forward, step {step}, L = {results.sizes.depths[-1]}"
        found.append(Finding(quantity, "blocks of one sign", at_least(0.9), shares.estimate(-1)))
        found += along(results, "depth", "neighbour", step, of.of_a_block).findings(
            f"mean square of a_l from block l - 1 ~ L^p, step {step}", *NEIGHBOUR
        )
        found += along(results, "depth", "by_distance", step, _up_to(0.25)).findings(
            f"share of response from l - m <= L / 4 ~ L^p, step {step}", ("all blocks m < l respond", about(0, 0.25))
        )
    for name, label in (("outputs", "f"), ("loss", "loss")):
        for step in steps[1:]:
            readings = [(source, about(exponent, 0.4)) for source, exponent in GAPS]
            quantity = f"coupled - decoupled {label} ~ L^p, step {step}"
            found += gaps(results, "depth", name, step).findings(quantity, *readings)
    return found


def _against_width_and_time(results: Results) -> list[Finding]:
    first, last = results.sizes.steps[1], results.sizes.steps[-1]
    survives = ("NFD, TP6: survives n", about(0, 0.25))
    total = along(results, "width", "forward", last, of.square_of_sum)
    return [
        *total.findings(f"(sum of a_l)^2 ~ n^p, forward, step {last}", survives),
        *gaps(results, "width", "outputs", last).findings(f"tied - untied f ~ n^p, step {last}", survives),
        *gaps(results, "horizon", "outputs", first).findings(
            f"coupled - decoupled f ~ T^p, step {first}", ("delta(T) K(T), small T", about(2, 0.5))
        ),
    ]


def _closed_form(results: Results) -> list[Finding]:
    found = []
    for activation in results.sizes.activations:
        deficits = _deficits(results, activation)
        for place, horizon in enumerate(results.sizes.horizons):
            predicted = about(_delta(horizon, activation), 0.02)
            quantity = f"relative deficit of the first step, {activation}, T = {horizon:g}"
            found.append(Finding(quantity, "delta(T), theory 3", predicted, deficits.estimate(place)))
    return found


def draw(results: Results) -> list[Panel]:
    """Responses and gaps against L, n and T."""
    start, first, *_ = steps = results.sizes.steps
    last = steps[-1]
    in_depth = [
        gaps(results, "depth", "outputs", step).line(f"step {step}", -1.0 if step == first else None)
        for step in steps[1:]
    ]
    in_width = [
        along(results, "width", "backward", start, of.with_chance).line("mean square of a_l at init (chance)", -1.0),
        along(results, "width", "forward", last, of.square_of_sum).line(f"(sum of a_l)^2, step {last}"),
        gaps(results, "width", "outputs", last).line(f"tied - untied f, step {last}"),
    ]
    in_time = [
        gaps(results, "horizon", "outputs", first).line(f"coupled - decoupled f, step {first}"),
        along(results, "horizon", "forward", first, of.square_of_sum).line(f"(sum of a_l)^2, step {first}"),
    ]
    return [
        *_panels_of_responses(results),
        Panel("coupled - decoupled limit (dotted: NFD)", "depth L", "rms difference of f", in_depth),
        Panel("against width", "width n", "", in_width),
        Panel("against layer time", "horizon T", "", in_time),
        _first_step(results),
    ]


def _first_step(results: Results) -> Panel:
    """The deficit beside its closed form."""
    lines, horizons = [], results.sizes.horizons
    fine = np.linspace(min(horizons), max(horizons), 40)
    for activation in results.sizes.activations:
        lines.append(Line(f"delta(T), {activation}", fine, [_delta(time, activation) for time in fine], curve=True))
        found = _deficits(results, activation)
        lines.append(Line(f"measured, {activation}", horizons, found.values, found.half_widths, joined=False))
    zero = Level("NFD at infinite depth", 0.0)
    return Panel("first step, one sample", "horizon T", "relative deficit of f_1 - f_0", lines, [zero], False, False)


def _panels_of_responses(results: Results) -> list[Panel]:
    """The signed responses against L: squares, coherence, and distance."""
    steps, last = results.sizes.steps, results.sizes.steps[-1]
    first_and_last, depths = dict.fromkeys((steps[1], last)), list(results.sizes.depths)

    def curve(name: str, step: int, measure: Callable[[np.ndarray], Sampled]) -> Curve:
        return along(results, "depth", name, step, measure)

    guides = [-4.0, *(None for _ in steps[2:])]
    blocks = [
        curve("forward", step, of.of_a_block).line(f"step {step}", guide)
        for step, guide in zip(steps[1:], guides, strict=True)
    ]
    blocks.append(curve("backward", last, of.of_a_block).line(f"backward, step {last}"))
    sums = [
        curve("forward", step, measure).line(f"{label}, step {step}")
        for measure, label in ((of.square_of_sum, "square of sum"), (of.sum_of_squares, "sum of squares"))
        for step in first_and_last
    ]
    signs = [
        *(
            curve(direction, last, of.coherence).line(f"(sum a)^2 / (L sum a^2), {direction}", fitted=False)
            for direction in DIRECTIONS
        ),
        curve("forward", last, of.one_sign).line("share of blocks of one sign", fitted=False),
        Line("1 / L, random signs", depths, [1 / depth for depth in depths], curve=True),
    ]
    near = [
        curve("forward", last, of.of_a_block).line("all blocks m < l"),
        curve("neighbour", last, of.of_a_block).line("block l - 1 alone"),
    ]
    return [
        Panel("mean square of a_l (dotted: |a_l| ~ L^-2)", "depth L", "", blocks),
        Panel("a_l over all blocks", "depth L", "", sums),
        Panel(f"signs, step {last}", "depth L", "", signs, log_y=False),
        Panel(f"mean square of a_l by origin, step {last}", "depth L", "", near),
        _by_distance(results, last),
    ]


def _by_distance(results: Results, step: int) -> Panel:
    """Density of the response over (l - m) / L: one curve for all L where all blocks before a block respond."""
    lines, at = [], results.sizes.steps.index(step)
    for depth, arguments in places(results, "depth").items():
        record = results.one(kind="networks", backward="tied", **arguments)
        together = max(1, depth // BINS)
        starts = range(0, depth - 1, together)
        middles = [float(np.mean(range(1, depth)[start : start + together])) / depth for start in starts]
        density = of.profile(record.by_distance.values[:, at]).map(
            lambda shares, starts=starts, together=together, depth=depth: np.array(
                [depth * shares[start : start + together].mean() for start in starts]
            )
        )
        lines.append(Line.of(f"L = {depth}", middles, density))
    return Panel(
        f"response by distance, step {step}", "(l - m) / L", "share per unit of distance", lines, (), False, False
    )
