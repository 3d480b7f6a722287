"""The task of the testbed: add a few numbers, thinking aloud in one of three ways.

A problem is five to eight numbers from 1 to 20. A response is a chain of thought that ends in
``answer N``. Three **strategies** (the testbed's thinking patterns) lead there:

direct
    name the total at once: short, and hard for a small model;
stepwise
    keep a running sum: long, and easy even for a small model;
pairwise
    sum pairs, then pairs of sums.

Supervised data mixes the three, so a model trained on it copies the mixture; reinforcement learning
moves the mixture towards what earns reward; a larger model is better *at each strategy* and keeps
the mixture. That is the paper's "thinking pattern" against "scale" (§3) in miniature.

Wording is random: at most positions that are not numbers one of many paraphrases is drawn with
Zipf frequencies, so that a model's top-16 holds 95 to 99.9 % of its mass and which tokens are in it
is a question with an answer (§4.1). Without that tail a top-16 set is mostly noise below 1e-6.
"""

import random
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

from opdprobe.testbed import words

STRATEGIES = ("direct", "stepwise", "pairwise")
MIXTURE = (0.55, 0.35, 0.1)
"""Shares of the strategies in supervised data, in the order of `STRATEGIES`."""

OPERANDS = (5, 8)
LARGEST_OPERAND = 20
LARGEST_NUMBER = 199
TEMPLATES = {"add": "add {numbers}", "total": "please total {numbers}"}
"""User turns. Supervised data has both; the RL teachers see only ``add``."""

SPECIALS = ("<pad>", "<eos>", "<bos>", "<user>", "<assistant>")
STRUCTURE = ("add", "please", "total", "the", "answer")


class _Zipf:
    """Words in one fixed order, drawn with probability proportional to rank ** -exponent."""

    def __init__(self, pool: tuple[str, ...], size: int, exponent: float, seed: int):
        self.words = random.Random(seed).sample(pool, size)
        self.cumulative = list(accumulate((r + 1.0) ** -exponent for r in range(size)))

    def __call__(self, rng: random.Random) -> str:
        return self.words[bisect(self.cumulative, rng.random() * self.cumulative[-1])]


# A slot is a position in a response with a word distribution of its own. Exponents put the mass of
# the first 16 words at 0.90 (style) and 0.98 (operators, copulas).
_SLOTS = {
    name: _Zipf(words.STYLE, 64, 1.5, seed)
    for seed, name in enumerate(
        ("open direct", "open stepwise", "open pairwise", "link stepwise", "link pairwise", "close")
    )
}
_SLOTS["operator"] = _Zipf(words.OPERATORS, len(words.OPERATORS), 2.0, 101)
_SLOTS["copula"] = _Zipf(words.COPULAS, len(words.COPULAS), 2.0, 102)


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
    """Every token of the world in id order: specials, numbers, structure, wording."""
    numbers = [str(n) for n in range(LARGEST_NUMBER + 1)]
    return [*SPECIALS, *numbers, *STRUCTURE, *words.OPERATORS, *words.COPULAS, *words.STYLE]


def sample_problem(
    rng: random.Random,
    *,
    operands: tuple[int, int] = OPERANDS,
    largest: int = LARGEST_OPERAND,
    template: str = "add",
) -> Problem:
    """Draw a problem with ``operands[0]`` to ``operands[1]`` numbers, each 1 to `largest`."""
    n = rng.randint(*operands)
    return Problem(tuple(rng.randint(1, largest) for _ in range(n)), template)


def _steps(rng: random.Random, numbers: list[str], link: str, pairwise: bool) -> list[str]:
    out: list[str] = []
    while len(numbers) > 1:
        left, right, *rest = numbers
        result = str(int(left) + int(right))
        out += [left, _SLOTS["operator"](rng), right, _SLOTS["copula"](rng), result]
        numbers = [*rest, result] if pairwise else [result, *rest]
        if len(numbers) > 1:
            out.append(_SLOTS[link](rng))
    return out


def solve(problem: Problem, strategy: str, rng: random.Random) -> list[str]:
    """Write one correct response in `strategy` with random wording.

    Returns
    -------
    list of str
        Tokens, ending in ``answer``, the total and ``<eos>``.
    """
    numbers = list(map(str, problem.operands))
    out = [_SLOTS[f"open {strategy}"](rng)]
    if strategy == "direct":
        out += ["the", "total", _SLOTS["copula"](rng), problem.answer]
    else:
        out += _steps(rng, numbers, f"link {strategy}", strategy == "pairwise")
    return [*out, _SLOTS["close"](rng), "answer", problem.answer, "<eos>"]


def strategy_of(response: str) -> str:
    """Name the strategy of a response text, also of a wrong one; ``other`` if it has none.

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
    # Every sum of a running sum starts with the result before; of pairs, some can by chance.
    chained = all(
        left == result for left, result in zip(numbers[3::3], numbers[2::3], strict=False)
    )
    return "stepwise" if chained else "pairwise"


def grade(response: str, answer: str) -> float:
    """1.0 if the response names `answer` after the word ``answer``, and ends there; else 0.0."""
    tokens = [t for t in response.split() if t not in ("<eos>", "<pad>")]
    return float(len(tokens) >= 2 and tokens[-2] == "answer" and tokens[-1] == answer)


def demonstrate(rng: random.Random, n: int) -> list[tuple[Problem, list[str]]]:
    """Draw `n` problems with a correct response each: the supervised mixture.

    Three quarters of the problems use the template ``add``, the others ``total``.
    """
    out = []
    for _ in range(n):
        problem = sample_problem(rng, template="add" if rng.random() < 0.75 else "total")
        (strategy,) = rng.choices(STRATEGIES, MIXTURE)
        out.append((problem, solve(problem, strategy, rng)))
    return out
