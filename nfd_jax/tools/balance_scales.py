"""balance_scales: forward and backward scales of a model of one's own, set by what is measured in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import scipy

from nfd_jax._checks import finite_float, positive_int
from nfd_jax._text import in_columns
from nfd_jax._types import PyTree
from nfd_jax.tools._experiment import Features, check_loss, is_real, rms
from nfd_jax.tools._layers import (
    Layers,
    Place,
    Shares,
    assign_layers,
    named_by_pattern,
    real_arrays,
    scaled,
    shares_of,
    squared_norms,
)
from nfd_jax.tools._roles import path_name, some
from nfd_jax.tools.coordinate_check import squared_loss
from nfd_jax.tools.feature_speed_control import movements, rates_of

CLOSE = 1e-3  # how near, in proportion, a size or a speed has to come to the one asked for
MOST = 60  # doublings and halvings of a readout


def balance_scales(
    model: PyTree,
    features: Features,
    inputs: PyTree,
    targets: PyTree,
    *,
    scales: Mapping[str, str],
    readout: Sequence[str],
    output: str,
    of: str,
    loss: Callable[[Any, Any], Any] = squared_loss,
    layers: Layers | None = None,
    shares: Shares | None = None,
    stacked: Sequence[str] = (),
    size: float | int = 1.0,
    speed: float | int = 1.0,
    rounds: int = 20,
) -> BalancedScales:
    """Rescale initial weights so that features are of size 1 and move at a set speed under `feature_speed_control`.

        balanced = nfd.balance_scales(
            model, features, x, y,
            scales={".layers[*].weight": "layer *"}, readout=[".head.weight"], output="f", of="layer 31",
            layers={".layers[*].weight": "layer *", "*": None},
        )
        model = balanced.model

    Forward: one after another in the order in which `features` returns them, features get a root mean square of `size`
    by a factor of their weights (as in layer-sequential unit-variance initialisation, Mishkin and Matas). Backward: the
    readout is multiplied so that the sensitivity |df|_rms / |dloss| of one feature under the rates of
    `feature_speed_control` is `speed` (Chizat and Netrapalli, The Feature Speed Formula: it is 1 / (|b| cos theta
    sqrt(entries)), and the readout sets the size of the backward pass b). In a deep ReLU MLP, where cos theta falls as
    the root of the depth, outputs become larger than muP's by that root; in a ResNet of branches of L^-1/2 they don't.

    **Arguments:**

    - `model`, `features`: any pytree, and `(model, inputs)` to named arrays of activations, as for `coordinate_check`.
    - `inputs`, `targets`: one batch.
    - `scales`: patterns of paths of weights to the features that they set; every `*` in a name stands for what the
      pattern's matched. Pre-activations, or branches before they are added to a stream; of one weight each, or of
      several whose images add up. Biases may be left out.
    - `readout`: patterns of the paths that multiply the backward pass of all features and have no feature above.
    - `output`, `loss`: the feature that enters the loss, and `(outputs, targets)` to a number.
    - `of`: the feature whose sensitivity is set, mostly the last one.
    - `layers`, `shares`, `stacked`: those of `feature_speed_control`.
    - `size`, `speed`: 1 by default. With eta of the learning rate the loss falls by eta and the feature moves by
      eta times `speed`.
    - `rounds`: most rescalings of one feature. One is enough where a feature is linear in its weights.

    Returns `BalancedScales`. It takes a forward pass a feature and round, of one compiled program, and for the readout
    some ten passes forward, backward and forward again with tangents. Raises ValueError or TypeError for names that are
    not there, features that are 0, not finite, out of order, or don't come to their size.
    """
    size, speed = finite_float("size", size, strict=True), finite_float("speed", speed, strict=True)
    rounds = positive_int("rounds", rounds)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    paths = list(real_arrays(arrays))
    places = assign_layers(arrays, layers, stacked)
    named = _check_features(model, features, inputs, targets, loss, output)
    feature_of = _feature_of(scales, paths, named)
    if of not in named:
        raise ValueError(f"of must be a feature, got {of!r}; features returns {some(list(named))}")
    last = list(named_by_pattern("readout", dict.fromkeys(_patterns(readout)), paths))

    def computed(arrays: PyTree, inputs: PyTree) -> Mapping[str, Any]:
        return features(eqx.combine(arrays, static), inputs)

    sizes_of = jax.jit(lambda arrays, inputs: {name: rms(each) for name, each in computed(arrays, inputs).items()})
    sensitivity = _sensitivity(computed, loss, output, of, places, shares_of(places, shares))
    factors = dict.fromkeys(paths, 1.0)
    for name in (name for name in named if name in feature_of.values()):
        own = [path for path, feature in feature_of.items() if feature == name]
        arrays = _settled(
            f"the size of feature {name!r}",
            lambda arrays: float(size / sizes_of(arrays, inputs)[name]),  # noqa: B023
            *(arrays, own, factors, rounds),
        )
    multiplier = _readout_factor(
        lambda factor: float(sensitivity(_times(arrays, last, factor), inputs, targets)) / speed, of, last
    )
    factors |= {path: factors[path] * multiplier for path in last}
    arrays = _times(arrays, last, multiplier)
    measured = sizes_of(arrays, inputs)
    sizes = {name: float(measured[name]) for name in named}
    moved = [name for name in feature_of.values() if abs(math.log(sizes[name] / size)) > 2 * CLOSE]
    if moved:
        raise ValueError(
            f"features must be returned in the order in which they are computed, each before those made of it: "
            f"{some(moved)} changed again as weights of later ones were rescaled"
        )
    found = float(sensitivity(arrays, inputs, targets))
    return BalancedScales(eqx.combine(arrays, static), factors, sizes, of, found)


@dataclass(frozen=True, eq=False)
class BalancedScales:
    """A model with balanced scales and what was measured in it; print it to see all.

    `factors`: by which every parameter was multiplied, by path. `sizes`: root mean squares of all features afterwards.
    `sensitivity`: |df|_rms / |dloss| of the feature `of` under the rates of `feature_speed_control`.
    """

    model: PyTree = field(repr=False)
    factors: Mapping[str, float]
    sizes: Mapping[str, float]
    of: str
    sensitivity: float

    def table(self) -> str:
        """Factors, sizes and the sensitivity as text."""
        changed = [
            ("parameter", "times"),
            *((path, f"{value:.4g}") for path, value in self.factors.items() if value != 1),
        ]
        sizes = [("feature", "size"), *((name, f"{value:.4g}") for name, value in self.sizes.items())]
        last = f"sensitivity |df|_rms / |dloss| of {self.of}: {self.sensitivity:.4g}"
        return "\n\n".join([in_columns(changed), in_columns(sizes), last])

    def __str__(self) -> str:
        return self.table()


def _sensitivity(
    computed: Callable[[PyTree, PyTree], Mapping[str, Any]],
    loss: Callable[[Any, Any], Any],
    output: str,
    of: str,
    places: Mapping[str, Place | None],
    shares: Mapping[str, float],
) -> Callable[[PyTree, PyTree, PyTree], Any]:
    """|df|_rms / |dloss| of one feature under a step of `feature_speed_control`, of arrays, inputs and targets."""

    @jax.jit
    def sensitivity(arrays: PyTree, inputs: PyTree, targets: PyTree) -> Any:
        gradients = jax.grad(lambda arrays: loss(computed(arrays, inputs)[output], targets))(arrays)
        norms = squared_norms(gradients, places)
        rates = rates_of(norms, shares, math.inf)
        step = scaled(gradients, places, rates)
        speeds = movements(lambda arrays: {of: computed(arrays, inputs)[of]}, arrays, step)
        return speeds[of] / sum(jnp.sum(rates[name] * norm) for name, norm in norms.items())

    return sensitivity


def _settled(
    what: str,
    correction: Callable[[PyTree], float],
    arrays: PyTree,
    paths: Sequence[str],
    factors: dict[str, float],
    rounds: int,
) -> PyTree:
    """`arrays` with those at `paths` multiplied until nothing is left to correct; `factors` are told."""
    for left in range(rounds, -1, -1):
        factor = correction(arrays)
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(
                f"{what} can't be set: at the initial weights it, or what divides it, is 0 or not finite; draw weights "
                "that are not 0, and smaller ones where features overflow"
            )
        if abs(math.log(factor)) < CLOSE:
            break
        if not left:
            raise ValueError(
                f"{what} is off by a factor of {factor:.3g} after rounds={rounds} rescalings of {some(list(paths))}; "
                "name the weights in which it is linear, or raise rounds"
            )
        factors |= {path: factors[path] * factor for path in paths}
        arrays = _times(arrays, paths, factor)
    return arrays


def _readout_factor(excess: Callable[[float], float], of: str, paths: Sequence[str]) -> float:
    """The smallest factor of the readout at which the sensitivity is the one asked for: `excess`, its ratio to that,
    is in proportion to 1 / factor while outputs are small, and no power where they are not."""
    first, low = excess(1.0), 1.0
    if not (math.isfinite(first) and first > 0):
        raise ValueError(
            f"the sensitivity of feature {of!r} must be positive and finite at the initial weights, got {first:g}; "
            f"draw {some(list(paths))} not 0, and name layers that move the feature"
        )
    for _ in range(MOST):  # below the root, then just above
        if excess(low) > 1:
            break
        low /= 2
    high = low
    for _ in range(MOST):
        if excess(high) <= 1:
            break
        low, high = high, 2 * high
    if not excess(low) >= 1 >= excess(high):
        raise ValueError(
            f"no multiple of {some(list(paths))} gives feature {of!r} the speed asked for; factors {low:.3g} to "
            f"{high:.3g} were tried: give a readout that multiplies its whole backward pass, or another speed"
        )
    if low == high:
        return low
    root: Any = scipy.optimize.brentq(
        lambda at: math.log(excess(math.exp(at))), math.log(low), math.log(high), xtol=CLOSE / 10
    )
    return math.exp(root)


def _times(arrays: PyTree, paths: Sequence[str], factor: float) -> PyTree:
    """With those at `paths` multiplied."""

    def leaf(path: Any, value: Any) -> Any:
        return value * jnp.asarray(factor, value.dtype) if path_name(path) in paths else value

    return jax.tree_util.tree_map_with_path(leaf, arrays)


def _patterns(readout: Sequence[str]) -> Sequence[str]:
    if isinstance(readout, str):
        raise TypeError(f"readout must be a sequence of patterns, got {readout!r}; write [{readout!r}]")
    if not readout:
        raise ValueError("readout must name at least one pattern of paths, got none")
    return readout


def _feature_of(scales: Mapping[str, str], paths: Sequence[str], named: Sequence[str]) -> dict[str, str]:
    """Feature by path of its weights."""
    found = {path: name for path, name in named_by_pattern("scales", scales, paths).items() if name is not None}
    missing = [f"{name!r} (for {path})" for path, name in found.items() if name not in named]
    if missing:
        raise ValueError(f"scales names {some(missing)}, which features does not return; it has {some(list(named))}")
    return found


def _check_features(
    model: PyTree, features: Features, inputs: PyTree, targets: PyTree, loss: Callable[[Any, Any], Any], output: str
) -> list[str]:
    """Names of all features; ValueError or TypeError unless they are real arrays and the loss of one is a number."""
    order: list[str] = []

    def listed(model: PyTree, inputs: PyTree) -> Mapping[str, Any]:
        found = features(model, inputs)
        if not isinstance(found, Mapping):
            raise TypeError(f"features must return a mapping from names to arrays, got {type(found).__name__}")
        order[:] = found  # traced functions return names sorted
        return found

    named = eqx.filter_eval_shape(listed, model, inputs)
    for name, each in named.items():
        if not is_real(each):
            raise TypeError(f"features must return arrays of real numbers, got {each} for {name!r}")
    if output not in named:
        raise ValueError(f"output must be a feature, got {output!r}; features returns {some(list(named))}")
    check_loss(loss, named[output], targets)
    return order
