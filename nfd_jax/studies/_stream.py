"""Streams of one input at initialisation, h_l = a h_{l-1} + b W_l relu(h_{l-1}): the feature speed formula's source has
them. The angle at every layer from one forward, one backward and one forward derivative sweep, and the spectrum that
predicts it.

h_0 and the readout are frozen, and every layer takes the same share of the loss decay, eta_l = 1 / (L |grad_l|^2). So
dW_l = -eta_l g_l x_l^T with x_l = relu(h_{l-1}) moves h_l by -g_l / (L |g_l|^2) whatever b and x_l are, and

    df_l = A_l df_{l-1} - g_l / (L |g_l|^2),        K_l = A_l K_{l-1} A_l^T + I / (L |g_l|^2),

with A_l = a I + b W_l diag(relu'(h_{l-1})) the Jacobian of a layer.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfd_jax._types import Array, Float, Key


class Scales(NamedTuple):
    """Of a stream: h <- skip h + branch W relu(h), with entries of W of variance `variance` / n."""

    skip: float
    branch: float
    variance: float

    @classmethod
    def source(cls, branch: float) -> Scales:
        """The source's: features keep their size for every branch scale; 1 is an MLP, He-normal both."""
        return cls(max(0.0, 1 - branch**2) ** 0.5, branch, 2.0)

    @classmethod
    def ours(cls, depth: int, horizon: float) -> Scales:
        """The block of theory section 2, whose features grow."""
        return cls(1.0, (horizon / depth) ** 0.5, 1.0)

    def cosine(self, layers: np.ndarray | int) -> np.ndarray:
        """cos(theta_l) as n grows, were relu' drawn afresh in every layer: `free_cosine`.

        It holds in an MLP. Along a residual stream units stay open or closed for many layers, so that the rows of K in
        which much has been written are written to again, and the angle is larger than this (n = 512, L = 64, b = 2
        L^-1/2: relu' afresh 0.529 +- 0.001, here 0.527, relu 0.471 +- 0.003).
        """
        weight = self.branch**2 * self.variance
        return free_cosine(weight / (self.skip**2 + weight / 2), layers)


def free_cosine(spread: float, layers: np.ndarray | int) -> np.ndarray:
    """cos(theta_l) = M_1 / sqrt(M_2) of K_l for layers that know nothing of each other, of equal shares, as n grows.

    `spread`: v = Tr (A A^T)^2 / (n q^2) - 1 of one layer's Jacobian A, q = Tr A A^T / n. By moments of free matrices
    K_l / q^l has the moments l and sum_{k < l} (v k^2 + 2 k + 1), in units of its first rate. v is 0 for orthogonal A,
    1 for Gaussian W, 1 for W relu' with orthogonal W, 2 with Gaussian W; b^2 s / q for a I + b W relu' with W of
    variance s / n, q = a^2 + b^2 s / 2.
    """
    number = np.asarray(layers, float)
    return 1 / np.sqrt(1 + spread * (number - 1) * (2 * number - 1) / (6 * number))


@partial(jax.jit, static_argnames=("depth", "width", "with_moments"))
def angles(
    key: Key, scales: Scales, depth: int, width: int, with_moments: bool
) -> tuple[Float[Array, " depth"], Float[Array, "depth moments"]]:
    """cos(theta_l) of all layers of one network, and the moments M_1 and M_2 of its kernels K_l, n^3 work a layer; no
    moments where they are not wanted."""
    first, last, hidden = jax.random.split(key, 3)
    weights = jax.random.normal(hidden, (depth, width, width)) * (scales.variance / width) ** 0.5

    def forward(h: Array, W: Array) -> tuple[Array, Array]:
        return scales.skip * h + scales.branch * (W @ jax.nn.relu(h)), (h > 0).astype(h.dtype)

    def backward(g: Array, layer: tuple[Array, Array]) -> tuple[Array, Array]:
        W, open_ = layer
        return scales.skip * g + scales.branch * open_ * (g @ W), g

    def movement(moved: tuple[Array, Array], layer: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], tuple]:
        (df, kernel), (W, open_, g) = moved, layer
        size = jnp.sum(g**2)
        df = scales.skip * df + scales.branch * (W @ (open_ * df)) - g / (depth * size)
        cosine = -jnp.sum(df * g) / jnp.sqrt(size * jnp.sum(df**2))
        if not with_moments:
            return (df, kernel), (cosine, jnp.zeros(0))
        A = scales.skip * jnp.eye(width) + scales.branch * W * open_[None]
        kernel = A @ kernel @ A.T + jnp.eye(width) / (depth * size)
        return (df, kernel), (cosine, jnp.stack([jnp.trace(kernel), jnp.sum(kernel**2)]) / width)

    start = jax.random.normal(first, (width,))
    _, opened = lax.scan(forward, start, weights)
    _, gradients = lax.scan(backward, jax.random.normal(last, (width,)), (weights, opened), reverse=True)
    nothing = jnp.zeros(width), jnp.zeros((width, width) if with_moments else (0, 0))
    _, (cosines, moments) = lax.scan(movement, nothing, (weights, opened, gradients))
    return cosines, moments
