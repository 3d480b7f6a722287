"""Word problems in English: a number that grows and shrinks, told as a short story.

A problem is a first number from 5 to 40 and two to four changes of 2 to 20 up or down; every
total on the way is between 0 and 99. A story of one of two **kinds** tells it:

things
    somebody gains and gives away things: what the RL teachers are trained on;
riders
    people get on and off a vehicle: in the supervised data, but not in RL.

in one of two **wordings**: ``plain`` ends with the question, ``asked`` begins with it. The answer
is in one of three **patterns** (the testbed calls them strategies):

direct
    name the result at once: short, and hard for a small model;
stepwise
    write an equation for each change: long, and easier;
narrated
    the same steps in sentences.

Supervised data mixes the patterns, so a model trained on it copies the mixture; reinforcement
learning moves the mixture towards what earns reward. Wording is drawn with Zipf frequencies.

Everything here is text. No part depends on a tokenizer.
"""

import random
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

PATTERNS = ("direct", "stepwise", "narrated")
KINDS = ("things", "riders")
WORDINGS = ("plain", "asked")

LARGEST_TOTAL = 99
_FIRST, _CHANGE = (5, 40), (2, 20)

_NAMES = "Nina Tom Ada Ben Clara David Emma Felix Grace Hugo Iris Jack".split()
_THINGS = "stamps coins books pens shells cards apples marbles beads stickers".split()
_VEHICLES = "bus tram train ferry boat coach".split()
_PLACES = "Oakley Milton Ashby Dunmore Easton Farley Grafton Halden Ivybridge Kelso".split()

UP = {
    "things": ("picks up", "receives", "buys", "finds", "earns", "collects"),
    "riders": ("get on", "board", "climb on"),
}
"""Verbs of a change upwards, by kind of story."""
DOWN = {
    "things": ("lends", "loses", "gives away", "sells", "drops", "uses"),
    "riders": ("get off", "step off", "leave"),
}
"""Verbs of a change downwards, by kind of story."""

_DIRECT = ("That makes", "It is", "So there are", "The answer is", "There are", "In the end")
_OPEN = {
    "stepwise": ("Well", "Counting", "Step by step", "Let us see", "First", "Working it out"),
    "narrated": ("Start with", "Begin with", "We have", "At first there are"),
}
_CLOSE = ("In total", "So the answer is", "Altogether", "Hence", "This gives", "The result is")

