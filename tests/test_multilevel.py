"""Estimates of the limit: what is extrapolated away, what error bars cover, what a tolerance and a budget do."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import slow
from scipy.stats import binom
from scipy.stats import t as student

import nfd_jax as nfd
from nfd_jax import analytic
from nfd_jax._checks import Outcome
from nfd_jax.matrices.noise import Grid, PlainNoise, gaussians
from nfd_jax.solvers import estimate, multilevel
from nfd_jax.solvers.multilevel import Estimate, Extrapolation, Term, ladder, plan_of, resolutions_to

CLOSURES = ("coupled", "decoupled")
WHOLE = Extrapolation(1, 2)


def test_ladders():
    assert ladder(math.inf) == (4, 8, 16)
    assert ladder(64) == (4, 8, 16, 32, 64)
    assert ladder(48) == (6, 12, 24, 48)
    assert ladder(50) == (25, 50)
    assert ladder(7) == (7,)


def exact(plan, value):
    """Replicates without noise of a limit known at every number of particles and blocks."""
    return {
        term: np.full(
            (3, 1), value(term.particles, term.depth) - term.difference * value(term.particles, term.depth / 2)
        )
        for term in plan
    }


def test_first_orders_are_extrapolated_away():
    """In particles the first, in blocks two."""
    plan = plan_of(1024, (4, 8, 16, 32), WHOLE)
    found = Estimate.of(plan, exact(plan, lambda n, L: 1 + 3 / L + 7 / L**2 + 5 / n), WHOLE)
    assert found.mean == pytest.approx(1, abs=1e-12)
    assert found.errors.discretisation_error == pytest.approx(7 / (16 * 32), abs=1e-12)  # of one extrapolation alone
    assert found.errors.standard_error == pytest.approx(0, abs=1e-12)
    plan = plan_of(1024, ladder(48), None)
    found = Estimate.of(plan, exact(plan, lambda n, L: 1 + 3 / L + 5 / n), None)
    assert found.mean == pytest.approx(1 + 3 / 48, abs=1e-12)
    assert found.errors.half_width == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (0.5, 1), (1, 1.5)])
def test_any_two_powers_are_extrapolated_away(first, second):
    extrapolation = Extrapolation(first, second)
    plan = plan_of(1024, (4, 8, 16, 32), extrapolation)
    found = Estimate.of(plan, exact(plan, lambda n, L: 1 + 3 / L**first + 7 / L**second + 5 / n), extrapolation)
    assert found.mean == pytest.approx(1, abs=1e-12)
    found = Estimate.of(plan, exact(plan, lambda n, L: 1 + 3 / L**first), extrapolation)
    assert found.errors.discretisation_error == pytest.approx(0, abs=1e-12)  # one extrapolation is enough


@pytest.mark.parametrize(("second", "third", "power"), [(7, 10, 3), (7, -10, 3), (0, 3, 1.5)])
def test_what_extrapolation_leaves_is_covered(second, third, power):
    """Third order beside second, and an order that no expansion in powers of 1/L has."""
    plan = plan_of(1024, (4, 8, 16), WHOLE)
    found = Estimate.of(plan, exact(plan, lambda n, L: 1 + 3 / L + second / L**2 + third / L**power), WHOLE)
    assert 0 < np.abs(found.mean - 1) < found.errors.discretisation_error
    assert found.resolved


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_what_a_resolution_leaves_is_covered(power):
    """Differences add up to the finest resolution, and what it leaves falls at least as the resolution does."""

    def value(n, L, resolution):
        return 1 + 3 / L + 5 / n + 2 * resolution**power

    resolutions = resolutions_to(0.02)
    assert resolutions == (0.08, 0.04, 0.02)
    assert resolutions_to(0.0) == (0.0,)
    plan = plan_of(1024, (4, 8), None, resolutions)
    samples = {
        term: np.full(
            (3, 1),
            value(term.particles, term.depth, term.resolution)
            - term.difference * value(term.particles, term.depth / 2, term.resolution)
            - term.refined * value(term.particles, term.depth, 2 * term.resolution),
        )
        for term in plan
    }
    found = Estimate.of(plan, samples, None)
    assert found.mean == pytest.approx(1 + 3 / 8 + 2 * 0.02**power, abs=1e-12)
    before, last = 2 * (0.08**power - 0.04**power), 2 * (0.04**power - 0.02**power)
    assert found.errors.resolution_error == pytest.approx(3 * max(last, before / 2), rel=1e-9)
    assert found.errors.resolution_error > 2.99 * 2 * 0.02**power
    assert found.errors.half_width == pytest.approx(found.errors.resolution_error, rel=1e-9)
    assert found.coarse
    assert not found.resolved


def test_intervals_of_unequal_means_cover():
    """Means of few replicates with different variances: the share of 95 % intervals that cover, within its sampling
    error (a fresh seed fails once in 10,000), and at most a percent off by Welch's approximation."""
    plan = plan_of(64, (4, 8), None)
    rng = np.random.default_rng(0)
    trials = 20_000
    samples = {
        term: scale * rng.normal(size=(count, trials))
        for (term, scale, count) in zip(plan, (1.0, 2.0, 0.3), (16, 16, 4), strict=True)
    }
    found = Estimate.of(plan, samples, None)
    covered = int(np.sum(np.abs(found.mean) <= found.errors.half_width))
    assert binom.ppf(5e-5, trials, 0.94) <= covered <= binom.isf(5e-5, trials, 0.96)
    # the standard error itself
    assert found.errors.standard_error.mean() == pytest.approx(found.mean.std(), rel=0.03)


