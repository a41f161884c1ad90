"""What is observed: a snapshot of a network before every update and after the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfd_jax._functions import blamed
from nfd_jax._types import Array, Float, Index
from nfd_jax.matrices.base import AbstractMatrices
from nfd_jax.models import Structure


class ImageChanges(NamedTuple):
    """How the image of every weight has changed since the start, W_t x_t - W_0 x_0 times its multiplier, in two parts.

    `effective` (W_t - a_t W_0) x_t is what training has added to the weight, `propagating` a_t W_0 x_t - W_0 x_0 what
    arrives from below through the initial one. Both by role: `input` `(P, width)`, `hidden` `(matrices, P, width)`, of
    two a block the inner one first, and `readout` `(P, c)`.
    """

    effective: dict[str, Array]
    propagating: dict[str, Array]


class Snapshot(NamedTuple):
    """What an observe function sees of a network: before every update, and after the last one.

    `features` h_0 to h_L and `gradients` g_0 to g_L are `(L + 1, P, width)`. For one output g is gamma n times the
    output gradient, so that g_L = V; for several it is gamma^2 n times the gradient of the loss, whose mean over the
    batch is included. gamma is the richness, times n^-1/2 where readouts are multiplied by n^-1/2 (NTP, SP). An MLP
    has g_L = phi'(h_L) V. `step` counts the updates so far. `effective_images()` are (W_l^k - a_k W_l^0) x times the
    multiplier of the role, `(matrices, P, width)`: what training has added to the image of every hidden matrix, with
    a_k = prod (1 - eta lambda) what weight decay has left of the initial one; of two a block the inner one is first.
    `image_changes()`, of dense matrices alone, has what the images of all weights have changed by, in two parts.
    Explicit passes (`solve_limit`, `solve_network`) add the hidden `matrices` as they are after this step's queries,
    and the `coordinates (matrices, rows, P)` of the forward ones.
    """

    features: Float[Array, "layers batch width"]
    gradients: Float[Array, "layers batch width"]
    outputs: Float[Array, "batch outputs"]
    structure: Structure
    step: Index
    effective_images: Callable[[], Float[Array, "matrices batch width"]]
    matrices: AbstractMatrices | None = None
    coordinates: Array | None = None
    image_changes: Callable[[], ImageChanges] | None = None


Observe = Callable[[Snapshot], dict[str, Array]]
FOLLOWS = {  # the axis of what is kept along training
    "loss": "step",
    "accuracy": "step",
    "batch_loss": "update",
    "held_out_loss": "held_out_step",
    "held_out_accuracy": "held_out_step",
}
VARIABLES = "outputs", *FOLLOWS, "held_out_outputs", "diverged_at", "diverged", "grown", "targets"
BATCH_AXES = "sample", "output"  # of what is observed of a batch, as of its outputs
AXES = (
    "width",
    "depth",
    "learning_rate",
    "seed",
    "step",
    "update",
    "held_out_step",
    "sample",
    "held_out_sample",
    "output",
    "snapshot",
    "batch_sample",
    "layer_time",
)
RESERVED = frozenset((*VARIABLES, *AXES))  # names in datasets


def declared_axes(observe: Observe | None) -> dict[str, tuple[str, ...]]:
    """The names that an observe function gives to the axes of its arrays in its attribute `axes`, if any."""
    declared = getattr(observe, "axes", {})
    if not isinstance(declared, Mapping) or not all(_are_names(axes) for axes in (tuple(declared), *declared.values())):
        raise TypeError(
            "observe.axes must give distinct names of axes by the name of an array, such as "
            f"{{'feature_size': ('layer', 'sample')}}; got {declared!r}"
        )
    taken = sorted(set().union(*declared.values()) & RESERVED - set(BATCH_AXES))
    if taken:
        raise ValueError(f"observe.axes must be names that no result has already, got {', '.join(taken)}")
    return {name: tuple(axes) for name, axes in declared.items()}


def _are_names(axes: Any) -> bool:
    return (
        isinstance(axes, tuple | list) and all(isinstance(axis, str) for axis in axes) and len(set(axes)) == len(axes)
    )


def _check_axes(axes: Mapping[str, tuple[str, ...]], found: Mapping[str, Array], snapshot: Snapshot) -> None:
    """ValueError where what is observed has other axes than those declared, or one axis two lengths."""
    lengths: dict[str, int] = dict(zip(BATCH_AXES, snapshot.outputs.shape, strict=True))
    for name in set(found) & set(axes):
        shape, declared = found[name].shape, axes[name]
        if len(declared) != len(shape) or any(
            lengths.setdefault(axis, length) != length for axis, length in zip(declared, shape, strict=True)
        ):
            raise ValueError(
                f"observe.axes gives {name!r} the axes {declared}, but observe returned it with shape {shape}; axes of "
                f"one name have one length: {lengths}"
            )


def observation(observe: Observe, snapshot: Snapshot) -> dict[str, Array]:
    """What an observe function makes of a snapshot; refused while tracing, before anything is trained."""
    kinds = jax.errors.JAXTypeError, jax.errors.JAXIndexError
    what = (
        "observe is traced by jax, so it can't turn arrays into numpy or Python numbers, nor branch on their values: "
        "write it with jax.numpy. It"
    )
    try:
        with blamed(what, kinds=kinds):
            found = observe(snapshot)
    except Exception as error:
        error.add_note("raised by observe, which jax calls once, with arrays that have no values yet")
        raise
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise TypeError(f"observe must return arrays by name, a dict, got {found!r}")
    axes = declared_axes(observe)
    taken = sorted(set(found) & RESERVED.union(*axes.values()))
    if taken:
        raise ValueError(f"observe must return names that no result has already, got {', '.join(taken)}")
    if bad := [name for name in found if not name or "/" in name]:
        raise ValueError(f"observe must return names without '/', which files can't hold, got {bad[0]!r}")
    arrays = {name: _observed(name, values) for name, values in found.items()}
    _check_axes(axes, arrays, snapshot)
    return arrays


def _observed(name: str, values: Any) -> Array:
    try:
        array = jnp.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"observe must return arrays, got {values!r} of type {type(values).__name__} for {name!r}"
        ) from error
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        raise TypeError(f"observe must return arrays of numbers, got a random key for {name!r}")
    return array
