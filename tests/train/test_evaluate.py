"""avg@n: one row per problem, the same for the same seed in any batches."""

import sys

import numpy as np
import pytest
import torch

from opdprobe import Prompt
from opdprobe.errors import ConfigError
from opdprobe.rollout.prompts import encode_prompts
from opdprobe.testing import tiny_model, tiny_tokenizer
from opdprobe.train.evaluate import evaluate

PROMPTS = [Prompt(str(i), text="7 8 9 10 11"[: 2 * i + 1], answer=str(i)) for i in range(3)]


def scores(model=None, tokenizer=None, grader=None, **settings):
    tokenizer = tokenizer or tiny_tokenizer()
    return evaluate(
        model or tiny_model(),
        tokenizer,
        encode_prompts(tokenizer, PROMPTS),
        grader or (lambda response, prompt: len(set(response.split())) / 6),
        **{"num_generations": 4, "max_completion_length": 6} | settings,
    )


def test_one_row_per_problem():
    got = scores(grader=lambda response, prompt: float(prompt.answer), unfinished="graded")
    np.testing.assert_array_equal(got, [[0.0] * 4, [1.0] * 4, [2.0] * 4])


def test_an_unfinished_response_is_wrong_unless_it_is_to_be_graded():
    """A grader that takes the last word of any text for the answer; the model ends at random."""
    seen = []

    def last_word(response, prompt):
        seen.append(response)
        return float(response.split()[-1] == "9") if response else 0.0

    model = tiny_model()
    model.lm_head.weight.data *= 0  # every token is as likely, the end among them
    settings = {"num_generations": 200, "temperature": 1.0, "top_p": 1.0}
    lenient = scores(model, grader=last_word, unfinished="graded", **settings)
    n_graded = len(seen)
    seen.clear()
    strict = scores(model, grader=last_word, **settings)
    assert n_graded == 600
    # Six draws of 64 tokens, one of which ends a response.
    assert len(seen) / 600 == pytest.approx(1 - (63 / 64) ** 6, abs=0.04)
    assert (strict <= lenient).all()
    assert strict.sum() == sum(text.split()[-1:] == ["9"] for text in seen)
    assert lenient.sum() > strict.sum()


def test_unfinished_is_one_of_two():
    with pytest.raises(ConfigError, match="unfinished = 'maybe'; expected 'wrong' or 'graded'"):
        scores(unfinished="maybe")


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    np.testing.assert_array_equal(scores(seed=3), scores(seed=3))
    assert not np.array_equal(scores(seed=3), scores(seed=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_benchmarks_have_random_numbers_of_their_own():
    """Answers to the same problems: equal in one benchmark, independent between two."""
    model = tiny_model()
    model.lm_head.weight.data *= 0  # every token is as likely as any other
    easy, again, hard = (
        scores(model, num_generations=400, benchmark=name) for name in ("easy", "easy", "hard")
    )
    np.testing.assert_array_equal(easy, again)
    assert abs(np.corrcoef(easy.ravel(), hard.ravel())[0, 1]) < 4 / np.sqrt(easy.size)


def test_temperature_and_top_p_are_used():
    for settings in ({"temperature": 0.0}, {"top_p": 1e-6}):
        greedy = scores(**settings)
        assert (greedy == greedy[:, :1]).all()
    assert (scores(temperature=2.0, top_p=1.0) != scores(temperature=2.0)).any()


def test_a_small_batch_gives_the_same_greedy_answers(monkeypatch):
    want = scores(temperature=0.0)
    monkeypatch.setattr(sys.modules[evaluate.__module__], "_EVAL_ROWS", 5)  # one problem at a time
    np.testing.assert_array_equal(scores(temperature=0.0), want)


def test_only_the_first_width_tokens_are_sampled():
    texts = []

    def grader(response, prompt):
        texts.append(response)
        return 0.0

    scores(tiny_model(vocab_size=256), grader=grader, width=8, temperature=5.0, top_p=1.0)
    assert {word for text in texts for word in text.split()} == {"0", "1"}  # ids 6 and 7


def test_a_tokenizer_without_padding():
    tokenizer = tiny_tokenizer()
    want = scores(tokenizer=tokenizer)
    tokenizer.pad_token = None
    np.testing.assert_array_equal(scores(tokenizer=tokenizer), want)
