"""Records of studies by law, without training: those of every claim, and others by their exponents.

A law gives the record of every cell of a grid, with a scatter over seeds of a thousandth.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import xarray as xr

from nfd_jax import studies
from nfd_jax.studies import (
    _reuse,
    _study,
    alignment,
    collapse,
    control,
    degeneracy,
    diversity,
    isometry,
    nonlinearity,
    persistence,
    updates,
)
from nfd_jax.studies import speed_identity as identity
from nfd_jax.studies import stability as stable_rates
from nfd_jax.studies._stream import free_cosine

SEEDS, SCATTER = 8, 1e-3


def report(name, law=None, scale="laptop", **exponents):
    """The report of a study whose records are `law(cell, sizes, scattered)`; that of its claim if none is given."""
    study = studies.STUDIES[name]
    sizes, rng = study.sizes[scale], np.random.default_rng(0)

    def scattered(values, seeds=SEEDS):
        """Values of every seed, about the ones given."""
        values = np.asarray(values, dtype=float)
        return values * (1 + SCATTER * rng.standard_normal((seeds, *values.shape)))

    law = law or CLAIMED[name]
    found = [(cell, xr.Dataset(law(cell, sizes, scattered, **exponents))) for cell in _study.grid(study, sizes)]
    results = _study.Results(sizes, found)
    return _study.Report(study, scale, results, tuple(study.conclude(results)))


def width(cell, sizes, scattered, each=-0.5, mean=-1.0):
    """Deviations of both signs, equal in size, about a mean that is off along the targets."""
    signs = np.tile([1.0, -1.0], sizes.samples)[: sizes.samples]
    limit = 0.3 * signs
    if cell["width"] is None:
        return {"outputs": ("sample", limit), "errors": ("sample", np.full(sizes.samples, 1e-6))}
    deviation = np.where(np.arange(4096) % 2, 1.0, -1.0)[:, None] * float(cell["width"]) ** each
    return {"outputs": (("seed", "sample"), limit + signs * float(cell["width"]) ** mean + deviation)}


def depth(cell, sizes, scattered, power=-1.0, sign=1):
    pair = np.array([cell["depth"], 2 * cell["depth"]], dtype=float) ** power
    return {"loss": (("seed", "grid", "step"), 1 + sign * scattered(pair)[..., None])}


def reuse_of(
    cell, sizes, scattered, *, block=-1.0, sign=1.0, gap=0.0, below=-2.0, near=0.0, n_power=0.0, time=2.0, closed=1.0
):
    """Responses of L^block each, L^`sign` more of them of one sign than of the other, of L^below from the block below
    and a share of L^near / 4 from the nearest quarter; one network's chance at step 0; gaps of L^gap n^(n_power / 2)
    T^time; of the closed form's first steps the share `closed`."""
    if cell["kind"] == "first step":
        deficit = closed * _reuse._delta(cell["horizon"], cell["activation"])
        return {"change": (("closure", "seed"), scattered([1.0, 1 - deficit]).T)}
    L, T = float(cell["depth"]), cell["horizon"]
    n, step = float(cell.get("width", 1)), np.minimum(sizes.steps, 1.0)[:, None]
    size = L**gap * n ** (n_power / 2) * T**time * (cell.get("backward", cell.get("closure")) in ("tied", "coupled"))
    outputs = scattered(size * np.ones((len(sizes.steps), sizes.samples)))
    record = {"outputs": (("seed", "step", "sample"), outputs), "loss": (("seed", "step"), outputs[..., 0])}
    if cell.get("backward") != "tied":
        return record
    blocks = np.arange(cell["depth"])
    signs = np.where(blocks < (L + L**sign) / 2, 1.0, -1.0) * np.ones((sizes.samples, 1))
    chance = np.random.default_rng(1).choice([-1, 1], (SEEDS, 1, *signs.shape)) * (n * L) ** -0.5
    response = scattered(L**block * n ** (n_power / 2) * step[..., None] * signs)
    axes = ("seed", "step", "sample")
    for direction in _reuse.DIRECTIONS:
        record[direction] = ((*axes, "block"), response + chance * (step[..., None] == 0))
    if cell["distances"]:
        quarter = blocks[1:] <= max(1, L / 4)
        share = L**near / 4
        shares = np.where(quarter, share / quarter.sum(), (1 - share) / max(1, (~quarter).sum()))
        each = step[..., None] * np.ones((sizes.samples, 1))
        record["by_distance"] = ((*axes, "distance"), scattered(shares * each))
        record["neighbour"] = ((*axes, "upper_block"), scattered(L**below * np.ones(cell["depth"] - 1) * each))
    return record


