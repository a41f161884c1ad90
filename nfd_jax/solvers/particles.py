"""One solution of the limit by interacting particles: any depth, either closure, plain or matched noise.

Theory sections 3 and 4. `solve_limit` hands these out, or combines many into an estimate with error bars.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nfd_jax._types import Key
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.initial import Initial
from nfd_jax.dynamics.problem import Problem
from nfd_jax.dynamics.units import Units
from nfd_jax.matrices.matched import MOST, least_width
from nfd_jax.models import AbstractModel
from nfd_jax.runtime import devices, ensemble, loop, memory
from nfd_jax.runtime.recorded import Recorded
from nfd_jax.solvers import expansion


class System(NamedTuple):
    """A limit, to be solved with any number of particles at any depth."""

    model: AbstractModel  # whose depth is not used
    problem: Problem  # inputs in coordinates
    coupled: bool
    matched: bool
    dimension: int  # d
    resolution: float = 0.0  # of compressed matrices; 0 for the exact law
    narrowest: int | None = None  # particles of the narrowest solution that others are compared with

    def matches(self, particles: int) -> bool:
        """Whether the noise is matched with so many particles; with too few it is plain."""
        return self.matched and particles >= self.least_matched

    @property
    def least_matched(self) -> int:
        """The particles from which on noise can be matched, whatever is observed: at all steps, or with a resolution at
        the first one, as the ranks that follow are not known."""
        data = self.problem.data
        steps = 1 if self.resolution else data.steps
        evaluated = sum(len(samples.inputs) for samples in data.sets)
        return least_width(data.batches.shape[1], steps, data.train.targets.shape[1], evaluated)

    def dynamics(
        self, particles: int, depth: int, *, refinement: int | None = None, capacity: int | None = None
    ) -> Conditioned:
        """Those of a solution on `depth` blocks, driven by the noise of a grid `refinement` times finer, or their own.
        With the same `capacity`, in blocks (by default `depth`), they share a compiled program, whatever refinement is
        given."""
        matrices = replace(self.model, depth=capacity or depth).matrices
        matched = self.matches(particles)
        compressed = self.resolution > 0
        # noise gives way to plain at the same ranks in all solutions that are compared
        most = int(MOST * self.narrowest) if matched and compressed and self.narrowest else None
        initial = Initial.of(self.problem, matrices, particles, self.coupled, matched, compressed, most)
        finer = None if refinement is None else np.asarray(refinement, np.int32)
        return Conditioned(self.problem.settings, self.units(depth), initial, self.resolution or None, finer)

    def needed(self, particles: int, capacity: int) -> tuple[int, int]:
        """Bytes of a solution with capacity for this depth, and the devices that share them."""
        return memory.of_run(self.dynamics(particles, capacity), devices.particles("particles", particles))

    def check_memory(self, particles: int, capacity: int) -> int:
        """Bytes of a solution with capacity for this depth; ValueError where the devices lack them."""
        ways_out = f"use fewer particles than {particles}, a smaller depth, fewer steps or smaller batches"
        needed, count = self.needed(particles, capacity)
        memory.check(needed, count, ways_out)
        return needed

    def units(self, depth: int) -> Units:
        """Those of a network of this depth as its width goes to infinity."""
        model, problem = replace(self.model, depth=depth), self.problem
        return Units.of(model, problem.row, width=None, dimension=self.dimension, richness=problem.richness)

    def powers(self) -> tuple[float, float]:
        """Of 1/L, the first two in which infinite depth is approached; ValueError where there is no such limit."""
        return expansion.powers(self.model, self.problem.row, self.problem.settings.trained)

    @property
    def on_one_path(self) -> bool:
        """Whether solutions with L and 2L blocks are close to each other where they follow one path, so that
        differences are cheap: residual blocks linear in their images, with a limit as L grows. A map inside a
        block sees the images of every matrix by themselves, and those of the two grids differ."""
        structure = self.model.structure
        if not all(structure.is_linear(after) for after in structure.maps[1:]):
            return False
        try:
            return bool(self.powers())
        except ValueError:
            return False

    def solve(
        self,
        key: Key,
        particles: int,
        depth: int,
        *,
        refinement: int | None = None,
        capacity: int | None = None,
        progress: tqdm,
    ) -> Recorded:
        """The solution of a key; arguments are those of `dynamics`."""
        dynamics = self.dynamics(particles, depth, refinement=refinement, capacity=capacity)
        needed = self.check_memory(particles, capacity or depth)
        dynamics, problem = loop.with_last_pass(dynamics, self.problem, needed)
        layout = devices.particles("particles", particles)
        state = ensemble.create(dynamics, key, members=False, layout=layout)
        return loop.run(dynamics, problem, state, members=False, progress=progress, layout=layout)
