"""Observables against what one can work out by hand from the features and gradients of the same run."""

import numpy as np
import pytest

import nfd_jax as nfd
from nfd_jax import observables

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


@pytest.mark.parametrize("observe", [observables.reuse, observables.effective_updates])
def test_dense_networks_are_refused(observe, task):
    with pytest.raises(ValueError, match=f"{observe.__name__} needs revealed matrices: use solve_network"):
        nfd.train_networks(task, nfd.ResNet(2), width=8, steps=1, seeds=1, observe=observe)


def test_reuse_of_other_blocks_is_refused(task):
    with pytest.raises(ValueError, match=r"reuse is defined for ResNet\(block='pre'\)"):
        nfd.solve_network(task, nfd.ResNet(2, block="post"), width=8, steps=1, seeds=1, observe=observables.reuse)