def independence_of(cell, sizes, scattered, held=(0.02, -1.0), lost=(0.1, 0.5)):
    """The gap of depth-muP networks, and of the others: amplitude and exponent in L."""
    amplitude, power = held if cell["architecture"] == "depth_mup" else lost
    gap = amplitude * cell["depth"] ** power * (cell["backward"] == "untied")
    rates, at = np.arange(len(sizes.rates))[:, None], np.linspace(1, 0, 7)
    losses = 0.2 + 0.8 * at + 0.1 * rates * (at < 1) + gap * (at == 0)
    axes = ("rate", "seed", "evaluation")
    record = {name: (axes, scattered(losses, sizes.seeds).swapaxes(0, 1)) for name in ("train", "test")}
    return record | {"diverged_at": (axes[:2], np.full((len(sizes.rates), sizes.seeds), -1)), "steps": (axes[2:], at)}


def degeneracy_of(cell, sizes, scattered, power=0.0, lowest=0.5):
    along = np.linspace(1, lowest, sizes.steps) * (cell["width"] or 1.0) ** power
    return {place: (("seed", "update"), scattered(along)) for place in degeneracy.PLACES}


def scaling(cell, sizes, scattered, over_width=-1.0, over_depth=-1.0, sign=1):
    """Excesses of a sixteenth and a tenth of the limit at the smallest sizes."""
    limit = 0.3 + (0.0 if cell["depth"] is None else sign * 0.019 * (cell["depth"] / min(sizes.depths)) ** over_depth)
    if cell["width"] is None:
        return {"loss": limit, "half_width": 1e-6}
    return {"loss": ("seed", limit + sign * scattered(0.031 * (cell["width"] / min(sizes.widths)) ** over_width))}


def collapse_of(cell, sizes, scattered, inner=collapse.INNER, outer=-0.5, change=None):
    """Of the first change of f the recursion's, or what `change` makes of it."""
    L, row, place = float(cell["depth"]), cell["parametrization"], sizes.depths.index(cell["depth"])
    expected = _recursion(sizes.depths, cell["backward"])
    if change is not None:
        expected = change(expected, np.array(sizes.depths, dtype=float))
    moved = np.ones(sizes.steps) * [step > 0 for step in range(sizes.steps)]
    return {
        "inner": (("seed", "update"), scattered(L ** inner[row] * moved)),
        "outer": (("seed", "update"), scattered(L**outer * moved)),
        "change": ("seed", cell["learning_rate"] * scattered(expected[f"change, {collapse.ROWS[row]}"][place])),
        "loss": (("seed", "step"), scattered(np.ones(sizes.steps + 1))),
    }


@functools.cache
def _recursion(depths, backward):
    return collapse._expected(replace(collapse.Sizes(), depths=depths), backward)


def transfer(cell, sizes, scattered, stays=0.0, drifts=0.3, limit=1.0, gain=-0.1):
    """Parabolas in log2 of the rate about an optimum of L^stays, or L^drifts in the one row that no source has stay;
    `limit`: the limit's optimum over that of networks. Losses fall with depth as L^gain."""
    moving = (cell["block"], cell["parametrization"]) == ("pre_inner", "depth_mup")
    optimum = (cell["depth"] / 8) ** (drifts if moving else stays) * (limit if cell["width"] is None else 1.0)
    rates = np.log2(sizes.lowest * sizes.ratio ** np.arange(sizes.rates))
    losses = 0.1 * cell["depth"] ** gain * np.exp(0.2 * (rates - np.log2(optimum)) ** 2)
    return {"loss": (("rate", "seed"), scattered(losses, 2 * SEEDS).T)}


def plane_of(cell, sizes, scattered, start=lambda alpha: np.maximum(0.5 - alpha, 0), step=0.0):
    """Exponents of the theory, that of a step shifted by `step`."""
    alpha, gamma = np.meshgrid(sizes.alphas, sizes.gammas, indexing="ij")
    powers = {"initial": start(alpha), "features": 1 - alpha - gamma + step, "outputs": 1 - alpha - gamma + step}
    axes = ("alpha", "gamma", "seed")
    return {name: (axes, np.moveaxis(scattered(cell["depth"] ** power), 0, -1)) for name, power in powers.items()}


def diversity_of(cell, sizes, scattered, trained=diversity.EXPONENTS, untrained=0.5):
    lags = 2.0 ** np.arange(int(math.log2(cell["depth"]))) / cell["depth"]
    curves = np.stack([lags**untrained, lags ** trained[cell["parametrization"]]])
    return {name: (("seed", "time", "lag"), scattered(curves)) for name in diversity.FIELDS}


