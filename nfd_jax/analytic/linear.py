"""Linear networks: any number of training steps, either closure, at finite or infinite depth."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nfd_jax.analytic._arguments import CLOSURES, Array, Real, choice, one_each, square, whole

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
# noises share no generator. Joining the halves gives every inner product at the cut,
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
    """The blocks below or above a cut as seen from it, x = reflection @ y + noise.

    Below the cut x are the forward queries h_l and y the backward ones g_l; above it the reverse.
    """

    reflection: Array
    noise: Array  # covariance

    def meet(self, other: "_Half") -> tuple[Array, Array]:
        """Join both halves: covariance of x, and response of x to a source added to y."""
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
    `horizon` T. Exact at finite `depth` = L; time O(L K (K P)^3), memory O(L (K P)^2).
    """
    start, goals = square(gram, "gram"), one_each(targets, gram)
    blocks, samples, keep = whole(depth), len(goals), float(choice("closure", closure, CLOSURES) == "coupled")
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
    which training is unstable needs more than depth 512 and raises ArithmeticError. One step at depth 2, of one sample:

        >>> found = linear_outputs([[1.0]], [1.0], depth=2, horizon=1.0, learning_rate=0.1, steps=1, closure="coupled")
        >>> found.round(6).tolist()
        [[0.0], [0.15]]
    """
    if depth != math.inf:
        arguments = gram, targets, whole(depth), horizon, learning_rate, steps, closure
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
