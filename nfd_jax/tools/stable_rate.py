"""stable_rate: the largest learning rate at which a training code of one's own is stable, against the width.

Networks of every width are trained at rates that bisect, in every seed, the border between stable ones and others. The
exponent of that border in n tells parametrizations apart: under SGD it is 0 for muP, -1 for standard parametrization
with squared loss, and -1/2 with cross-entropy (Haas et al.). What it predicts at another width is tested there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from nfd_jax._checks import finite_float, positive_int
from nfd_jax._functions import blamed
from nfd_jax._types import Array, PyTree
from nfd_jax.seeds import seed_key, seed_sequence
from nfd_jax.tools._experiment import check_batch, check_loss, rms
from nfd_jax.tools._roles import check_transformation
from nfd_jax.tools._stability import (
    BOUND,
    NOTHING,
    RULES,
    TRAINS,
    StableRate,
    WidthRates,
    brackets,
    obeys,
    settled,
)
from nfd_jax.tools.coordinate_check import check_sizes, squared_loss

Optimizer = Callable[[Any], optax.GradientTransformation]
Build = Callable[[Any, int], tuple[PyTree, Optimizer]]
Features = Callable[[Any, Any], Mapping[str, Any]]
Probe = Callable[[np.ndarray], dict[str, np.ndarray]]  # what is seen of all seeds at log2 rates (seeds,)
SCAN = 2.0  # octaves between rates among which the border is looked for, before it is bisected
SEEN = ("features", "logits", "loss", "gradients")  # in the order in which a step computes them


def stable_rate(
    build: Build,
    features: Features,
    inputs: PyTree,
    targets: PyTree,
    *,
    output: str,
    loss: Callable[[Any, Any], Any] = squared_loss,
    widths: Sequence[int] = (64, 128, 256),
    predict: int | None = None,
    expected: float | int | None = None,
    steps: int = 100,
    seeds: int | Sequence[int] = 8,
    rates: Sequence[float | int] = (1e-6, 1e3),
    resolution: float | int = 0.125,
    allowance: float | int = 0.15,
) -> StableRate:
    """Bisect the largest stable rate of networks of one's own at some widths, fit its exponent in n, and test what that
    predicts at another width.

        def build(key, width):
            return MyNetwork(key, width), optax.sgd  # or a function of the rate: lambda rate: optax.adam(rate, b1=0.8)

        def features(model, inputs):  # batches
            ...
            return {"first": first, "last": last, "f": outputs}

        found = nfd.stable_rate(build, features, inputs, targets, output="f", loss=cross_entropy, expected=-0.5)
        print(found)
        found.plot("rates.png")

    **Arguments:**

    - `build`: `(key, width)` to a model, any pytree, and its optimizer, which takes a rate to an optax transformation,
      and does not depend on the key. The rate is traced by jax: it may be multiplied, but not branched on.
    - `features`: `(model, inputs)` to named arrays of activations on the whole batch, of any shapes.
    - `inputs`, `targets`: one batch of finite numbers, on which all steps train; whatever `features` and `loss` take.
    - `output`: the feature that enters the loss.
    - `loss`: `(outputs, targets)` to a number, by default the mean of (1/2) |f - y|^2.
    - `widths`: at least two. `predict`: another one, by default twice the largest.
    - `expected`: the exponent of the largest stable rate in n that the parametrization promises, if any.
    - `steps`: of training. With more of them, what grows slowly is found unstable too.
    - `seeds`: a count S (seeds 0 to S-1) or a sequence of at least two integers. Every width draws afresh.
    - `rates`: the first and the last of the search. Rates a factor of 4 apart are tried, and the border between the
      last stable one and the first that is not is bisected, in every seed, to `resolution` octaves.
    - `allowance`: for corrections of finite size, in an exponent.

    A rate is stable where the loss, averaged over the last quarter of the steps, has come at least half the way to what
    it is at the best rate tried: from the start, or from the loss of outputs of 0, which networks have whose units have
    died, where that is lower. The border is the first above the best rate. It does not matter how large the loss was on
    the way. As sources differ, two other rules stand beside it: that the loss stays finite, and that it never exceeds
    ten times that at the start. What left first is judged at twice the largest stable rate: whichever of features,
    logits, loss and gradients is the first to overflow, or to exceed ten times what it is at most at half of that rate,
    the loss a hundred times, as it may be the square of logits.

    Exponents are of widths far above the number of inputs: with as many, the input layer has a share of its own. Units
    that die save networks of ReLU: catapulted far beyond their linear stability they go on with the few units
    that are left, and the largest rate falls more slowly with n than counting has it, at widths of hundreds.

    Returns a `StableRate`. Raises ValueError or TypeError for bad arguments before compiling, where the loss is not
    finite at the start, and where `rates` are all stable or all diverge.
    """
    members = seed_sequence(seeds)
    if len(members) < 2:
        raise ValueError(f"seeds must be at least two for an interval, got {seeds!r}")
    widths = check_sizes("widths", widths, 2)
    other = 2 * widths[-1] if predict is None else positive_int("predict", predict)
    if other in widths:
        raise ValueError(f"predict must be a width that the law is not fitted to, {widths}, got {other}")
    ends = _ends(rates)
    resolution, allowance = finite_float("resolution", resolution, strict=True), finite_float("allowance", allowance)
    promised = None if expected is None else finite_float("expected", expected, -np.inf)
    for name, function in (("build", build), ("features", features), ("loss", loss)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")
    check_batch("inputs", inputs)
    check_batch("targets", targets)
    count = positive_int("steps", steps, 4)
    trial = Trial(_built(build, widths[0]), build, features, loss, output, count, inputs, targets)
    trial.check()
    found = [_searched(trial, width, members, ends, resolution) for width in (*widths, other)]
    title = f"largest stable rate, {len(members)} seeds, {trial.steps} steps, widths {widths[0]} to {widths[-1]}"
    return StableRate(title, tuple(found[:-1]), found[-1], promised, allowance)


def _ends(rates: Any) -> tuple[float, float]:
    """log2 of the two rates of a search."""
    if not isinstance(rates, Sequence) or isinstance(rates, str) or len(rates) != 2:
        raise TypeError(f"rates must be two numbers, a stable rate and one that is not, got {rates!r}")
    low, high = (finite_float("rates", rate, strict=True) for rate in rates)
    if low >= high:
        raise ValueError(f"rates must be a stable one and a larger one that is not, got {rates!r}")
    return float(np.log2(low)), float(np.log2(high))


def _built(build: Build, width: int) -> PyTree:
    """The model that `build` returns; TypeError unless it comes with an optimizer."""
    built = build(jax.random.key(0), width)
    if not isinstance(built, tuple) or len(built) != 2 or not callable(built[1]):
        raise TypeError(f"build must return a model and its optimizer, a function of the rate, got {built!r:.80}")
    check_transformation("the optimizer of build must take a rate to", built[1](0.1))
    return built[0]


@dataclass(frozen=True, eq=False)
class Trial:
    """What is trained, at any width and rate."""

    model: PyTree  # an example
    build: Build
    features: Features
    loss: Callable[[Any, Any], Any]
    output: str
    steps: int
    inputs: PyTree
    targets: PyTree

    def check(self) -> None:
        """ValueError or TypeError unless features and loss return what is used."""
        named = eqx.filter_eval_shape(self.features, self.model, self.inputs)
        if not isinstance(named, Mapping):
            raise TypeError(f"features must return a mapping from names to arrays, got {type(named).__name__}")
        if self.output not in named:
            raise ValueError(f"output={self.output!r} is not what features returns; it has {', '.join(named)}")
        check_loss(self.loss, named[self.output], self.targets)

    @cached_property
    def trivial(self) -> float:
        """The loss of outputs of 0, as networks give whose units have died; infinite where it is not finite."""
        shape = eqx.filter_eval_shape(self.features, self.model, self.inputs)[self.output]
        value = float(self.loss(jnp.zeros(shape.shape, shape.dtype), self.targets))
        return value if np.isfinite(value) else np.inf

    def probe(self, width: int, seeds: Sequence[int]) -> Probe:
        """Training of networks of these seeds, each at its own rate: `(seeds, steps + 1)` of every quantity of `SEEN`.

        Compiled once.
        """
        built = [self.build(jax.random.fold_in(seed_key(seed), width), width) for seed in seeds]
        models, optimizer = [model for model, _ in built], built[0][1]
        arrays, others = zip(*(eqx.partition(model, eqx.is_array) for model in models), strict=True)
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)

        def one(arrays: PyTree, rate: Array, inputs: PyTree, targets: PyTree) -> dict[str, Array]:
            with blamed("the optimizer of build gets a rate that jax traces, and", kinds=(jax.errors.JAXTypeError,)):
                transformation = optimizer(rate)
            return self._seen(eqx.combine(arrays, others[0]), transformation, inputs, targets)

        run = eqx.filter_jit(eqx.filter_vmap(one, in_axes=(0, 0, None, None)))

        def probed(log_rates: np.ndarray) -> dict[str, np.ndarray]:
            rates = jnp.asarray(2.0**log_rates, jnp.result_type(float))
            seen = run(together, rates, self.inputs, self.targets)
            return {name: np.asarray(values, np.float64) for name, values in seen.items()}

        return probed

    def _seen(
        self, model: PyTree, transformation: optax.GradientTransformation, inputs: PyTree, targets: PyTree
    ) -> dict[str, Array]:
        start, static = eqx.partition(model, eqx.is_inexact_array)

        def objective(parameters: PyTree) -> tuple[Array, Mapping[str, Array]]:
            named = self.features(eqx.combine(parameters, static), inputs)
            return self.loss(named[self.output], targets), named

        def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], dict[str, Array]]:
            parameters, state = carry
            (value, named), gradients = jax.value_and_grad(objective, has_aux=True)(parameters)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to the power of integer counts
                updates, state = transformation.update(gradients, state, parameters)
                parameters = optax.apply_updates(parameters, updates)
            inside = [rms(each) for name, each in named.items() if name != self.output]
            squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)]
            seen = {
                "logits": rms(named[self.output]),
                "loss": value,
                "gradients": jnp.sqrt(jnp.sum(jnp.stack(squares))),
            }
            return (parameters, state), seen | ({"features": jnp.max(jnp.stack(inside))} if inside else {})

        return lax.scan(step, (start, transformation.init(start)), length=self.steps + 1)[1]


def _searched(
    trial: Trial, width: int, seeds: Sequence[int], ends: tuple[float, float], resolution: float
) -> WidthRates:
    """The borders of all rules at one width, and what leaves first beyond the primary one."""
    probe = trial.probe(width, seeds)
    places = np.linspace(*ends, max(3, 1 + round((ends[1] - ends[0]) / SCAN)))
    # no two seeds try the same rates, so that their borders scatter by what bisection leaves open too
    grid = places[:, None] + resolution * ((np.arange(len(seeds)) + 0.5) / len(seeds) - 0.5)
    losses = np.stack([probe(rates)["loss"] for rates in grid])
    _check_scan(losses, width, seeds, 2.0**places, trial.trivial)
    best, found = settled(losses).min(axis=0), {}
    for rule in RULES:
        low, high = brackets(rule, losses, trial.trivial)
        inside = (low >= 0) & (high < len(grid))
        pair = np.clip(low, 0, None), np.clip(high, None, len(grid) - 1)
        low, high = (np.take_along_axis(grid, place[None], axis=0)[0] for place in pair)
        while inside.any() and np.max(high - low) > resolution:
            middle = (low + high) / 2
            kept = obeys(rule, probe(middle)["loss"], best, trial.trivial)
            low, high = np.where(kept, middle, low), np.where(kept, high, middle)
        found[rule] = np.where(inside, 2.0 ** ((low + high) / 2), np.nan)
    border = np.log2(found[TRAINS])
    return WidthRates(width, found, _left(probe(border - 1), probe(border + 1)))


def _check_scan(losses: np.ndarray, width: int, seeds: Sequence[int], rates: np.ndarray, trivial: float) -> None:
    """ValueError unless the loss is finite at the start, and rates are there that are stable, and larger ones that are
    not, in every seed."""
    start, at = losses[0, :, 0], f"at width {width}"
    if not np.isfinite(start).all():
        seed = seeds[int(np.argmin(np.isfinite(start)))]
        raise ValueError(f"loss must be finite at the start, and is not {at} with seed {seed}; scale inputs or weights")
    low, high = brackets(TRAINS, losses, trivial)
    falls = settled(losses).min(axis=0) < start
    ends = f"rates=({rates[0]:g}, {rates[-1]:g})"
    if not falls.all() or (low < 0).any() or (settled(losses).argmin(axis=0) == 0).any():
        raise ValueError(
            f"{ends} must begin with a stable rate below the best one, and end with one that diverges, but none is "
            f"better than the first in some of {len(seeds)} seeds {at}: all diverge, give a smaller first one"
        )
    if (high == len(rates)).any():
        raise ValueError(
            f"{ends} must end with a rate that diverges, and all beyond the best one are stable in "
            f"{np.sum(high == len(rates))} of {len(seeds)} seeds {at}: give a larger last one"
        )


def _left(calm: Mapping[str, np.ndarray], wild: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What of every seed is the first to leave the range that it has in the calm run."""
    present = [name for name in SEEN if name in wild]
    never = wild["loss"].shape[1]

    def first(name: str) -> np.ndarray:
        values, most = wild[name], np.abs(calm[name]).max(axis=1, keepdims=True)
        bound = BOUND**2 if name == "loss" else BOUND  # squared loss is the square of the logits
        out = ~np.isfinite(values) | (np.abs(values) > bound * most)
        return np.where(out.any(axis=1), out.argmax(axis=1), never)

    times = np.stack([first(name) for name in present])
    earliest = times.argmin(axis=0)
    return tuple(present[each] if times[each, seed] < never else NOTHING for seed, each in enumerate(earliest))
