"""Activations by name: the one place that lists them. Derivatives come from jax itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from nfd_jax._errors import one_of
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
    """`activation` where it is a known name or a callable, else an error that lists the names."""
    if callable(activation):
        return activation
    return one_of("activation", activation, ACTIVATIONS)


def function(activation: str | ScalarFunction) -> ScalarFunction:
    """The elementwise function phi of a name or of a callable that jax can differentiate."""
    return activation if callable(activation) else ACTIVATIONS[activation]


def derivative(activation: str | ScalarFunction) -> ScalarFunction:
    """phi', elementwise, with jax's own convention at a kink: 0 at 0 for relu and abs."""
    phi = function(activation)
    return lambda x: jax.jvp(phi, (x,), (jnp.ones_like(x),))[1]
