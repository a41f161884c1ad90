"""Forward and backward passes of a network over matrices of any kind: h_l and g_l of theory section 2.

A block is a chain of maps and matrices, as its `Structure` says. The forward pass walks it from its start; the backward
pass from its end, by transposed derivatives of the maps and transposed matrices. A training step is both walks, as two
turns of one loop whatever the depth: a program then holds each query once, which is most of what there is to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from nfd_jax._slices import put, take
from nfd_jax._types import Array, Float, Index, PyTree, Vectors
from nfd_jax.dynamics.units import Units
from nfd_jax.matrices.base import AbstractMatrices
from nfd_jax.matrices.noise import BACKWARD, FORWARD, chosen
from nfd_jax.matrices.orthonormal import product
from nfd_jax.models import Structure

Outputs = Float[Array, "batch outputs"]
Weights = Float[Array, " batch"]


class Layers(eqx.Module):
    """The state of a network of width n: U as rows `(d, width)`, the hidden matrices, V as rows `(c, width)`."""

    input: Float[Array, "inputs width"]
    hidden: AbstractMatrices  # those of a block one after the other
    readout: Float[Array, "outputs width"]


class Passed(NamedTuple):
    """What passes leave behind. A forward pass alone has no gradients."""

    features: Float[Array, "layers batch width"]  # h_0 to h_L
    images: Float[Array, "images batch width"]  # that maps inside the blocks act on
    coordinates: Array  # of the forward queries of every matrix
    gradients: PyTree = None  # of hidden matrices, in the form of their parameters
    backward: Float[Array, "layers batch width"] | None = None  # g_0 to g_L, where they are asked for


class Turn(NamedTuple):
    """Where the passes meet: the outputs, and what the backward pass starts from (`Units.chi`)."""

    outputs: Outputs
    cotangents: Outputs  # u; g_L is V u but for the map before the readout
    weights: Weights  # w, with which gradients are sum_a w_a g_a x_a^T


def forward(
    structure: Structure, units: Units, layers: Layers, inputs: Float[Array, "batch inputs"], step: Index, *, keep: bool
) -> tuple[Outputs, Passed | None, Layers]:
    """Outputs of a batch whose `inputs` carry their factor 1/sqrt(d) already, what the pass leaves behind, and the
    layers that remember it.

    `keep=False` evaluates and leaves nothing behind: exact in law given the training so far.
    """
    start = product(inputs, layers.input)
    passed = _started(structure, layers, start)._replace(gradients=None) if keep else None
    h, hidden, passed = _walk(structure, units, FORWARD, layers.hidden, start, step, passed)
    return _outputs(structure, units, layers, h), passed, eqx.tree_at(lambda tree: tree.hidden, layers, hidden)


def there_and_back(
    structure: Structure,
    units: Units,
    layers: Layers,
    inputs: Float[Array, "batch inputs"],
    step: Index,
    chi: Callable[[Outputs], tuple[Outputs, Weights]],
    *,
    keep_features: bool,
    turns: Index | int = 2,
) -> tuple[Outputs, Passed, dict[str, PyTree], Layers]:
    """A forward and a backward pass: outputs, what they leave behind, and gradients sum_a w_a g_a x_a^T of every matrix
    times the rate of its role. `chi` are u and w at outputs; `keep_features`: of g_0 to g_L too. Of one of its two
    `turns` only outputs are right."""
    start = product(inputs, layers.input)
    passed = _started(structure, layers, start)
    passed = passed._replace(backward=jnp.zeros_like(passed.features) if keep_features else None)

    def turn_at(h: Vectors) -> Turn:
        outputs = _outputs(structure, units, layers, h)
        return Turn(outputs, *chi(outputs))

    def one_pass(direction: Index, carry: tuple) -> tuple:
        first, hidden, passed, turn = carry
        if passed.backward is not None:
            passed = passed._replace(backward=put(passed.backward, first, units.blocks))
        last, hidden, passed = _walk(structure, units, direction, hidden, first, step, passed, turn.weights)

        def at_outputs() -> tuple[Vectors, Turn]:
            turn = turn_at(last)
            return structure.pull_back(structure.readout, last, product(turn.cotangents, layers.readout)), turn

        last, turn = chosen(direction, at_outputs, lambda: (last, turn))
        return last, hidden, passed, turn

    none = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(turn_at, start))
    g, hidden, passed, turn = lax.fori_loop(0, turns, one_pass, (start, layers.hidden, passed, none))
    last = structure.apply(structure.readout, take(passed.features, units.blocks))
    weights = turn.weights[:, None]
    gradients = {
        "input": units.rates["input"] * product(inputs.T, weights * g),
        "hidden": passed.gradients,
        "readout": units.rates["readout"] * product((weights * turn.cotangents).T, last),
    }
    return turn.outputs, passed, gradients, eqx.tree_at(lambda tree: tree.hidden, layers, hidden)


def _walk(
    structure: Structure,
    units: Units,
    direction: Index | int,
    hidden: AbstractMatrices,
    start: Vectors,
    step: Index,
    passed: Passed | None,
    weights: Weights | None = None,
) -> tuple[Vectors, AbstractMatrices, Passed | None]:
    """Through all blocks, forward from h_0 to h_L or backward from g_L to g_0."""
    count = structure.matrices

    def block(number: Index, carry: tuple) -> tuple:
        stream, hidden, passed = carry
        index, x = _of(direction, number, units.blocks - 1 - number), stream
        for place in range(count):  # the map and the matrix at this place; backward, as many from the end
            x, passed = _map(structure, direction, index, place, x, passed)
            layer = index * count + _of(direction, place, count - 1 - place)
            x, along, hidden = hidden.query(direction, layer, step, x, keep=passed is not None, weights=weights)
            if passed is not None:
                coordinates = put(passed.coordinates, _of(direction, along, take(passed.coordinates, layer)), layer)
                passed = passed._replace(coordinates=coordinates)
                if passed.gradients is not None and weights is not None:
                    rate = units.branch * units.rates["hidden" if place == 0 else "inner"]
                    backward, queried = rate * along * weights[None, :], take(coordinates, layer)
                    wanted = jnp.asarray(direction) == BACKWARD
                    gradients, hidden = hidden.add_gradient(passed.gradients, layer, backward, queried, wanted=wanted)
                    passed = passed._replace(gradients=gradients)
        x, passed = _map(structure, direction, index, count, x, passed)
        stream = stream + units.branch * x if structure.skip else units.branch * x
        if passed is not None:
            above = take(passed.features, index + 1)
            passed = passed._replace(features=put(passed.features, _of(direction, stream, above), index + 1))
            if passed.backward is not None:
                passed = passed._replace(backward=put(passed.backward, stream, index))
        return stream, hidden, passed

    return lax.fori_loop(0, units.blocks, block, (start, hidden, passed))


def _map(
    structure: Structure, direction: Index | int, index: Index, place: int, x: Vectors, passed: Passed | None
) -> tuple[Vectors, Passed | None]:
    """The image of x under the map at a place of a block; backward, under the transposed derivative of that at as many
    places from the end."""
    back, at = structure.matrices - place, x  # of a linear map the derivative is the same everywhere
    if passed is not None:
        numbers = _kept(structure)
        if back in numbers:
            at = take(passed.images, index * len(numbers) + numbers[back])
        elif back == 0:
            at = take(passed.features, index)
        if place in numbers:
            to = index * len(numbers) + numbers[place]
            passed = passed._replace(images=put(passed.images, _of(direction, x, take(passed.images, to)), to))
    ahead, behind = structure.maps[place], structure.maps[back]
    if ahead or behind:
        x = chosen(direction, partial(structure.apply, ahead, x), partial(structure.pull_back, behind, at, x))
    return x, passed


def _kept(structure: Structure) -> dict[int, int]:
    """The maps of a block whose arguments the backward pass needs, numbered: those that are not linear, but for that
    before the first matrix, which has the features."""
    inside = [place for place, stages in enumerate(structure.maps) if place and not structure.is_linear(stages)]
    return {place: number for number, place in enumerate(inside)}


def _started(structure: Structure, layers: Layers, start: Vectors) -> Passed:
    """What there is before the first block, but h_0 zeros."""
    coordinates = layers.hidden.no_coordinates(len(start))
    blocks = len(coordinates) // structure.matrices
    features, images = (
        jnp.zeros((rows, *start.shape), start.dtype) for rows in (blocks + 1, blocks * len(_kept(structure)))
    )
    return Passed(put(features, start, 0), images, coordinates, jax.tree.map(jnp.zeros_like, layers.hidden.parameters))


def _outputs(structure: Structure, units: Units, layers: Layers, h: Vectors) -> Outputs:
    """f = V^T h_L / n in the units of the parametrization, with the map before the readout."""
    return product(structure.apply(structure.readout, h), layers.readout.T) * (units.output / h.shape[1])


def _of(direction: Index | int, forward: Any, backward: Any) -> Any:
    """The one of the direction, of two numbers or arrays that are there already."""
    if isinstance(direction, int):
        return (forward, backward)[direction]
    return jnp.where(direction == FORWARD, forward, backward)
