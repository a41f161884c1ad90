"""Claim 3: what remains of the reuse of forward weights in the backward pass: at initialisation, after training, as n
grows, as L grows, and with T.

Three kinds of cells: networks, with the signed response a_l of every block (`observables.signed_response`: its sum over
blocks is the first-order effect of reuse on the output) and, tied less untied, what reuse does to outputs and loss;
limits, the coupled one less the decoupled one; and the first step of one sample, for which theory section 3 has the
closed form delta(T).

Chance gives every network responses of variance 1/n. It has mean zero and differs from seed to seed, so that the
mean of a_l^s a_l^t over pairs of different seeds is the square of the response and nothing else, and the same holds
for sums over blocks.

Block l responds because its input phi(h_{l-1}) has moved since initialisation, and what has moved is the sum of what
the blocks m < l add to the stream. So a_l is a sum over m, and distances l - m can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax._types import Array
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.runtime import threads
from nfd_jax.statistics import Sampled, bootstrap, fit_power, stacked
from nfd_jax.studies._findings import Finding, Prediction, about, at_least
from nfd_jax.studies._panels import Level, Line, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Results, Study

DIRECTIONS = ("forward", "backward")
GAPS = (("NFD", -1), ("TP6, DHT", 0))  # exponents of what coupled and decoupled limits differ by
RATES = {"identity": 1.0, "relu": 0.5}  # c of delta(T)
BINS = 16  # of the distance of blocks, over L


@dataclass(frozen=True)
class Sizes:
    """The grid: along depths at `width`, along widths at `depth`, along horizons at both."""

    depths: tuple[int, ...] = (4, 16, 64, 256)
    widths: tuple[int, ...] = (256, 1024, 4096, 32_768)
    horizons: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    steps: tuple[int, ...] = (0, 1, 3, 10)
    depth: int = 16
    width: int = 1024
    seeds: int = 6  # at least
    neurons: int = 2**15  # of all networks of one width: chance and outputs need more seeds where these are narrow
    particles: int = 1024
    samples: int = 4
    learning_rate: float = 1.0
    activations: tuple[str, ...] = ("identity", "relu")  # of the first step
    first_step_depth: int = 128
    first_step_particles: int = 8192
    first_step_seeds: int = 4


def cells(sizes: Sizes) -> list[Cell]:
    """Networks along L, n and T; limits along L and T; first steps along T."""
    if sizes.steps[0] != 0:
        raise ValueError(f"steps of study 'reuse' must start at 0, before training, got {sizes.steps}")
    if min(*sizes.depths, sizes.depth) < 2:
        raise ValueError(f"depths of study 'reuse' must be at least 2, for distances of blocks, got {sizes.depths}")
    shared = {"samples": sizes.samples, "steps": list(sizes.steps), "learning_rate": sizes.learning_rate}
    places = [
        *((depth, sizes.width, 1.0) for depth in sizes.depths),
        *((sizes.depth, width, 1.0) for width in sizes.widths),
        *((sizes.depth, sizes.width, horizon) for horizon in sizes.horizons),
    ]
    grid = []
    for depth, width, horizon in dict.fromkeys(places):
        network = {"kind": "networks", "depth": depth, "width": width, "horizon": horizon}
        network |= {"seeds": max(sizes.seeds, sizes.neurons // width)} | shared
        grid.append(network | {"backward": "tied", "distances": (width, horizon) == (sizes.width, 1.0)})
        if (depth, horizon) == (sizes.depth, 1.0):  # the gap between networks is measured along widths
            grid.append(network | {"backward": "untied", "distances": False})
    for depth, horizon in dict.fromkeys((depth, horizon) for depth, _, horizon in places):
        for closure in ("coupled", "decoupled"):
            limit = {"kind": "limits", "closure": closure, "depth": depth, "horizon": horizon}
            grid.append(
                limit | {"capacity": max(sizes.depths), "particles": sizes.particles, "seeds": sizes.seeds} | shared
            )
    for activation in sizes.activations:
        for horizon in sizes.horizons:
            first = {
                "kind": "first step",
                "activation": activation,
                "horizon": horizon,
                "depth": sizes.first_step_depth,
            }
            grid.append(first | {"particles": sizes.first_step_particles, "seeds": sizes.first_step_seeds})
    return grid


def measure(kind: str, **arguments: object) -> Arrays:
    """One cell of any kind."""
    return {"networks": _networks, "limits": _limits, "first step": _first_step}[kind](**arguments)


def _networks(
    backward: str,
    distances: bool,
    depth: int,
    width: int,
    horizon: float,
    seeds: int,
    samples: int,
    steps: list[int],
    learning_rate: float,
) -> Arrays:
    """Outputs and losses; of tied networks the signed responses, and where asked the forward one by distance."""
    observe = (_observe if distances else observables.signed_response) if backward == "tied" else None
    model, branch = nfd.ResNet(depth, horizon=horizon), math.sqrt(horizon / depth)

    def one(seed: int) -> tuple[np.ndarray, np.ndarray, Arrays]:
        run = nfd.solve_network(
            nfd.datasets.digits(samples),
            model,
            width=width,
            steps=max(steps),
            learning_rate=learning_rate,
            seeds=[seed],
            backward=backward,
            observe=observe,
            progress=False,
        )
        observed = {name: values[0] for name, values in run.observed.items()}
        return run.outputs[0], run.loss[0], _responses(observed, steps, branch, model) if observed else {}

    # four bases; features and gradients of every step leave the device, twice while they are put together
    arrays = 8 if distances else 4
    needed = arrays * (max(steps) + 1) * (depth + 1) * samples * width * jnp.zeros(()).dtype.itemsize
    seeds_of_place = own_seeds(seeds, backward, depth, width, horizon)
    outputs, loss, found = zip(*threads.each(one, seeds_of_place, threads.at_once(needed)), strict=True)
    record = dict(_at(steps, np.stack(outputs), np.stack(loss)))
    for name, (axes, _) in found[0].items():
        values = np.stack([each[name][1] for each in found])
        record[name] = (("seed", *axes), np.ascontiguousarray(values))  # as it is read back, sums in the same order
    return record


def _observe(sweep: Snapshot) -> dict[str, Array]:
    found = observables.signed_response(sweep) | observables.response_gradient(sweep)
    return found | {"features": sweep.features}


def _responses(observed: Mapping[str, np.ndarray], steps: list[int], branch: float, model: nfd.ResNet) -> Arrays:
    """The signed responses of one network and, where features were observed, the parts of the forward one:
    `by_distance` sums them over pairs of blocks of one distance 1 to L - 1, `neighbour` is what comes from the block
    below."""
    found = {}
    for direction in DIRECTIONS:
        values = branch * observed[f"{direction}_response"][steps].astype(np.float64)
        found[direction] = (("step", "sample", "block"), values.swapaxes(1, 2))
    if "features" not in observed:
        return found
    h, parts = observed["features"].astype(np.float64), []
    for step in steps:
        gradient = branch * observed["response_gradient"][step].astype(np.float64)
        parts.append(by_origin(h[step], h[0], gradient, model))
    split = np.stack(parts)
    distances = [np.trace(split, -distance, -2, -1) for distance in range(1, model.blocks)]
    neighbour = np.diagonal(split, -1, -2, -1)
    return found | {
        "by_distance": (("step", "sample", "distance"), np.stack(distances, axis=-1)),
        "neighbour": (("step", "sample", "upper_block"), neighbour),
    }


def by_origin(h: np.ndarray, start: np.ndarray, gradient: np.ndarray, model: nfd.ResNet) -> np.ndarray:
    """The forward response of block l by the blocks m below it whose increments have moved since initialisation:
    `(P, L, L)`, rows l, whose sums over m are the a_l.

    `h`, `start (L + 1, P, n)`: features now and before training; `gradient (L, P, n)`: of a_l in phi(h_{l-1}). The
    response to phi(h_{l-1}) before training is zero. What phi(h_{l-1}) has moved since is shared among the increments
    in proportion to what they have moved: with the slope of the chord nothing remains, where phi' at h would leave
    4 to 9 % of the sum over blocks (ReLU, steps 1 to 10, L = 4 to 64).
    """
    phi = model.structure.phi
    below, below_start = h[:-1], start[:-1]
    moved, rise = below - below_start, np.asarray(phi(jnp.asarray(below))) - np.asarray(phi(jnp.asarray(below_start)))
    slope = np.divide(rise, moved, out=np.zeros_like(moved), where=moved != 0)
    pulled, increments = (array.swapaxes(0, 1) for array in (slope * gradient, np.diff(h - start, axis=0)))
    return np.tril(pulled @ increments.swapaxes(1, 2) / h.shape[-1], -1)


def _limits(
    closure: str,
    depth: int,
    horizon: float,
    capacity: int,
    particles: int,
    seeds: int,
    samples: int,
    steps: list[int],
    learning_rate: float,
) -> Arrays:
    """Outputs and losses of a limit."""
    run = nfd.solve_limit(
        nfd.datasets.digits(samples),
        nfd.ResNet(depth, horizon=horizon),
        closure=closure,
        seeds=own_seeds(seeds, closure, depth, horizon),
        particles=particles,
        capacity=capacity,
        steps=max(steps),
        learning_rate=learning_rate,
        progress=False,
    )
    return _at(steps, run.outputs, run.loss)


def _at(steps: list[int], outputs: np.ndarray, loss: np.ndarray) -> Arrays:
    return {
        "outputs": (("seed", "step", "sample"), outputs[..., 0][:, steps]),
        "loss": (("seed", "step"), loss[:, steps]),
    }


def _first_step(activation: str, horizon: float, depth: int, particles: int, seeds: int) -> Arrays:
    """How far one small step moves the output of one sample with <h_0, h_0> = 1, in both closures."""
    task, rate = nfd.Task(np.ones((1, 1)), np.ones((1, 1))), 0.01
    moved = []
    for closure in ("coupled", "decoupled"):
        run = nfd.solve_limit(
            task,
            nfd.ResNet(depth, activation, horizon),
            closure=closure,
            seeds=own_seeds(seeds, activation, horizon),
            particles=particles,
            steps=1,
            learning_rate=rate,
            progress=False,
        )
        moved.append(run.outputs[:, 1, 0, 0] - run.outputs[:, 0, 0, 0])
    return {"change": (("closure", "seed"), np.array(moved) / rate)}


def squares(*responses: np.ndarray) -> Sampled:
    """The mean square of each array of responses `(seeds, ...)` without chance: the mean product of different seeds.

    Where chance outweighs the response, errors come out too large, up to twice.
    """
    flat = [values.reshape(len(values), -1) for values in responses]
    products = np.stack([values @ values.T / values.shape[1] for values in flat])

    def without_chance(chosen: np.ndarray) -> np.ndarray:
        times = np.bincount(chosen[:, 0].astype(int), minlength=len(chosen)).astype(float)
        times = times if times.max() < len(times) else np.ones(len(times))  # a resample of one seed has no pairs
        pairs = np.outer(times, times) * (1 - np.eye(len(times)))
        return (products * pairs).sum(axis=(1, 2)) / pairs.sum()

    return bootstrap(without_chance, np.arange(len(flat[0]))[:, None])


def coherence(responses: np.ndarray) -> Sampled:
    """(sum a)^2 / (L sum a^2) of responses `(seeds, samples, L)`, means over samples of both: 1 for equal responses,
    1 / L for independent signs."""
    blocks = responses.shape[-1]
    parts = squares(responses.sum(axis=-1), responses)
    return parts.map(lambda part: part[0] / (blocks**2 * part[1]))


def one_sign(responses: np.ndarray) -> Sampled:
    """Share of the blocks whose mean over seeds has the sign of the sum over blocks; what chance is left in the mean
    brings it nearer to one half."""

    def share(chosen: np.ndarray) -> float:
        along = chosen.mean(axis=0)
        along = along * along.sum(axis=-1, keepdims=True)
        return float(np.mean(along > 0)) if np.isfinite(along).all() else math.nan

    return bootstrap(share, responses)


def profile(by_distance: np.ndarray) -> Sampled:
    """Shares of the summed response by distance, which add up to 1, from `(seeds, samples, distances)`."""

    def shares(chosen: np.ndarray) -> np.ndarray:
        mean = chosen.mean(axis=0)
        total = mean.sum(axis=-1, keepdims=True)
        return (mean * total).sum(axis=0) / (total**2).sum()

    return bootstrap(shares, by_distance)


def _gap(one: np.ndarray, other: np.ndarray) -> Sampled:
    """Size of the difference of mean outputs, its own sampling variance taken off."""

    def size(a: np.ndarray, b: np.ndarray) -> float:
        noise = a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b)
        square = np.mean((a.mean(axis=0) - b.mean(axis=0)) ** 2 - noise)
        return np.sign(square) * np.sqrt(np.abs(square))

    return bootstrap(size, one, other)


def _along(results: Results, axis: str) -> list[tuple[float, dict[str, int | float]]]:
    """The places along one axis: its values, and the arguments of the cells there."""
    sizes = results.sizes
    if axis == "depth":
        return [(depth, {"depth": depth, "width": sizes.width, "horizon": 1.0}) for depth in sizes.depths]
    if axis == "width":
        return [(width, {"depth": sizes.depth, "width": width, "horizon": 1.0}) for width in sizes.widths]
    return [(time, {"depth": sizes.depth, "width": sizes.width, "horizon": time}) for time in sizes.horizons]


def _along_of(
    results: Results, axis: str, name: str, step: int, measure: Callable[[np.ndarray], Sampled]
) -> tuple[list, Sampled]:
    """What `measure` makes of the records `name` of tied networks at a step, `(seeds, samples, ...)`, along an axis."""
    places, at = _along(results, axis), results.sizes.steps.index(step)
    networks = [results.one(kind="networks", backward="tied", **arguments) for _, arguments in places]
    return [size for size, _ in places], stacked([measure(each[name].values[:, at]) for each in networks])


def _block(responses: np.ndarray) -> Sampled:
    """Mean over blocks of a^2."""
    return squares(responses).map(lambda part: part[0])


def _sum_of_squares(responses: np.ndarray) -> Sampled:
    return _block(responses).map(lambda part: responses.shape[-1] * part)


def _square_of_sum(responses: np.ndarray) -> Sampled:
    return _block(responses.sum(axis=-1))


def _raw(responses: np.ndarray) -> Sampled:
    """Mean square of a block of one network, chance included."""
    return bootstrap(np.mean, np.mean(responses**2, axis=(1, 2)))


def _up_to(fraction: float) -> Callable[[np.ndarray], Sampled]:
    """Share of the response from distances up to this fraction of L, or at 0 from the block below alone."""

    def share(by_distance: np.ndarray) -> Sampled:
        furthest = max(1, int(fraction * (by_distance.shape[-1] + 1)))
        return profile(by_distance).map(lambda shares: shares[:furthest].sum())

    return share


def _gaps_along(results: Results, axis: str, name: str, step: int) -> tuple[list, Sampled]:
    """Coupled less decoupled limits, or along widths tied less untied networks."""
    places, found, at = _along(results, axis), [], results.sizes.steps.index(step)
    for _, arguments in places:
        if axis == "width":
            pair = [results.one(kind="networks", backward=backward, **arguments) for backward in ("tied", "untied")]
        else:
            where = {"depth": arguments["depth"], "horizon": arguments["horizon"]}
            pair = [results.one(kind="limits", closure=closure, **where) for closure in ("coupled", "decoupled")]
        one, other = (kept[name].values[:, at] for kept in pair)
        found.append(_gap(*(values.reshape(len(values), -1) for values in (one, other))))
    return [size for size, _ in places], stacked(found)


def _deficits(results: Results, activation: str) -> Sampled:
    found = []
    for horizon in results.sizes.horizons:
        coupled, decoupled = results.one(kind="first step", activation=activation, horizon=horizon).change.values
        pairs = np.stack([coupled, decoupled], axis=1)  # of one noise
        found.append(bootstrap(lambda pairs: 1 - pairs[:, 1].mean() / pairs[:, 0].mean(), pairs))
    return stacked(found)


def _delta(horizon: float, activation: str) -> float:
    """The closed form of theory section 3."""
    rate = RATES[activation]
    return 1 - (1 - math.exp(-rate * horizon)) / (rate * horizon)


def conclude(results: Results) -> list[Finding]:
    """Exponents in L, n and T beside both published statements, and delta(T)."""
    return [*_at_start(results), *_against_depth(results), *_against_width_and_time(results), *_closed_form(results)]


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


def _exponents(quantity: str, readings: Readings, measured: tuple[list, Sampled]) -> list[Finding]:
    law = fit_power(*measured)
    return [Finding(quantity, source, predicted, law) for source, predicted in readings]


def _at_start(results: Results) -> list[Finding]:
    start, quantity = results.sizes.steps[0], "share at init, mean square response"
    across = _along_of(results, "width", "backward", start, _raw)
    depths, found = _along_of(results, "depth", "backward", start, _raw)
    per_image = depths, found.map(lambda square: square * np.array(depths))  # of whose square h has the share T / L
    return [
        *_exponents(f"{quantity} ~ n^p", (("NFD", about(-1, 0.2)),), across),
        *_exponents(f"{quantity} ~ L^p", (("NFD", about(0, 0.2)),), per_image),
    ]


def _against_depth(results: Results) -> list[Finding]:
    """Every quantity beside the exponents that the readings of published statements give it."""
    steps, found = results.sizes.steps, []
    ends = dict.fromkeys((steps[1], steps[-1]))
    for direction, step in [*(("forward", step) for step in ends), ("backward", steps[-1])]:
        where = f"~ L^p, {direction}, step {step}"
        for quantity, measure, readings in (
            ("mean square of a_l", _block, BLOCK),
            ("sum of a_l^2", _sum_of_squares, SQUARES),
            ("(sum of a_l)^2", _square_of_sum, SUM),
            ("coherence (sum a)^2 / (L sum a^2)", coherence, COHERENCE),
        ):
            along = _along_of(results, "depth", direction, step, measure)
            found += _exponents(f"{quantity} {where}", readings, along)
    for step in ends:
        _, shares = _along_of(results, "depth", "forward", step, one_sign)
        quantity = f"share of blocks of one sign, forward, step {step}, L = {results.sizes.depths[-1]}"
        found.append(Finding(quantity, "blocks of one sign", at_least(0.9), shares.estimate(-1)))
        from_below = _along_of(results, "depth", "neighbour", step, _block)
        near = _along_of(results, "depth", "by_distance", step, _up_to(0.25))
        found += _exponents(f"mean square of a_l from block l - 1 ~ L^p, step {step}", NEIGHBOUR, from_below)
        counting = (("all blocks m < l respond", about(0, 0.25)),)
        found += _exponents(f"share of response from l - m <= L / 4 ~ L^p, step {step}", counting, near)
    for name, label in (("outputs", "f"), ("loss", "loss")):
        for step in steps[1:]:
            readings = tuple((source, about(exponent, 0.4)) for source, exponent in GAPS)
            gap = _gaps_along(results, "depth", name, step)
            found += _exponents(f"coupled - decoupled {label} ~ L^p, step {step}", readings, gap)
    return found


def _against_width_and_time(results: Results) -> list[Finding]:
    first, last = results.sizes.steps[1], results.sizes.steps[-1]
    survives = (("NFD, TP6: survives n", about(0, 0.25)),)
    total = _along_of(results, "width", "forward", last, _square_of_sum)
    gap = _gaps_along(results, "width", "outputs", last)
    in_time = _gaps_along(results, "horizon", "outputs", first)
    return [
        *_exponents(f"(sum of a_l)^2 ~ n^p, forward, step {last}", survives, total),
        *_exponents(f"tied - untied f ~ n^p, step {last}", survives, gap),
        *_exponents(
            f"coupled - decoupled f ~ T^p, step {first}", (("delta(T) K(T), small T", about(2, 0.5)),), in_time
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
    steps, panels = results.sizes.steps, [*_panels_of_responses(results)]
    lines = []
    for step in steps[1:]:
        depths, found = _gaps_along(results, "depth", "outputs", step)
        lines.append(
            Line.of(f"step {step}", depths, found, fit_power(depths, found), -1.0 if step == steps[1] else None)
        )
    panels.append(Panel("coupled - decoupled limit (dotted: NFD)", "depth L", "rms difference of f", lines))
    start = _along_of(results, "width", "backward", steps[0], _raw)
    total = _along_of(results, "width", "forward", steps[-1], _square_of_sum)
    gap = _gaps_along(results, "width", "outputs", steps[-1])
    lines = [
        Line.of("mean square of a_l at init (chance)", *start, fit_power(*start), -1.0),
        Line.of(f"(sum of a_l)^2, step {steps[-1]}", *total, fit_power(*total)),
        Line.of(f"tied - untied f, step {steps[-1]}", *gap, fit_power(*gap)),
    ]
    panels.append(Panel("against width", "width n", "", lines))
    horizons, gap = _gaps_along(results, "horizon", "outputs", steps[1])
    lines = [Line.of(f"coupled - decoupled f, step {steps[1]}", horizons, gap, fit_power(horizons, gap))]
    total = _along_of(results, "horizon", "forward", steps[1], _square_of_sum)
    lines.append(Line.of(f"(sum of a_l)^2, step {steps[1]}", *total, fit_power(*total)))
    panels.append(Panel("against layer time", "horizon T", "", lines))
    lines, fine = [], np.linspace(min(horizons), max(horizons), 40)
    for activation in results.sizes.activations:
        lines.append(Line(f"delta(T), {activation}", fine, [_delta(time, activation) for time in fine], curve=True))
        found = _deficits(results, activation)
        lines.append(Line(f"measured, {activation}", horizons, found.values, found.half_widths, joined=False))
    zero = Level("NFD at infinite depth", 0.0)
    panels.append(
        Panel("first step, one sample", "horizon T", "relative deficit of f_1 - f_0", lines, [zero], False, False)
    )
    return panels


def _panels_of_responses(results: Results) -> list[Panel]:
    """The signed responses against L: squares, coherence, and distance."""
    steps, ends = results.sizes.steps, dict.fromkeys((results.sizes.steps[1], results.sizes.steps[-1]))

    def line(name: str, step: int, measure: Callable, label: str, predicted: float | None = None) -> Line:
        found = _along_of(results, "depth", name, step, measure)
        return Line.of(label, *found, fit_power(*found), predicted)

    guides = [-4.0, *(None for _ in steps[2:])]
    blocks = [line("forward", step, _block, f"step {step}", g) for step, g in zip(steps[1:], guides, strict=True)]
    blocks += [line("backward", steps[-1], _block, f"backward, step {steps[-1]}")]
    sums = [line("forward", step, _square_of_sum, f"square of sum, step {step}") for step in ends]
    sums += [line("forward", step, _sum_of_squares, f"sum of squares, step {step}") for step in ends]
    signs = []
    for direction in DIRECTIONS:
        found = _along_of(results, "depth", direction, steps[-1], coherence)
        signs.append(Line.of(f"(sum a)^2 / (L sum a^2), {direction}", *found))
    found = _along_of(results, "depth", "forward", steps[-1], one_sign)
    signs.append(Line.of("share of blocks of one sign", *found))
    depths = list(results.sizes.depths)
    signs.append(Line("1 / L, random signs", depths, [1 / depth for depth in depths], curve=True))
    near = [
        line("forward", steps[-1], _block, "all blocks m < l"),
        line("neighbour", steps[-1], _block, "block l - 1 alone"),
    ]
    return [
        Panel("mean square of a_l (dotted: |a_l| ~ L^-2)", "depth L", "", blocks),
        Panel("a_l over all blocks", "depth L", "", sums),
        Panel(f"signs, step {steps[-1]}", "depth L", "", signs, log_y=False),
        Panel(f"mean square of a_l by origin, step {steps[-1]}", "depth L", "", near),
        _by_distance(results, steps[-1]),
    ]


def _by_distance(results: Results, step: int) -> Panel:
    """Density of the response over (l - m) / L: one curve for all L where all blocks before a block respond."""
    lines, at = [], results.sizes.steps.index(step)
    for depth, arguments in _along(results, "depth"):
        record = results.one(kind="networks", backward="tied", **arguments)
        together = max(1, int(depth) // BINS)
        starts = range(0, int(depth) - 1, together)
        places = [float(np.mean(range(1, int(depth))[start : start + together])) / depth for start in starts]
        density = profile(record.by_distance.values[:, at]).map(
            lambda shares, starts=starts, together=together, depth=depth: np.array(
                [depth * shares[start : start + together].mean() for start in starts]
            )
        )
        lines.append(Line.of(f"L = {depth}", places, density))
    return Panel(
        f"response by distance, step {step}", "(l - m) / L", "share per unit of distance", lines, (), False, False
    )


STUDY = Study(
    name="reuse",
    number=3,
    claim="reuse of weights is 1/n at init, uniformly in L; after training NFD has it O(L^-2), of what is not known"
    " here, so that it vanishes with depth, where TP6 and DHT keep it",
    source="NFD, TP6, DHT",
    setting="two classes of digits, ReLU, depth-muP, hidden matrices trained by SGD; a_l, the first-order effect of the"
    " response of block l on f, in tied networks by revealed matrices, squares as products of different seeds; gaps"
    " between the limits; delta(T) of one sample at a small rate",
    sizes={
        "smoke": Sizes(
            depths=(2, 4),
            widths=(32, 64),
            horizons=(0.5, 1.0),
            steps=(0, 1),
            depth=2,
            width=32,
            seeds=3,
            neurons=128,
            particles=256,
            samples=2,
            activations=("identity",),
            first_step_depth=64,
            first_step_particles=256,
            first_step_seeds=2,
        ),
        "laptop": Sizes(),
        "accelerator": Sizes(
            depths=(4, 16, 64, 256),
            widths=(256, 1024, 4096, 32_768, 262_144),
            width=4096,
            seeds=16,
            neurons=2**17,
            particles=16_384,
            first_step_depth=512,
            first_step_particles=65_536,
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["seeds"] * cell["depth"] + 50,
    least={"depths": 2, "widths": 2, "horizons": 2, "steps": 2},
)
