"""A step's rows: laid out as the schema says, thinned as asked, averaged as the paper does."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import Prompt, validate
from opdprobe.rollout.rows import record_dataset, step_metrics, thin
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores
from opdprobe.store.schema import to_step
from opdprobe.testing import synthetic_step

LENGTHS = [3, 1, 4]
ROLLOUTS = Rollouts(
    prompt_ids=[[7, 8], [7, 8], [9]],
    response_ids=[[20, 21, 22], [30], [40, 41, 42, 2]],
    finished=[False, False, True],
    prompt_index=[0, 0, 1],
)
PROMPTS = [Prompt("a", text="1 2"), Prompt("a", text="1 2"), Prompt("b", text="3")]


def scores(n=8, k=2, vocab_size=50):
    logits = torch.randn(n, 2, vocab_size, generator=torch.Generator().manual_seed(0))
    logp = logits.log_softmax(-1)
    ids = logp.topk(k).indices
    at = [logp[:, [m]].expand(-1, 2, -1).gather(2, ids) for m in (0, 1)]
    kl = (logp[:, 0].exp() * (logp[:, 0] - logp[:, 1])).sum(-1)
    sampled = torch.tensor([token for r in ROLLOUTS.response_ids for token in r])
    return Scores(
        token_id=ids,
        logp=torch.stack(at, 1),
        entropy=-(logp.exp() * logp).sum(-1),
        reverse_kl=kl,
        sampled_logp=logp.gather(2, sampled[:, None, None].expand(-1, 2, 1))[..., 0],
    )


def test_one_row_per_state_in_rollout_order():
    want = scores()
    ds = record_dataset(7, ROLLOUTS, want, PROMPTS, correct=[0.0, 1.0, 0.5])
    validate(ds)
    assert ds.rollout.values.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert ds.position.values.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert set(ds.step.values) == {7}
    assert ds.sampled_id.values.tolist() == [20, 21, 22, 30, 40, 41, 42, 2]
    assert ds.response_ids.values.tolist() == ds.sampled_id.values.tolist()
    assert ds.prompt_ids.values.tolist() == [7, 8, 7, 8, 9]
    assert ds.prompt_length.values.tolist() == [2, 2, 1]
    assert ds.length.values.tolist() == LENGTHS
    assert ds.prompt_id.values.tolist() == ["a", "a", "b"]
    assert ds.correct.values.tolist() == [0.0, 1.0, 0.5]
    assert ds.finished.values.tolist() == [False, False, True]
    for name in set(vars(want)) - {"stop_logp"}:
        np.testing.assert_allclose(ds[name], getattr(want, name), rtol=1e-6)


def test_ungraded_rollouts_are_nan():
    ds = record_dataset(0, ROLLOUTS, scores(), PROMPTS)
    assert ds.correct.isnull().all()
    assert np.isnan(step_metrics(ds)["correct"])


def test_thinning_nothing_gives_the_step_itself():
    step = to_step(synthetic_step())
    assert thin(step, fraction=1, max_positions=None, seed=(0, 0)) is step


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=8),
    st.floats(0.01, 1.0),
    st.none() | st.integers(1, 6),
    st.integers(0, 9),
)
def test_thinning_keeps_whole_rollouts_and_first_positions(lengths, fraction, positions, seed):
    ds = synthetic_step(n_rollouts=len(lengths), length=lengths, k=4)
    settings = {"fraction": fraction, "max_positions": positions, "seed": (seed, 0)}
    small = thin(to_step(ds), **settings).to_dataset()
    validate(small)
    assert small.sizes["rollout"] == max(1, round(len(lengths) * fraction))
    kept = [int(name.removeprefix("prompt-")) for name in small.prompt_id.values]
    assert kept == sorted(set(kept))
    for row, old in enumerate(kept):
        first = min(lengths[old], positions or lengths[old])
        got, want = small.isel(state=small.rollout == row), ds.isel(state=ds.rollout == old)
        assert got.position.values.tolist() == list(range(first))
        np.testing.assert_array_equal(got.logp, want.logp[:first])
        # The text stays complete.
        assert small.length[row] == lengths[old]
        end = int(small.length[: row + 1].sum())
        text = small.response_ids.values[end - lengths[old] : end]
        np.testing.assert_array_equal(text, want.sampled_id)
    assert small.sizes["prompt_token"] == small.prompt_length.sum()
    assert small.identical(thin(to_step(ds), **settings).to_dataset())


def test_metrics_are_means_over_all_states():
    """Against loops over python sets, on a step where some states share no token."""
    ds = synthetic_step(n_rollouts=3, length=[5, 1, 9], k=3, agreement=0.3, seed=1)
    overlap, student_mass, teacher_mass, advantage, gap = [], [], [], [], []
    for i in range(ds.sizes["state"]):
        s, t = ds.token_id.values[i]
        logp, logq = ds.logp.values[i, :, 0].astype(float)
        shared = [j for j, token in enumerate(s) if token in set(t)]
        overlap.append(len(shared) / 3)
        student_mass.append(sum(np.exp(logp[j]) for j in shared))
        teacher_mass.append(sum(np.exp(logq[j]) for j in shared))
        if shared:
            p = {j: np.exp(logp[j]) / student_mass[-1] for j in shared}
            q = {j: np.exp(logq[j]) / teacher_mass[-1] for j in shared}
            kl = sum(p[j] * (np.log(p[j]) - np.log(q[j])) for j in shared)
            advantage.append(-kl / len(shared))
        gap.append(abs(float(ds.entropy[i, 1] - ds.entropy[i, 0])))
    got = step_metrics(ds)
    want = {
        "overlap_ratio": np.mean(overlap),
        "student_overlap_mass": np.mean(student_mass),
        "teacher_overlap_mass": np.mean(teacher_mass),
        "overlap_token_advantage": np.mean(advantage),
        "empty_overlap": 1 - len(advantage) / len(overlap),
        "entropy_gap": np.mean(gap),
        "student_entropy": ds.entropy[:, 0].mean(),
        "teacher_entropy": ds.entropy[:, 1].mean(),
        "reverse_kl": ds.reverse_kl.mean(),
        "sampled_reward": (ds.sampled_logp[:, 1] - ds.sampled_logp[:, 0]).mean(),
        "student_stop_token_mass": np.exp(ds.stop_logp[:, 0, 0]).mean(),
        "teacher_stop_token_mass": np.exp(ds.stop_logp[:, 1, 1]).mean(),
        "completion_length": 5,
        "finished": ds.finished.mean(),
        "correct": ds.correct.mean(),
    }
    assert 0 < want["empty_overlap"] < 1
    assert got.keys() - want.keys() == {
        *("extreme_advantage_gap", "likely_overlap_ratio")  # tests/probes has their oracles
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(float(value), rel=1e-5), name