def nonlinearity_of(cell, sizes, scattered, best="abs"):
    """One activation with a lower loss and more of both diversities, the last rate but one best for all."""
    ahead = cell["activation"] == best if best == "abs" else cell["activation"] != "abs"
    rates = 1 + np.abs(np.arange(len(sizes.learning_rates)) - len(sizes.learning_rates) + 2)
    near, kappa = (0.3, 0.4) if ahead else (0.2, 0.2)
    sizes_of = np.array([near, near * 2 ** (1 - kappa), 1.0]) * np.ones((len(rates), 2, 1))
    record = {
        name: (("rate", "seed", "time", "kind"), scattered(sizes_of).swapaxes(0, 1)) for name in nonlinearity.FIELDS
    }
    return record | {"loss": (("rate", "seed"), scattered((0.5 if ahead else 0.8) * rates).T)}


def interaction(cell, sizes, scattered, falling="depth_mup"):
    """Both ratios fall as L^-1/2 in one row."""
    squares = float(cell["depth"]) ** (-1 if cell["row"] == falling else 0)
    together, movement = scattered([squares, squares]).T
    return {"together": ("seed", together), "movement": ("seed", movement), "first_order": ("seed", np.ones(SEEDS))}


def identity_of(cell, sizes, scattered, rest=1.0, left=0.0, fails=1.0, tied=0.0, approach=-0.5):
    """A rest of rate^`rest`, and one of `left` at no rate; `fails` of the closed form where g is no derivative, and a
    failure of `tied` where it is; differences from the limit of n^`approach`."""
    kind = cell["kind"]
    if kind in identity.VARIANTS:
        rate = np.array(sizes.rates)
        return {"rest": (("seed", "rate", "layer"), scattered((rate**rest + left)[:, None] * np.ones(sizes.depth)))}
    axes, width = ("seed", "layer"), cell["width"]
    layers = np.arange(1, sizes.blocks + 1)
    deficits = np.array([identity.deficit(sizes.blocks, int(layer)) for layer in layers])
    gap = tied * np.ones(len(layers)) if identity.TIED[kind] else fails * deficits
    off = 0.0 if width is None else np.where(np.arange(SEEDS) % 2, 1.0, -1.0)[:, None] * float(width) ** approach
    size = 0.5 * (1 + off * np.ones((SEEDS, len(layers))))
    return {"rest": (axes, scattered(gap)), "cosine": (axes, size), "speed": (axes, size)}


def alignment_of(cell, sizes, scattered, power=-0.5, curve=0.0, small=-1.0, large=-0.25, spectrum=1.0):
    """Powers in l or L where the claim has them, closed forms otherwise, `spectrum` times the predicted cosine."""
    layers, family = np.arange(1, cell["depth"] + 1), cell["family"]
    closed = alignment.scales_of(family, cell["scale"], max(sizes.depths)).cosine(max(sizes.depths))
    cosine = {
        alignment.MLP: 1.22 * layers**power,
        alignment.SMALL: 1 - 0.3 * cell["depth"] ** small * layers / layers[-1],
        alignment.LARGE: cell["depth"] ** large * np.ones(len(layers)),
    }.get(family, closed * (cell["depth"] / max(sizes.depths)) ** curve * np.ones(len(layers)))
    measured = scattered(cosine) if family != alignment.SMALL else 1 - scattered(1 - cosine)
    record = {"cosine": (("seed", "layer"), measured)}
    return record | ({"predicted": (("seed", "layer"), measured / spectrum)} if cell["moments"] else {})


def isometry_of(cell, sizes, scattered, aligned=0.0, others=-0.5, spread=1.0, spectrum=1.0, bound=0.1):
    """Powers of the isometric pairs and of the others, and of the others' spread."""
    pair, deepest = (cell["activation"], cell["init"]), max(sizes.depths)
    isometric, relative = pair in isometry.ISOMETRIC, cell["depth"] / deepest
    end = float(free_cosine(isometry.SPREADS.get(pair, 0.0 if isometric else 1.0), deepest))
    cosine = scattered(end * relative ** (aligned if isometric else others))
    record = {"cosine": cosine, "predicted": cosine / spectrum, "least": cosine - bound}
    record["spread"] = scattered(1e-7 if pair == isometry.EXACT else 0.5 if isometric else cell["depth"] ** spread)
    return {name: ("seed", values) for name, values in record.items()}


