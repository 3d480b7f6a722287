"""How far a number may be from its definition, and the page that says so.

python tests/numerics/error_bounds.py       # writes docs/numerics.md
"""

from dataclasses import dataclass
from pathlib import Path

import stored_error

PAGE = Path(__file__).parents[2] / "docs/numerics.md"


@dataclass(frozen=True)
class Bound:
    """``absolute + relative · |value| + per_logit · (largest |logit| / temperature)``, in nats.

    `absolute` and `per_logit` of a gradient are in units of its scale; see the page.
    """

    absolute: float
    relative: float = 0.0
    per_logit: float = 0.0

    def at(self, value: float, largest_logit: float, scale: float = 1.0) -> float:
        """Error allowed."""
        return scale * (self.absolute + self.per_logit * largest_logit) + self.relative * abs(value)


# What float32 and float64 can do to a number in one rounding.
_SINGLE, _DOUBLE = 2.0**-24, 2.0**-53

SCORES: dict[str, dict[str, Bound]] = {
    "`from_logits`": {
        "log-probability": Bound(1e-12, 1.01 * _SINGLE, 4 * _DOUBLE),
        "entropy": Bound(1e-12, 1.01 * _SINGLE, 4 * _DOUBLE),
        "reverse KL": Bound(1e-12, 1.01 * _SINGLE, 8 * _DOUBLE),
    },
    "`score`, float32": {
        "log-probability": Bound(5e-7, 2 * _SINGLE, 2 * _SINGLE),
        "entropy": Bound(1e-6, 4 * _SINGLE, 4 * _SINGLE),
        "reverse KL": Bound(3e-6, 8 * _SINGLE, 4 * _SINGLE),
    },
    "`score`, float64": {
        "log-probability": Bound(1e-14, 2 * _DOUBLE, 2 * _DOUBLE),
        "entropy": Bound(1e-14, 4 * _DOUBLE, 4 * _DOUBLE),
        "reverse KL": Bound(1e-14, 8 * _DOUBLE, 4 * _DOUBLE),
    },
}
# Of one state, in units of max(1, |loss|, largest entry of the gradient).
LOSSES: dict[str, dict[str, Bound]] = {
    "float32": {"loss": Bound(1e-5, 0, 4 * _SINGLE), "gradient": Bound(5e-6, 0, 4 * _SINGLE)},
    "float64": {"loss": Bound(1e-13, 0, 4 * _DOUBLE), "gradient": Bound(1e-13, 0, 4 * _DOUBLE)},
}
# 151,936 tokens in float32.
LARGE_VOCABULARY = {
    "`score`: log-probability, entropy": 2e-6,
    "`score`: reverse KL": 3e-6,
    "`full`: loss": 3e-5,
    "`full`: gradient": 5e-6,
    "others: log-probability": 3e-5,
}
PROBES = Bound(1e-13, 1e-12)
# Half a unit in the last place: what writing a number down in the dtype costs, relative to it.
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
# And where it is smaller than the dtype's normal numbers, absolutely.
SMALLEST = {"bfloat16": 0.0, "float16": 2.0**-25, "float32": 0.0, "float64": 0.0}


def _nats(x: float) -> str:
    if x == 0:
        return "0"
    digits, power = f"{x:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _table(head: str, rows: list[list[str]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|" + "---|" * columns, *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _terms(bound: Bound) -> list[str]:
    return [_nats(bound.absolute), _nats(bound.relative), _nats(bound.per_logit)]


def rendered() -> str:
    """The page as Markdown."""
    scores = [
        [where, name, *_terms(bound)]
        for where, bounds in SCORES.items()
        for name, bound in bounds.items()
    ]
    losses = [
        [where, name, _nats(bound.absolute), _nats(bound.per_logit)]
        for where, bounds in LOSSES.items()
        for name, bound in bounds.items()
    ]
    large = [[name, _nats(bound)] for name, bound in LARGE_VOCABULARY.items()]
    dtypes = [
        [dtype, _nats(ROUNDING[dtype]), _nats(SMALLEST[dtype])] for dtype in ("bfloat16", "float16")
    ]
    stored = [
        [name, what.replace("|", "\\|"), _nats(state), _nats(mean)]
        for name, what, state, mean in stored_error.table_rows()
    ]
    return _TEXT.format(
        scores=_table("computed by | quantity | absolute | relative | per logit", scores),
        losses=_table("arithmetic | quantity | absolute | per logit", losses),
        large=_table("quantity | at most", large),
        dtypes=_table("dtype | relative | absolute", dtypes),
        stored=_table(
            "probe | error of a state, at most | largest seen | of a mean over "
            f"{stored_error.N_STATES:,} states",
            stored,
        ),
        probes=" + ".join(
            [_nats(PROBES.absolute), f"{_nats(PROBES.relative)} of the value"],
        ),
    )


