"""Activations by name: the one place that lists them. Derivatives come from jax itself."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp

from nfd_jax._checks import one_of
from nfd_jax._types import Array, ScalarFunction


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)  # x times the Gaussian distribution function, exactly


ACTIVATIONS: dict[str, ScalarFunction] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "abs": lambda x: x * jnp.sign(x),  # jnp.abs has slope 1 at 0
    "tanh": jnp.tanh,
    "gelu": _gelu,
}


def check(activation: str | ScalarFunction) -> str | ScalarFunction:
    """`activation` where it is a known name or a scalar function that jax can differentiate, else an error that lists
    the names or says what the function does instead."""
    if not callable(activation):
        return one_of("activation", activation, ACTIVATIONS)
    try:
        hash(activation)
    except TypeError:
        raise TypeError(
            f"activation must be hashable to be compiled once, got {activation!r}; say it as a def"
        ) from None
    _probe(activation)
    return activation


@lru_cache(maxsize=256)
def _probe(phi: ScalarFunction) -> None:
    """TypeError unless a number and a matrix keep their shape and dtype, and have derivatives. A function that mixes
    entries mostly refuses a number. Nothing is compiled."""
    dtype = jax.dtypes.canonicalize_dtype(float)
    for shape in ((), (2, 3)):
        try:
            x = jax.ShapeDtypeStruct(shape, dtype)
            found = jax.eval_shape(lambda x: jax.jvp(phi, (x,), (x,))[0], x)
        except Exception as error:  # whatever a function of a user's raises
            raise _no_activation(phi, f"raises {type(error).__name__} for shape {shape}") from error
        if not isinstance(found, jax.ShapeDtypeStruct) or (found.shape, found.dtype) != (shape, dtype):
            made = getattr(found, "shape", type(found).__name__), getattr(found, "dtype", "no array")
            raise _no_activation(phi, f"makes {made[0]}, {made[1]} from {shape}, {dtype}")


def _no_activation(phi: object, wrong: str) -> TypeError:
    return TypeError(
        f"activation must be a name or a scalar function that jax applies to every entry of an array and "
        f"differentiates, such as jax.nn.silu, got {phi!r}, which {wrong}; write it with jax.numpy, not numpy or math"
    )


def function(activation: str | ScalarFunction) -> ScalarFunction:
    """The elementwise function phi of a name or of a callable that jax can differentiate."""
    return activation if callable(activation) else ACTIVATIONS[activation]


def derivative(activation: str | ScalarFunction) -> ScalarFunction:
    """phi', elementwise, with jax's own convention at a kink: 0 at 0 for relu and abs."""
    phi = function(activation)
    return lambda x: jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]


def is_odd(activation: str | ScalarFunction) -> bool:
    """Whether phi(-x) = -phi(x), on a grid and to rounding."""
    phi, x = function(activation), jnp.linspace(0.0, 6.0, 61)
    return bool(jnp.allclose(phi(-x), -phi(x), rtol=1e-5, atol=1e-6))
