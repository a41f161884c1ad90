"""Networks before training: U, V and Gaussian matrices with nothing revealed, of the exact law or of matched noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nfd_jax._types import Array, Float, Index, Key, Scalar, Vectors
from nfd_jax.dynamics.problem import Problem
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.matrices.base import AbstractMatrices
from nfd_jax.matrices.compressed import CompressedMatrices
from nfd_jax.matrices.matched import MatchedNoise
from nfd_jax.matrices.noise import AbstractNoise, Grid, PlainNoise, normals, uniforms
from nfd_jax.matrices.orthonormal import orthonormalise
from nfd_jax.matrices.resolution import Capacity
from nfd_jax.matrices.revealed import RevealedMatrices
from nfd_jax.matrices.sobol import SobolPoints

ROOM, MOST_ROOM = 2**28, 256  # bytes of compressed matrices at first, and directions that suffice for most runs


class Keys(NamedTuple):
    """Those of the parts of a network."""

    input: Key
    readout: Key
    hidden: Key
    spread: Key  # of the points that matched noise takes instead of independent numbers

    @classmethod
    def of(cls, key: Key) -> Keys:
        """From the seed's key, by one hash that is compiled once instead of four."""
        return cls(*jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(cls._fields))))


@dataclass(frozen=True)
class Initial:
    """Everything that decides the arrays of a network of width n, or of n particles, over a whole run.

    - `matrices`: hidden ones that there is capacity for, at least 1; `rank` of the inputs; `outputs` c.
    - `steps`, `batch`: query blocks and their size, which are the capacity of a basis unless one is given.
    - `coupled`: whether the backward pass sees the same matrices; otherwise independent copies.
    - `matched`: matched noise instead of the exact law of width n (theory section 4), for limits only.
    - `in_block`: matrices of one block.
    - `constraints`: of matched noise, the most of compressed matrices; a quarter of the particles unless given.
    - `capacity`: of compressed matrices; None for the exact law, which has room for all queries.
    - `members`: the axis of several networks side by side under vmap, which share the offsets of their bases.
    """

    matrices: int
    width: int
    rank: int
    outputs: int
    steps: int
    batch: int
    coupled: bool = True
    matched: bool = False
    in_block: int = 1
    members: str | None = None
    capacity: Capacity | None = None
    constraints: int | None = None

    @classmethod
    def of(
        cls,
        problem: Problem,
        matrices: int,
        width: int,
        coupled: bool,
        matched: bool = False,
        compressed: bool = False,
        constraints: int | None = None,
    ) -> Initial:
        """That of a problem in coordinates, with capacity for so many matrices and all queries of the run, or for the
        first ones of a run of compressed matrices."""
        data = problem.data
        (steps, batch), (_, rank) = data.batches.shape, data.train.inputs.shape
        outputs, in_block = data.train.targets.shape[1], problem.settings.structure.matrices
        shapes = max(1, matrices), width, rank, outputs, steps, batch
        capacity = Capacity(0, 0) if compressed else None
        every = cls(*shapes, coupled, matched, in_block, capacity=capacity, constraints=constraints)
        return every.for_passes(steps)

    def for_passes(self, number: int) -> Initial:
        """With room for the queries of so many passes, forward and backward, or for the first of them."""
        if self.capacity is None:
            return replace(self, steps=number)
        a_direction = 6 * self.matrices * self.width * jnp.zeros(()).dtype.itemsize
        room = min(number * self.batch, max(2 * self.batch, min(MOST_ROOM, ROOM // a_direction)))
        capacity = Capacity(room, min(room, max(2 * self.batch, MOST_ROOM // 4)))
        return replace(self, steps=0, capacity=capacity)  # which stands for steps: runs of all lengths share a program

    @property
    def least_bytes(self) -> int:
        """Memory of a run but for what the noise keeps."""
        return self.basis_bytes + self.pass_bytes

    @property
    def basis_bytes(self) -> int:
        """Memory of the bases."""
        images, updates = self.capacity or (self.directions, 0)
        return (4 * images + 2 * updates) * self.matrices * self.width * jnp.zeros(()).dtype.itemsize

    @property
    def directions(self) -> int:
        """That a basis has room for."""
        return self.steps * self.batch if self.capacity is None else self.capacity.images

    @property
    def pass_bytes(self) -> int:
        """Memory of the features and images of one batch at all layers, and of as many temporaries."""
        return 3 * (self.matrices + 1) * self.batch * self.width * jnp.zeros(()).dtype.itemsize

    def layers(
        self, key: Key, resolution: Scalar | float | None = None, refinement: Index | np.ndarray | None = None
    ) -> Layers:
        """The network of a key. With a capacity, matrices are compressed to the resolution. `refinement`: that of the
        grid whose noise drives it, None for its own."""
        grid = None if refinement is None else Grid(refinement, self.in_block, self.members)
        return (self._matched if self.matched else self._plain)(Keys.of(key), resolution, grid)

    def _plain(self, keys: Keys, resolution: Scalar | float | None, grid: Grid | None) -> Layers:
        source = PlainNoise(keys.hidden, grid)
        rows = self._ends(keys)
        return Layers(rows[: self.rank], self._hidden(source, resolution), rows[self.rank :])

    def _matched(self, keys: Keys, resolution: Scalar | float | None, grid: Grid | None) -> Layers:
        """The rows of U and V orthonormal too, so that <h_0, h_0> is exact and <V, h_0> = 0.

        What is random before training is spread evenly, U before V before the images of the first step.
        """
        ends = self.rank + self.outputs
        spread = SobolPoints.create(keys.spread, ends + 2 * self.matrices * self.batch, self.width)
        rows = self._ends(keys, partial(spread.replace, dimensions=jnp.arange(ends)))
        rows = jnp.concatenate([rows[self.rank :], rows[: self.rank]])
        rows = orthonormalise(rows, jnp.zeros_like(rows[:, 0])).directions
        readout, first = rows[: self.outputs], rows[self.outputs :]
        shared = grid, spread[ends:], self.members, self.constraints
        source = MatchedNoise.create(keys.hidden, readout, self.matrices, self.directions, *shared)
        return Layers(first, self._hidden(source, resolution), readout)

    def _ends(
        self, keys: Keys, even: Callable[[Vectors], Vectors] = lambda independent: independent
    ) -> Float[Array, "ends width"]:
        """The rows of U, then those of V; `even` as in `gaussians`."""
        dtype, ends = jnp.zeros(()).dtype, ((keys.input, self.rank), (keys.readout, self.outputs))
        every = [uniforms(key, (count, self.width), dtype) for key, count in ends]
        return normals(even(jnp.concatenate(every)))

    def _hidden(self, noise: AbstractNoise, resolution: Scalar | float | None) -> AbstractMatrices:
        options = {
            "depth": self.matrices,
            "width": self.width,
            "coupled": self.coupled,
            "dtype": jnp.zeros(()).dtype,
            "members": self.members,
        }
        if self.capacity is None:
            return RevealedMatrices.create(noise, capacity=self.directions, **options)
        if resolution is None:
            raise ValueError("compressed matrices need a resolution")
        return CompressedMatrices.create(noise, resolution, capacity=self.capacity, **options)
