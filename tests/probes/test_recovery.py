"""Gap recovery against the definition of Fieller's interval, and where it has no value."""

import math

import numpy as np
import pytest
from scipy import stats

from opdprobe import gap_recovery, gap_recovery_rate
from opdprobe.errors import ConfigError


def t_statistic(gain, gap, r, cluster):
    """Cluster-robust t of mean(gain - r gap), in plain Python."""
    x = [a - r * b for a, b in zip(gain, gap, strict=True)]
    mean = math.fsum(x) / len(x)
    sums = {c: 0.0 for c in cluster}
    for value, c in zip(x, cluster, strict=True):
        sums[c] += value - mean
    n = len(sums)
    variance = n / (n - 1) * math.fsum(s * s for s in sums.values()) / len(x) ** 2
    return mean / math.sqrt(variance), n


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_holds_the_rates_that_a_t_test_accepts(grouped, level):
    rng = np.random.default_rng(3)
    ability = rng.normal(size=60)
    before, after, teacher = (
        rng.binomial(8, 1 / (1 + np.exp(-ability - shift))) / 8 for shift in (-1.0, 0.2, 0.8)
    )
    cluster = np.repeat(np.arange(20), 3) if grouped else np.arange(60)
    found = gap_recovery(before, after, teacher, cluster=cluster if grouped else None, level=level)
    gain, gap = after - before, teacher - before
    assert found.value == pytest.approx(gain.mean() / gap.mean())
    assert found.n == len(set(cluster))
    assert found.low < found.value < found.high
    for end in (found.low, found.high):  # exactly rejected at the ends
        t, n = t_statistic(gain, gap, end, cluster.tolist())
        assert abs(t) == pytest.approx(stats.t(n - 1).ppf((1 + level) / 2))
    for inside in np.linspace(found.low, found.high, 7)[1:-1]:
        t, n = t_statistic(gain, gap, inside, cluster.tolist())
        assert abs(t) < stats.t(n - 1).ppf((1 + level) / 2)
    if not grouped:
        low, high = stats.t.interval(level, 59, gap.mean(), stats.sem(gap))
        assert (found.gap_low, found.gap_high) == pytest.approx((low, high))


def test_the_interval_covers_the_rate_of_the_population():
    """Student 0.4 → 0.55, teacher 0.6 on average; problems differ in difficulty."""
    rng = np.random.default_rng(0)
    seen = covered = 0
    for _ in range(400):
        difficulty = rng.uniform(-0.3, 0.3, size=120)
        scores = [
            rng.binomial(4, np.clip(mean + difficulty, 0, 1)) / 4 for mean in (0.4, 0.55, 0.6)
        ]
        found = gap_recovery(*scores)
        seen += found.defined
        covered += found.low <= 0.75 <= found.high
    assert seen > 380
    assert covered / seen > 0.93


def test_pairing_and_order_matter_and_missing_problems_do_not():
    rng = np.random.default_rng(1)
    base = rng.random(100) * 0.5
    scores = base, base + 0.1, base + 0.3 + 0.01 * rng.normal(size=100)
    paired = gap_recovery(*scores)
    assert paired.high - paired.low < 0.01
    shuffled = gap_recovery(scores[0], rng.permutation(scores[1]), scores[2])
    assert shuffled.high - shuffled.low > 0.1
    more = [np.append(one, [0.9, np.nan]) for one in scores]
    more[1][-2] = np.nan
    assert gap_recovery(*more) == paired


def test_no_rate_without_a_clear_gap():
    rng = np.random.default_rng(2)
    before, after, teacher = (rng.random((3, 100)) < [[0.5], [0.6], [0.55]]).astype(float)
    small = gap_recovery(before, after, teacher)
    assert small.gap_low < 0.05
    assert not small.defined
    assert np.isnan([small.value, small.low, small.high]).all()
    assert "is not clearly above 0.05" in small.text
    clear = np.linspace(0, 0.2, 100)
    assert gap_recovery(clear, clear + 0.02, clear + 0.04, min_gap=0.03).value == pytest.approx(0.5)
    assert not gap_recovery(clear, clear + 0.02, clear + 0.04).defined  # exact, but small


def test_a_weaker_teacher_is_never_passed():
    """The student falls from 0.8 to 0.5 toward a teacher at 0.55: the bare ratio is 1.2."""
    rng = np.random.default_rng(4)
    found = gap_recovery(*(rng.random((3, 200)) < [[0.8], [0.5], [0.55]]))
    assert not found.defined
    assert found.gap_high < 0
    assert "the teacher is weaker than the student's start" in found.text
    assert math.isnan(gap_recovery_rate(0.8, 0.5, 0.55))


def test_few_problems_have_no_interval():
    found = gap_recovery([0.0] * 15, [0.4] * 15, [0.8] * 15)
    assert (found.defined, found.gap, found.n) == (False, pytest.approx(0.8), 15)
    assert found.text == "gap recovery undefined: gap 0.800, 15 independent problems of at least 16"
    same = gap_recovery([0.0] * 32, [0.4] * 32, [0.8] * 32, cluster=[0, 1] * 16)
    assert (same.defined, same.n) == (False, 2)
    assert np.isnan(gap_recovery([], [], []).gap)


def test_gap_recovery_rate():
    assert gap_recovery_rate(0.28, 0.28, 0.54) == 0
    assert gap_recovery_rate(0.28, 0.54, 0.54) == 1
    np.testing.assert_allclose(
        gap_recovery_rate(
            [0.2, 0.2, 0.2, 0.5, 0.5, 0.54],
            [0.3, 0.1, 0.7, 0.6, 0.6, 0.3],
            [0.6] * 3 + [0.5, 0.54, 0.28],
        ),
        [0.25, -0.25, 1.25, np.nan, np.nan, np.nan],
    )
    assert gap_recovery_rate(0.5, 0.52, 0.54, min_gap=0.01) == pytest.approx(0.5)
    assert gap_recovery_rate(np.zeros((2, 1)), np.ones(3), 2.0).shape == (2, 3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"min_gap": 0.0}, ConfigError, "min_gap = 0.0"),
        ({"level": 1.0}, ConfigError, "level = 1.0"),
        ({"cluster": [1, 2]}, ValueError, r"\(1,\), \(1,\), \(1,\), \(2,\)"),
    ],
)
def test_refuses(settings, error, message):
    with pytest.raises(error, match=message):
        gap_recovery([0.1], [0.2], [0.3], **settings)
    if "min_gap" in settings:
        with pytest.raises(error, match=message):
            gap_recovery_rate(0.1, 0.2, 0.3, **settings)
