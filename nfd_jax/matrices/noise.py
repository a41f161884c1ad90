"""The fresh Gaussian part of a revealed image: plain, or matched to what every particle already knows.

Every draw is addressed by (seed, direction, layer, step), never by call order. Layers are counted on a grid that may
be finer than the network's: the noise of a matrix is then the scaled sum over the finer blocks that its own stands for,
so that networks of different depths follow one Brownian path.

Matched noise (theory section 4) is a property of the limit solver. In the limit the fresh part of an image has no
empirical correlation with anything revealed before; imposing that exactly, for linear functions, keeps the limit
and removes most Monte-Carlo error. What is left is nonlinear in U, V and the images of the first step, whose normals
are therefore spread evenly over the particles. Neither must ever be used for a network of finite width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nfd_jax._types import Array, Flag, Float, Index, Key, PyTree, Vectors
from nfd_jax.matrices.orthonormal import product

FORWARD, BACKWARD = 0, 1


def sides(direction: Index | int, layer: Index, depth: int) -> tuple[Index, Index]:
    """Where arrays `(2 depth, ...)` of all matrices, forward and then backward, have a layer: of this direction, and of
    the other."""
    return layer + direction * depth, layer + (1 - direction) * depth


Rotation = Float[Array, "batch batch"] | None


def chosen(direction: Index | int, forward: Callable[[], PyTree], backward: Callable[[], PyTree]) -> PyTree:
    """What the function of the direction makes; of one that is traced, the other's costs nothing."""
    if isinstance(direction, int):
        return (forward, backward)[direction]()
    return lax.cond(direction == FORWARD, forward, backward)


class Grid(eqx.Module):
    """How the layers of a network lie on the finest one: a block stands for `refinement` blocks there, of `matrices`
    matrices each. Traced, so that both grids of one path share a compiled program; of networks side by side it is the
    same for all, which only their axis `members` says."""

    refinement: Index | np.ndarray
    matrices: int = eqx.field(static=True, default=1)
    members: str | None = eqx.field(static=True, default=None)

    def sum(self, draw: Callable[[Index], Vectors], layer: Index) -> Vectors:
        """The noise of a matrix from that of the finer blocks that its own stands for: their sum, scaled to variance
        one. Increments of one Brownian path on two grids."""
        refinement = self.refinement if self.members is None else lax.pmax(self.refinement, self.members)
        block, place = layer // self.matrices, layer % self.matrices

        def with_one_more(part: Index, total: Vectors) -> Vectors:
            return total + draw((block * refinement + part) * self.matrices + place)

        like = jax.eval_shape(draw, layer)
        total = lax.fori_loop(0, refinement, with_one_more, jnp.zeros(like.shape, like.dtype))
        return total / jnp.sqrt(jnp.asarray(refinement, like.dtype))


class AbstractNoise(eqx.Module):
    """Where the fresh part of an image comes from."""

    key: eqx.AbstractVar[Key]

    @abstractmethod
    def draw(
        self,
        direction: Index | int,
        layer: Index,
        step: Index,
        directions: Vectors,
        *,
        keep: bool,
        rotation: Rotation = None,
        needed: Flag = True,
    ) -> tuple[Vectors, AbstractNoise]:
        """The fresh part for new query `directions`, zero rows of which need none, and the noise source that remembers
        it (`keep=False`: the same source). Every row has the normals of its query, however many others are zero; with
        a `rotation` those of the queries that the directions are made of. Where none is `needed`, zeros at no cost."""


def where(needed: Flag, make: Callable[[], PyTree]) -> PyTree:
    """What `make` makes where it is needed, and zeros otherwise."""
    if needed is True:
        return make()
    zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(make))
    return lax.cond(needed, make, lambda: zeros)


class PlainNoise(AbstractNoise):
    """Independent standard Gaussians: the exact law of a Gaussian matrix."""

    key: Key
    grid: Grid | None = None  # None where a network is on the finest grid

    def draw(
        self,
        direction: Index | int,
        layer: Index,
        step: Index,
        directions: Vectors,
        *,
        keep: bool,
        rotation: Rotation = None,
        needed: Flag = True,
    ) -> tuple[Vectors, PlainNoise]:
        del keep

        def draw(fine: Index) -> Vectors:
            return gaussians(self.key, direction, fine, step, directions)

        return where(needed, lambda: rotated(on_grid(draw, layer, self.grid), rotation)), self


def rotated(normals: Vectors, rotation: Rotation) -> Vectors:
    """The normals of rotated queries."""
    return normals if rotation is None else product(rotation, normals)


def gaussians(
    key: Key,
    direction: Index | int,
    layer: Index,
    step: Index,
    like: Vectors,
    even: Callable[[Vectors], Vectors] = lambda independent: independent,
) -> Vectors:
    """Standard normals of the shape of `like`, addressed by direction, layer and step. `even`: what takes the place of
    the `uniforms` that they are made of."""
    address = jnp.stack([jnp.asarray(part, jnp.uint32) for part in (direction, layer, step)])
    # a loop, so that one hash is compiled instead of three
    key = lax.fori_loop(0, len(address), lambda part, key: jax.random.fold_in(key, address[part]), key)
    return normals(even(uniforms(key, like.shape, like.dtype)))


def uniforms(key: Key, shape: tuple[int, ...], dtype: Any) -> Float[Array, ...]:
    """Independent uniform numbers between -1 and 1, those of which jax makes its normals."""
    smallest = np.nextafter(np.array(-1, dtype), np.array(0, dtype))
    return jax.random.uniform(key, shape, dtype, minval=smallest, maxval=1)


def normals(uniforms: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The quantiles of the standard normal distribution of numbers that are uniform between -1 and 1: code of some
    length, which a program has once a draw."""
    return lax.erf_inv(uniforms) * np.array(2**0.5, uniforms.dtype)


def on_grid(draw: Callable[[Index], Vectors], layer: Index, grid: Grid | None) -> Vectors:
    """The noise of a matrix on a grid, from that of matrices of the finest one."""
    return draw(layer) if grid is None else grid.sum(draw, layer)
