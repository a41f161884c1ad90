"""What decides the numbers of a record besides its arguments: checkpoints, cells of sweeps and of studies ask here."""

from __future__ import annotations

from importlib.metadata import version

import jax

# Of the numerical core. Raise it with any change after which the same arguments give other numbers, beyond rounding:
# tests/test_identity.py has results of fixed small runs, and fails where they change without it.
REVISION = 1


SETTINGS = {  # of jax, by what a record calls them
    "precision (x64)": "jax_enable_x64",
    "matmul precision": "jax_default_matmul_precision",
    "random numbers": "jax_default_prng_impl",
    "partitionable": "jax_threefry_partitionable",
}


def environment() -> dict[str, str]:
    """The code, jax and its settings that change numbers."""
    return {
        "nfd_jax": version("nfd_jax"),
        "revision": str(REVISION),
        "jax": jax.__version__,
        "platform": jax.devices()[0].platform,
        **{name: str(getattr(jax.config, setting)) for name, setting in SETTINGS.items()},
    }
