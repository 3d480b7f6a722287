"""Estimates: values as plain means, intervals over seeds, and what is drawn together."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from opdprobe.probes.bootstrap import (
    N_BOOT,
    Estimate,
    draw_units,
    numbered_keys,
    ratio,
    resample,
)
from opdprobe.report.estimate import combine, exact, interval_name, ranked

RNG = np.random.default_rng(0)
NUMBERS = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


@given(NUMBERS, st.data())
def test_the_value_is_the_mean(values, data):
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(values), max_size=len(values)))
    assert resample(np.array(values)).value == pytest.approx(np.mean(values))
    sums = np.array(values) * weights
    want = np.average(values, weights=weights)
    assert resample(sums, np.array(weights)).value == pytest.approx(want, abs=1e-12)


def test_the_samples_are_means_of_units_drawn_again():
    values, weights = RNG.random(7), RNG.integers(1, 9, 7)
    drawn = draw_units(numbered_keys(7)).astype(int)
    rows = [[i for i, times in enumerate(row) for _ in range(times)] for row in drawn]
    want = [
        sum(values[i] for i in row) / sum(weights[i] for i in row) if row else np.nan
        for row in rows
    ]
    np.testing.assert_allclose(resample(values, weights).samples, np.array(want))


def test_nothing_has_no_mean_and_warns_of_nothing():
    estimate = resample(np.array([0.0, 3.0]), np.array([0, 1]))
    assert estimate.value == 3
    # Not drawing the full unit, 1 / e of all draws, gives nothing to divide by.
    assert set(estimate.samples[~np.isnan(estimate.samples)]) == {3.0}
    assert 0.3 < np.isnan(estimate.samples).mean() < 0.43
    assert combine([estimate]) == pytest.approx((3, np.nan, np.nan), nan_ok=True)
    assert np.isnan(combine([resample(np.zeros(2), np.zeros(2))])).all()


@given(st.integers(0, 3), st.floats(-1, 1))
def test_estimates_over_the_same_problems_are_paired(seed, shift):
    """A shift of every problem by the same amount has no spread, however much problems differ."""
    values = np.random.default_rng(seed).random(30)
    change = resample(values + shift).map(resample(values), by=np.subtract)
    assert change.value == pytest.approx(shift, abs=1e-9)
    assert np.ptp(change.samples) < 1e-9
    assert resample(values).samples.std() > 0.02


def test_map_takes_the_function_of_value_and_of_every_sample():
    a, b, c = (resample(RNG.random(5)) for _ in range(3))
    got = a.map(b, c, by=lambda x, y, z: x * y - z)
    assert got.value == a.value * b.value - c.value
    np.testing.assert_array_equal(got.samples, a.samples * b.samples - c.samples)


@pytest.mark.parametrize("denominator", [0, 0.0, -0.0])
def test_ratio_by_zero_is_nan_not_infinity(denominator):
    assert np.isnan(ratio(1.0, denominator))
    np.testing.assert_array_equal(ratio(np.array([1.0, 6.0]), np.array([denominator, 3.0]))[1], 2)


def test_one_seed_has_the_bootstraps_interval():
    found = resample(RNG.normal(size=60))
    assert combine([found]) == (found.value, *found.interval())


def test_two_seeds_are_averaged_problem_by_problem():
    a, b = RNG.random((2, 50))
    mean, low, high = combine([resample(a), resample(b)])
    assert mean == pytest.approx((a.mean() + b.mean()) / 2)
    assert (low, high) == pytest.approx(resample((a + b) / 2).interval(), abs=1e-8)


@pytest.mark.parametrize("level", [0.95, 0.9])
@pytest.mark.parametrize("n", [3, 5, 20])
def test_from_three_seeds_on_exact_numbers_have_students_interval(n, level):
    values = RNG.normal(2, 0.3, n)
    mean, low, high = combine([exact(v) for v in values], level)
    want = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(want)


def test_an_interval_over_seeds_ends_where_the_quantity_does():
    rows = [np.full(40, mean) for mean in (0.4, 0.55, 0.7)]
    half = stats.t.ppf(0.995, 2) * 0.15 / 3**0.5
    assert 0.55 - half < 0 < 1 < 0.55 + half
    for bounds, low, high in [
        ((-np.inf, np.inf), 0.55 - half, 0.55 + half),
        ((0, np.inf), 0, 0.55 + half),
        ((0, 1), 0, 1),
    ]:
        found = combine([resample(row, bounds=bounds) for row in rows], 0.99)
        assert found == pytest.approx((0.55, low, high))


@pytest.mark.parametrize("level", [0.95, 0.9])
def test_what_seeds_share_widens_their_interval(level):
    """Half-widths in squares: of Student's t, and of the percentiles of the mean of the samples."""
    scores = RNG.random((4, 30)) + RNG.normal(0, 0.1, (4, 1))  # four seeds on the same problems
    drawn = draw_units(numbered_keys(30))
    samples = [
        np.mean(
            [sum(t * s for t, s in zip(times, row, strict=True)) / sum(times) for row in scores]
        )
        for times in drawn
    ]
    over_seeds = stats.t.ppf((1 + level) / 2, 3) * stats.sem(scores.mean(axis=1))
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    half = math.hypot(over_seeds, (high - low) / 2)
    found = combine([resample(row) for row in scores], level)
    assert found == pytest.approx((scores.mean(), scores.mean() - half, scores.mean() + half))