def control_of(cell, sizes, scattered, grows=0.0, held=0.0, over=0.5, behind=-1.0, beside=0.0):
    """Sensitivities at the start of the closed form times L^-grows, of L^held under control, and over training of
    L^over under other rules; losses under control a factor e^behind of others' in MLPs, e^beside in ResNets; the second
    rate best for all."""
    L, architecture = float(cell["depth"]), cell["architecture"]
    if cell["kind"] == "start":
        expected = L**-grows / control._cosine(architecture, cell["depth"])
        values = {"table": expected, "source": L**held, "control": L**held}
        return {name: ("seed", scattered(each)) for name, each in values.items()}
    mine, mlp = cell["rule"] == "control", architecture == "mlp"
    last = np.exp(mine * (behind if mlp else beside)) * (1 + np.abs(np.arange(sizes.rates) - 1))
    losses = scattered(last[:, None] ** np.linspace(0, 1, sizes.steps + 1), sizes.train_seeds)
    speed = L ** (held if mine else over) * np.ones((sizes.rates, sizes.steps // control.APART))
    axes = ("seed", "rate")
    return {"loss": ((*axes, "step"), losses), "speed": ((*axes, "apart"), scattered(speed, sizes.train_seeds))}


def regimes_of(cell, sizes, scattered, shift=0.0, alike=False):
    """Powers that counting has, or others: of outputs, features and gradients at every rate and step; `alike`: those of
    cross-entropy under squared loss too."""
    a, t = np.array(sizes.exponents)[:, None], np.arange(sizes.steps + 1)
    hidden = cell["layers"] > 2
    if cell["loss"] == "mse" and not alike:
        logits, gradients = t * (1 - a), t * (1 - a)
        features = (0.5 if hidden else -0.5) - a + (t - 1) * (1 - a)
    else:
        logits, gradients = 1 - a + 0 * t, np.maximum(0.5 - a, 0) + 0 * t
        features = ((1 - 2 * a) * np.where(a < 0.5, 1, 0.5) if hidden else -0.5 - a) + 0 * t
    powers = {"logits": logits, "features": features, "gradients": gradients}
    found = {name: scattered(cell["width"] ** (power + shift)).swapaxes(0, 1) for name, power in powers.items()}
    return {name: (("exponent", "seed", "step"), values) for name, values in found.items()}


def stability_of(cell, sizes, scattered, shift=0.0):
    power = stable_rates.POWERS[cell["row"], cell["optimizer"]][cell["loss"] == "mse"] + shift
    return {name: ("seed", scattered(float(cell["width"]) ** power)) for name in (*stable_rates.RULES.values(), "best")}


def updates_of(cell, sizes, scattered, shift=0.0):
    found, at = {}, np.ones(len(sizes.at))
    for (part, matrix), power in updates.parts(cell["layers"]).items():
        values = scattered(cell["width"] ** (power + shift) * at)
        if matrix is None:
            found[part] = (("seed", "step"), values)
        else:  # those between the first and the last are as the last
            own = found.get(part, (None, np.repeat(values[..., None], cell["layers"] - 2, axis=-1)))[1]
            own[..., matrix:] = values[..., None]
            found[part] = (("seed", "step", "matrix"), own)
    return found


def persistence_of(cell, sizes, scattered, shift=0.0):
    n, place = float(cell["width"]), int(cell["a"] == persistence.ONE)
    drift = 3.0 if cell["engine"] == "dense" and shift else 1.0
    found = {
        name: scattered(n ** (powers[place] + shift) * drift) for name, (_, *powers) in persistence.QUANTITIES.items()
    }
    signs = np.tile([1.0, -1.0], SEEDS // 2)
    for name, (_, power) in persistence.SPREADS.items():
        found[name] = n**shift * drift * (10 + signs * n**power)
    return {name: ("seed", values) for name, values in found.items()} | {
        "right": ("seed", 1 - shift * scattered(n > 1e4)),
        "loss": ("seed", scattered(1e-3)),
    }


CLAIMED = {
    "width": width,
    "depth": depth,
    "reuse": reuse_of,
    "independence": independence_of,
    "degeneracy": degeneracy_of,
    "scaling": scaling,
    "collapse": collapse_of,
    "transfer": transfer,
    "plane": plane_of,
    "diversity": diversity_of,
    "nonlinearity": nonlinearity_of,
    "interaction": interaction,
    "identity": identity_of,
    "alignment": alignment_of,
    "isometry": isometry_of,
    "control": control_of,
    "regimes": regimes_of,
    "stability": stability_of,
    "updates": updates_of,
    "persistence": persistence_of,
}
