"""The overlap-token advantage and the extreme-advantage gap against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from opdprobe.errors import ConfigError
from opdprobe.probes import extreme_advantage_gap, overlap_token_advantage

DEFINITIONS = ("paper", "sum", "thunlp", "verl")


@st.composite
def two_models(draw):
    """Both models' log-probabilities on k of 12 tokens, and a mask over them."""
    logits = draw(hnp.arrays(float, (2, 3, 12), elements=st.floats(-15, 15)))
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    k = draw(st.integers(1, 12))
    return logp[0, :, :k], logp[1, :, :k], draw(hnp.arrays(bool, (3, k)))


def advantage_by_definition(logp, logq, mask, definition):
    """One state, written from the table in the docstring."""
    inside = [v for v in range(len(logp)) if mask[v]]
    if not inside:
        return math.nan
    p, q = [math.exp(x) for x in logp], [math.exp(x) for x in logq]
    n = len(inside)
    if definition == "thunlp":
        return sum(p[v] / math.fsum(p) * (logq[v] - logp[v]) for v in inside) / n
    if definition == "verl":
        return sum(q[v] * (logp[v] - logq[v]) for v in inside) / n
    p_set, q_set = math.fsum(p[v] for v in inside), math.fsum(q[v] for v in inside)
    total = sum(p[v] / p_set * (math.log(q[v] / q_set) - math.log(p[v] / p_set)) for v in inside)
    return total / n if definition == "paper" else total


@pytest.mark.parametrize("definition", DEFINITIONS)
@given(case=two_models())
@pytest.mark.slow
def test_advantage_follows_its_definition(definition, case):
    logp, logq, mask = case
    expected = [
        advantage_by_definition(*row, definition) for row in zip(logp, logq, mask, strict=True)
    ]
    got = overlap_token_advantage(logp, logq, mask, definition=definition)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)


@given(two_models(), st.randoms(use_true_random=False))
def test_advantage_laws(case, random):
    logp, logq, mask = case
    paper = overlap_token_advantage(logp, logq, mask)
    empty = ~mask.any(-1)
    np.testing.assert_array_equal(np.isnan(paper), empty)
    assert (paper[~empty] <= 0).all()
    # -KL, not divided by |I|.
    minus_kl = overlap_token_advantage(logp, logq, mask, definition="sum")
    np.testing.assert_allclose(paper, minus_kl / np.where(empty, np.nan, mask.sum(-1)))
    # The order of the ranks and the scale of either model's probabilities mean nothing.
    order = list(range(mask.shape[1]))
    random.shuffle(order)
    shuffled = overlap_token_advantage(logp[:, order], logq[:, order], mask[:, order])
    np.testing.assert_allclose(shuffled, paper, atol=1e-12)
    np.testing.assert_allclose(
        overlap_token_advantage(logp - 3, logq - 700, mask), paper, atol=1e-9
    )


@given(two_models())
def test_equal_models_have_no_advantage(case):
    logp, _, mask = case
    zero = np.where(mask.any(-1), 0.0, np.nan)
    for definition in DEFINITIONS:
        np.testing.assert_array_equal(
            overlap_token_advantage(logp, logp, mask, definition=definition), zero
        )
    np.testing.assert_array_equal(extreme_advantage_gap(logp, logp, mask), zero)


def test_rounding_does_not_make_a_divergence_negative():
    # Equal models up to a shift, which rounds differently in the last bit of the logs.
    logp = np.random.default_rng(0).normal(size=(1000, 4))
    advantage = overlap_token_advantage(logp, logp - 3.0, np.ones(logp.shape, bool))
    assert (advantage <= 0).all()
    np.testing.assert_allclose(advantage, 0, atol=1e-15)


# Two states, k = 3, worked out by hand. State 0 shares the first two tokens, state 1 the first.
P = np.array([[0.6, 0.2, 0.1], [0.5, 0.25, 0.25]])
Q = np.array([[0.2, 0.6, 0.1], [0.25, 0.125, 0.0625]])
SHARED = np.array([[True, True, False], [True, False, False]])
LOG2, LOG3 = math.log(2), math.log(3)


@pytest.mark.parametrize(
    ("definition", "by_hand"),
    [
        # Renormalised (3/4, 1/4) against (1/4, 3/4): KL = 3/4 log 3 - 1/4 log 3; one token: KL 0.
        ("paper", [-LOG3 / 4, 0.0]),
        ("sum", [-LOG3 / 2, 0.0]),
        # Weights 6/9 and 2/9 on S: (6/9 · -log 3 + 2/9 · log 3) / 2; 1/2 · (log ½) / 1.
        ("thunlp", [-2 * LOG3 / 9, -LOG2 / 2]),
        # (0.2 log 3 - 0.6 log 3) / 2; 0.25 log 2.
        ("verl", [-0.2 * LOG3, LOG2 / 4]),
    ],
)
def test_advantage_by_hand(definition, by_hand):
    got = overlap_token_advantage(np.log(P), np.log(Q), SHARED, definition=definition)
    np.testing.assert_allclose(got, by_hand, atol=1e-15)


