"""Choosing prompts: wording, mixture, divergence."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opdprobe import ConfigError, PromptError
from opdprobe.rollout.pair import Pair
from opdprobe.rollout.prompt_files import load_prompts, prompts_from_rows, save_prompts
from opdprobe.rollout.prompts import BOXED_TEMPLATE, DAPO_TEMPLATE, Prompt, encode_prompts
from opdprobe.rollout.sample import sample, step_generator
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.recipes import select
from opdprobe.train.recipes.select import max_divergence, mixed, template


def numbered(n, word):
    return [Prompt(str(i), text=f"{word} {i}") for i in range(n)]


# template


def test_a_template_replaces_the_wording_and_nothing_else():
    system = {"role": "system", "content": "Be brief."}
    asked = {"role": "user", "content": BOXED_TEMPLATE.replace("{question}", "Why?"), "name": "Al"}
    talk = Prompt("a", messages=(system, asked), answer="4", meta={"level": 1})
    bare = Prompt("b", text="Why?")
    worded = DAPO_TEMPLATE.replace("{question}", "Why?")
    assert template([talk, bare], DAPO_TEMPLATE) == [
        Prompt("a", messages=(system, {**asked, "content": worded}), answer="4", meta={"level": 1}),
        Prompt("b", text=worded),
    ]
    assert talk.question != worded  # the originals stay
    assert template(template([bare], BOXED_TEMPLATE), "{question}") == [bare]


def test_rewording_equals_encoding_with_the_template():
    tokenizer = tiny_tokenizer()
    prompts = numbered(3, "7")
    (wording, reworded) = (
        "{question} 1 {} {question}",
        template(prompts, "{question} 1 {} {question}"),
    )
    want = encode_prompts(tokenizer, prompts, template=wording)
    assert [p.ids for p in encode_prompts(tokenizer, reworded)] == [p.ids for p in want]


def test_a_template_without_a_question():
    with pytest.raises(ConfigError, match=r"template = 'Think!'; expected \{question\} in it"):
        template([], "Think!")


# mixed


@given(st.integers(1, 12), st.floats(0, 1), st.integers(0, 3))
def test_a_mixture_has_the_share_and_no_prompt_twice(n, share, seed):
    aligned, other = numbered(12, "old"), numbered(12, "new")
    got = mixed(aligned, other, n_prompts=n, share=share, seed=seed)
    counts = Counter(prompt.question.split()[0] for prompt in got)
    assert counts["new"] == round(n * share)
    assert counts.total() == n == len({p.question for p in got}) == len({p.id for p in got})
    assert got == mixed(aligned, other, n_prompts=n, share=share, seed=seed)


def test_the_order_and_the_choice_are_random():
    aligned, other = numbered(40, "old"), numbered(40, "new")
    got, again = (mixed(aligned, other, n_prompts=40, share=0.5, seed=seed) for seed in (0, 1))
    assert got != again
    kinds = [prompt.question.split()[0] for prompt in got]
    assert sum(a != b for a, b in pairwise(kinds)) > 1  # not in two blocks


def test_ids_that_clash_are_renamed_and_survive_saving(tmp_path):
    def row(text, index):
        return {"prompt": text, "extra_info": {"index": index, "split": "train"}}

    aligned = prompts_from_rows([row("a", 1), row("b", 2)])
    other = prompts_from_rows([row("c", 1), row("d", 3), row("e", "other-1")])
    got = mixed(aligned, other, n_prompts=5, share=0.6)
    by_text = {prompt.text: prompt for prompt in got}
    assert {text: prompt.id for text, prompt in by_text.items()} == {
        "a": "1",
        "b": "2",
        "c": "other-other-1",  # since "other-1" is taken
        "d": "3",
        "e": "other-1",
    }
    assert by_text["d"] == other[1]
    save_prompts(got, tmp_path / "mixed.jsonl")
    assert load_prompts(tmp_path / "mixed.jsonl") == got


@pytest.mark.parametrize(
    ("n", "share", "reason"),
    [
        (0, 0.5, "n_prompts = 0; expected 1 or more"),
        (2, 1.1, r"share = 1.1; expected a number in \[0, 1\]"),
        (2, float("nan"), "share = nan"),
        (6, 0.5, r"3 aligned prompts are wanted, but there are 2: lower n_prompts \(now 6\)"),
        (4, 1.0, "4 other prompts are wanted, but there are 3"),
    ],
)
def test_what_cannot_be_mixed(n, share, reason):
    with pytest.raises(ConfigError, match=reason):
        mixed(numbered(2, "old"), numbered(3, "new"), n_prompts=n, share=share)


# max_divergence

TOKENIZER = tiny_tokenizer()
CANDIDATES = [Prompt(f"p{i}", text=f"{i} {2 * i}") for i in range(5)]


@pytest.fixture(scope="module")
def pair():
    models = tiny_model(seed=0), tiny_model(seed=1)
    for model in models:
        model.lm_head.weight.data *= 10
    return Pair(*models, TOKENIZER)


def mean_kl(pair, prompts, chunk, seed):
    """Mean KL(student‖teacher) of each prompt's rollouts, from full distributions."""
    rollouts = sample(
        pair.student,
        [p.ids for p in encode_prompts(TOKENIZER, prompts)],
        num_generations=2,
        max_completion_length=6,
        eos_ids=[2],
        pad_id=0,
        generator=step_generator(seed, chunk, "cpu"),
    )
    found = [[] for _ in prompts]
    for asked, said, i in zip(
        rollouts.prompt_ids, rollouts.response_ids, rollouts.prompt_index, strict=True
    ):
        states = slice(len(asked) - 1, len(asked) + len(said) - 1)
        with torch.no_grad():
            p, q = (
                model(torch.tensor([asked + said])).logits[0, states].log_softmax(-1)
                for model in (pair.student, pair.teacher)
            )
        found[i] += (p.exp() * (p - q)).sum(-1).tolist()
    return [np.mean(values) for values in found]


