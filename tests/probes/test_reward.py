"""Rollout-level rewards against loops and scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from opdprobe.probes import reward_auroc, sequence_mean_reward

logps = st.floats(-30, 0)


@given(st.lists(st.tuples(logps, logps, st.integers(0, 5)), min_size=1, max_size=30))
def test_sequence_mean_reward_is_the_mean_of_each_rollout(states):
    student, teacher, rollout = zip(*states, strict=True)
    got = sequence_mean_reward(student, teacher, rollout)
    assert got.shape == (max(rollout) + 1,)
    for r, value in enumerate(got):
        mine = [q - p for p, q, owner in states if owner == r]
        expected = math.fsum(mine) / len(mine) if mine else math.nan
        np.testing.assert_allclose(value, expected, atol=1e-12)


@given(st.lists(st.tuples(logps, st.integers(0, 3)), min_size=1), st.randoms())
def test_sequence_mean_reward_is_zero_for_equal_models_in_any_order(states, random):
    random.shuffle(states)
    logp, rollout = zip(*states, strict=True)
    reward = sequence_mean_reward(logp, logp, rollout)
    assert (reward[~np.isnan(reward)] == 0).all()
    assert set(np.flatnonzero(~np.isnan(reward))) == set(rollout)


def test_sequence_mean_reward_keeps_nonfinite_values():
    reward = sequence_mean_reward(
        [-1.0, -np.inf, -1.0, -1.0], [-np.inf, -np.inf, np.nan, -0.5], [0, 1, 2, 3]
    )
    np.testing.assert_array_equal(reward, [-np.inf, np.nan, np.nan, 0.5])


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ([0, 1, 2], r"shapes \(2,\), \(2,\) and \(3,\)"),
        ([0.0, 1.0], "dtype float64"),
        ([-1, 0], "minimum -1"),
    ],
)
def test_sequence_mean_reward_refuses(rollout, message):
    with pytest.raises(ValueError, match=message):
        sequence_mean_reward([-1.0, -1.0], [-1.0, -1.0], rollout)


def test_sequence_mean_reward_refuses_padded_arrays():
    with pytest.raises(ValueError, match="ravel them first"):
        sequence_mean_reward(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2), int))


# Few distinct rewards, so that ties are common.
graded = st.lists(
    st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0]), st.sampled_from([0, 1])),
    min_size=1,
    max_size=30,
)


@given(graded)
def test_auroc_counts_pairs(rows):
    reward, correct = zip(*rows, strict=True)
    wins = [
        1.0 if good > bad else 0.5 if good == bad else 0.0
        for (good, c), (bad, d) in itertools.product(rows, rows)
        if c == 1 and d == 0
    ]
    expected = math.fsum(wins) / len(wins) if wins else math.nan
    np.testing.assert_allclose(reward_auroc(reward, correct), expected)


@given(graded)
def test_auroc_laws(rows):
    reward, correct = map(np.array, zip(*rows, strict=True))
    auroc = reward_auroc(reward, correct)
    np.testing.assert_allclose(reward_auroc(np.arctan(reward), correct), auroc)  # any monotone map
    np.testing.assert_allclose(reward_auroc(-reward, correct), 1 - auroc)
    np.testing.assert_allclose(reward_auroc(reward, 1 - correct), 1 - auroc)
    unknown = [np.append(reward, [9.0, np.nan]), np.append(correct, [np.nan, 1.0])]
    np.testing.assert_array_equal(reward_auroc(*unknown), auroc)


def test_auroc_is_mann_whitney():
    rng = np.random.default_rng(0)
    reward, correct = rng.normal(size=200).round(1), rng.integers(0, 2, 200).astype(bool)
    u = mannwhitneyu(reward[correct], reward[~correct]).statistic
    assert reward_auroc(reward, correct) == pytest.approx(u / (correct.sum() * (~correct).sum()))


def test_auroc_edges():
    assert reward_auroc([np.inf, -np.inf], [1, 0]) == 1.0
    assert math.isnan(reward_auroc([0.0, 1.0], [1, 1]))
    assert math.isnan(reward_auroc([], []))
    with pytest.raises(ValueError, match=r"0\.5; expected 0, 1 or NaN"):
        reward_auroc([0.0, 1.0], [0.5, 1])
    with pytest.raises(ValueError, match=r"\(2,\), correct \(1,\)"):
        reward_auroc([0.0, 1.0], [1])
