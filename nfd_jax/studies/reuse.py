"""Claim 3: what remains of the reuse of forward weights in the backward pass: at initialisation, after training, as n
grows, as L grows, and with T.

Three kinds of cells: networks, with the signed response a_l of every block (`observables.signed_response`: its sum over
blocks is the first-order effect of reuse on the output) and, tied less untied, what reuse does to outputs and loss;
limits, the coupled one less the decoupled one; and the first step of one sample, for which theory section 3 has the
closed form delta(T).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax._types import Array
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.runtime import memory
from nfd_jax.studies._responses import by_origin
from nfd_jax.studies._reuse import DIRECTIONS, conclude, draw
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._study import Arrays, Cell, Study


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
    task, model, branch = nfd.datasets.digits(samples), nfd.ResNet(depth, horizon=horizon), math.sqrt(horizon / depth)
    recipe = nfd.Training(max(steps), learning_rate, observe=observe)
    members = own_seeds(seeds, backward, depth, width, horizon)
    # features and gradients of every step leave the device, twice while they are put together
    needed = 4 * (max(steps) + 1) * (depth + 1) * samples * width * jnp.zeros(()).dtype.itemsize
    at_once = max(1, memory.BUDGET // needed) if distances else seeds
    outputs, loss, found = [], [], []
    for first in range(0, seeds, at_once):
        chosen = members[first : first + at_once]
        run = nfd.solve_network(task, model, recipe, width=width, seeds=chosen, backward=backward, progress=False)
        outputs.append(run.outputs)
        loss.append(run.loss)
        for place in range(len(chosen) if observe else 0):
            own = {name: values[place] for name, values in run.observed.items()}
            found.append(_responses(own, steps, branch, model))
    record = dict(_at(steps, np.concatenate(outputs), np.concatenate(loss)))
    for name, (axes, _) in found[0].items() if found else ():
        record[name] = (("seed", *axes), np.stack([each[name][1] for each in found]))
    return record


def _observe(snapshot: Snapshot) -> dict[str, Array]:
    found = observables.signed_response(snapshot) | observables.response_gradient(snapshot)
    return found | {"features": snapshot.features}


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
