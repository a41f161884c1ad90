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
from nfd_jax.studies._findings import Finding, about, at_least, at_most
from nfd_jax.studies._frozen_ends import ARCHITECTURES, balanced, branch_of, forward, initial
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import halved
from nfd_jax.studies._stream import Scales
from nfd_jax.studies._study import Arrays, Cell, Results, Study

NAMES = {"mlp": "ReLU MLP", "resnet": "ResNet, b = L^-1/2"}
TABLES = {"mlp": "muP", "resnet": "depth-muP"}  # the row of the table that trains it
START = ("table", "source", "control")
RULES = ("table", "polyak", "adam", "control")
# Log of the last loss under control over that by other rules. Where the speed is flat under both, neither gains a
# factor of two; what adapts its rate may beat what does not.
TWICE = 0.7
BESIDE = {
    "mlp": {"table": ("FSF", at_most(0)), "polyak": ("FSF", at_most(0)), "adam": ("ours", at_most(0))},
    "resnet": {
        "table": ("FSF", at_most(TWICE)),
        "polyak": ("FSF", about(0, TWICE)),
        "adam": ("ours", at_most(TWICE)),
    },
}
APART = 5  # steps between those at which sensitivities are measured


@dataclass(frozen=True)
class Sizes:
    """The grid. Rates are `lowest * ratio^i` in units in which about 1 takes the whole loss in a linear model."""

    mlp_depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    resnet_depths: tuple[int, ...] = (4, 16, 64, 256)
    width: int = 256
    seeds: int = 32
    train_depths: tuple[int, ...] = (8, 32)
    train_width: int = 128
    train_seeds: int = 16
    samples: int = 16
    steps: int = 40
    lowest: float = 2**-3
    ratio: float = 2.0
    rates: int = 7


