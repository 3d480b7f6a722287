"""The expected gain: a line and its prediction against scipy's and against simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from opdprobe.preflight import expected
from opdprobe.preflight.expected import (
    FITS,
    LEVEL,
    MATTERS,
    Expected,
    expected_gain,
    fit_line,
    predicted,
)
from opdprobe.preflight.show import _expected

GAINS = [0.3, 0.25, 0.1, 0.0, 0.02, -0.1, -0.15]
TRAINING = [0.32, 0.28, 0.2, 0.0, -0.1, -0.2, -0.4]


def test_the_line_is_that_of_least_squares():
    fit, want = fit_line(GAINS, TRAINING), stats.linregress(GAINS, TRAINING)
    assert (fit.slope, fit.intercept) == pytest.approx((want.slope, want.intercept))
    assert fit.n == 7
    # The standard error of the slope is the spread over the root of the scatter.
    assert fit.spread / math.sqrt(fit.scatter) == pytest.approx(want.stderr)


def test_the_interval_and_the_probabilities_hold_what_they_say():
    rng, inside, chances, outcomes = np.random.default_rng(0), [], [], []
    for _ in range(2000):
        x = rng.normal(0, 0.15, 8)
        y = 0.1 + 1.5 * x + rng.normal(0, 0.1, 8)
        found = predicted(fit_line(x[:7].tolist(), y[:7].tolist()), x[7])
        inside.append(found.low <= y[7] <= found.high)
        chances.append([found.helps, found.neither, found.harms])
        outcomes.append([y[7] > MATTERS, abs(y[7]) <= MATTERS, y[7] < -MATTERS])
    assert np.mean(inside) == pytest.approx(LEVEL, abs=0.03)
    assert np.mean(chances, 0) == pytest.approx(np.mean(outcomes, 0), abs=0.03)
    likely = np.array(chances)[:, 0] > 0.8
    assert np.array(outcomes)[likely, 0].mean() == pytest.approx(
        np.array(chances)[likely, 0].mean(), abs=0.03
    )


def test_the_three_probabilities_are_of_all_that_can_happen():
    for gain in (-1.0, -0.1, 0.0, 0.3, 1.0):
        found = predicted(fit_line(GAINS, TRAINING), gain)
        assert found.helps + found.harms + found.neither == pytest.approx(1)
        assert -1 <= found.low <= found.value <= found.high <= 1


def test_it_is_less_sure_far_from_the_pairs_it_knows():
    fit = fit_line(GAINS, TRAINING)
    near, far = predicted(fit, fit.centre), predicted(fit, fit.centre + 0.3)
    assert far.high - far.low > near.high - near.low


def test_a_size_takes_the_line_of_the_next_smaller_one(monkeypatch):
    lines = {256: fit_line(GAINS, TRAINING), 512: fit_line(GAINS, [2 * t for t in TRAINING])}
    monkeypatch.setattr(expected, "FITS", lines)
    assert expected_gain(0.1, 255) is None
    assert expected_gain(0.1, 256) == expected_gain(0.1, 511) == predicted(lines[256], 0.1)
    assert expected_gain(0.1, 512) == expected_gain(0.1, 4096) == predicted(lines[512], 0.1)
    assert expected_gain(math.nan, 512) is None


def test_the_lines_in_use_are_of_the_known_pairs():
    for fit in FITS.values():
        assert fit.n == 13
        # A readout that gains much goes with training that gains much, one that loses with a loss.
        assert predicted(fit, 0.25).helps > 0.8
        assert predicted(fit, -0.15).harms > 0.8


def test_the_number_is_said_with_its_interval_and_its_probabilities():
    said = _expected(Expected(0.214, -0.02, 0.45, helps=0.81, harms=0.066, neither=0.124))
    assert "+0.21 of accuracy (80% interval -0.02 to +0.45)" in said
    assert (
        "By more than 0.05, it rises with a probability of 0.81 and falls with one of 0.07" in said
    )
