"""Small defects, one at a time, and the first test that each one fails: `python tests/defects.py [WORD ...]`.

Every defect replaces one text of one file in a temporary copy of the package. The likeliest tests run first, then, with
`--all`, the rest of the fast ones, until one fails. The table is in `tests/defects.md`; given words, only the lines of
the defects whose names have one of them are made anew.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TABLE = HERE / "defects.md"
IGNORED = (".*", "__pycache__", "results", "*.egg-info")


class Defect(NamedTuple):
    """What is wrong, where, and what would be likeliest to say so (files of `tests/`, `file::test`)."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


NETWORK, LIMIT, CLAIMS = "test_network.py", "test_limit.py", "test_claims.py"
SPEED = "test_feature_speed.py"
CONTROL = ("test_feature_speed_control.py",)

DEFECTS = [
    # ------------------------------------------------------------------ optimizers and rates
    Defect(
        "momentum ignored",
        "optimizers.py",
        "optax.trace(self.momentum)",
        "optax.trace(0.0)",
        ("test_models.py::test_every_option_changes_the_run", "test_matrices.py", "test_models.py"),
    ),
    Defect(
        "weight decay times the rate of its role",
        "optimizers.py",
        "            optax.scale(rate) if rate != 1 else optax.identity(),\n"
        "            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),\n",
        "            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),\n"
        "            optax.scale(rate) if rate != 1 else optax.identity(),\n",
        ("test_models.py::test_sweeps_equal_autodiff", "test_parametrization.py"),
    ),
    Defect(
        "eps of Adam not scaled",
        "optimizers.py",
        "eps=self.epsilon * epsilon",
        "eps=self.epsilon",
        ("test_parametrization.py::test_a_shift_changes_nothing", "test_parametrization.py"),
    ),
    Defect(
        "a schedule shifted by a step",
        "optimizers.py",
        "_scheduled(learning_rate, k, name) for",
        "_scheduled(learning_rate, k + 1, name) for",
        ("test_networks.py::test_schedule_is_evaluated_at_every_step", "test_networks.py"),
    ),
    Defect(
        "a rate exponent of Adam in branches",
        "parametrization.py",
        "adam=N**-0.5 * L**-gamma, epsilon",
        "adam=N**-0.5 * L**-alpha, epsilon",
        ("test_parametrization.py::test_rows_by_hand", "test_parametrization.py"),
    ),
    Defect(
        "the rate of SGD of the readout without its width",
        "parametrization.py",
        "readout=Scaling(ONE, N**-1, sgd=N, adam=ONE",
        "readout=Scaling(ONE, N**-1, sgd=ONE, adam=ONE",
        ("test_coordinate_check.py::test_first_updates_of_the_table", "test_parametrization.py"),
    ),
    Defect(
        "an abc shift that leaves the rate of SGD at one power",
        "parametrization.py",
        "self.sgd * factor**-2,",
        "self.sgd * factor**-1,",
        ("test_coordinate_check.py::test_first_updates_do_not_depend_on_the_convention",),
    ),
    Defect(
        "scale_rates multiplies gradients by eps",
        "tools/scale_rates.py",
        "lambda parameter: 1 / parameter.epsilon",
        "lambda parameter: parameter.epsilon",
        ("test_scale_rates.py",),
    ),
    Defect(
        "the suggested rate at the bound of stability",
        "tools/suggest_learning_rate.py",
        "    rate = 1 / sharpness.mean()",
        "    rate = 2 / sharpness.mean()",
        ("test_suggest_learning_rate.py",),
    ),
    # ------------------------------------------------------------------ forward and backward passes
    Defect(
        "gradients of hidden matrices without the branch multiplier",
        "dynamics/propagate.py",
        'rate = units.branch * units.rates["hidden"',
        'rate = units.rates["hidden"',
        ("test_models.py::test_sweeps_equal_autodiff", "test_models.py", "test_matrices.py"),
    ),
    Defect(
        "the rates of inner and outer matrices exchanged",
        "dynamics/propagate.py",
        '"hidden" if place == 0 else "inner"',
        '"inner" if place == 0 else "hidden"',
        ("test_models.py::test_sweeps_equal_autodiff", "test_models.py", "test_matrices.py"),
    ),
    Defect(
        "phi' at the features above a block",
        "dynamics/propagate.py",
        "at = take(passed.features, index)",
        "at = take(passed.features, index + 1)",
        ("test_models.py::test_sweeps_equal_autodiff", "test_models.py", "test_matrices.py"),
    ),
    Defect(
        "the mean over samples for that over coordinates",
        "models.py",
        "return vectors - jnp.mean(vectors, axis=-1, keepdims=True)",
        "return vectors - jnp.mean(vectors, axis=0, keepdims=True)",
        ("test_models.py::test_centred_branches_by_hand", "test_models.py"),
    ),
    Defect(
        "chi without its batch mean",
        "dynamics/units.py",
        "chi = loss_gradient(loss, outputs, targets) / self.output",
        "chi = len(outputs) * loss_gradient(loss, outputs, targets) / self.output",
        ("test_models.py::test_sweeps_equal_autodiff", "test_models.py", "test_matrices.py"),
    ),
    Defect(
        "an untied copy tied, revealed",
        "solvers/networks.py",
        'blocks * count, width, backward == "tied", compressed',
        "blocks * count, width, True, compressed",
        (f"{NETWORK}::test_law_of_networks", NETWORK),
    ),
    Defect(
        "an untied copy tied, dense",
        "dynamics/module.py",
        "product = tied_product(x, matrix) if copy is None else untied_product(x, matrix, copy)",
        "product = tied_product(x, matrix)",
        ("test_models.py::test_every_option_changes_the_run", "test_models.py::test_sweeps_equal_autodiff", NETWORK),
    ),
    # ------------------------------------------------------------------ Gaussian conditioning and noise
    Defect(
        "a missing projection of fresh parts",
        "matrices/revealed.py",
        "reuse = inner(images.rows, rows) - inner(queries.rows, fresh)",
        "reuse = inner(images.rows, rows)",
        ("test_matrices.py::test_one_matrix_in_both_directions", "test_matrices.py", NETWORK),
    ),
    Defect(
        "the response dropped",
        "matrices/revealed.py",
        "reuse = inner(images.rows, rows) - inner(queries.rows, fresh)",
        "reuse = -inner(queries.rows, fresh)",
        ("test_matrices.py::test_one_matrix_in_both_directions", NETWORK),
    ),
    Defect(
        "the response of remainders dropped",
        "matrices/revealed.py",
        "product(x.along_remainders.T, images)",
        "0 * product(x.along_remainders.T, images)",
        ("test_matrices.py::test_short_remainders_have_the_image_of_their_response", "test_degenerate.py"),
    ),
    Defect(
        "a step's own backward queries before its forward ones",
        "matrices/response.py",
        "asked_first = steps >= asked_at if direction == FORWARD else steps > asked_at",
        "asked_first = steps >= asked_at",
        ("test_observables.py::test_reuse", "test_observables.py"),
    ),
    Defect(
        "noise of one step at all steps",
        "matrices/noise.py",
        "for part in (direction, layer, step)])",
        "for part in (direction, layer, 0)])",
        ("test_noise.py::test_plain_noise_is_normal_and_addressed",),
    ),
    Defect(
        "noise of finer blocks of another variance",
        "matrices/noise.py",
        "return total / jnp.sqrt(jnp.asarray(refinement, like.dtype))",
        "return total / jnp.asarray(refinement, like.dtype)",
        ("test_multilevel.py::test_a_coarse_block_has_the_noise_of_its_fine_ones",),
    ),
    Defect(
        "plain noise where matched is asked",
        "solvers/particles.py",
        "return self.matched and particles >= self.least_matched",
        "return self.matched and particles >= 64 * self.least_matched",
        (f"{LIMIT}::test_training_on_several_samples", LIMIT),
    ),
    Defect(
        "matched noise beyond its room",
        "matrices/matched.py",
        "lax.cond(used <= most, matched",
        "lax.cond(used <= 2 * most, matched",
        ("test_noise.py",),
    ),
    Defect(
        "matched noise along queries of the other direction",
        "matrices/matched.py",
        "for row, rows, active in ((same, fresh, remembered), (opposite, *query)):",
        "for row, rows, active in ((same, fresh, remembered),):",
        ("test_noise.py",),
    ),
    Defect(
        "evenly spread normals on the points of the input",
        "dynamics/initial.py",
        "shared = grid, spread[ends:]",
        "shared = grid, spread[:-ends]",
        ("test_limit.py::test_first_step_in_closed_form", "test_limit.py"),
    ),
    Defect(
        "members with offsets of their own",
        "matrices/basis.py",
        "return count if self.members is None else lax.pmax(count, self.members)",
        "return count",
        ("test_basis.py", "test_network.py::test_members_of_other_ranks"),
    ),
    Defect(
        "matched noise along its query",
        "matrices/matched.py",
        "fresh = fresh - product(inner(fresh, rows[0]), rows[0])",
        "del normals",
        ("test_noise.py::test_fresh_parts_are_orthogonal_to_what_is_known",),
    ),
    Defect(
        "the even numbers of the first step at all steps",
        "matrices/matched.py",
        "lax.cond(step == 0, first,",
        "lax.cond(step >= 0, first,",
        ("test_noise.py", LIMIT),
    ),
    Defect(
        "compressed: what is dropped without its response",
        "matrices/compressed.py",
        "images = images + _response(revealed, opposite, x.rows) if matrices.coupled else images",
        "images = images",
        ("test_compressed.py::test_both_directions_see_one_matrix", "test_compressed.py"),
    ),
    Defect(
        "compressed: a missing projection of fresh parts",
        "matrices/compressed.py",
        "fresh = where(needed, independent)",
        "del independent",
        ("test_compressed.py::test_both_directions_see_one_matrix", "test_compressed.py"),
    ),
    Defect(
        "queries that are not kept with images that do not depend on each other",
        "matrices/resolution.py",
        "jnp.where(active[None, :], triangular, jnp.eye(len(rest), dtype=rest.dtype))",
        "norms(rest)[:, None] * jnp.eye(len(rest), dtype=rest.dtype)",
        ("test_compressed.py::test_queries_that_are_not_kept_have_the_law",),
    ),
    Defect(
        "what training has dropped is drawn where samples are evaluated",
        "matrices/resolution.py",
        "> jnp.maximum(rounding, least)",
        "> rounding",
        ("test_compressed.py::test_fitted_samples_are_evaluated_as_training_has_seen_them",),
    ),
    Defect(
        "compare: a record of any resolution",
        "studies/compare.py",
        'more["resolution"] = float(resolution)',
        'more["resolution"] = 0.0',
        ("test_compare.py::test_a_resolution_decides_a_record", "test_compare.py"),
    ),
    Defect(
        "no first look",
        "studies/compare.py",
        "for part in (early, setup):",
        "for part in (setup,):",
        ("test_compare.py::test_the_first_look_comes_first",),
    ),
    Defect(
        "compressed: decay forgotten",
        "matrices/compressed.py",
        "return size * (initial * known +",
        "return size * (known +",
        ("test_compressed.py::test_a_fine_resolution_is_the_exact_solution", "test_compressed.py"),
    ),
    Defect(
        "compressed: updates to the root of the resolution",
        "matrices/compressed.py",
        "self.resolution**2 * whole",
        "self.resolution * whole",
        ("test_compressed.py::test_updates_lose_less_than_the_resolution", "test_compressed.py"),
    ),
    Defect(
        "compressed: queries to the root of the resolution",
        "matrices/resolution.py",
        "least = resolution**2 *",
        "least = resolution *",
        ("test_compressed.py::test_only_what_is_new_is_revealed", "test_compressed.py"),
    ),
    Defect(
        "compressed: a chunk that ends a step too late",
        "matrices/compressed.py",
        "jnp.max(each.counts.values) + batch for",
        "jnp.max(each.counts.values) + 1 for",
        ("test_compressed.py::test_capacity_grows_and_changes_nothing", "test_compressed.py"),
    ),
    Defect(
        "Sobol points unshifted",
        "matrices/sobol.py",
        "lax.bitwise_xor, (1,)), bits[-1]",
        "lax.bitwise_xor, (1,)), 0 * bits[-1]",
        ("test_sobol.py::test_a_particle_over_keys_is_uniform",),
    ),
    # ------------------------------------------------------------------ the loop, tasks and data
    Defect(
        "the rate of the next step",
        "runtime/loop.py",
        "rates[..., np.minimum(places, data.steps - 1)]",
        "rates[..., np.minimum(places + 1, data.steps - 1)]",
        ("test_networks.py::test_schedule_is_evaluated_at_every_step", "test_networks.py"),
    ),
    Defect(
        "all steps of a chunk at the address of its first",
        "runtime/loop.py",
        "Pass(self.first + place, rate",
        "Pass(self.first, rate",
        (
            "test_dynamics.py::test_a_loop_of_ones_own_is_the_solver",
            f"{NETWORK}::test_same_seed_same_numbers",
            "test_identity.py",
            NETWORK,
        ),
    ),
    Defect(
        "a run given up with its first member",
        "runtime/loop.py",
        "np.isnan(last.outputs).all()",
        "np.isnan(last.outputs).any()",
        ("test_networks.py::test_a_run_goes_on_where_something_may_be_left",),
    ),
    Defect(
        "a resumed run one step off",
        "runtime/loop.py",
        'return int(arrays["done"]), dynamics, state, Recorded.of(arrays)',
        'return max(0, int(arrays["done"]) - 1), dynamics, state, Recorded.of(arrays)',
        ("test_store.py",),
    ),
    Defect(
        "parts of as many cells, not as dear",
        "runtime/parts.py",
        "load + costs[place]",
        "load + 1.0",
        ("test_parts.py",),
    ),
    Defect(
        "a part that makes cells of others",
        "runtime/store.py",
        "[place for place in absent if place in own], False",
        "list(absent), False",
        ("test_parts.py",),
    ),
    Defect(
        "a new file in a clean checkout",
        "runtime/provenance.py",
        '"--porcelain", ',
        '"--porcelain", "--untracked-files=no", ',
        ("test_parts.py",),
    ),
    Defect(
        "trained on the held-out samples",
        "runtime/loop.py",
        "train, rates = jax.device_put(every[0]), ",
        "train, rates = jax.device_put(every[-1]), ",
        (
            "test_task.py::test_held_out_samples_are_not_trained_on",
            "test_sweep.py",
            f"{NETWORK}::test_law_of_minibatches",
        ),
    ),
    Defect(
        "evaluations a step late",
        "dynamics/problem.py",
        "due, last = step in self.evaluate_at, step == self.steps",
        "due, last = step - 1 in self.evaluate_at, step == self.steps",
        ("test_sweep.py::test_cells_are_the_trainers_own_numbers", "test_trajectory.py"),
    ),
    Defect(
        "one permutation for all epochs",
        "task.py",
        "epochs = [generator.permutation(self.samples)[: each * size] for _ in range(-(-steps // each))]",
        "epochs = [generator.permutation(self.samples)[: each * size]] * -(-steps // each)",
        ("test_task.py::test_every_epoch_is_a_permutation_without_replacement",),
    ),
    Defect(
        "inputs of norm 1",
        "task.py",
        "return inputs * (inputs.shape[1] ** 0.5 / ",
        "return inputs * (1.0 / ",
        ("test_task.py::test_normalised_inputs_have_squared_length_d",),
    ),
    Defect(
        "one noise of targets for both splits",
        "datasets/_gaussian.py",
        'streams[1:3] if one_of("split", split, SPLITS) == "train" else streams[3:]',
        'streams[1:3] if one_of("split", split, SPLITS) == "train" else (streams[3], streams[2])',
        ("test_datasets.py::test_splits_and_noise_are_independent",),
    ),
    Defect(
        "diversity of the worst start",
        "observables.py",
        "jnp.sqrt(jnp.mean((vectors[lag:] - vectors[:-lag]) ** 2)) for lag in lags",
        "jnp.sqrt(jnp.mean((vectors[lag:] - vectors[:-lag]) ** 2, axis=1).max()) for lag in lags",
        ("test_observables.py::test_sizes_and_diversity",),
    ),
    # ------------------------------------------------------------------ large rates
    Defect(
        "large rates: what arrives at the readout without its start",
        "dynamics/module.py",
        "last * (x @ decayed.readout - before @ initial.readout)",
        "last * (x @ decayed.readout - before @ decayed.readout)",
        ("test_observables.py::test_image_changes",),
    ),
    Defect(
        "large rates: an initial network that decay has changed",
        "dynamics/module.py",
        "self.images(h, decayed.forward_matrices) - initial.images(start, initial.forward_matrices)",
        "self.images(h, decayed.forward_matrices) - initial.images(start, decayed.forward_matrices)",
        ("test_observables.py::test_image_changes",),
    ),
    Defect(
        "large rates: dead units are stable",
        "tools/_stability.py",
        "np.where(trivial > best, np.minimum(start, trivial), start)",
        "start",
        ("test_stable_rate.py::test_dead_units_are_not_stable",),
    ),
    Defect(
        "large rates: the border below the best rate",
        "tools/_stability.py",
        "broken = ~stable & (places >= first)",
        "broken = ~stable",
        ("test_rates.py", "test_stable_rate.py"),
    ),
    Defect(
        "large rates: a bisection that keeps the wrong half",
        "tools/stable_rate.py",
        "low, high = np.where(kept, middle, low), np.where(kept, high, middle)",
        "low, high = np.where(kept, low, middle), np.where(kept, middle, high)",
        ("test_stable_rate.py::test_the_border_of_a_quadratic_is_found",),
    ),
    Defect(
        "large rates: gradients of the batch mean",
        "studies/_rates.py",
        "samples * width**0.5 * _size(snapshot.gradients)",
        "width**0.5 * _size(snapshot.gradients)",
        ("test_rates.py::test_quantities",),
    ),
    Defect(
        "large rates: the propagating part of coordinate_check for the effective one",
        "tools/_experiment.py",
        "rms(without - before[image])",
        "rms(after[image] - without)",
        ("test_coordinate_check.py::test_propagating_updates",),
    ),
    # ------------------------------------------------------------------ estimates
    Defect(
        "weights of the two numbers of particles",
        "solvers/multilevel.py",
        "depths[0], False, first): 4 / 3, Term(particles // 4, depths[0], False, first): -1 / 3",
        "depths[0], False, first): 5 / 4, Term(particles // 4, depths[0], False, first): -1 / 4",
        ("test_multilevel.py::test_first_orders_are_extrapolated_away",),
    ),
    Defect(
        "the second power of an extrapolation",
        "solvers/multilevel.py",
        "return -1 / ((x - 1) * (y - 1))",
        "return -1 / ((x - 1) * (x - 1))",
        ("test_multilevel.py::test_first_orders_are_extrapolated_away",),
    ),
    Defect(
        "replicates of one seed",
        "solvers/estimate.py",
        "for address in (term.particles, term.depth, number, *level):",
        "for address in (term.particles, term.depth, number // 2, *level):",
        (
            "test_multilevel.py::test_every_replicate_is_a_draw_of_its_own",
            "test_multilevel.py",
        ),
    ),
    Defect(
        "coarse and fine grids of two paths",
        "solvers/estimate.py",
        "coarse = solve(term.depth // 2, 2, capacity, term.resolution)",
        "coarse = solve(term.depth // 2, 1, capacity, term.resolution)",
        ("test_multilevel.py::test_every_replicate_is_a_draw_of_its_own", "test_multilevel.py"),
    ),
    Defect(
        "differences of resolutions from those of a fourth",
        "solvers/estimate.py",
        "coarse = solve(term.depth, 1, capacity, 2 * term.resolution)",
        "coarse = solve(term.depth, 1, capacity, 4 * term.resolution)",
        ("test_multilevel.py::test_a_difference_of_resolutions_is_of_one_noise", "test_multilevel.py"),
    ),
    Defect(
        "what a resolution leaves by the last difference alone",
        "solvers/multilevel.py",
        "np.maximum(np.abs(means[last]), np.abs(means[before]) / 2)",
        "np.abs(means[last])",
        ("test_multilevel.py::test_what_a_resolution_leaves_is_covered", "test_multilevel.py"),
    ),
    Defect(
        "error of the last difference alone",
        "solvers/multilevel.py",
        "variances = {term: plan[term] ** 2 * found.var",
        "variances = {term: plan[term] * found.var",
        ("test_multilevel.py::test_intervals_of_unequal_means_cover",),
    ),
    # ------------------------------------------------------------------ statistics
    Defect(
        "a normal quantile for Student's",
        "statistics.py",
        "return float(student.isf((1 - confidence) / 2, freedom))",
        "return float(student.isf((1 - confidence) / 2, math.inf))",
        ("test_statistics.py::test_intervals_are_students", "test_statistics.py"),
    ),
    Defect(
        "an interval of one side",
        "statistics.py",
        "return float(student.isf((1 - confidence) / 2, freedom))",
        "return float(student.isf(1 - confidence, freedom))",
        ("test_statistics.py::test_intervals_are_students", "test_statistics.py"),
    ),
    Defect(
        "the bootstrap without its factor",
        "statistics.py",
        "* math.sqrt(smallest / (smallest - 1))",
        "* math.sqrt(smallest / smallest)",
        ("test_statistics.py::test_bootstrap_of_four_seeds_has_the_error_of_their_mean", "test_statistics.py"),
    ),
    Defect(
        "the variance of the jackknife over the seeds",
        "statistics.py",
        "math.sqrt((seeds - 1) / seeds * np.sum(",
        "math.sqrt(1 / seeds * np.sum(",
        ("test_statistics.py::test_the_jackknife_of_a_mean_is_the_mean", "test_statistics.py"),
    ),
    Defect(
        "a fit weighted by errors, not by their squares",
        "statistics.py",
        "np.abs(measured.values).max() + 1e-300) ** 2",
        "np.abs(measured.values).max() + 1e-300)",
        ("test_statistics.py::test_power_is_weighted_least_squares", "test_statistics.py"),
    ),
    # ------------------------------------------------------------------ speed of features
    Defect(
        "speed control: a rate over the norm, not its square",
        "tools/_layers.py",
        "square = jnp.sum(leaf.astype(precision()) ** 2, axis=axes)",
        "square = jnp.sqrt(jnp.sum(leaf.astype(precision()) ** 2, axis=axes))",
        CONTROL,
    ),
    Defect(
        "speed control: a stack as one layer",
        "tools/_layers.py",
        "axes = tuple(range(0 if place.stack is None else 1, leaf.ndim))",
        "axes = tuple(range(leaf.ndim))",
        CONTROL,
    ),
    Defect(
        "speed control: frozen arrays move",
        "tools/_layers.py",
        "            return jnp.zeros_like(value)\n        factor",
        "            return value\n        factor",
        CONTROL,
    ),
    Defect(
        "speed control: a skipped step moves the others",
        "tools/feature_speed_control.py",
        "jnp.where(usable, rate, jnp.zeros_like(rate)) for",
        "rate for",
        CONTROL,
    ),
    Defect(
        "speed control: the slowest feature for the fastest",
        "tools/feature_speed_control.py",
        "for name, speed in asked.items()]).max()",
        "for name, speed in asked.items()]).min()",
        CONTROL,
    ),
    Defect(
        "speed control: rates of every step",
        "tools/feature_speed_control.py",
        "(state.steps % every == 0)",
        "(state.steps % 1 == 0)",
        CONTROL,
    ),
    Defect(
        "speed control: a readout the wrong way",
        "tools/balance_scales.py",
        "inputs, targets)) / speed, of, last",
        "inputs, targets)) * speed, of, last",
        CONTROL,
    ),
    Defect(
        "study control: half the common blocks of the closed form",
        "studies/_stream.py",
        "weight = self.branch**2 * self.variance",
        "weight = self.branch**2",
        ("test_control.py",),
    ),
    Defect(
        "study control: judged on the seeds that chose",
        "studies/control.py",
        "bootstrap(at_best, logs[::2], logs[1::2], seed=depth)",
        "bootstrap(at_best, logs[::2], logs[::2], seed=depth)",
        ("test_control.py", CLAIMS),
    ),
    # ------------------------------------------------------------------ studies
    Defect(
        "study scaling: the gain of doubling turned",
        "studies/scaling.py",
        "(values[past[0]] - values[past[0] + 1]) / values[past[0]]",
        "(values[past[0] + 1] - values[past[0]]) / values[past[0]]",
        (CLAIMS,),
    ),
    Defect(
        "study transfer: the gain of depth turned",
        "studies/transfer.py",
        "deep[0] - shallow[0]",
        "shallow[0] - deep[0]",
        (CLAIMS,),
    ),
    Defect(
        "study nonlinearity: the ratio of losses turned",
        "studies/nonlinearity.py",
        "x[place] - x[first]",
        "x[first] - x[place]",
        (CLAIMS,),
    ),
    Defect(
        "study independence: tied less untied",
        "studies/independence.py",
        "bootstrap(np.mean, untied - tied)",
        "bootstrap(np.mean, tied - untied)",
        (CLAIMS,),
    ),
    Defect(
        "study degeneracy: the first step for the lowest",
        "studies/degeneracy.py",
        "x.mean(axis=0).min() / x.mean(axis=0)[0]",
        "x.mean(axis=0).max() / x.mean(axis=0)[0]",
        (CLAIMS,),
    ),
    Defect(
        "study interaction: the share turned",
        "studies/interaction.py",
        "mean[0] / mean[1]",
        "mean[1] / mean[0]",
        (CLAIMS,),
    ),
    # ------------------------------------------------------------------ feature speed
    Defect(
        "shifts that enter nothing behind them",
        "tools/_shifts.py",
        "known[variable] = marks[variable](value) if variable in marks else value",
        "known[variable] = value",
        (SPEED,),
    ),
    Defect(
        "only the layer of a feature for all up to it",
        "tools/feature_speed.py",
        "number <= place[name]",
        "number == place[name]",
        (SPEED,),
    ),
    Defect(
        "the kernel without its rates",
        "tools/feature_spectrum.py",
        "rate.astype(leaf.dtype) * leaf",
        "leaf",
        (SPEED,),
    ),
    Defect(
        "errors of moments of one probe",
        "tools/feature_spectrum.py",
        "function(samples.mean(axis=0)), self.samples",
        "function(samples[0]), self.samples",
        (SPEED,),
    ),
    Defect(
        "loss gradients of one output without its scale",
        "tools/network_speed.py",
        "return output / width * loss_gradient",
        "return 1 / width * loss_gradient",
        (SPEED,),
    ),
    Defect(
        "the decay of revealed layers at the rate of hidden ones",
        "tools/network_speed.py",
        "moved**2) / (rate * units.rates[role])",
        "moved**2) / rate",
        (SPEED,),
    ),
    Defect(
        "a stream whose kernel forgets its gates",
        "studies/_stream.py",
        "scales.branch * W * open_[None]",
        "scales.branch * W",
        (SPEED,),
    ),
    Defect(
        "the closed form of one layer less",
        "studies/_stream.py",
        "(number - 1) * (2 * number - 1)",
        "(number - 2) * (2 * number - 1)",
        (SPEED,),
    ),
]