@pytest.mark.parametrize("chunk", [2, 64])
def test_the_largest_mean_divergence_comes_first(pair, monkeypatch, chunk):
    monkeypatch.setattr(select, "CHUNK", chunk)
    want = []
    for number, start in enumerate(range(0, 5, chunk)):
        want += mean_kl(pair, CANDIDATES[start : start + chunk], number, seed=3)
    order = sorted(range(5), key=lambda i: -want[i])[:4]
    seen = []
    chosen, divergence = max_divergence(
        pair,
        CANDIDATES,
        n_prompts=4,
        max_completion_length=6,
        micro_batch_tokens=20,  # several micro-batches
        seed=3,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [prompt.id for prompt in chosen] == [f"p{i}" for i in order]
    assert divergence == pytest.approx([want[i] for i in order], rel=1e-4)
    assert seen == [(start, 5) for start in range(0, 5, chunk)] + [(5, 5)]


def test_a_teacher_equal_to_the_student_leaves_the_order_alone(pair):
    same = Pair(pair.student, pair.student, TOKENIZER)
    chosen, divergence = max_divergence(same, CANDIDATES, n_prompts=3, max_completion_length=3)
    assert [prompt.id for prompt in chosen] == ["p0", "p1", "p2"]
    assert divergence.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_prompts": 0}, "n_prompts = 0; expected 1 or more"),
        ({"n_prompts": 6}, "n_prompts = 6; expected at most 5, the number of usable prompts"),
        ({"num_generations": 0}, "num_generations = 0; expected 1 or more"),
        ({"max_completion_length": 0}, "max_completion_length = 0; expected 1 or more"),
    ],
)
def test_what_cannot_be_chosen(pair, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        max_divergence(
            pair, CANDIDATES, **({"n_prompts": 1, "max_completion_length": 3} | settings)
        )


def test_prompts_that_cannot_be_used(pair):
    settings = {"max_completion_length": 3, "max_prompt_length": 2}
    some = [*CANDIDATES, Prompt("long", text="1 2 3")]
    with pytest.raises(PromptError, match=r"row 5 \(id 'long'\)"):
        max_divergence(pair, some, n_prompts=5, **settings)
    chosen, _ = max_divergence(pair, some, n_prompts=5, on_error="skip", **settings)
    assert {prompt.id for prompt in chosen} == {prompt.id for prompt in CANDIDATES}
    with pytest.raises(ConfigError, match="n_prompts = 6; expected at most 5"):
        max_divergence(pair, some, n_prompts=6, on_error="skip", **settings)
