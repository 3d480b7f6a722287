"""The task of the testbed: add numbers, thinking aloud in one of three ways.

A problem is five to eight numbers from 1 to 20; a long problem is nine to twenty-four numbers from
1 to 8. A response is a chain of thought that ends in ``answer N``, in one of three **strategies**
(the testbed's thinking patterns):

direct
    name the total at once: short, and hard for a small model;
stepwise
    keep a running sum: long, and easy even for a small model;
pairwise
    sum pairs, then pairs of sums.

Supervised data mixes the three, so a model trained on it copies the mixture. Reinforcement learning
moves the mixture towards what earns reward. A larger model is better *at each strategy* and keeps
the mixture. This is a small version of the paper's "thinking pattern" against "scale" (§3).

Wording is random. At most positions that are not numbers, one of many paraphrases is drawn with
Zipf frequencies, so that a model's top-16 tokens hold 95 to 99.9 % of its mass and are well defined
(§4.1). Without this tail, most tokens of a top-16 set would be noise below 1e-6. The two
**accents**, ``plain`` and ``formal``, use the same words in different orders of frequency.
"""

import random
from bisect import bisect
from collections.abc import Container
from dataclasses import dataclass
from itertools import accumulate

from opdprobe.testing.testbed import words

STRATEGIES = ("direct", "stepwise", "pairwise")
ACCENTS = ("plain", "formal")

LARGEST_NUMBER = 199
TEMPLATES = {
    "add": "add {numbers}",
    "total": "{numbers} please total",
    "unseen": "the total {numbers}",
}
"""User turns. Supervised data has mostly ``add`` and some ``total``; the RL teachers see only
``add``. No model was trained on ``unseen``, though all know its words."""


@dataclass(frozen=True)
class Size:
    """The size of problems.

    Parameters
    ----------
    operands
        Smallest and largest number of operands.
    largest
        Largest possible operand; the smallest is 1.
    """

    operands: tuple[int, int]
    largest: int


SHORT, LONG = Size((5, 8), 20), Size((9, 24), 8)


@dataclass(frozen=True)
class Corpus:
    """A kind of supervised data.

    Parameters
    ----------
    mixture
        Shares of the strategies, in the order of `STRATEGIES`.
    formal
        Share of responses in the formal accent.
    noise
        Share of responses with a slip: one of their sums is wrong, and the rest builds on it.
    """

    mixture: tuple[float, float, float]
    formal: float = 0.0
    noise: float = 0.0


CORPORA = {
    "sft": Corpus((0.55, 0.35, 0.10)),
    "pretraining": Corpus((0.50, 0.30, 0.20), formal=0.25, noise=0.15),
    "post": Corpus((0.50, 0.05, 0.45), formal=1.0),
}
"""Distilled reasoning, a noisy mixture of everything, and another pattern in formal wording."""

TOTAL_SHARE, LONG_SHARE = 0.05, 0.10
"""Shares of the template ``total`` and of long problems in supervised data."""

SPECIALS = ("<pad>", "<eos>", "<bos>", "<user>", "<assistant>")
STRUCTURE = ("add", "please", "total", "the", "answer")


class _Zipf:
    """Words in one fixed order, drawn with probability proportional to rank ** -exponent."""

    def __init__(self, pool: tuple[str, ...], size: int, exponent: float, seed: int):
        self.words = random.Random(seed).sample(pool, size)
        self.cumulative = list(accumulate((r + 1.0) ** -exponent for r in range(size)))

    def __call__(self, rng: random.Random) -> str:
        return self.words[bisect(self.cumulative, rng.random() * self.cumulative[-1])]


# A slot is a position in a response that has its own word distribution. The exponents give the
# first 16 words a mass of 0.90 (style) and 0.98 (operators, copulas).
_STYLED = (
    "open direct",
    "open stepwise",
    "open pairwise",
    "link stepwise",
    "link pairwise",
    "close",
)


def _slots(seed: int) -> dict[str, _Zipf]:
    slots = {name: _Zipf(words.STYLE, 64, 1.5, seed + i) for i, name in enumerate(_STYLED)}
    slots["operator"] = _Zipf(words.OPERATORS, len(words.OPERATORS), 2.0, seed + 101)
    slots["copula"] = _Zipf(words.COPULAS, len(words.COPULAS), 2.0, seed + 102)
    return slots


_SLOTS = {accent: _slots(1000 * i) for i, accent in enumerate(ACCENTS)}


@dataclass(frozen=True)
class Problem:
    """Numbers to add.

    Parameters
    ----------
    operands
        The numbers, each in [1, 20].
    template
        Key of `TEMPLATES`.
    """

    operands: tuple[int, ...]
    template: str = "add"

    @property
    def question(self) -> str:
        """The user turn."""
        return TEMPLATES[self.template].format(numbers=" ".join(map(str, self.operands)))

    @property
    def answer(self) -> str:
        """The total."""
        return str(sum(self.operands))


