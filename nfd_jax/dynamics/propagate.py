"""Forward and backward passes of a network over matrices of any kind (theory section 2)."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._types import Array, Float, Index, PyTree
from nfd_jax.dynamics.units import Scales
from nfd_jax.matrices.base import AbstractMatrices
from nfd_jax.matrices.basis import product
from nfd_jax.matrices.noise import BACKWARD, FORWARD
from nfd_jax.models import Structure


class Layers(eqx.Module):
    """The state of a network of width n: U as rows `(d, width)`, the hidden matrices, V as rows `(c, width)`."""

    input: Float[Array, "inputs width"]
    hidden: AbstractMatrices  # of two a block, the inner one first
    readout: Float[Array, "outputs width"]


class Forward(NamedTuple):
    """What a forward sweep leaves behind; nothing but outputs where the queries are not kept."""

    outputs: Float[Array, "batch outputs"]
    features: Float[Array, "layers batch width"]  # h_0 to h_L
    images: Float[Array, "images batch width"]  # what phi acts on inside the blocks
    handles: Array


class Gradients(NamedTuple):
    """Gradients by role, hidden ones in the form of the matrices' parameters; `sweep` is g_0 to g_L if kept."""

    parameters: dict[str, PyTree]
    sweep: Float[Array, "layers batch width"] | None


def forward(
    structure: Structure,
    scales: Scales,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    step: Index,
    *,
    keep: bool,
) -> tuple[Forward, Layers]:
    """Features and outputs of a batch whose `inputs` carry their factor 1/sqrt(d) already.

    `keep=False` evaluates without storing the queries: exact in law given the training so far, and no handles.
    """
    phi, count, width = structure.phi, structure.matrices, layers.readout.shape[1]
    start = product(inputs, layers.input)
    handles = layers.hidden.no_coordinates(len(inputs) if keep else 0)
    room = len(handles) // count if keep else -1
    inside = sum(structure.activated[1:])
    features, images = (jnp.zeros((rows, *start.shape), start.dtype) for rows in (room + 1, max(0, room) * inside))
    features = features.at[0].set(start) if keep else features

    def block(index: Index, carry: tuple) -> tuple:
        h, features, images, handles, hidden = carry
        x, seen = phi(h) if structure.activated[0] else h, 0
        for place in range(count):
            layer = index * count + place
            x, handle, hidden = hidden.query(FORWARD, layer, step, x, keep=keep)
            if keep:
                handles = lax.dynamic_update_index_in_dim(handles, handle, layer, axis=0)
            if structure.activated[place + 1]:
                if keep:
                    images = lax.dynamic_update_index_in_dim(images, x, index * inside + seen, axis=0)
                x, seen = phi(x), seen + 1
        branch = scales.branch * _centred(structure, x)
        h = h + branch if structure.skip else branch
        if keep:
            features = lax.dynamic_update_index_in_dim(features, h, index + 1, axis=0)
        return h, features, images, handles, hidden

    carry = start, features, images, handles, layers.hidden
    h, features, images, handles, hidden = lax.fori_loop(0, scales.blocks, block, carry)
    last = phi(h) if structure.activated_readout else h
    outputs = product(last, layers.readout.T) * (scales.output / width)
    return Forward(outputs, features, images, handles), eqx.tree_at(lambda tree: tree.hidden, layers, hidden)


def backward(
    structure: Structure,
    scales: Scales,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    found: Forward,
    cotangents: Float[Array, "batch outputs"],
    weights: Float[Array, " batch"],
    step: Index,
    *,
    keep_sweep: bool,
) -> tuple[Gradients, Layers]:
    """The backward sweep from V u at the last features, and the gradients sum_a w_a g_a x_a^T of every matrix times
    the rate of its role.

    `cotangents` u and `weights` w: for one output u = 1 and w = chi, so that g is the output gradient; for several
    u = chi and w = 1. Either way w_a u_a = chi_a, and the gradients are n / output times those of the loss.
    """
    phi, phi_prime, count = structure.phi, structure.phi_prime, structure.matrices
    inside = sum(structure.activated[1:])
    last = lax.dynamic_index_in_dim(found.features, scales.blocks, keepdims=False)
    end = product(cotangents, layers.readout)
    end = phi_prime(last) * end if structure.activated_readout else end
    sweep = jnp.zeros((len(found.features) if keep_sweep else 0, *end.shape), end.dtype)
    sweep = lax.dynamic_update_index_in_dim(sweep, end, scales.blocks, axis=0) if keep_sweep else sweep
    zeros = jax.tree.map(jnp.zeros_like, layers.hidden.parameters)

    def block(below: Index, carry: tuple) -> tuple:
        g, sweep, gradients, hidden = carry
        index = scales.blocks - 1 - below
        x, seen = _centred(structure, g), inside
        for place in reversed(range(count)):
            layer, role = index * count + place, "hidden" if place == count - 1 else "inner"
            if structure.activated[place + 1]:
                seen -= 1
                x = phi_prime(lax.dynamic_index_in_dim(found.images, index * inside + seen, keepdims=False)) * x
            x, handle, hidden = hidden.query(BACKWARD, layer, step, x, keep=True)
            queried = lax.dynamic_index_in_dim(found.handles, layer, keepdims=False)
            rate = scales.branch * scales.rates[role]
            gradients = hidden.add_gradient(gradients, layer, rate * handle * weights[None, :], queried)
        if structure.activated[0]:
            x = phi_prime(lax.dynamic_index_in_dim(found.features, index, keepdims=False)) * x
        g = g + scales.branch * x if structure.skip else scales.branch * x
        sweep = lax.dynamic_update_index_in_dim(sweep, g, index, axis=0) if keep_sweep else sweep
        return g, sweep, gradients, hidden

    carry = end, sweep, zeros, layers.hidden
    start, sweep, hidden_gradients, hidden = lax.fori_loop(0, scales.blocks, block, carry)
    last = phi(last) if structure.activated_readout else last
    parameters = {
        "input": scales.rates["input"] * product(inputs.T, weights[:, None] * start),
        "hidden": hidden_gradients,
        "readout": scales.rates["readout"] * product((weights[:, None] * cotangents).T, last),
    }
    layers = eqx.tree_at(lambda tree: tree.hidden, layers, hidden)
    return Gradients(parameters, sweep if keep_sweep else None), layers


def _centred(structure: Structure, vectors: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
    """Without their mean over the coordinates, where the structure says so; a projection, so its own transpose."""
    return vectors - jnp.mean(vectors, axis=1, keepdims=True) if structure.centred else vectors
