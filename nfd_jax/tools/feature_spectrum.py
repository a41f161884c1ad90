"""Spectra behind the angle: of the backward-to-feature kernel, and of the Jacobian from one layer to another.

Under SGD at rates eta_l features move by df_v = -K_v b_v, with the kernel K_v = sum_{l <= v} eta_l J_l J_l^T and J_l
the Jacobian of f_v in the parameters of layer l. So cos(theta_v) = <b, K b> / (|b| |K b|). For a b like a Gaussian
vector that knows nothing of K this is M_1 / sqrt(M_2), M_k = Tr K^k / m (Chizat and Netrapalli, arXiv 2311.18718); it
is never below 2 sqrt(kappa) / (1 + kappa), kappa the condition number of K (Kantorovich).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax

from nfd_jax._checks import check_array, finite_float, positive_int
from nfd_jax._types import Array, PyTree
from nfd_jax.seeds import check_seed, seed_key
from nfd_jax.statistics import Estimate, bootstrap
from nfd_jax.tools._experiment import check_batch
from nfd_jax.tools._roles import by_pattern, path_name
from nfd_jax.tools._shifts import Features, Program, check_named, traced

Product = Callable[[Array], Array]
TOGETHER = 32  # products at a time


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Of a symmetric matrix of m rows without negative eigenvalues.

    - `eigenvalues`, descending: all m of them where `exact`, else the leading ones, each with its `residuals` |K u -
      lambda u|: within so much of it there is an eigenvalue. Exact ones are so to rounding, with residuals 0.
    - `samples (probes, 2)`: of M_1 and M_2, M_k = Tr K^k / m, by random probes; one row, without error, where exact.
    """

    dimension: int
    exact: bool
    eigenvalues: np.ndarray
    residuals: np.ndarray
    samples: np.ndarray

    @property
    def moments(self) -> tuple[Estimate, Estimate]:
        """M_1 and M_2, with standard errors over the probes."""
        return self._estimate(lambda m: m[0]), self._estimate(lambda m: m[1])

    @property
    def cosine(self) -> Estimate:
        """M_1 / sqrt(M_2): cos(theta) for a gradient that knows nothing of the kernel. Its bias is O(1 / probes)."""
        return self._estimate(lambda m: m[0] / np.sqrt(m[1]))

    @property
    def spread(self) -> Estimate:
        """M_2 / M_1^2 - 1, the variance of the eigenvalues over their squared mean; 0 where all are equal."""
        return self._estimate(lambda m: m[1] / m[0] ** 2 - 1)

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; infinite where the matrix is singular, not a number unless exact."""
        largest, smallest = self.eigenvalues[0], self.eigenvalues[-1]
        if not self.exact:
            return float("nan")
        singular = smallest <= largest * self.dimension * np.finfo(self.eigenvalues.dtype).eps
        return float("inf") if singular else float(largest / smallest)

    @property
    def least_cosine(self) -> float:
        """2 sqrt(kappa) / (1 + kappa): no gradient has a smaller cosine; not a number unless exact."""
        kappa = self.condition
        return 0.0 if kappa == float("inf") else 2 * kappa**0.5 / (1 + kappa)

    def _estimate(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        if self.exact:
            return Estimate(float(function(self.samples[0].astype(np.float64))), 0.0, np.inf)
        return bootstrap(lambda samples: function(samples.mean(axis=0)), self.samples).estimate()


def feature_spectrum(
    model: PyTree,
    features: Features,
    inputs: PyTree,
    feature: str,
    *,
    rates: float | int | Mapping[str, float | int] = 1.0,
    largest: int = 1024,
    probes: int = 64,
    leading: int = 8,
    seed: int = 0,
) -> Spectrum:
    """The spectrum of the backward-to-feature kernel K_v of one feature of a model of one's own, at these inputs.

    **Arguments:**

    - `model`, `features`, `inputs`: as `feature_speed` takes them. `feature`: the name of f_v.
    - `rates`: eta_l of every parameter under SGD, one number, or numbers by patterns of paths; others have rate 0.
    - `largest`: the dimension m, entries of f_v over all samples, up to which all eigenvalues are computed, from m^2
      numbers. Above, K acts only by products with Jacobians: moments by Hutchinson's estimator on `probes` signs,
      and the `leading` eigenvalues by Lanczos (ARPACK).
    - `seed`: of the probes and of the first vector of Lanczos.

    Returns a `Spectrum`. Raises ValueError or TypeError for bad arguments before compiling.
    """
    program = _checked(model, features, inputs)
    check_named("feature", [feature], program.names)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(program.parameters)]
    given = (
        by_pattern("rates", rates, dict.fromkeys(paths)) if isinstance(rates, Mapping) else dict.fromkeys(paths, rates)
    )
    numbers = [jnp.asarray(finite_float(f"rate of {path}", given.get(path, 0.0))) for path in paths]
    apply = partial(_kernel_product, features, feature, numbers, model, inputs)
    found = _spectrum(apply, program.zeros([feature])[feature], largest, probes, leading, seed)
    if not found.samples.any():
        raise ValueError(f"the kernel of {feature!r} is zero: no parameter with a rate in rates={rates!r} moves it")
    return found


def jacobian_spectrum(
    model: PyTree,
    features: Features,
    inputs: PyTree,
    start: str,
    end: str,
    *,
    largest: int = 1024,
    probes: int = 64,
    leading: int = 8,
    seed: int = 0,
) -> Spectrum:
    """The spectrum of J J^T, J the Jacobian of the feature `end` in the feature `start`: its squared singular values.

    Samples are taken together: where they do not interact the values of all are pooled. Its `condition` is that of J
    squared. Other arguments, and errors, are those of `feature_spectrum`.
    """
    program = _checked(model, features, inputs)
    check_named("start", [start], program.names)
    check_named("end", [end], program.names)
    if ("feature", start) not in program.ancestors()[end]:
        raise ValueError(f"nothing of the array that features returns as {start!r} enters {end!r}: exchange them")
    apply = partial(_jacobian_product, features, start, end, model, inputs)
    return _spectrum(apply, program.zeros([end])[end], largest, probes, leading, seed)


def _checked(model: PyTree, features: Features, inputs: PyTree) -> Program:
    check_batch("inputs", inputs)
    return traced(features, model, inputs)


@eqx.filter_jit
def _kernel_product(
    features: Features, feature: str, rates: list[Array], model: PyTree, inputs: PyTree, vectors: Array
) -> Array:
    """K z of every row z."""
    program = Program(features, model, inputs)

    def value(parameters: PyTree) -> Array:
        return program.run(parameters, {})[feature]

    found, pull_back = jax.vjp(value, program.parameters)

    def one(vector: Array) -> Array:
        leaves, structure = jax.tree.flatten(pull_back(vector.reshape(found.shape))[0])
        scaled = [rate.astype(leaf.dtype) * leaf for rate, leaf in zip(rates, leaves, strict=True)]
        tangent = jax.tree.unflatten(structure, scaled)
        return jax.jvp(value, (program.parameters,), (tangent,))[1].ravel()

    return lax.map(one, vectors, batch_size=TOGETHER)


@eqx.filter_jit
def _jacobian_product(features: Features, start: str, end: str, model: PyTree, inputs: PyTree, vectors: Array) -> Array:
    """J J^T z of every row z."""
    program = Program(features, model, inputs)

    def value(shift: Array) -> Array:
        return program.run(program.parameters, {start: shift})[end]

    nothing = program.zeros([start])[start]
    found, pull_back = jax.vjp(value, nothing)

    def one(vector: Array) -> Array:
        return jax.jvp(value, (nothing,), pull_back(vector.reshape(found.shape)))[1].ravel()

    return lax.map(one, vectors, batch_size=TOGETHER)


def _spectrum(apply: Product, value: Array, largest: int, probes: int, leading: int, seed: int) -> Spectrum:
    """Of the matrix that `apply` multiplies rows `(rows, m)` with, m entries of `value`."""
    size, dtype = value.size, value.dtype
    probes, leading = positive_int("probes", probes, 2), positive_int("leading", leading)
    key, largest = seed_key(check_seed("seed", seed)), positive_int("largest", largest)
    if size <= largest:
        check_array(f"all eigenvalues of {size} entries (lower largest)", size, size)
        matrix = _finite(apply(jnp.eye(size, dtype=dtype)))
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
        samples = np.array([[np.mean(values), np.mean(values**2)]])
        return Spectrum(size, True, values, np.zeros(size), samples)
    signs = jax.random.rademacher(key, (probes, size), dtype)
    images = _finite(apply(signs))
    samples = np.stack([np.sum(np.asarray(signs) * images, axis=1), np.sum(images**2, axis=1)], axis=1) / size
    values, residuals = _leading(apply, np.asarray(signs[0]), min(leading, size - 1))
    return Spectrum(size, False, values, residuals, samples)


def _leading(apply: Product, first: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues with their residuals, from a start vector."""

    def product(vector: np.ndarray) -> np.ndarray:
        return np.asarray(apply(jnp.asarray(vector.reshape(1, -1), first.dtype))[0])

    operator = scipy.sparse.linalg.LinearOperator((first.size, first.size), matvec=product, dtype=first.dtype)  # pyright: ignore[reportCallIssue]
    tolerance = float(np.finfo(first.dtype).eps) ** 0.5
    values, vectors = scipy.sparse.linalg.eigsh(operator, k=count, v0=first, tol=tolerance)
    residuals = np.asarray(apply(jnp.asarray(vectors.T, first.dtype))) - values[:, None] * vectors.T
    order = np.argsort(values)[::-1]
    return values[order], np.linalg.norm(residuals, axis=1)[order]


def _finite(images: Array) -> np.ndarray:
    found = np.asarray(images)
    if not np.isfinite(found).all():
        raise ValueError("products with the Jacobian are not finite at these inputs: look at the model's features")
    return found