def test_replicates_are_shared_out_at_the_least_work():
    """Against all other ways to reach the same variance by moving work between two means."""
    terms = (Term(64, 4, False), Term(64, 16, True))
    variances = dict(zip(terms, (4.0, 0.25), strict=True))

    counts = multilevel._allocate(variances, 0.01, dict.fromkeys(terms, 10**6))
    capped = multilevel._allocate(variances, 0.01, dict.fromkeys(terms, 10))
    assert set(capped.values()) == {10 * multilevel.GROWTH}
    variance = sum(variances[term] / counts[term] for term in terms)
    assert 0.99e-4 < variance <= 1e-4
    work = sum(term.cost * counts[term] for term in terms)
    for first in np.geomspace(0.5, 2, 9) * counts[terms[0]]:
        second = variances[terms[1]] / max(variance - variances[terms[0]] / first, 1e-12)
        assert terms[0].cost * first + terms[1].cost * second > 0.9999 * work


@pytest.mark.parametrize(("grid", "layers"), [(Grid(np.array(3)), (6, 7, 8)), (Grid(np.array(3), 2), (6, 8, 10))])
def test_a_coarse_block_has_the_noise_of_its_fine_ones(grid, layers):
    """Of two matrices a block, the inner one that of inner ones."""
    key, like = jax.random.key(0), jnp.zeros((3, 1000))
    for direction in (0, 1):
        fine = [gaussians(key, direction, jnp.array(layer), jnp.array(2), like) for layer in layers]
        coarse, _ = PlainNoise(key, grid).draw(direction, jnp.array(2), jnp.array(2), like, keep=True)
        np.testing.assert_allclose(coarse, sum(fine) / 3**0.5, rtol=0, atol=1e-15)


# ------------------------------------------------------------------ solutions


GRAM = np.array([[1.0, 0.3], [0.3, 0.8]])
TARGETS = np.array([1.0, -0.5])
SHARED = estimate.CAPACITY  # a depth whose programs are those of infinite depth


def linear_task():
    return nfd.Task(np.linalg.cholesky(GRAM) * 2**0.5, TARGETS)


@functools.cache
def linear(closure, depth, **options):
    """An estimate for the linear network, whose error bars are nearly all discretisation."""
    options = {"steps": 3, "learning_rate": 0.4, "particles": 512} | options
    return nfd.solve_limit(linear_task(), nfd.ResNet(depth, "identity"), closure=closure, **options)


