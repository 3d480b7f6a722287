"""Problems and demonstrations: splits that do not overlap, and the data that SFT sees."""

import random

import pytest

from opdprobe.errors import PromptError
from opdprobe.prompts import Prompt, encode_prompts
from opdprobe.testbed import world
from opdprobe.testbed.problems import N_TEST, demonstrations, grader, problems
from opdprobe.testbed.tokenizer import build_tokenizer
from opdprobe.testbed.zoo import MAX_COMPLETION_LENGTH
from opdprobe.train.config import SFTConfig

TOKENIZER = build_tokenizer()


def operands(prompt):
    return tuple(int(word) for word in prompt.question.split()[-8:] if word.isdigit())


@pytest.fixture(scope="module")
def held_out():
    return problems(N_TEST, split="test")


@pytest.mark.parametrize("split", ["train", "rl", "anything"])
def test_no_split_contains_a_test_problem(split, held_out):
    drawn = problems(4096, split=split)
    assert not {operands(p) for p in drawn} & {operands(p) for p in held_out}
    assert len({operands(p) for p in drawn}) == len(drawn)
    assert len({p.id for p in drawn}) == len(drawn)


def test_a_split_is_always_the_same_sequence(held_out):
    assert problems(100, split="test") == held_out[:100]
    assert problems(100, split="train") == problems(300, split="train")[:100]
    assert problems(100, split="train") != problems(100, split="rl")
    assert problems(0, split="train") == []


@pytest.mark.parametrize(("template", "before"), [("add", "add"), ("total", "please total")])
def test_a_problem_asks_for_the_sum_it_has_as_answer(template, before):
    for prompt in problems(50, split="train", template=template):
        numbers = operands(prompt)
        assert prompt.question == f"{before} {' '.join(map(str, numbers))}"
        assert prompt.answer == str(sum(numbers))
        assert 5 <= len(numbers) <= 8
        assert all(1 <= n <= 20 for n in numbers)


def test_templates_word_the_same_problems():
    add, total = (problems(20, split="test", template=t) for t in ("add", "total"))
    assert [operands(p) for p in add] == [operands(p) for p in total]


def test_an_unknown_template_lists_those_there_are():
    with pytest.raises(PromptError, match=r"no template 'sum'; there are add, total\."):
        problems(1, split="train", template="sum")


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
        assert len(response_ids) <= MAX_COMPLETION_LENGTH


def test_demonstrations_depend_on_seed_and_step_alone():
    one, same, other = (
        demonstrations(TOKENIZER, SFTConfig(batch_size=4, seed=seed)) for seed in (0, 0, 1)
    )
    assert one(7) == same(7)
    assert one(7) != one(8)
    assert one(7) != other(7)
