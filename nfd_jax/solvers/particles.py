"""One solution of the limit by interacting particles: any depth, either closure, plain or matched noise.

Theory sections 3 and 4. `solve_limit` hands one of these out, or combines many into an estimate with error bars.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from nfd_jax._types import Key
from nfd_jax.dynamics.conditioned import EXPLICIT, State, start, with_scales
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.dynamics.units import Scales
from nfd_jax.matrices import basis as bases
from nfd_jax.matrices.matched import MatchedNoise, least_width
from nfd_jax.matrices.noise import FINEST, Grid
from nfd_jax.matrices.sobol import QuasiNormals
from nfd_jax.models import AbstractModel
from nfd_jax.runtime import devices, memory
from nfd_jax.runtime import loop as engine
from nfd_jax.runtime.devices import Layout
from nfd_jax.runtime.store import Checkpoint
from nfd_jax.solvers import expansion
from nfd_jax.solvers.network import HIDDEN_ADDRESS, Shape, plain_layers, revealed

SPREAD_ADDRESS = 3  # folded into the seed's key, beside those of network


class System(NamedTuple):
    """A limit, to be solved with any number of particles at any depth."""

    model: AbstractModel  # whose depth is not used
    problem: engine.Problem  # inputs in coordinates
    coupled: bool
    matched: bool
    dimension: int  # d

    def matches(self, particles: int) -> bool:
        """Whether the noise is matched with so many particles; with too few it is plain."""
        return self.matched and particles >= self.least_matched

    @property
    def least_matched(self) -> int:
        """The particles from which on noise can be matched, whatever is observed."""
        shape, steps = Shape.of(self.problem, 1, 1), self.problem.data.steps
        return least_width(shape.batch, steps, shape.outputs, shape.evaluated)

    def needed(self, particles: int, room: int) -> tuple[int, int]:
        """Bytes of a solution with room for this depth, and the devices that share them."""
        shape, layout = (
            Shape.of(self.problem, particles, self._matrices(room)),
            devices.particles("particles", particles),
        )
        create = partial(_create, self.problem.settings, shape, self.coupled, self.matches(particles), 1)
        return shape.needed(create, jax.random.key(0), layout)

    def check_memory(self, particles: int, room: int) -> None:
        """ValueError where the devices lack the memory of a solution with room for this depth."""
        ways_out = f"use fewer particles than {particles}, a smaller depth, fewer steps or smaller batches"
        memory.check(*self.needed(particles, room), ways_out)

    def scales(self, depth: int) -> Scales:
        """Those of a network of this depth as its width goes to infinity."""
        model, settings = replace(self.model, depth=depth), self.problem.settings
        return Scales.of(model, settings.row, width=None, dimension=self.dimension, richness=settings.richness)

    def powers(self) -> tuple[float, float]:
        """Of 1/L, the first two in which infinite depth is approached; ValueError where there is no such limit."""
        settings = self.problem.settings
        return expansion.powers(self.model, settings.row, settings.trained)

    @property
    def on_one_path(self) -> bool:
        """Whether solutions with L and 2L blocks are close to each other where they follow one path, so that
        differences are cheap: residual blocks linear in their images, with a limit as L grows. An activation inside a
        block sees the images of every matrix by themselves, and those of the two grids differ."""
        if any(self.model.structure.activated[1:]):
            return False
        try:
            return bool(self.powers())
        except ValueError:
            return False

    def _matrices(self, depth: int) -> int:
        return replace(self.model, depth=depth).matrices

    def solve(
        self,
        key: Key,
        particles: int,
        depth: int,
        *,
        matched: bool,
        refinement: int = 1,
        room: int | None = None,
        progress: tqdm,
        checkpoint: Checkpoint | None = None,
    ) -> engine.Kept:
        """The solution on `depth` blocks, driven by the noise of a grid `refinement` times finer.

        Solutions with the same `room` (by default `depth`) share a compiled program.
        """
        problem = with_scales(self.problem, self.scales(depth))
        shape = Shape.of(problem, particles, self._matrices(room or depth))
        self.check_memory(particles, room or depth)
        layout = devices.particles("particles", particles)
        state = _create(problem.settings, shape, self.coupled, matched, refinement, key, layout)
        return engine.run(
            EXPLICIT, problem, state, members=False, progress=progress, layout=layout, checkpoint=checkpoint
        )


@partial(jax.jit, static_argnums=(*range(5), 6))
def _create(
    settings: engine.Settings,
    shape: Shape,
    coupled: bool,
    matched: bool,
    refinement: int,
    key: Key,
    layout: Layout | None = None,
) -> State:
    grid = Grid(refinement, settings.structure.matrices)
    layers = (matched_layers if matched else plain_layers)(key, shape, coupled, grid)
    return devices.place(layout, start(settings, layers))


def matched_layers(key: Key, shape: Shape, coupled: bool, grid: Grid = FINEST) -> Layers:
    """Layers of matched noise: the rows of U and V orthonormal too, so that <h_0, h_0> is exact and <V, h_0> = 0.

    What is random before training is spread evenly, U before V before the images of the first step.
    """
    ends = shape.rank + shape.outputs
    spread = QuasiNormals.create(
        jax.random.fold_in(key, SPREAD_ADDRESS), ends + 2 * shape.matrices * shape.batch, shape.width
    )
    plain = plain_layers(key, shape, coupled)
    rows = spread.replace(jnp.concatenate([plain.input, plain.readout]), jnp.arange(ends))
    rows = jnp.concatenate([rows[shape.rank :], rows[: shape.rank]])
    rows = bases.orthonormalise(rows, jnp.zeros_like(rows[:, 0])).directions
    readout, first = rows[: shape.outputs], rows[shape.outputs :]
    source = MatchedNoise.create(
        jax.random.fold_in(key, HIDDEN_ADDRESS),
        readout,
        shape.matrices,
        shape.steps * shape.batch,
        grid,
        spread[ends:],
    )
    return Layers(first, revealed(source, shape, coupled, rows.dtype), readout)