@pytest.mark.parametrize("closure", ["coupled", slow("decoupled")])
def test_infinite_depth_of_the_linear_network(closure):
    """Against the exact recursion at n = L = infinity. Standard errors are allowed for at a false-alarm rate of 5e-5
    over all entries; the rest is what the error bars say of the discretisation."""
    run = linear(closure, math.inf)
    expected = analytic.linear_outputs(GRAM, TARGETS, math.inf, 1.0, 0.4, 3, closure)
    bars = run.errors["outputs"]
    entries = expected.size
    bound = (
        student.isf(5e-5 / 2 / entries, multilevel.PILOT_DIFFERENCES - 1) * bars.standard_error
        + bars.discretisation_error
    )
    assert np.all(np.abs(run.outputs[..., 0] - expected) <= bound[..., 0] + 1e-12)
    assert run.errors["loss"].half_width.max() < 0.01  # and the bars say something
    other = analytic.linear_outputs(GRAM, TARGETS, math.inf, 1.0, 0.4, 3, CLOSURES[closure == "coupled"])
    assert np.abs(run.outputs[..., 0] - other)[1:].max() > 4 * bars.half_width.max()
    assert run.settings["depths"][0] == 4
    assert run.tolerance_met is None


@pytest.mark.slow
def test_finite_depth_has_no_discretisation_error():
    run = linear("coupled", SHARED, tolerance=0.05)
    expected = analytic.linear_outputs(GRAM, TARGETS, SHARED, 1.0, 0.4, 3, "coupled")
    bars = run.errors["outputs"]
    assert np.all(bars.discretisation_error == 0)
    bound = student.isf(5e-5 / 2 / expected.size, multilevel.PILOT_DIFFERENCES - 1) * bars.standard_error
    # what is left after n and n / 4: the next order in 1 / n, below a millionth of numbers of order one
    assert np.all(np.abs(run.outputs[..., 0] - expected) <= bound[..., 0] + (4 / 512) ** 2)
    assert run.tolerance_met
    assert run.outcomes == (Outcome.OK,)


def test_a_budget_too_small_says_so():
    run = linear("coupled", math.inf, tolerance=1e-9, budget=1e-3)
    assert run.outcomes == (Outcome.TOLERANCE_NOT_MET,)
    assert "raise budget or tolerance" in run.summary()
    assert not run.tolerance_met
    assert np.all(np.isfinite(run.errors["loss"].half_width))
    assert set(run.settings["replicates"].values()) == {multilevel.FEWEST}
    # the same replicates, fewer of them
    full = linear("coupled", math.inf)
    gap = np.abs(run.outputs - full.outputs)
    assert 0 < gap.max() < run.errors["outputs"].half_width.max()


def test_the_last_depth_ends_an_estimate(monkeypatch):
    """Where more replicates would not help, it ends long before its budget."""
    monkeypatch.setattr(estimate, "DEEPEST", 16)
    run = linear("coupled", math.inf, tolerance=1e-6)
    assert run.settings["depths"] == [4, 8, 16]
    assert run.outcomes == (Outcome.TOLERANCE_NOT_MET,)
    assert run.errors["loss"].discretisation_error.max() > 1e-6


