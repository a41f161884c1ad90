"""Claim 3: what remains of the reuse of forward weights in the backward pass: at initialisation, after training, as n
grows, as L grows, and with T.

Three kinds of cells: networks, with the responses block by block and summed (`observables.reuse`; chance, which is all
that untied networks have, is taken off) and, tied less untied, what reuse does to outputs and loss; limits, the coupled
one less the decoupled one; and the first step of one sample, for which theory section 3 has the closed form delta(T).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import nfd_jax as nfd
from nfd_jax.statistics import Sampled, bootstrap, fit_power, stacked
from nfd_jax.studies.findings import Finding, about
from nfd_jax.studies.limits import own_seeds, solutions
from nfd_jax.studies.panels import Level, Line, Panel
from nfd_jax.studies.study import Arrays, Cell, Results, Study

DIRECTIONS = ("forward", "backward")
SHRINKING = "NFD: per block L^-2"
SURVIVING = "TP6, DHT: survives"
RATES = {"identity": 1.0, "relu": 0.5}  # c of delta(T)


@dataclass(frozen=True)
class Sizes:
    """The grid: along depths at `width`, along widths at `depth`, along horizons at both."""

    depths: tuple[int, ...] = (4, 16, 64, 256)
    widths: tuple[int, ...] = (256, 1024, 4096, 32_768)
    horizons: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    steps: tuple[int, ...] = (0, 1, 3, 10)
    depth: int = 16
    width: int = 2048
    seeds: int = 6
    neurons: int = 2**15  # of all networks of one width whose outputs are compared
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
    shared = {"samples": sizes.samples, "steps": list(sizes.steps), "learning_rate": sizes.learning_rate}
    places = [
        *((depth, sizes.width, 1.0) for depth in sizes.depths),
        *((sizes.depth, width, 1.0) for width in sizes.widths),
        *((sizes.depth, sizes.width, horizon) for horizon in sizes.horizons),
    ]
    grid = []
    for depth, width, horizon in dict.fromkeys(places):
        # outputs need more seeds where networks are narrow
        network = {"kind": "networks", "depth": depth, "width": width, "horizon": horizon}
        network |= {"seeds": max(sizes.seeds, sizes.neurons // width)} | shared
        grid += [network | {"backward": backward} for backward in ("tied", "untied")]
    for depth, horizon in dict.fromkeys((depth, horizon) for depth, _, horizon in places):
        for closure in ("coupled", "decoupled"):
            limit = {"kind": "limits", "closure": closure, "depth": depth, "horizon": horizon}
            grid.append(
                limit | {"room": max(sizes.depths), "particles": sizes.particles, "seeds": sizes.seeds} | shared
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
    depth: int,
    width: int,
    horizon: float,
    seeds: int,
    samples: int,
    steps: list[int],
    learning_rate: float,
) -> Arrays:
    """Inner products over pairs of seeds of the responses, mean over blocks and samples; their sums over blocks;
    outputs and losses."""
    run = nfd.solve_network(
        nfd.datasets.digits(samples),
        nfd.ResNet(depth, horizon=horizon),
        width=width,
        steps=max(steps) + 1,
        learning_rate=learning_rate,
        seeds=own_seeds(seeds, backward, depth, width, horizon),
        backward=backward,
        observe=nfd.observables.reuse,
        progress=False,
    )
    branch, found = math.sqrt(horizon / depth), dict(_at(steps, run.outputs, run.loss))
    for direction in DIRECTIONS:
        responses = branch * run.observed[f"{direction}_reuse"][:, steps].astype(np.float64)
        pairs = np.einsum("sklmp,tklmp->kst", responses, responses) / (depth * samples)
        sums = branch * run.observed[f"{direction}_reuse_sum"][:, steps]
        found[f"{direction}_pairs"] = (("step", "seed", "other"), pairs)
        found[f"{direction}_sum"] = (("seed", "step"), np.sqrt(np.mean(sums**2, axis=-1)))
    return found


def _limits(
    closure: str,
    depth: int,
    horizon: float,
    room: int,
    particles: int,
    seeds: int,
    samples: int,
    steps: list[int],
    learning_rate: float,
) -> Arrays:
    """Outputs and losses of a limit."""
    runs = solutions(
        nfd.datasets.digits(samples),
        nfd.ResNet(depth, horizon=horizon),
        closure=closure,
        seeds=own_seeds(seeds, closure, depth, horizon),
        particles=particles,
        room=room,
        steps=max(steps),
        learning_rate=learning_rate,
    )
    return _at(steps, np.stack([run.outputs for (run,) in runs]), np.stack([run.loss for (run,) in runs]))


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
        runs = solutions(
            task,
            nfd.ResNet(depth, activation, horizon),
            closure=closure,
            seeds=own_seeds(seeds, activation, horizon),
            particles=particles,
            room=depth,
            steps=1,
            learning_rate=rate,
        )
        moved.append([run.outputs[1, 0, 0] - run.outputs[0, 0, 0] for (run,) in runs])
    return {"change": (("closure", "seed"), np.array(moved) / rate)}


def _per_block(pairs: np.ndarray) -> Sampled:
    """Size of the mean response of a block, from products of different seeds, in which chance cancels."""

    def size(chosen: np.ndarray) -> float:
        index = chosen[:, 0].astype(int)
        different = index[:, None] != index[None, :]
        products = pairs[np.ix_(index, index)]
        return float(np.mean(products[different]) if different.any() else np.mean(products))

    square = bootstrap(size, np.arange(len(pairs))[:, None])
    return square.map(lambda value: np.sign(value) * np.sqrt(np.abs(value)))


def _raw(pairs: np.ndarray) -> Sampled:
    """Mean square response of a block of one network, chance included."""
    return bootstrap(np.mean, np.diag(pairs))


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


def _responses_along(results: Results, axis: str, what: str, direction: str, step: int) -> tuple[list, Sampled]:
    places, found = _along(results, axis), []
    for _, arguments in places:
        kept, at = results.one(kind="networks", backward="tied", **arguments), results.sizes.steps.index(step)
        if what == "sum":
            chance = results.one(kind="networks", backward="untied", **arguments)
            sums = (record[f"{direction}_sum"].values[:, at] for record in (kept, chance))
            found.append(bootstrap(_beyond, *sums))
        else:
            found.append((_per_block if what == "block" else _raw)(kept[f"{direction}_pairs"].values[at]))
    return [size for size, _ in places], stacked(found)


def _beyond(tied: np.ndarray, untied: np.ndarray) -> float:
    """Size of what tied networks have beyond chance, which is all that untied ones have."""
    square = np.mean(tied**2) - np.mean(untied**2)
    return float(np.sign(square) * np.sqrt(np.abs(square)))


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


def _exponent(
    quantity: str, source: str, value: float, measured: tuple[list, Sampled], allowance: float = 0.4
) -> Finding:
    """`allowance`: less than half of what the published statements differ by."""
    return Finding(quantity, source, about(value, allowance), fit_power(*measured))


def _at_start(results: Results) -> list[Finding]:
    start = results.sizes.steps[0]
    depths, responses = _responses_along(results, "depth", "raw", "backward", start)
    # per block: its share of h is T / L of this
    per_image = depths, responses.map(lambda square: square * np.array(depths))
    quantity = "share at init, mean square response"
    across = _responses_along(results, "width", "raw", "backward", start)
    return [
        _exponent(f"{quantity} ~ n^p", "NFD", -1, across, 0.2),
        _exponent(f"{quantity} ~ L^p", "NFD", 0, per_image, 0.2),
    ]


def _against_depth(results: Results) -> list[Finding]:
    """Every quantity beside the exponents that the published statements give it."""
    steps, measured = results.sizes.steps, []
    directions = [("backward", step) for step in steps[1:]] + [("forward", steps[-1])]
    for direction, step in directions:
        block = _responses_along(results, "depth", "block", direction, step)
        total = _responses_along(results, "depth", "sum", direction, step)
        measured += [(f"{direction} response per block ~ L^p, step {step}", block, (-2, -1))]
        measured += [(f"{direction} response summed ~ L^p, step {step}", total, (-1, 0))]
    for name, label in (("outputs", "f"), ("loss", "loss")):
        for step in steps[1:]:
            gap = _gaps_along(results, "depth", name, step)
            measured += [(f"coupled - decoupled {label} ~ L^p, step {step}", gap, (-1, 0))]
    sources = (SHRINKING, SURVIVING)
    return [
        _exponent(quantity, source, exponent, found)
        for quantity, found, exponents in measured
        for source, exponent in zip(sources, exponents, strict=True)
    ]


def _against_width_and_time(results: Results) -> list[Finding]:
    first, last, both = results.sizes.steps[1], results.sizes.steps[-1], "NFD, TP6: survives n"
    summed = _responses_along(results, "width", "sum", "backward", last)
    gap = _gaps_along(results, "width", "outputs", last)
    in_time = _gaps_along(results, "horizon", "outputs", first)
    return [
        _exponent(f"backward response summed ~ n^p, step {last}", both, 0, summed, 0.25),
        _exponent(f"tied - untied f ~ n^p, step {last}", both, 0, gap, 0.25),
        _exponent(f"coupled - decoupled f ~ T^p, step {first}", "delta(T) K(T), small T", 2, in_time, 0.5),
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
    steps, panels = results.sizes.steps, []
    for what, title, predicted in (("block", "response per block", -2.0), ("sum", "summed over blocks", -1.0)):
        lines = []
        for direction in DIRECTIONS:
            for step in steps[1:] if direction == "backward" else steps[-1:]:
                depths, found = _responses_along(results, "depth", what, direction, step)
                lines.append(Line.of(f"{direction}, step {step}", depths, found, fit_power(depths, found)))
        lines[0] = Line(**{**vars(lines[0]), "predicted": predicted})
        panels.append(Panel(f"{title} (dotted: NFD)", "depth L", "size in h and g", lines))
    lines = []
    for step in steps[1:]:
        depths, found = _gaps_along(results, "depth", "outputs", step)
        lines.append(
            Line.of(f"step {step}", depths, found, fit_power(depths, found), -1.0 if step == steps[1] else None)
        )
    panels.append(Panel("coupled - decoupled limit (dotted: NFD)", "depth L", "rms difference of f", lines))
    widths, start = _responses_along(results, "width", "raw", "backward", steps[0])
    _, total = _responses_along(results, "width", "sum", "backward", steps[-1])
    _, gap = _gaps_along(results, "width", "outputs", steps[-1])
    lines = [
        Line.of("mean square response at init", widths, start, fit_power(widths, start), -1.0),
        Line.of(f"backward response summed, step {steps[-1]}", widths, total, fit_power(widths, total)),
        Line.of(f"tied - untied f, step {steps[-1]}", widths, gap, fit_power(widths, gap)),
    ]
    panels.append(Panel("against width", "width n", "", lines))
    horizons, gap = _gaps_along(results, "horizon", "outputs", steps[1])
    lines = [Line.of(f"coupled - decoupled f, step {steps[1]}", horizons, gap, fit_power(horizons, gap))]
    for direction in DIRECTIONS:
        _, total = _responses_along(results, "horizon", "sum", direction, steps[-1])
        lines.append(
            Line.of(f"{direction} response summed, step {steps[-1]}", horizons, total, fit_power(horizons, total))
        )
    panels.append(Panel("against layer time", "horizon T", "", lines))
    lines, fine = [], np.linspace(min(horizons), max(horizons), 40)
    for activation in results.sizes.activations:
        lines.append(Line(f"delta(T), {activation}", fine, [_delta(time, activation) for time in fine], curve=True))
        found = _deficits(results, activation)
        lines.append(Line(f"measured, {activation}", horizons, found.values, 2 * found.errors, joined=False))
    zero = Level("NFD at infinite depth", 0.0)
    panels.append(
        Panel("first step, one sample", "horizon T", "relative deficit of f_1 - f_0", lines, [zero], False, False)
    )
    return panels


STUDY = Study(
    name="reuse",
    number=3,
    claim="reuse of weights is 1/n at init, uniformly in L; after training NFD has it O(L^-2) a block, so that it"
    " vanishes with depth, where TP6 and DHT keep it",
    source="NFD, TP6, DHT",
    setting="two classes of digits, ReLU, depth-muP, hidden matrices trained by SGD; responses in tied networks by"
    " revealed matrices, gaps between the limits; delta(T) of one sample at a small rate",
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
            width=16_384,
            seeds=16,
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
