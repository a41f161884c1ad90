"""Observables against what one can work out by hand from the features and gradients of the same run, from dense
matrices, and from the recursion of linear networks."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick
from helpers import layers_of, prepare, run_both, sampling_bound, two_sample_p

import nfd_jax as nfd
from nfd_jax import observables
from nfd_jax.analytic import linear_dynamics
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.matrices.noise import BACKWARD, FORWARD, AbstractNoise
from nfd_jax.matrices.revealed import RevealedMatrices
from nfd_jax.parametrization import Role
from nfd_jax.solvers.networks import Networks

RATE, DEPTH, STEPS = 0.7, 3, 3


def everything(sweep):
    found = observables.reuse(sweep) | observables.signed_response(sweep) | observables.response_gradient(sweep)
    return found | observables.effective_updates(sweep) | {"features": sweep.features, "gradients": sweep.gradients}


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


def inner(a, b):
    return a @ b.T / a.shape[-1]


def new_directions(vectors, before):
    """Orthonormal rows that span what rows of `vectors` add to the orthonormal rows `before`."""
    rest = vectors - inner(vectors, before) @ before
    _, singular, rows = np.linalg.svd(rest / rest.shape[-1] ** 0.5, full_matrices=False)
    return rows[singular > 1e-9] * rest.shape[-1] ** 0.5


def response(vectors, queries, images, own):
    """Theory section 3, one opposite query block after the other: the rows that reuse adds to the images of `vectors`.

    `queries` and `images` of the opposite blocks, `(P, n)` each; `own[j]`: the queries of this direction that came
    before block j. The Gaussian part of an image is orthogonal to those, and what it has along `vectors` is response.
    """
    before, total = np.zeros((0, vectors.shape[-1])), np.zeros_like(vectors)
    for count, earlier in enumerate(own, 1):
        rows = new_directions(queries[count - 1], before)
        asked, found = np.concatenate(queries[:count]), np.concatenate(images[:count])
        known = np.linalg.lstsq(asked.T, rows.T, rcond=1e-9)[0].T @ found
        span = new_directions(earlier, np.zeros_like(before[:0]))
        total = total + inner(vectors, known - inner(known, span) @ span) @ rows
        before = np.concatenate([before, rows])
    return total


def responses(phi, slope, h, g, forward_images, backward_images, step, layer):
    """What reuse adds to the images of one block, forward and backward, `(P, n)` each, from features and gradients
    `(steps, L + 1, P, n)` and the images under the initial matrix `(steps, P, n)`."""
    x, above = phi(h[:, layer]), g[:, layer + 1]
    seen = [np.concatenate(x[: j + 1]) for j in range(step)]
    up = response(x[step], above, backward_images, seen)
    seen = [np.concatenate([np.zeros_like(above[0][:0]), *above[:j]]) for j in range(step + 1)]
    down = response(above[step], x, forward_images, seen)
    return up, slope(h[step, layer]) * down


@pytest.mark.parametrize("step", range(STEPS))
def test_reuse(run, step):
    """In a linear network all images can be read off: the part along earlier queries, without their own past."""
    observed = run[0]
    h, g = observed["features"], observed["gradients"]
    sums = {"forward": 0.0, "backward": 0.0}
    for layer in range(DEPTH):
        learned = [learned_images(run, k, layer) for k in range(STEPS)]
        up = np.stack([(h[k, layer + 1] - h[k, layer]) * DEPTH**0.5 - learned[k][0] for k in range(STEPS)])
        down = np.stack([(g[k, layer] - g[k, layer + 1]) * DEPTH**0.5 - learned[k][1] for k in range(STEPS)])
        found = responses(lambda h: h, np.ones_like, h, g, up, down, step, layer)
        signed = zip(sums, found, (g[step, layer + 1], h[step, layer]), strict=True)
        for direction, vectors, along in signed:
            sums[direction] = sums[direction] + vectors
            coordinates = observed[f"{direction}_reuse"][step, layer]
            squares = np.mean(vectors**2, axis=1)
            np.testing.assert_allclose(np.sum(coordinates**2, axis=0), squares, rtol=1e-8, atol=1e-12)
            expected = np.mean(vectors * along, axis=1)
            got = observed[f"{direction}_response"][step, layer]
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)
        gradient = np.mean(observed["response_gradient"][step, layer] * h[step, layer], axis=1)
        np.testing.assert_allclose(gradient, observed["forward_response"][step, layer], rtol=1e-8, atol=1e-12)
    for direction, total in sums.items():
        expected = np.sqrt(np.mean(total**2, axis=1))
        np.testing.assert_allclose(observed[f"{direction}_reuse_sum"][step], expected, rtol=1e-8, atol=1e-12)


def dense_responses(rng, width, task, depth, rate, steps):
    """Signed responses `(steps, 2, L, P)` of one tied tanh network with matrices as arrays (theory section 2)."""
    inputs, samples = task.inputs / task.dimension**0.5, task.samples
    u, v = rng.normal(size=(width, task.dimension)), rng.normal(size=width)
    start = rng.normal(size=(depth, width, width))
    weights, scale = start.copy(), (depth * width) ** -0.5
    h, g = (np.zeros((steps, depth + 1, samples, width)) for _ in range(2))
    up, down, found = np.zeros_like(h), np.zeros_like(h), np.zeros((steps, 2, depth, samples))
    phi, slope = np.tanh, lambda x: 1 / np.cosh(x) ** 2
    for k in range(steps):
        h[k, 0], g[k, depth] = inputs @ u.T, v
        for layer in range(depth):
            x = phi(h[k, layer])
            h[k, layer + 1] = h[k, layer] + scale * x @ weights[layer].T
            up[k, layer] = x @ start[layer].T / width**0.5
        for layer in reversed(range(depth)):
            g[k, layer] = g[k, layer + 1] + scale * slope(h[k, layer]) * (g[k, layer + 1] @ weights[layer])
            down[k, layer] = g[k, layer + 1] @ start[layer] / width**0.5
        for layer in range(depth):
            vectors = responses(phi, slope, h, g, up[:, layer], down[:, layer], k, layer)
            pairs = zip(vectors, (g[k, layer + 1], h[k, layer]), strict=True)
            found[k, :, layer] = [np.mean(each * along, axis=1) for each, along in pairs]
        chi = (h[k, depth] @ v / width - task.targets[:, 0]) / samples
        for layer in range(depth):
            weights[layer] -= rate * scale * (chi[:, None] * g[k, layer + 1]).T @ phi(h[k, layer])
    return found


def test_signed_response_of_dense_networks():
    """The same law with n x n matrices, whose responses are worked out from the matrices themselves."""
    task, members = nfd.datasets.digits(2), 96
    rng = np.random.default_rng(1)
    dense = np.stack([dense_responses(rng, 96, task, 3, 4.0, 3) for _ in range(members)])
    options = {"width": 96, "steps": 3, "learning_rate": 4.0, "seeds": members}
    run = nfd.solve_network(task, nfd.ResNet(3, "tanh"), observe=observables.signed_response, **options).observed
    revealed = np.stack([run["forward_response"], run["backward_response"]], axis=2)

    def compared(found):  # block 1 has no forward response but rounding: h_0 does not move
        forward, backward = found[:, 1:3, 0, 1:], found[:, 1:3, 1]
        return np.concatenate([forward.reshape(members, -1), backward.reshape(members, -1)], axis=1)

    assert two_sample_p(compared(dense), compared(revealed)) > 1e-3
    assert np.abs(dense[:, 2].mean(axis=0)).max() > 2 * np.max(sampling_bound(dense[:, 2]))


LINEAR = nfd.Task(np.array([[1.0, 0.0], [0.3, 0.9]]) * 2**0.5, np.array([[1.0], [-1.0]]))


def expected_responses(depth, rate, steps):
    """(T/L) sum_j A^{ij} <g^j, g^i> and (T/L) sum_i B^{ji} <h^i, h^j> of the linear network on `LINEAR`, at T = 1:
    (steps, 2, L, P), from the recursion of theory section 5."""
    limit = linear_dynamics(LINEAR.inputs @ LINEAR.inputs.T / 2, LINEAR.targets[:, 0], depth, 1.0, rate, steps)
    found = np.zeros((steps, 2, depth, LINEAR.samples))
    for k in range(steps):
        for a in range(LINEAR.samples):
            query = k * LINEAR.samples + a
            found[k, 0, :, a] = np.sum(limit.forward_response[:, query] * limit.gradients[1:, k], axis=-1)
            found[k, 1, :, a] = np.sum(limit.backward_response[:, k] * limit.features[:-1, query], axis=-1)
    return found / depth


def measured_responses(run, depth, steps):
    """(seeds, steps, 2, L, P), with the factor sqrt(T/L)."""
    values = [run[f"{direction}_response"][:, :steps] for direction in ("forward", "backward")]
    return np.stack(values, axis=2) * depth**-0.5


@pytest.mark.slow
def test_signed_response_of_linear_networks():
    """Networks of width n and 2n, extrapolated in 1/n, against the responses A and B of the limit."""
    depth, rate, steps, expected = 4, 0.7, 4, expected_responses(4, 0.7, 4)

    def networks(width, seeds):
        run = nfd.solve_network(
            LINEAR,
            nfd.ResNet(depth, "identity"),
            width=width,
            steps=steps,
            learning_rate=rate,
            seeds=range(width * 10_000, width * 10_000 + seeds),
            observe=observables.signed_response,
        )
        return measured_responses(run.observed, depth, steps)

    small, large = networks(64, 768), networks(128, 768)
    mean = 2 * large.mean(axis=0) - small.mean(axis=0)
    bound = 2 * sampling_bound(large) + sampling_bound(small)
    remainder = 24 / (64 * 128)  # as for outputs, in test_analytic
    assert np.all(np.abs(mean - expected) < bound + remainder)
    # the whole projection Qs <Z, x> is off by as much as the response from the second step on
    assert np.abs(expected).max() > 2 * (np.max(bound) + remainder)


def test_signed_response_of_the_limit():
    """Matched noise leaves a bias of order 1/n and, to linear networks, little chance."""
    depth, rate, steps, particles, expected = 4, 0.7, 4, 512, expected_responses(4, 0.7, 4)
    options = {"steps": steps, "learning_rate": rate, "particles": particles, "observe": observables.signed_response}
    runs = [nfd.solve_limit(LINEAR, nfd.ResNet(depth, "identity"), seed=seed, **options).observed for seed in range(12)]
    found = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    solutions = measured_responses(found, depth, steps)
    bound = sampling_bound(solutions) + 4 / particles
    assert np.all(np.abs(solutions.mean(axis=0) - expected) < bound)
    assert np.abs(expected).max() > 3 * np.max(bound)


def test_responses_are_the_a_and_b_of_theory():
    """Of linear networks, in all directions: sqrt(T/L) sum_j A^{ij} g^j and sqrt(T/L) sum_j B^{ji} h^j, with the A and
    B of the recursion, and the vectors j as they were queried, step by step."""
    depth, rate, steps, particles = 4, 0.7, 3, 512
    limit = linear_dynamics(LINEAR.inputs @ LINEAR.inputs.T / 2, LINEAR.targets[:, 0], depth, 1.0, rate, steps)

    def observe(snapshot):
        found = {name: [] for name in ("forward", "g", "backward", "h")}
        for layer in range(depth):
            h, g = snapshot.features[layer], snapshot.gradients[layer + 1]
            up, down = (snapshot.matrices.response(each, layer, snapshot.step) for each in (FORWARD, BACKWARD))
            parts = up.coordinates(h), up.along(g), down.coordinates(g), down.along(h)
            for name, part in zip(found, parts, strict=True):
                found[name].append(part)
        return {name: jnp.stack(parts) for name, parts in found.items()}

    pairs = []
    for seed in range(12):
        options = {"steps": steps, "learning_rate": rate, "particles": particles, "observe": observe, "seed": seed}
        run = nfd.solve_limit(LINEAR, nfd.ResNet(depth, "identity"), **options).observed
        for k in range(1, steps):
            # g is the same for both samples of a step; h is of every step and sample
            g = run["g"][:k, ..., 0]
            h = np.moveaxis(run["h"][: k + 1], 3, 1).reshape(2 * k + 2, depth, -1)
            now = slice(2 * k, 2 * k + 2)
            forward = np.einsum("lij,jlm->lmi", limit.forward_response[:, now, :k], g)
            backward = np.einsum("lj,jlm->lm", limit.backward_response[:, k, : 2 * k + 2], h)
            expected = depth**-0.5 * np.concatenate([forward, backward[..., None]], axis=-1)
            found = np.concatenate([run["forward"][k], run["backward"][k, ..., :1]], axis=-1)
            pairs.append([found, expected])
    found, expected = np.moveaxis(np.reshape(pairs, (12, steps - 1, 2, *pairs[0][0].shape)), 2, 0)
    bound = sampling_bound(found - expected) + 4 / particles
    assert np.all(np.abs((found - expected).mean(axis=0)) < bound)
    seen = np.any(
        np.abs(expected.mean(axis=0)) > 3 * bound, axis=(0, 2)
    )  # layers, two samples forward and one backward
    np.testing.assert_array_equal(seen[:, :2], np.arange(depth)[:, None] * np.ones((1, 2)) > 0)  # h_0 stands still
    assert seen[:, 2].sum() > 1


def test_sizes_and_diversity():
    def observe(sweep):
        return observables.sizes(sweep) | observables.diversity(sweep) | {"h": sweep.features, "g": sweep.gradients}

    task = nfd.datasets.digits(2)
    found = nfd.train_networks(task, nfd.ResNet(5), width=8, steps=1, seeds=1, observe=observe).observed
    for name, vectors in (("feature", found["h"][0, 0]), ("gradient", found["g"][0, 0])):
        np.testing.assert_allclose(found[f"{name}_size"][0, 0], np.sqrt((vectors**2).mean(-1)), rtol=1e-12)
        moved = [np.sqrt(((vectors[lag:] - vectors[:-lag]) ** 2).mean()) for lag in (1, 2)]
        np.testing.assert_allclose(found[f"{name}_diversity"][0, 0], moved, rtol=1e-12)


NEED_REVEALED = [
    observables.reuse,
    observables.signed_response,
    observables.response_gradient,
]


@pytest.mark.parametrize("observe", NEED_REVEALED)
def test_dense_networks_are_refused(observe, task):
    with pytest.raises(ValueError, match=f"{observe.__name__} needs revealed matrices: use solve_network"):
        nfd.train_networks(task, nfd.ResNet(2), width=8, steps=1, seeds=1, observe=observe)


# ------------------------------------------------------------------ effective updates on every road


class GivenMatrices(AbstractNoise):
    """Normals of which revealed matrices become given ones: whatever of an image is new is that of the matrix."""

    key: jax.Array
    forward: jax.Array
    backward: jax.Array

    def draw(self, direction, layer, step, directions, *, keep):
        matrix = jnp.where(direction == FORWARD, self.forward[layer].T, self.backward[layer])
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


@pytest.mark.parametrize("name", quick(ROADS, "post, untied", "pre_inner", "mlp, sp"))
def test_effective_images_of_all_roads(name):
    """One network on three roads, with momentum and decay: autodiff, explicit passes and revealed matrices."""
    (model, row, untied), task, width = ROADS[name], nfd.datasets.digits(3), 48
    options = {"parametrization": row, "momentum": 0.5, "weight_decay": 0.2, "train_input": True}
    rate = 0.01 if row == "sp" else 0.3
    prepared = prepare(task, model, width, untied, steps=4, learning_rate=rate, observe=images, **options)
    network = prepared.network(3)
    layers = layers_of(network)  # a run gives up its network
    sweeps, autodiff = run_both(prepared, network, task)
    dense = layers.hidden
    backward = dense.forward if dense.backward is None else dense.backward
    noise = GivenMatrices(jax.random.key(0), dense.forward, backward)
    options = {"depth": len(dense.forward), "width": width, "capacity": 15, "coupled": not untied}
    hidden = RevealedMatrices.create(noise, **options, dtype=jnp.dtype(float))
    state = prepared.explicit.start(Layers(layers.input, hidden, layers.readout))
    inputs = task.inputs / task.dimension**0.5
    revealed = helpers.run(prepared.explicit, prepared.problem, helpers.copied(state), inputs, task.targets)
    found = autodiff.observed["images"]
    assert found.shape == (5, model.matrices, 3, width)
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
    options = {"optimizer": optimizer, "weight_decay": decay, "learning_rate": rate, "observe": images}
    dynamics = prepare(task, model, width, steps=steps, **options).autodiff
    state, inputs, targets = dynamics.init(jax.random.key(3)), jnp.asarray(task.inputs), jnp.asarray(task.targets)
    network, step = state.network, jax.jit(dynamics.step)
    for k in range(steps):
        kept = (1 - rate * decay) ** k
        now, expected = state.network, []
        h = np.asarray(inputs) @ np.asarray(now.input).T / task.dimension**0.5
        for block in range(2):
            x = np.tanh(h)
            for role in ("inner", "hidden"):
                matrices = (net.inner[0] if role == "inner" else net.hidden for net in (now, network))
                matrix, before = (np.asarray(own[block][0][0]) for own in matrices)
                expected.append(x @ (matrix - kept * before).T / width**0.5)
                x = x @ matrix.T / width**0.5
                x = np.tanh(x) if role == "inner" else x
            h = h + 2**-0.5 * x
        state, record = step(state, jnp.asarray(k), jnp.asarray(rate), inputs, targets)
        np.testing.assert_allclose(record.observed["images"], expected, rtol=0, atol=1e-13)
    assert np.abs(expected).min() > 0


def changes(snapshot):
    effective, propagating = snapshot.image_changes()
    parts = {f"effective_{role}_image": each for role, each in effective.items()}
    parts |= {f"propagating_{role}_image": each for role, each in propagating.items()}
    return (
        parts
        | {"features": snapshot.features, "outputs_seen": snapshot.outputs}
        | observables.refined_updates(snapshot)
    )


@pytest.mark.parametrize(
    ("model", "row"),
    [(nfd.MLP(3, "tanh"), "sp"), (nfd.MLP(1, "tanh"), "ntp"), (nfd.ResNet(2, "tanh", block="pre_inner"), "mup")],
)
@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.0), ("adamw", 0.3)])
def test_image_changes(model, row, optimizer, decay):
    """Their two parts by hand, from the weights before training and now; they add up to what features change by."""
    task, width, rate, steps = nfd.datasets.digits(4, (0, 1, 2)), 16, 0.02, 3
    options = {"optimizer": optimizer, "weight_decay": decay, "learning_rate": rate, "parametrization": row}
    options |= {"train_input": True, "train_readout": True, "observe": changes}
    dynamics = prepare(task, model, width, steps=steps, **options).autodiff
    state, inputs, targets = dynamics.init(jax.random.key(3)), jnp.asarray(task.inputs), jnp.asarray(task.targets)
    start, step = jax.tree.map(jnp.copy, state.network), jax.jit(dynamics.step)
    for k in range(steps + 1):
        now, kept = state.network, (1 - rate * decay) ** k
        state, record = step(state, jnp.asarray(k), jnp.asarray(rate), inputs, targets)
        found = record.observed
        first = record.observed if k == 0 else first
    last, multiplier = jnp.tanh if isinstance(model, nfd.MLP) else (lambda x: x), now.multiplier(Role.READOUT)
    x, before = last(found["features"][-1]), last(first["features"][-1])
    effective = multiplier * x @ (now.readout - kept * start.readout)
    through = multiplier * (kept * x - before) @ start.readout
    np.testing.assert_allclose(found["effective_readout_image"], effective, atol=1e-13)
    np.testing.assert_allclose(found["propagating_readout_image"], through, atol=1e-13)
    np.testing.assert_allclose(effective + through, found["outputs_seen"] - first["outputs_seen"], atol=1e-12)
    gained = inputs @ (now.input - kept * start.input).T * now.multiplier(Role.INPUT)
    np.testing.assert_allclose(found["effective_input_image"], gained, atol=1e-13)
    total = found["effective_hidden_image"] + found["propagating_hidden_image"]
    moved = found["features"] - first["features"]
    if isinstance(model, nfd.MLP):
        np.testing.assert_allclose(total, moved[1:], atol=1e-12)
        for index, (matrix, _) in enumerate(now.hidden[: model.blocks]):
            gained = now.multiplier(Role.HIDDEN) * (matrix - kept * start.hidden[index][0])
            part = jnp.tanh(found["features"][index]) @ gained.T.reshape(width, -1)
            np.testing.assert_allclose(found["effective_hidden_image"][index], part, atol=1e-13)
    else:  # every other image is the branch, which is added to the stream
        branch = model.branch(now.row)
        np.testing.assert_allclose(branch * total[1::2], jnp.diff(moved, axis=0), atol=1e-12)
    for part in ("effective", "propagating"):
        size = jnp.sqrt(jnp.mean(found[f"{part}_hidden_image"] ** 2, axis=-1))
        np.testing.assert_allclose(found[f"{part}_hidden"], size, rtol=1e-12)


def test_refined_updates_need_dense_matrices(task):
    with pytest.raises(ValueError, match="needs dense matrices: use train_networks with engine='dense'"):
        nfd.solve_network(task, nfd.ResNet(1), width=8, steps=1, seeds=1, observe=observables.refined_updates)


def test_members_have_initial_matrices_of_their_own(tmp_path):
    """Side by side, and from a checkpoint."""
    task, options = nfd.datasets.digits(2), {"width": 8, "optimizer": "adamw", "weight_decay": 0.1, "observe": images}
    one, model = {"checkpoint": tmp_path, "checkpoint_every": 1}, nfd.ResNet(2, block="inner")
    both = nfd.train_networks(task, model, steps=2, seeds=2, **options).observed["effective_update"]
    alone = nfd.train_networks(task, model, steps=2, seeds=[1], **options, **one).observed["effective_update"]
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-9)
    assert both.shape == (2, 3, 4, 2)
    assert np.all(both[:, 1] > 0)
    assert not both[:, 0].any()
    again = nfd.train_networks(task, model, steps=2, seeds=[1], **options, **one).observed["effective_update"]
    np.testing.assert_array_equal(again, alone)


def test_initial_matrices_are_kept_only_where_something_is_observed():
    task, model = nfd.datasets.digits(2), nfd.ResNet(2, block="inner")
    recipes = [nfd.Training(observe=observe) for observe in (None, images)]
    plain, observed = (Networks.of(task, model, recipe, 8, "untied", "dense") for recipe in recipes)
    weights = 4 * 8**2 + 8 * (64 + 1)
    assert observed.member_bytes - plain.member_bytes == 8 * weights
    assert plain.dynamics.init(jax.random.key(0)).initial is None
    kept = jax.tree.leaves(observed.dynamics.init(jax.random.key(0)).initial)
    assert sum(leaf.size for leaf in kept) == weights


def test_reuse_of_dense_networks_is_refused(task):
    with pytest.raises(ValueError, match="reuse needs revealed matrices: use solve_network"):
        nfd.train_networks(task, nfd.ResNet(2), width=8, steps=1, seeds=1, observe=observables.reuse)


@pytest.mark.parametrize("observe", NEED_REVEALED[:3])
def test_reuse_of_other_blocks_is_refused(observe, task):
    with pytest.raises(ValueError, match=rf"{observe.__name__} is defined for ResNet\(block='pre'\)"):
        nfd.solve_network(task, nfd.ResNet(2, block="post"), width=8, steps=1, seeds=1, observe=observe)
