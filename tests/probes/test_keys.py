"""Other projects' definitions, against numbers worked out by hand from their formulas.

One example throughout: two states, k = 2, four tokens.

state 0  student p = .6 .2 .1 .1   teacher q = .2 .6 .1 .1   S = {0, 1}  T = {1, 0}  I = {0, 1}
state 1  student p = .5 .3 .1 .1   teacher q = .1 .2 .3 .4   S = {0, 1}  T = {3, 2}  I = {}
"""

from math import log

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import ConfigError, from_logits
from opdprobe.probes.keys import KEYS, SOURCES, as_logged, find, names_of, renamed
from opdprobe.rollout.rows import step_metrics
from opdprobe.testing import synthetic_step

STUDENT = np.log([[0.6, 0.2, 0.1, 0.1], [0.5, 0.3, 0.1, 0.1]])
TEACHER = np.log([[0.2, 0.6, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])


@pytest.fixture
def two_states():
    return from_logits(STUDENT, TEACHER, k=2, sampled_ids=np.array([1, 3]))


def entropy(*p):
    return -sum(x * log(x) for x in p)


def test_verl(two_states):
    got = as_logged(two_states, "verl")
    want = {
        # |I| / k: 2 / 2 and 0 / 2
        "distillation/overlap_ratio": 0.5,
        # state 0 alone: (0.2 log(.6 / .2) + 0.6 log(.2 / .6)) / 2 = -0.2 log 3
        "distillation/overlap_token_advantage": -0.2 * log(3),
        # on T: .2 + .6 and .1 + .1; .6 + .2 and .4 + .3
        "distillation/student_mass": (0.8 + 0.2) / 2,
        "distillation/teacher_mass": (0.8 + 0.7) / 2,
        "entropy": (entropy(0.6, 0.2, 0.1, 0.1) + entropy(0.5, 0.3, 0.1, 0.1)) / 2,
        "response_length/mean": 2.0,
    }
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key] == pytest.approx(value, abs=1e-6), key


def test_the_papers_code(two_states):
    got = as_logged(two_states, "thunlp")
    want = {
        "val-topk/overlap_ratio": 0.5,
        # weights on S: .75 and .25; terms .75 log(.2 / .6), .25 log(.6 / .2); mean over 2 tokens
        "val-topk/adv_intersection": (-0.75 * log(3) + 0.25 * log(3)) / 2,
        # state 1 has no overlap and is left out
        "val-topk/student_p_sum_intersection": 0.8,
        "val-topk/teacher_p_sum_intersection": 0.8,
        "entropy": (entropy(0.6, 0.2, 0.1, 0.1) + entropy(0.5, 0.3, 0.1, 0.1)) / 2,
        "teacher/entropy": (entropy(0.2, 0.6, 0.1, 0.1) + entropy(0.1, 0.2, 0.3, 0.4)) / 2,
        "response_length/mean": 2.0,
    }
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key] == pytest.approx(value, abs=1e-6), key
    # The paper's mass counts state 1 as 0.
    assert two_states.opd.overlap_mass("student").mean() == pytest.approx(0.4, abs=1e-6)


def test_the_papers_code_weighs_a_state_by_its_shared_tokens():
    # State 0: I = {0, 1}. State 1: S = {0, 1}, T = {1, 2}, I = {1}:
    # weights .6 / .9 and .3 / .9; the shared token's term is 1/3 log(.5 / .3).
    p = np.log([[0.6, 0.2, 0.1, 0.1], [0.6, 0.3, 0.06, 0.04]])
    q = np.log([[0.2, 0.6, 0.1, 0.1], [0.1, 0.5, 0.3, 0.1]])
    step = from_logits(p, q, k=2)
    got = find("val-topk/adv_intersection", "thunlp").compute(step)
    pooled = (-0.75 * log(3) + 0.25 * log(3) + log(5 / 3) / 3) / 3
    assert got == pytest.approx(pooled, abs=1e-6)
    by_state = step.opd.overlap_token_advantage("thunlp").mean().item()
    assert by_state != pytest.approx(pooled, abs=1e-3)


def test_trl(two_states):
    got = as_logged(two_states, "trl")
    # the teacher's two tokens and one for the rest
    bucket = (entropy(0.6, 0.2, 0.2) + entropy(0.4, 0.3, 0.3)) / 2
    assert got["teacher_entropy"] == pytest.approx(bucket, abs=1e-6)
    assert got["teacher_entropy"] < two_states.opd.entropy("teacher").mean()
    assert got["completions/mean_length"] == 2


def test_ms_swift(two_states):
    got = as_logged(two_states, "ms-swift")
    # log p - log q at the drawn tokens 1 and 3
    assert got["teacher_kl"] == pytest.approx((log(0.2 / 0.6) + log(0.1 / 0.4)) / 2, abs=1e-6)
    assert got["gkd/topk_overlap"] == 0.5


