"""Claim 11: the absolute value, among activations, for feature diversity and for the loss reached.

Diversity has two definitions here, both of the root mean square D(e) of h_{(t + e)L} - h_{tL} over entries, samples and
t, or of g in place of h:

- per unit size, D(1/8) / |h|, with |h| the root mean square of all features: how far neighbouring blocks are apart. It
  grows with the size of a branch, and so with E phi^2 - (E phi)^2, which is 1 for the identity and 0.36 for |.|.
- kappa = 1 - log2 (D(1/4) / D(1/8)), which no size enters: 1/2 where blocks add independent vectors, 0 where they all
  add the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax._types import Array
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.statistics import Sampled, bootstrap
from nfd_jax.studies._findings import Finding, at_least
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import halved
from nfd_jax.studies._study import Arrays, Cell, Results, Study

ABS = "abs"
SOURCES = {"tanh": "theory section 7"}  # not homogeneous, which TP6 asks for
FIELDS = {"feature": "h", "gradient": "g"}
FRESH = 1000  # the first seed: rates and their schedule were chosen with others
LAG = 1 / 8  # small beside the depth, and several blocks


@dataclass(frozen=True)
class Sizes:
    """The grid. Rates bracket the best one of every activation."""

    activations: tuple[str, ...] = ("abs", "relu", "tanh", "identity")
    learning_rates: tuple[float, ...] = (0.354, 0.5, 0.707, 1.0, 1.414, 2.0, 2.828, 4.0)
    width: int = 128
    depth: int = 32
    seeds: int = 8
    classes: int = 10
    samples: int = 256
    batch: int = 32
    steps: int = 40


def cells(sizes: Sizes) -> list[Cell]:
    """All rates and seeds of an activation side by side."""
    halved("seeds", sizes.seeds)
    if ABS not in sizes.activations:
        raise ValueError(f"activations of study 'nonlinearity' must have {ABS!r}, got {sizes.activations}")
    return [{"activation": activation} for activation in sizes.activations]


def measure(
    activation: str,
    learning_rates: tuple[float, ...],
    width: int,
    depth: int,
    seeds: int,
    classes: int,
    samples: int,
    batch: int,
    steps: int,
) -> Arrays:
    """Final loss over all training samples, infinite where training diverged; both diversities before training and
    before the last step."""
    task = nfd.datasets.digits(samples, classes=tuple(range(classes)), loss="cross_entropy").minibatches(batch)
    runs = nfd.sweep(
        task,
        nfd.ResNet(depth, activation, block="post", centred=True),
        widths=[width],
        learning_rates=learning_rates,
        seeds=range(FRESH, FRESH + seeds),
        steps=steps,
        schedule=lambda step: 1 - step / steps,  # at a constant rate mini-batches would scatter the final loss
        train_input=True,
        train_readout=True,
        observe=_diversity,
        evaluate_at=(steps,),
        progress=False,
    ).isel(width=0, depth=0)
    diverged = runs.diverged_at.values >= 0
    axes = ("rate", "seed", "time", "kind")
    found = {name: (axes, runs[name].values[:, :, [0, steps - 1]].astype(np.float64)) for name in FIELDS}
    return {"loss": (axes[:2], np.where(diverged, np.inf, runs.loss.values[..., -1])), **found}


def _diversity(snapshot: Snapshot) -> dict[str, Array]:
    """D(LAG) and D(2 LAG), and the root mean square, of features and of gradients, `(3,)`."""
    depth = len(snapshot.features) - 1
    place = max(1, int(depth * LAG)).bit_length() - 1
    moved, size = observables.diversity(snapshot), observables.sizes(snapshot)
    return {
        name: jnp.append(moved[f"{name}_diversity"][place : place + 2], jnp.sqrt(jnp.mean(size[f"{name}_size"] ** 2)))
        for name in FIELDS
    }


def _found(results: Results) -> dict[str, Sampled]:
    """Of every activation at its best rate, `(activations,)`: `loss`, the logarithm of the geometric mean of losses
    over seeds, and of both fields the logarithm of D(1/8) per unit size, and kappa.

    Every other seed chooses the rate, that of their lowest mean, one at which none of them diverged; the rest are what
    is returned, not a number where there is no such rate. Activations start from the same weights: the seeds of all are
    resampled together, in either half, and every resample chooses its rates anew.
    """
    records = [kept for _, kept in results.along("activation")]
    losses = np.stack([record.loss.values for record in records]).transpose(2, 0, 1)  # (seeds, activations, rates)
    moved = np.stack([[record[name].values[:, :, 1] for name in FIELDS] for record in records])
    moved = moved.transpose(3, 0, 2, 1, 4)  # (seeds, activations, rates, fields, kinds), before the last step
    together = np.concatenate([losses[..., None], moved.reshape(*losses.shape, -1)], axis=-1)

    def at_best(choosing: np.ndarray, judging: np.ndarray) -> np.ndarray:
        means = np.log(choosing[..., 0]).mean(axis=0)
        best, each = np.argmin(means, axis=1), np.arange(means.shape[0])
        chosen = np.where(np.isfinite(means[each, best])[:, None], judging[:, each, best], np.nan)
        near, far, size = np.moveaxis(chosen[..., 1:].reshape(*chosen.shape[:2], -1, 3), -1, 0)
        per_size, kappa = np.log(near / size).mean(axis=0), 1 - np.log2(far / near).mean(axis=0)
        return np.concatenate([np.log(chosen[..., 0]).mean(axis=0)[None], per_size.T, kappa.T])

    found = bootstrap(at_best, together[::2], together[1::2])
    names = ["loss", *(f"{kind} {name}" for kind in ("per size", "kappa") for name in FIELDS)]
    return {name: found.map(lambda rows, place=place: rows[place]) for place, name in enumerate(names)}


def conclude(results: Results) -> list[Finding]:
    """Final losses of the others over that of |.|, and the diversity of |.| over that of the others."""
    names, found = results.sizes.activations, _found(results)
    first = names.index(ABS)
    lost = [name for name, loss in zip(names, found["loss"].values, strict=True) if not np.isfinite(loss)]
    note = f" ({', '.join(lost)} diverged at every rate)" if lost else ""
    findings = []
    for place, name in enumerate(names):
        if name == ABS:
            continue
        ratio = found["loss"].map(lambda x, place=place: x[place] - x[first]).estimate()
        findings.append(
            Finding(
                f"log(loss of {name} / loss of |.|), final, best rates{note}",
                SOURCES.get(name, "TP6"),
                at_least(0),
                ratio,
            )
        )
    for kind, text in (("per size", "log ratio of D(1/8) per unit size"), ("kappa", "difference of kappa")):
        for field, symbol in FIELDS.items():
            for place, name in enumerate(names):
                if name == ABS:
                    continue
                more = found[f"{kind} {field}"].map(lambda x, place=place: x[first] - x[place]).estimate()
                findings.append(
                    Finding(f"{text}, {symbol}, |.| against {name}{note}", SOURCES.get(name, "TP6"), at_least(0), more)
                )
    return findings


def draw(results: Results) -> list[Panel]:
    """Final loss against the rate, and both diversities of trained networks, where all seeds ended below chance."""
    sizes = results.sizes
    chance = np.log(sizes.classes)
    losses, curves = [], {(kind, field): [] for kind in ("per size", "kappa") for field in FIELDS}

    def average(values: np.ndarray) -> Sampled:
        return bootstrap(lambda x: np.exp(np.log(x).mean(axis=0)), values.T)

    for name, record in results.along("activation"):
        trained = np.all(record.loss.values < chance, axis=1)
        if not trained.any():
            continue
        rates = np.array(sizes.learning_rates)[trained].tolist()
        losses.append(Line.of(name, rates, average(record.loss.values[trained])))
        for field in FIELDS:
            near, far, size = np.moveaxis(record[field].values[trained, :, 1], -1, 0)
            curves["per size", field].append(Line.of(name, rates, average(near / size)))
            ratio = average(near / far).map(lambda x: 1 + np.log2(x))
            curves["kappa", field].append(Line.of(name, rates, ratio))
    labels = {"per size": "D(1/8) / size", "kappa": "kappa"}
    panels = [Panel("final loss, no seed above chance", "learning rate eta", "training loss", losses)]
    for (kind, field), lines in curves.items():
        title = f"{labels[kind]} of {FIELDS[field]}, trained"
        panels.append(Panel(title, "learning rate eta", labels[kind], lines, log_y=False))
    return panels


STUDY = Study(
    name="nonlinearity",
    number=11,
    claim="the absolute value, of all homogeneous activations, maximises feature diversity, and trains to a lower loss",
    source="TP6",
    setting="digits of ten classes, cross-entropy, TP6's block (mean subtracted), depth-muP, all weights trained by "
    "mini-batch SGD, rates falling linearly to 0; TP6 trained on its own data with Adam; tanh is not homogeneous; "
    "definitions of diversity are ours; rates are chosen on half of the seeds and judged on the other half",
    sizes={
        "smoke": Sizes(activations=("abs", "relu"), learning_rates=(0.25, 0.5), width=32, depth=16, seeds=4, steps=8),
        "laptop": Sizes(),
        "accelerator": Sizes(width=512, depth=64, seeds=16, samples=1024, batch=64, steps=200),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    least={"activations": 2},
)
