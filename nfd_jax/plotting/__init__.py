"""Looking at a run: what notebooks draw, on axes of matplotlib that are given, or on the current ones.

Every function takes a `Trajectory`, or the dataset that its `to_dataset()` gave and a netCDF file kept, and returns the
axes. Bands and bars are 95 % intervals: over the members that did not diverge by Student's distribution, or those that
an estimate of a limit brings along. Colours keep their order of lightness in grey and for colour-blind readers, and
kinds differ in markers and dashes too.

`import nfd_jax` does not import matplotlib; the first use of `nfd.plotting` does.
"""

from nfd_jax.plotting._layers import kernel, neurons, profile, ranks, spectrum
from nfd_jax.plotting._losses import loss
from nfd_jax.plotting._positions import positions
from nfd_jax.plotting._scaling import convergence, gaps, power_law, stable_rates, transfer

__all__ = [
    "convergence",
    "gaps",
    "kernel",
    "loss",
    "neurons",
    "positions",
    "power_law",
    "profile",
    "ranks",
    "spectrum",
    "stable_rates",
    "transfer",
]
