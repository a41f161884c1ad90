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
arXiv 2310.02244, Prop. 4.4 and Lemma C.1 (the linear network; derived anew below).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp
from scipy.special import ndtr

Array: TypeAlias = NDArray[np.floating[Any]]  # float64 throughout
Real: TypeAlias = int | float  # run-time type checkers take float at its word
Pointwise: TypeAlias = Callable[[Array], Any]  # elementwise on float64 arrays of any shape

# --------------------------------------------------------------------------- Gaussian expectations


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
    gram = _square(covariance, "covariance")
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
    """E[phi(u_a)] for u_a ~ N(0, variances_a), (P,); `activation` as for `gaussian_kernels`."""
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
    return ndtr(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


_SMOOTH: dict[str, tuple[Pointwise, Pointwise]] = {
    "tanh": (lambda x: np.tanh(x), lambda x: 1 / np.cosh(x) ** 2),
    "gelu": (lambda x: x * ndtr(x), _gelu_slope),
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
        found = np.asarray(function(x), float)
        if found.shape != x.shape:
            raise ValueError(f"{name} must act elementwise: shape {x.shape} in, {found.shape} out")
        return found

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
        own = math.sqrt(max(gram[b, b] - shared**2, 0.0))
        u, v = spread * nodes, shared * nodes[:, None] + own * nodes
        values[a, b] = values[b, a] = (weights * phi(u)) @ phi(v) @ weights
        slopes[a, b] = slopes[b, a] = (weights * slope(u)) @ slope(v) @ weights
    return values, slopes


# --------------------------------------------------------------------------- before training


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
CLOSURES = ("coupled", "decoupled")
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
        found = {}
        for place in reversed(range(1, len(slopes))):
            overlap = slopes[place] * overlap
            found["hidden" if place == len(slopes) - 1 else "inner"] = kernels[place - 1] * overlap
            overlap = keep * overlap
        return slopes[0] * overlap, found


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
    start = _square(gram, "gram")
    branch, keep = _chosen(activation, slope, block, centred, closure)
    if depth == math.inf:
        return _initial_flow(branch, start, horizon, points, keep)
    blocks = _blocks(depth)
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
        more, found = branch.backward(kernels, slopes, overlap, keep)
        overlap = overlap + step * more
        hidden |= {role: hidden[role] + step * kernel for role, kernel in found.items()}
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
    solution = solve_ivp(velocity, (0, 1), state, method="DOP853", t_eval=times, rtol=1e-12, atol=1e-14)
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
    arguments as for `initial_kernels`.
    """
    rates = {"inner": 1.0, "hidden": 1.0} if rates is None else rates
    for role, rate in rates.items():
        if role not in ROLES or not math.isfinite(rate):
            raise ValueError(f"rates must be finite numbers of the roles {', '.join(ROLES)}; got {role!r}: {rate}")
    kernels = tangent_kernels(activation, gram, depth, horizon, **options)
    return sum((rate * kernels[role] for role, rate in rates.items()), np.zeros_like(kernels["hidden"]))


def _chosen(
    activation: str | Pointwise, slope: Pointwise | None, block: str, centred: bool, closure: str
) -> tuple[_Branch, float]:
    for name, value, known in (("block", block, BLOCKS), ("closure", closure, CLOSURES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    return _Branch(activation, slope, BLOCKS[block], centred), float(closure == "coupled")


# --------------------------------------------------------------------------- the linear network
#
# Derivation. A matrix with iid normal entries, queried adaptively, acts at infinite width as
# (Gaussian conditioning, Stein's lemma; i, j run over the queries)
#
#     W h^i / sqrt(n)   = u^i + sum_j E[dh^i/dr^j] g^j,    cov(u) = <h, h>,    u and r independent,
#     W^T g^j / sqrt(n) = r^j + sum_i E[dg^j/du^i] h^i,    cov(r) = <g, g>,
#
# so that with the learned part added and e = T/L the l-th block reads
#
#     h_l     = h_{l-1} + sqrt(e) u + e D g_l,       D^{ij} = A^{ij} - eta chi_j <h_{l-1}^j, h_{l-1}^i>,
#     g_{l-1} = g_l + sqrt(e) r + e E h_{l-1},       E^{ji} = B^{ji} - eta chi_i <g_l^i, g_l^j>,
#
# sums over earlier training steps only, chi_j h^j also over the samples of step j; A = B = 0 in the
# decoupled closure. All coefficients are deterministic. Cut the network at level l: the blocks below it
# turn g_l into h_l = rho g_l + noise, those above turn h_l into g_l = sigma h_l + noise, and the two
# noises share no generator. Joining the sides gives every inner product at the cut,
# A = (1 - rho sigma)^-1 rho there and B = (1 - sigma rho)^-1 sigma; moving the cut by a block updates
# rho or sigma. No pair of levels is ever needed, which is where this differs from the two-time Gamma
# and C of TP6, Prop. 4.4 and Lemma C.1.


@dataclass(frozen=True)
class LinearDynamics:
    """A linear network trained for K steps on P samples; infinite width, L blocks.

    Forward queries (k, a) are flattened step first, F = (K + 1) P of them; backward queries are K, since
    with one output and a linear activation g does not depend on the sample. Responses are the A and B of
    the theory (divided by sqrt(T/L), so of order one in L); they vanish in the decoupled closure.
    """

    outputs: Array  # (K + 1, P)  before training, then after each step
    features: Array  # (L + 1, F, F)  <h_l^i, h_l^j>
    gradients: Array  # (L + 1, K, K)  <g_l^i, g_l^j>
    forward_response: Array  # (L, F, K)  A in block l + 1: weight of g_{l+1}^j in its W h_l^i
    backward_response: Array  # (L, K, F)  B in block l + 1: weight of h_l^i in its W^T g_{l+1}^j


@dataclass(frozen=True)
class _Half:
    """One side of a cut as seen from it, x = reflection @ y + noise.

    Below the cut x are the forward queries h_l and y the backward ones g_l; above it the reverse.
    """

    reflection: Array
    noise: Array  # covariance

    def meet(self, other: "_Half") -> tuple[Array, Array]:
        """Join both sides: covariance of x, and response of x to a source added to y."""
        loop = _geometric(self.reflection @ other.reflection)
        response = loop @ self.reflection
        return loop @ self.noise @ loop.T + response @ other.noise @ response.T, response

    def extend(self, step: Real, outward: Array, fresh: Array, inward: Array, drive: Array) -> "_Half":
        """Move the cut outward by one block, from (x, y) to (x', y'):

        x' = x + N(0, step fresh) + step outward @ y',    y = y' + N(0, step drive) + step inward @ x.
        """
        loop = _geometric(step * self.reflection @ inward)
        carried = loop @ self.reflection
        noise = loop @ self.noise @ loop.T + step * carried @ drive @ carried.T + step * fresh
        return _Half(carried + step * outward, noise)


def _geometric(causal: Array) -> Array:
    """(1 - causal)^-1, which exists: nothing acts on its own or an earlier step, so causal^(K+1) = 0."""
    return np.linalg.inv(np.eye(len(causal)) - causal)


def linear_dynamics(
    gram: ArrayLike,
    targets: ArrayLike,
    depth: int,
    horizon: Real = 1.0,
    learning_rate: Real = 1.0,
    steps: int = 1,
    closure: str = "coupled",
) -> LinearDynamics:
    """Gradient descent on the hidden matrices, loss mean_a (f_a - y_a)^2 / 2 over the whole batch.

    `gram` = <h_0, h_0> is (P, P), `targets` (P,), `learning_rate` the width- and depth-free eta,
    `closure` coupled (tied network) or decoupled (independent copy of W^0 in the backward pass).
    Exact at finite `depth` = L; time O(L K (K P)^3), memory O(L (K P)^2).
    """
    start, goals = _square(gram, "gram"), _targets(targets, gram)
    if closure not in CLOSURES:
        raise ValueError(f"closure must be one of {', '.join(CLOSURES)}; got {closure!r}")
    blocks, samples, keep = _blocks(depth), len(goals), float(closure == "coupled")
    step = horizon / blocks
    step_of = np.repeat(np.arange(steps + 1), samples)  # training step of each forward query
    queries = len(step_of)
    earlier = np.arange(steps) < step_of[:, None]  # (F, K): backward query before forward query
    later = np.arange(steps) > step_of[:, None]
    pulse = np.zeros((queries, steps))  # eta chi_i, in the column of its step
    outputs = np.zeros((steps + 1, samples))
    features, gradients = np.zeros((blocks + 1, queries, queries)), np.zeros((blocks + 1, steps, steps))
    reuse_h, reuse_g = np.zeros((blocks, queries, steps)), np.zeros((blocks, steps, queries))  # A, B
    drift_h, drift_g = np.zeros_like(reuse_h), np.zeros_like(reuse_g)  # D, E
    below = [_Half(np.zeros((queries, steps)), np.tile(start, (steps + 1, steps + 1)))] * (blocks + 1)
    above = [_Half(np.zeros((steps, queries)), np.ones((steps, steps)))] * (blocks + 1)
    # Everything is causal: the k-th pair of sweeps makes step k final, whatever the later rows hold.
    for k in range(steps + 1):
        for b in range(blocks):
            features[b], response = below[b].meet(above[b])
            reuse_h[b] = keep * response
            drift_h[b] = reuse_h[b] - earlier * (features[b] @ pulse)
            below[b + 1] = below[b].extend(step, drift_h[b], features[b], drift_g[b], gradients[b + 1])
        now = step_of == k
        outputs[k] = below[-1].reflection[now].sum(axis=1)  # <V, h_L>, since g_L^j = V for every j
        if k < steps:
            pulse[now, k] = learning_rate * (outputs[k] - goals) / samples
        for b in reversed(range(blocks)):
            gradients[b + 1], response = above[b + 1].meet(below[b + 1])
            reuse_g[b] = keep * response
            drift_g[b] = reuse_g[b] - later.T * (gradients[b + 1] @ pulse.T)
            above[b] = above[b + 1].extend(step, drift_g[b], gradients[b + 1], drift_h[b], features[b])
    features[-1], gradients[0] = below[-1].meet(above[-1])[0], above[0].meet(below[0])[0]
    return LinearDynamics(outputs, features, gradients, reuse_h, reuse_g)


_DEPTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def linear_outputs(
    gram: ArrayLike,
    targets: ArrayLike,
    depth: Real,
    horizon: Real = 1.0,
    learning_rate: Real = 1.0,
    steps: int = 1,
    closure: str = "coupled",
    tolerance: Real = 1e-8,
) -> Array:
    """Outputs (steps + 1, P) of `linear_dynamics`, at finite depth or at depth = math.inf.

    Infinite depth is the value at 0 of the polynomial in 1/L through the outputs at finite depths
    (Richardson), with as many depths as it takes for the last one to change it by less than `tolerance`:
    a fraction of a second for five steps at eta = 0.5, a few seconds for ten at eta = 1. A rate at
    which training is unstable needs more than depth 512 and raises ArithmeticError.
    """
    if depth != math.inf:
        arguments = gram, targets, _blocks(depth), horizon, learning_rate, steps, closure
        return linear_dynamics(*arguments).outputs
    values: list[Array] = []
    estimate, change = np.zeros((steps + 1, np.size(targets))), math.inf
    for count, blocks in enumerate(_DEPTHS, 1):
        values.append(linear_outputs(gram, targets, blocks, horizon, learning_rate, steps, closure))
        used, previous = _DEPTHS[:count], estimate
        weights = [math.prod(x / (x - other) for other in used if other != x) for x in used]
        estimate = np.tensordot(weights, values, axes=1)
        change = float(np.abs(estimate - previous).max())
        if count > 1 and change < tolerance:
            return estimate
    raise ArithmeticError(
        f"outputs at infinite depth are known to {change:.1e} only, tolerance is {tolerance:.1e}; "
        "lower learning_rate or steps, or raise tolerance"
    )


# --------------------------------------------------------------------------- argument checks


def _square(matrix: ArrayLike, name: str) -> Array:
    array = np.asarray(matrix, float)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"{name} must be a square matrix of size at least 1; got shape {array.shape}")
    if not np.allclose(array, array.T) or np.diag(array).min() < 0:
        raise ValueError(f"{name} must be symmetric with a nonnegative diagonal; got {array.tolist()}")
    return array


def _targets(targets: ArrayLike, gram: ArrayLike) -> Array:
    array = np.asarray(targets, float)
    if array.shape != (len(np.asarray(gram)),):
        raise ValueError(f"targets must have one entry a row of gram; got shape {array.shape}")
    return array


def _blocks(depth: Real) -> int:
    if depth != int(depth) or depth < 1:
        raise ValueError(f"depth must be a positive whole number here; got {depth}")
    return int(depth)
