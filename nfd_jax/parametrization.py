"""The exponent table: how standard deviations, multipliers and rates scale with width and depth (theory section 6).

Weights have entries of standard deviation `std`, enter the network times `multiplier`, and move by
`rate * eta` times the gradient of the loss, with eta the width- and depth-free learning rate.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from nfd_jax._errors import one_of


class Role(enum.Enum):
    """What a weight matrix does in the network."""

    INPUT = "input"
    HIDDEN = "hidden"
    READOUT = "readout"


@dataclass(frozen=True)
class Exponents:
    """Powers of the width n and of the depth L in the SGD rate of one role; the rest of the row is shared."""

    width: float
    depth: float = 0.0


@dataclass(frozen=True)
class Parametrization:
    """One row of the table: branch multiplier sqrt(T) L^-alpha, readout multiplier 1/n, SGD rates by role."""

    alpha: float
    rates: dict[Role, Exponents]


@dataclass(frozen=True)
class Scale:
    """What one matrix needs: entry standard deviation, forward multiplier, SGD rate factor."""

    std: float
    multiplier: float
    rate: float


PARAMETRIZATIONS: dict[str, Parametrization] = {
    # TP6 Table 1, in the convention of O(1) weight entries and explicit multipliers
    "depth_mup": Parametrization(alpha=0.5, rates={role: Exponents(width=1.0) for role in Role}),
}


def check(name: str) -> str:
    """`name` where the table has it, else a ValueError that lists the rows."""
    return one_of("parametrization", name, PARAMETRIZATIONS)


def branch_scale(name: str, depth: int, horizon: float) -> float:
    """The multiplier of a residual branch: sqrt(T/L) under depth-muP."""
    return math.sqrt(horizon) * depth ** -PARAMETRIZATIONS[name].alpha


def scale(name: str, role: Role, *, width: int, depth: int, dimension: int) -> Scale:
    """Standard deviation, multiplier (without the branch) and SGD rate factor of the matrix with this role."""
    exponents = PARAMETRIZATIONS[name].rates[role]
    multiplier = {Role.INPUT: dimension**-0.5, Role.HIDDEN: width**-0.5, Role.READOUT: 1.0 / width}[role]
    return Scale(std=1.0, multiplier=multiplier, rate=float(width) ** exponents.width * depth**exponents.depth)
