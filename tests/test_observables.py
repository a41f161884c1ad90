"""Observables against what one can work out by hand from the features and gradients of the same run."""

from dataclasses import replace

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import layers_of, prepare, run_both

import nfd_jax as nfd
from nfd_jax import explicit, finite, observables, training
from nfd_jax.architecture import Layers
from nfd_jax.matrices import RevealedMatrices
from nfd_jax.noise import FORWARD, AbstractNoise
from nfd_jax.optimizers import Optimizer

RATE, DEPTH, STEPS = 0.7, 3, 3


def everything(sweep):
    found = observables.reuse(sweep) | observables.effective_updates(sweep)
    return found | {"features": sweep.features, "gradients": sweep.gradients}


@pytest.fixture(scope="module")
def run():
    """A linear network, whose images of both directions can be read off its features and gradients."""
    task = nfd.datasets.digits(2)
    model = nfd.ResNet(DEPTH, "identity")
    one = nfd.solve_network(task, model, width=24, steps=STEPS, learning_rate=RATE, seeds=1, observe=everything)
    return {name: values[0] for name, values in one.observed.items()}, task, one.outputs[0]


def learned_images(run, step, layer):
    """Theory section 2: the part of W^k x / sqrt(n) that training has added, and that of W^kT g / sqrt(n)."""
    observed, task, outputs = run
    h, g, n = observed["features"], observed["gradients"], observed["features"].shape[-1]
    chi = (outputs[:STEPS, :, 0] - task.targets[:, 0]) / len(task.targets)
    factor = RATE * DEPTH**-0.5
    forward = [
        -factor * np.einsum("a,an,ab->bn", chi[j], g[j, layer + 1], h[j, layer] @ h[step, layer].T / n)
        for j in range(step)
    ]
    backward = [
        -factor * np.einsum("a,an,ab->bn", chi[j], h[j, layer], g[j, layer + 1] @ g[step, layer + 1].T / n)
        for j in range(step)
    ]
    return sum(forward, np.zeros_like(h[0, 0])), sum(backward, np.zeros_like(h[0, 0]))


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("layer", range(DEPTH))
def test_effective_updates(run, step, layer):
    images, _ = learned_images(run, step, layer)
    np.testing.assert_allclose(
        run[0]["effective_update"][step, layer], np.sqrt(np.mean(images**2, axis=1)), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("step", range(STEPS))
def test_reuse(run, step):
    """The coordinates are as long as the projection of the initial image on the span of the opposite queries."""
    h, g = run[0]["features"][step], run[0]["gradients"][step]
    sums = {"forward": 0.0, "backward": 0.0}
    for layer in range(DEPTH):
        up, down = learned_images(run, step, layer)
        images = {
            "forward": (h[layer + 1] - h[layer]) * DEPTH**0.5 - up,
            "backward": (g[layer] - g[layer + 1]) * DEPTH**0.5 - down,
        }
        opposite = {
            "forward": run[0]["gradients"][:step, layer + 1].reshape(-1, h.shape[-1]),
            "backward": run[0]["features"][: step + 1, layer].reshape(-1, h.shape[-1]),
        }
        for direction, image in images.items():
            left, singular, _ = np.linalg.svd(opposite[direction].T, full_matrices=False)
            span = left[:, singular > 1e-9 * singular.max(initial=0)]
            inside = span @ (span.T @ image.T)
            sums[direction] = sums[direction] + inside.T
            coordinates = run[0][f"{direction}_reuse"][step, layer]
            np.testing.assert_allclose(
                np.sum(coordinates**2, axis=0), np.mean(inside**2, axis=0), rtol=1e-8, atol=1e-12
            )
    for direction, total in sums.items():
        expected = np.sqrt(np.mean(np.broadcast_to(total, h[0].shape) ** 2, axis=1))
        np.testing.assert_allclose(run[0][f"{direction}_reuse_sum"][step], expected, rtol=1e-8, atol=1e-12)


def test_sizes_and_diversity():
    def observe(sweep):
        return observables.sizes(sweep) | observables.diversity(sweep) | {"h": sweep.features, "g": sweep.gradients}

    task = nfd.datasets.digits(2)
    found = nfd.train_networks(task, nfd.ResNet(5), width=8, steps=1, seeds=1, observe=observe).observed
    for name, vectors in (("feature", found["h"][0, 0]), ("gradient", found["g"][0, 0])):
        np.testing.assert_allclose(found[f"{name}_size"][0, 0], np.sqrt((vectors**2).mean(-1)), rtol=1e-12)
        moved = [np.sqrt(((vectors[lag:] - vectors[:-lag]) ** 2).mean()) for lag in (1, 2)]
        np.testing.assert_allclose(found[f"{name}_diversity"][0, 0], moved, rtol=1e-12)


# ------------------------------------------------------------------ effective updates on every road


class GivenMatrices(AbstractNoise):
    """Normals of which revealed matrices become given ones: whatever of an image is new is that of the matrix."""

    key: jax.Array
    forward: jax.Array
    backward: jax.Array

    def draw(self, direction, layer, step, directions, *, keep):
        matrix = self.forward[layer].T if direction == FORWARD else self.backward[layer]
        return directions @ matrix / directions.shape[1] ** 0.5, self


def images(sweep):
    return {"images": sweep.effective_images()} | observables.effective_updates(sweep)


ROADS = {
    "pre": (nfd.ResNet(3, "tanh"), "depth_mup", False),
    "post, untied": (nfd.ResNet(2, "abs", block="post", centred=True), "depth_mup", True),
    "inner, untied": (nfd.ResNet(2, "tanh", block="inner"), "depth_mup_corrected", True),
    "pre_inner": (nfd.ResNet(2, "tanh", block="pre_inner"), "complete_p", False),
    "inner_post": (nfd.ResNet(33, "tanh", block="inner_post"), "complete_p", False),  # a stack instead of arrays
    "mlp, sp": (nfd.MLP(3, "tanh"), "sp", False),
}


@pytest.mark.parametrize("name", ROADS)
def test_effective_images_of_all_roads(name):
    """One network on three roads, with momentum and decay: autodiff, explicit sweeps and revealed matrices."""
    (model, row, untied), task, width = ROADS[name], nfd.datasets.digits(3), 48
    options = {"parametrization_name": row, "momentum": 0.5, "weight_decay": 0.2, "train_input": True}
    problem = prepare(
        task, model, width=width, steps=4, learning_rate=0.01 if row == "sp" else 0.3, observe=images, **options
    )
    shape = finite.Shape(width, task.dimension, task.outputs, untied)
    network = finite.create_network(jax.random.key(3), model, problem.settings.row, shape)
    layers = layers_of(network)  # a run gives up its network
    sweeps, autodiff = run_both(problem, network, task)
    dense = layers.hidden
    backward = dense.forward if dense.backward is None else dense.backward
    noise = GivenMatrices(jax.random.key(0), dense.forward, backward)
    options = {"depth": len(dense.forward), "width": width, "steps": 4, "batch": 3, "coupled": not untied}
    hidden = RevealedMatrices.create(noise, **options, dtype=jnp.dtype(float))
    state = explicit.start(problem.settings, Layers(layers.input, hidden, layers.readout))
    revealed = helpers.run(
        explicit.EXPLICIT, problem, helpers.copied(state), task.inputs / task.dimension**0.5, task.targets
    )
    found = autodiff.observed["images"]
    assert found.shape == (4, model.matrices, 3, width)
    assert not found[0].any()
    assert np.all(np.abs(found[1:]).max(axis=(0, 2, 3)) > 1e-4)
    for other in (sweeps, revealed):
        np.testing.assert_allclose(other.observed["images"], found, rtol=0, atol=1e-11 * np.abs(found).max() + 1e-13)
    size = np.sqrt((found**2).mean(axis=-1))
    np.testing.assert_allclose(autodiff.observed["effective_update"], size, rtol=1e-12)


@pytest.mark.parametrize(("optimizer", "decay"), [("adam", 0.0), ("adamw", 0.3)])
def test_effective_images_under_adam(optimizer, decay):
    """From the weights before training and now, by hand."""
    model, task, width, rate, steps = nfd.ResNet(2, "tanh", block="pre_inner"), nfd.datasets.digits(3), 16, 0.05, 4
    rule = Optimizer.create(optimizer, 0.0, decay)
    problem = prepare(task, model, width=width, steps=steps, learning_rate=rate, observe=images)
    settings = replace(problem.settings, optimizer=rule)
    network = finite.create_network(jax.random.key(3), model, settings.row, finite.Shape(width, task.dimension, 1))
    state, inputs, targets = training.start(settings, network), jnp.asarray(task.inputs), jnp.asarray(task.targets)
    step = jax.jit(training.train_step, static_argnums=(0, 1))
    for k in range(steps):
        kept = (1 - rate * decay) ** k
        now, expected = state.network, []
        h = np.asarray(inputs) @ np.asarray(now.input).T / task.dimension**0.5
        for block in range(2):
            x = np.tanh(h)
            for role in ("inner", "hidden"):
                matrix, before = (np.asarray(getattr(net, role)[block][0][0]) for net in (now, network))
                expected.append(x @ (matrix - kept * before).T / width**0.5)
                x = x @ matrix.T / width**0.5
                x = np.tanh(x) if role == "inner" else x
            h = h + 2**-0.5 * x
        state, record = step(settings, None, state, jnp.asarray(k), jnp.asarray(rate), inputs, targets)
        np.testing.assert_allclose(record.observed["images"], expected, rtol=0, atol=1e-13)
    assert np.abs(expected).min() > 0


def test_members_have_initial_matrices_of_their_own(tmp_path):
    """Side by side, and from a checkpoint."""
    task, options = nfd.datasets.digits(2), {"width": 8, "optimizer": "adamw", "weight_decay": 0.1, "observe": images}
    one, model = {"checkpoint": tmp_path, "checkpoint_every": 1}, nfd.ResNet(2, block="inner")
    both = nfd.train_networks(task, model, steps=2, seeds=2, **options).observed["effective_update"]
    alone = nfd.train_networks(task, model, steps=2, seeds=[1], **options, **one).observed["effective_update"]
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-9)
    assert both.shape == (2, 2, 4, 2)
    assert np.all(both[:, 1] > 0)
    assert not both[:, 0].any()
    again = nfd.train_networks(task, model, steps=2, seeds=[1], **options, **one).observed["effective_update"]
    np.testing.assert_array_equal(again, alone)


