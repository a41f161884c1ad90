"""Claim 15: well-conditioned layer-to-layer Jacobians imply alignment: orthogonal and Gaussian dense networks.

Measured by the road of a user's own model: plain Equinox layers, `feature_speed` and the two spectra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nfd_jax as nfd
from nfd_jax import activations
from nfd_jax._types import Array, Key, PyTree
from nfd_jax.statistics import Sampled, bootstrap, combined
from nfd_jax.studies._curves import Curve
from nfd_jax.studies._findings import Finding, about, at_least, at_most
from nfd_jax.studies._panels import Line, Panel
from nfd_jax.studies._seeds import own_seeds
from nfd_jax.studies._stream import free_cosine
from nfd_jax.studies._study import Arrays, Cell, Results, Study

INITS = ("orthogonal", "gaussian")
ACTIVATIONS = ("identity", "tanh", "relu")
GAIN = {"identity": 1.0, "tanh": 1.0, "relu": 2.0**0.5}  # critical: layers neither shrink nor blow gradients up
START, LAST = "h_0", "h_L"
ISOMETRIC = (("identity", "orthogonal"), ("tanh", "orthogonal"))  # of these Jacobians stay well conditioned
EXACT = ISOMETRIC[0]
SPREADS = {  # of the squared singular values of one layer's Jacobian; of tanh there is no number for all layers
    ("identity", "orthogonal"): 0.0,
    ("identity", "gaussian"): 1.0,
    ("relu", "orthogonal"): 1.0,
    ("relu", "gaussian"): 2.0,
}


@dataclass(frozen=True)
class Sizes:
    """The grid."""

    depths: tuple[int, ...] = (8, 16, 32, 64)
    width: int = 128
    seeds: int = 16


class Dense(eqx.Module):
    """h_0 = U x, h_l = W_l phi(h_{l-1}), f = v^T phi(h_L), of one input; the first and the last layer are frozen."""

    embed: eqx.nn.Linear
    layers: list[eqx.nn.Linear]
    head: eqx.nn.Linear
    activation: str = eqx.field(static=True)

    def features(self, inputs: Array) -> dict[str, Array]:
        """h_0, h_L and the output."""
        phi = activations.function(self.activation)
        h = jax.vmap(self.embed)(inputs)
        found = {START: h}
        for layer in self.layers:
            h = jax.vmap(layer)(phi(h))
        return found | {LAST: h, "output": jax.vmap(self.head)(phi(h))[:, 0]}


def cells(sizes: Sizes) -> list[Cell]:
    """Every activation at every depth with both initialisations, which share its programs."""
    return [
        {"activation": activation, "depth": depth, "init": init}
        for activation in ACTIVATIONS
        for depth in sizes.depths
        for init in INITS
    ]


def measure(activation: str, depth: int, init: str, width: int, seeds: int) -> Arrays:
    """Of every network: the cosine at h_L, that which the spectrum of its kernel predicts, the least that its condition
    allows, and of the singular values of d h_L / d h_0 the spread of their squares and the least over the largest."""
    found = [_network(activation, depth, init, width, seed) for seed in own_seeds(seeds, activation, depth, init)]
    return {name: (("seed",), np.array([each[name] for each in found])) for name in found[0]}


def _network(activation: str, depth: int, init: str, width: int, seed: int) -> dict[str, float]:
    model = _model(nfd.seed_key(seed), activation, depth, init, width)
    inputs, targets = jnp.ones((1, 1)), jnp.ones(1)
    options = {"output": "output", "loss": _signal, "layers": [LAST]}
    speed = nfd.feature_speed(model, Dense.features, inputs, targets, optimizer=SHARES, **options)
    rates = {f".layers[{place}].weight": size for place, size in enumerate(_rates(model, inputs, targets))}
    kernel = nfd.feature_spectrum(model, Dense.features, inputs, LAST, rates=rates)
    jacobian = nfd.jacobian_spectrum(model, Dense.features, inputs, START, LAST)
    return {
        "cosine": float(speed.cosine[0]),
        "predicted": kernel.cosine.value,
        "least": kernel.least_cosine,
        "spread": jacobian.spread.value,
        "least_over_largest": jacobian.condition**-0.5,
    }


def _model(key: Key, activation: str, depth: int, init: str, width: int) -> Dense:
    """Weights of the same variance either way: g Q, Q orthogonal, or entries of variance g^2 / n."""
    first, last, hidden = jax.random.split(key, 3)
    weights = GAIN[activation] * jax.random.normal(hidden, (depth, width, width)) / width**0.5
    if init == "orthogonal":
        weights = _orthogonal(weights) * GAIN[activation]

    def linear(key: Key, inputs: int, outputs: int, weight: Array) -> eqx.nn.Linear:
        layer = eqx.nn.Linear(inputs, outputs, use_bias=False, key=key)
        return eqx.tree_at(lambda layer: layer.weight, layer, weight)

    return Dense(
        linear(first, 1, width, jax.random.normal(first, (width, 1))),
        [linear(hidden, width, width, weight) for weight in weights],
        linear(last, width, 1, jax.random.normal(last, (1, width))),
        activation,
    )


@jax.jit
def _orthogonal(matrices: Array) -> Array:
    """Uniformly distributed ones from Gaussian ones: the signs of R decide which Q is taken."""
    Q, R = jnp.linalg.qr(matrices)
    return Q * jnp.sign(jnp.diagonal(R, axis1=-2, axis2=-1))[:, None, :]


def _signal(outputs: Array, targets: Array) -> Array:
    """A loss with the gradient 1: angles know of no scale."""
    return jnp.sum(outputs * targets)


def _is_hidden(path: Any) -> bool:
    return jax.tree_util.keystr(path).startswith(".layers")


def _share(gradients: PyTree, parameters: PyTree | None = None) -> PyTree:
    """Every hidden matrix takes the same off the loss, eta_l = 1 / |grad_l|^2; the others nothing."""
    del parameters

    def update(path: Any, gradient: Array) -> Array:
        return -gradient / jnp.sum(gradient**2) if _is_hidden(path) else jnp.zeros_like(gradient)

    return jax.tree_util.tree_map_with_path(update, gradients)


SHARES = optax.stateless(_share)


@eqx.filter_jit
def _gradients(model: Dense, inputs: Array, targets: Array) -> PyTree:
    return eqx.filter_grad(lambda model: _signal(model.features(inputs)["output"], targets))(model)


def _rates(model: Dense, inputs: Array, targets: Array) -> np.ndarray:
    """The same rates, over their largest: a spectrum's shape knows of no scale."""
    gradients = _gradients(model, inputs, targets)
    sizes = np.array([float(jnp.sum(layer.weight**2)) for layer in gradients.layers])
    return sizes.min() / sizes


