"""What decides the numbers of a record: its arguments, and what every record depends on besides them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax

# Of the numerical core. Raise it with any change after which the same arguments give other numbers, beyond rounding:
# tests/test_identity.py has results of fixed small runs, and fails where they change without it.
REVISION = 4

SETTINGS = {  # of jax, by what a record calls them
    "precision (x64)": "jax_enable_x64",
    "matmul precision": "jax_default_matmul_precision",
    "random numbers": "jax_default_prng_impl",
    "partitionable": "jax_threefry_partitionable",
}


def environment() -> dict[str, str]:
    """The revision of the core, jax and its settings that change numbers."""
    return {
        "revision": str(REVISION),
        "jax": jax.__version__,
        "platform": jax.devices()[0].platform,
        **{name: str(getattr(jax.config, setting)) for name, setting in SETTINGS.items()},
    }


def identity(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a record with these arguments depends on, as it is read back."""
    return json.loads(json.dumps({**arguments, **environment()}, default=str))
