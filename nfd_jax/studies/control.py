"""Claim 16: rates and scales set by measured gradients hold the speed of features at any depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import nfd_jax as nfd
from nfd_jax.statistics import Sampled, bootstrap, combined
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_most
from nfd_jax.studies._frozen_ends import ARCHITECTURES, angle, balanced, branch_of, draw, forward
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import halved
from nfd_jax.studies._study import Arrays, Cell, Results, Study

NAMES = {"mlp": "ReLU MLP", "resnet": "ResNet, b = L^-1/2"}
TABLES = {"mlp": "muP", "resnet": "depth-muP"}  # the row of the table that trains it
START = ("table", "source", "control")
RULES = {"table": "SGD", "polyak": "SGD, one Polyak's rate", "adam": "Adam", "control": "control"}
LEFT = 0.1  # of the first loss: speeds of training are averaged while there is more


@dataclass(frozen=True)
class Sizes:
    """The grid. Rates are `lowest * ratio^i` in units in which about 1 takes the whole loss in a linear model."""

    mlp_depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    resnet_depths: tuple[int, ...] = (4, 16, 64, 256)
    width: int = 256
    seeds: int = 16
    train_depths: tuple[int, ...] = (8, 32)
    train_width: int = 128
    train_seeds: int = 8
    samples: int = 16
    steps: int = 40
    lowest: float = 2**-7
    ratio: float = 2.0
    rates: int = 10


def cells(sizes: Sizes) -> list[Cell]:
    """Sensitivities at the start of both architectures, and training by every rule."""
    halved("train_seeds", sizes.train_seeds)
    depths = {"mlp": sizes.mlp_depths, "resnet": sizes.resnet_depths}
    start = [
        {"kind": "start", "architecture": name, "depth": depth, **dict.fromkeys(TRAINING)}
        for name in ARCHITECTURES
        for depth in depths[name]
    ]
    trained = {"width": sizes.train_width, "seeds": sizes.train_seeds}
    return [
        *start,
        *(
            {"kind": "training", "architecture": name, "depth": depth, "rule": rule, **trained}
            for name in ARCHITECTURES
            for depth in sizes.train_depths
            for rule in RULES
        ),
    ]


TRAINING = ("rule", "samples", "steps", "lowest", "ratio", "rates")


def measure(
    kind: str,
    architecture: str,
    depth: int,
    width: int,
    seeds: int,
    rule: str | None,
    samples: int | None,
    steps: int | None,
    lowest: float | None,
    ratio: float | None,
    rates: int | None,
) -> Arrays:
    """At the start: sensitivities by rule and seed. Training: losses and relative speeds by rate, seed and step."""
    branch = branch_of(architecture, depth)
    keys = jnp.stack([nfd.seed_key(1000 * depth + seed) for seed in range(seeds)])
    if kind == "start":
        x = jnp.asarray(nfd.datasets.digits(2).inputs, jnp.float32)
        found = jax.jit(lambda keys: lax.map(lambda key: _start(key, depth, width, x, branch), keys))(keys)
        return {name: (("seed",), np.asarray(each)) for name, each in found.items()}
    task = nfd.datasets.digits(samples)
    x, y = jnp.asarray(task.inputs, jnp.float32), jnp.asarray(task.targets[:, 0], jnp.float32)
    grid = jnp.asarray([lowest * ratio**place for place in range(rates)], jnp.float32)

    def of_seed(key: Any) -> Any:
        return jax.vmap(lambda rate: _training(key, depth, width, x, y, branch, rule, rate, steps))(grid)

    loss, speed = jax.jit(lambda keys: lax.map(of_seed, keys))(keys)
    axes = ("seed", "rate", "step")
    return {"loss": (axes, np.asarray(loss)), "speed": (axes, np.asarray(speed))}


def _start(key: Any, depth: int, width: int, x: Any, branch: float) -> dict[str, Any]:
    """|dh|_rms / |dloss| of the last features on one input, whose output is the loss: at large width its gradient is
    that of any loss. Control has its scales from another input."""
    hidden, ends = draw(key, depth, width, x.shape[1])
    source = ends._replace(multiplier=jnp.sqrt(branch**2 * depth))
    own, scaled = _controlled(hidden, ends, x[:1], jnp.ones(1), branch)
    return {
        "table": _sensitivity(hidden, ends, x[1:], jnp.ones(1), branch, equal=False),
        "source": _sensitivity(hidden, source, x[1:], jnp.ones(1), branch),
        "control": _sensitivity(own, scaled, x[1:], jnp.ones(1), branch),
    }


def _controlled(hidden: Any, ends: Any, x: Any, slopes: Any, branch: float) -> tuple[Any, Any]:
    """Balanced matrices, and the multiplier of the outputs with which the last features have a sensitivity of 1."""
    hidden, ends = balanced(hidden, ends, x, branch)
    return hidden, ends._replace(multiplier=_sensitivity(hidden, ends, x, slopes, branch))


def _sensitivity(hidden: Any, ends: Any, x: Any, slopes: Any, branch: float, *, equal: bool = True) -> Any:
    """Under rates that give all matrices an equal share, or one rate for all, of the loss `mean(slopes * outputs)`."""
    gradient = jax.grad(lambda hidden: jnp.mean(slopes * forward(hidden, ends, x, branch)[1]))(hidden)
    direction = gradient
    if equal:
        control = _control(every_matrix=True)
        direction, _ = control.update({"hidden": gradient}, control.init({"hidden": hidden}))
        direction = direction["hidden"]
    _, moved = jax.jvp(lambda hidden: forward(hidden, ends, x, branch)[0], (hidden,), (direction,))
    return jnp.sqrt(jnp.mean(moved**2)) / jnp.sum(direction * gradient)


def _control(*, every_matrix: bool, **options: Any) -> optax.GradientTransformationExtraArgs:
    stacked = ["*hidden*"] if every_matrix else []
    return nfd.feature_speed_control({"*": "hidden"}, stacked=stacked, **options)


def _optimizer(rule: str | None, rate: Any, branch: float, depth: int, width: int) -> optax.GradientTransformation:
    """A rate of 1 is, of SGD, about that which takes the loss of a linear model; of Adam, that which moves h by 1."""
    if rule == "table":
        return optax.sgd(2 * rate / (branch**2 * depth))
    if rule == "adam":
        return optax.adam(rate / (branch * depth * width))
    return optax.chain(_control(every_matrix=rule == "control", minimum=0.0), optax.scale_by_learning_rate(rate))


def _training(
    key: Any, depth: int, width: int, x: Any, y: Any, branch: float, rule: str | None, rate: Any, steps: int | None
) -> tuple[Any, Any]:
    """Losses `(steps + 1,)` and relative speeds `(steps,)`: |h_{t+1} - h_t|_rms over the relative decrease of the loss
    to first order."""
    hidden, ends = draw(key, depth, width, x.shape[1])
    if rule == "control":
        hidden, ends = _controlled(hidden, ends, x, -y, branch)
    optimizer = _optimizer(rule, rate, branch, depth, width)

    def objective(parameters: Any) -> Any:
        features, outputs = forward(parameters["hidden"], ends, x, branch)
        return 0.5 * jnp.mean((outputs - y) ** 2), features

    def step(carry: Any, _: None) -> Any:
        parameters, state, (loss, features), gradient = carry
        updates, state = optimizer.update(gradient, state, parameters, value=loss)
        decrease = -jnp.sum(updates["hidden"] * gradient["hidden"])
        after = optax.apply_updates(parameters, updates)
        found, gradient = jax.value_and_grad(objective, has_aux=True)(after)
        speed = jnp.sqrt(jnp.mean((found[1] - features) ** 2)) * loss / decrease
        return (after, state, found, gradient), (found[0], speed)

    parameters = {"hidden": hidden}
    found, gradient = jax.value_and_grad(objective, has_aux=True)(parameters)
    optimizer = optax.with_extra_args_support(optimizer)
    start = (parameters, optimizer.init(parameters), found, gradient)
    _, (losses, speeds) = lax.scan(step, start, length=steps)
    return jnp.append(found[0], losses), speeds