def test_initial_matrices_are_kept_only_where_something_is_observed():
    task, model = nfd.datasets.digits(2), nfd.ResNet(2, block="inner")
    plain, observed = (prepare(task, model, width=8, observe=observe) for observe in (None, images))
    sizes = [training.member_bytes(problem, task, model, 8, "untied") for problem in (plain, observed)]
    assert sizes[1] - sizes[0] == 8 * 4 * 8**2
    network = finite.create_network(jax.random.key(0), model, plain.settings.row, finite.Shape(8, task.dimension, 1))
    assert training.start(plain.settings, network).initial is None
    kept = jax.tree.leaves(training.start(observed.settings, network).initial)
    assert sum(leaf.size for leaf in kept) == 4 * 8**2


def test_reuse_of_dense_networks_is_refused(task):
    with pytest.raises(ValueError, match="reuse needs revealed matrices: use solve_network"):
        nfd.train_networks(task, nfd.ResNet(2), width=8, steps=1, seeds=1, observe=observables.reuse)


def test_reuse_of_other_blocks_is_refused(task):
    with pytest.raises(ValueError, match=r"reuse is defined for ResNet\(block='pre'\)"):
        nfd.solve_network(task, nfd.ResNet(2, block="post"), width=8, steps=1, seeds=1, observe=observables.reuse)
