"""What every parameter of a model does: its role, checked against its shapes, and the input dimension."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax

from nfd_jax._checks import one_of, positive_int
from nfd_jax._types import PyTree
from nfd_jax.parametrization import IN_BRANCH, Power, Role

UNSCALED = "unscaled"  # the role of a parameter to which the table does nothing
NAMES = (*(role.value for role in Role), UNSCALED)

Roles = Mapping[str, Role | str] | Callable[[str, Any], Role | str | None]


def check_mapping(name: str, value: Any, what: str) -> dict[Any, Any]:
    """`value` as a dictionary; TypeError unless it is a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map {what}, got {value!r}")
    return dict(value)


def check_transformation(what: str, value: Any) -> None:
    """TypeError unless `value` is an optax transformation."""
    if not callable(getattr(value, "init", None)) or not callable(getattr(value, "update", None)):
        raise TypeError(f"{what} an optax transformation, such as optax.scale_by_adam(), got {value!r}")


def assign_roles(model: PyTree, roles: Roles) -> dict[str, tuple[Role | None, Any]]:
    """Role (None: unscaled) and array of every parameter of the model, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_inexact_array))
    arrays = {path_name(path): leaf for path, leaf in leaves}
    if not arrays:
        raise ValueError(f"model must hold arrays of inexact dtype to train, got {type(model).__name__} without any")
    if isinstance(roles, Mapping):
        given = by_pattern("roles", roles, arrays)
    elif callable(roles):
        given = {path: roles(path, array) for path, array in arrays.items()}
    else:
        raise TypeError(f"roles must map patterns to roles, or be a function, got {type(roles).__name__}")
    without = [f"{path} {tuple(array.shape)}" for path, array in arrays.items() if given.get(path) is None]
    if without:
        raise ValueError(
            f"roles must give every parameter a role, one of {', '.join(NAMES)}; none for: {some(without)}"
        )
    return {path: (_role("roles", given[path], NAMES), array) for path, array in arrays.items()}


def by_pattern(argument: str, patterns: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The value of the first pattern that fits a path."""
    fitting = {path: next((each for each in patterns if fits(each, path)), None) for path in arrays}
    idle = [repr(pattern) for pattern in patterns if pattern not in fitting.values()]
    if idle:
        raise ValueError(
            f"{argument}: no parameter takes {some(idle)}, or all that fit were taken by patterns before; parameters: "
            f"{some(list(arrays))}"
        )
    return {path: patterns[pattern] for path, pattern in fitting.items() if pattern is not None}


def fits(pattern: str, text: str) -> re.Match | None:
    """The match of a pattern in which only `*` is special, with what every `*` stands for."""
    return re.fullmatch("(.*?)".join(map(re.escape, str(pattern).split("*"))), text)


def _role(argument: str, value: Any, names: Sequence[str]) -> Role | None:
    if isinstance(value, Role):
        return value
    name = one_of(f"role in {argument}", value, names)
    return None if name == UNSCALED else Role(name)


def by_role(argument: str, powers: Mapping[Any, Power] | None) -> dict[Role | None, Power]:
    """Powers by their role; none for None."""
    if powers is None:
        return {}
    given = check_mapping(argument, powers, "roles to powers, such as {'hidden': nfd.parametrization.N**-0.5}")
    roles = [_role(argument, name, NAMES[:-1]) for name in given]
    for name, power in given.items():
        if not isinstance(power, Power):
            raise TypeError(f"{argument}[{name!r}] must be an nfd.parametrization.Power, got {power!r}; write N**-0.5")
    return dict(zip(roles, given.values(), strict=True))


MATRICES = (Role.INNER, Role.HIDDEN)
GROWTH = {role: 2 if role in MATRICES else 1 for role in Role}  # the power of n as which entries grow in number


