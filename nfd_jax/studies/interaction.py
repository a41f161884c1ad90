"""Claim 12: what the updates of both matrices of a block do together vanishes with depth under depth-muP."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import nfd_jax as nfd
from nfd_jax.dynamics import propagate
from nfd_jax.dynamics.base import Settings
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.dynamics.units import Units
from nfd_jax.matrices.dense import DenseMatrices
from nfd_jax.matrices.orthonormal import product
from nfd_jax.models import Structure
from nfd_jax.parametrization import resolve
from nfd_jax.seeds import seed_key
from nfd_jax.statistics import bootstrap
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_most
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._study import Arrays, Cell, Results, Study

NAMES = {"depth_mup": "depth-muP", "complete_p": "CompleteP"}


@dataclass(frozen=True)
class Sizes:
    """The grid."""

    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    width: int = 128
    seeds: int = 8
    samples: int = 8
    steps: int = 4
    learning_rate: float = 1.0


def cells(sizes: Sizes) -> list[Cell]:
    """Both parametrizations at every depth."""
    return [{"row": row, "depth": depth, "capacity": max(sizes.depths)} for row in NAMES for depth in sizes.depths]


def measure(
    row: str, depth: int, width: int, seeds: int, samples: int, steps: int, learning_rate: float, capacity: int
) -> Arrays:
    """Mean squares, a seed each, of what training has added to the sum of all branches: by one update at a time, and
    by both together; of the movement of the inner pre-activations over their own; and the final loss."""
    task, model = nfd.datasets.digits(samples), nfd.ResNet(depth, "relu", block="pre_inner")
    units = Units.of(model, resolve(row), width=width, dimension=task.dimension)
    # all depths and rows share one program: matrices past the last block are there, and not used
    dynamics = Conditioned(Settings(model.structure, task.loss), units)
    dtype = jnp.zeros(()).dtype
    inputs, targets = jnp.asarray(task.inputs / task.dimension**0.5, dtype), jnp.asarray(task.targets, dtype)
    shape = (2 * capacity, width, steps)
    found = [
        _train(shape, dynamics, seed_key(1000 * depth + seed), dtype.type(learning_rate), inputs, targets)
        for seed in range(seeds)
    ]
    return {name: (("seed",), np.array([float(each[name]) for each in found])) for name in found[0]}


@partial(jax.jit, static_argnums=0)
def _train(
    shape: tuple[int, int, int],
    dynamics: Conditioned,
    key: jax.Array,
    rate: jax.Array,
    inputs: jax.Array,
    targets: jax.Array,
) -> dict[str, jax.Array]:
    """One network with dense matrices, trained, and compared with its initial matrices at its final features."""
    matrices, width, steps = shape
    ends, inner = jax.random.split(key)
    rows = jax.random.normal(ends, (inputs.shape[1] + targets.shape[1], width), inputs.dtype)
    first, readout = rows[: inputs.shape[1]], rows[inputs.shape[1] :]
    # a key a matrix, so that capacity for more of them leaves the first ones as they are
    keys = jax.vmap(partial(jax.random.fold_in, inner))(jnp.arange(matrices))
    initial = jax.vmap(lambda own: jax.random.normal(own, (width, width), inputs.dtype))(keys)
    state = dynamics.start(Layers(first, DenseMatrices(initial), readout))
    state = lax.fori_loop(0, steps, lambda step, now: dynamics.step(now, step, rate, inputs, targets)[0], state)
    structure, units = dynamics.settings.structure, dynamics.units
    outputs, now, _ = propagate.forward(structure, units, state.layers, inputs, jnp.asarray(steps), keep=True)
    assert now is not None  # it is kept
    hidden = state.layers.hidden.parameters[0]
    return _interaction(structure, units, initial, hidden, now.features[:-1]) | {
        "loss": jnp.mean(jnp.sum((outputs - targets) ** 2, axis=1)) / 2
    }


def _interaction(
    structure: Structure, units: Units, initial: jax.Array, trained: jax.Array, features: jax.Array
) -> dict[str, jax.Array]:
    """With a = W1 x, da = D1 x, dphi = phi(a + da) - phi(a) at x = phi(h_{l-1}), summed over blocks times b:

    first order   W2 dphi + D2 phi(a)
    together      D2 dphi

    W are the initial matrices and W + D the trained ones. Blocks past the last one add nothing: x is 0 there.
    """
    phi, scale = structure.phi, initial.shape[-1] ** -0.5

    def image(vectors: jax.Array, matrices: jax.Array) -> jax.Array:
        return scale * product(vectors, matrices.swapaxes(-1, -2))

    there = jnp.arange(len(features), dtype=jnp.int32)[:, None, None] < units.blocks
    x, moved = jnp.where(there, phi(features), 0), trained - initial
    a, da = image(x, initial[::2]), image(x, moved[::2])
    dphi = phi(a + da) - phi(a)
    along = units.branch * jnp.sum(image(dphi, initial[1::2]) + image(phi(a), moved[1::2]), axis=0)
    together = units.branch * jnp.sum(image(dphi, moved[1::2]), axis=0)
    return {
        "first_order": jnp.mean(along**2),
        "together": jnp.mean(together**2),
        "movement": jnp.sum(da**2) / jnp.sum(a**2),
    }


def _shares(results: Results, row: str, over: str, under: str | None) -> Curve:
    """The root of one mean square over another at every depth."""
    kept = list(results.where(row=row).along("depth"))

    def ratio(squares: np.ndarray) -> np.ndarray:
        mean = squares.mean(axis=0)
        return np.sqrt(mean[0] / mean[1])

    each = [
        bootstrap(
            ratio,
            np.stack([own[over].values, np.ones(own.sizes["seed"]) if under is None else own[under].values], axis=1),
            seed=place,
        )
        for place, (_, own) in enumerate(kept)
    ]
    return Curve.of([depth for depth, _ in kept], each)


def conclude(results: Results) -> list[Finding]:
    """Exponents in L of the share of the interaction and of the movement of inner pre-activations."""
    # half the distance between L^-1/2, the movement of a pre-activation under depth-muP, and L^0
    share, movement = "|D2 dphi| / |W2 dphi + D2 phi(W1 x)|, summed over blocks ~ L^p", "|D1 x| / |W1 x| ~ L^p"
    predictions = (
        (share, "together", "first_order", "depth_mup", "TP6", at_most(-0.25)),
        (share, "together", "first_order", "complete_p", "CompleteP", about(0, 0.25)),
        (movement, "movement", None, "depth_mup", "TP6, NFD v1", about(-0.5, 0.2)),
        (movement, "movement", None, "complete_p", "CompleteP", about(0, 0.2)),
    )
    return [
        Finding(f"{quantity}, {NAMES[row]}", source, predicted, _shares(results, row, over, under).law)
        for quantity, over, under, row, source, predicted in predictions
    ]


def draw(results: Results) -> list[Panel]:
    """Both ratios against L."""

    def lines(over: str, under: str | None, expected: float) -> list[Line]:
        exponents = {"depth_mup": expected, "complete_p": 0.0}
        return [_shares(results, row, over, under).line(NAMES[row], each) for row, each in exponents.items()]

    return [
        Panel(
            "both updates together",
            "depth L",
            "|D2 dphi| / |W2 dphi + D2 phi(W1 x)|, summed",
            lines("together", "first_order", -0.5),
        ),
        Panel("inner pre-activations", "depth L", "|D1 x| / |W1 x|", lines("movement", None, -0.5)),
    ]


STUDY = Study(
    name="interaction",
    number=12,
    claim="in blocks of two matrices, what both updates do together vanishes with depth under depth-muP (at L^-1/2 or "
    "faster), and stays under CompleteP",
    source="TP6, CompleteP",
    setting="two classes of digits, blocks W2 phi(W1 phi(h)), whose last image is linear, so that the interaction "
    "is D2 dphi exactly; TP6's block has a further phi; a few full-batch steps of SGD; "
    "the drift of this block's best rate is measured by study transfer",
    sizes={
        "smoke": Sizes(depths=(2, 4), width=16, seeds=4, samples=2, steps=2),
        "laptop": Sizes(),
        "accelerator": Sizes(depths=(4, 8, 16, 32, 64, 128), width=512, seeds=32, samples=16, steps=8),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    least={"depths": 2},
)
