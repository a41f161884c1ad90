"""Pure functions of a training step, to be passed as `observe` or called by one."""

from __future__ import annotations

from nfd_jax._types import Array
from nfd_jax.basis import product
from nfd_jax.engine import Sweep


def kernels(sweep: Sweep) -> dict[str, Array]:
    """Feature kernels <h_l^a, h_l^b> and gradient kernels <g_l^a, g_l^b>, each `(L + 1, P, P)` (theory section 3)."""

    def gram(vectors: Array) -> Array:
        return product(vectors, vectors.swapaxes(-1, -2)) / vectors.shape[-1]

    return {"feature_kernel": gram(sweep.features), "gradient_kernel": gram(sweep.gradients)}