_DIRECT_FORM = re.compile(rf"(?:{'|'.join(_DIRECT)}) \d+\.")
_EQUATION = re.compile(r"\d+ [+-] \d+ = \d+")
_SENTENCE = re.compile(r"(?:Adding|Taking) \d+ gives \d+\.")
_NUMBER = re.compile(r"(?:(?<!\d)-)?\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Problem:
    """A story about a number.

    Parameters
    ----------
    first
        The number at the beginning.
    changes
        What is added to it, one after another; negative if it is taken away.
    kind
        One of `KINDS`.
    actor, thing
        Who it is about, and what is counted.
    phrases
        One verb per change, or the place and the verb.
    wording
        One of `WORDINGS`.
    """

    first: int
    changes: tuple[int, ...]
    kind: str
    actor: str
    thing: str
    phrases: tuple[str, ...]
    wording: str = "plain"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The first number and the changes: what makes two problems the same."""
        return (self.first, *self.changes)

    @property
    def totals(self) -> list[int]:
        """The total after each change."""
        out, total = [], self.first
        for change in self.changes:
            total += change
            out.append(total)
        return out

    @property
    def answer(self) -> str:
        """The last total."""
        return str(sum(self.numbers))

    @property
    def question(self) -> str:
        """The user turn."""
        sizes = [abs(change) for change in self.changes]
        if self.kind == "things":
            told = [f"{verb} {n}" for verb, n in zip(self.phrases, sizes, strict=True)]
            story = f"{self.actor} has {self.first} {self.thing}, {', '.join(told)}."
            if self.wording == "plain":
                return f"{story} How many are left?"
            return f"How many {self.thing} does {self.actor} have in the end? {story}"
        stops = [phrase.split(": ") for phrase in self.phrases]
        told = [f"at {stop} {n} {verb}" for (stop, verb), n in zip(stops, sizes, strict=True)]
        story = f"A {self.actor} sets off with {self.first} people, {', '.join(told)}."
        if self.wording == "plain":
            return f"{story} How many are on board?"
        return f"How many people are on the {self.actor} in the end? {story}"


@dataclass(frozen=True)
class Corpus:
    """A kind of supervised data.

    Parameters
    ----------
    mixture
        Shares of the patterns, in the order of `PATTERNS`.
    riders, asked
        Shares of problems of this kind and in this wording.
    noise
        Share of responses with a slip: one total is wrong, and the rest builds on it.
    """

    mixture: tuple[float, float, float]
    riders: float = 0.2
    asked: float = 0.1
    noise: float = 0.0


CORPORA = {
    "sft": Corpus((0.55, 0.35, 0.10)),
    "pretraining": Corpus((0.50, 0.10, 0.40), noise=0.15),
}
"""The students' data, and a noisy mixture with other weights for the base student."""

N_CHANGES = (2, 4)
"""Fewest and most changes in training problems."""


def sample_problem(
    rng: random.Random,
    *,
    n_changes: tuple[int, int] = N_CHANGES,
    kind: str = "things",
    wording: str = "plain",
) -> Problem:
    """Draw a problem.

    Parameters
    ----------
    rng
        Source of all draws.
    n_changes
        Fewest and most changes.
    kind, wording
        Of `KINDS` and `WORDINGS`.
    """
    first = total = rng.randint(*_FIRST)
    changes = []
    for _ in range(rng.randint(*n_changes)):
        change = rng.randint(*_CHANGE)
        # Down where there is enough, up where there is room; one of the two always holds.
        if change > total or (total + change <= LARGEST_TOTAL and rng.random() < 0.5):
            changes.append(change)
        else:
            changes.append(-change)
        total += changes[-1]
    verbs = [rng.choice((UP if change > 0 else DOWN)[kind]) for change in changes]
    if kind == "things":
        actor, thing, phrases = rng.choice(_NAMES), rng.choice(_THINGS), verbs
    else:
        actor, thing = rng.choice(_VEHICLES), "people"
        places = rng.sample(_PLACES, len(changes))
        phrases = [f"{place}: {verb}" for place, verb in zip(places, verbs, strict=True)]
    return Problem(first, tuple(changes), kind, actor, thing, tuple(phrases), wording)


def solve(problem: Problem, pattern: str, rng: random.Random, *, slip: bool = False) -> str:
    """Write one response with random wording.

    Parameters
    ----------
    problem
        The problem to solve.
    pattern
        One of `PATTERNS`.
    rng
        Source of the wording and the slip.
    slip
        Whether to get one total wrong, by 1 to 9, and continue with it.

    Examples
    --------
    >>> problem = Problem(32, (8, -10), "things", "Nina", "stamps", ("finds", "lends"))
    >>> solve(problem, "stepwise", random.Random(1))
    'Well: 32 + 8 = 40, then 40 - 10 = 30. Hence 30.'
    """
    totals = problem.totals
    if slip:
        place = rng.randrange(len(totals))
        totals = _slipped(problem, place, rng)
    result = totals[-1]
    if pattern == "direct":
        return f"{_zipf(rng, _DIRECT)} {result}."
    start, end = _zipf(rng, _OPEN[pattern]), f"{_zipf(rng, _CLOSE)} {result}."
    before = [problem.first, *totals[:-1]]
    if pattern == "stepwise":
        steps = [
            f"{left} {'+' if change > 0 else '-'} {abs(change)} = {total}"
            for left, change, total in zip(before, problem.changes, totals, strict=True)
        ]
        return f"{start}: {', then '.join(steps)}. {end}"
    told = [
        f"{'Adding' if change > 0 else 'Taking'} {abs(change)} gives {total}."
        for change, total in zip(problem.changes, totals, strict=True)
    ]
    return f"{start} {problem.first}. {' '.join(told)} {end}"


def _slipped(problem: Problem, place: int, rng: random.Random) -> list[int]:
    """Return the totals with a wrong one at a place, and what follows from it, none below 0."""
    rest = [0]
    for change in problem.changes[place + 1 :]:
        rest.append(rest[-1] + change)
    true = problem.totals
    errors = [e for e in range(-9, 10) if e and true[place] + e + min(rest) >= 0]
    wrong = true[place] + rng.choice(errors)
    return true[:place] + [wrong + change for change in rest]


def _zipf(rng: random.Random, words: Sequence[str]) -> str:
    """Draw a word with a probability that is inverse to its rank."""
    return rng.choices(words, [1 / rank for rank in range(1, len(words) + 1)])[0]


def pattern_of(response: str) -> str:
    """Name the pattern of a response, right or wrong; ``other`` if it has none.

    Examples
    --------
    >>> pattern_of("That makes 30.")
    'direct'
    >>> pattern_of("Well: 32 + 8 = 40, then 40 - 10 = 31. Hence 31.")
    'stepwise'
    >>> pattern_of("Start with 32. Adding 8 gives 40. Taking 10 gives 30. Hence 30.")
    'narrated'
    >>> pattern_of("I have 30 stamps")
    'other'
    """
    text = response.strip()
    if _DIRECT_FORM.fullmatch(text):
        return "direct"
    n_equations, n_sentences = len(_EQUATION.findall(text)), len(_SENTENCE.findall(text))
    if max(n_equations, n_sentences) < 2 or n_equations == n_sentences:
        return "other"
    return "stepwise" if n_equations > n_sentences else "narrated"


def grade(response: str, answer: str) -> float:
    """1.0 if the last number of the response is `answer`, else 0.0.

    Examples
    --------
    >>> grade("40 - 10 = 30. Hence 30.", "30"), grade("So 30, or 31.", "30")
    (1.0, 0.0)
    """
    found = _NUMBER.findall(response)
    return float(bool(found) and found[-1] == answer)


def demonstrate(
    rng: random.Random,
    n: int,
    corpus: Corpus = CORPORA["sft"],
    *,
    held_out: Container[tuple[int, ...]] = (),
) -> list[tuple[Problem, str]]:
    """Draw `n` problems with one response each.

    Parameters
    ----------
    rng
        Source of all draws.
    n
        Number of problems.
    corpus
        Mixture of the responses.
    held_out
        Numbers of the problems to leave out, which models are tested on.
    """
    out = []
    while len(out) < n:
        kind = "riders" if rng.random() < corpus.riders else "things"
        wording = "asked" if rng.random() < corpus.asked else "plain"
        problem = sample_problem(rng, kind=kind, wording=wording)
        if problem.numbers in held_out:
            continue
        (pattern,) = rng.choices(PATTERNS, corpus.mixture)
        slip = rng.random() < corpus.noise
        out.append((problem, solve(problem, pattern, rng, slip=slip)))
    return out