def cells(sizes: Sizes) -> list[Cell]:
    """Sensitivities at the start of both architectures, and training by every rule."""
    halved("train_seeds", sizes.train_seeds)
    if sizes.steps % APART:
        raise ValueError(f"steps of study 'control' must be a multiple of {APART}, got {sizes.steps}")
    depths = {"mlp": sizes.mlp_depths, "resnet": sizes.resnet_depths}
    start = [
        {"kind": "start", "architecture": name, "depth": depth, "rule": ""}
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


def measure(
    kind: str,
    architecture: str,
    depth: int,
    width: int,
    seeds: int,
    rule: str,
    samples: int,
    steps: int,
    lowest: float,
    ratio: float,
    rates: int,
) -> Arrays:
    """At the start: sensitivities by rule and seed. Training: losses and relative speeds by rate, seed and step."""
    branch, dtype = branch_of(architecture, depth), jnp.result_type(float)
    keys = jnp.stack([nfd.seed_key(1000 * depth + seed) for seed in range(seeds)])
    if kind == "start":
        x = jnp.asarray(nfd.datasets.digits(2).inputs, dtype)
        found = jax.jit(lambda keys: lax.map(lambda key: _start(key, depth, width, x, branch), keys))(keys)
        return {name: (("seed",), np.asarray(each)) for name, each in found.items()}
    task = nfd.datasets.digits(samples)
    x, y = jnp.asarray(task.inputs, dtype), jnp.asarray(task.targets[:, 0], dtype)
    grid = jnp.asarray([lowest * ratio**place for place in range(rates)], dtype)

    def of_seed(key: Any) -> Any:
        return jax.vmap(lambda rate: _training(key, depth, width, x, y, branch, rule, rate, steps))(grid)

    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of integer counts
        loss, speed = jax.jit(lambda keys: lax.map(of_seed, keys))(keys)
    axes = ("seed", "rate")
    return {"loss": ((*axes, "step"), np.asarray(loss)), "speed": ((*axes, "apart"), np.asarray(speed))}


def _start(key: Any, depth: int, width: int, x: Any, branch: float) -> dict[str, Any]:
    """|dh|_rms / |dloss| of the last features on one input, whose output is the loss: at large width its gradient is
    that of any loss. Control has its scales from another input."""
    hidden, ends = initial(key, depth, width, x.shape[1])
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
    control = _control(every_matrix=equal)
    step: Any = control.update({"hidden": gradient}, control.init({"hidden": hidden}))[0]
    direction = step["hidden"]
    _, moved = jax.jvp(lambda hidden: forward(hidden, ends, x, branch)[0], (hidden,), (direction,))
    return jnp.sqrt(jnp.mean(moved**2)) / jnp.sum(direction * gradient)


def _control(*, every_matrix: bool, **options: Any) -> optax.GradientTransformationExtraArgs:
    stacked = ["*hidden*"] if every_matrix else []
    return nfd.feature_speed_control({"*": "hidden"}, stacked=stacked, **options)


def _optimizer(rule: str, rate: Any, branch: float, depth: int, width: int) -> optax.GradientTransformation:
    """A rate of 1 is, of SGD, about that which takes the loss of a linear model; of Adam, that which moves h by 1."""
    if rule == "table":
        return optax.sgd(2 * rate / (branch**2 * depth))
    if rule == "adam":
        return optax.adam(rate / (branch * depth * width))
    return optax.chain(_control(every_matrix=rule == "control", minimum=0.0), optax.scale_by_learning_rate(rate))


def _training(
    key: Any, depth: int, width: int, x: Any, y: Any, branch: float, rule: str, rate: Any, steps: int
) -> tuple[Any, Any]:
    """Losses `(steps + 1,)`, and the sensitivity of the last features times the root mean square of f - y, at every
    `APART`-th step: the backward pass is in proportion to f - y, and their product says the same at any loss."""
    hidden, ends = initial(key, depth, width, x.shape[1])
    if rule == "control":
        hidden, ends = _controlled(hidden, ends, x, -y, branch)
    optimizer = optax.with_extra_args_support(_optimizer(rule, rate, branch, depth, width))

    def objective(parameters: Any) -> Any:
        return 0.5 * jnp.mean((forward(parameters["hidden"], ends, x, branch)[1] - y) ** 2)

    def updated(parameters: Any, state: Any) -> Any:
        loss, gradient = jax.value_and_grad(objective)(parameters)
        updates, after = optimizer.update(gradient, state, parameters, value=loss)
        return updates, after, loss, gradient

    def step(carry: Any, _: None) -> Any:
        parameters, state = carry
        updates, state, loss, _ = updated(parameters, state)
        return (optax.apply_updates(parameters, updates), state), loss

    def some_steps(carry: Any, _: None) -> Any:
        parameters, _ = carry
        updates, _, loss, gradient = updated(*carry)
        _, moved = jax.jvp(lambda at: forward(at["hidden"], ends, x, branch)[0], (parameters,), (updates,))
        sensitivity = jnp.sqrt(jnp.mean(moved**2)) / -jnp.sum(updates["hidden"] * gradient["hidden"])
        carry, losses = lax.scan(step, carry, length=APART)
        return carry, (losses, sensitivity * jnp.sqrt(2 * loss))

    parameters = {"hidden": hidden}
    (last, _), (losses, speeds) = lax.scan(some_steps, (parameters, optimizer.init(parameters)), length=steps // APART)
    return jnp.append(losses, objective(last)), speeds


def _sensitivities(results: Results, architecture: str, rule: str) -> Curve:
    """At the start, geometric mean over seeds, along depth."""
    return results.where(kind="start", architecture=architecture).curve(
        "depth", lambda kept: bootstrap(_geometric, kept[rule].values.astype(np.float64))
    )


def _geometric(values: np.ndarray) -> np.ndarray:
    """Mean over seeds."""
    return np.exp(np.mean(np.log(values), axis=0))


def _judged(results: Results, architecture: str, rule: str, depth: int) -> Sampled:
    """Mean logs of every other seed at the rate that is best for the rest, `(steps + 1 + speeds,)`: of the losses, then
    of the speeds. Rates at which any member diverges are out; not a number where none is left."""
    kept = results.one(kind="training", architecture=architecture, rule=rule, depth=depth)
    losses = kept.loss.values.astype(np.float64)
    usable, last = (np.isfinite(losses) & (losses > 0)).all(axis=(0, 2)), losses.shape[-1] - 1
    values = np.concatenate([losses, np.abs(kept.speed.values.astype(np.float64))], axis=-1)
    if not usable.any():
        return bootstrap(lambda x: x.mean(axis=0), np.full((len(values) // 2, values.shape[-1]), np.nan))
    with np.errstate(divide="ignore"):  # of a speed where nothing moved
        logs = np.log(values[:, usable])

    def at_best(choosing: np.ndarray, judging: np.ndarray) -> np.ndarray:
        return judging[:, np.argmin(choosing[:, :, last].mean(axis=0))].mean(axis=0)

    return bootstrap(at_best, logs[::2], logs[1::2], seed=depth)


def _losses(results: Results, architecture: str, rule: str, depth: int) -> Sampled:
    steps = results.sizes.steps
    return _judged(results, architecture, rule, depth).map(lambda logs: logs[: steps + 1])


def _speeds(results: Results, architecture: str, rule: str) -> Curve:
    """Over training at the best rate, geometric mean over steps and seeds, along depth."""
    depths, steps = results.sizes.train_depths, results.sizes.steps
    found = [_judged(results, architecture, rule, depth) for depth in depths]
    return Curve.of(depths, [each.map(lambda logs: np.exp(np.mean(logs[steps + 1 :]))) for each in found])


def conclude(results: Results) -> list[Finding]:
    """Exponents of sensitivities in depth, their size beside the closed form, and losses beside those of others."""
    sizes, found = results.sizes, []
    start = {
        ("mlp", "table"): ("FSF; Jelassi et al.", about(0.5, 0.1)),
        ("mlp", "source"): ("FSF", about(0, 0.1)),
        ("mlp", "control"): ("FSF", about(0, 0.1)),
        ("resnet", "table"): ("FSF", about(0, 0.1)),
        ("resnet", "control"): ("FSF", about(0, 0.1)),
    }
    for (architecture, rule), (source, predicted) in start.items():
        quantity = f"sensitivity ~ L^p at the start, {NAMES[architecture]}, {_called(architecture, rule)}"
        found += _sensitivities(results, architecture, rule).findings(quantity, (source, predicted))
    for architecture, depths in (("mlp", sizes.mlp_depths), ("resnet", sizes.resnet_depths)):
        depth, curve = depths[-1], _sensitivities(results, architecture, "table")
        ratio = curve.values.map(lambda values: np.log(values[-1] * _cosine(architecture, depth)))  # noqa: B023
        quantity = f"log(sensitivity / closed form), L = {depth}, {NAMES[architecture]}, {TABLES[architecture]}"
        allowed = max(0.1, depth * branch_of(architecture, depth) ** 2 / sizes.width)
        found.append(Finding(quantity, "free matrices", about(0, allowed), ratio.estimate()))
    for rule, predicted in (("table", at_least(0.25)), ("control", about(0, 0.25))):
        quantity = f"sensitivity x rms(f - y) ~ L^p over training, {NAMES['mlp']}, {_called('mlp', rule)}"
        found += _speeds(results, "mlp", rule).findings(quantity, ("FSF; 1/4 is ours", predicted))
    depth = sizes.train_depths[-1]
    for architecture, name in NAMES.items():
        own = _losses(results, architecture, "control", depth)
        for rule, (source, predicted) in BESIDE[architecture].items():
            other = _losses(results, architecture, rule, depth)
            ratio = combined(lambda ours, theirs: ours[-1] - theirs[-1], own, other)
            quantity = f"log(loss / loss by {_called(architecture, rule)}), control, {name}, L = {depth}"
            found.append(Finding(quantity, source, predicted, ratio.estimate()))
    return found


def _called(architecture: str, rule: str) -> str:
    table = TABLES[architecture]
    names = {"table": f"{table}, SGD", "polyak": f"{table}, Polyak's rate", "adam": f"{table}, Adam"}
    return (names | {"source": "equal shares, f times b L^1/2", "control": "control"})[rule]


def _cosine(architecture: str, depth: int) -> float:
    """cos theta of the last features of infinitely wide networks whose blocks all contribute the same."""
    return float(Scales.source(branch_of(architecture, depth)).cosine(depth))


def draw(results: Results) -> list[Panel]:
    """Sensitivity against depth at the start and over training, and losses against steps."""
    sizes, panels = results.sizes, []
    for architecture, depths in (("mlp", sizes.mlp_depths), ("resnet", sizes.resnet_depths)):
        rules = START if architecture == "mlp" else ("table", "control")
        lines = [_sensitivities(results, architecture, rule).line(_called(architecture, rule)) for rule in rules]
        along = np.geomspace(min(depths), max(depths), 50)
        expected = [1 / _cosine(architecture, depth) for depth in along]
        lines.append(Line("1 / cos theta, closed form", along, expected, curve=True))
        panels.append(Panel(f"at the start, {NAMES[architecture]}", "depth L", "|dh|_rms / |dloss|", lines))
    lines = [
        _speeds(results, architecture, rule).line(f"{_called(architecture, rule)}, {NAMES[architecture]}")
        for architecture in ARCHITECTURES
        for rule in ("table", "control")
    ]
    panels.append(Panel("over training, best rates", "depth L", "|dh|_rms / |dloss| x rms(f - y)", lines))
    for architecture, name in NAMES.items():
        depth, steps = sizes.train_depths[-1], np.arange(sizes.steps + 1)
        lines = [
            Line.of(_called(architecture, rule), steps, _losses(results, architecture, rule, depth).map(_tens))
            for rule in RULES
        ]
        title = f"{name}, L = {depth}, best rate each"
        panels.append(Panel(title, "step", "log10 of the loss, mean", lines, log_x=False, log_y=False))
    return panels


def _tens(logs: np.ndarray) -> np.ndarray:
    return logs / np.log(10)


STUDY = Study(
    name="control",
    number=16,
    claim="with rates eta / (L |grad_l|^2) and scales set by the speed of features, sensitivity |df|_rms / |dloss| "
    "does not grow with depth: flat in ReLU MLPs, where muP's grows as L^1/2, and as flat as depth-muP's in ResNets",
    source="FSF, Jelassi et al. for muP's growth",
    setting="h <- sqrt(1 - b^2) h + b W relu(h), b = 1 or L^-1/2, He-normal W, ends frozen; at the start one input, "
    "scales from another; training on two classes of digits, full batches, a rate each: its loss is of one half of the "
    "seeds, which the other half chose; control asks for a share of the loss a step, as Polyak's rate for all "
    "matrices does",
    sizes={
        "smoke": Sizes(
            mlp_depths=(2, 4),
            resnet_depths=(2, 4),
            width=32,
            seeds=4,
            train_depths=(2, 4),
            train_width=16,
            train_seeds=4,
            samples=2,
            steps=APART,
            lowest=0.25,
            rates=3,
        ),
        "laptop": Sizes(),
        "accelerator": Sizes(
            width=1024, seeds=32, train_depths=(8, 16, 32, 64), train_width=512, train_seeds=16, samples=64, steps=100
        ),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["depth"] * (1 if cell["kind"] == "start" else 40),
    least={"mlp_depths": 2, "resnet_depths": 2, "train_depths": 2},
)
