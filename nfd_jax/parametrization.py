"""The exponent table: how standard deviations, multipliers and rates scale with width and depth (theory section 6).

Weights have entries of standard deviation `std`, enter the network times `multiplier`, and move by `rate * eta` times
the direction of their optimizer: the gradient of the loss under SGD, the normalised gradient under Adam, whose eps is
`epsilon` times the one given. eta is the learning rate that neither width nor depth changes. Residual branches are
multiplied by sqrt(T) L^-alpha.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nfd_jax._checks import finite_float, one_of
from nfd_jax._text import in_columns

FAMILIES = {"sgd": "sgd", "adam": "adam", "adamw": "adam"}  # of an optimizer: whose rates it takes


class Role(enum.Enum):
    """What a weight does in the network."""

    INPUT = "input"  # from the data, of fixed dimension d, into the width
    INNER = "inner"  # first matrix of a residual branch that has two
    HIDDEN = "hidden"  # last matrix of a branch, or the only one; hidden matrix of an MLP
    BIAS = "bias"  # vector added inside a branch
    READOUT = "readout"  # from the width to the outputs


@dataclass(frozen=True)
class Power:
    """A product of powers of the width n, of the depth L and of the input dimension d, times a constant `factor`:
    `2 * rate` is `rate * Power(factor=2.0)`, and a role of rate `ZERO` is not moved by its gradients.

        >>> power = Power(width=-0.5) * Power(depth=1.0, factor=2.0)
        >>> print(power)
        2 n^-0.5 L
        >>> power(width=4, depth=2)
        2.0

    Raises ValueError unless the factor is a finite number of at least 0.
    """

    width: float = 0.0
    depth: float = 0.0
    dimension: float = 0.0
    factor: int | float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", finite_float("factor", self.factor))
        if not self.factor:  # there is one zero
            for name in ("width", "depth", "dimension", "factor"):
                object.__setattr__(self, name, 0.0)

    def __mul__(self, other: Power) -> Power:
        exponents = self.width + other.width, self.depth + other.depth, self.dimension + other.dimension
        return Power(*exponents, self.factor * other.factor)

    def __pow__(self, exponent: int | float) -> Power:
        if exponent < 0 and self == ZERO:
            raise ValueError(f"a power of factor 0 has no inverse, got 0 ** {exponent:g}; only rates can be 0")
        exponents = self.width * exponent, self.depth * exponent, self.dimension * exponent
        return Power(*exponents, self.factor**exponent)

    def __call__(self, *, width: int | float, depth: int | float, dimension: int | float = 1) -> float:
        """Its value; products of large powers that cancel stay finite."""
        logs = self.width * math.log(width), self.depth * math.log(depth), self.dimension * math.log(dimension)
        try:
            return self.factor * math.exp(math.fsum(logs))
        except OverflowError:
            raise ValueError(
                f"{self} overflows at n = {width}, L = {depth}, d = {dimension}; use smaller exponents or sizes"
            ) from None

    def is_close(self, other: Power) -> bool:
        """Whether the two are the same but for the rounding of products of powers."""
        if ZERO in (self, other):
            return self == other
        ratio = self * other**-1
        exponents = abs(ratio.width) + abs(ratio.depth) + abs(ratio.dimension)
        return exponents + abs(ratio.factor - 1) < ROUNDING

    def __str__(self) -> str:
        named = (("n", self.width), ("L", self.depth), ("d", self.dimension))
        powers = [name if power == 1 else f"{name}^{power:g}" for name, power in named if power]
        return " ".join([f"{self.factor:g}"] * (self.factor != 1 or not powers) + powers)


ROUNDING = 1e-9  # exponents and factors that differ by less are the same
ZERO = Power(factor=0.0)
ONE, N, L, D = Power(), Power(width=1.0), Power(depth=1.0), Power(dimension=1.0)
IN_BRANCH = (Role.INNER, Role.HIDDEN, Role.BIAS)  # their signals pass the branch multiplier


@dataclass(frozen=True)
class Scaling:
    """How the weights of one role scale: standard deviation, multiplier, SGD and Adam rate, Adam's eps.

    A rate may be `ZERO`: gradients then leave the role as it is. Weight decay, which is decoupled from the rates, acts
    on it like on the others. Raises ValueError where anything else is zero.
    """

    std: Power
    multiplier: Power
    sgd: Power
    adam: Power
    epsilon: Power = ONE

    def __post_init__(self) -> None:
        for name in ("std", "multiplier", "epsilon"):
            if getattr(self, name) == ZERO:
                raise ValueError(f"{name} can't be 0, only the rates sgd and adam; got {name}={ZERO!r}")

    def shifted(self, factor: Power) -> Scaling:
        """The same training in another convention (an "abc shift"): the multiplier times `factor`, whose inverse the
        weights absorb."""
        return Scaling(
            self.std * factor**-1,
            self.multiplier * factor,
            self.sgd * factor**-2,
            self.adam * factor**-1,
            self.epsilon * factor,
        )

    def rate(self, optimizer: str) -> Power:
        """The rate under an optimizer of the table."""
        return getattr(self, FAMILIES[optimizer])


@dataclass(frozen=True)
class Parametrization:
    """One row of the table.

    `alpha`: residual branches are multiplied by sqrt(T) L^-alpha. The other fields are the roles' scalings.
    """

    name: str
    alpha: float
    input: Scaling
    inner: Scaling
    hidden: Scaling
    bias: Scaling
    readout: Scaling

    def __str__(self) -> str:
        """A table of the roles' scalings, for people."""
        rows = [["role", "std", "multiplier", "SGD rate", "Adam rate", "eps"]]
        for role in Role:
            scaling = self[role]
            powers = scaling.std, scaling.multiplier, scaling.sgd, scaling.adam, scaling.epsilon
            rows.append([role.value, *map(str, powers)])
        branch = f"sqrt(T) {L**-self.alpha}" if self.alpha else "sqrt(T)"
        return "\n".join([f"{self.name}: branches times {branch}, rates times eta", in_columns(rows)])

    def __getitem__(self, role: Role) -> Scaling:
        return getattr(self, role.value)

    def branch(self, depth: int | float, horizon: int | float = 1.0) -> float:
        """The multiplier of a residual branch."""
        return math.sqrt(horizon) * depth**-self.alpha

    def shifted(self, role: Role, factor: Power) -> Parametrization:
        """The same training with the weights of one role in another convention."""
        return replace(self, **{role.value: self[role].shifted(factor)})

    def initial_output(self) -> Power:
        """Size of the outputs at initialisation: the readout sums n features of order 1 with random signs."""
        return self.readout.multiplier * self.readout.std * N**0.5

    def update(self, role: Role, optimizer: str) -> Power:
        """Size of the effective update of a role: what the first step adds to W x, its multiplier included, for
        inputs of order 1 and a fixed loss gradient, before the branch multiplier.

        Adam moves entries by the rate itself. The entries of a gradient are those of x times the signal that comes
        back, of size std x multiplier of the readout, times the branch multiplier for weights inside a branch. Either
        way the update is aligned with x, so that its terms add up coherently over the inputs. `ZERO` for a rate of 0.
        """
        scaling = self[role]
        inputs = {Role.INPUT: D, Role.BIAS: ONE}.get(role, N)
        if FAMILIES[optimizer] == "adam":
            return scaling.multiplier * scaling.adam * inputs
        moved = scaling.multiplier**2 * scaling.sgd * inputs
        if role is Role.READOUT:
            return moved
        return moved * self.readout.multiplier * self.readout.std * (L**-self.alpha if role in IN_BRANCH else ONE)

    def stream_updates(self, optimizer: str, roles: Iterable[Role] = tuple(Role)) -> tuple[Power, ...]:
        """Sizes of what the trained roles add to the first movement of the residual stream, behind all blocks: the
        input's own, and L coherent ones of the branches'. Roles of rate 0 add nothing."""
        sizes = (
            self.update(role, optimizer) * (L ** (1 - self.alpha) if role in IN_BRANCH else ONE)
            for role in roles
            if role is not Role.READOUT
        )
        return tuple(size for size in sizes if size != ZERO)

    def output_updates(self, optimizer: str, roles: Iterable[Role] = tuple(Role)) -> tuple[Power, ...]:
        """Sizes of what the trained roles add to the first movement of the outputs: the stream's movements through the
        readout, with which they are aligned, and the readout's own."""
        trained = tuple(roles)
        readout = self.update(Role.READOUT, optimizer)
        direct = (readout,) if Role.READOUT in trained and readout != ZERO else ()
        through = self.readout.multiplier * self.readout.std * N
        return direct + tuple(through * power for power in self.stream_updates(optimizer, trained))


