"""Slopes of synthetic power laws: the interval covers as often as it says."""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import binom

from nfd_jax.statistics import (
    Estimate,
    Sampled,
    Slope,
    bootstrap,
    combined,
    fit_power,
    fit_slope,
    normal,
    quantile,
    stacked,
)

SIZES = np.array([64, 128, 256, 512])
EXPONENT, RUNS = -0.5, 2000

LAWS = {
    "lognormal": lambda draw, shape: np.exp(0.3 * draw.standard_normal(shape)),
    "gaussian": lambda draw, shape: np.abs(draw.standard_normal(shape)),
    "ten outputs": lambda draw, shape: np.sqrt(draw.chisquare(10, shape)),
    "one seed everywhere": lambda draw, shape: (
        np.sqrt(draw.chisquare(10, (shape[0], 1))) * np.ones(shape) + 0.1 * draw.random(shape)
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("average", ["rms", "log"])
def test_coverage(law, average):
    """95 % intervals hold the exponent in 92 % to 97 % of runs, also where the law is far from log-normal. Counts are
    binomial: fresh ones leave the bounds less than once in 100,000 runs."""
    draw = np.random.default_rng(0)
    hits = sum(
        fit_slope(SIZES, 3.0 * LAWS[law](draw, (16, 4)) * SIZES**EXPONENT, average=average).agrees(EXPONENT)
        for _ in range(RUNS)
    )
    assert binom.ppf(5e-6, RUNS, 0.92) <= hits <= binom.ppf(1 - 5e-6, RUNS, 0.97)


def test_exact_power_law():
    slope = fit_slope(SIZES, np.tile(2.0 * SIZES**1.5, (3, 1)))
    assert slope.value == pytest.approx(1.5, abs=1e-12)
    assert slope.standard_error < 1e-12
    assert slope(1000) == pytest.approx(2.0 * 1000**1.5)
    assert slope.freedom == 2


def test_scale_free():
    """Squares of the values may overflow; the slope does not."""
    values = np.exp(np.random.default_rng(0).standard_normal((5, 4)))
    small, large = fit_slope(SIZES, values * 1e-200), fit_slope(SIZES, values * 1e200)
    assert small.value == pytest.approx(large.value)
    assert small.standard_error == pytest.approx(large.standard_error)


def test_the_jackknife_of_a_mean_is_the_mean():
    """For the geometric mean value and error are those of one slope a seed."""
    values = np.exp(np.random.default_rng(1).standard_normal((6, 4)))
    slopes = np.polyfit(np.log(SIZES), np.log(values).T, 1)[0]
    slope = fit_slope(SIZES, values, average="log")
    assert slope.value == pytest.approx(slopes.mean())
    assert slope.standard_error == pytest.approx(slopes.std(ddof=1) / 6**0.5)


def test_intervals():
    slope = Slope(0.5, 0.1, 10)
    low, high = slope.interval
    assert (low, high) == pytest.approx((0.5 - 0.2228, 0.5 + 0.2228), abs=1e-4)  # Student's quantile 2.228
    assert slope.half_width(0.99) > slope.half_width()
    assert slope.agrees(0.7)
    assert not slope.agrees(0.8)
    assert slope.agrees(0.8, allowance=0.1)
    assert str(slope) == "+0.50 ± 0.22"


@pytest.mark.parametrize(
    ("sizes", "values", "options", "message"),
    [
        (SIZES, np.ones((2, 3)), {}, r"values must have one column a size, got shape \(2, 3\) and 4 sizes"),
        (SIZES, np.ones((1, 4)), {}, "values must have at least two seeds"),
        (SIZES, np.zeros((2, 4)), {}, "values must be positive to have a logarithm, got 0"),
        (-SIZES, np.ones((2, 4)), {}, "sizes must be positive to have a logarithm, got -64"),
        ([2, 2], np.ones((2, 2)), {}, r"sizes must be at least two different numbers, got \[2, 2\]"),
        (SIZES, np.full((2, 4), np.nan), {}, "values must be finite"),
        (SIZES, np.ones((2, 4)), {"average": "median"}, "unknown average 'median'; choose one of 'rms', 'log'"),
        (SIZES, np.ones((2, 4)), {"confidence": 1.0}, r"confidence must lie between 0 and 1, got 1\.0"),
    ],
)
def test_bad_arguments(sizes, values, options, message):
    with pytest.raises(ValueError, match=message):
        fit_slope(sizes, values, **options)


def test_bootstrap_covers():
    """95 % intervals of a mean of ten skewed values. Student's intervals of exponential values hold it in 90 % of
    runs; the bounds are left less than once in 100,000 runs where the truth lies between 88 % and 97 %."""
    draw, runs = np.random.default_rng(1), 600
    hits = sum(
        bootstrap(np.mean, draw.exponential(size=10), resamples=200, seed=run).estimate().agrees(1.0)
        for run in range(runs)
    )
    assert binom.ppf(5e-6, runs, 0.88) <= hits <= binom.ppf(1 - 5e-6, runs, 0.97)


def test_bootstrap_of_four_seeds_has_the_error_of_their_mean():
    """Within five errors of a standard deviation of so many resamples; without the factor it is 13 % less."""
    values = np.random.default_rng(4).standard_normal(4)
    found = bootstrap(np.mean, values, resamples=4000)
    assert found.errors == pytest.approx(values.std(ddof=1) / 2, rel=5 * 8000**-0.5)


def test_bootstrap_of_several_groups_and_functions_of_it():
    """The error of a difference of means is known; a linear map scales it exactly."""
    draw = np.random.default_rng(2)
    a, b = draw.standard_normal((200, 3)), 2 * draw.standard_normal((100, 3))
    found = bootstrap(lambda x, y: x.mean(axis=0) - y.mean(axis=0), a, b, resamples=2000)
    expected = np.sqrt(a.var(axis=0, ddof=1) / 200 + b.var(axis=0, ddof=1) / 100)
    np.testing.assert_allclose(found.values, a.mean(axis=0) - b.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.errors, expected, rtol=5 * (2 * 2000) ** -0.5 + 1 / 99)
    np.testing.assert_allclose(found.map(lambda x: -3 * x).errors, 3 * found.errors, rtol=1e-12)
    assert found.freedom == 99


def test_stacked_and_combined_parts_are_independent():
    """Parts made with one seed of the generator don't move together: errors add in quadrature."""
    parts = [normal(1.0, 0.1, resamples=4000), normal(2.0, 0.1, resamples=4000)]
    together = stacked(parts)
    correlation = np.corrcoef(together.draws.T)[0, 1]
    assert abs(correlation) < 5 * 4000**-0.5
    difference = combined(lambda a, b: a - b, *parts)
    assert difference.errors == pytest.approx(0.1 * 2**0.5, rel=5 * 8000**-0.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_power_with_known_errors_covers(sign):
    """Values of either sign, the last of them lost in noise: the interval holds the exponent as often as it says."""
    draw, runs = np.random.default_rng(3), 400
    law, errors = sign * 2.0 * SIZES**EXPONENT, np.full(4, 0.02)
    hits = sum(
        fit_power(SIZES, normal(law + errors * draw.standard_normal(4), errors, resamples=200)).agrees(EXPONENT)
        for _ in range(runs)
    )
    assert binom.ppf(5e-6, runs, 0.93) <= hits <= binom.ppf(1 - 5e-6, runs, 0.97)


def test_exact_power():
    slope = fit_power(SIZES, normal(-2.0 * SIZES**-1.37, 1e-9 * np.ones(4)))
    assert slope.value == pytest.approx(-1.37, abs=0.005**2)  # the parabola over steps of 0.005 is of second order
    assert slope(100) == pytest.approx(-2.0 * 100**-1.37, rel=1e-4)


def test_power_is_weighted_least_squares():
    """Of values off any power, whose errors differ, by another road."""
    measured = normal([1.0, 0.6, 0.2, 0.25], [0.02, 0.1, 0.05, 0.01])
    start, errors = (1.0, -0.5), measured.errors
    (_, power), _ = curve_fit(lambda x, a, p: a * x**p, [1.0, 2.0, 4.0, 8.0], measured.values, start, errors)
    assert fit_power([1, 2, 4, 8], measured).value == pytest.approx(power, abs=1e-4)


def test_no_power_law_is_no_exponent():
    """Noise about a jump fits best at the end of the search: nothing is said about the exponent."""
    assert fit_power([1, 2], normal([1e-9, 1.0], [1e-3, 1e-3])).standard_error == np.inf


def test_scattered_resamples_are_no_exponent():
    """Where some of them fit best at the end of the search, their spread says too little."""
    found = fit_power([1, 2], normal([1.0, 2.0], [0.6, 0.6]))
    assert abs(found.value) < 2
    assert found.standard_error == np.inf
    assert str(found) == "none"


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_what_diverged_has_no_exponent(lost):
    samples = np.array([[1.0, lost], [2.0, 3.0], [1.5, lost]])
    slope = fit_power([1, 2], bootstrap(lambda x: x.mean(axis=0), samples))
    assert np.isnan([slope.value, slope.standard_error]).all()
    assert str(slope) == "none"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.0, 0.1, "+1 ± 0.32"),
        (1.0, np.inf, "none"),
        (1.0, np.nan, "none"),
        (np.inf, 0.1, "none"),
        (np.nan, np.nan, "none"),
    ],
)
def test_numbers_without_an_interval_are_printed_as_none(value, error, text):
    assert str(Estimate(value, error, 3)) == text
    assert str(Slope(value, error, 3)) in (text, "+1.00 ± 0.32")


def test_intervals_are_students():
    """Of four seeds, 3.18 standard errors, where two would hold the truth in 86 % of cases."""
    assert quantile(3) == pytest.approx(3.182, abs=1e-3)
    assert quantile(np.inf) == pytest.approx(1.960, abs=1e-3)
    assert Estimate(0.0, 1.0, 3).half_width() == quantile(3)
    assert Sampled(np.zeros(2), np.array([[1.0, 2], [-1, -2]]), 3).half_widths == pytest.approx(
        quantile(3) * np.array([1, 2]) * 2**0.5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(np.mean, np.ones(1)), "at least two seeds"),
        (lambda: fit_power([1, 1], normal([1, 2], [1, 1])), "two different positive numbers"),
        (lambda: fit_power([1, 2], normal([1, 2, 3], [1, 1, 1])), "shape"),
    ],
)
def test_bad_samples(call, message):
    with pytest.raises(ValueError, match=message):
        call()
