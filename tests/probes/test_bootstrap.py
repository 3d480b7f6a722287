"""The bootstrap: its draws, its intervals written out replicate by replicate, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from opdprobe.probes.bootstrap import (
    _POISSON,
    MAX_UNITS,
    MIN_UNITS,
    MIN_UNITS_HEAVY,
    N_BOOT,
    binomial_interval,
    draw_units,
    folded,
    mean_intervals,
    numbered_keys,
    ratio,
    resample,
    resample_statistic,
    sum_by_unit,
    unit_keys,
)

RNG = np.random.default_rng(0)
KEYS = unit_keys(f"p{i}" for i in range(20))


def studentised(total, n, weights, level=0.95):
    """Compute the interval of a mean from its definition, one replicate after the other."""
    value = sum(total) / sum(n)

    def error(times):
        """Standard error of the mean of these units, each taken several times."""
        size, count = times.sum(), (times * n).sum()
        mean = (times * total).sum() / count
        squares = (times * (total - mean * n) ** 2).sum()
        return mean, np.sqrt(squares * size / (size - 1)) / count

    _, whole = error(np.ones(len(n)))
    pivots = sorted((mean - value) / own for mean, own in map(error, weights))
    sizes = sorted(map(abs, pivots))
    tail = round((1 - level) / 2 * len(pivots))
    size = sizes[-1 - 2 * tail]
    above, below = max(-pivots[tail], size), max(pivots[-1 - tail], size)
    return value - below * whole, value + above * whole


def test_weights_are_poisson_and_a_units_own():
    drawn = draw_units(KEYS, 3, 4000)
    assert drawn.shape == (4000, 20)
    assert drawn.mean() == pytest.approx(1, abs=0.02)
    assert drawn.var() == pytest.approx(1, abs=0.03)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 0.07
    np.testing.assert_array_equal(draw_units(KEYS[5:8], 3, 4000), drawn[:, 5:8])
    assert (draw_units(KEYS, 4, 4000) != drawn).any()
    assert draw_units(numbered_keys(0)).shape == (N_BOOT, 0)


def test_the_table_of_weights_is_poissons():
    counts = np.bincount(_POISSON, minlength=9) / 2**16
    np.testing.assert_allclose(counts, stats.poisson.pmf(np.arange(9), 1), atol=2**-16)
    assert _POISSON.mean() == pytest.approx(1, abs=1e-4)
    assert _POISSON.var() == pytest.approx(1, abs=3e-4)


def test_names_not_places_make_a_unit():
    assert unit_keys(["a", "b"])[1] == unit_keys(["b"])[0]
    assert np.unique(unit_keys(map(str, range(10_000)))).size == 10_000


@given(st.lists(st.integers(0, 5), max_size=12))
def test_rows_of_a_unit_are_added(units):
    keys, values = np.array(units, np.uint64), np.arange(2 * len(units), dtype=float).reshape(2, -1)
    found, (total,) = sum_by_unit(keys, values)
    assert found.tolist() == sorted(set(units))
    for key, column in zip(found, total.T, strict=True):
        np.testing.assert_array_equal(column, values[:, keys == key].sum(axis=1))


def test_many_units_are_joined_to_groups_whatever_their_order():
    keys = unit_keys(map(str, range(3000)))
    assert np.unique(folded(keys)).size < MAX_UNITS
    np.testing.assert_array_equal(folded(folded(keys)), folded(keys))


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_interval_is_studentised_replicate_by_replicate(level):
    n = RNG.integers(1, 9, 20).astype(float)
    total = n * RNG.lognormal(size=20)
    want = studentised(total, n, draw_units(KEYS), level)
    assert resample(total, n, keys=KEYS).interval(level) == pytest.approx(want, rel=1e-9)
    points = mean_intervals(
        np.stack([total, 3 - total], 1), np.stack([n, n], 1), draw_units(KEYS), level, least=20
    )
    assert points[:, 0] == pytest.approx(want, rel=1e-9)


def test_for_many_units_it_is_students():
    values = RNG.normal(3, 2, 400)
    want = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    width = want[1] - want[0]
    assert resample(values).interval() == pytest.approx(want, abs=0.08 * width)


@given(st.floats(-5, 5), st.floats(0.1, 5), st.permutations(range(20)))
def test_an_interval_moves_with_its_values_and_knows_no_order(shift, scale, order):
    values = np.random.default_rng(5).gamma(1.0, size=20)
    low, high = resample(values, keys=KEYS).interval()
    moved = resample((shift + scale * values)[order], keys=KEYS[order]).interval()
    assert moved == pytest.approx((shift + scale * low, shift + scale * high), abs=1e-9)


def test_a_difference_over_the_same_units_is_that_of_each_unit():
    before, after = RNG.random((2, 20))
    found = resample(after, keys=KEYS).map(resample(before, keys=KEYS), by=np.subtract)
    assert found.interval() == pytest.approx(
        resample(after - before, keys=KEYS).interval(), abs=1e-8
    )


def test_a_difference_over_other_units_has_both_variances():
    before, after = RNG.normal(size=(2, 200))
    names = unit_keys(f"q{i}" for i in range(200))
    found = resample(after).map(resample(before, keys=names), by=np.subtract)
    error = np.hypot(stats.sem(before), stats.sem(after))
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(1.97 * error, rel=0.1)
    assert found.samples.std() == pytest.approx(error, rel=0.1)


def test_a_ratio_has_the_interval_of_the_ratio_of_sums():
    n = RNG.integers(1, 9, 20).astype(float)
    total = RNG.normal(5, 1, 20) * n
    sizes = resample(n, keys=KEYS)
    found = resample(total, keys=KEYS).map(sizes, by=ratio)
    assert found.interval() == pytest.approx(resample(total, n, keys=KEYS).interval(), rel=1e-6)


def test_a_mean_that_comes_twice_is_one():
    a, b = resample(RNG.random(20), keys=KEYS), resample(RNG.random(20), keys=KEYS)
    found = a.map(b, by=np.add).map(b, by=np.subtract)
    assert found.interval() == pytest.approx(a.interval(), abs=1e-8)


@pytest.mark.parametrize(
    "values",
    [
        RNG.random(MIN_UNITS - 1),
        np.full(20, 0.3),  # nothing varies
        np.r_[1.0, np.zeros(19)],  # what varies is one unit, which many draws lack
        np.r_[np.inf, np.zeros(19)],
        np.r_[np.nan, np.zeros(19)],
    ],
)
def test_what_gives_no_interval(values):
    assert np.isnan(resample(values).interval()).all()
    drawn = draw_units(numbered_keys(len(values)))
    ends = mean_intervals(values[:, None], np.ones((len(values), 1)), drawn, least=MIN_UNITS)
    assert np.isnan(ends).all()


def test_heavy_tails_need_more_units():
    values = RNG.random(20)
    assert np.isfinite(resample(values).interval()).all()
    assert np.isnan(resample(values, least=MIN_UNITS_HEAVY).interval()).all()
    # A function of several means needs what the most demanding of them needs.
    heavy = resample(values, least=MIN_UNITS_HEAVY)
    assert np.isnan(resample(values).map(heavy, by=np.subtract).interval()).all()


def test_few_bounded_values_have_the_binomial_interval():
    values = np.array([0.0, 1.0, 1.0])
    want = binomial_interval(values, np.ones(3), (0, 1))
    assert resample(values, bounds=(0, 1)).interval() == want


def test_units_without_items_do_not_count():
    n = np.r_[np.ones(MIN_UNITS - 1), np.zeros(20)]
    assert np.isnan(resample(RNG.random(n.size) * n, n).interval()).all()


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (20, 20), (1, 20), (7, 30)])
def test_shares_of_hits_have_clopper_and_pearsons_interval(hits, n):
    values = np.r_[np.ones(hits), np.zeros(n - hits)]
    want = stats.binomtest(hits, n).proportion_ci(0.95, "exact")
    assert binomial_interval(values, np.full(n, 3.0), (0, 1)) == pytest.approx(
        (want.low, want.high), abs=1e-9
    )
    low, high = resample(values, bounds=(0, 1)).interval()
    assert want.low - 1e-9 <= low <= hits / n <= high <= want.high + 1e-9


def test_no_change_of_any_problem_is_known_to_a_bound():
    low, high = resample(np.zeros(240), bounds=(-1, 1)).interval()
    assert high == -low == pytest.approx(1 - 0.0125 ** (1 / 240))


@given(arrays(float, 15, elements=st.floats(-1, 1)))
def test_bounded_values_have_a_bounded_interval_around_their_mean(values):
    low, high = resample(values, bounds=(-1, 1)).interval()
    assert -1 <= low <= values.mean() + 1e-9
    assert values.mean() - 1e-9 <= high <= 1


@given(arrays(float, MIN_UNITS + 4, elements=st.floats(0, 1e3, allow_subnormal=False)))
def test_an_interval_with_one_bound_ends_there(values):
    low, high = resample(values).interval()
    want = (np.maximum(low, 0), high)
    assert resample(values, bounds=(0, np.inf)).interval() == pytest.approx(want, nan_ok=True)
    want = (-high, np.minimum(-low, 0))
    assert resample(-values, bounds=(-np.inf, 0)).interval() == pytest.approx(want, nan_ok=True)


def test_a_statistic_that_is_a_mean_has_the_means_interval():
    values = np.random.default_rng(3).normal(size=2 * MIN_UNITS_HEAVY)
    units = np.repeat(np.arange(MIN_UNITS_HEAVY), 2)
    found = resample_statistic(lambda rows: float(values[rows].mean()), units)
    want = resample(values.reshape(-1, 2).mean(axis=1))
    assert found.value == pytest.approx(want.value)
    np.testing.assert_allclose(found.samples, want.samples)
    assert found.interval() == pytest.approx(want.interval())
    few = resample_statistic(lambda rows: float(values[rows].mean()), units[:-2])
    assert np.isnan(few.interval()).all()


def test_division_by_zero_is_nan():
    assert np.isnan(ratio(1.0, 0.0))
    np.testing.assert_array_equal(ratio(np.array([1.0, 2.0]), np.array([0.0, 4.0])), [np.nan, 0.5])