def test_one_model_measured_once_for_all_seeds_has_the_interval_of_its_problems():
    one = resample(RNG.random(40))
    ends = np.quantile(one.samples, [0.025, 0.975])
    mean, low, high = combine([one] * 5)
    assert mean == pytest.approx(one.value)
    assert high - low == pytest.approx(ends[1] - ends[0])
    assert (low + high) / 2 == pytest.approx(one.value)


def test_samples_in_which_a_ratio_has_no_value_are_left_out():
    values, counts = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 0.0])
    found = [resample(values + i, counts) for i in range(3)]
    drawn = draw_units(numbered_keys(3))
    known = drawn[:, :2].sum(axis=1) > 0
    assert not known.all()
    samples = np.mean(
        [(drawn @ (values + i))[known] / (drawn @ counts)[known] for i in range(3)], 0
    )
    over_seeds = stats.t.ppf(0.975, 2) * stats.sem([e.value for e in found])
    low, high = np.quantile(samples, [0.025, 0.975])
    _, got, _ = combine(found)
    want = np.mean([e.value for e in found]) - math.hypot(over_seeds, (high - low) / 2)
    assert got == pytest.approx(want)


@pytest.mark.parametrize("n", [1, 2])
def test_the_level_is_that_of_the_bootstrap_for_fewer_seeds(n):
    estimates = [resample(RNG.normal(size=60)) for _ in range(n)]
    first, *others = estimates
    joined = first.map(*others, by=lambda *values: np.mean(values, axis=0))
    assert combine(estimates, 0.9)[1:] == pytest.approx(joined.interval(0.9))
    (_, low, high), (_, lower, higher) = combine(estimates, 0.9), combine(estimates)
    assert lower < low < high < higher


def test_an_exact_number_has_no_interval_with_one_seed():
    mean, low, high = combine([exact(0.3)])
    assert mean == 0.3
    assert np.isnan([low, high]).all()


def test_what_is_unknown_stays_unknown():
    unknown = Estimate(np.nan, np.full(N_BOOT, np.nan))
    known = resample(RNG.random(9))
    for estimates in ([unknown], [known, unknown], [known, known, unknown, known]):
        assert np.isnan(combine(estimates)).all()


def test_the_interval_is_named():
    assert "bootstrap" in interval_name(1)
    assert "bootstrap" in interval_name(2)
    assert interval_name(3) == (
        "95 % over 3 seeds (Student's t) and over prompts or problems (bootstrap)"
    )


# Ranks


def test_ranked_looks_at_the_mean_over_seeds():
    candidates = {"a": [exact(0.5), exact(0.5)], "b": [exact(0.9), exact(0.0)], "c": [exact(0.6)]}
    assert ranked(candidates) == ["b", "a", "c"]