def test_thunlp_pooled_mean_is_the_mean_weighted_by_shared_tokens():
    p = np.vstack([P, P[:1]])
    q = np.vstack([Q, Q[:1]])
    shared = np.vstack([SHARED, np.zeros((1, 3), bool)])  # the third state shares nothing
    per_state = overlap_token_advantage(np.log(p), np.log(q), shared, definition="thunlp")
    assert np.isnan(per_state[2])
    pooled = np.average(np.nan_to_num(per_state), weights=shared.sum(-1))
    # Three (state, token) pairs: -6/9 log 3, +2/9 log 3, -1/2 log 2.
    assert pooled == pytest.approx((-4 / 9 * LOG3 - LOG2 / 2) / 3)
    # ... which the mean over states is not.
    assert pooled != pytest.approx(np.nanmean(per_state))


def test_probability_zero():
    p, q = np.log([0.5, 0.5]), np.array([0.0, -np.inf])
    both = [True, True]
    assert overlap_token_advantage(p, q, both) == -np.inf  # the teacher rules a token out
    assert overlap_token_advantage(q, p, both) == pytest.approx(-LOG2 / 2)  # 0 log 0 = 0
    assert overlap_token_advantage(p, q, both, definition="verl") == pytest.approx(-LOG2 / 2)
    assert np.isnan(overlap_token_advantage(p, q, [False, True]))  # q̄ does not exist
    assert overlap_token_advantage(q, q, both) == 0
    assert extreme_advantage_gap(p, q) == 0.5  # at the token ruled out


def test_nan_off_the_mask_does_not_spread():
    p, q = np.log([0.6, 0.4]), np.array([np.log(0.5), np.nan])
    assert overlap_token_advantage(p, q, [True, False]) == 0
    assert extreme_advantage_gap(p, q, [True, False]) == pytest.approx(0.1)
    assert np.isnan(overlap_token_advantage(p, q, [True, True]))
    assert np.isnan(extreme_advantage_gap(p, q))


def test_unknown_definition():
    with pytest.raises(ConfigError, match="expected one of 'paper', 'sum', 'thunlp', 'verl'"):
        overlap_token_advantage([0.0], [0.0], [True], definition="trl")


@given(two_models())
def test_extreme_advantage_gap_follows_its_definition(case):
    logp, logq, mask = case
    gaps = extreme_advantage_gap(logp, logq, mask)
    for lp, lq, inside, gap in zip(logp, logq, mask, gaps, strict=True):
        tokens = np.flatnonzero(inside)
        if not tokens.size:
            assert math.isnan(gap)
            continue
        p, q = np.exp(lp[tokens]), np.exp(lq[tokens])
        p_bar, q_bar = p / p.sum(), q / q.sum()
        size = np.abs(p_bar * (np.log(q_bar) - np.log(p_bar)))
        assert -1 <= gap <= 1
        # Rounding may decide between sizes that are equal on paper, so any of them will do.
        largest = np.flatnonzero(size >= size.max() - 1e-9)
        assert min(abs(gap - (p[v] - q[v])) for v in largest) < 1e-12


def test_extreme_advantage_gap_by_hand():
    # |3/4 · log(1/3)| beats |1/4 · log 3|, so v* is the first token.
    assert extreme_advantage_gap(np.log(P[0]), np.log(Q[0]), SHARED[0]) == pytest.approx(0.4)
    # Uniform over two tokens either way round: all sizes equal, the first rank wins.
    assert extreme_advantage_gap(np.log([0.3, 0.3]), np.log([0.1, 0.1])) == pytest.approx(0.2)


def test_extreme_advantage_gap_without_mask_uses_every_token():
    logp, logq = np.log(P), np.log(Q)
    np.testing.assert_array_equal(
        extreme_advantage_gap(logp, logq), extreme_advantage_gap(logp, logq, np.ones_like(SHARED))
    )


def test_shapes():
    zeros = np.zeros((2, 3, 4))
    mask = np.ones((2, 3, 4), bool)
    assert overlap_token_advantage(zeros, zeros, mask).shape == (2, 3)
    assert extreme_advantage_gap(zeros, zeros, mask).shape == (2, 3)
    empty = np.zeros((0, 4))
    assert overlap_token_advantage(empty, empty, empty.astype(bool)).shape == (0,)
    assert extreme_advantage_gap(empty, empty).shape == (0,)
