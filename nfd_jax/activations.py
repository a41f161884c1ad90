"""Activations by name: the one place that lists them. Derivatives come from jax itself."""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp

from nfd_jax._checks import one_of
from nfd_jax._functions import check_hashable, check_traced
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
    check_hashable("activation", activation)
    _probe(activation)
    return activation


@lru_cache(maxsize=256)
def _probe(phi: ScalarFunction) -> None:
    """TypeError unless a number and a matrix keep their shape and dtype, and have derivatives. A function that mixes
    entries mostly refuses a number."""
    what = (
        "activation must be a name or a scalar function that jax applies to every entry of an array and "
        "differentiates, such as jax.nn.silu"
    )
    way_out = "write it with jax.numpy, not numpy or math"
    for shape in ((), (2, 3)):
        check_traced(what, way_out, phi, lambda x: jax.jvp(phi, (x,), (x,))[0], [shape], shape)


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
