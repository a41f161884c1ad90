"""Units of g, chi and rates, stated once: what depth, width and parametrization decide of a network besides shapes.

All weights have N(0, 1) entries here, whatever convention their parametrization is written in, and:

- f = output V^T h_L / n, with output = 1 / gamma under depth-muP of richness gamma.
- g_l is n / output times the derivative of the output in h_l where there is one output, so that g_L = V. Where there
  are several it is n / output^2 times that of the loss: g_L = V chi.
- chi is the derivative of the loss in the outputs over `output`, the mean over the batch included.
- Gradients of matrices are sum_a w_a g_a x_a^T, with w = chi for one output and w = 1 for several (`Units.chi`): either
  way n / output^2 times those of the loss.
- Rates multiply eta and these gradients: all are 1 under depth-muP.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nfd_jax._checks import in_precision
from nfd_jax._types import Array, Float, Index, Scalar
from nfd_jax.models import AbstractModel
from nfd_jax.parametrization import ROUNDING, D, N, Parametrization, Power, Role
from nfd_jax.task import loss_gradient

# what std x multiplier of these roles must be for images of size 1
IMAGES: dict[Role, Power] = {Role.INPUT: D**-0.5, Role.INNER: N**-0.5, Role.HIDDEN: N**-0.5}


class Units(NamedTuple):
    """Traced, so that networks of all rows, and of all depths that there is capacity for, share a compiled program."""

    blocks: Index | np.ndarray  # L
    branch: Scalar | np.ndarray  # b
    output: Scalar | np.ndarray  # f = output V^T h_L / n
    rates: dict[str, Scalar | np.ndarray]  # by role

    def chi(
        self, loss: Any, outputs: Float[Array, "batch outputs"], targets: Float[Array, "batch outputs"]
    ) -> tuple[Float[Array, "batch outputs"], Float[Array, " batch"]]:
        """The cotangents u of a backward pass, from V u, and the weights w of its gradients: w_a u_a = chi_a."""
        chi = loss_gradient(loss, outputs, targets) / self.output
        single = chi.shape[1] == 1
        return (jnp.ones_like(chi), chi[:, 0]) if single else (chi, jnp.ones_like(chi[:, 0]))

    @classmethod
    def of(
        cls, model: AbstractModel, row: Parametrization, *, width: int | None, dimension: int, richness: float = 1.0
    ) -> Units:
        """Those of a network of finite depth; `width=None` stands for the limit n -> infinity.

        Raises ValueError where the parametrization has no such limit, or hidden images of another size than 1.
        """
        sizes = {"width": width or 2, "depth": int(model.depth), "dimension": dimension}
        output, rates = scale_powers(row)
        named = {"output": output} | {role.value: power for role, power in rates.items()}
        growing = [f"{name} {power}" for name, power in named.items() if abs(power.width) > ROUNDING]
        if width is None and growing:
            raise ValueError(
                f"parametrization {row.name!r} has no limit that learns features as n grows ({', '.join(growing)} "
                "in units of depth-muP's); use 'depth_mup' or 'mup', or solve_network at a finite width"
            )
        in_precision(
            f"the output multiplier of parametrization {row.name!r}", output(**sizes) / richness, positive=True
        )
        for role, power in rates.items():
            in_precision(f"the {role} rate of parametrization {row.name!r}", power(**sizes), positive=True)
        dtype = jnp.zeros(()).dtype
        return cls(
            np.asarray(model.blocks, np.int32),
            np.asarray(model.branch(row), dtype),
            np.asarray(output(**sizes) / richness, dtype),
            {role.value: np.asarray(power(**sizes), dtype) for role, power in rates.items()},
        )


def scale_powers(row: Parametrization) -> tuple[Power, dict[Role, Power]]:
    """Output scale and SGD rates as `Units` has them: for weights of N(0, 1) entries, so that rows that differ by an
    abc shift have the same ones. ValueError where hidden images have another size than 1."""
    for role, expected in IMAGES.items():
        entries = row[role].std * row[role].multiplier
        if not entries.is_close(expected):
            raise ValueError(
                f"parametrization {row.name!r} gives {role.value} weights std x multiplier = {entries}, and "
                f"revealed matrices need {expected}; use train_networks"
            )
    output = row.readout.std * row.readout.multiplier * N
    return output, {role: row[role].sgd * row[role].std ** -2 * output**2 * N**-1 for role in (*IMAGES, Role.READOUT)}