@pytest.mark.slow
def test_every_quantity_has_error_bars():
    rng = np.random.default_rng(0)
    held_out = nfd.Task(rng.normal(size=(2, 3)), np.array([0, 2]), loss="cross_entropy", classes=3)
    task = nfd.Task(rng.normal(size=(4, 3)), np.arange(4) % 3, loss="cross_entropy")
    task = task.minibatches(2).holding_out(held_out)
    model = nfd.ResNet(8, "tanh")
    run = nfd.solve_limit(task, model, steps=2, particles=512, tolerance=0.05, evaluate_at=(0, 2))
    assert run.outputs.shape == (2, 4, 3)
    assert set(run.errors) == {"outputs", "batch_loss", "held_out_outputs", "loss", "held_out_loss"}
    shifted = run.outputs - run.outputs.max(axis=-1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(run.loss, -(task.targets * log).sum(-1).mean(-1), rtol=1e-12)
    dataset = run.to_dataset()
    for name, bars in run.errors.items():
        assert dataset[name].dims == dataset[f"{name}_half_width"].dims
        np.testing.assert_array_equal(dataset[f"{name}_standard_error"], bars.standard_error)
    assert np.all(run.errors["loss"].half_width <= 0.05 * run.loss)
    np.testing.assert_array_equal(run.standard_error("loss"), run.errors["loss"].standard_error)


def test_what_an_estimate_refuses():
    task = linear_task()
    with pytest.raises(ValueError, match="observe sees one solution"):
        nfd.solve_limit(task, nfd.ResNet(math.inf), observe=nfd.observables.kernels)
    with pytest.raises(ValueError, match="particles must be at least 8 for error bars"):
        nfd.solve_limit(task, nfd.ResNet(4), tolerance=0.1, particles=4)
    for name in ("tolerance", "budget"):
        with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got 0"):
            nfd.solve_limit(task, nfd.ResNet(math.inf), **{name: 0.0})


def test_an_estimate_that_diverges():
    """It ends with the least that an answer takes, long before its budget, whatever its half-widths are."""
    run = linear("coupled", SHARED, learning_rate=1e120, tolerance=0.1)
    assert run.outcomes == (Outcome.DIVERGED,)
    assert run.tolerance_met is False
    assert set(run.settings["replicates"].values()) == {multilevel.FEWEST}


# ------------------------------------------------------------------ what to draw next, and when to stop


TERMS = tuple(plan_of(1024, (4, 8, 16), None))


@pytest.mark.parametrize(
    ("loss", "half_width", "expected"),
    [
        (2.0, 1.0, 0.5),
        (2.0, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (0.0, 1.0, math.inf),
        (math.nan, math.nan, math.inf),
        (math.inf, 1.0, math.inf),
        (1.0, math.nan, math.inf),
        (math.nan, 0.0, math.inf),
    ],
)
def test_what_is_not_finite_is_within_no_tolerance(loss, half_width, expected):
    assert multilevel._relative(np.array([loss]), np.array([half_width])) == expected


def drawn(counts, have, **state):
    """Everything drawn until a round ends, at most so many of each mean."""
    have, state = dict(have), {"answered": False, "late": False, "finite": True} | state
    while (term := multilevel.next_draw(counts, have, **state)) is not None:
        have[term] += 1
    return have


def test_the_least_is_drawn_first_and_then_the_cheapest():
    nothing, wanted = dict.fromkeys(TERMS, 0), dict.fromkeys(TERMS, 5)
    assert drawn(wanted, nothing) == wanted
    least = dict.fromkeys(TERMS, multilevel.FEWEST)
    assert drawn(wanted, nothing, late=True) == least  # a first answer is given, however late
    assert drawn(wanted, nothing, finite=False) == least  # nothing makes a diverged one finite again
    assert drawn(wanted, nothing, late=True, answered=True) == nothing
    deeper = least | {TERMS[-1]: 0}
    assert drawn(wanted, deeper, late=True, answered=True) == deeper
    assert drawn(wanted, deeper, finite=False, answered=True) == least
    assert multilevel.next_draw(wanted, deeper, answered=True, late=False, finite=True) == TERMS[-1]
    assert multilevel.next_draw(wanted, least, answered=True, late=False, finite=True) == min(
        TERMS, key=lambda term: term.cost
    )


def attempt(**changes):
    """Of means with variances that fall as their cost rises."""
    values = {
        "depths": (4, 8, 16),
        "resolutions": (0.0,),
        "counts": dict.fromkeys(TERMS, 8),
        "half_width": 0.1,
        "loss": 1.0,
        "discretisation_error": 0.0,
        "resolved": False,
        "resolution_error": 0.0,
        "coarse": False,
        "quantile": 2.0,
        "variances": {term: 1 / term.cost for term in TERMS},
        "result": None,
    }
    return multilevel.Attempt(**(values | changes))


def following(found, tolerance=0.05, *, seconds=None, left=math.inf, deepest=1024):
    return multilevel.next_round(found, tolerance, seconds=seconds or {}, left=left, deepest=deepest)


@pytest.mark.parametrize("half_width", [math.nan, math.inf, 0.04])
def test_no_round_follows_a_tolerance_met_or_a_number_that_is_not_finite(half_width):
    assert following(attempt(half_width=half_width)) is None
    assert following(attempt(), None) is None


def test_a_round_has_no_more_replicates_than_time():
    seconds = {TERMS[0]: 1e-3 * TERMS[0].cost, TERMS[1]: 2e-3 * TERMS[1].cost}
    each = {term: seconds.get(term, 1e-3 * term.cost) for term in TERMS}  # the others at the least for their cost
    found = attempt(variances=dict.fromkeys(TERMS, 1e3))

    def needed(wanted):
        return sum(each[term] * (count - found.counts[term]) for term, count in wanted.counts.items())

    whole = following(found, seconds=seconds)
    assert set(whole.counts.values()) == {8 * multilevel.GROWTH}
    assert following(found, seconds=seconds, left=needed(whole)) == whole
    half = following(found, seconds=seconds, left=needed(whole) / 2)
    assert 0.9 * needed(whole) / 2 < needed(half) <= needed(whole) / 2
    assert all(whole.counts[term] >= count >= found.counts[term] for term, count in half.counts.items())
    assert following(found, seconds=seconds, left=min(each.values()) / 2) is None
    assert following(found, seconds=seconds, left=-1.0) is None


def test_a_deeper_round_is_begun_where_it_can_end():
    found, seconds = attempt(discretisation_error=0.04, resolved=True), {TERMS[0]: 1e-3 * TERMS[0].cost}
    whole, new = following(found, seconds=seconds), Term(1024, 32, True)
    assert whole.depths == (4, 8, 16, 32)
    assert whole.counts[new] == multilevel.PILOT_DIFFERENCES
    assert following(found, seconds=seconds, deepest=16) is None
    least = 1e-3 * sum(
        term.cost
        * ((multilevel.PILOT_DIFFERENCES if term.difference else multilevel.PILOT) - found.counts.get(term, 0))
        for term in (*TERMS, new)
    )
    assert following(found, seconds=seconds, left=1.01 * least).depths == whole.depths
    assert following(found, seconds=seconds, left=0.99 * least) is None


def test_a_finer_round_is_begun_where_the_resolution_counts():
    resolutions = (0.08, 0.04, 0.02)
    plan = plan_of(1024, (4, 8, 16), None, resolutions)
    found = attempt(
        resolutions=resolutions,
        counts=dict.fromkeys(plan, 8),
        variances={term: 1 / term.cost for term in plan},
        resolution_error=0.04,
        coarse=True,
    )
    finer = following(found)
    assert finer.resolutions == (0.08, 0.04, 0.02, 0.01)
    assert finer.depths == found.depths
    assert finer.counts[Term(1024, 4, False, 0.01, True)] == multilevel.PILOT_DIFFERENCES
    assert following(found._replace(coarse=False)).resolutions == resolutions  # noise: more replicates
    assert following(found._replace(resolution_error=0.01)).resolutions == resolutions
    assert following(found._replace(resolutions=(0.004, 0.002, multilevel.FINEST))) is None


class Clock:
    """Time that passes where a solution is drawn, a second for this much work."""

    WORK = 4096.0

    def __init__(self):
        self.now, self.begun = 0.0, []

    def monotonic(self):
        return self.now

    def solve(self, replicates, key, particles, depth, refinement, capacity, resolution):
        self.begun.append(self.now)
        self.now += particles * depth / self.WORK
        noise = float(jax.random.normal(jax.random.fold_in(key, 1)))
        outputs = np.full((2, 2, 1), 0.5 + 1 / depth + 0.1 * noise / depth)
        return {"outputs": outputs, "batch_loss": np.ones(1)}


def test_every_replicate_is_a_draw_of_its_own(monkeypatch):
    """A key each, which the two grids of a difference share: that of half the depth adds up the other's noise."""
    seen = {}

    def solve(replicates, key, particles, depth, refinement, capacity, resolution):
        key = tuple(np.asarray(jax.random.key_data(key)).tolist())
        seen.setdefault(key, []).append((particles, depth, refinement))
        return {"outputs": np.full((2, 2, 1), depth + np.sum(key) / 2.0**40), "batch_loss": np.ones(1)}

    monkeypatch.setattr(estimate.Replicates, "_solve", solve)
    linear.__wrapped__("coupled", math.inf, steps=1)
    drawn = sorted(seen.values())
    expected = [[(128, 4, 1)], [(512, 4, 1)]] * multilevel.PILOT
    expected += [[(512, depth, 1), (512, depth // 2, 2)] for depth in (8, 16)] * multilevel.PILOT_DIFFERENCES
    assert drawn == sorted(expected)


def test_a_difference_of_resolutions_is_of_one_noise(monkeypatch):
    """Which no other mean has, and from one at twice the resolution."""
    seen = {}

    def solve(replicates, key, particles, depth, refinement, capacity, resolution):
        key = tuple(np.asarray(jax.random.key_data(key)).tolist())
        seen.setdefault(key, []).append((particles, depth, refinement, resolution))
        return {"outputs": np.full((2, 2, 1), depth + np.sum(key) / 2.0**40), "batch_loss": np.ones(1)}

    monkeypatch.setattr(estimate.Replicates, "_solve", solve)
    linear.__wrapped__("coupled", 7, steps=1, resolution=0.02, tolerance=100.0)
    expected = [[(128, 7, 1, 0.08)], [(512, 7, 1, 0.08)]] * multilevel.PILOT
    expected += [[(512, 7, 1, 0.04), (512, 7, 1, 0.08)], [(512, 7, 1, 0.02), (512, 7, 1, 0.04)]] * (
        multilevel.PILOT_DIFFERENCES
    )
    assert sorted(seen.values()) == sorted(expected)


@pytest.mark.parametrize("budget", [1e-3, 20.0, 100.0, 300.0, 1000.0, slow(3000.0)])
def test_a_budget_is_exceeded_by_what_has_begun(monkeypatch, budget):
    """By one replicate, beyond the least that a first answer needs."""
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    monkeypatch.setattr(estimate.threads, "at_once", lambda needed: 1)
    monkeypatch.setattr(estimate.Replicates, "_solve", lambda *arguments: clock.solve(*arguments))
    run = linear.__wrapped__("coupled", math.inf, tolerance=1e-6, budget=budget, steps=1)
    assert run.outcomes == (Outcome.TOLERANCE_NOT_MET,)
    least = multilevel.FEWEST * sum(term.cost for term in plan_of(512, (4, 8, 16), None)) / clock.WORK
    deepest = 1.5 * 512 * max(run.settings["depths"]) / clock.WORK
    assert clock.now <= max(budget + deepest, least)
    if budget > 2 * least:  # and it is used
        assert clock.now > 0.5 * budget


@pytest.mark.parametrize("most", [16, 32])
def test_memory_ends_an_estimate_with_what_it_has(monkeypatch, most):
    """Where deeper solutions do not fit: the depths that there are, with their error bars."""
    monkeypatch.setattr(estimate, "DEEPEST", 64)

    def solve(replicates, key, particles, depth, refinement, capacity, resolution):
        if depth > limit[0]:
            raise MemoryError("memory ended a solution")
        noise = float(jax.random.normal(jax.random.fold_in(key, 1)))  # the law of depth is what is not known
        return {"outputs": np.full((2, 2, 1), 0.5 + depth**-0.5 + 1e-9 * noise), "batch_loss": np.ones(1)}

    limit = [most]
    monkeypatch.setattr(estimate.Replicates, "_solve", solve)
    options = {"tolerance": 1e-6, "steps": 1}
    run = linear.__wrapped__("coupled", math.inf, **options)
    assert max(run.settings["depths"]) == most
    assert run.outcomes == (Outcome.OUT_OF_MEMORY,)
    assert "for want of memory" in run.summary()
    assert np.all(np.isfinite(run.errors["loss"].half_width))
    limit[0] = 64
    assert linear.__wrapped__("coupled", math.inf, **options).outcomes == (Outcome.TOLERANCE_NOT_MET,)
    limit[0] = 8  # no answer that it could end with
    with pytest.raises(MemoryError, match="memory ended a solution"):
        linear.__wrapped__("coupled", math.inf, **options)
