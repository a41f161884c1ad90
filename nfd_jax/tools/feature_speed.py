"""feature_speed: how fast features move under one step of an optimizer, and at which angle to the loss gradient.

One step moves the features f_v by df_v, and b_v is the loss gradient with respect to them. To first order in the rates

    |df_v| |b_v| cos(theta_v) = -sum_{l <= v} <grad_l, dW_l>        ( = sum_{l <= v} eta_l |grad_l|^2 for SGD )

where theta_v is the angle between df_v and -b_v, and the sum is over what the layers up to v take off the loss (the
feature speed formula, Chizat and Netrapalli, arXiv 2311.18718, theorem 1). It holds for features through which all
that these layers do to the loss passes, such as a residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nfd_jax._text import in_columns
from nfd_jax._types import Array, PyTree
from nfd_jax.tools._experiment import check_batch, check_loss
from nfd_jax.tools._roles import by_pattern, check_transformation, path_name
from nfd_jax.tools._shifts import PARAMETER, Features, Program, check_named, traced
from nfd_jax.tools.coordinate_check import squared_loss

Layers = Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, eq=False)
class FeatureSpeed:
    """What one step does to the features of every layer, arrays `(layers,)` in the order of `names`.

    With N the entries of f_v, samples included:

    - `cosine`: of the backward-feature angle theta_v, between df_v and -b_v; 0 of a dead layer.
    - `speed`: |df_v| / sqrt(N), the root mean square movement to first order; `moved`: that of the whole step.
    - `backward`: sqrt(N) |b_v|, so that cosine x speed x backward is what the movement of f_v takes off the loss.
    - `decay`: -sum_{l <= v} <grad_l, dW_l>, what the parameters of the layers up to v take off the loss.
    - `sensitivity`: speed over `loss_decay`, what the whole step takes off the loss to first order.
    """

    names: tuple[str, ...]
    cosine: np.ndarray
    speed: np.ndarray
    moved: np.ndarray
    backward: np.ndarray
    decay: np.ndarray
    loss: float
    loss_decay: float
    loss_change: float

    @classmethod
    def of(cls, names: tuple[str, ...], found: Mapping[str, np.ndarray]) -> FeatureSpeed:
        """From arrays by name, of which others are left out."""
        layers = {name: found[name] for name in ("cosine", "speed", "moved", "backward", "decay")}
        loss, decay, change = (float(found[name]) for name in ("loss", "loss_decay", "loss_change"))
        return cls(names, **layers, loss=loss, loss_decay=decay, loss_change=change)

    @property
    def through(self) -> np.ndarray:
        """-<b_v, df_v>: the left side of the formula, whose right side is `decay`."""
        return self.cosine * self.speed * self.backward

    @property
    def sensitivity(self) -> np.ndarray:
        """Movement over what the step takes off the loss, to first order; infinite where it takes nothing."""
        return np.divide(self.speed, self.loss_decay, out=np.full_like(self.speed, np.inf), where=self.loss_decay != 0)

    @property
    def dead(self) -> tuple[str, ...]:
        """The layers that do not move, or whose movement the loss does not see to first order."""
        return tuple(name for name, size in zip(self.names, self.speed * self.backward, strict=True) if size == 0)

    def table(self) -> str:
        """All numbers, one layer a line."""
        columns = "cosine", "speed", "moved", "backward", "decay", "sensitivity"
        lines: list[tuple[str, ...]] = [("layer", *columns, "")]
        for place, name in enumerate(self.names):
            numbers = (f"{getattr(self, column)[place]:.4g}" for column in columns)
            lines.append((name, *numbers, "dead" if name in self.dead else ""))
        whole = f"loss {self.loss:.4g}, changed by {self.loss_change:.4g}, to first order by {-self.loss_decay:.4g}"
        return f"{in_columns(lines)}\n{whole}"

    def __str__(self) -> str:
        return self.table()


def feature_speed(
    model: PyTree,
    features: Features,
    inputs: PyTree,
    targets: PyTree,
    *,
    output: str,
    optimizer: optax.GradientTransformation,
    state: PyTree | None = None,
    loss: Callable[[Any, Any], Any] = squared_loss,
    layers: Layers | None = None,
) -> FeatureSpeed:
    """Angle, speed, loss decay and sensitivity of every layer of a model of one's own, under one step of any optimizer.

        def features(model, inputs):
            h = jax.vmap(model.embed)(inputs)
            found = {"embedded": h}
            for number, block in enumerate(model.blocks):
                h = h + jax.vmap(block)(h)
                found[f"block {number}"] = h
            return found | {"outputs": jax.vmap(model.head)(h)}

        print(nfd.feature_speed(model, features, inputs, targets, output="outputs", optimizer=optax.sgd(0.1)))

    **Arguments:**

    - `model`: any pytree; its arrays of inexact dtype are the parameters.
    - `features`: `(model, inputs)` to named arrays of activations on the whole batch, as `coordinate_check` takes it.
      They must be the very arrays with which the model goes on, not copies: `h` above, not `h[None]`. Those stacked by
      `jax.lax.scan` are copies: write a loop.
    - `inputs`, `targets`: one batch of finite numbers; whatever `features` and `loss` take.
    - `output`: the feature that enters the loss.
    - `optimizer`: any optax transformation, rate and sign included, such as `optax.sgd(0.1)`; what it returns is added
      to the parameters. `state`: its state at this step, by default that of a first step.
    - `loss`: `(outputs, targets)` to a number, by default the mean of (1/2) |f - y|^2.
    - `layers`: the features to measure, by default all but the output. Up to a feature are then the parameters that
      enter it. Or a mapping from features, in their order, to patterns of the paths of the parameters of that layer,
      such as `{"embedded": ".embed.*", "block 0": ".blocks[0].*"}`: up to a feature are those that it and the
      features before it name, as where the blocks are slices of one array or have several features.

    Movements are exact to first order (forward derivatives), and `moved` is that of the whole step; in float32 the
    latter is rounded where a step is short. Returns a `FeatureSpeed`. Raises ValueError or TypeError for bad arguments
    before compiling, and ValueError where the gradient is zero or a number is not finite, by the name of the feature.
    """
    check_transformation("optimizer must be", optimizer)
    if not callable(loss):
        raise TypeError(f"loss must be a function of outputs and targets, got {loss!r}")
    check_batch("inputs", inputs)
    check_batch("targets", targets)
    program = traced(features, model, inputs)
    check_named("output", [output], program.names)
    check_loss(loss, program.zeros([output])[output], targets)
    names, up_to = up_to_layers(program, layers, output)
    check_seen(program, names, output)
    if state is None:
        state = optimizer.init(program.parameters)
    found = _measured(features, loss, output, names, up_to, optimizer, state, model, inputs, targets)
    found = {name: np.asarray(values, np.float64) for name, values in found.items()}
    check_finite(names, found)
    return FeatureSpeed.of(names, found)


@eqx.filter_jit
def _measured(
    features: Features,
    loss: Callable[[Any, Any], Any],
    output: str,
    names: tuple[str, ...],
    up_to: tuple[tuple[bool, ...], ...],
    optimizer: optax.GradientTransformation,
    state: PyTree,
    model: PyTree,
    inputs: PyTree,
    targets: PyTree,
) -> dict[str, Array]:
    program = Program(features, model, inputs)
    parameters = program.parameters

    def objective(parameters: PyTree, shifts: dict[str, Array]) -> tuple[Any, dict[str, Array]]:
        found = program.run(parameters, shifts)
        return loss(found[output], targets), found

    (value, before), (gradients, backward) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
        parameters, program.zeros(names)
    )
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of integer counts
        updates, _ = optimizer.update(gradients, state, parameters)
    moved = jax.jvp(lambda parameters: program.run(parameters, {}), (parameters,), (updates,))[1]
    value_after, after = objective(optax.apply_updates(parameters, updates), {})
    products = [-_inner(g, u) for g, u in zip(*map(jax.tree.leaves, (gradients, updates)), strict=True)]
    whole = {
        "loss": value,
        "loss_decay": sum(products),
        "loss_change": value_after - value,
        "gradient": jnp.sqrt(sum(_inner(leaf, leaf) for leaf in jax.tree.leaves(gradients))),
        "decay": jnp.stack(
            [sum((p for p, within in zip(products, up, strict=True) if within), 0.0 * value) for up in up_to]
        ),
    }
    layers = [angle(moved[name], backward[name]) | {"moved": rms(after[name] - before[name])} for name in names]
    return whole | {key: jnp.stack([layer[key] for layer in layers]) for key in layers[0]}


def angle(moved: Array, backward: Array) -> dict[str, Array]:
    """Cosine between a movement and minus a gradient, 0 where one is zero, with their sizes as `FeatureSpeed` has them:
    those of all entries together."""
    product, count = -_inner(moved, backward), moved.size
    speed, pull = rms(moved), count * rms(backward)
    size = speed * pull
    alive = size > 0
    return {"cosine": jnp.where(alive, product / jnp.where(alive, size, 1), 0), "speed": speed, "backward": pull}


def rms(values: Array) -> Array:
    """Root mean square over all entries, in which small numbers do not vanish when they are squared."""
    largest = jnp.max(jnp.abs(values))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.mean((values / scale) ** 2))


def _inner(one: Array, other: Array) -> Array:
    return jnp.sum(one * other)


def up_to_layers(
    program: Program, layers: Layers | None, output: str
) -> tuple[tuple[str, ...], tuple[tuple[bool, ...], ...]]:
    """The features to measure, and of every parameter whether it is of the layers up to each."""
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(program.parameters)]
    if isinstance(layers, str) or not isinstance(layers, Sequence | Mapping | None):
        raise TypeError(f"layers must be names of features, or map them to patterns of parameters, got {layers!r}")
    names = tuple(layers) if layers is not None else tuple(name for name in program.names if name != output)
    check_named("layers", names, program.names)
    if not names:
        raise ValueError("layers must name a feature, got none; features has to return more than the output")
    if not isinstance(layers, Mapping):
        ancestors = program.ancestors()
        return names, tuple(tuple((PARAMETER, path) in ancestors[name] for path in paths) for name in names)
    patterns = {pattern: name for name, given in layers.items() for pattern in _listed(given)}
    of_layer = by_pattern("layers", patterns, dict.fromkeys(paths))
    place = {name: number for number, name in enumerate(names)}
    last = [place.get(of_layer.get(path, ""), len(names)) for path in paths]
    return names, tuple(tuple(number <= place[name] for number in last) for name in names)


def _listed(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def check_seen(program: Program, names: Sequence[str], output: str) -> None:
    """ValueError where the output is made of no array that features returns under a name."""
    ancestors = program.ancestors()[output]
    for name in names:
        if ("feature", name) not in ancestors:
            raise ValueError(
                f"features returns {name!r}, but makes nothing of that array that enters {output!r}: return the array "
                "itself with which the model goes on, no copy, slice or scanned stack of it"
            )


def check_finite(names: Sequence[str], found: Mapping[str, np.ndarray]) -> None:
    """ValueError by the name of the first feature that is not finite, or where nothing is to be descended."""
    for place, name in enumerate(names):
        for quantity in ("moved", "speed", "backward", "cosine", "decay"):
            if not np.isfinite(found[quantity][place]):
                raise ValueError(
                    f"feature {name!r} has a {quantity} that is not finite, {found[quantity][place]}; lower the rate, "
                    "or look at what the layers up to it make of these inputs"
                )
    if not np.isfinite(found["loss"]) or not np.isfinite(found["gradient"]):
        raise ValueError(f"loss must be finite with its gradient, got {found['loss']} and {found['gradient']}")
    if found["gradient"] == 0:
        raise ValueError("the gradient of the loss is zero in every parameter: there is no step to measure")