def vocabulary() -> list[str]:
    """Return every token of the world in id order: specials, numbers, structure, wording."""
    numbers = [str(n) for n in range(LARGEST_NUMBER + 1)]
    return [*SPECIALS, *numbers, *STRUCTURE, *words.OPERATORS, *words.COPULAS, *words.STYLE]


def sample_problem(rng: random.Random, *, size: Size = SHORT, template: str = "add") -> Problem:
    """Draw a problem of a size."""
    n = rng.randint(*size.operands)
    return Problem(tuple(rng.randint(1, size.largest) for _ in range(n)), template)


def solve(
    problem: Problem,
    strategy: str,
    rng: random.Random,
    *,
    accent: str = "plain",
    slip: bool = False,
) -> list[str]:
    """Write one response in `strategy` with random wording.

    Parameters
    ----------
    problem
        The problem to solve.
    strategy
        One of `STRATEGIES`.
    rng
        Source of the wording and the slip.
    accent
        One of `ACCENTS`.
    slip
        Whether to get one sum wrong, by 1 to 9, and continue with it.

    Returns
    -------
    list of str
        Tokens, ending in ``answer``, the total and ``<eos>``.
    """
    slots = _SLOTS[accent]
    out = [slots[f"open {strategy}"](rng)]
    if strategy == "direct":
        total = sum(problem.operands)
        total = _slipped(rng, total) if slip else total
        out += ["the", "total", slots["copula"](rng), str(total)]
    else:
        numbers, link = list(problem.operands), slots[f"link {strategy}"]
        total = numbers[0]
        wrong = rng.randrange(len(numbers) - 1) if slip else None
        for i in range(len(numbers) - 1):
            left, right, *rest = numbers
            total = left + right if i != wrong else _slipped(rng, left + right)
            out += [str(left), slots["operator"](rng), str(right), slots["copula"](rng), str(total)]
            numbers = [*rest, total] if strategy == "pairwise" else [total, *rest]
            if rest:
                out.append(link(rng))
    return [*out, slots["close"](rng), "answer", str(total), "<eos>"]


def _slipped(rng: random.Random, total: int) -> int:
    """Return a number of the vocabulary that is near `total` but differs from it."""
    near = [n for n in range(total - 9, total + 10) if 0 <= n <= LARGEST_NUMBER and n != total]
    return rng.choice(near)


def strategy_of(response: str) -> str:
    """Name the strategy of a response text, right or wrong; ``other`` if it has none.

    Examples
    --------
    >>> strategy_of("well the total is 12 so answer 12")
    'direct'
    >>> strategy_of("well 1 plus 2 is 3 then 3 plus 4 is 7 so answer 7")
    'stepwise'
    >>> strategy_of("well 1 plus 2 is 3 then 4 plus 5 is 9 now 3 plus 9 is 12 so answer 12")
    'pairwise'
    """
    tokens = response.split()
    if tokens[1:3] == ["the", "total"]:
        return "direct"
    thought = tokens[: tokens.index("answer")] if "answer" in tokens else tokens
    numbers = [t for t in thought if t.isdigit()]
    if len(numbers) < 6:
        return "other"
    # In a running sum every sum starts with the previous result; in pairs, some may by chance.
    chained = all(
        left == result for left, result in zip(numbers[3::3], numbers[2::3], strict=False)
    )
    return "stepwise" if chained else "pairwise"


def grade(response: str, answer: str) -> float:
    """1.0 if the response names `answer` after the word ``answer``, and ends there; else 0.0."""
    tokens = [t for t in response.split() if t not in ("<eos>", "<pad>")]
    return float(len(tokens) >= 2 and tokens[-2] == "answer" and tokens[-1] == answer)


def demonstrate(
    rng: random.Random,
    n: int,
    corpus: Corpus = CORPORA["sft"],
    *,
    held_out: Container[tuple[int, ...]] = (),
) -> list[tuple[Problem, list[str]]]:
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
        Operands of problems to leave out, which models are tested on.
    """
    out = []
    while len(out) < n:
        size = LONG if rng.random() < LONG_SHARE else SHORT
        template = "total" if rng.random() < TOTAL_SHARE else "add"
        problem = sample_problem(rng, size=size, template=template)
        if problem.operands in held_out:
            continue
        (strategy,) = rng.choices(STRATEGIES, corpus.mixture)
        accent = "formal" if rng.random() < corpus.formal else "plain"
        slip = rng.random() < corpus.noise
        out.append((problem, solve(problem, strategy, rng, accent=accent, slip=slip)))
    return out
