"""feature_speed_control: layer-wise rates of gradient descent from measured gradient norms and movements of features.

A step of size eta_l along every layer's gradient lowers the loss by sum_l eta_l |grad_l|^2, to first order. Rates
s_l / |grad_l|^2 with shares s_l that add up to 1 make that sum the learning rate itself, and the share of every layer
the one asked for, whatever the widths, the depth and the scales of the weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from nfd_jax._checks import finite_float, positive_int
from nfd_jax._types import Array, PyTree
from nfd_jax.tools._layers import (
    Layers,
    Shares,
    assign_layers,
    precision,
    scaled,
    shares_of,
    squared_norms,
)
from nfd_jax.tools._roles import some

Speed = float | int | Mapping[str, float | int]
WHOLE = "features"  # the name of features that are one array


class FeatureSpeedState(NamedTuple):
    """State of `feature_speed_control`; what is by layer is `()`, or `(layers,)` of a stack.

    `steps`: those taken, without those skipped. `rates`, `norms`: eta_l, per unit of the learning rate, and |grad_l|^2
    when they were last set. `skipped`: by layer, the steps at which its gradient was not finite; `skipped_other`, those
    at which the value of the loss or the movement of the features was not.
    """

    steps: Array
    rates: dict[str, Array]
    norms: dict[str, Array]
    skipped: dict[str, Array]
    skipped_other: Array


def feature_speed_control(
    layers: Layers | None = None,
    *,
    shares: Shares | None = None,
    stacked: Sequence[str] = (),
    every: int = 1,
    minimum: float | int | None = None,
    spread: float | int = 1e6,
    features: Callable[..., Any] | None = None,
    speed: Speed = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Gradients times rates such that every layer contributes its share of the loss decay, at every step.

        optimizer = optax.chain(
            nfd.feature_speed_control({".layers[*].*": "layer *", ".embed.*": None, ".head.*": None}, minimum=0.0),
            optax.scale_by_learning_rate(0.1),  # 10 % of the loss a step
        )
        updates, state = optimizer.update(gradients, state, parameters, value=loss)

    Rates are eta_l = s_l / |grad_l|^2 (Chizat and Netrapalli, The Feature Speed Formula, with s_l = 1/L), so that the
    learning rate eta behind it is the first-order decrease of the loss, eta sum_l s_l. With balanced forward and
    backward scales, as `nfd.balance_scales` sets them, features then move at a speed that does not depend on depth.

    **Arguments:**

    - `layers`: which parameters share a rate. A mapping from patterns of `jax.tree_util.keystr` paths, in which only
      `*` is special (any characters) and the first that fits wins, to names of layers: every `*` in a name stands for
      what the pattern's matched, so that `{".layers[*].*": "layer *"}` makes a layer of each. None freezes. Or a
      function of path and array to a name or None. By default every array is a layer.
    - `shares`: numbers by layer (patterns again), at least 0, in any unit; equal by default.
    - `stacked`: patterns of arrays whose first axis runs over layers, as under `lax.scan`; each has the share.
    - `every`: set the rates at every k-th step only, and take the last ones between.
    - `minimum`: the loss falls by eta times its excess over this number, whose value has to be given to `update` as
      `value=`. By default it falls by eta.
    - `spread`: no rate is more than this times the common rate of all parameters with the same decrease, so that a
      layer with hardly any gradient does not take a huge step. Its share falls short then.
    - `features`: a function of parameters, and of `inputs=` where `update` is given them, to one array or several by
      name. With it the overall rate is such that |df|_rms, to first order, is the learning rate times `speed`: of the
      fastest one, relative to its speed, where there are several. Shares stay in their proportions.
    - `speed`: of the features, one number or one by name (those that it leaves out are free).

    Returns an optax transformation. Its updates are positive multiples of the gradients, so chain
    `optax.scale_by_learning_rate` behind. State: `FeatureSpeedState`, a pytree; `optax.tree.get(state, "rates")` reads
    a part of that of a chain. A layer with a gradient of zero is left alone, and its share goes to none. Where the
    gradient of any layer, a loss that `minimum` needs, or the movement of `features` is not finite, the step is skipped
    (all updates 0, rates kept) and counted by layer.

    **Costs:** a norm a layer, as much as reading the gradients once. With `features` also one forward pass with its
    tangent, of two to three forward passes, at every k-th step.

    **When not to use it.** Rates divide by squared norms, so noise counts as signal: in small batches |grad|^2 is
    mostly the variance of the gradient over the batch size, the loss falls by less than asked, and rates depend on the
    batch size. Without `minimum` the loss is asked to fall by as much at every step, and where it can't, near its
    minimum, |grad| vanishes and the rate diverges: give `minimum` (a loss with a quadratic minimum then has rates that
    converge, as in Polyak's step), or a schedule that falls to 0. With `features` steps don't shrink by themselves
    either, unless `minimum` is given. Clip behind it, not before: gradients made smaller get larger rates. It takes
    gradients, not the directions of another optimizer, such as Adam's, whose decrease of the loss is not |grad|^2.

    Raises ValueError or TypeError, with the names, for patterns that nothing fits, parameters without a layer, features
    that are not returned, a loss that is no scalar, and extra arguments that are missing.
    """
    every = positive_int("every", every)
    spread = finite_float("spread", spread, 1.0)
    floor = None if minimum is None else finite_float("minimum", minimum, -jnp.inf)
    movement = None if features is None else Movement.of(features, speed)
    if features is None and speed != 1.0:
        raise ValueError(f"speed={speed!r} is that of features, and none are given; give features, or leave it out")

    def init(params: PyTree) -> FeatureSpeedState:
        places = assign_layers(params, layers, stacked)
        shares_of(places, shares)
        zeros = {name: jnp.zeros_like(norm) for name, norm in squared_norms(params, places).items()}
        none = {name: jnp.zeros(zero.shape, jnp.int32) for name, zero in zeros.items()}
        nothing = jnp.zeros((), jnp.int32)
        return FeatureSpeedState(nothing, zeros, dict(zeros), none, nothing)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        value: Any = None,
        inputs: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        places = assign_layers(updates, layers, stacked)
        norms = squared_norms(updates, places)
        _check_state(norms, state)
        excess = _excess(value, floor)
        infinite = {name: ~jnp.isfinite(norm) for name, norm in norms.items()}
        lost = ~jnp.isfinite(excess)
        usable = ~lost & _all(~each for each in infinite.values())

        def measured() -> dict[str, Array]:
            rates = rates_of(norms, shares_of(places, shares), spread)
            if movement is not None:
                fastest = movement.fastest(params, scaled(updates, places, rates), inputs)
                factor = jnp.where(jnp.isfinite(fastest), _ratio(1.0, fastest), jnp.nan)
                rates = {name: rate * factor for name, rate in rates.items()}
            return {name: rate * excess for name, rate in rates.items()}

        due = usable & (state.steps % every == 0)
        rates, kept = lax.cond(due, lambda: (measured(), norms), lambda: (state.rates, state.norms))
        applied, after = _after(state, rates, kept, infinite, lost)
        return scaled(updates, places, applied), after

    return optax.GradientTransformationExtraArgs(init, update)