_TEXT = """\
# How exact the numbers are

Tests compare every quantity with its definition, evaluated in 60 decimal digits, on logits that
are hard on arithmetic: constant, tied, nearly equal, certain, very flat, as large as 1e4, with
probabilities of 1e-30 and below what float32 can hold, over vocabularies of one and two tokens,
with lists of one token and of all, in bfloat16, float16, float32 and float64. The bounds on this
page are those that the tests assert on a CPU; the page is made from them
(`python tests/numerics/error_bounds.py`).

A logit is what the model gives, as it gives it: one in bfloat16 is taken as the number that it is.

## Promises

- **Ties.** Lists are ordered by logit, and equal logits by id, the lower first, in `from_logits` as
  in `score`: on every call and for any number of threads, chunk and batch, as long as the logits
  are the same. With a temperature, `score` divides first, in float32, which can make equal two
  logits that differ in the last bit of float32; logits of 16 bits stay apart.
- **Equal models** have a reverse KL of exactly 0, equal entropies and equal lists. A reverse KL is
  never negative.
- **Refused.** NaN and +inf, and a state at which every token is ruled out, raise `NonFiniteError`,
  which names the model and the place. `from_logits` takes -inf for a token ruled out: its
  probability is 0, and the reverse KL is infinite where the teacher alone rules it out. Training
  and recording refuse -inf as well, since the loss would be infinite.
- **k** is at most the vocabulary, else `ConfigError`.
- **A response of one token**, also of the end-of-sequence token alone, is a state like any other.
- **Probabilities below the smallest float** (1e-45; `from_logits`: 5e-324) weigh 0 in a sum. Their
  logarithms stay exact.

## Scores

|error| ≤ absolute + relative · |value| + per logit · (largest |logit| / temperature), in nats. The
last term counts at temperatures other than 1. Models in bfloat16, float16 and float32 are scored
in float32. `from_logits` computes in float64 and rounds to float32 at the end.

{scores}
## Losses and gradients

Of the loss of one state, and of its derivatives in the student's logits: |error| ≤ (absolute + per
logit · largest |logit| / temperature) · max(1, |loss|, largest derivative). The term per logit
counts for `full`, and at temperatures other than 1. The bucket of `tail="bucket"` takes less than
1e-7 for 1e-7, since float32 cannot tell how much less it is.

{losses}
## A vocabulary of 151,936

What adding up so many float32 numbers costs, on ordinary, nearly equal and flat distributions, and
on peaks over a flat tail whose tokens hold 2e-9 each; nats, for a loss and its gradient times
max(1, loss). Policy gradients, `bucket` and `drop` normalise with torch's `log_softmax`, which adds
such a tail up less carefully.

{large}
## Models in 16 bits

The product of hidden states with the head's weight runs in the model's dtype, and a gradient is
handed back in it; nothing in between is rounded to 16 bits. One such rounding, relative to Σ|h·w|
for a logit and to the value for a gradient, and the least that it can be:

{dtypes}
In another micro-batch, tile or number of threads, the product may round a logit the other way. The
scores of float32 and float64 models then agree within twice the bounds above and four roundings of
the largest logit, with the same lists; those of 16-bit models within four of their roundings.

## Probes

Computed in float64 from what they are given: |error| ≤ {probes}. A count of tokens
(`mass_set_size`) is exact, but a mass within 1e-6 of the one to reach counts as reached.
`extreme_advantage_gap` is of one of those tokens whose advantages are equal to that precision.

## What storing costs

A step file keeps the log-probabilities of the top-k lists to 12 bits of mantissa: a relative error
of at most 2⁻¹³ = 1.2e-4 each. Everything else is kept as computed, so that token sets,
`overlap_ratio`, entropies, `entropy_gap`, `reverse_kl`, `sampled_reward` and
`sequence_mean_reward` are bit for bit what they were before. At k = 16, on sharp, ordinary and flat
distributions:

{stored}
Bars renormalise, m = Σ p̄ |log p| is of the list the bar is on, and n is the number of shared
tokens. Errors of states differ in sign, so that means come out better than their states.
`mass_set_size` of a stored state is what it was for a mass within 3.5e-4 of the given one;
`extreme_advantage_gap` is within 9.1e-5 of what it was, unless two advantages are so close that
another token's is now the largest.
"""


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
