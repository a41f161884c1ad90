"""Expectations of activations of jointly Gaussian variables: closed forms for kinks, quadrature for what is smooth."""

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike

from nfd_jax.analytic._arguments import Array, Pointwise, Real, square


def gaussian_kernels(
    activation: str | Pointwise, covariance: ArrayLike, slope: Pointwise | None = None
) -> tuple[Array, Array]:
    """E[phi(u_a) phi(u_b)] and E[phi'(u_a) phi'(u_b)] for u ~ N(0, covariance).

    `activation` is one of identity, relu, abs, tanh, gelu (the exact x * Phi(x)), or a function of float64
    arrays, elementwise; `covariance` is (P, P), positive semidefinite, and may be singular or have zero
    rows. Returns two (P, P) arrays. At a kink the derivative is taken to be 0, which matters only for a
    sample of zero variance.

    A function is integrated on a grid, so it has to be smooth on the scale 0.1 or so: one with kinks is
    refused with ValueError. `slope` is its derivative; by default differences of sixth order, exact to
    about 1e-12 for values in double precision (a jax function gives single precision unless
    jax_enable_x64 is set, and derivatives good to 1e-5: pass `slope` then).
    """
    gram = square(covariance, "covariance")
    if activation == "identity":
        return gram.copy(), np.ones_like(gram)
    if activation == "abs":
        return _abs_kernels(gram)
    if activation == "relu":
        # relu = (x + |x|) / 2, and an odd function of u is uncorrelated with an even one of v.
        magnitudes, signs = _abs_kernels(gram)
        return (gram + magnitudes) / 4, (_alive(gram) + signs) / 4
    return _quadrature_kernels(*_smooth(activation, slope, math.sqrt(np.diag(gram).max())), gram)


def gaussian_means(activation: str | Pointwise, variances: ArrayLike) -> Array:
    """E[phi(u_a)] for u_a ~ N(0, v_a), with `variances` v, (P,); `activation` as for `gaussian_kernels`."""
    spread = np.sqrt(np.asarray(variances, float))
    if activation in ("identity", "tanh"):
        return np.zeros_like(spread)
    if activation in ("relu", "abs"):
        return spread * math.sqrt(2 / math.pi) / (2 if activation == "relu" else 1)
    phi, _ = _smooth(activation, None, spread.max())
    nodes, weights = _grid(spread.max())
    return phi(spread[:, None] * nodes) @ weights


def _abs_kernels(gram: Array) -> tuple[Array, Array]:
    """E|u||v| and E[sign u sign v] by the angle between u and v (Cho and Saul, orders 1 and 0)."""
    scale = np.outer(np.diag(gram), np.diag(gram))
    determinant = scale - gram**2
    # Parallel samples have determinant 0 up to rounding, of which arctan2 would see the square root.
    sine = np.sqrt(np.where(determinant > 8 * np.finfo(float).eps * scale, determinant, 0.0))
    angle = np.arctan2(sine, gram)
    magnitudes = (2 * sine + (math.pi - 2 * angle) * gram) / math.pi
    return magnitudes, (1 - 2 * angle / math.pi) * _alive(gram)


def _alive(gram: Array) -> Array:
    """1 where both samples have positive variance, else 0."""
    positive = (np.diag(gram) > 0).astype(float)
    return np.outer(positive, positive)


def _gelu_slope(x: Array) -> Array:
    return scipy.special.ndtr(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


_SMOOTH: dict[str, tuple[Pointwise, Pointwise]] = {
    "tanh": (lambda x: np.tanh(x), lambda x: 1 / np.cosh(x) ** 2),
    "gelu": (lambda x: x * scipy.special.ndtr(x), _gelu_slope),
}


def _smooth(activation: str | Pointwise, slope: Pointwise | None, spread: Real) -> tuple[Pointwise, Pointwise]:
    """A smooth activation and its derivative as functions that the grid for this standard deviation resolves."""
    if isinstance(activation, str):
        if activation not in _SMOOTH:
            names = ["identity", "relu", "abs", *_SMOOTH]
            raise ValueError(f"activation must be one of {', '.join(names)}, or a function; got {activation!r}")
        return _SMOOTH[activation]
    phi = _elementwise("activation", activation)
    derived = _differences(phi) if slope is None else _elementwise("slope", slope)
    for name, function in (("activation", phi), ("slope", derived)):
        sums = []
        for refinement in (1, 2):
            nodes, weights = _grid(spread, refinement)
            sums.append(function(spread * nodes) ** 2 @ weights)
        if not abs(sums[0] - sums[1]) <= 1e-6 * (1 + abs(sums[1])):
            raise ValueError(
                f"{name} must be finite and smooth to be integrated: E[{name}(u)^2] at standard deviation {spread:.3g} "
                f"is {sums[0]:.8g} on one grid and {sums[1]:.8g} on a finer one; 'relu' and 'abs' have closed forms"
            )
    return phi, derived


def _elementwise(name: str, function: Pointwise) -> Pointwise:
    def checked(x: Array) -> Array:
        values = np.asarray(function(x), float)
        if values.shape != x.shape:
            raise ValueError(f"{name} must act elementwise: shape {x.shape} in, {values.shape} out")
        return values

    return checked


def _differences(phi: Pointwise) -> Pointwise:
    """phi' by central differences of sixth order: h^6 phi^(7) / 140, and rounding over h."""
    h, weights = 2.0**-8, (45 / 60, -9 / 60, 1 / 60)
    return lambda x: sum(w * (phi(x + k * h) - phi(x - k * h)) for k, w in enumerate(weights, 1)) / h


def _grid(spread: Real, refinement: int = 1) -> tuple[Array, Array]:
    """Nodes and weights for expectations over a standard normal variable, of functions of `spread` times it.

    The trapezoidal rule: for phi analytic up to a distance d from the real axis its error is
    exp(-2 pi d / (spread * step)), so with this step tanh (d = pi / 2) is exact to rounding at any
    variance, where 80-point Gauss-Hermite is off by 1e-8 at variance 1 and by 1e-4 at variance 4.
    """
    step = 0.25 / max(1.0, spread) / refinement
    half = math.ceil(9.0 / step)  # beyond nine standard deviations the weight is below 1e-18
    nodes = step * np.arange(-half, half + 1)
    return nodes, step * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)


def _quadrature_kernels(phi: Pointwise, slope: Pointwise, gram: Array) -> tuple[Array, Array]:
    """Both expectations on a two-dimensional grid, u and v made from two iid normals by Cholesky."""
    nodes, weights = _grid(math.sqrt(np.diag(gram).max()))
    values, slopes = np.zeros_like(gram), np.zeros_like(gram)
    for a, b in zip(*np.triu_indices(len(gram)), strict=True):
        spread = math.sqrt(gram[a, a])
        shared = gram[a, b] / spread if spread > 0 else 0.0
        rest = math.sqrt(max(gram[b, b] - shared**2, 0.0))
        u, v = spread * nodes, shared * nodes[:, None] + rest * nodes
        values[a, b] = values[b, a] = (weights * phi(u)) @ phi(v) @ weights
        slopes[a, b] = slopes[b, a] = (weights * slope(u)) @ slope(v) @ weights
    return values, slopes
