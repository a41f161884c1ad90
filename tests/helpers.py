"""What several test modules share: statistical bounds, and runs of the two dynamics from given initial weights."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import t as student
from tqdm import tqdm

import nfd_jax as nfd
from nfd_jax.dynamics.autodiff import Autodiff
from nfd_jax.dynamics.conditioned import Conditioned
from nfd_jax.dynamics.module import Shape
from nfd_jax.dynamics.problem import Problem, Samples
from nfd_jax.dynamics.propagate import Layers
from nfd_jax.dynamics.units import Units
from nfd_jax.matrices.dense import DenseMatrices
from nfd_jax.parametrization import Role
from nfd_jax.runtime import loop
from nfd_jax.solvers.trajectory import Trajectory

PERMUTATIONS = 20_000  # the smallest p-value, and so the false-alarm rate of a test at it, is 1 / 20,001
ENOUGH = 20  # permuted samples that differ as much, of which a p-value is known to a quarter


class Prepared(NamedTuple):
    """A problem, and both of its dynamics at a width."""

    problem: Problem
    explicit: Conditioned
    autodiff: Autodiff

    def network(self, seed):
        """A finite network at initialisation."""
        return self.autodiff.init(jax.random.key(seed)).network


def prepare(task, model, width=None, untied=False, **options):
    """The problem of a recipe of five steps, unless given, and its dynamics."""
    problem = Problem.of(task, model, nfd.Training(**{"steps": 5, **options}))
    sizes = {"width": width, "dimension": task.dimension, "richness": problem.richness}
    explicit = Conditioned(problem.settings, Units.of(model, problem.row, **sizes))
    shape = Shape(width or 8, task.dimension, task.outputs, untied)
    return Prepared(problem, explicit, Autodiff(problem.settings, model, problem.row, problem.richness, shape))


def input_coordinates(inputs):
    """Inputs as the explicit passes take them."""
    problem = prepare(nfd.Task(inputs, np.zeros(len(inputs))), nfd.ResNet(1)).problem
    return problem.in_coordinates().data.train.inputs


def run(dynamics, problem, state, inputs, targets):
    """Every output of a run from a given state."""
    problem = problem._replace(data=problem.data._replace(train=Samples(inputs, targets)))
    recorded = loop.run(dynamics, problem, state, members=False, progress=tqdm(disable=True))
    recorded = jax.tree.map(lambda array: array[:, None], recorded)
    return Trajectory.of(recorded, nfd.Task(inputs, targets), problem.data, (0,), {}).only


def run_both(prepared, network, task):
    """The same initial weights trained by explicit passes over dense matrices and by autodiff: two runs."""
    explicit, problem = prepared.explicit, prepared.problem
    # a run gives up the memory of its state, which both would share
    state = copied(explicit.start(layers_of(network)))
    passes = run(explicit, problem, state, task.inputs / task.dimension**0.5, task.targets)
    return passes, run(prepared.autodiff, problem, prepared.autodiff.start(network), task.inputs, task.targets)


def layers_of(network):
    """The weights of a network as the explicit passes take them: N(0, 1) entries at initialisation."""
    shape = network.input.shape
    sizes = {"width": shape[0], "depth": int(network.model.depth), "dimension": shape[1]}
    std = {role: network.row[role].std(**sizes) for role in Role}
    weights = [*((Role.INNER, matrices) for matrices in network.inner), (Role.HIDDEN, network.hidden)]

    def interleaved(copy):
        stacks = [jnp.concatenate([pair[copy] for pair in groups]) / std[role] for role, groups in weights]
        stacked = jnp.stack(stacks, axis=1)
        flat = stacked.reshape(-1, *stacked.shape[2:])
        return flat if len(flat) else jnp.zeros((1, *flat.shape[1:]))  # capacity for one, as revealed matrices have

    hidden = DenseMatrices(interleaved(0), None if network.hidden[0][1] is None else interleaved(1), interleaved(0))
    return Layers(network.input.T / std[Role.INPUT], hidden, network.readout.T / std[Role.READOUT])


def copied(tree):
    """The same numbers in memory of their own."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, tree)


def final_state(dynamics, problem, state, inputs, targets):
    """The state after training, which a solver does not hand out, and the outputs before every step."""
    outputs, step = [], eqx.filter_jit(dynamics.step)
    for number, rate in enumerate(np.asarray(problem.rates)):
        state, record = step(
            state, jnp.int32(number), jnp.asarray(rate, inputs.dtype), *map(jnp.asarray, (inputs, targets))
        )
        outputs.append(np.asarray(record.outputs))
    return state, np.stack(outputs)


def two_sample_p(one, other, seed=0):
    """p-value of "both samples (members, statistics...) have the same law", from means and standard deviations.

    The statistic is the largest difference of any mean or standard deviation, each in units of its error in the
    pooled sample (for a standard deviation from the fourth moment). Under the null hypothesis the members are
    exchangeable, so its rank among permuted samples is uniform: the p-value is exact whatever the law, and all
    comparisons count as one test. Samples are permuted until ENOUGH of them differ as much (Besag and Clifford, 1991),
    which leaves the smallest p-value to those that are never matched in all PERMUTATIONS.
    """
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    pooled = np.concatenate([one, other])
    pooled = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0)
    spread = np.sqrt((pooled**4).mean(axis=0) - 1) / 2
    moments = np.concatenate([pooled, pooled**2], axis=1)
    totals, count = moments.sum(axis=0), len(one)

    def largest(sums):
        def split(sums, count):
            mean, square = np.split(sums / count, 2, axis=-1)
            return mean, np.sqrt(square - mean**2)

        (m1, s1), (m2, s2) = split(sums, count), split(totals - sums, len(other))
        return np.maximum(np.abs(m1 - m2), np.abs(s1 - s2) / spread).max(axis=-1)

    found = largest(moments[:count].sum(axis=0))
    generator = np.random.default_rng(seed)
    above, drawn, chunk = 0, 0, 500
    while drawn < PERMUTATIONS and above < ENOUGH:
        drawn += chunk
        order = np.argpartition(generator.random((chunk, len(pooled)), dtype=np.float32), count, axis=1)
        members = np.zeros((chunk, len(pooled)))
        np.put_along_axis(members, order[:, :count], 1.0, axis=1)
        above += int(np.sum(largest(members @ moments) >= found))
    return (1 + above) / (1 + drawn)


def standard_error(samples):
    """Of the mean over the first axis."""
    return samples.std(axis=0, ddof=1) / len(samples) ** 0.5


def sampling_bound(samples, alarm=5e-5):
    """How far the mean over the first axis may lie from the expectation of any entry: exceeded anywhere with
    probability below `alarm` (Student, Bonferroni over entries)."""
    entries = max(1, samples[0].size)
    return student.isf(alarm / 2 / entries, len(samples) - 1) * standard_error(samples)
