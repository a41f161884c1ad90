"""coordinate_check: does a training code of one's own scale as its parametrization says?

Networks of several widths and depths train for a few steps. The size of every named feature at initialisation, the size
of its change, and the *effective update* of every named matrix, (W_t - W_0) x_t, are fitted as powers of n and of L
and compared with what the exponent table expects. The change of a pre-activation mixes the update of its own matrix
with W_0 (x_t - x_0), what arrives from below; the effective update is the part that a parametrization controls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from nfd_jax._checks import finite_float, one_of, positive_int, positive_ints
from nfd_jax._types import PyTree
from nfd_jax.parametrization import FAMILIES, ONE, ZERO, Parametrization, Power, Role, resolve
from nfd_jax.seeds import seed_key, seed_sequence
from nfd_jax.statistics import Slope, fit_slope
from nfd_jax.tools.scale_rates import Roles, assign_roles, check_growth, check_transformation, in_columns
from nfd_jax.verdict import Verdict

KINDS = ("stream", "inner", "output")
SIZE, CHANGE, UPDATE = "size at start", "change", "effective update"
ALARM = 0.01  # how often noise alone fails a network that is right, all its rows together
HALF = 0.5  # exponents of the table differ by multiples of it: what a line that passes rules out

Build = Callable[[Any, int, int], tuple[PyTree, optax.GradientTransformation]]
Features = Callable[[Any, Any], Mapping[str, Any]]
Images = Mapping[str, str] | Callable[[int], Mapping[str, str]]


def squared_loss(outputs: Any, targets: Any) -> Any:
    """The mean over samples of (1/2) |f - y|^2, for numbers `(P,)` or vectors `(P, c)`."""
    if getattr(targets, "shape", None) != outputs.shape:  # (P, 1) and (P,) would make differences (P, P)
        found = getattr(targets, "shape", type(targets).__name__)
        raise ValueError(
            f"targets must have the shape of the outputs, {outputs.shape}, for the squared loss, got {found}; "
            "reshape them, or give a loss"
        )
    squares = (outputs - targets) ** 2
    return 0.5 * jnp.mean(jnp.sum(squares, axis=-1) if squares.ndim > 1 else squares)


@dataclass(frozen=True, eq=False)
class Coordinate:
    """One line of a check: a quantity, its values `(seeds, sizes)` along widths ("n") or depths ("L"), their slope.

    `expected`: the range of the table, mostly one number twice: where contributions with different exponents add up,
    the slope of their sum lies between the smallest and the largest; empty where the values must be exactly 0. None
    where nothing is expected. `slope`: None where values are zero or not finite. `allowance`: for corrections of finite
    size, how far outside the range the slope may be; `margin`: half the interval around the measured one.
    """

    quantity: str
    name: str
    axis: str
    sizes: tuple[int, ...]
    values: np.ndarray
    expected: tuple[float, ...] | None
    slope: Slope | None
    allowance: float
    margin: float

    @property
    def tolerance(self) -> float:
        """How far outside the expected range a slope may be measured."""
        return self.allowance + self.margin

    @property
    def expectation(self) -> str:
        """What is expected, as text."""
        if not self.expected:
            return "-" if self.expected is None else "zero"
        return " to ".join(f"{end:+.2f}" for end in sorted(set(self.expected)))

    @property
    def verdict(self) -> Verdict | None:
        """How the table stands; None where nothing is expected.

        The interval decides: it contradicts where it misses the expected range widened by the allowance, and supports
        where it meets that and excludes every slope that is half a power or more outside the range. What must be 0 is
        supported where every value is.
        """
        if self.expected is None or (self.quantity == SIZE and not self.values.any()):  # a readout that starts at zero
            return None
        if not self.expected:
            return Verdict.CONTRADICTED if self.values.any() else Verdict.SUPPORTED
        if self.slope is None:
            return Verdict.CONTRADICTED
        low, high = self.expected
        outside = max(low - self.slope.value, self.slope.value - high, 0.0)
        if outside > self.tolerance:
            return Verdict.CONTRADICTED
        return Verdict.SUPPORTED if outside + self.margin < HALF else Verdict.UNDECIDED


@dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """What `coordinate_check` found: `passed`, all lines, `table()` of them as text (also by `print`), `plot(path)`."""

    title: str
    rows: tuple[Coordinate, ...]
    allowance: float

    @property
    def passed(self) -> bool:
        """Whether no line fails and none is undecided."""
        return not self.failures and not self.undecided

    @property
    def failures(self) -> tuple[Coordinate, ...]:
        """The lines that fail."""
        return tuple(row for row in self.rows if row.verdict is Verdict.CONTRADICTED)

    @property
    def undecided(self) -> tuple[Coordinate, ...]:
        """The lines whose intervals are too wide to tell the expected slope from one that is half a power off."""
        return tuple(row for row in self.rows if row.verdict is Verdict.UNDECIDED)

    @property
    def conclusion(self) -> str:
        """The verdict on all lines, as text."""
        failed, undecided = len(self.failures), len(self.undecided)
        parts = [f"FAILED: {failed} of {len(self.rows)} lines"] if failed else []
        if undecided:
            parts.append(f"UNDECIDED: {undecided} of {len(self.rows)} lines; more seeds or a wider span decide")
        return "; ".join(parts) or "passed"

    def table(self) -> str:
        """Every line with its expected slope, the measured one with its 95 % interval, and the verdict."""
        lines = [("quantity", "of", "axis", "expected", "measured (95 %)", "tolerance", "verdict")]
        for row in self.rows:
            measured = str(row.slope) if row.slope else "zero" if not row.values.any() else "diverged, or zero in part"
            tolerance = "-" if row.verdict is None else f"{row.tolerance:.2f}"
            lines.append((row.quantity, row.name, row.axis, row.expectation, measured, tolerance, row.verdict or "-"))
        return "\n".join([self.title, in_columns(lines), self.conclusion])

    def __str__(self) -> str:
        return self.table()

    def plot(self, path: str | Path) -> Path:
        """Write all lines with their fits as a figure."""
        from nfd_jax.io import plotting  # a slow import, only needed here

        return plotting.save(plotting.coordinates(self), Path(path))


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
      goes back to its initial values, so that any layout and any layer will do.
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
    rows = []
    for line, powers in expected.items():
        for axis, along in sweeps.items():
            values = np.stack([cells[size][line] for size in along], axis=1)
            exponents = [power.width if axis == "n" else power.depth for power in powers]
            span = (min(exponents), max(exponents)) if powers else ()
            if powers and axis == "L" and row.alpha < 0.5:
                span = None
            slope = fit_slope(at[axis], values) if np.all(np.isfinite(values) & (values > 0)) else None
            margin = slope.half_width(1 - ALARM / judged) if slope else 0.0
            rows.append(Coordinate(*line, axis, at[axis], values, span, slope, allowance, margin))
    ranges = [f"{name} {at[axis][0]} to {at[axis][-1]}" for axis, name in (("n", "widths"), ("L", "depths"))]
    title = f"{row.name}, {optimizer}, {len(members)} seeds, steps: {steps}; {ranges[0]} at L = {depths[0]}"
    if "L" in sweeps:
        title += f", {ranges[1]} at n = {middle}"
    return CoordinateCheck(title, tuple(rows), allowance)


Line = tuple[str, str]  # quantity, and the feature or path it is of


@dataclass(frozen=True, eq=False)
class Experiment:
    """What is trained and what is measured, at any size."""

    build: Build
    features: Features
    loss: Callable[[Any, Any], Any]
    kinds: Mapping[str, str | Power]
    images: Images
    steps: int

    @property
    def output(self) -> str:
        """The feature that enters the loss."""
        return next(name for name, kind in self.kinds.items() if kind == "output")

    def images_at(self, depth: int) -> dict[str, str]:
        """Feature by path."""
        return check_images(self.images(depth) if callable(self.images) else self.images)

    def run(
        self, width: int, depth: int, seeds: Sequence[int], inputs: PyTree, targets: PyTree
    ) -> dict[Line, np.ndarray]:
        """All quantities of all seeds `(seeds,)` at one size: built one by one, trained side by side."""
        keys = [jax.random.fold_in(jax.random.fold_in(seed_key(seed), width), depth) for seed in seeds]
        models, transformations = zip(*(self.build(key, width, depth) for key in keys), strict=True)
        arrays, others = zip(*(eqx.partition(model, eqx.is_array) for model in models), strict=True)
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)

        def one(arrays: PyTree, inputs: PyTree, targets: PyTree) -> dict[Line, Any]:
            model = eqx.combine(arrays, others[0])
            return self._measured(model, transformations[0], self.images_at(depth), inputs, targets)

        measured = eqx.filter_jit(eqx.filter_vmap(one, in_axes=(0, None, None)))(together, inputs, targets)
        return {line: np.asarray(values) for line, values in measured.items()}

    def _measured(
        self,
        model: PyTree,
        transformation: optax.GradientTransformation,
        images: Mapping[str, str],
        inputs: PyTree,
        targets: PyTree,
    ) -> dict[Line, Any]:
        start, static = eqx.partition(model, eqx.is_inexact_array)

        def objective(parameters: PyTree) -> Any:
            return self.loss(self.features(eqx.combine(parameters, static), inputs)[self.output], targets)

        def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
            parameters, state = carry
            updates, state = transformation.update(jax.grad(objective)(parameters), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        (end, _), _ = lax.scan(step, (start, transformation.init(start)), length=self.steps)
        before, after = (self.features(eqx.combine(tree, static), inputs) for tree in (start, end))
        found = {(SIZE, name): rms(before[name]) for name in self.kinds}
        found |= {(CHANGE, name): rms(after[name] - before[name]) for name in self.kinds}
        for path, image in images.items():
            without = eqx.combine(with_leaf(end, path, start), static)
            found[UPDATE, image] = rms(after[image] - self.features(without, inputs)[image])
        return found


def rms(values: Any) -> Any:
    """Root mean square over all entries."""
    return jnp.sqrt(jnp.mean(values**2))


def with_leaf(tree: PyTree, path: str, other: PyTree) -> PyTree:
    """`tree` with the one array at `path` taken from `other`."""

    def chosen(at: Any, ours: Any, theirs: Any) -> Any:
        return theirs if jax.tree_util.keystr(at) == path else ours

    return jax.tree_util.tree_map_with_path(chosen, tree, other)


def expectations(
    experiment: Experiment,
    row: Parametrization,
    family: str,
    roles: Roles,
    inputs: PyTree,
    targets: PyTree,
    widths: Sequence[int],
    depth: int,
) -> dict[Line, tuple[Power, ...]]:
    """The powers that add up to every quantity, after a look at the smallest two networks: built, but not trained.

    None add up to the effective update of a role of rate 0, which is exactly 0. Changes to which no role adds anything
    are left out.
    """
    models = [_built(experiment.build, width, depth) for width in widths]
    assigned, wider = (assign_roles(model, roles) for model in models)
    check_growth(assigned, wider, (widths[0], widths[1]))
    by_path = {path: role for path, (role, _) in assigned.items() if role is not None}
    present = tuple(role for role in Role if role in by_path.values())
    images = experiment.images_at(depth)
    check_functions(experiment, models[0], images, inputs, targets)
    for path in images:
        if path not in by_path:
            raise ValueError(f"images names {path}, which is no parameter with a role; there are {', '.join(by_path)}")
    if len(set(images.values())) < len(images):
        raise ValueError(f"images must name a feature of its own for every matrix, got {images}")
    stream = row.stream_updates(family, present)
    changes = {
        "stream": stream,
        "inner": (*stream, *(row.update(role, family) for role in present if role is Role.INNER)),
        "output": row.output_updates(family, present),
    }
    found = {}
    for name, kind in experiment.kinds.items():
        found[SIZE, name] = (row.initial_output() if kind == "output" else ONE,)
    for name, kind in experiment.kinds.items():
        found[CHANGE, name] = (kind,) if isinstance(kind, Power) else changes[kind]
    found = {line: tuple(power for power in powers if power != ZERO) for line, powers in found.items()}
    found = {line: powers for line, powers in found.items() if powers}
    for path, image in images.items():
        update = row.update(by_path[path], family)
        found[UPDATE, image] = () if update == ZERO else (update,)
    return found


def check_functions(
    experiment: Experiment, model: PyTree, images: Mapping[str, str], inputs: PyTree, targets: PyTree
) -> None:
    """ValueError or TypeError unless features and loss return what the others name and use."""
    named = eqx.filter_eval_shape(experiment.features, model, inputs)
    if not isinstance(named, Mapping):
        raise TypeError(f"features must return a mapping from names to arrays, got {type(named).__name__}")
    for argument, name in (*(("kinds", name) for name in experiment.kinds), *(("images", n) for n in images.values())):
        if name not in named:
            raise ValueError(f"{argument} names {name!r}, which features does not return; it has {', '.join(named)}")
        if not _is_real(named[name]):
            raise TypeError(f"features must return arrays of real numbers, got {named[name]} for {name!r}")
    value = eqx.filter_eval_shape(experiment.loss, named[experiment.output], targets)
    if not _is_real(value) or value.shape != ():
        raise TypeError(f"loss must return one real number, got {value}; take the mean over samples")


def _is_real(array: Any) -> bool:
    return isinstance(array, jax.ShapeDtypeStruct) and jnp.issubdtype(array.dtype, jnp.floating)


def _built(build: Build, width: int, depth: int) -> PyTree:
    """The model that `build` returns at one size."""
    built = build(jax.random.key(0), width, depth)
    if not isinstance(built, tuple) or len(built) != 2:
        raise TypeError(f"build must return a model and an optax transformation, got {type(built).__name__}")
    check_transformation("build must return a model and", built[1])
    return built[0]


def check_batch(name: str, batch: PyTree) -> None:
    """ValueError where an array of the batch holds numbers that are not finite: every slope would be one of them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if isinstance(leaf, float | np.ndarray | np.generic | jax.Array):
            wrong = np.argwhere(~np.isfinite(np.asarray(leaf))).tolist() if _is_inexact(leaf) else []
            if wrong:
                at = f"{jax.tree_util.keystr(path)}{wrong[0]}"
                raise ValueError(f"{name} must be finite, which {name}{at} is not; clean the data first")


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def check_depths(experiment: Experiment, inputs: PyTree, width: int, depths: Sequence[int]) -> None:
    """ValueError where networks of the first two depths compute the same: slopes in the depth would be of noise."""
    programs = []
    for depth in depths[:2]:
        arrays, static = eqx.partition(_built(experiment.build, width, depth), eqx.is_array)
        traced = jax.make_jaxpr(lambda arrays, x: experiment.features(eqx.combine(arrays, static), x))(arrays, inputs)  # noqa: B023
        programs.append(re.sub(r" at 0x\w+", "", str(traced)))
    if len(programs) > 1 and programs[0] == programs[1]:
        raise ValueError(
            f"build must make networks of the depth that it is given, and those of L = {depths[0]} and L = {depths[1]} "
            "are the same; use depth in build, or give one depth: depths=(1,)"
        )


def check_images(images: Any) -> dict[str, str]:
    """Feature by path; TypeError where it is anything else."""
    if not isinstance(images, Mapping):
        raise TypeError(
            f"images must map paths of matrices to features, or be a function of the depth that does, got {images!r}"
        )
    return dict(images)


def check_kinds(kinds: Mapping[str, str | Power]) -> None:
    """ValueError or TypeError unless every kind is known and one feature is the output."""
    if not isinstance(kinds, Mapping):
        raise TypeError(f"kinds must map features to {', '.join(map(repr, KINDS))} or a Power, got {kinds!r}")
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