def _curve(results: Results, activation: str, init: str, name: str = "cosine") -> Curve:
    chosen = results.where(activation=activation, init=init)
    return chosen.curve("depth", lambda record: bootstrap(np.mean, record[name].values))


def _margin(results: Results) -> Sampled:
    """The least cosine minus its bound, of all networks."""
    gaps = [record.cosine.values - record.least.values for _, record in results.cells]
    return combined(lambda *each: float(np.min(each)), *(bootstrap(np.min, gap) for gap in gaps))


def _named(activation: str, init: str) -> str:
    return f"{init} {'linear' if activation == 'identity' else activation}"


def conclude(results: Results) -> list[Finding]:
    """Exponents of the angle in depth, of the spread of Jacobians, and angles beside what spectra say of them."""
    deepest, found = max(results.sizes.depths), []
    for activation in ACTIVATIONS:
        for init in INITS:
            isometric, named = (activation, init) in ISOMETRIC, _named(activation, init)
            predicted = about(0, 0.1) if isometric else about(-0.5, 0.1)
            source = "FSF: isometry aligns" if isometric else "free matrices: spread ~ L"
            found += _curve(results, activation, init).findings(f"cos theta_L ~ L^p, {named}", (source, predicted))
    for activation in ACTIVATIONS:
        for init in INITS:
            if (activation, init) == EXACT:
                continue
            isometric, named = (activation, init) in ISOMETRIC, _named(activation, init)
            predicted = ("isometry", about(0, 0.25)) if isometric else ("free matrices", about(1, 0.25))
            curve = _curve(results, activation, init, "spread")
            found += curve.findings(f"spread of squared singular values of d h_L / d h_0 ~ L^p, {named}", predicted)
    exact = bootstrap(np.max, results.one(activation=EXACT[0], init=EXACT[1], depth=deepest).spread.values)
    found.append(
        Finding(f"spread, {_named(*EXACT)}, L = {deepest}", "isometry, to rounding", at_most(1e-4), exact.estimate())
    )
    for activation in ACTIVATIONS:
        for init in INITS:
            record = results.one(activation=activation, init=init, depth=deepest)
            pairs = np.stack([record.cosine.values, record.predicted.values], axis=1)
            ratio = bootstrap(lambda pair: pair[:, 0].mean() / pair[:, 1].mean(), pairs).estimate()
            name = f"cos / (M_1 / sqrt(M_2)), {_named(activation, init)}, L = {deepest}"
            found.append(Finding(name, "FSF: spectrum of K", about(1, 0.1), ratio))
    for (activation, init), spread in SPREADS.items():
        cosine = bootstrap(np.mean, results.one(activation=activation, init=init, depth=deepest).cosine.values)
        closed = about(float(free_cosine(spread, deepest)), 0.03)
        found.append(
            Finding(
                f"cos theta_L, {_named(activation, init)}, L = {deepest}", "free matrices", closed, cosine.estimate()
            )
        )
    bound = "least cos - 2 sqrt(kappa) / (1 + kappa) of all networks"
    found.append(Finding(bound, "Kantorovich, kappa of K", at_least(-1e-3), _margin(results).estimate()))
    return found


