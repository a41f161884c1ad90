"""Named features of any function of jax, shifted where they are made: what a loss gradient with respect to them is of.

A function that returns its intermediate arrays by name has said where they are: they are variables of its traced
program. The program is walked once more with a shift added to each of them, and everything that the function makes of
them afterwards takes the shifted ones. The derivative in the shifts, at zero, is the backward pass at these features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr  # pyright: ignore[reportMissingImports]
from jax.extend import core

from nfd_jax._functions import blamed
from nfd_jax._types import Array, PyTree
from nfd_jax.tools._roles import path_name

Features = Callable[[Any, Any], Mapping[str, Any]]
PARAMETER = "parameter"
UNNAMED = core.DebugInfo("walk", "features", None, None)


class Program:
    """The traced program of named features of a model: `run` with shifts, `ancestors` of every feature."""

    def __init__(self, features: Features, model: PyTree, inputs: PyTree) -> None:
        self.parameters, static = eqx.partition(model, eqx.is_inexact_array)
        self._names: list[str] = []

        def named(parameters: PyTree, inputs: PyTree) -> list[Any]:
            found = features(eqx.combine(parameters, static), inputs)
            if not isinstance(found, Mapping):
                raise TypeError(f"features must return a mapping from names to arrays, got {type(found).__name__}")
            self._names = list(found)
            return [_array(name, values) for name, values in found.items()]

        arrays, others = eqx.partition(inputs, eqx.is_array)
        self._arguments = jax.tree.leaves((self.parameters, arrays))
        self._closed = jax.make_jaxpr(lambda parameters, arrays: named(parameters, eqx.combine(arrays, others)))(
            self.parameters, arrays
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all features, in the order of the function."""
        return tuple(self._names)

    def run(self, parameters: PyTree, shifts: Mapping[str, Array]) -> dict[str, Array]:
        """All features, those in `shifts` shifted."""
        leaves = jax.tree.leaves(parameters)
        arguments = [*leaves, *self._arguments[len(leaves) :]]
        marked = self._marked({name: _adding(shift) for name, shift in shifts.items()})
        values = _walk(self._closed.jaxpr, self._closed.consts, arguments, marked, _evaluated)
        return dict(zip(self._names, values, strict=True))

    def zeros(self, names: Sequence[str]) -> dict[str, Array]:
        """Shifts that change nothing."""
        shapes = dict(zip(self._names, self._closed.out_avals, strict=True))
        return {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in names}

    def ancestors(self) -> dict[str, frozenset[tuple[str, str]]]:
        """What enters every feature: ("parameter", path) of arrays, and ("feature", name) of others and itself."""
        leaves = jax.tree_util.tree_leaves_with_path(self.parameters)
        arguments = [frozenset({(PARAMETER, path_name(path))}) for path, _ in leaves]
        arguments += [frozenset()] * (len(self._arguments) - len(leaves))
        marked = self._marked({name: _noting(name) for name in self._names})
        constants = [frozenset()] * len(self._closed.consts)
        found = _walk(self._closed.jaxpr, constants, arguments, marked, _joined)
        return dict(zip(self._names, found, strict=True))

    def _marked(self, changes: Mapping[str, Callable]) -> dict[Any, Callable]:
        """What happens to variables, by variable."""
        marked: dict[Any, Callable] = {}
        for name, variable in zip(self._names, self._closed.jaxpr.outvars, strict=True):
            if name in changes and not isinstance(variable, core.Literal):
                before = marked.get(variable, lambda value: value)  # of one array under two names
                marked[variable] = lambda value, before=before, after=changes[name]: after(before(value))
        return marked


def _array(name: str, values: Any) -> Array:
    if not eqx.is_array(values) or not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"features must return arrays of real numbers, got {values!r} for {name!r}")
    return values


def _adding(shift: Array) -> Callable[[Array], Array]:
    return lambda value: value + shift


def _noting(name: str) -> Callable[[frozenset], frozenset]:
    return lambda value: value | {("feature", name)}


def _evaluated(equation: Any, values: list[Any]) -> list[Any]:
    """As a program of its own: how primitives are bound differs between versions of jax."""
    given = {atom: value for atom, value in zip(equation.invars, values, strict=True) if isinstance(atom, core.Var)}
    alone = core.Jaxpr((), list(given), equation.outvars, [equation], debug_info=UNNAMED)
    return eval_jaxpr(alone, (), *given.values())


def _joined(equation: Any, values: list[Any]) -> list[Any]:
    return [frozenset().union(*(value for value in values if isinstance(value, frozenset)))] * len(equation.outvars)


def _walk(
    jaxpr: core.Jaxpr,
    constants: Sequence[Any],
    arguments: Sequence[Any],
    marked: Mapping[Any, Callable],
    apply: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """The values of a program's results, with what `marked` does to its variables as they are made. Functions under
    `jax.jit` are walked through: features made inside are variables of theirs."""
    known: dict[Any, Any] = {}

    def write(variables: Sequence[Any], values: Sequence[Any], marks: Mapping[Any, Callable] = marked) -> None:
        for variable, value in zip(variables, values, strict=True):
            known[variable] = marks[variable](value) if variable in marks else value

    def read(atoms: Sequence[Any]) -> list[Any]:
        return [atom.val if isinstance(atom, core.Literal) else known[atom] for atom in atoms]

    write(jaxpr.constvars, constants)
    write(jaxpr.invars, arguments)
    for equation in jaxpr.eqns:
        values = read(equation.invars)
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        if inner is None:
            write(equation.outvars, apply(equation, values))
            continue
        pairs = zip(inner.jaxpr.outvars, equation.outvars, strict=True)
        marks = {within: marked[outer] for within, outer in pairs if outer in marked}
        constants = inner.consts if apply is _evaluated else [frozenset()] * len(inner.consts)
        write(equation.outvars, _walk(inner.jaxpr, constants, values, marks, apply), {})
    return read(jaxpr.outvars)


def check_named(argument: str, names: Sequence[str], returned: Sequence[str]) -> None:
    """ValueError where a name is of no feature."""
    for name in names:
        if name not in returned:
            raise ValueError(f"{argument} names {name!r}, which features does not return; it has {', '.join(returned)}")


def traced(features: Features, model: PyTree, inputs: PyTree) -> Program:
    """The program of `features`; TypeError or ValueError that says what is wrong with it or with the model."""
    if not callable(features):
        raise TypeError(f"features must be a function of a model and inputs, got {features!r}")
    if not jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)):
        raise ValueError(f"model must hold arrays of inexact dtype to train, got {type(model).__name__} without any")
    with blamed("features is traced by jax: write it with jax.numpy. It", kinds=(jax.errors.JAXTypeError,)):
        return Program(features, model, inputs)
