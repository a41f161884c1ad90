"""Whether a network has a limit of infinite depth, and the powers of 1/L in which it is approached.

With branches b = sqrt(T) L^-alpha and hidden rates L^(alpha - gamma) (theory sections 2, 3 and 6; TP6 section 7):

- What an update adds to the stream, L coherent branches of b^2 L^(alpha - gamma), is of size L^-(alpha + gamma - 1):
  it must not grow.
- The random parts of the branches add a variance L b^2 = T L^-(2 alpha - 1): it must not grow either. At alpha = 1/2 it
  is the Brownian motion of the limit; beyond, it fades, and with it the responses through the stream (those inside
  a block of two matrices stay).
- An update moves what an activation acts on inside a branch by b L^(alpha - gamma), which is L^-gamma.
- A branch that ends in an activation without symmetry has a mean, unless it is centred: L of them add L^-(alpha - 1).

The law of training is even in b: with b, U, V and the matrices that take the stream in or write into it change sign
(h and g then do, outputs do not). So movements inside the branches count with their squares, L^(-2 gamma), where
activations are smooth. At a kink they count by their magnitude, L^-gamma: phi' differs between two steps wherever the
two images lie on either side of it. (As far as the stream itself has moved by more, this is smooth again, and of
order L^(-2 gamma), with a logarithm where U is frozen; the lower power is extrapolated away in either case. Measured,
post-activation ReLU, centred, depth-muP: differences between L and 2L fall by 1.4 from L = 4 to 64.) L blocks are an
Euler scheme, of order 1/L. Corrections to the limit come in all sums of these powers.
"""

from __future__ import annotations

from collections.abc import Iterable

from nfd_jax import activations
from nfd_jax.dynamics.units import scale_powers
from nfd_jax.models import PHI, AbstractModel, ResNet
from nfd_jax.parametrization import ROUNDING, ZERO, Parametrization, Role

SMOOTH = ("identity", "tanh", "gelu")  # of others, whose derivative may jump, the law holds too, with more powers
SLOWEST = 0.5  # what falls more slowly with depth can't be extrapolated from the depths that one can afford


def powers(model: AbstractModel, row: Parametrization, trained: Iterable[str]) -> tuple[float, float]:
    """The two lowest powers of 1/L by which the limit n -> infinity with L blocks differs from that of L -> infinity.

    `trained` are the roles that train, of which `"hidden"` stands for all matrices of the blocks. Raises ValueError,
    with the reason, where there is no limit as L grows, or corrections fall too slowly to be extrapolated.
    """
    if not isinstance(model, ResNet):
        raise _no_limit(f"{type(model).__name__} has no skip connections, and its layers don't become a flow")
    if model.branch_scale is not None:
        raise _no_limit(f"branch_scale={model.branch_scale} does not fall with depth")
    structure, alpha = model.structure, row.alpha
    output, rates = scale_powers(row)
    named = f"parametrization {row.name!r}"
    described = f"{named} with ResNet(activation={model.activation!r}, block={model.block!r}, centred={model.centred})"
    if alpha < 0.5 - ROUNDING:
        raise _no_limit(f"{named} scales branches as L^-{alpha:g}, and features grow without bound below L^-0.5")
    if not isinstance(model.block, str):
        raise _no_limit("what a block of your own does as L grows is not known")
    matrices = (Role.INNER, Role.HIDDEN)[2 - structure.matrices :]
    inside = [role for role, after in zip(matrices, structure.maps[1:], strict=True) if PHI in after]
    moving = {*matrices, *(Role(role) for role in trained)} - {role for role, rate in rates.items() if rate == ZERO}
    sizes = {"the size of outputs": output.depth}
    for role in sorted(moving, key=list(Role).index):
        coherent = 1 - 2 * alpha if role in matrices else 0.0
        sizes[f"what {role.value} weights learn"] = rates[role].depth + coherent
    if PHI in structure.maps[-1] and not model.centred and not activations.is_odd(structure.activation):
        sizes["the sum of the means of all branches"] = 1 - alpha
    moved = {
        f"the movement of images of {role.value} weights": rates[role].depth - alpha
        for role in inside
        if role in moving
    }
    growing = [f"{name} as L^{power:g}" for name, power in (sizes | moved).items() if power > ROUNDING]
    if growing:
        raise _no_limit(f"{described} makes grow {' and '.join(growing)}")
    if output.depth < -ROUNDING:
        raise _no_limit(f"{named} makes outputs vanish as L^{output.depth:g}")
    felt = 2 if structure.activation in SMOOTH else 1
    orders = {1.0, 2 * alpha - 1, *(-power for power in sizes.values()), *(-felt * power for power in moved.values())}
    first, second = _lowest_sums({order for order in orders if order > ROUNDING})
    if first < SLOWEST - ROUNDING:
        raise ValueError(
            f"depth=inf: {described} approaches its limit as L^-{first:g}, too slowly to be extrapolated from "
            "depths that can be solved; give a finite depth"
        )
    return first, second


def _lowest_sums(orders: set[float]) -> tuple[float, float]:
    """The two lowest numbers that are sums of these, each taken any number of times."""
    first = min(orders)
    return first, min({2 * first} | {order for order in orders if order > first + ROUNDING})


def _no_limit(why: str) -> ValueError:
    return ValueError(
        f"depth=inf has no limit here: {why}; use a ResNet with branch_scale=None under 'depth_mup' or 'complete_p', "
        "or give a finite depth"
    )