def alpha_gamma(
    alpha: int | float, gamma: int | float, *, inner: int | float | None = None, name: str | None = None
) -> Parametrization:
    """TP6's family (section 7): branches L^-alpha, hidden rates that move a branch by L^-gamma under Adam.

    Stable for alpha >= 1/2 and alpha + gamma >= 1, not trivial for alpha + gamma <= 1. muP is (0, 0), depth-muP
    (1/2, 1/2), CompleteP (1, 0). Beyond alpha = 1 the line alpha + gamma = 1 goes on with gamma < 0: branches that fade
    faster than L^-1 at the start, and rates that grow with depth to make up for it. `inner`: another gamma for the
    first matrix of two-matrix branches, 0 in NFD v1's depth-aware correction of depth-muP. `name`: in tables and
    records, made of the exponents unless given.

        >>> row = alpha_gamma(0.75, 0.25)
        >>> print(row.hidden.sgd)
        n L^0.5
        >>> row.branch(depth=16)
        0.125

    Raises ValueError or TypeError unless alpha is a finite number of at least 0, and gamma and inner are finite.
    """
    alpha, gamma = finite_float("alpha", alpha), finite_float("gamma", gamma, -math.inf)
    inner = gamma if inner is None else finite_float("inner", inner, -math.inf)

    def in_branch(gamma: float) -> Scaling:
        return Scaling(
            ONE, N**-0.5, sgd=N * L ** (alpha - gamma), adam=N**-0.5 * L**-gamma, epsilon=N**-1.5 * L**-alpha
        )

    return Parametrization(
        name or f"alpha_gamma({alpha:g}, {gamma:g}{f', inner={inner:g}' if inner != gamma else ''})",
        alpha,
        input=Scaling(ONE, D**-0.5, sgd=N, adam=D**-0.5, epsilon=N**-1),
        inner=in_branch(inner),
        hidden=in_branch(gamma),
        bias=Scaling(ONE, ONE, sgd=N * L ** (alpha - gamma), adam=L**-gamma, epsilon=N**-1 * L**-alpha),
        readout=Scaling(ONE, N**-1, sgd=N, adam=ONE, epsilon=N**-1),
    )