def test_logs_that_weigh_each_response_alike():
    """Two responses, of one token and of three, in place of the mean over four tokens."""
    step = synthetic_step(n_rollouts=2, length=[1, 3], k=4)
    entropy = step["entropy"].sel(model="student").values.astype(float)
    log_ratio = (step["sampled_logp"][:, 0] - step["sampled_logp"][:, 1]).values.astype(float)
    for source in ("slime", "miles"):
        got = as_logged(step, source)
        assert got["train/entropy_loss"] == pytest.approx((entropy[0] + entropy[1:].mean()) / 2)
        assert got["train/opd_reverse_kl"] == pytest.approx(
            (log_ratio[0] + log_ratio[1:].mean()) / 2
        )
        assert got["rollout/response_len/mean"] == 2
        assert got["rollout/truncated_ratio"] == 1 - step["finished"].values.mean()


def test_logs_that_know_the_sampled_tokens_alone(two_states):
    # the student's log p at the drawn tokens 1 and 3: .2 and .1; log q: .6 and .4
    entropy_estimate = -(log(0.2) + log(0.1)) / 2
    kl = (log(0.2 / 0.6) + log(0.1 / 0.4)) / 2
    for source, key, value in (
        ("tinker", "optim/entropy", entropy_estimate),
        ("tinker", "teacher_kl", kl),
        ("nemo-rl", "train/approx_entropy", entropy_estimate),
        ("prime-rl", "ref_kl/mean", -kl),
        ("areal", "ppo_actor/update/rkl_loss/avg", kl),
    ):
        assert as_logged(two_states, source)[key] == pytest.approx(value, abs=1e-6), key


def test_no_overlap_anywhere():
    step = from_logits(STUDENT[1:], TEACHER[1:], k=2)
    assert find("distillation/overlap_token_advantage", "verl").compute(step) == 0.0
    for key in ("adv_intersection", "student_p_sum_intersection"):
        assert np.isnan(find(f"val-topk/{key}", "thunlp").compute(step))


@given(seed=st.integers(0, 10_000), agreement=st.floats(0, 1))
@pytest.mark.slow
def test_where_the_quantity_is_the_same_so_is_the_number(seed, agreement):
    step = synthetic_step(agreement=agreement, seed=seed, k=8, n_rollouts=2, length=[3, 5])
    ours = step_metrics(step)
    for key in KEYS:
        if key.same and key.compute is not None:
            assert key.compute(step) == pytest.approx(ours[key.metric], abs=1e-9), key.key


def test_the_table_is_consistent():
    assert {k.source for k in KEYS} == set(SOURCES)
    assert len({(k.source, k.key) for k in KEYS}) == len(KEYS)
    ours = {*step_metrics(synthetic_step()), "loss", "grad_norm", "learning_rate"}
    for key in KEYS:
        assert (key.metric in ours) == key.same, key.key
        assert key.same or key.note, f"{key.key} does not say how it differs"
    for source in SOURCES:
        metrics = [k.metric for k in KEYS if k.source == source]
        assert len(set(metrics)) == len(metrics)


def test_there_and_back():
    for key in KEYS:
        assert find(key.key, key.source) is key
        if key.same:
            assert names_of(key.metric, key.source)[0] is key
    assert find("actor/entropy", "thunlp").metric == "student_entropy"
    assert find("actor/entropy", "trl") is None
    assert [k.key for k in names_of("student_overlap_mass", "thunlp")] == [
        "val-topk/student_p_sum_intersection"
    ]
    assert names_of("student_overlap_mass", "trl") == []


def test_renaming():
    metrics = xr.Dataset(
        {
            "actor/distillation/overlap_ratio": ("step", [0.5, 0.6]),
            "actor/distillation/student_mass": ("step", [0.9, 0.9]),
            "actor/grad_norm": ("step", [1.0, 2.0]),
            "grad_norm": ("step", [7.0, 8.0]),
            "perf/mfu": ("step", [0.1, 0.1]),
        },
        {"step": [1, 2]},
    )
    got = renamed(metrics, "verl")
    assert set(got.data_vars) == {
        "overlap_ratio",
        "student_mass_on_teacher_topk",
        "actor/grad_norm",  # the other one had the name already
        "grad_norm",
        "perf/mfu",
    }
    assert got["overlap_ratio"].values.tolist() == [0.5, 0.6]
    assert got["overlap_ratio"].attrs["logged_as"] == "actor/distillation/overlap_ratio"
    assert "differs" not in got["overlap_ratio"].attrs
    assert "teacher's top-k" in got["student_mass_on_teacher_topk"].attrs["differs"]
    assert "actor/grad_norm" in metrics  # the argument is left alone
    assert metrics["grad_norm"].attrs == {}


@pytest.mark.parametrize("call", [find, names_of])
def test_an_unknown_source(call):
    with pytest.raises(ConfigError, match="'nemo'; expected one of verl, thunlp, trl, ms-swift"):
        call("loss", "nemo")
    with pytest.raises(ConfigError, match="'nemo'"):
        as_logged(synthetic_step(), "nemo")
