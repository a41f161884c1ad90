"""What the studies of large rates under standard parametrization share: networks, rates, measurements, exponents.

Expected exponents follow from counting. Under "sp" features h, outputs f at the start and the gradient of the loss in
f are of order 1, readout entries are n^-1/2, and with them the entries of dL/dh. One step at rate eta ~ n^-a adds

    eta dL/dh |x|^2 ~ n^(-1/2-a)         to the image of the input layer, whose x has a fixed dimension,
    eta dL/dh |phi|^2 ~ n^(1/2-a)        to that of a hidden matrix: eta n^-1/2 n,
    eta dL/df |phi|^2 ~ n^(1-a)          to the outputs by the readout; and through the initial readout, along which
                                         hidden updates lie, eta |V|^2 |phi|^2 ~ n^(1-a) too.

Cross-entropy keeps dL/df below 1, so that all steps are of this size while the readout, whose entries move by n^-a,
keeps its own: for a >= 1/2. Below, entries of dL/dh become n^-a, and the next update of a hidden matrix eta n^-a n.
Squared loss has dL/df = f - y, and the next step is n^(1-a) times the last: outputs are n^(t(1-a)) after t steps,
dL/dh as much, and hidden images n^(1/2 - a + (t-1)(1-a)): whatever the width exponent of the first step, all of them
diverge for a < 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax.datasets import gaussian
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.models import MLP
from nfd_jax.observables import axes
from nfd_jax.solvers.sweep import sweep
from nfd_jax.statistics import Estimate, Sampled, bootstrap
from nfd_jax.task import Task

DIMENSION, CLASSES = 8, 4  # few coordinates, so that n times the readout's share outweighs the input layer's d
BASE = 32  # the width at which rates of all exponents are the same
LOSSES = {"cross_entropy": "cross-entropy", "mse": "squared loss"}
ROLES = ("effective_input", "effective_hidden", "effective_readout", "propagating_hidden", "propagating_readout")
LAYER = ("layer",)


def he_relu(x: Any) -> Any:
    """sqrt(2) max(x, 0): networks of any depth keep the size of their features."""
    return 2**0.5 * jax.nn.relu(x)


def task(loss: str, samples: int) -> Task:
    """Gaussian inputs in classes: the largest of as many indices."""
    made = gaussian(samples, DIMENSION, indices=CLASSES, teacher=lambda z: np.eye(CLASSES)[z.argmax(axis=1)])
    return Task(made.inputs, made.targets, loss=loss)


def rate(scale: float, layers: int, width: int, exponent: float) -> float:
    """eta = scale / (BASE (layers - 1)) (n / BASE)^-a: the kernel of SP's networks is about n (layers - 1)."""
    return scale / (BASE * (layers - 1)) * (width / BASE) ** -exponent


@axes(features=LAYER, gradients=LAYER, effective_hidden=("matrix",), propagating_hidden=("matrix",))
def quantities(snapshot: Snapshot) -> dict[str, Any]:
    """Root mean squares over the batch, of an MLP: `logits` f_t - f_0, `features` h_t - h_0 of every layer, the norm
    |dL/dh| of a sample's gradient in every layer's, times the batch, and the parts of the refined check."""
    if snapshot.image_changes is None:
        raise ValueError("observe=quantities needs dense matrices: use train_networks with engine='dense'")
    effective, propagating = snapshot.image_changes()
    hidden = effective["hidden"] + propagating["hidden"]
    parts = {f"effective_{role}": _size(each) for role, each in effective.items()}
    parts |= {f"propagating_{role}": _size(propagating[role]) for role in ("hidden", "readout")}
    samples, width = snapshot.features.shape[1:]
    return parts | {
        "logits": _size(effective["readout"] + propagating["readout"]),
        "features": _size(jnp.concatenate([(effective["input"] + propagating["input"])[None], hidden])),
        "gradients": samples * width**0.5 * _size(snapshot.gradients),
    }


def _size(vectors: Any) -> Any:
    return jnp.sqrt(jnp.mean(vectors**2, axis=(-2, -1)))


def largest(values: np.ndarray, axis: int) -> np.ndarray:
    """The largest so far along the steps; infinite from where something is not finite."""
    return np.maximum.accumulate(np.where(np.isfinite(values), values, np.inf), axis=axis)


def activation(units: str) -> Any:
    """He's ReLU for `"relu"`; others, such as `"abs"`, whose units can't die, as they are."""
    return he_relu if units == "relu" else units


def trained(
    task: Task,
    layers: int,
    width: int,
    rates: Sequence[float],
    seeds: range,
    steps: int,
    units: str = "relu",
) -> dict[str, np.ndarray]:
    """What is seen of networks under standard parametrization before and after every step:
    `(rates, seeds, steps + 1, ...)`."""
    run = sweep(
        task,
        MLP(layers - 1, activation(units)),
        widths=[width],
        learning_rates=list(rates),
        seeds=seeds,
        steps=steps,
        parametrization="sp",
        train_input=True,
        train_readout=True,
        observe=quantities,
        progress=False,
    )
    names = ("logits", "features", "gradients", "loss", *ROLES)
    return {name: run[name].values[0, 0].astype(np.float64) for name in names}


def exponents(widths: Sequence[int], values: np.ndarray) -> np.ndarray:
    """Exponents in n of `values` `(widths, seeds, ...)`, one a seed, `(seeds, ...)`: least squares in the logarithms.

    What overflowed counts as the largest number of single precision, so that the exponent is no less than what is
    said; NaN stays NaN.
    """
    most = float(np.finfo(np.float32).max)
    logs = np.log(np.clip(values, 1 / most, most))
    centred = np.log(widths) - np.mean(np.log(widths))
    return np.tensordot(centred, logs, axes=(0, 0)) / np.sum(centred**2)


def estimate(of_seeds: np.ndarray) -> Estimate:
    """The mean over seeds, `(seeds,)`."""
    count = len(of_seeds)
    return Estimate(float(of_seeds.mean()), float(of_seeds.std(ddof=1) / count**0.5), count - 1)


def sampled(of_seeds: np.ndarray) -> Sampled:
    """Means over seeds, of `(seeds, ...)`."""
    return bootstrap(lambda x: x.mean(axis=0), of_seeds)


def border(of_seeds: np.ndarray, at: Sequence[float]) -> Estimate:
    """The largest exponent a of the rate below which what grows with n does: where the exponent in n, `(seeds, a)`,
    falls through 0, linear between two of the grid; where it has one sign on all of it, the end beyond which the border
    lies."""
    order = np.argsort(at)[::-1]
    a = np.asarray(at, float)[order]

    def crossing(drawn: np.ndarray) -> float:
        mean = drawn.mean(axis=0)[order]
        if not np.isfinite(mean).all():
            return np.nan
        above = np.flatnonzero(mean > 0)
        if not len(above) or above[0] == 0:
            return float(a[0] if len(above) else a[-1])
        high, low = above[0], above[0] - 1
        return float(a[low] + (a[high] - a[low]) * mean[low] / (mean[low] - mean[high]))

    return bootstrap(crossing, of_seeds).estimate()
