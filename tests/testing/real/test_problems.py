"""Splits that do not overlap, the same problems for every tokenizer, and examples for SFT."""

import re

import pytest

from opdprobe.cli.names import resolve_prompts
from opdprobe.errors import PromptError
from opdprobe.rollout.prompts import Prompt
from opdprobe.testing import tiny_tokenizer
from opdprobe.testing.real import world
from opdprobe.testing.real.problems import (
    BENCHMARKS,
    N_TEST,
    SPLITS,
    demonstrations,
    grader,
    held_out,
    problems,
)
from opdprobe.train.config import SFTConfig

TESTS = (*BENCHMARKS, "riders")
UP = {verb for verbs in world.UP.values() for verb in verbs}


def numbers(prompt):
    """Read a problem's numbers off its text, with signs."""
    story = prompt.question.replace("How many", "")
    found = re.findall(r"(?:([a-z ]+?) )?(\d+)(?: ([a-z ]+?))?(?=[,.])", story)
    first = int(re.findall(r"\d+", story)[0])
    changes = []
    for before, n, after in found[1:] if "has" in story or "sets off" in story else found:
        verb = (after or before).strip()
        changes.append(int(n) if verb in UP else -int(n))
    return (first, *changes)


@pytest.mark.parametrize("split", list(SPLITS))
def test_a_prompts_answer_is_the_sum_of_what_it_says(split):
    for wording in world.WORDINGS:
        for prompt in problems(32, split=split, wording=wording):
            assert sum(numbers(prompt)) == int(prompt.answer)


@pytest.mark.parametrize("split", [name for name in SPLITS if name not in TESTS])
def test_no_split_contains_a_problem_of_a_benchmark(split):
    drawn = [numbers(prompt) for prompt in problems(1024, split=split)]
    assert len(set(drawn)) == 1024
    assert not set(drawn) & held_out()


@pytest.mark.parametrize("split", TESTS)
def test_the_head_of_a_benchmark_is_held_out(split):
    drawn = [numbers(prompt) for prompt in problems(N_TEST, split=split)]
    assert len(set(drawn)) == N_TEST
    assert set(drawn) <= held_out()
    if split in BENCHMARKS:
        assert {len(found) - 1 for found in drawn} == set(BENCHMARKS[split])


def test_wordings_ask_the_same():
    plain, asked = (problems(8, split="train", wording=w) for w in world.WORDINGS)
    for one, other in zip(plain, asked, strict=True):
        assert one.question != other.question
        assert (one.id, one.answer, numbers(one)) == (other.id, other.answer, numbers(other))


def test_unknown_names_list_those_there_are():
    with pytest.raises(PromptError, match=r"no word problems real:huge; expected one of real:easy"):
        problems(1, split="huge")
    with pytest.raises(PromptError, match=r"no wording 'loud'; expected one of plain, asked"):
        problems(1, split="easy", wording="loud")


def test_the_grader_needs_an_answer():
    prompt = problems(1, split="easy")[0]
    assert grader(f"That makes {prompt.answer}.", prompt) == 1.0
    assert grader(f"That makes {prompt.answer}0.", prompt) == 0.0
    with pytest.raises(PromptError, match="prompt 'p' has no answer"):
        grader("1", Prompt("p", text="1 + 1"))


def test_names_of_the_command_line():
    prompts, grade = resolve_prompts("real:medium/asked", 3)
    assert prompts == problems(3, split="medium", wording="asked")
    assert grade is grader
    assert resolve_prompts("real:train")[0] == problems(2048, split="train")


def test_a_file_of_word_problems_gets_their_grader(tmp_path):
    import json

    file = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": [dict(m) for m in p.messages], "answer": p.answer, **p.meta}
        for p in problems(2, split="easy")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert resolve_prompts(str(file))[1] is grader


def test_examples_are_the_demonstrations_of_the_step():
    tokenizer, config = tiny_tokenizer(160), SFTConfig(batch_size=6)
    batch_at = demonstrations(tokenizer, config)
    batch = batch_at(3)
    assert batch == demonstrations(tokenizer, config)(3)
    assert batch != batch_at(4)
    for prompt, response in batch:
        text = tokenizer.decode(prompt)
        assert text.startswith("<bos> <user>")
        assert text.endswith("<assistant>")
        assert response[-1] == tokenizer.eos_token_id
        assert response.count(tokenizer.eos_token_id) == 1


def test_texts_do_not_depend_on_the_tokenizer():
    seen = []

    class Noting:
        """Hands texts to a tokenizer, and keeps them."""

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, texts, **options):
            seen.append(texts)
            return self.tokenizer(texts, **options)

    for size in (64, 160):
        demonstrations(Noting(tiny_tokenizer(size)), SFTConfig(batch_size=4))(0)
    one, other = (text for text in seen if isinstance(text, list))
    assert one == other
