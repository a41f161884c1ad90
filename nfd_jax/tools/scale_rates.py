"""scale_rates: any Equinox model trained in a row of the exponent table, with any optax optimizer.

A model of one's own multiplies by no power of the width: its weights are the usual ones of standard deviation
1/sqrt(fan-in). A row of the table is shifted to that convention, which leaves its training unchanged. What remains are
three factors a parameter: of its initial values, of its rate, and of Adam's eps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import optax

from nfd_jax._checks import one_of, positive_int
from nfd_jax._types import PyTree
from nfd_jax.parametrization import FAMILIES, IN_BRANCH, ONE, Parametrization, Power, Role, Scaling, resolve

UNSCALED = "unscaled"  # the role of a parameter to which the table does nothing
UNCHANGED = Scaling(ONE, ONE, ONE, ONE)
NAMES = (*(role.value for role in Role), UNSCALED)

Roles = Mapping[str, Role | str] | Callable[[str, Any], Role | str | None]


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
    check_mapping("dimensions", dimensions, "patterns to sizes, such as {'.embed.weight': 1}")
    for name, powers in (("multipliers", multipliers), ("stds", stds)):
        check_mapping(name, powers, "roles to powers, such as {'hidden': nfd.parametrization.N**-0.5}")
    own_multipliers, own_stds = _by_role("multipliers", multipliers), _by_role("stds", stds)
    assigned = assign_roles(model, roles)
    check_shapes(assigned, width, depth, absolute=base is None)
    sizes = _dimensions(assigned, width, dimensions or {})
    parameters = {}
    for path, (role, array) in assigned.items():
        scaling, std = UNCHANGED, ONE
        if role is not None:
            multiplier = own_multipliers.get(role, ONE)
            scaling = row[role].shifted(multiplier * row[role].multiplier ** -1)
            std = own_stds.get(role, USUAL[role].std)
        powers = scaling.std * std**-1, scaling.rate(family), scaling.epsilon if family == "adam" else ONE
        at = {"width": width, "depth": depth, "dimension": sizes.get(path, 1)}
        if base:  # d is the same there
            at = {"width": width / base[0], "depth": depth / base[1]}
            powers = tuple(replace(power, dimension=0.0) for power in powers)
        factors = (power(**at) for power in powers)
        parameters[path] = ScaledParameter(tuple(array.shape), role.value if role else UNSCALED, powers, *factors)

    def rescaled(path: Any, leaf: Any) -> Any:
        return leaf * parameters[_name(path)].initial if eqx.is_inexact_array(leaf) else leaf

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
            name = _name(path)
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


def check_transformation(what: str, value: Any) -> None:
    """TypeError unless `value` is an optax transformation."""
    if not callable(getattr(value, "init", None)) or not callable(getattr(value, "update", None)):
        raise TypeError(f"{what} an optax transformation, such as optax.scale_by_adam(), got {value!r}")


def check_mapping(name: str, value: Any, what: str) -> None:
    """TypeError unless `value` is a mapping or None."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must map {what}, got {value!r}")


def in_columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text, with a column for each."""
    sizes = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, sizes)).rstrip() for line in lines)


def assign_roles(model: PyTree, roles: Roles) -> dict[str, tuple[Role | None, Any]]:
    """Role (None: unscaled) and array of every parameter of the model, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_inexact_array))
    arrays = {_name(path): leaf for path, leaf in leaves}
    if not arrays:
        raise ValueError(f"model must hold arrays of inexact dtype to train, got {type(model).__name__} without any")
    if isinstance(roles, Mapping):
        found = _by_pattern("roles", roles, arrays)
    elif callable(roles):
        found = {path: roles(path, array) for path, array in arrays.items()}
    else:
        raise TypeError(f"roles must map patterns to roles, or be a function, got {type(roles).__name__}")
    lost = [f"{path} {tuple(array.shape)}" for path, array in arrays.items() if found.get(path) is None]
    if lost:
        raise ValueError(f"roles must give every parameter a role, one of {', '.join(NAMES)}; none for: {_some(lost)}")
    return {path: (_role("roles", found[path], unscaled=True), array) for path, array in arrays.items()}


