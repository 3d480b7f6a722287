"""The bootstrap against scipy's and against units written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from opdprobe.probes.bootstrap import (
    N_BOOT,
    draw_units,
    percentile_interval,
    ratio,
    resample,
    resample_statistic,
)


@given(st.integers(1, 30), st.integers(0, 5))
def test_every_replicate_draws_n_units(n, seed):
    drawn = draw_units(n, seed, 100)
    assert drawn.shape == (100, n)
    assert (drawn.sum(axis=1) == n).all()
    np.testing.assert_array_equal(drawn, draw_units(n, seed, 100))


def test_no_units_give_no_draws():
    assert draw_units(0, 0).shape == (N_BOOT, 0)


@given(arrays(float, (3, 20), elements=st.floats(-5, 5) | st.just(np.nan)))
def test_an_interval_is_numpys_without_nan(samples):
    low, high = percentile_interval(samples, 0.9)
    for row, ends in zip(samples, zip(low, high, strict=True), strict=True):
        known = row[~np.isnan(row)]
        want = np.quantile(known, [0.05, 0.95]) if known.size else [np.nan, np.nan]
        np.testing.assert_allclose(ends, want, rtol=1e-12, atol=1e-300)


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(1).normal(3, 2, 60)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    ours = percentile_interval(resample(values).samples)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours == pytest.approx([*theirs.confidence_interval], abs=0.1 * width)


def test_a_mean_by_rows_is_the_mean_by_counts():
    values = np.random.default_rng(3).normal(size=12)
    units = np.repeat(np.arange(4), 3)
    found = resample_statistic(lambda rows: float(values[rows].mean()), units)
    want = resample(values.reshape(4, 3).sum(axis=1), np.full(4, 3))
    assert found.value == pytest.approx(want.value)
    np.testing.assert_allclose(found.samples, want.samples)


def test_division_by_zero_is_nan():
    assert np.isnan(ratio(1.0, 0.0))
    np.testing.assert_array_equal(ratio(np.array([1.0, 2.0]), np.array([0.0, 4.0])), [np.nan, 0.5])