def copied(folder: Path) -> None:
    """The repository without what is made."""
    shutil.copytree(HERE.parent, folder, ignore=shutil.ignore_patterns(*IGNORED), dirs_exist_ok=True)


def first_failure(folder: Path, targets: list[str], cache: str) -> str | None:
    """The first test that fails; None where all pass."""
    environment = os.environ | {"PYTHONPATH": str(folder), "JAX_COMPILATION_CACHE_DIR": cache}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:xdist", "--tb=no", *targets]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if failed:
        return failed[1]
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
        )
    return None


def caught(defect: Defect, cache: str, *, everything: bool) -> str:
    """The test that fails first, or that none does."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        copied(folder)
        path = folder / "nfd_jax" / defect.file
        text = path.read_text()
        if text.count(defect.old) != 1:
            raise ValueError(f"{defect.name}: {defect.file} has {text.count(defect.old)} times {defect.old!r}")
        path.write_text(text.replace(defect.old, defect.new))
        targets = [[f"tests/{test}"] for test in defect.tests] + ([["tests"]] if everything else [])
        return next(filter(None, (first_failure(folder, each, cache) for each in targets)), "none")


def lines() -> dict[str, str]:
    """Those of the table so far, by the name of the defect."""
    written = TABLE.read_text().splitlines() if TABLE.exists() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in written if line.startswith("| ")}


def main(words: list[str]) -> None:
    """Make the lines of the defects that have one of these words, or of all."""
    everything, words = "--all" in words, [word for word in words if word != "--all"]
    chosen = [defect for defect in DEFECTS if not words or any(word in defect.name for word in words)]
    with tempfile.TemporaryDirectory() as cache:  # programs that a defect leaves alone are compiled once
        for defect in chosen:
            began = time.monotonic()
            test = caught(defect, cache, everything=everything)
            print(f"{defect.name}: {test} ({time.monotonic() - began:.0f} s)", flush=True)
            known = lines() | {defect.name: f"| {defect.name} | {defect.file} | {test.removeprefix('tests/')} |"}
            rows = [known[each.name] for each in DEFECTS if each.name in known]
            head = ["# Small defects and the first test that each one fails", "", "By `python tests/defects.py`.", ""]
            table = ["| defect | file | caught by |", "|---|---|---|", *rows]
            TABLE.write_text("\n".join([*head, *table]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
