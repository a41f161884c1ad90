"""scale_rates: any Equinox model trained in a row of the exponent table, with any optax optimizer.

A model of one's own multiplies by no power of the width: its weights are the usual ones of standard deviation
1/sqrt(fan-in). A row of the table is shifted to that convention, which leaves its training unchanged. What remains are
three factors a parameter: of its initial values, of its rate, and of Adam's eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import optax

from nfd_jax._checks import one_of, positive_int
from nfd_jax._text import in_columns
from nfd_jax._types import PyTree
from nfd_jax.parametrization import FAMILIES, ONE, Parametrization, Power, Scaling, resolve
from nfd_jax.tools._roles import (
    UNSCALED,
    Roles,
    assign_roles,
    by_role,
    check_shapes,
    check_transformation,
    input_dimensions,
    path_name,
)

UNCHANGED = Scaling(ONE, ONE, ONE, ONE)


def scale_rates(
    parametrization: str | Parametrization,
    model: PyTree,
    *,
    roles: Roles,
    width: int,
    depth: int = 1,
    optimizer: str = "adam",
    base: tuple[int, int] | None = None,
    dimensions: Mapping[str, int] | None = None,
    multipliers: Mapping[Any, Power] | None = None,
    stds: Mapping[Any, Power] | None = None,
) -> ScaledRates:
    """Make a model of one's own train in a row of the exponent table.

        row = nfd.parametrization.resolve("depth_mup")
        model = MyNetwork(key, width=n, depth=L, branch=row.branch(L))  # x + branch * block(x)
        scaled = nfd.scale_rates(row, model, width=n, depth=L, optimizer="adam", roles={
            ".embed.weight": "input", ".embed.bias": "input",
            ".blocks[*].up.weight": "inner", ".blocks[*].down.weight": "hidden", ".blocks[*].*.bias": "bias",
            ".head.weight": "readout", ".head.bias": "unscaled",
        })
        model = scaled.model
        optimizer = optax.chain(
            scaled(optax.scale_by_adam()),
            optax.add_decayed_weights(weight_decay),  # decoupled, the same at every size
            optax.scale_by_learning_rate(schedule),
        )
        state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    Two things stay with the model: it multiplies its residual branches by `parametrization.branch(depth)`, and it
    draws its weights in the usual way, with a standard deviation proportional to 1/sqrt(fan-in) and a gain of its own.

    **Arguments:**

    - `parametrization`: a row of the table by its name (`"sp"`, `"ntp"`, `"mup"`, `"depth_mup"`,
      `"depth_mup_corrected"`, `"complete_p"`), or one of one's own.
    - `model`: any pytree. Its parameters are its arrays of inexact dtype, as in `eqx.filter_grad`.
    - `roles`: what every parameter does: `"input"`, `"inner"` (first matrix of a branch that has two), `"hidden"` (its
      last or only one), `"bias"` (what acts on every coordinate by itself inside a branch: vectors, gains of norms,
      depthwise convolutions), `"readout"`, or `"unscaled"`, to which nothing is done: biases of the outputs, and what
      has no axis that grows. Vectors that act on the stream outside all branches, such as the bias of the input layer
      or a gain of the last norm, are `"input"`. Either a mapping from patterns of `jax.tree_util.keystr` paths, in
      which only `*` is special (any characters) and the first that fits wins; or a function of path and array.
    - `width`, `depth`: n, the narrowest where several sizes grow together (a bottleneck, few heads of keys), and the
      number L of residual blocks (1 where depth is not scaled).
    - `optimizer`: whose rates to take: `"sgd"` for directions linear in the gradient (momentum too), `"adam"` or
      `"adamw"` for those that move every entry by about 1 (Lion, RMSProp and sign descent too).
    - `base`: `(width, depth)` of a model in which all factors are 1, but for constant ones of the row (a rate of 0, or
      twice the rate): a rate tuned there is the rate of all others. By default factors are the powers of n, L and d
      themselves, and the learning rate is the eta of the table.
    - `dimensions`: d by pattern, for input matrices. By default it is the product of the sizes of all axes but the
      one of size `width`, or a multiple of it: 1 for a vector. Embeddings looked up by an index have d = 1: say so.
    - `multipliers`: powers by which the model itself multiplies the weights of a role, none by default.
    - `stds`: standard deviations by role in which the model draws its weights, where they are not the usual ones of
      the row `"sp"`: `{"hidden": nfd.parametrization.ONE}` for N(0, 1) entries.

    Returns a `ScaledRates`. Raises ValueError or TypeError, with the paths, for parameters without a role, patterns
    that no parameter takes, and shapes that don't fit their role.
    """
    row = resolve(parametrization)
    family = FAMILIES[one_of("optimizer", optimizer, FAMILIES)]
    width, depth = positive_int("width", width), positive_int("depth", depth)
    base = _check_base(base)
    multiplied, drawn = by_role("multipliers", multipliers), by_role("stds", stds)
    assigned = assign_roles(model, roles)
    check_shapes(assigned, width, depth, absolute=base is None)
    sizes = input_dimensions(assigned, width, dimensions)
    parameters = {}
    for path, (role, array) in assigned.items():
        scaling, std = UNCHANGED, ONE
        if role is not None:
            multiplier = multiplied.get(role, ONE)
            scaling = row[role].shifted(multiplier * row[role].multiplier ** -1)
            std = drawn.get(role, USUAL[role].std)
        powers = scaling.std * std**-1, scaling.rate(family), scaling.epsilon if family == "adam" else ONE
        at = {"width": width, "depth": depth, "dimension": sizes.get(path, 1)}
        if base:  # d is the same there
            at = {"width": width / base[0], "depth": depth / base[1]}
            powers = tuple(replace(power, dimension=0.0) for power in powers)
        factors = (power(**at) for power in powers)
        parameters[path] = ScaledParameter(tuple(array.shape), role.value if role else UNSCALED, powers, *factors)

    def rescaled(path: Any, leaf: Any) -> Any:
        return leaf * parameters[path_name(path)].initial if eqx.is_inexact_array(leaf) else leaf

    scaled = jax.tree_util.tree_map_with_path(rescaled, model)
    return ScaledRates(row, optimizer, width, depth, base, parameters, scaled)


USUAL = resolve("sp")


@dataclass(frozen=True)
class ScaledParameter:
    """Shape and role of a parameter, powers and values of the factors of its initial values, rate and eps."""

    shape: tuple[int, ...]
    role: str
    powers: tuple[Power, ...]
    initial: float
    rate: float
    epsilon: float


@dataclass(frozen=True, eq=False)
class ScaledRates:
    """A model in a row of the table: call it on an optax transformation, start from `model`, print it to see all.

    `parameters`: a `ScaledParameter` by path. `model`: the one given with its initial weights rescaled.
    """

    parametrization: Parametrization
    optimizer: str
    width: int
    depth: int
    base: tuple[int, int] | None
    parameters: Mapping[str, ScaledParameter]
    model: PyTree = field(repr=False)

    def __call__(self, inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
        """The transformation `inner`, a direction such as `optax.scale_by_adam()` or `optax.trace(0.9)`, with the rate
        and eps of every parameter.

        Dividing Adam's gradients by a number does what multiplying its eps by it does. Chain decoupled weight decay and
        the learning rate behind it: what is inside moves by the factor of the rate. Clip gradients in front of it.
        """
        check_transformation("scaled(...) takes", inner)
        return optax.chain(
            optax.stateless(lambda updates, _: self._scaled(updates, lambda parameter: 1 / parameter.epsilon)),
            inner,
            optax.stateless(lambda updates, _: self._scaled(updates, lambda parameter: parameter.rate)),
        )

    def _scaled(self, updates: PyTree, factor: Callable[[ScaledParameter], float]) -> PyTree:
        def scale(path: Any, update: Any) -> Any:
            name = path_name(path)
            if name not in self.parameters:
                raise ValueError(
                    f"the updates have a parameter {name} that the model given to scale_rates does not have; call "
                    f"scale_rates on the tree that is trained. It has {', '.join(list(self.parameters)[:4])}, ..."
                )
            return update * factor(self.parameters[name])

        return jax.tree_util.tree_map_with_path(scale, updates)

    def table(self) -> str:
        """Path, shape, role and factors of every parameter, as text."""
        lines = [("parameter", "shape", "role", "initial values", "rate", "eps")]
        for path, parameter in self.parameters.items():
            factors = (parameter.initial, parameter.rate, parameter.epsilon)
            cells = [_cell(power, value) for power, value in zip(parameter.powers, factors, strict=True)]
            lines.append((path, str(parameter.shape), parameter.role, cells[0], cells[1], cells[2]))
        title = f"{self.parametrization.name}, {self.optimizer}, n = {self.width}, L = {self.depth}"
        if self.base:
            title += f", both in units of a base of n = {self.base[0]}, L = {self.base[1]}"
        return f"{title}\n{in_columns(lines)}"

    def __str__(self) -> str:
        return self.table()


def _check_base(base: tuple[int, int] | None) -> tuple[int, int] | None:
    if base is None:
        return None
    if not isinstance(base, tuple) or len(base) != 2:
        raise TypeError(f"base must be (width, depth) of the model in which all factors are 1, got {base!r}")
    return positive_int("base[0], a width,", base[0]), positive_int("base[1], a depth,", base[1])


def _cell(power: Power, value: float) -> str:
    return "1" if power == ONE else f"{power} = {value:.3g}"