def _after(
    state: FeatureSpeedState,
    rates: Mapping[str, Array],
    norms: dict[str, Array],
    infinite: Mapping[str, Array],
    lost: Array,
) -> tuple[dict[str, Array], FeatureSpeedState]:
    """The rates of this step, 0 where it is skipped, and the state after it."""
    sound = _all(jnp.isfinite(rate) for rate in rates.values())
    usable = sound & ~lost & _all(~each for each in infinite.values())
    kept = {name: jnp.where(sound, rate, state.rates[name]) for name, rate in rates.items()}
    applied = {name: jnp.where(usable, rate, jnp.zeros_like(rate)) for name, rate in kept.items()}
    skipped = {name: state.skipped[name] + each.astype(jnp.int32) for name, each in infinite.items()}
    steps, others = state.steps + usable.astype(jnp.int32), (lost | ~sound).astype(jnp.int32)
    return applied, FeatureSpeedState(steps, kept, norms, skipped, state.skipped_other + others)


def _all(conditions: Iterable[Array]) -> Array:
    return jnp.stack([jnp.all(each) for each in conditions]).all()


def rates_of(norms: Mapping[str, Array], shares: Mapping[str, float], spread: float) -> dict[str, Array]:
    """eta_l = s_l / |grad_l|^2, at most `spread` / sum_l |grad_l|^2, and 0 where the gradient is."""
    total = sum(jnp.sum(norm) for norm in norms.values())
    rates = {}
    for name, norm in norms.items():
        share = jnp.asarray(shares[name], norm.dtype)
        rate = _ratio(share, jnp.maximum(norm, share * total / spread))
        rates[name] = jnp.where(norm > 0, rate, 0.0)
    return rates


