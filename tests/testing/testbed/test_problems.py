"""Problems and demonstrations: splits that do not overlap, and the data that SFT sees."""

import random

import pytest

from opdprobe.errors import PromptError
from opdprobe.rollout.prompts import Prompt, encode_prompts
from opdprobe.testing.testbed import world
from opdprobe.testing.testbed.members import MAX_COMPLETION_LENGTH
from opdprobe.testing.testbed.problems import (
    BENCHMARKS,
    N_TEST,
    SPLITS,
    demonstrations,
    grader,
    held_out,
    problems,
)
from opdprobe.testing.testbed.tokenizer import build_tokenizer
from opdprobe.train.config import SFTConfig

TOKENIZER = build_tokenizer()
TESTS = (*BENCHMARKS, "deep")


def operands(prompt):
    return tuple(int(word) for word in prompt.question.split() if word.isdigit())


@pytest.mark.parametrize("split", [name for name in SPLITS if name not in TESTS])
@pytest.mark.slow
def test_no_split_contains_a_problem_of_a_benchmark(split):
    drawn = problems(4096, split=split)
    assert not {operands(p) for p in drawn} & held_out()
    assert len({operands(p) for p in drawn}) == len(drawn)
    assert len({p.id for p in drawn}) == len(drawn)


def test_what_is_held_out_are_the_heads_of_the_benchmarks():
    heads = [problems(N_TEST, split=name) for name in TESTS]
    assert held_out() == {operands(p) for head in heads for p in head}
    assert len(held_out()) == len(TESTS) * N_TEST  # no problem is in two of them


@pytest.mark.parametrize("split", list(SPLITS))
def test_a_split_is_always_the_same_sequence_of_its_size(split):
    assert problems(100, split=split) == problems(300, split=split)[:100]
    assert problems(0, split=split) == []
    size = SPLITS[split]
    for prompt in problems(50, split=split):
        numbers = operands(prompt)
        assert size.operands[0] <= len(numbers) <= size.operands[1]
        assert all(1 <= n <= size.largest for n in numbers)


def test_splits_of_one_size_differ():
    assert problems(100, split="train") != problems(100, split="rl")


@pytest.mark.parametrize(
    ("template", "question"),
    [("add", "add {}"), ("total", "{} please total"), ("unseen", "the total {}")],
)
def test_a_problem_asks_for_the_sum_it_has_as_answer(template, question):
    for prompt in problems(50, split="train", template=template):
        numbers = operands(prompt)
        assert prompt.question == question.format(" ".join(map(str, numbers)))
        assert prompt.answer == str(sum(numbers))


def test_templates_word_the_same_problems():
    worded = [problems(20, split="easy", template=t) for t in world.TEMPLATES]
    assert len({tuple(map(operands, prompts)) for prompts in worded}) == 1
    assert len({prompts[0].question for prompts in worded}) == len(world.TEMPLATES)


def test_unknown_names_list_those_there_are():
    with pytest.raises(
        PromptError, match=r"no template 'sum'; expected one of add, total, unseen\."
    ):
        problems(1, split="train", template="sum")
    with pytest.raises(
        PromptError, match=r"no testbed problems zoo:test; expected one of zoo:easy, "
    ):
        problems(1, split="test")


def test_the_grader_takes_the_worlds_own_answers():
    for i, prompt in enumerate(problems(30, split="train")):
        rng, strategy = random.Random(i), world.STRATEGIES[i % 3]
        response = world.solve(world.Problem(operands(prompt)), strategy, rng)
        assert grader(" ".join(response), prompt) == 1
        assert grader(" ".join(response), Prompt("x", text="?", answer="0")) == 0
    with pytest.raises(PromptError, match="prompt 'x' has no answer to grade against"):
        grader("answer 1", Prompt("x", text="?"))


def test_demonstrations_are_what_a_trained_model_is_asked_and_should_say():
    batch_at = demonstrations(TOKENIZER, SFTConfig(batch_size=64, seed=3))
    examples = batch_at(5)
    assert len(examples) == 64
    for prompt_ids, response_ids in examples:
        text = str(TOKENIZER.decode(prompt_ids))
        question = text.removeprefix("<bos> <user> ").removesuffix(" <assistant>")
        # The same ids as the trainer's own way from a question to a prompt.
        prompt = Prompt("x", messages=({"role": "user", "content": question},))
        (encoded,) = encode_prompts(TOKENIZER, [prompt])
        assert tuple(prompt_ids) == encoded.ids
        answer = str(sum(int(word) for word in question.split() if word.isdigit()))
        assert world.grade(str(TOKENIZER.decode(response_ids)), answer) == 1
        assert response_ids[-1] == TOKENIZER.eos_token_id
        operand_count = sum(word.isdigit() for word in question.split())
        assert len(response_ids) <= MAX_COMPLETION_LENGTH or operand_count > 8


def test_demonstrations_leave_out_what_models_are_tested_on(monkeypatch):
    """Of so many problems few are ever drawn again: hold out what would have come."""
    config = SFTConfig(batch_size=32)
    before = demonstrations(TOKENIZER, config)(0)
    (first, _), *_ = before
    numbers = tuple(int(w) for w in str(TOKENIZER.decode(first)).split() if w.isdigit())
    module = "opdprobe.testing.testbed.problems.held_out"
    monkeypatch.setattr(module, lambda: frozenset([numbers]))
    after = demonstrations(TOKENIZER, config)(0)
    assert before[0] not in after
    assert len(after) == len(before)


def test_demonstrations_depend_on_seed_and_step_alone():
    one, same, other = (
        demonstrations(TOKENIZER, SFTConfig(batch_size=4, seed=seed)) for seed in (0, 0, 1)
    )
    assert one(7) == same(7)
    assert one(7) != one(8)
    assert one(7) != other(7)
