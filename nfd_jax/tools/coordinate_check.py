"""coordinate_check: does a training code of one's own scale as its parametrization says?

Networks of several widths and depths train for a few steps. The size of every named feature at initialisation, the size
of its change, and the *effective update* of every named matrix, (W_t - W_0) x_t, are fitted as powers of n and of L
and compared with what the exponent table expects. The change of a pre-activation mixes the update of its own matrix
with W_0 (x_t - x_0), what arrives from below; the effective update is the part that a parametrization controls. The
other part, the propagating update, is reported beside it (the refined coordinate check of Haas et al.).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from nfd_jax._checks import finite_float, one_of, positive_int, positive_ints
from nfd_jax._types import PyTree
from nfd_jax.parametrization import FAMILIES, Parametrization, Power, resolve
from nfd_jax.seeds import seed_sequence
from nfd_jax.statistics import fit_slope
from nfd_jax.tools._coordinates import HALF, PROPAGATING, UPDATE, Coordinate, CoordinateCheck
from nfd_jax.tools._experiment import Build, Experiment, Features, Images, check_batch, check_depths, expectations
from nfd_jax.tools._roles import Roles, check_mapping

KINDS = ("stream", "inner", "output")
ALARM = 0.01  # how often noise alone fails a network that is right, all its rows together


def squared_loss(outputs: Any, targets: Any) -> Any:
    """The mean over samples of (1/2) |f - y|^2, for numbers `(P,)` or vectors `(P, c)`."""
    if getattr(targets, "shape", None) != outputs.shape:  # (P, 1) and (P,) would make differences (P, P)
        shape = getattr(targets, "shape", type(targets).__name__)
        raise ValueError(
            f"targets must have the shape of the outputs, {outputs.shape}, for the squared loss, got {shape}; "
            "reshape them, or give a loss"
        )
    squares = (outputs - targets) ** 2
    return 0.5 * jnp.mean(jnp.sum(squares, axis=-1) if squares.ndim > 1 else squares)


def coordinate_check(
    build: Build,
    features: Features,
    inputs: PyTree,
    targets: PyTree,
    *,
    parametrization: str | Parametrization,
    roles: Roles,
    kinds: Mapping[str, str | Power],
    images: Images | None = None,
    optimizer: str = "adam",
    loss: Callable[[Any, Any], Any] = squared_loss,
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (4, 8, 16, 32),
    steps: int = 2,
    seeds: int | Sequence[int] = 16,
    allowance: float | int = 0.15,
) -> CoordinateCheck:
    """Train networks of one's own at several sizes and compare their slopes in n and L with the exponent table.

        def build(key, width, depth):
            model = MyNetwork(key, width, depth, branch=row.branch(depth))
            scaled = nfd.scale_rates(row, model, roles=roles, width=width, depth=depth)
            return scaled.model, optax.chain(scaled(optax.scale_by_adam()), optax.scale_by_learning_rate(0.1))

        def features(model, inputs):  # batches
            ...
            return {"up": up, "down": down, "stream": stream, "f": outputs}

        check = nfd.coordinate_check(
            build, features, inputs, targets, parametrization=row, roles=roles,
            kinds={"up": "inner", "stream": "stream", "f": "output"},
            images={".blocks[0].up.weight": "up", ".blocks[0].down.weight": "down"},
        )
        print(check)
        check.plot("coordinates.png")

    What is checked is the code that `build` returns, by whichever library it scales; `scale_rates` is one.

    **Arguments:**

    - `build`: `(key, width, depth)` to a model and the optax transformation that trains it, which may depend on the
      sizes, but not on the key.
    - `features`: `(model, inputs)` to named arrays of activations on the whole batch, of any shapes.
    - `inputs`, `targets`: one batch of finite numbers, on which all steps train; whatever `features` and `loss` take.
    - `parametrization`, `roles`, `optimizer`: the row that training should follow, the roles of the parameters and the
      optimizer whose rates it takes, as in `scale_rates`.
    - `kinds`: of every feature whose size and change are judged. `"stream"`: the residual stream behind some blocks, or
      hidden pre-activations of a network without one; `"inner"`: pre-activations inside a branch; `"output"`: the
      outputs that enter the loss, exactly one. A `Power` says how another one changes, at size 1.
    - `images`: of every matrix whose effective update is judged, by path, the feature that is its image: W x with its
      multiplier and bias, not yet multiplied by the branch multiplier or added to the stream. Or a function of the
      depth, for paths that depend on it. Each is measured as the change of that feature as this one array
      goes back to its initial values, so that any layout and any layer will do. What else that feature changes by, its
      propagating update and that of a bias, is measured too, and not judged.
    - `loss`: `(outputs, targets)` to a number, by default the mean of (1/2) |f - y|^2.
    - `widths`, `depths`: at least two widths, swept at the smallest depth. Depths are swept at the middle width (the
      lower one of two); a single depth leaves them out.
    - `steps`: training steps, few: slopes are those of first updates. With a readout that starts at zero at least 2.
    - `seeds`: a count S (seeds 0 to S-1) or a sequence of at least two integers. Every size draws afresh.
    - `allowance`: for corrections of finite size, in a slope; less than 1/2.

    Every line has an interval over seeds, so wide that in 99 of 100 checks those of all lines hold. A line fails where
    its interval misses the expected slopes by more than `allowance`. It passes where it does not, and excludes all
    slopes half a power or more away from the expected ones: exponents of the table differ by that much. It is
    undecided where the interval is too wide for either; more seeds decide every line.
    Depth slopes are not judged for alpha < 1/2, where features grow exponentially with depth.
    Expected changes hold for training that moves features by no more than their size: take a small learning rate.
    They count every parameter that has a role as trained. One that the transformation freezes is `"unscaled"` here: a
    role that no trained parameter has adds nothing.

    Returns a `CoordinateCheck`. Raises ValueError or TypeError for bad arguments before compiling.
    """
    row, family = resolve(parametrization), FAMILIES[one_of("optimizer", optimizer, FAMILIES)]
    widths, depths = check_sizes("widths", widths, 2), check_sizes("depths", depths, 1)
    members = seed_sequence(seeds)
    if len(members) < 2:
        raise ValueError(f"seeds must be at least two for an interval, got {seeds!r}")
    allowance = finite_float("allowance", allowance)
    if allowance >= HALF:
        raise ValueError(f"allowance must be below {HALF}, by which exponents of the table differ, got {allowance}")
    check_kinds(kinds)
    for name, function in (("build", build), ("features", features), ("loss", loss)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")
    check_batch("inputs", inputs)
    check_batch("targets", targets)
    experiment = Experiment(build, features, loss, dict(kinds), images or {}, positive_int("steps", steps))
    expected = expectations(experiment, row, family, roles, inputs, targets, widths[:2], depths[0])
    check_depths(experiment, inputs, widths[0], depths)
    middle = widths[(len(widths) - 1) // 2]
    sweeps = {"n": [(width, depths[0]) for width in widths], "L": [(middle, depth) for depth in depths]}
    sweeps = {axis: cells for axis, cells in sweeps.items() if len(cells) > 1}
    distinct = dict.fromkeys(size for along in sweeps.values() for size in along)
    cells = {size: experiment.run(*size, members, inputs, targets) for size in distinct}
    at = {"n": widths, "L": depths}
    judged = sum(axis == "n" or row.alpha >= 0.5 for axis in sweeps) * len(expected)
    propagating = {(PROPAGATING, image): None for quantity, image in expected if quantity == UPDATE}
    rows = []
    for line, powers in (expected | propagating).items():
        for axis, along in sweeps.items():
            values = np.stack([cells[size][line] for size in along], axis=1)
            exponents = [power.width if axis == "n" else power.depth for power in powers or ()]
            span = (min(exponents), max(exponents)) if powers else ()
            if powers is None or (powers and axis == "L" and row.alpha < 0.5):
                span = None
            slope = fit_slope(at[axis], values) if np.all(np.isfinite(values) & (values > 0)) else None
            margin = slope.half_width(1 - ALARM / judged) if slope else 0.0
            rows.append(Coordinate(*line, axis, at[axis], values, span, slope, allowance, margin))
    ranges = [f"{name} {at[axis][0]} to {at[axis][-1]}" for axis, name in (("n", "widths"), ("L", "depths"))]
    title = f"{row.name}, {optimizer}, {len(members)} seeds, steps: {steps}; {ranges[0]} at L = {depths[0]}"
    if "L" in sweeps:
        title += f", {ranges[1]} at n = {middle}"
    return CoordinateCheck(title, tuple(rows), allowance)


def check_kinds(kinds: Mapping[str, str | Power]) -> None:
    """ValueError or TypeError unless every kind is known and one feature is the output."""
    check_mapping("kinds", kinds, f"features to {', '.join(map(repr, KINDS))} or a Power")
    for name, kind in kinds.items():
        if not isinstance(kind, Power):
            one_of(f"kind of {name!r} in kinds", kind, KINDS)
    outputs = [name for name, kind in kinds.items() if kind == "output"]
    if len(outputs) != 1:
        raise ValueError(f"kinds must name exactly one 'output', the feature that enters the loss, got {outputs}")


def check_sizes(name: str, sizes: Sequence[int], least: int) -> tuple[int, ...]:
    """Sizes in ascending order; ValueError or TypeError unless they are `least` or more different integers."""
    listed = tuple(sorted(positive_ints(name, sizes)))
    if len(listed) < least or len(set(listed)) != len(listed):
        raise ValueError(f"{name} must be at least {least} different integers, got {sizes!r}")
    return listed
