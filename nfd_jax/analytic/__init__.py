"""Closed forms and recursions that the Monte-Carlo solvers are checked against.

An independent road: float64 numpy and scipy, no particles, no automatic differentiation, nothing
imported from the rest of the package. Everything is the limit of infinite width for the model

    h_l     = h_{l-1} + sqrt(T/L) W_l phi(h_{l-1}) / sqrt(n),                     h_0 given
    g_{l-1} = g_l + sqrt(T/L) phi'(h_{l-1}) * W_l^T g_l / sqrt(n),                g_L = V
    f       = V^T h_L / n

with `<x, y> = x^T y / n`, one output and entries of size one: `<V, V> = 1`, `<V, h_0> = 0`; before
training for branches of one and two matrices (`BLOCKS`), else for the one above.

* `gaussian_kernels`, `gaussian_means`: E[phi(u) phi(v)], E[phi'(u) phi'(v)] and E[phi(u)] for jointly
  Gaussian u, v.
* `initial_kernels`, `tangent_kernels`, `tangent_kernel`: any activation and block, before training, at
  finite or infinite depth, of ordinary networks and of those with an independent copy of the weights in
  the backward pass.
* `linear_dynamics`, `linear_outputs`: the linear network, any number of training steps, either closure.

Sources: Cho and Saul, arXiv 1112.3712 (arc-cosine kernels); Yang, Yu, Zhu, Hayou, Tensor Programs VI,
arXiv 2310.02244, Prop. 4.4 and Lemma C.1 (the linear network; derived anew in `linear`).
"""

from nfd_jax.analytic._arguments import CLOSURES
from nfd_jax.analytic.gaussian import gaussian_kernels, gaussian_means
from nfd_jax.analytic.initial import (
    BLOCKS,
    ROLES,
    InitialKernels,
    initial_kernels,
    tangent_kernel,
    tangent_kernels,
)
from nfd_jax.analytic.linear import LinearDynamics, linear_dynamics, linear_outputs

__all__ = [
    "BLOCKS",
    "CLOSURES",
    "ROLES",
    "InitialKernels",
    "LinearDynamics",
    "gaussian_kernels",
    "gaussian_means",
    "initial_kernels",
    "linear_dynamics",
    "linear_outputs",
    "tangent_kernel",
    "tangent_kernels",
]