STANDARD = Scaling(N**-0.5, ONE, sgd=ONE, adam=ONE)
TANGENT = Scaling(ONE, N**-0.5, sgd=ONE, adam=N**-1, epsilon=N**-1)

PARAMETRIZATIONS: dict[str, Parametrization] = {
    row.name: row
    for row in (
        # one global rate and eps (LLR's subject)
        Parametrization(
            "sp",
            0.0,
            input=Scaling(D**-0.5, ONE, sgd=ONE, adam=ONE),
            inner=STANDARD,
            hidden=STANDARD,
            bias=Scaling(ONE, ONE, sgd=ONE, adam=ONE),
            readout=STANDARD,
        ),
        # lazy as n grows
        Parametrization(
            "ntp",
            0.0,
            input=Scaling(ONE, D**-0.5, sgd=ONE, adam=N**-0.5 * D**-0.5, epsilon=N**-0.5),
            inner=TANGENT,
            hidden=TANGENT,
            bias=Scaling(ONE, ONE, sgd=ONE, adam=N**-0.5, epsilon=N**-0.5),
            readout=Scaling(ONE, N**-0.5, sgd=ONE, adam=N**-0.5, epsilon=N**-0.5),
        ),
        alpha_gamma(0.0, 0.0, name="mup"),  # depth is not scaled
        alpha_gamma(0.5, 0.5, name="depth_mup"),  # TP6 Table 1
        alpha_gamma(0.5, 0.5, inner=0.0, name="depth_mup_corrected"),  # NFD v1, branches of two matrices
        alpha_gamma(1.0, 0.0, name="complete_p"),  # CompleteP
    )
}


def resolve(parametrization: str | Parametrization) -> Parametrization:
    """A row by its name, or a row of one's own; ValueError that lists the names otherwise."""
    if isinstance(parametrization, Parametrization):
        return parametrization
    return PARAMETRIZATIONS[one_of("parametrization", parametrization, PARAMETRIZATIONS)]