def _ratio(numerator: Any, denominator: Any) -> Any:
    """0 where the denominator is."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1.0), 0.0)


def _excess(value: Any, floor: float | None) -> Array:
    """What the decrease is a multiple of: 1, or the loss over its minimum, never negative."""
    if value is not None:
        loss = jnp.asarray(value)
        if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(
                f"value must be the loss, one real number, got {loss.dtype}{list(loss.shape)}; take the mean"
            )
    if floor is None:
        return jnp.ones((), precision())
    if value is None:
        raise ValueError("minimum needs the loss: call update(gradients, state, parameters, value=loss)")
    return jnp.maximum(jnp.asarray(value, precision()) - floor, 0.0)


def _check_state(norms: Mapping[str, Array], state: FeatureSpeedState) -> None:
    shapes = [{name: each.shape for name, each in found.items()} for found in (norms, state.rates)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the updates must be of the tree given to init, with layers {some(list(state.rates))}; got "
            f"{some(list(norms))}"
        )


class Movement(NamedTuple):
    """How fast features move as parameters do."""

    features: Callable[..., Any]
    speed: Speed

    @classmethod
    def of(cls, features: Callable[..., Any], speed: Speed) -> Movement:
        """Checked."""
        if not callable(features):
            raise TypeError(f"features must be a function of parameters, got {features!r}")
        if isinstance(speed, Mapping):
            given = {name: finite_float(f"speed[{name!r}]", each, strict=True) for name, each in speed.items()}
            if not given:
                raise ValueError("speed must name at least one feature, got {}")
            return cls(features, given)
        return cls(features, finite_float("speed", speed, strict=True))

    def fastest(self, params: PyTree, direction: PyTree, inputs: Any) -> Array:
        """The largest ratio of a feature's rms movement along a direction to its speed."""
        if params is None:
            raise ValueError("features are functions of the parameters: call update(gradients, state, parameters)")
        moved = movements(lambda params: self._named(params, inputs), params, direction)
        asked = self.speed if isinstance(self.speed, Mapping) else dict.fromkeys(moved, self.speed)
        missing = [name for name in asked if name not in moved]
        if missing:
            raise ValueError(f"speed names {some(missing)}, which features does not return; it has {some(list(moved))}")
        return jnp.stack([moved[name] / speed for name, speed in asked.items()]).max()

    def _named(self, params: PyTree, inputs: Any) -> Mapping[str, Any]:
        found = self.features(params) if inputs is None else self.features(params, inputs)
        return found if isinstance(found, Mapping) else {WHOLE: found}


def movements(features: Callable[[PyTree], Mapping[str, Any]], params: PyTree, direction: PyTree) -> dict[str, Array]:
    """Root mean square over all entries of the derivative of every feature along a direction, by name."""
    tangent = jax.tree.map(lambda at, along: along.astype(at.dtype), params, direction)
    _, moved = jax.jvp(features, (params,), (tangent,))
    for name, each in moved.items():
        if not hasattr(each, "dtype") or not jnp.issubdtype(each.dtype, jnp.floating):
            raise TypeError(f"features must return arrays of real numbers, got {type(each).__name__} for {name!r}")
    return {name: jnp.sqrt(jnp.mean(each.astype(precision()) ** 2)) for name, each in moved.items()}