def check_shapes(
    assigned: Mapping[str, tuple[Role | None, Any]], width: int, depth: int, *, absolute: bool = False
) -> None:
    """What is certain about a shape: how many axes may be wide, and that `width` is the narrowest of what grows.

    Axes may be split, fused or padded, so no one of them tells; what grows as n^k has at least n^k entries. Where
    factors are powers of n itself (`absolute`), n must be the size of an axis, inside a branch where there is any.
    """
    scaled = {path: (role, tuple(array.shape)) for path, (role, array) in assigned.items() if role is not None}
    for path, (role, shape) in scaled.items():
        wrong, size = f"{path} of shape {shape} can't have the role {role.value!r}: ", math.prod(shape)
        of_block = shape[1:] if len(shape) > 1 and shape[0] == depth else shape
        if role is Role.BIAS and sum(axis > 1 and axis % width == 0 for axis in of_block) > 1:
            raise ValueError(
                f"{wrong}it has two axes that are multiples of width={width}, and a bias acts on every coordinate by "
                "itself (a vector, a depthwise convolution); say 'inner' or 'hidden' for a matrix"
            )
        if role in MATRICES and sum(axis > 1 for axis in shape) < 2:
            raise ValueError(f"{wrong}it takes a matrix; a vector inside a branch is a 'bias', outside an 'input'")
        if size < width ** GROWTH[role]:
            fixed = "'input' or 'readout' where one axis" if role in MATRICES else "'unscaled' where every axis"
            raise ValueError(
                f"{wrong}it has {size} entries, fewer than n^{GROWTH[role]} at width={width}; "
                f"say {fixed} is fixed, or give as width the narrowest of the sizes that grow"
            )
        if role is not Role.BIAS and size % width:
            raise ValueError(f"{wrong}its size is no multiple of width={width}; say 'unscaled', or correct width")
    inside = [shape for role, shape in scaled.values() if role in IN_BRANCH]
    shapes = dict.fromkeys(inside or [shape for _, shape in scaled.values()])
    if absolute and shapes and not any(width in shape for shape in shapes):
        raise ValueError(
            f"width={width} is the size of no axis of {some(list(map(str, shapes)))}; correct it, or give "
            "base=(width, depth), with which only ratios of widths count"
        )


def check_growth(small: Mapping[str, Any], large: Mapping[str, Any], widths: tuple[int, int]) -> None:
    """Shapes of roles at two widths, `(role, array)` by path: of matrices between wide layers both axes grow."""
    for path, (role, array) in small.items():
        if role is None or path not in large:
            continue
        shapes = tuple(array.shape), tuple(large[path][1].shape)
        power = math.log(math.prod(shapes[1]) / math.prod(shapes[0])) / math.log(widths[1] / widths[0])
        if abs(power - GROWTH[role]) > 0.5:  # sizes may be rounded
            raise ValueError(
                f"{path} can't have the role {role.value!r}, whose number of entries grows as n^{GROWTH[role]}: its "
                f"shape is {shapes[0]} at width {widths[0]} and {shapes[1]} at width {widths[1]}"
            )


def input_dimensions(
    assigned: Mapping[str, tuple[Role | None, Any]], width: int, given: Mapping[str, int] | None
) -> dict[str, int]:
    """d of every input parameter: as given, or the size of what is left of it without its wide axis."""
    inputs = {path: array for path, (role, array) in assigned.items() if role is Role.INPUT}
    what = "patterns to sizes, such as {'.embed.weight': 1}"
    listed = {} if given is None else by_pattern("dimensions", check_mapping("dimensions", given, what), inputs)
    sizes = {}
    for path, array in inputs.items():
        if path in listed:
            sizes[path] = positive_int(f"dimensions of {path}", listed[path])
            continue
        multiples = {size for size in array.shape if size % width == 0}
        wide = multiples & {width} or multiples or {width}
        if len(wide) > 1:
            raise ValueError(
                f"{path} of shape {tuple(array.shape)} has {len(wide)} axes that are multiples of width={width}, so "
                f"which is the input dimension? Give it: dimensions={{{path!r}: d}}"
            )
        sizes[path] = array.size // wide.pop()
    return sizes


def path_name(path: Any) -> str:
    """As users write it."""
    return jax.tree_util.keystr(path)


def some(names: Sequence[str], most: int = 12) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
