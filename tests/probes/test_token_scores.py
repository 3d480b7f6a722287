"""Scores of tokens and shares of the signal, against their definitions by loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from opdprobe import ConfigError, probes

seeds = st.integers(0, 2**32 - 1)


def states(seed, n=40):
    rng = np.random.default_rng(seed)
    return rng.exponential(size=n), rng.exponential(size=n), rng.integers(0, 4, n), rng


@given(seeds)
def test_tip_scores_states_that_are_unsure_or_apart(seed):
    entropy, kl, _, _ = states(seed)
    h = [(x - min(entropy)) / (max(entropy) - min(entropy)) for x in entropy]
    d = [(x - min(kl)) / (max(kl) - min(kl)) for x in kl]
    want = [1 - (1 - a) * (1 - b) for a, b in zip(h, d, strict=True)]
    np.testing.assert_allclose(probes.tip_score(entropy, kl), want)
    # Neither unit nor zero of either input matters.
    np.testing.assert_allclose(probes.tip_score(3 * entropy + 1, 2 * kl), want)


@given(seeds)
def test_teachability_clips_at_quantiles(seed):
    kl, mass, _, _ = states(seed)
    want = np.ones(kl.size)
    for values in (kl, mass):
        low, high = np.quantile(values, [0.05, 0.95])
        want *= [min(max((x - low) / (high - low), 0), 1) for x in values]
    np.testing.assert_allclose(probes.teachability(kl, mass), want)


def test_scores_of_equal_states_and_of_none():
    assert probes.tip_score([1.0, 1.0], [0.5, 0.5]).tolist() == [0, 0]
    assert probes.teachability([], []).tolist() == []


def test_an_infinite_divergence_is_the_largest_and_leaves_the_others_theirs():
    """As of a teacher that rules tokens out."""
    entropy, kl = [0.0, 1.0, 2.0, 0.5], [0.1, np.inf, 0.2, 0.3]
    capped = probes.tip_score(entropy, [0.1, 0.3, 0.2, 0.3])
    np.testing.assert_allclose(probes.tip_score(entropy, kl), capped)
    assert probes.tip_score([0.0, 0.0], [np.inf, np.inf]).tolist() == [1, 1]
    assert probes.teachability(kl, [1.0, 0.9, 0.8, 0.0])[1] == pytest.approx(0.78 / 0.865)
    weights = probes.early_weights([1.0, -np.inf, 2.0, 1.0, 3.0], [0, 0, 0, 1, 1])
    assert weights.tolist() == [1.5, 1.5, 1.0, 1.5, 1.375]


@given(seeds)
def test_early_weights_fall_with_the_share_that_was_seen(seed):
    reward, _, rollout, rng = states(seed)
    reward = reward * rng.choice([-1, 1], reward.size)
    found = probes.early_weights(reward, rollout, largest=2.0)
    for i in range(reward.size):
        mine = [j for j in range(reward.size) if rollout[j] == rollout[i]]
        before = sum(abs(reward[j]) for j in mine if j < i)
        want = 1 + (1 - before / sum(abs(reward[j]) for j in mine))
        assert found[i] == pytest.approx(want)


def test_early_weights_of_a_rollout_without_difference():
    assert probes.early_weights([0.0, 0.0, 1.0], [0, 0, 1]).tolist() == [1.5, 1.5, 1.5]
    with pytest.raises(ConfigError, match=r"largest = 0\.5"):
        probes.early_weights([1.0], [0], largest=0.5)


def test_the_reverse_kl_is_the_best_baseline_that_depends_on_the_state_alone():
    """Drawn from the student, the reward's mean at a state is minus its reverse KL."""
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(4), 30) for _ in range(2))
    drawn = [rng.choice(4, size=400, p=row) for row in p]
    reward = np.array([np.log(b / a)[y] for a, b, y in zip(p, q, drawn, strict=True)])
    kl = (p * np.log(p / q)).sum(-1)[:, None] + np.zeros_like(reward)
    found = probes.variance_ratio(reward.ravel(), kl.ravel())
    within = np.mean([row.var() for row in reward])
    assert found == pytest.approx(within / reward.var(), rel=0.02)
    assert found < 1


def test_variance_ratio_without_variance():
    assert math.isnan(probes.variance_ratio([-1.0, -1.0], [0.5, 1.0]))
    assert math.isnan(probes.variance_ratio([], []))
    assert probes.variance_ratio([-1.0, -3.0, math.nan], [1.0, 2.0, 9.0]) == pytest.approx(0.25)


@given(seeds)
def test_informativeness_is_a_difference_of_means(seed):
    logp, _, rollout, _ = states(seed)
    correct = np.array([1.0, 0.0, math.nan, 1.0])[rollout]
    right = [math.exp(-x) for x, c in zip(logp, correct, strict=True) if c == 1]
    wrong = [math.exp(-x) for x, c in zip(logp, correct, strict=True) if c == 0]
    found = probes.informativeness(-logp, correct)
    if right and wrong:
        assert found == pytest.approx(np.mean(right) - np.mean(wrong))
    else:
        assert math.isnan(found)
    assert math.isnan(probes.informativeness(-logp, np.ones(logp.size)))


@given(seeds)
def test_the_share_of_forking_tokens(seed):
    entropy, kl, _, _ = states(seed)
    limit = np.quantile(entropy, 0.7)
    want = sum(d for h, d in zip(entropy, kl, strict=True) if h > limit) / sum(kl)
    assert probes.forking_share(entropy, kl, quantile=0.7) == pytest.approx(want)


def test_forking_share_without_signal():
    assert math.isnan(probes.forking_share([1.0, 2.0], [0.0, 0.0]))
    assert math.isnan(probes.forking_share([], []))
    with pytest.raises(ConfigError, match="quantile = 1"):
        probes.forking_share([1.0], [1.0], quantile=1)


def test_absorption():
    np.testing.assert_allclose(probes.absorption([2.0, 1.0, 0.0, 1.0]), [0.5, 1.0, math.nan])
    assert probes.absorption([1.0]).tolist() == []


@given(seeds)
def test_quantiles_of_the_reward(seed):
    reward = states(seed)[0] - 1
    found = probes.reward_quantiles([*reward, math.nan, -math.inf], [0.1, 0.9])
    assert found["positive"] == sum(r > 0 for r in reward) / reward.size
    assert found["skewness"] == pytest.approx(stats.skew(reward))
    assert (found["0.1"], found["0.9"]) == pytest.approx(tuple(np.quantile(reward, [0.1, 0.9])))
    assert all(math.isnan(v) for v in probes.reward_quantiles([math.nan], [0.5]).values())
