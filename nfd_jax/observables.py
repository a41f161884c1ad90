"""Pure functions of a training step, to be passed as `observe` or called by one.

Each names the axes of its arrays in its attribute `axes`, which datasets take over; a function of one's own may do the
same: `@axes(**kernels.axes, mine=("layer", "sample"))`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Index, Vectors
from nfd_jax.dynamics.snapshot import Snapshot
from nfd_jax.matrices.compressed import CompressedMatrices
from nfd_jax.matrices.noise import BACKWARD, FORWARD
from nfd_jax.matrices.orthonormal import product
from nfd_jax.matrices.response import Response
from nfd_jax.matrices.revealed import RevealedMatrices
from nfd_jax.models import BLOCKS

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
def kernels(snapshot: Snapshot) -> dict[str, Array]:
    """Feature kernels <h_l^a, h_l^b> and gradient kernels <g_l^a, g_l^b>, each `(L + 1, P, P)` (theory section 3)."""

    def gram(vectors: Array) -> Array:
        return product(vectors, vectors.swapaxes(-1, -2)) / vectors.shape[-1]

    return {"feature_kernel": gram(snapshot.features), "gradient_kernel": gram(snapshot.gradients)}


@axes(feature_size=("layer", "sample"), gradient_size=("layer", "sample"))
def sizes(snapshot: Snapshot) -> dict[str, Array]:
    """Root mean square entries of features h_0 to h_L and of gradients g_0 to g_L, each `(L + 1, P)`."""
    return {"feature_size": _rms(snapshot.features), "gradient_size": _rms(snapshot.gradients)}


NEURONS = 64  # whose paths are kept
PATHS = ("layer", "sample", "neuron")


@axes(neuron_features=PATHS, neuron_gradients=PATHS)
def neurons(snapshot: Snapshot) -> dict[str, Array]:
    """Entries of the first 64 neurons, or of all if there are fewer, of features h_0 to h_L and of gradients g_0 to
    g_L, each `(L + 1, P, neurons)`: the sample paths of theory section 3, of the same neurons at
    every step."""
    return {
        "neuron_features": snapshot.features[..., :NEURONS],
        "neuron_gradients": snapshot.gradients[..., :NEURONS],
    }


@axes(feature_diversity=("lag",), gradient_diversity=("lag",))
def diversity(snapshot: Snapshot) -> dict[str, Array]:
    """How far features and gradients move over m = 1, 2, 4, ... blocks, up to L / 2: the root mean square of
    h_{l+m} - h_l over entries, samples and starts l, each `(lags,)` (TP6 section 5, |h^{(t + e)L} - h^{tL}|)."""
    depth = len(snapshot.features) - 1
    lags = [2**power for power in range(max(1, depth.bit_length() - 1))]

    def moved(vectors: Array) -> Array:
        return jnp.stack([jnp.sqrt(jnp.mean((vectors[lag:] - vectors[:-lag]) ** 2)) for lag in lags])

    return {"feature_diversity": moved(snapshot.features), "gradient_diversity": moved(snapshot.gradients)}


@axes(effective_update=("matrix", "sample"))
def effective_updates(snapshot: Snapshot) -> dict[str, Array]:
    """Root mean square entries of what training has added to the image of every hidden matrix, (W_l^k - a_k W_l^0) x
    times its multiplier, `(matrices, P)`; of two matrices a block the inner one is first. For every solver and
    optimizer."""
    return {"effective_update": _rms(snapshot.effective_images())}


PARTS = ("matrix", "sample")


@axes(
    effective_input=("sample",),
    effective_hidden=PARTS,
    effective_readout=("sample",),
    propagating_hidden=PARTS,
    propagating_readout=("sample",),
)
def refined_updates(snapshot: Snapshot) -> dict[str, Array]:
    """The refined coordinate check of every weight: root mean square entries of the two parts of W_t x_t - W_0 x_0,
    times the multiplier of its role.

    - `effective_input` `(P,)`, `effective_hidden` `(matrices, P)`, `effective_readout` `(P,)`: (W_t - W_0) x_t, what
      training has added to the weight.
    - `propagating_hidden`, `propagating_readout`: W_0 (x_t - x_0), what arrives from below through the initial one.

    With weight decay W_0 is multiplied by what that has left of it, but for W_0 x_0. Of two matrices a block the inner
    one is first. Any optimizer will do (Haas et al., refined coordinate check). Raises ValueError unless matrices are
    dense.
    """
    if snapshot.image_changes is None:
        raise ValueError("observe=refined_updates needs dense matrices: use train_networks with engine='dense'")
    effective, propagating = snapshot.image_changes()
    found = {f"effective_{role}": _rms(vectors) for role, vectors in effective.items()}
    return found | {f"propagating_{role}": _rms(propagating[role]) for role in ("hidden", "readout")}


@axes(
    forward_reuse=("block", "direction", "sample"),
    backward_reuse=("block", "direction", "sample"),
    forward_reuse_sum=("sample",),
    backward_reuse_sum=("sample",),
)
def reuse(snapshot: Snapshot) -> dict[str, Array]:
    """The weight-reuse responses (theory section 3), block by block: what the images W^0 x / sqrt(n) have along the
    backward queries before them, Qs <R, x>, and W^0T g / sqrt(n) along the forward ones, Qx <U, g>. R and U are the
    Gaussian parts of the images: what is left of Z and Y without the queries that came before them.

    - `forward_reuse`, `backward_reuse`: the coordinates in the orthonormal bases Qs and Qx, `(L, M, P)`. Their mean
      over seeds is sqrt(T/L) times the response, A or B, in these bases; in one network, chance adds to each a variance
      of order 1/n.
    - `forward_reuse_sum`, `backward_reuse_sum`: root mean square entries of the sum over blocks of these vectors,
      backward ones times phi'(h_{l-1}), `(P,)`: sqrt(T/L) times this is what reuse adds to h_L and to g_0 directly.

    Squares and sizes of one network, or of one solution with plain noise, are mostly chance at L >= 32: its share grows
    as L / n. At n = 1024 (ReLU, four samples, 1 to 10 steps of rate 1) it is 0.7 to 0.97 of the mean square backward
    coordinate at L = 32, and a third of the forward one, half of it at L = 64. Chance has mean zero and is independent
    from seed to seed: average the coordinates over seeds, and for a square multiply those of different seeds, as
    `nfd_jax.studies.reuse` does. `signed_response` is one number a block, with the chance of one.

    Nothing of it acts in the forward pass of an untied network, where R is that of the independent copy: there it is
    what tying would add. Needs revealed matrices of `ResNet(block="pre")`.
    """
    response, phi, phi_prime = _responses("reuse", snapshot), snapshot.structure.phi, snapshot.structure.phi_prime

    def one_block(carry: tuple[Vectors, Vectors], layer: Index) -> tuple[tuple[Vectors, Vectors], tuple[Array, Array]]:
        below, above = _ends(snapshot, layer)
        up, down = response(FORWARD, layer), response(BACKWARD, layer)
        forward, backward = up.coordinates(phi(below)), down.coordinates(above)
        total = carry[0] + up.vectors(forward), carry[1] + phi_prime(below) * down.vectors(backward)
        return total, (forward, backward)

    nothing = jnp.zeros_like(snapshot.features[0])
    (forward, backward), (up, down) = lax.scan(one_block, (nothing, nothing), _layers(snapshot))
    return {
        "forward_reuse": up,
        "backward_reuse": down,
        "forward_reuse_sum": _rms(forward),
        "backward_reuse_sum": _rms(backward),
    }


def signed_response(snapshot: Snapshot) -> dict[str, Array]:
    """The weight-reuse responses as one signed number a block and sample, each `(L, P)`, over sqrt(T/L).

    - `forward_response`: <v_l, g_l> with v_l what reuse of W_l adds to h_l. Times sqrt(T/L) and summed over blocks it
      is the first-order effect on the output (on the loss, for several outputs) of reuse in the forward pass.
    - `backward_response`: <w_l, h_{l-1}> with w_l what reuse adds to g_{l-1}: likewise its effect on <g_0, h_0>, which
      is the output where phi is homogeneous (identity, ReLU, abs).

    Its mean over seeds is sqrt(T/L) sum_j A^{ij} <g_l^j, g_l^i>, and sqrt(T/L) sum_i B^{ji} <phi(h_{l-1}^i),
    phi'(h_{l-1}^j) h_{l-1}^j>. In one network chance adds to each a variance of order 1/n: at n = 1024 and L = 256, ten
    steps of four samples, as much as the square of the mean forward, and ten times as much backward. Average over
    seeds, and multiply different seeds where a square is wanted; sums over blocks have far less of it. What is said of
    untied networks at `reuse` holds here. Needs revealed matrices of `ResNet(block="pre")`.
    """
    response = _responses("signed_response", snapshot)
    phi, phi_prime = snapshot.structure.phi, snapshot.structure.phi_prime

    def one_block(layer: Index) -> tuple[Array, Array]:
        below, above = _ends(snapshot, layer)
        up, down = response(FORWARD, layer), response(BACKWARD, layer)
        forward = up.coordinates(phi(below)) * up.along(above)
        backward = down.coordinates(above) * down.along(phi_prime(below) * below)
        return jnp.sum(forward, axis=0), jnp.sum(backward, axis=0)

    forward, backward = lax.map(one_block, _layers(snapshot))
    return {"forward_response": forward, "backward_response": backward}


def response_gradient(snapshot: Snapshot) -> dict[str, Array]:
    """`response_gradient (L, P, width)`: the vectors p_l for which `forward_response` is <p_l, phi(h_{l-1})>, n times
    its gradient in the input of block l. Needs revealed matrices of `ResNet(block="pre")`."""
    response = _responses("response_gradient", snapshot)

    def one_block(layer: Index) -> Vectors:
        up = response(FORWARD, layer)
        return up.gradient(up.along(_ends(snapshot, layer)[1]))

    return {"response_gradient": lax.map(one_block, _layers(snapshot))}


@axes(ranks=("basis", "matrix"))
def ranks(snapshot: Snapshot) -> dict[str, Array]:
    """`ranks (2 or 3, L)`: directions of every hidden matrix that its forward queries have revealed, and its backward
    ones; with a resolution also those that its updates take. Needs revealed matrices."""
    return {"ranks": _revealed("ranks", snapshot).ranks}


def _revealed(name: str, snapshot: Snapshot) -> RevealedMatrices | CompressedMatrices:
    if not isinstance(snapshot.matrices, RevealedMatrices | CompressedMatrices):
        raise ValueError(f"observe={name} needs revealed matrices: use solve_network or solve_limit")
    return snapshot.matrices


def _responses(name: str, snapshot: Snapshot) -> Callable[[int, Index], Response]:
    """Those of this step, by direction and layer; refused where they are not defined."""
    matrices, structure = _revealed(name, snapshot), snapshot.structure
    if structure.maps != BLOCKS["pre"] or not structure.skip:
        raise ValueError(f"{name} is defined for ResNet(block='pre') without centring; pass such a model")
    return partial(matrices.response, step=snapshot.step)


def _layers(snapshot: Snapshot) -> Array:
    return jnp.arange(len(snapshot.features) - 1, dtype=jnp.int32)


def _ends(snapshot: Snapshot, layer: Index) -> tuple[Vectors, Vectors]:
    """h_{l-1} and g_l."""
    below = lax.dynamic_index_in_dim(snapshot.features, layer, keepdims=False)
    return below, lax.dynamic_index_in_dim(snapshot.gradients, layer + 1, keepdims=False)


def _rms(vectors: Array) -> Array:
    return jnp.sqrt(jnp.mean(vectors**2, axis=-1))
