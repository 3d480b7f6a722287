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
    # torch's own sum, which has fewer partial sums with AVX2 (error 3.9e-5) than with AVX-512.
    "others: log-probability": 6e-5,
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
with lists of one token and of all tokens, in bfloat16, float16, float32 and float64. The tests
assert the bounds on this page on a CPU; the page is generated from them
(`python tests/numerics/error_bounds.py`).

Logits are taken exactly as the model gives them, also in bfloat16.

## Promises

- **Ties.** `from_logits` and `score` order lists by logit, and equal logits by id, lowest first: on
  every call and for any number of threads, chunk and batch, as long as the logits are the same.
  With a temperature, `score` first divides in float32, which can make two logits equal that differ
  in the last bit of float32; logits of 16 bits stay different.
- **Equal models** have a reverse KL of exactly 0, equal entropies and equal lists. A reverse KL is
  never negative.
- **Errors.** NaN, +inf, and a state at which every token is ruled out raise `NonFiniteError`, which
  names the model and the place. `from_logits` accepts -inf for a token that is ruled out: its
  probability is 0, and the reverse KL is infinite where only the teacher rules it out. Training
  and recording refuse -inf as well, because the loss would be infinite.
- **k** larger than the vocabulary raises `ConfigError`.
- **A response of one token**, even if it is the end-of-sequence token, is a state like any other.
- **Probabilities below the smallest float** (1e-45; `from_logits`: 5e-324) count as 0 in a sum.
  Their logarithms stay exact.

## Scores

|error| ≤ absolute + relative · |value| + per logit · (largest |logit| / temperature), in nats. The
last term applies only at temperatures other than 1. Models in bfloat16, float16 and float32 are
scored in float32. `from_logits` computes in float64 and rounds to float32 at the end.

{scores}
## Losses and gradients

For the loss of one state, and for its derivatives with respect to the student's logits: |error| ≤
(absolute + per logit · largest |logit| / temperature) · max(1, |loss|, largest derivative). The
term per logit applies only to `full`, and at temperatures other than 1. The bucket of
`tail="bucket"` replaces a mass below 1e-7 by 1e-7, because float32 cannot resolve smaller ones.

{losses}
## A vocabulary of 151,936

The error of adding up 151,936 float32 numbers, on ordinary, nearly equal and flat distributions,
and on peaks over a flat tail whose tokens have probability 2e-9 each; in nats, for a loss and its
gradient times max(1, loss). Policy gradients, `bucket` and `drop` normalise with torch's
`log_softmax`, which adds up such a tail less accurately.

{large}
## Models in 16 bits

The product of hidden states with the head's weight is computed in the model's dtype, and gradients
are returned in it; nothing in between is rounded to 16 bits. The error of one such rounding,
relative to Σ|h·w| for a logit and to the value for a gradient, and its absolute minimum:

{dtypes}
With another micro-batch, tile or number of threads, the product may round a logit the other way.
The scores of float32 and float64 models then agree within twice the bounds above plus four
roundings of the largest logit, with the same lists; those of 16-bit models within four of their
roundings.

## Probes

Probes compute in float64 from their inputs: |error| ≤ {probes}. A count of tokens
(`mass_set_size`) is exact up to k, and k + 1 stands for more, but a mass within 1e-6 of the target
counts as reached. If the advantages of several tokens are equal to this precision,
`extreme_advantage_gap` uses one of them.

## What storing costs

A step file keeps the log-probabilities of the top-k lists to 12 bits of mantissa: a relative error
of at most 2⁻¹³ = 1.2e-4 each. Everything else is stored as computed, so token sets,
`overlap_ratio`, entropies, `entropy_gap`, `reverse_kl`, `sampled_reward` and
`sequence_mean_reward` are bit for bit the same after storing. At k = 16, on sharp, ordinary and
flat distributions:

{stored}
A bar marks a renormalised distribution, m = Σ p̄ |log p| is summed over that distribution's list,
and n is the number of shared tokens. Errors of states differ in sign, so means are more exact than
single states. `overlap_ratio` above a floor counts a token as if the floor were off by a factor of
at most 1 ± 2⁻¹³ |log floor|: 8.4e-4 for 1e-3. `mass_set_size` of a stored state is exact for a
mass within 3.5e-4 of the given one.
`extreme_advantage_gap` changes by at most 9.1e-5, unless two advantages are so close that another
token's becomes the largest.
"""


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
