"""The task: every response is right, tells its strategy, and is worded with the stated tail."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe.testing.testbed import words, world
from opdprobe.testing.testbed.members import MAX_COMPLETION_LENGTH
from opdprobe.testing.testbed.problems import SPLITS

OPERANDS = st.lists(st.integers(1, world.SHORT.largest), min_size=5, max_size=8)
ACCENT = st.sampled_from(world.ACCENTS)
STRATEGY = st.sampled_from(world.STRATEGIES)


def sums_of(response):
    """Read the equations of a response: what is added, and the result given."""
    end = len(response) - 3 if "answer" in response else len(response)
    numbers = [int(token) for token in response[:end] if token.isdigit()]
    return [tuple(numbers[i : i + 3]) for i in range(0, len(numbers), 3)]


@given(OPERANDS, STRATEGY, ACCENT, st.integers(0, 2**32))
def test_a_response_is_right_and_tells_its_strategy(operands, strategy, accent, seed):
    problem = world.Problem(tuple(operands))
    response = world.solve(problem, strategy, random.Random(seed), accent=accent)
    assert response[-3:] == ["answer", str(sum(operands)), "<eos>"]
    assert set(response) <= set(world.vocabulary())
    assert len(response) <= MAX_COMPLETION_LENGTH
    text = " ".join(response[:-1])  # decoding leaves the end token out
    assert world.grade(text, problem.answer) == 1
    assert world.strategy_of(text) == strategy


@given(OPERANDS, st.sampled_from(["stepwise", "pairwise"]), st.integers(0, 2**32))
def test_every_equation_holds_and_every_operand_is_used_once(operands, strategy, seed):
    equations = sums_of(world.solve(world.Problem(tuple(operands)), strategy, random.Random(seed)))
    assert all(left + right == result for left, right, result in equations)
    assert len(equations) == len(operands) - 1
    added = Counter(n for left, right, _ in equations for n in (left, right))
    # All but the last result are added again; what is left over are the operands.
    assert added - Counter(result for *_, result in equations[:-1]) == Counter(operands)


@given(OPERANDS, STRATEGY, st.integers(0, 2**32))
def test_a_slip_is_one_wrong_sum_from_which_the_rest_follows(operands, strategy, seed):
    problem = world.Problem(tuple(operands))
    response = world.solve(problem, strategy, random.Random(seed), slip=True)
    error = int(response[-2]) - sum(operands)
    assert 1 <= abs(error) <= 9
    assert world.strategy_of(" ".join(response[:-1])) == strategy
    if strategy != "direct":
        wrong = [r - (a + b) for a, b, r in sums_of(response) if r != a + b]
        assert wrong == [error]


def test_a_slip_stays_in_the_vocabulary():
    for seed in range(50):
        for operands in ((1, 1), (191, 8)):
            response = world.solve(
                world.Problem(operands), "direct", random.Random(seed), slip=True
            )
            assert set(response) <= set(world.vocabulary())


def test_pairs_that_look_like_a_running_sum_are_told_apart():
    """1 + 2 = 3, then 3 + 4 = 7: the third number happens to be the first result."""
    response = world.solve(world.Problem((1, 2, 3, 4, 5)), "pairwise", random.Random(0))
    assert sums_of(response)[:2] == [(1, 2, 3), (3, 4, 7)]
    assert world.strategy_of(" ".join(response)) == "pairwise"


@pytest.mark.parametrize(
    ("response", "strategy"),
    [
        ("", "other"),
        ("well 1 plus 2 is 3", "other"),
        ("so the total is 99 now answer 98", "direct"),
        # A wrong sum, and an answer that is not the last sum, do not change the strategy.
        ("well 1 plus 2 is 9 then 9 plus 4 is 13 now answer 12", "stepwise"),
        ("well 1 plus 2 is 3 then 3 plus 4", "other"),
        ("well 1 plus 2 is 3 then 5 plus 4 is 8 now 3 plus 8 is", "pairwise"),
    ],
)
def test_the_strategy_of_wrong_and_unfinished_responses(response, strategy):
    assert world.strategy_of(response) == strategy


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("so answer 12", 1.0),
        ("so answer 12 <eos> <pad>", 1.0),
        ("answer 12", 1.0),
        ("so answer 13", 0.0),
        ("so answer 12 well", 0.0),  # does not end there
        ("so 12", 0.0),
        ("12", 0.0),
        ("", 0.0),
    ],
)
def test_grading(response, score):
    assert world.grade(response, "12") == score


def test_the_vocabulary_has_every_token_once():
    vocabulary = world.vocabulary()
    assert len(set(vocabulary)) == len(vocabulary)
    assert tuple(vocabulary[: len(world.SPECIALS)]) == world.SPECIALS
    assert {str(n) for n in range(200)} <= set(vocabulary)
    assert not any(token.split() != [token] for token in vocabulary)


def test_numbers_never_leave_the_vocabulary():
    for size in (world.SHORT, world.LONG, *SPLITS.values()):
        assert max(size.operands) * size.largest <= world.LARGEST_NUMBER


@pytest.mark.parametrize("accent", world.ACCENTS)
@pytest.mark.parametrize("name", list(world._SLOTS["plain"]))
def test_a_slot_has_the_stated_tail(name, accent):
    """Top-16 mass of 0.90 for style, 0.98 for operators and copulas; words of its own pool."""
    slot = world._SLOTS[accent][name]
    pool, exponent, mass = {
        "operator": (words.OPERATORS, 2.0, 0.98),
        "copula": (words.COPULAS, 2.0, 0.98),
    }.get(name, (words.STYLE, 1.5, 0.90))
    weights = np.arange(1, len(slot.words) + 1) ** -exponent
    probability = weights / weights.sum()
    assert probability[:16].sum() == pytest.approx(mass, abs=0.01)
    assert set(slot.words) <= set(pool)
    rng, n = random.Random(0), 20_000
    drawn = Counter(slot(rng) for _ in range(n))
    counts = np.array([drawn[word] for word in slot.words])
    assert counts.sum() == n
    # Chi-square over words expected often enough; 4 standard deviations of its distribution.
    often = n * probability >= 5
    chi2 = ((counts - n * probability)[often] ** 2 / (n * probability)[often]).sum()
    assert chi2 < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_the_accents_prefer_other_words():
    for name in world._SLOTS["plain"]:
        plain, formal = (set(world._SLOTS[accent][name].words[:8]) for accent in world.ACCENTS)
        assert len(plain & formal) < 6


@pytest.mark.parametrize("corpus", list(world.CORPORA))
def test_supervised_data_is_the_stated_mixture(corpus):
    n = 4000
    stated = world.CORPORA[corpus]
    data = world.demonstrate(random.Random(0), n, stated)
    strategies = Counter(world.strategy_of(" ".join(response)) for _, response in data)
    templates = Counter(problem.template for problem, _ in data)
    long = sum(len(problem.operands) > 8 for problem, _ in data)
    wrong = sum(response[-2] != problem.answer for problem, response in data)
    shares = dict(zip(world.STRATEGIES, stated.mixture, strict=True))
    for count, share in [
        *((strategies[name], share) for name, share in shares.items()),
        (templates["add"], 1 - world.TOTAL_SHARE),
        (templates["total"], world.TOTAL_SHARE),
        (long, world.LONG_SHARE),
        (wrong, stated.noise),
    ]:
        assert abs(count / n - share) <= 4 * np.sqrt(share * (1 - share) / n)
    assert sorted({len(problem.operands) for problem, _ in data}) == list(range(5, 25))


@pytest.mark.parametrize(("corpus", "share"), [("sft", 0.0), ("pretraining", 0.25), ("post", 1.0)])
def test_the_accent_of_a_corpus(corpus, share):
    """Operators tell the accents apart on average: by the log-likelihood of many."""
    assert world.CORPORA[corpus].formal == share
    data = world.demonstrate(random.Random(1), 2000, world.CORPORA[corpus])
    used = Counter(word for _, response in data for word in response if word in words.OPERATORS)
    orders = {accent: world._SLOTS[accent]["operator"].words for accent in world.ACCENTS}
    first = {accent: used[order[0]] / used.total() for accent, order in orders.items()}
    weight = 1 / sum((r + 1.0) ** -2 for r in range(len(words.OPERATORS)))
    rank = orders["plain"].index(orders["formal"][0])
    expected = share * weight + (1 - share) * weight * (rank + 1.0) ** -2
    assert first["formal"] == pytest.approx(expected, abs=0.03)


def test_held_out_problems_are_left_out():
    every = {problem.operands for problem, _ in world.demonstrate(random.Random(0), 300)}
    some = set(sorted(every)[::2])
    left = world.demonstrate(random.Random(0), 300, held_out=some)
    assert not {problem.operands for problem, _ in left} & some
    assert len(left) == 300
