"""Kernels of networks before training: any activation and block, at finite or infinite depth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike

from nfd_jax.analytic._arguments import CLOSURES, Array, Pointwise, Real, choice, square, whole
from nfd_jax.analytic.gaussian import gaussian_kernels, gaussian_means

# Derivation. Every matrix of a branch is a Gaussian matrix of its own, so its images W x / sqrt(n) are Gaussian
# with covariance <x, x>, independent of all fields below, and the images W^T y / sqrt(n) of the backward pass with
# covariance <y, y>: y is odd in V, so that reuse of W leaves no trace before training. phi acts on h itself only in
# blocks that end with a matrix, where h is a sum of such images and Gaussian too.
#
# What a step does to f in first order is -eta chi sum_W <x^a, x^b> <y^a, y'^b> with y the field that carries df/dW,
# through W^T, and y' the one that made the update. In an ordinary network they are one. In an untied network y'
# comes back through independent copies: at the readout both are V, skip connections hand their overlap down
# unchanged, and a matrix takes it to zero. So the last matrix of a branch keeps the overlap <V, V> = 1 where an
# ordinary network has G_t, and inner matrices change f not at all in first order.

BLOCKS = {  # whether phi acts before the first matrix, and after each
    "pre": (True, False),  # W phi(h)
    "post": (False, True),  # phi(W h)
    "inner": (False, True, False),  # W2 phi(W1 h)
    "pre_inner": (True, True, False),  # W2 phi(W1 phi(h))
    "inner_post": (False, True, True),  # phi(W2 phi(W1 h))
}
ROLES = ("input", "inner", "hidden", "readout")


@dataclass(frozen=True)
class InitialKernels:
    """Kernels before training at layer times t = l / L; S is L + 1, or `points` at infinite depth."""

    times: Array  # (S,)       from 0 to 1
    features: Array  # (S, P, P)  H_t = <h_t, h_t>
    activations: Array  # (S, P, P)  <x_t, x_t>, x the input of the next block's first matrix: phi(h) or h
    gradients: Array  # (S, P, P)  G_t = <g_t, g_t>, all ones at t = 1
    tangents: dict[str, Array]  # (P, P) each, tangent kernels by role: `ROLES`

    @property
    def tangent(self) -> Array:
        """(P, P) tangent kernel K of all matrices of the blocks, both at the rate of depth-muP."""
        return self.tangents["inner"] + self.tangents["hidden"]


@dataclass(frozen=True)
class _Branch:
    """The equations of one block, by its kernels."""

    activation: str | Pointwise
    slope: Pointwise | None
    activated: tuple[bool, ...]
    centred: bool

    def forward(self, kernel: Array) -> tuple[list[Array], list[Array], Array]:
        """From H: kernels of what every matrix acts on and of the branch, kernels of the derivatives of all maps
        between them, and the mean of the branch, (P,)."""
        kernels, slopes, mean = [], [], np.zeros(len(kernel))
        for place, active in enumerate(self.activated):
            slopes.append(np.ones_like(kernel))
            if active:
                if place == len(self.activated) - 1:
                    mean = gaussian_means(self.activation, np.diag(kernel))
                kernel, slopes[-1] = gaussian_kernels(self.activation, kernel, self.slope)
            kernels.append(kernel)
        if self.centred:
            kernels[-1], mean = kernels[-1] - np.outer(mean, mean), np.zeros(len(kernel))
        return kernels, slopes, mean

    def backward(
        self, kernels: list[Array], slopes: list[Array], overlap: Array, keep: float
    ) -> tuple[Array, dict[str, Array]]:
        """From the overlap of two backward fields above the branch: what the branch adds to it, and its products with
        the forward kernels, by role. `keep`: the share of an overlap that a matrix hands down, 1 or 0."""
        products = {}
        for place in reversed(range(1, len(slopes))):
            overlap = slopes[place] * overlap
            products["hidden" if place == len(slopes) - 1 else "inner"] = kernels[place - 1] * overlap
            overlap = keep * overlap
        return slopes[0] * overlap, products


def initial_kernels(
    activation: str | Pointwise,
    gram: ArrayLike,
    depth: Real,
    horizon: Real = 1.0,
    points: int = 65,
    *,
    block: str = "pre",
    centred: bool = False,
    slope: Pointwise | None = None,
    closure: str = "coupled",
) -> InitialKernels:
    """Kernels of the untrained network for the input Gram matrix `gram` = <h_0, h_0>, (P, P).

    - `activation`, `slope`: as for `gaussian_kernels`.
    - `depth`, `horizon`: L or math.inf, and T: branches are multiplied by sqrt(T/L). Another branch scale b is the
      horizon L b^2.
    - `points`: the output grid at infinite depth.
    - `block`: one of `BLOCKS`. `centred`: whether a branch loses its mean over the n coordinates (TP6).
    - `closure`: what `tangents` are of: coupled, an ordinary (tied) network; or decoupled, one with an independent
      copy of every matrix in the backward pass (untied). All other kernels are the same.

    Tangent kernels have the unit of the theory: a step of rate eta moves f by -eta sum_role r_role K_role chi in first
    order, with rates r_role eta n. r is 1 in depth-muP, sqrt(L) for the inner role of its corrected row, and L inside
    the blocks under CompleteP (horizon 1/L); see `tangent_kernel`.

    Exact recursions at finite depth (NFD and TP6 alike: fields are Gaussian at initialisation; derived above), for
    one matrix a block

        H_l = H_{l-1} + (T/L) Phi(H_{l-1}),     G_{l-1} = G_l + (T/L) G_l * Phidot(H_{l-1}),
        K   = (T/L) sum_l Phi_{l-1} * G_l,

    and dH/dt = T Phi(H), -dG/dt = T G * Phidot(H), K = T integral of Phi_t * G_t at infinite depth,
    there to about 1e-11 (DOP853 and its interpolant). Raises ValueError at infinite depth for branches with a mean,
    which adds up to order sqrt(L).
    """
    start = square(gram, "gram")
    branch = _Branch(activation, slope, BLOCKS[choice("block", block, BLOCKS)], centred)
    keep = float(choice("closure", closure, CLOSURES) == "coupled")
    if depth == math.inf:
        return _initial_flow(branch, start, horizon, points, keep)
    blocks = whole(depth)
    step = horizon / blocks
    features: list[Array] = [start]
    mean, passed = np.zeros(len(start)), []
    for _ in range(blocks):
        kernels, slopes, added = branch.forward(features[-1])
        cross = math.sqrt(step) * np.outer(mean, added)
        features.append(features[-1] + step * kernels[-1] + cross + cross.T)
        mean = mean + math.sqrt(step) * added
        passed.append((kernels, slopes))
    activations = [kernels[0] for kernels, _ in passed] + [branch.forward(features[-1])[0][0]]
    gradients = [np.ones_like(start)]
    overlap, hidden = np.ones_like(start), {"inner": np.zeros_like(start), "hidden": np.zeros_like(start)}
    for kernels, slopes in reversed(passed):
        gradients.insert(0, gradients[0] + step * branch.backward(kernels, slopes, gradients[0], 1.0)[0])
        more, products = branch.backward(kernels, slopes, overlap, keep)
        overlap = overlap + step * more
        hidden |= {role: hidden[role] + step * kernel for role, kernel in products.items()}
    tangents = {"input": start * overlap, **hidden, "readout": features[-1]}
    times = np.linspace(0, 1, blocks + 1)
    return InitialKernels(times, np.stack(features), np.stack(activations), np.stack(gradients), tangents)


def _initial_flow(branch: _Branch, start: Array, horizon: Real, points: int, keep: float) -> InitialKernels:
    """All equations as one forward flow: G_t = exp(T (I_1 - I_t)) with dI/dt the product of all derivative kernels."""
    ones, shape = np.ones_like(start), (-1, *start.shape)
    roles = ("inner", "hidden")[3 - len(branch.activated) :]
    if np.abs(branch.forward(start)[2]).max() > 1e-12:
        raise ValueError(
            "depth must be finite for blocks that end with an activation of nonzero mean, which adds up over blocks; "
            "pass centred=True"
        )

    def velocity(_: float, state: Array) -> Array:
        features, exponent = state.reshape(shape)[:2]
        kernels, slopes = branch.forward(features)[:2]
        rate, products = branch.backward(kernels, slopes, ones, 1.0)
        if not keep:
            exponent, products = 0 * exponent, branch.backward(kernels, slopes, ones, 0.0)[1]
        weighted = [products[role] * np.exp(-exponent) for role in roles]
        return horizon * np.stack([kernels[-1], rate, *weighted]).ravel()

    times = np.linspace(0, 1, points)
    state = np.stack([start] + [np.zeros_like(start)] * (1 + len(roles))).ravel()
    solution = scipy.integrate.solve_ivp(velocity, (0, 1), state, method="DOP853", t_eval=times, rtol=1e-12, atol=1e-14)
    features, exponent, *weighted = np.moveaxis(solution.y.T.reshape(points, *shape), 1, 0)
    activations = np.stack([branch.forward(kernel)[0][0] for kernel in features])
    gradients = np.exp(exponent[-1] - exponent)
    overlap = gradients[0] if keep else ones
    hidden = {role: overlap * kernels[-1] for role, kernels in zip(roles, weighted, strict=True)}
    tangents = {"input": start * overlap, "inner": 0 * start, **hidden, "readout": features[-1]}
    return InitialKernels(times, features, activations, gradients, tangents)


def tangent_kernels(
    activation: str | Pointwise, gram: ArrayLike, depth: Real, horizon: Real = 1.0, **options: Any
) -> dict[str, Array]:
    """Tangent kernels before training by role, (P, P) each; arguments as for `initial_kernels`."""
    return initial_kernels(activation, gram, depth, horizon, points=2, **options).tangents


def tangent_kernel(
    activation: str | Pointwise,
    gram: ArrayLike,
    depth: Real,
    horizon: Real = 1.0,
    *,
    rates: Mapping[str, Real] | None = None,
    **options: Any,
) -> Array:
    """(P, P) kernel K: a small step moves f by -eta K chi, chi = dloss/df.

    `rates`: those of the roles that train, in units of eta n; by default 1 for the matrices of the blocks, which is
    depth-muP. Its corrected row is `{"inner": depth**0.5, "hidden": 1}`, which has no limit at infinite depth. Other
    arguments as for `initial_kernels`. Raises ValueError for rates that are not finite or of no role.
    """
    rates = {"inner": 1.0, "hidden": 1.0} if rates is None else rates
    for role, rate in rates.items():
        if role not in ROLES or not math.isfinite(rate):
            raise ValueError(f"rates must be finite numbers of the roles {', '.join(ROLES)}; got {role!r}: {rate}")
    kernels = tangent_kernels(activation, gram, depth, horizon, **options)
    return sum((rate * kernels[role] for role, rate in rates.items()), np.zeros_like(kernels["hidden"]))
