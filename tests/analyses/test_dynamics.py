"""Statistics of logged scalars against loops."""

from itertools import pairwise
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.dynamics import largest_rise, last_quarter, late_fall, points, spike
from opdprobe.probes.bootstrap import resample
from opdprobe.report.estimate import exact

values = st.lists(st.floats(-5, 5), min_size=1, max_size=30)


@given(values)
def test_last_quarter(v):
    kept = [x for i, x in enumerate(v) if i >= len(v) - max(1, len(v) // 4)]
    assert last_quarter(np.array(v)) == pytest.approx(mean(kept))


@given(values, st.integers(1, 6))
def test_late_fall(v, width):
    width = min(width, len(v))
    means = [mean(v[i : i + width]) for i in range(len(v) - width + 1)]
    found = late_fall(np.array(v), width=width)
    assert found == pytest.approx(means[-1] - max(means), abs=1e-12)
    assert found <= 0


def test_a_run_shorter_than_the_window_has_not_fallen():
    assert late_fall(np.array([3.0, 1.0]), width=5) == 0


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=30))
def test_spike(v):
    assert spike(np.array(v)) == pytest.approx(max(v) / median(v))


@given(values)
def test_largest_rise(v):
    rises = [0.0, *(b - a for a, b in pairwise(v))]
    assert largest_rise(np.array(v)) == pytest.approx(max(rises))


def test_no_step_is_large_where_there_is_one_or_no_typical_one():
    assert largest_rise(np.array([2.0])) == 0
    assert np.isnan(spike(np.zeros(3)))


def test_points_stand_at_their_places():
    values = np.linspace(0, 1, 20)
    one = resample(values)
    series = points("success", "S", {2: [one], 4: [exact(3.0)]})
    assert (series.role, series.label, list(series.x)) == ("success", "S", [2, 4])
    assert list(series.y) == [0.5, 3.0]
    assert (series.low[0], series.high[0]) == one.interval()
    assert np.isnan([series.low[1], series.high[1]]).all()
    assert list(points("success", "S", {}).y) == []