def draw(results: Results) -> list[Panel]:
    """Angle and conditioning against depth, and one against the other."""
    cosines, spreads, against = [], [], []
    for activation in ACTIVATIONS:
        for init in INITS:
            name = _named(activation, init)
            cosine, spread = (_curve(results, activation, init, each) for each in ("cosine", "spread"))
            predicted = 0.0 if (activation, init) in ISOMETRIC else -0.5
            cosines.append(cosine.line(name, predicted, fitted=False))
            if (activation, init) != EXACT:  # 0 to rounding
                spreads.append(spread.line(name, fitted=False))
                against.append(Line(name, spread.values.values, cosine.values.values, cosine.values.half_widths))
    width, fine = results.sizes.width, np.geomspace(0.1, max(line.x.max() for line in against), 50)
    against.append(Line("(1 + spread / 3)^-1/2, free matrices", fine, (1 + fine / 3) ** -0.5, curve=True))
    return [
        Panel(f"alignment, n = {width}", "depth L", "cos theta_L", cosines),
        Panel("conditioning of d h_L / d h_0", "depth L", "spread of squared singular values", spreads),
        Panel("one against the other", "spread of squared singular values", "cos theta_L", against),
    ]


STUDY = Study(
    name="isometry",
    number=15,
    claim="well-conditioned layer-to-layer Jacobians imply alignment of features with minus the gradient",
    source="FSF section 3",
    setting="dense networks of one's own (Equinox), one input, ends frozen, eta_l = eta / (L |grad_l|^2), gains 1 "
    "(linear, tanh) and sqrt 2 (ReLU); the spread of eigenvalues is their variance over their squared mean",
    sizes={
        "smoke": Sizes(depths=(2, 4), width=16, seeds=3),
        "laptop": Sizes(),
        "accelerator": Sizes(depths=(8, 16, 32, 64, 128), width=512, seeds=16),
    },
    cells=cells,
    measure=measure,
    conclude=conclude,
    draw=draw,
    cost=lambda cell: cell["depth"],
    least={"depths": 2},
)
