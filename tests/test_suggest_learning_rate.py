"""The suggested learning rate: the sharpness against a dense kernel, the limit's kernel, and training itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from helpers import sampling_bound
from scipy.special import softmax

import nfd_jax as nfd
from nfd_jax import analytic
from nfd_jax.dynamics import module
from nfd_jax.parametrization import PARAMETRIZATIONS, Role

RNG = np.random.default_rng(0)
INPUTS, CLASSES = RNG.normal(size=(4, 3)), np.array([0, 2, 1, 2])
TASKS = {
    "mse": nfd.Task(INPUTS, RNG.normal(size=(4, 2))),
    "one output": nfd.Task(INPUTS, RNG.normal(size=4)),
    "cross_entropy": nfd.Task(INPUTS, CLASSES, loss="cross_entropy"),
}


def dense_sharpness(task, model, row, width, seed, trained, richness):
    """The largest eigenvalue of the kernel made from the derivatives of every sample's outputs, times a Hessian by
    hand."""
    row = PARAMETRIZATIONS[row]
    shape = module.Shape(width, task.dimension, task.outputs)
    network = module.create_network(jax.random.key(seed), model, row, shape, richness)
    fields = {role: getattr(network, role) for role in trained}

    def outputs(changed, x):
        own = {name: getattr(network, name) for name in ("input", "inner", "hidden", "readout")} | changed
        return module.Network(**own, model=model, row=row, richness=richness)(x[None])[0]

    sizes = {"width": width, "depth": model.depth, "dimension": task.dimension}
    rows = []
    for x in jnp.asarray(task.inputs):
        slopes = jax.jacrev(outputs)(fields, x)
        flat = [
            np.asarray(leaf).reshape(task.outputs, -1) * math.sqrt(row[Role(role)].sgd(**sizes)) * richness
            for role in trained
            for leaf in jax.tree.leaves(slopes[role])
        ]
        rows.append(np.concatenate(flat, axis=1))
    jacobian = np.concatenate(rows)  # samples x outputs, weights
    count = task.samples * task.outputs
    hessian = np.eye(count) / task.samples
    if task.loss == "cross_entropy":
        hessian = np.zeros((count, count))
        for index, x in enumerate(jnp.asarray(task.inputs)):
            p = np.exp(outputs(fields, x))
            p = p / p.sum()
            place = slice(index * task.outputs, (index + 1) * task.outputs)
            hessian[place, place] = (np.diag(p) - np.outer(p, p)) / task.samples
    return np.linalg.eigvals(jacobian @ jacobian.T @ hessian).real.max()


@pytest.mark.parametrize(
    ("model", "row", "loss", "options"),
    [
        (nfd.ResNet(3, "tanh"), "depth_mup", "mse", {}),
        slow(nfd.ResNet(3, "tanh"), "mup", "one output", {"train_input": True, "train_readout": True}),
        slow(nfd.ResNet(2, "gelu", block="post", centred=True), "complete_p", "cross_entropy", {"train_readout": True}),
        (nfd.ResNet(2, "relu", block="inner"), "depth_mup_corrected", "mse", {"richness": 0.5}),
        (nfd.ResNet(2, "tanh", block="inner_post"), "sp", "cross_entropy", {"train_input": True, "richness": 2.0}),
        slow(nfd.MLP(3, "relu"), "ntp", "cross_entropy", {"train_input": True, "train_readout": True}),
    ],
)
def test_sharpness_of_the_dense_kernel(model, row, loss, options):
    """To the precision of the power iteration: a relative change of 1e-5 a round leaves a hundred times as much where
    the second eigenvalue is within half a percent of the first."""
    task = TASKS[loss]
    found = nfd.suggest_learning_rate(task, model, width=6, seeds=(3,), parametrization=row, **options)
    trained = [name for name in ("input", "readout") if options.get(f"train_{name}")] + ["hidden"]
    trained += ["inner"] if model.structure.matrices == 2 else []
    expected = dense_sharpness(task, model, row, 6, 3, trained, options.get("richness", 1.0))
    np.testing.assert_allclose(found.sharpness, [expected], rtol=1e-3)
    assert found.learning_rate == pytest.approx(1 / expected, rel=1e-3)
    assert found.stable_below == 2 * found.learning_rate
    assert np.isnan(found.standard_error)
    assert "±" not in str(found)


def test_sharpness_of_the_limit():
    """The tangent kernel of infinite width at the same depth, within the error over seeds and a bias of order 1 / n."""
    width, seeds, depth = 256, 16, 4
    task = nfd.Task(INPUTS, RNG.normal(size=4))
    kernel = analytic.tangent_kernel("relu", INPUTS @ INPUTS.T / 3, depth)
    expected = np.linalg.eigvalsh(kernel)[-1] / task.samples
    found = nfd.suggest_learning_rate(task, nfd.ResNet(depth), width=width, seeds=seeds)
    gap = abs(found.sharpness.mean() - expected)
    assert gap < sampling_bound(found.sharpness) + 10 * expected / width
    assert found.standard_error == pytest.approx(
        found.sharpness.std(ddof=1) / 4 / found.sharpness.mean() ** 2, rel=1e-12
    )
    assert found.standard_error < 0.1 * found.learning_rate


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_training_is_stable_below_the_bound_and_not_above(loss):
    """Where training is linear: the targets are the network's own outputs, but for a little. At a rate of 1 + x times
    the bound, the error along the first eigenvector is multiplied by -(1 + 2 x) a step."""
    model, options = nfd.ResNet(2, "tanh"), {"seeds": (5,), "width": 32}
    targets = nfd.train_networks(
        nfd.Task(INPUTS, np.ones((4, 3))), model, steps=1, learning_rate=0.0, **options
    ).outputs[0, 0]
    targets = targets + 1e-7 * RNG.normal(size=targets.shape)
    targets = softmax(targets, axis=-1) if loss == "cross_entropy" else targets
    task = nfd.Task(INPUTS, targets, loss=loss)
    bound = nfd.suggest_learning_rate(task, model, **options).stable_below
    for excess in (-0.03, 0.03):
        f = nfd.train_networks(task, model, steps=100, learning_rate=(1 + excess) * bound, **options).outputs[0]
        f = softmax(f, axis=-1) if loss == "cross_entropy" else f
        error = np.linalg.norm((f - task.targets).reshape(len(f), -1), axis=1)
        assert error[-1] < 1e-3
        if excess > 0:
            assert error[-1] / error[-2] == pytest.approx(1 + 2 * excess, abs=0.005)
        else:
            assert error[-1] < error[50] < error[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"seeds": ()}, "seeds must be at least one distinct integer"),
        ({"model": nfd.ResNet(math.inf)}, "depth must be a finite integer here, got inf"),
        ({"parametrization": "none"}, "unknown parametrization 'none'"),
        ({"richness": 0.0}, "richness must be a finite number above 0, got 0.0"),
        ({"width": 10**7}, "this run needs about .* GiB"),
        (
            {"model": nfd.ResNet(2, jnp.zeros_like)},
            r"there is no learning rate to suggest: .* \[0.0, 0.0\]",
        ),
        ({"model": nfd.ResNet(2, lambda x: x / 0)}, "there is no learning rate to suggest: .* nan"),
        (
            {"task": nfd.Task(np.eye(2), np.ones(2), loss=lambda f, y: jnp.abs(f - y)[:, 0])},
            "no learning rate to suggest: .* or the loss is linear",
        ),
    ],
)
def test_what_has_no_rate(monkeypatch, arguments, message):
    if "learning" not in message:
        monkeypatch.setattr("nfd_jax.tools.suggest_learning_rate._sharpness", lambda *_: pytest.fail("compiled"))
    options = {"task": TASKS["mse"], "model": nfd.ResNet(2), "width": 8, "seeds": 2} | arguments
    with pytest.raises(ValueError, match=message):
        nfd.suggest_learning_rate(options.pop("task"), options.pop("model"), **options)
