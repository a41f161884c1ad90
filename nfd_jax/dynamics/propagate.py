"""Forward and backward passes of a network over matrices of any kind: h_l and g_l of theory section 2.

Both are loops over blocks, compiled once whatever the depth. What a block is, its `Structure` says; the backward pass
goes back through its maps by their transposed derivatives, and through its matrices by backward queries.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import put, take
from nfd_jax._types import Array, Float, Index, PyTree, Vectors
from nfd_jax.dynamics.units import Units
from nfd_jax.matrices.base import AbstractMatrices
from nfd_jax.matrices.noise import BACKWARD, FORWARD
from nfd_jax.matrices.orthonormal import product
from nfd_jax.models import Structure


class Layers(eqx.Module):
    """The state of a network of width n: U as rows `(d, width)`, the hidden matrices, V as rows `(c, width)`."""

    input: Float[Array, "inputs width"]
    hidden: AbstractMatrices  # those of a block one after the other
    readout: Float[Array, "outputs width"]


class Passed(NamedTuple):
    """What a forward pass leaves behind; nothing but outputs where the queries are not kept."""

    outputs: Float[Array, "batch outputs"]
    features: Float[Array, "layers batch width"]  # h_0 to h_L
    images: Float[Array, "images batch width"]  # that maps inside the blocks act on
    coordinates: Array  # of the queries of every matrix


class Gradients(NamedTuple):
    """Gradients by role, hidden ones in the form of the matrices' parameters; `features` are g_0 to g_L if kept."""

    parameters: dict[str, PyTree]
    features: Float[Array, "layers batch width"] | None


def forward(
    structure: Structure,
    units: Units,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    step: Index,
    *,
    keep: bool,
) -> tuple[Passed, Layers]:
    """Features and outputs of a batch whose `inputs` carry their factor 1/sqrt(d) already.

    `keep=False` evaluates without storing the queries: exact in law given the training so far.
    """
    count, places, width = structure.matrices, _places(structure), layers.readout.shape[1]
    start = product(inputs, layers.input)
    coordinates = layers.hidden.no_coordinates(len(inputs) if keep else 0)
    blocks = len(coordinates) // count if keep else -1
    features, images = (
        jnp.zeros((rows, *start.shape), start.dtype) for rows in (blocks + 1, max(0, blocks) * len(places))
    )
    features = features.at[0].set(start) if keep else features

    def block(index: Index, carry: tuple) -> tuple:
        h, features, images, coordinates, hidden = carry

        def image(place: int, x: Vectors) -> Vectors:
            nonlocal images, coordinates, hidden
            layer = index * count + place
            x, along, hidden = hidden.query(FORWARD, layer, step, x, keep=keep)
            if keep:
                coordinates = put(coordinates, along, layer)
                if place in places:
                    at = index * len(places) + places[place]
                    images = put(images, x, at)
            return x

        branch = units.branch * structure.branch(h, image)
        h = h + branch if structure.skip else branch
        if keep:
            features = put(features, h, index + 1)
        return h, features, images, coordinates, hidden

    carry = start, features, images, coordinates, layers.hidden
    h, features, images, coordinates, hidden = lax.fori_loop(0, units.blocks, block, carry)
    last = structure.apply(structure.readout, h)
    outputs = product(last, layers.readout.T) * (units.output / width)
    return Passed(outputs, features, images, coordinates), eqx.tree_at(lambda tree: tree.hidden, layers, hidden)


def backward(
    structure: Structure,
    units: Units,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    passed: Passed,
    cotangents: Float[Array, "batch outputs"],
    weights: Float[Array, " batch"],
    step: Index,
    *,
    keep_features: bool,
) -> tuple[Gradients, Layers]:
    """The backward pass from V u at the last features, and the gradients sum_a w_a g_a x_a^T of every matrix times
    the rate of its role; `units` says what u and w are (`Units.chi`)."""
    count, places = structure.matrices, _places(structure)
    last = take(passed.features, units.blocks)
    end = structure.pull_back(structure.readout, last, product(cotangents, layers.readout))
    kept = jnp.zeros((len(passed.features) if keep_features else 0, *end.shape), end.dtype)
    kept = put(kept, end, units.blocks) if keep_features else kept
    zeros = jax.tree.map(jnp.zeros_like, layers.hidden.parameters)

    def block(below: Index, carry: tuple) -> tuple:
        g, kept, gradients, hidden = carry
        index, x = units.blocks - 1 - below, g
        for place in reversed(range(count)):
            layer, after = index * count + place, structure.maps[place + 1]
            at = x  # of a linear map the derivative is the same everywhere
            if place in places:
                number = index * len(places) + places[place]
                at = take(passed.images, number)
            x = structure.pull_back(after, at, x)
            x, along, hidden = hidden.query(BACKWARD, layer, step, x, keep=True, weights=weights)
            queried = take(passed.coordinates, layer)
            rate = units.branch * units.rates["hidden" if place == count - 1 else "inner"]
            gradients, hidden = hidden.add_gradient(gradients, layer, rate * along * weights[None, :], queried)
        below_block = take(passed.features, index)
        x = structure.pull_back(structure.maps[0], below_block, x)
        g = g + units.branch * x if structure.skip else units.branch * x
        kept = put(kept, g, index) if keep_features else kept
        return g, kept, gradients, hidden

    carry = end, kept, zeros, layers.hidden
    start, kept, hidden_gradients, hidden = lax.fori_loop(0, units.blocks, block, carry)
    parameters = {
        "input": units.rates["input"] * product(inputs.T, weights[:, None] * start),
        "hidden": hidden_gradients,
        "readout": units.rates["readout"]
        * product((weights[:, None] * cotangents).T, structure.apply(structure.readout, last)),
    }
    layers = eqx.tree_at(lambda tree: tree.hidden, layers, hidden)
    return Gradients(parameters, kept if keep_features else None), layers


def _places(structure: Structure) -> dict[int, int]:
    """The matrices of a block whose images the backward pass needs, numbered: those before maps that are not linear."""
    inside = [place for place, after in enumerate(structure.maps[1:]) if not structure.is_linear(after)]
    return {place: number for number, place in enumerate(inside)}
