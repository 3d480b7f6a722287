"""Continuations equal those of a loop that picks the most probable token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from opdprobe import ConfigError, Prompt, PromptError
from opdprobe.preflight.measure import rollout_dataset
from opdprobe.rollout.continuation import Sampling, continuation_gain, continued
from opdprobe.rollout.sample import sample
from opdprobe.testing import tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", text="7 8"), Prompt("b", text="9"), Prompt("c", text="10 11 12")]
TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
GREEDY = Sampling(8, temperature=0, unfinished="graded")


def sharp(seed):
    model = tiny_model(seed=seed)
    model.lm_head.weight.data *= 20
    return model


def rollouts_of(model, max_completion_length=8):
    ids = [TOKENIZER(p.text).input_ids for p in PROMPTS]
    return sample(
        model,
        ids,
        max_completion_length=max_completion_length,
        eos_ids=[EOS],
        pad_id=0,
        temperature=0,
    )


def graded(rollouts, correct):
    return rollout_dataset(rollouts, PROMPTS).assign(correct=("rollout", correct))


@torch.no_grad()
def greedy(model, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids


class Recorder:
    """A grader that records what it saw and scores by the parity of the text's length."""

    def __init__(self):
        self.seen = {}

    def __call__(self, text, prompt):
        self.seen[prompt.id] = text
        return float(len(text) % 2)


def test_the_teacher_continues_the_students_prefix():
    student, teacher, grade = sharp(0), sharp(1), Recorder()
    rollouts = rollouts_of(student)
    step = graded(rollouts, [0.0, 1.0, 1.0])
    for depth in (0, 3, 7):
        got = continuation_gain(step, teacher, TOKENIZER, PROMPTS, grade, GREEDY, depths=[depth])
        for i, prompt in enumerate(PROMPTS):
            start, prefix = rollouts.prompt_ids[i], rollouts.response_ids[i][:depth]
            whole = greedy(teacher, start + prefix, 8 - depth)[len(start) :]
            text = TOKENIZER.decode(whole, skip_special_tokens=True)
            assert grade.seen[prompt.id] == text
            score = float(len(text) % 2)
            assert got["teacher"].values[0, i] == score
            assert got["gain"].values[0, i] == score - step["correct"].values[i]


def test_a_model_that_continues_its_own_prefix_gains_nothing():
    student = sharp(0)
    rollouts = rollouts_of(student)
    texts = TOKENIZER.batch_decode(rollouts.response_ids, skip_special_tokens=True)
    step = graded(rollouts, [float(len(t) % 2) for t in texts])
    gain = continuation_gain(
        step, student, TOKENIZER, PROMPTS, Recorder(), GREEDY, depths=[0, 1, 4, 7]
    )["gain"]
    assert gain.sizes == {"depth": 4, "rollout": 3}
    np.testing.assert_array_equal(gain, 0)


def test_a_continuation_that_reaches_the_limit_is_wrong():
    """As its rollout is, if that was graded by default; the grader is not asked."""
    rollouts, grade = rollouts_of(sharp(0)), Recorder()
    step = graded(rollouts, [1.0, 1.0, 1.0])
    strict = replace(GREEDY, unfinished="wrong")
    got = continued(step, sharp(1), TOKENIZER, PROMPTS, grade, strict, cut=3)
    for i, prompt in enumerate(PROMPTS):
        start = rollouts.prompt_ids[i]
        prefix = rollouts.response_ids[i][:3]
        response = greedy(sharp(1), start + prefix, 5)[len(start) :]
        ended = response[-1] == TOKENIZER.eos_token_id
        text = TOKENIZER.decode(response, skip_special_tokens=True)
        assert got[i] == (float(len(text) % 2) if ended else 0.0)
        assert (prompt.id in grade.seen) == ended


def test_ended_rollouts_are_left_out():
    rollouts = rollouts_of(sharp(0))
    rollouts.response_ids[1][2:] = []
    step = graded(rollouts, [1.0, 1.0, 1.0])
    settings = (sharp(1), TOKENIZER, PROMPTS, Recorder(), GREEDY)
    found = continuation_gain(step, *settings, depths=[1, 2])
    assert np.isnan(found["gain"].values).tolist() == [[False] * 3, [False, True, False]]
    assert np.isnan(found["student"].values).tolist() == [[False] * 3, [False, True, False]]
    some = continuation_gain(step, *settings, depths=[1], which=[True, False, True])
    assert np.isnan(some["gain"].values).tolist() == [[False, True, False]]
    np.testing.assert_array_equal(some["gain"][0, 2], found["gain"][0, 2])
    scores = continued(step, *settings, cut=[8, 2, 8])
    assert np.isnan(scores).all()


def test_each_rollout_has_its_own_cut_and_batches_change_nothing():
    rollouts, teacher = rollouts_of(sharp(0)), sharp(1)
    step = graded(rollouts, [1.0, 1.0, 1.0])
    one, many = Recorder(), Recorder()
    single = replace(GREEDY, micro_batch_tokens=1)
    got = continued(step, teacher, TOKENIZER, PROMPTS, one, single, cut=[1, 2, 3])
    want = continued(step, teacher, TOKENIZER, PROMPTS, many, GREEDY, cut=[1, 2, 3])
    np.testing.assert_array_equal(got, want)
    assert one.seen == many.seen
    for i, prompt in enumerate(PROMPTS):
        kept = TOKENIZER.decode(rollouts.response_ids[i][: i + 1], skip_special_tokens=True)
        assert one.seen[prompt.id].startswith(kept)


@pytest.mark.parametrize("depths", [[8], [-1], [2, 2]])
def test_impossible_depths_are_refused(depths):
    step = graded(rollouts_of(sharp(0)), [1.0, 1.0, 1.0])
    with pytest.raises(
        ConfigError, match=r"depths = \[.*\]; expected different numbers from 0 to 7"
    ):
        continuation_gain(step, sharp(1), TOKENIZER, PROMPTS, Recorder(), GREEDY, depths=depths)


def test_it_needs_grades_and_prompts():
    rollouts, teacher = rollouts_of(sharp(0)), sharp(1)
    with pytest.raises(ConfigError, match="1 of 3 rollouts are not graded"):
        continuation_gain(
            graded(rollouts, [1.0, np.nan, 0.0]),
            teacher, TOKENIZER, PROMPTS, Recorder(), GREEDY, depths=[0],
        )  # fmt: skip
    with pytest.raises(PromptError, match=r"1 prompts of the step are not among .* 'c'"):
        continuation_gain(
            graded(rollouts, [1.0, 1.0, 0.0]),
            teacher, TOKENIZER, PROMPTS[:2], Recorder(), GREEDY, depths=[0],
        )  # fmt: skip
