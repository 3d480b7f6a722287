"""Overlap among tokens that can be drawn, against sets in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import curves, from_logits, overlap_mask, overlap_ratio
from opdprobe.errors import ConfigError
from opdprobe.rollout.rows import step_metrics
from opdprobe.testing import synthetic_step

V, K = 9, 4
# Probabilities over V tokens up to a factor; 0 rules a token out.
weights = st.lists(st.sampled_from([0, 0, 1, 2, 5, 60, 3000]), min_size=V, max_size=V).filter(any)


def top(row, floor):
    """Ids of the K likeliest tokens, ties by the lower id, that have at least `floor`, above 0."""
    ranked = sorted(range(V), key=lambda v: (-row[v], v))[:K]
    return {v for v in ranked if row[v] > 0 and row[v] / math.fsum(row) >= floor}


def ratio(row, other, floor=0.0):
    """Shared candidates over the mean number of candidates."""
    s, t = top(row, floor), top(other, floor)
    return 2 * len(s & t) / (len(s) + len(t)) if s or t else math.nan


def step_of(student, teacher):
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([student, teacher], float))
    return from_logits(*logits, k=K, sampled_ids=np.array([np.argmax(student)]).reshape(()))


def own(ds):
    """Ids of both models, and their log-probabilities of their own lists."""
    ids, logp = ds["token_id"].values, ds["logp"].values
    return ids[:, 0], ids[:, 1], logp[:, 0, 0], logp[:, 1, 1]


@given(weights, weights)
def test_overlap_counts_tokens_that_both_models_can_draw(student, teacher):
    ds = step_of(student, teacher)
    shared = top(student, 0) & top(teacher, 0)
    mask = ds.opd.overlap_mask().values[0]
    assert set(ds["token_id"].values[0, 0][mask].tolist()) == shared
    assert ds.opd.overlap_ratio().item() == ratio(student, teacher)
    np.testing.assert_array_equal(mask[None], overlap_mask(*own(ds)))
    # Without the stored places, and for equal models.
    bare = ds.drop_vars("match").opd.overlap_mask()
    np.testing.assert_array_equal(bare.values[0], mask)
    assert step_of(student, student).opd.overlap_ratio().item() == 1


@given(weights, weights, st.sampled_from([1e-3, 0.02, 0.4]))
def test_a_floor_leaves_out_what_is_hardly_drawn(student, teacher, floor):
    ds = step_of(student, teacher)
    np.testing.assert_equal(
        ds.opd.overlap_ratio(min_prob=floor).item(), ratio(student, teacher, floor)
    )
    ids, other, logp, theirs = own(ds)
    np.testing.assert_array_equal(
        overlap_ratio(ids, other, logp, theirs, min_prob=floor),
        overlap_ratio(other, ids, theirs, logp, min_prob=floor),
    )
    if floor == 1e-3:
        np.testing.assert_equal(
            ds.opd.likely_overlap_ratio().item(), ratio(student, teacher, floor)
        )


def test_disjoint_supports_share_nothing():
    """Four tokens each, the rest ruled out by both: the lists' fillers are equal, not shared."""
    student, teacher = np.full((2, 24), -np.inf)
    student[16:20], teacher[20:] = 0.0, 0.0
    ds = from_logits(student, teacher, k=16)
    assert overlap_ratio(*own(ds)[:2]).item() == 0.75  # by ids alone
    assert (ds["match"].values >= 0).sum() == 12  # as stored
    assert ds.opd.overlap_ratio().item() == 0
    assert not ds.opd.overlap_mask().any()
    assert np.isnan(ds.opd.overlap_token_advantage().item())
    assert ds.opd.likely_overlap_ratio().item() == 0


def test_where_every_token_is_possible_the_papers_ratio_is_unchanged():
    ds = synthetic_step(n_rollouts=6, length=20, k=10, agreement=0.4)
    ids = own(ds)
    np.testing.assert_array_equal(ds.opd.overlap_ratio(), overlap_ratio(*ids[:2]))
    np.testing.assert_array_equal(overlap_ratio(*ids), overlap_ratio(*ids[:2]))
    np.testing.assert_array_equal(ds.opd.overlap_mask(), ds["match"].values >= 0)


def test_a_probability_that_is_unknown_rules_nothing_out():
    ds = synthetic_step(k=4, agreement=0.7)
    unknown = ds.assign(logp=ds["logp"].where(ds["model"] == "student"))
    np.testing.assert_array_equal(unknown.opd.overlap_mask(), ds.opd.overlap_mask())
    np.testing.assert_array_equal(unknown.opd.overlap_ratio(), ds.opd.overlap_ratio())
    bare = ds.drop_vars("logp")
    np.testing.assert_array_equal(bare.opd.overlap_ratio(), ds.opd.overlap_ratio())


def test_logged_means_and_curves_leave_the_same_tokens_out():
    logits = np.random.default_rng(0).normal(size=(2, 3, 30, 12))
    logits[np.random.default_rng(1).random(logits.shape) < 0.7] = -np.inf
    logits[..., 0] = 0.0  # at least one token is possible
    sampled = np.zeros((3, 30), int)
    ds = from_logits(*logits, k=8, sampled_ids=sampled)
    ds = ds.assign(correct=("rollout", np.ones(3)), finished=("rollout", np.ones(3, bool)))
    names = ["overlap_ratio", "likely_overlap_ratio"]
    found, metrics = curves(ds, names), step_metrics(ds)
    by_ids = overlap_ratio(*own(ds)[:2]).mean()
    for name in names:
        assert metrics[name] == pytest.approx(found["value"].sel(probe=name).item())
    assert metrics["overlap_ratio"] != pytest.approx(by_ids, abs=0.01)
    assert metrics["empty_overlap"] == (~ds.opd.overlap_mask().any("rank")).mean()


@pytest.mark.parametrize(
    ("logps", "floor", "message"),
    [
        ((None, None), 0.1, "log-probabilities of its own list"),
        (([0.0], None), 0.0, "teacher_logp is missing"),
        (([0.0], [0.0]), 1.0, r"min_prob = 1.0; expected a probability in \[0, 1\)"),
        (([0.0], [0.0]), float("nan"), "min_prob = nan"),
    ],
)
def test_refuses(logps, floor, message):
    for function in (overlap_mask, overlap_ratio):
        with pytest.raises(ConfigError, match=message):
            function([1], [1], *logps, min_prob=floor)