def _by_pattern(argument: str, patterns: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The value of the first pattern that fits a path."""
    found, used = {}, set()
    for path in arrays:
        for pattern, value in patterns.items():
            if re.fullmatch(".*".join(map(re.escape, str(pattern).split("*"))), path):
                found[path] = value
                used.add(pattern)
                break
    idle = [repr(pattern) for pattern in patterns if pattern not in used]
    if idle:
        raise ValueError(
            f"{argument}: no parameter takes {_some(idle)}, or all that fit were taken by patterns before; parameters: "
            f"{_some(list(arrays))}"
        )
    return found


def _role(argument: str, value: Any, *, unscaled: bool = False) -> Role | None:
    if isinstance(value, Role):
        return value
    name = one_of(f"role in {argument}", value, NAMES if unscaled else NAMES[:-1])
    return None if name == UNSCALED else Role(name)


def _by_role(argument: str, powers: Mapping[Any, Power] | None) -> dict[Role, Power]:
    by_role = {}
    for name, power in (powers or {}).items():
        role = _role(argument, name)
        if not isinstance(power, Power):
            raise TypeError(f"{argument}[{name!r}] must be an nfd.parametrization.Power, got {power!r}; write N**-0.5")
        by_role[role] = power
    return by_role


def _check_base(base: tuple[int, int] | None) -> tuple[int, int] | None:
    if base is None:
        return None
    if not isinstance(base, tuple) or len(base) != 2:
        raise TypeError(f"base must be (width, depth) of the model in which all factors are 1, got {base!r}")
    return positive_int("base[0], a width,", base[0]), positive_int("base[1], a depth,", base[1])


MATRICES = (Role.INNER, Role.HIDDEN)
GROWTH = {role: 2 if role in MATRICES else 1 for role in Role}  # the power of n as which entries grow in number


def check_shapes(
    assigned: Mapping[str, tuple[Role | None, Any]], width: int, depth: int, *, absolute: bool = False
) -> None:
    """What is certain about a shape: how many axes may be wide, and that `width` is the narrowest of what grows.

    Axes may be split, fused or padded, so no one of them tells; what grows as n^k has at least n^k entries. Where
    factors are powers of n itself (`absolute`), n must be the size of an axis, inside a branch where there is any.
    """
    scaled = {path: (role, tuple(array.shape)) for path, (role, array) in assigned.items() if role is not None}
    for path, (role, shape) in scaled.items():
        found, size = f"{path} of shape {shape} can't have the role {role.value!r}: ", math.prod(shape)
        of_block = shape[1:] if len(shape) > 1 and shape[0] == depth else shape
        if role is Role.BIAS and sum(axis > 1 and axis % width == 0 for axis in of_block) > 1:
            raise ValueError(
                f"{found}it has two axes that are multiples of width={width}, and a bias acts on every coordinate by "
                "itself (a vector, a depthwise convolution); say 'inner' or 'hidden' for a matrix"
            )
        if role in MATRICES and sum(axis > 1 for axis in shape) < 2:
            raise ValueError(f"{found}it takes a matrix; a vector inside a branch is a 'bias', outside an 'input'")
        if size < width ** GROWTH[role]:
            fixed = "'input' or 'readout' where one axis" if role in MATRICES else "'unscaled' where every axis"
            raise ValueError(
                f"{found}it has {size} entries, fewer than n^{GROWTH[role]} at width={width}; "
                f"say {fixed} is fixed, or give as width the narrowest of the sizes that grow"
            )
        if role is not Role.BIAS and size % width:
            raise ValueError(f"{found}its size is no multiple of width={width}; say 'unscaled', or correct width")
    inside = [shape for role, shape in scaled.values() if role in IN_BRANCH]
    shapes = dict.fromkeys(inside or [shape for _, shape in scaled.values()])
    if absolute and shapes and not any(width in shape for shape in shapes):
        raise ValueError(
            f"width={width} is the size of no axis of {_some(list(map(str, shapes)))}; correct it, or give "
            "base=(width, depth), with which only ratios of widths count"
        )


def check_growth(small: Mapping[str, Any], large: Mapping[str, Any], widths: tuple[int, int]) -> None:
    """Shapes of roles at two widths, `(role, array)` by path: of matrices between wide layers both axes grow."""
    for path, (role, array) in small.items():
        if role is None or path not in large:
            continue
        shapes = tuple(array.shape), tuple(large[path][1].shape)
        power = math.log(math.prod(shapes[1]) / math.prod(shapes[0])) / math.log(widths[1] / widths[0])
        if abs(power - GROWTH[role]) > 0.5:  # sizes may be rounded
            raise ValueError(
                f"{path} can't have the role {role.value!r}, whose number of entries grows as n^{GROWTH[role]}: its "
                f"shape is {shapes[0]} at width {widths[0]} and {shapes[1]} at width {widths[1]}"
            )


def _dimensions(
    assigned: Mapping[str, tuple[Role | None, Any]], width: int, given: Mapping[str, int]
) -> dict[str, int]:
    """d of every input parameter: as given, or the size of what is left of it without its wide axis."""
    inputs = {path: array for path, (role, array) in assigned.items() if role is Role.INPUT}
    listed = _by_pattern("dimensions", given, inputs)
    sizes = {}
    for path, array in inputs.items():
        if path in listed:
            sizes[path] = positive_int(f"dimensions of {path}", listed[path])
            continue
        multiples = {size for size in array.shape if size % width == 0}
        wide = multiples & {width} or multiples or {width}
        if len(wide) > 1:
            raise ValueError(
                f"{path} of shape {tuple(array.shape)} has {len(wide)} axes that are multiples of width={width}, so "
                f"which is the input dimension? Give it: dimensions={{{path!r}: d}}"
            )
        sizes[path] = array.size // wide.pop()
    return sizes


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _cell(power: Power, value: float) -> str:
    return "1" if power == ONE else f"{power} = {value:.3g}"


def _some(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
