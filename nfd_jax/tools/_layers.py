"""Layers of any pytree of parameters: which parameters share one rate, by patterns of their paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfd_jax._checks import finite_float
from nfd_jax._types import Array, PyTree
from nfd_jax.tools._roles import check_mapping, fits, path_name, some

Layers = Mapping[str, str | None] | Callable[[str, Any], str | None]
Shares = Mapping[str, float | int]


class Place(NamedTuple):
    """Where a parameter belongs: the name of its layer, and how many of that name a first axis holds, if it does."""

    layer: str
    stack: int | None


def real_arrays(tree: PyTree) -> dict[str, Any]:
    """All floating arrays of a tree by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {path_name(path): leaf for path, leaf in leaves if _is_inexact(leaf)}
    wrong = [path for path, leaf in found.items() if jnp.issubdtype(leaf.dtype, jnp.complexfloating)]
    if wrong:
        raise TypeError(f"parameters must be real, which {some(wrong)} are not; give real and imaginary parts")
    return found


def _is_inexact(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def named_by_pattern(argument: str, patterns: Mapping[str, str | None], known: Sequence[str]) -> dict[str, str | None]:
    """The name that the first fitting pattern gives, by path; every `*` in it is what one of the pattern's matched."""
    given = check_mapping(argument, patterns, "patterns of paths to names, such as {'.layers[*].weight': 'layer *'}")
    found: dict[str, str | None] = {}
    idle = list(given)
    for path in known:
        for pattern, name in given.items():
            matched = fits(pattern, path)
            if matched:
                found[path] = None if name is None else _filled(argument, pattern, name, matched.groups())
                idle = [each for each in idle if each != pattern]
                break
    if idle:
        raise ValueError(
            f"{argument}: nothing fits {some(list(map(repr, idle)))}, or all that does was taken by patterns before; "
            f"there are {some(list(known))}"
        )
    return found


def _filled(argument: str, pattern: str, name: Any, matched: Sequence[str]) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{argument}[{pattern!r}] must be a name, or None, got {name!r}")
    pieces = name.split("*")
    if len(pieces) - 1 > len(matched):
        raise ValueError(
            f"{argument}[{pattern!r}] must have no more * than its pattern, got {name!r}; each stands for what one of "
            "the pattern's matched"
        )
    between = (*matched[: len(pieces) - 1], "")
    return "".join(piece + text for piece, text in zip(pieces, between, strict=True))


def assign_layers(tree: PyTree, layers: Layers | None, stacked: Sequence[str] = ()) -> dict[str, Place | None]:
    """The layer of every parameter by path, None for one that is not trained."""
    arrays = real_arrays(tree)
    if not arrays:
        raise ValueError(f"parameters must be arrays of floating dtype, got {type(tree).__name__} without any")
    if layers is None:
        names: dict[str, str | None] = {path: path for path in arrays}
    elif callable(layers):
        names = {path: layers(path, array) for path, array in arrays.items()}
    else:
        names = named_by_pattern("layers", layers, list(arrays))
    without = [path for path in arrays if path not in names]
    if without:
        raise ValueError(
            f"layers must give every parameter a layer, or None where it is frozen; none for {some(without)}"
        )
    if not any(names.values()):
        raise ValueError("layers must name at least one layer that is trained, got None for every parameter")
    if isinstance(stacked, str):
        raise TypeError(f"stacked must be a sequence of patterns, got {stacked!r}; write [{stacked!r}]")
    several = named_by_pattern("stacked", dict.fromkeys(stacked), list(arrays))
    places = {}
    for path, name in names.items():
        if path in several and not arrays[path].ndim:
            raise ValueError(f"stacked: {path} is a number, and has no axis of layers")
        count = arrays[path].shape[0] if path in several else None
        places[path] = None if name is None else Place(name, count)
    _check_counts(places)
    return places


def _check_counts(places: Mapping[str, Place | None]) -> None:
    counts: dict[str, int | None] = {}
    for path, place in places.items():
        if place and counts.setdefault(place.layer, place.stack) != place.stack:
            raise ValueError(
                f"stacked: the arrays of layer {place.layer!r} must all have the same first axis of layers, or none; "
                f"{path} has {place.stack}, another {counts[place.layer]}"
            )


def shares_of(places: Mapping[str, Place | None], shares: Shares | None) -> dict[str, float]:
    """The share of every layer (of each of a stack), all together 1."""
    counts = {place.layer: place.stack or 1 for place in places.values() if place}
    if shares is None:
        weights = dict.fromkeys(counts, 1.0)
    else:
        given = check_mapping("shares", shares, "layers to numbers, such as {'layer *': 1.0, 'head': 2.0}")
        fitting = named_by_pattern("shares", dict.fromkeys(given), list(counts))
        without = [name for name in counts if name not in fitting]
        if without:
            raise ValueError(f"shares must give every layer a share; none for {some(without)}")
        values = {pattern: finite_float(f"shares[{pattern!r}]", value) for pattern, value in given.items()}
        weights = {name: next(v for pattern, v in values.items() if fits(pattern, name)) for name in counts}
    total = sum(weights[name] * count for name, count in counts.items())
    if total == 0:
        raise ValueError(f"shares must not all be 0, got {shares!r}")
    return {name: weights[name] / total for name in counts}


def squared_norms(tree: PyTree, places: Mapping[str, Place | None]) -> dict[str, Array]:
    """|g_l|^2 of every layer, `()`, or `(layers,)` of a stack."""
    found: dict[str, Array] = {}
    for path, leaf in real_arrays(tree).items():
        place = places[path]
        if place:
            axes = tuple(range(0 if place.stack is None else 1, leaf.ndim))
            square = jnp.sum(leaf.astype(precision()) ** 2, axis=axes)
            found[place.layer] = found[place.layer] + square if place.layer in found else square
    return found


def scaled(tree: PyTree, places: Mapping[str, Place | None], factors: Mapping[str, Array]) -> PyTree:
    """Every array times the factor of its layer; 0 where it is frozen, and where the factor is 0, whatever it was."""

    def leaf(path: Any, value: Any) -> Any:
        place = places.get(path_name(path)) if _is_inexact(value) else None
        if place is None:
            return jnp.zeros_like(value)
        factor = factors[place.layer]
        if place.stack is not None:
            factor = factor.reshape(-1, *(1 for _ in value.shape[1:]))
        product = (value.astype(precision()) * factor).astype(value.dtype)
        return jnp.where(factor == 0, jnp.zeros_like(value), product)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def precision() -> Any:
    """Of norms and rates: float32, or float64 where that is on."""
    return jnp.result_type(float)
