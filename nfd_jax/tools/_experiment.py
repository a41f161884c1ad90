"""Networks of any size as a coordinate check trains and measures them, and what the exponent table expects of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from nfd_jax._types import PyTree
from nfd_jax.parametrization import ONE, ZERO, Parametrization, Power, Role
from nfd_jax.seeds import seed_key
from nfd_jax.tools._coordinates import CHANGE, PROPAGATING, SIZE, UPDATE
from nfd_jax.tools._roles import Roles, assign_roles, check_growth, check_mapping, check_transformation

Build = Callable[[Any, int, int], tuple[PyTree, optax.GradientTransformation]]
Features = Callable[[Any, Any], Mapping[str, Any]]
Images = Mapping[str, str] | Callable[[int], Mapping[str, str]]
Quantity = tuple[str, str]  # what, and of which feature


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
        """Feature by path; TypeError where it is anything else."""
        images = self.images(depth) if callable(self.images) else self.images
        return check_mapping("images", images, "paths of matrices to features, or be a function of the depth that does")

    def run(
        self, width: int, depth: int, seeds: Sequence[int], inputs: PyTree, targets: PyTree
    ) -> dict[Quantity, np.ndarray]:
        """All quantities of all seeds `(seeds,)` at one size: built one by one, trained side by side."""
        keys = [jax.random.fold_in(jax.random.fold_in(seed_key(seed), width), depth) for seed in seeds]
        models, transformations = zip(*(self.build(key, width, depth) for key in keys), strict=True)
        arrays, others = zip(*(eqx.partition(model, eqx.is_array) for model in models), strict=True)
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)

        def one(arrays: PyTree, inputs: PyTree, targets: PyTree) -> dict[Quantity, Any]:
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
    ) -> dict[Quantity, Any]:
        start, static = eqx.partition(model, eqx.is_inexact_array)

        def objective(parameters: PyTree) -> Any:
            return self.loss(self.features(eqx.combine(parameters, static), inputs)[self.output], targets)

        def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
            parameters, state = carry
            updates, state = transformation.update(jax.grad(objective)(parameters), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        (end, _), _ = lax.scan(step, (start, transformation.init(start)), length=self.steps)
        before, after = (self.features(eqx.combine(tree, static), inputs) for tree in (start, end))
        measured = {(SIZE, name): rms(before[name]) for name in self.kinds}
        measured |= {(CHANGE, name): rms(after[name] - before[name]) for name in self.kinds}
        for path, image in images.items():
            without = self.features(eqx.combine(with_leaf(end, path, start), static), inputs)[image]
            measured[UPDATE, image] = rms(after[image] - without)
            measured[PROPAGATING, image] = rms(without - before[image])
        return measured


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
) -> dict[Quantity, tuple[Power, ...]]:
    """The powers that add up to every quantity, after a look at the smallest two networks: built, but not trained.

    None add up to the effective update of a role of rate 0, which is exactly 0. Changes to which no role adds anything
    are left out.
    """
    models = [_built(experiment.build, width, depth) for width in widths]
    assigned, wider = (assign_roles(model, roles) for model in models)
    check_growth(assigned, wider, (widths[0], widths[1]))
    by_path = {path: role for path, (role, _) in assigned.items() if role is not None}
    present = tuple(role for role in Role if role in by_path.values())
    images, kinds = experiment.images_at(depth), experiment.kinds
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
    expected: dict[Quantity, tuple[Power, ...]]
    expected = {(SIZE, name): (row.initial_output() if kind == "output" else ONE,) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        powers = (kind,) if isinstance(kind, Power) else changes[kind]
        expected[CHANGE, name] = tuple(power for power in powers if power != ZERO)
    expected = {line: powers for line, powers in expected.items() if powers}
    updates = {image: row.update(by_path[path], family) for path, image in images.items()}
    return expected | {(UPDATE, image): () if update == ZERO else (update,) for image, update in updates.items()}


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
        if not is_real(named[name]):
            raise TypeError(f"features must return arrays of real numbers, got {named[name]} for {name!r}")
    check_loss(experiment.loss, named[experiment.output], targets)


def check_loss(loss: Callable[[Any, Any], Any], output: Any, targets: PyTree) -> None:
    """TypeError unless the loss of an output, an array or its shape, is one real number."""
    value = eqx.filter_eval_shape(loss, output, targets)
    if not is_real(value) or value.shape != ():
        raise TypeError(f"loss must return one real number, got {value}; take the mean over samples")


def is_real(array: Any) -> bool:
    """Whether it is the shape of an array of real numbers."""
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
