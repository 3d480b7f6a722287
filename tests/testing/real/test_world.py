"""Word problems: every answer against an evaluation of the text alone, every pattern parsed."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdprobe.testing.real import world
from opdprobe.testing.real.world import CORPORA, KINDS, PATTERNS, WORDINGS

SEEDS = st.integers(0, 2**32)
# Written out again, so that a verb on the wrong side is found.
GAINS = "picks up|receives|buys|finds|earns|collects|get on|board|climb on"
LOSSES = "lends|loses|gives away|sells|drops|uses|get off|step off|leave"
GAIN = re.compile(rf"(?:{GAINS}) (\d+)|(\d+) (?:{GAINS})\b")
LOSS = re.compile(rf"(?:{LOSSES}) (\d+)|(\d+) (?:{LOSSES})\b")


def told(question: str) -> int:
    """Solve a story from its text."""
    (first,) = re.findall(r"(?:has|sets off with) (\d+)", question)
    up = sum(int(a or b) for a, b in GAIN.findall(question))
    down = sum(int(a or b) for a, b in LOSS.findall(question))
    assert len(re.findall(r"\d+", question)) == 1 + len(GAIN.findall(question)) + len(
        LOSS.findall(question)
    )
    return int(first) + up - down


def draw(seed: int, kind: str = "things", wording: str = "plain") -> world.Problem:
    return world.sample_problem(random.Random(seed), kind=kind, wording=wording)


@given(SEEDS, st.sampled_from(KINDS), st.sampled_from(WORDINGS))
def test_the_answer_is_what_the_story_says(seed, kind, wording):
    problem = draw(seed, kind, wording)
    assert told(problem.question) == int(problem.answer)
    assert world.N_CHANGES[0] <= len(problem.changes) <= world.N_CHANGES[1]
    assert 5 <= problem.first <= 40
    assert all(2 <= abs(change) <= 20 for change in problem.changes)
    assert all(0 <= total <= world.LARGEST_TOTAL for total in problem.totals)
    assert problem.question.startswith("How many") == (wording == "asked")


@given(SEEDS, st.sampled_from(PATTERNS), st.booleans())
def test_a_response_has_its_pattern_and_is_right_unless_it_slips(seed, pattern, slip):
    problem = draw(seed)
    response = world.solve(problem, pattern, random.Random(seed), slip=slip)
    assert world.pattern_of(response) == pattern
    assert world.grade(response, problem.answer) == float(not slip)


@given(SEEDS)
def test_equations_are_true_and_chained(seed):
    problem = draw(seed)
    response = world.solve(problem, "stepwise", random.Random(seed))
    equations = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", response)
    left = [int(a) for a, *_ in equations]
    right = [int(b) for *_, b in equations]
    for a, sign, n, b in equations:
        assert int(a) + int(sign + n) == int(b)
    assert left == [problem.first, *right[:-1]]
    assert len(equations) == len(problem.changes)


@given(SEEDS)
def test_sentences_are_true(seed):
    problem = draw(seed)
    response = world.solve(problem, "narrated", random.Random(seed))
    total = problem.first
    for verb, n, result in re.findall(r"(Adding|Taking) (\d+) gives (\d+)", response):
        total += int(n) if verb == "Adding" else -int(n)
        assert total == int(result)
    assert str(total) == problem.answer


@given(SEEDS, st.sampled_from(PATTERNS[1:]))
def test_a_slip_is_one_wrong_total_on_which_the_rest_builds(seed, pattern):
    problem = draw(seed)
    response = world.solve(problem, pattern, random.Random(seed), slip=True)
    totals = [int(n) for n in re.findall(r"(?:=|gives) (\d+)", response.split("This gives")[0])]
    before = [problem.first, *totals]
    wrong = [
        i
        for i, (change, total) in enumerate(zip(problem.changes, totals, strict=True))
        if before[i] + change != total
    ]
    assert len(wrong) == 1
    error = totals[wrong[0]] - before[wrong[0]] - problem.changes[wrong[0]]
    assert 1 <= abs(error) <= 9
    assert min(totals) >= 0


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("That makes 27.", 1.0),
        ("27", 1.0),
        ("Well: 20 + 7 = 27. Hence 27.", 1.0),
        ("So 27 stamps are left.", 1.0),
        ("30-27", 1.0),
        ("That makes 127.", 0.0),
        ("That makes 2.7.", 0.0),
        ("That makes 27.5.", 0.0),
        ("That makes 1,027.", 0.0),
        ("That makes -27.", 0.0),
        ("27, or 28?", 0.0),
        ("twenty-seven", 0.0),
        ("", 0.0),
    ],
)
def test_the_last_number_counts(response, score):
    assert world.grade(response, "27") == score


@pytest.mark.parametrize(
    "response", ["", "27", "I think 27.", "20 + 7 = 27. Hence 27.", "That makes 27. Or 28."]
)
def test_other_texts_have_no_pattern(response):
    assert world.pattern_of(response) == "other"


def test_the_corpora_have_their_shares():
    n = 4000
    for corpus in CORPORA.values():
        drawn = world.demonstrate(random.Random(0), n, corpus)
        shares = [sum(world.pattern_of(r) == name for _, r in drawn) / n for name in PATTERNS]
        # Four standard errors of a share of a half.
        assert shares == pytest.approx(corpus.mixture, abs=0.032)
        riders = sum(problem.kind == "riders" for problem, _ in drawn) / n
        asked = sum(problem.wording == "asked" for problem, _ in drawn) / n
        wrong = sum(not world.grade(r, problem.answer) for problem, r in drawn) / n
        assert (riders, asked, wrong) == pytest.approx(
            (corpus.riders, corpus.asked, corpus.noise), abs=0.032
        )


def test_problems_that_are_held_out_are_left_out():
    every = [p.numbers for p, _ in world.demonstrate(random.Random(1), 50)]
    drawn = world.demonstrate(random.Random(1), 49, held_out=every[:1])
    assert [p.numbers for p, _ in drawn][:10] != every[:10]
    assert every[0] not in {p.numbers for p, _ in drawn}
