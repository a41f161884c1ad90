"""Pure functions of a training step, to be passed as `observe` or called by one.

Each names the axes of its arrays in its attribute `axes`, which datasets take over; a function of one's own may do the
same: `@axes(**kernels.axes, mine=("layer", "sample"))`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import lax

from nfd_jax import basis as bases
from nfd_jax._types import Array, Float, Index, Vectors
from nfd_jax.architecture import BLOCKS
from nfd_jax.basis import product
from nfd_jax.engine import Sweep
from nfd_jax.matrices import RevealedMatrices
from nfd_jax.noise import BACKWARD, FORWARD

Function = TypeVar("Function", bound=Callable[..., object])


def axes(**names: tuple[str, ...]) -> Callable[[Function], Function]:
    """Decorator of an observe function: the names of the axes of its arrays, by their names.

    `sample` and `output` are those of the batch and of the network; an axis `layer` of length L + 1 has layer times in
    datasets. One name stands for one length.
    """

    def decorate(function: Function) -> Function:
        setattr(function, "axes", names)  # noqa: B010 - functions have no declared attributes
        return function

    return decorate


KERNEL = ("layer", "sample", "other_sample")


@axes(feature_kernel=KERNEL, gradient_kernel=KERNEL)
def kernels(sweep: Sweep) -> dict[str, Array]:
    """Feature kernels <h_l^a, h_l^b> and gradient kernels <g_l^a, g_l^b>, each `(L + 1, P, P)` (theory section 3)."""

    def gram(vectors: Array) -> Array:
        return product(vectors, vectors.swapaxes(-1, -2)) / vectors.shape[-1]

    return {"feature_kernel": gram(sweep.features), "gradient_kernel": gram(sweep.gradients)}


@axes(feature_size=("layer", "sample"), gradient_size=("layer", "sample"))
def sizes(sweep: Sweep) -> dict[str, Array]:
    """Root mean square entries of features h_0 to h_L and of gradients g_0 to g_L, each `(L + 1, P)`."""
    return {"feature_size": _rms(sweep.features), "gradient_size": _rms(sweep.gradients)}


@axes(feature_diversity=("lag",), gradient_diversity=("lag",))
def diversity(sweep: Sweep) -> dict[str, Array]:
    """How far features and gradients move over m = 1, 2, 4, ... blocks, up to L / 2: the root mean square of
    h_{l+m} - h_l over entries, samples and starts l, each `(lags,)` (TP6 section 5, |h^{(t + e)L} - h^{tL}|)."""
    depth = len(sweep.features) - 1
    lags = [2**power for power in range(max(1, depth.bit_length() - 1))]

    def moved(vectors: Array) -> Array:
        return jnp.stack([jnp.sqrt(jnp.mean((vectors[lag:] - vectors[:-lag]) ** 2)) for lag in lags])

    return {"feature_diversity": moved(sweep.features), "gradient_diversity": moved(sweep.gradients)}


@axes(effective_update=("matrix", "sample"))
def effective_updates(sweep: Sweep) -> dict[str, Array]:
    """Root mean square entries of (W_l^k - a_k W_l^0) x / sqrt(n), what training has added to the image of every
    matrix, `(matrices, P)`; of two matrices a block the inner one is first. Needs revealed matrices."""
    matrices = _revealed("effective_updates", sweep)

    def one_matrix(layer: Index) -> Array:
        learned = lax.dynamic_index_in_dim(matrices.trained.learned, layer, keepdims=False)
        along = product(learned, lax.dynamic_index_in_dim(sweep.handles, layer, keepdims=False))
        return _rms(bases.combination(along, _rows(matrices.sides[BACKWARD].queries, layer)))

    return {"effective_update": lax.map(one_matrix, jnp.arange(len(matrices.trained.learned), dtype=jnp.int32))}


@axes(
    forward_reuse=("block", "direction", "sample"),
    backward_reuse=("block", "direction", "sample"),
    forward_reuse_sum=("sample",),
    backward_reuse_sum=("sample",),
)
def reuse(sweep: Sweep) -> dict[str, Array]:
    """The weight-reuse responses (theory section 3), block by block: what of the images W^0 x / sqrt(n) lies in the
    span of the backward queries, Qs <Z, x>, and of W^0T g / sqrt(n) in that of the forward ones, Qx <Y, g>.

    - `forward_reuse`, `backward_reuse`: the coordinates in the orthonormal bases Qs and Qx, `(L, M, P)`. Their mean
      over seeds is sqrt(T/L) times the response, A or B, in these bases; in one network, chance adds to each a variance
      of order 1/n.
    - `forward_reuse_sum`, `backward_reuse_sum`: root mean square entries of the sum over blocks of these vectors,
      backward ones times phi'(h_{l-1}), `(P,)`: sqrt(T/L) times this is what reuse adds to h_L and to g_0 directly.

    Untied networks have chance alone. Needs revealed matrices of `ResNet(block="pre")`.
    """
    matrices, structure = _revealed("reuse", sweep), sweep.structure
    if structure.activated != BLOCKS["pre"] or not structure.skip or structure.centred:
        raise ValueError("reuse is defined for ResNet(block='pre') without centring; pass such a model")
    phi, phi_prime = structure.phi, structure.phi_prime

    def one_block(carry: tuple[Vectors, Vectors], layer: Index) -> tuple[tuple[Vectors, Vectors], tuple[Array, Array]]:
        below = lax.dynamic_index_in_dim(sweep.features, layer, keepdims=False)
        above = lax.dynamic_index_in_dim(sweep.gradients, layer + 1, keepdims=False)
        # a step's forward queries come before its backward ones
        up, forward = _response(matrices, FORWARD, layer, sweep.step, phi(below))
        down, backward = _response(matrices, BACKWARD, layer, sweep.step + 1, above)
        return (carry[0] + forward, carry[1] + phi_prime(below) * backward), (up, down)

    nothing = jnp.zeros_like(sweep.features[0])
    layers = jnp.arange(len(sweep.features) - 1, dtype=jnp.int32)
    (forward, backward), (up, down) = lax.scan(one_block, (nothing, nothing), layers)
    return {
        "forward_reuse": up,
        "backward_reuse": down,
        "forward_reuse_sum": _rms(forward),
        "backward_reuse_sum": _rms(backward),
    }


def _response(
    matrices: RevealedMatrices, direction: int, layer: Index, filled: Index, vectors: Vectors
) -> tuple[Float[Array, "basis batch"], Vectors]:
    """What the first `filled` opposite query blocks have revealed of the initial image: coordinates, and vectors."""
    opposite = matrices.sides[1 - direction]
    _, _, batch, _ = opposite.queries.shape
    queries, images = _rows(opposite.queries, layer), _rows(opposite.images, layer)
    known = jnp.arange(len(queries), dtype=jnp.int32)[:, None] < filled * batch
    coordinates = jnp.where(known, matrices.trained.initial[layer] * bases.inner(images, vectors), 0)
    return coordinates, bases.combination(coordinates, queries)


def _rows(basis: bases.Basis, layer: Index) -> Float[Array, "basis width"]:
    found = lax.dynamic_index_in_dim(basis, layer, keepdims=False)
    return found.reshape(-1, found.shape[-1])


def _rms(vectors: Array) -> Array:
    return jnp.sqrt(jnp.mean(vectors**2, axis=-1))


def _revealed(name: str, sweep: Sweep) -> RevealedMatrices:
    if not isinstance(sweep.matrices, RevealedMatrices):
        raise ValueError(f"observe={name} needs revealed matrices: use solve_network or solve_limit")
    return sweep.matrices
