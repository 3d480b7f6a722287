"""Every quantity as the paper defines it, in 60 decimal digits, one state at a time.

Nothing here knows how the library computes: sums over sets of tokens, and derivatives as central
differences with a step of 1e-25, whose own error is about 1e-35.
"""

from collections.abc import Callable, Sequence
from functools import cache

from mpmath import mp, mpf

mp.dps = 60
_STEP = mpf(10) ** -25
# What `opdprobe.train.losses` documents: a bucket never holds less.
LEAST_BUCKET = 1 - mp.exp(mpf(-1e-7))
Row = Sequence[mpf]

# Many definitions take the same logarithms, of the same logits.
_exp = cache(mp.exp)


def exact(values) -> list[mpf]:
    """Take floats of any type as they are."""
    return [mpf(float(value)) for value in values]


def log_softmax(logits: Row, temperature: float = 1.0) -> list[mpf]:
    return list(_log_softmax(tuple(logits), temperature))


@cache
def _log_softmax(logits: tuple[mpf, ...], temperature: float) -> list[mpf]:
    x = [value / mpf(temperature) for value in logits]
    log_total = max(x) + mp.log(mp.fsum(_exp(value - max(x)) for value in x))
    return [value - log_total for value in x]


def top_k(logits: Row, k: int) -> list[int]:
    """Largest first, and of equals the lower id."""
    return sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:k]


def entropy(log_p: Row) -> mpf:
    return -mp.fsum(_exp(x) * x for x in log_p if x != -mp.inf)


def kl(log_p: Row, log_q: Row) -> mpf:
    """Sum p (log p - log q); 0 where p is 0, infinite where q alone is. Need not be normalised."""
    return mp.fsum(_exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True) if p != -mp.inf)


def divergence(log_p: Row, log_q: Row, kind: str) -> mpf:
    if kind == "reverse_kl":
        return kl(log_p, log_q)
    if kind == "forward_kl":
        return kl(log_q, log_p)
    pairs = zip(log_p, log_q, strict=True)
    log_mixture = [mp.log((_exp(p) + _exp(q)) / 2) for p, q in pairs]
    return (kl(log_p, log_mixture) + kl(log_q, log_mixture)) / 2


def mass(log_p: Row) -> mpf:
    return mp.fsum(_exp(x) for x in log_p)


def renormalised(log_p: Row) -> list[mpf]:
    total = mass(log_p)
    return [x - mp.log(total) for x in log_p]


def advantage_terms(log_p: Row, log_q: Row, shared: Sequence[int], definition: str) -> list[mpf]:
    """Summands of the overlap-token advantage over the shared ranks of the student's list."""
    p, q = ([row[rank] for rank in shared] for row in (log_p, log_q))
    if definition in ("paper", "sum"):
        p, q = renormalised(p), renormalised(q)
        return [_times(a, b, a) for a, b in zip(p, q, strict=True)]
    if definition == "thunlp":
        weight = renormalised(log_p)
        return [_times(weight[rank], log_q[rank], log_p[rank]) for rank in shared]
    return [_times(b, a, b) for a, b in zip(p, q, strict=True)]


def _times(log_weight: mpf, above: mpf, below: mpf) -> mpf:
    """A log-ratio times a weight; 0 where the weight is."""
    return mpf(0) if log_weight == -mp.inf else _exp(log_weight) * (above - below)


def advantage(log_p: Row, log_q: Row, shared: Sequence[int], definition: str) -> mpf:
    if not shared:
        return mp.nan
    total = mp.fsum(advantage_terms(log_p, log_q, shared, definition))
    return total if definition == "sum" else total / len(shared)


def mass_set_size(log_p: Row, share: float) -> int:
    """Tokens that hold `share`; one more than there are where all of them hold less."""
    held = mpf(0)
    for count, x in enumerate(sorted(log_p, reverse=True), 1):
        held += _exp(x)
        if held >= mpf(share):
            return count
    return len(log_p) + 1


def support_tokens(student: Sequence[int], teacher: Sequence[int], support: str) -> list[int]:
    s, t = set(student), set(teacher)
    sets = {"student": s, "teacher": t, "overlap": s & t, "non_overlap": s ^ t, "union": s | t}
    return sorted(sets[support])


def restricted(log_p: Row, tokens: Sequence[int], tail: str) -> list[mpf]:
    inside = [log_p[token] for token in tokens]
    if tail == "renormalise":
        return renormalised(inside)
    if tail == "drop":
        return inside
    return [*inside, mp.log(max(1 - mass(inside), LEAST_BUCKET))]


def objective(
    logits: Row,
    teacher_logits: Row,
    *,
    objective: str,
    support: str,
    divergence_kind: str,
    tail: str,
    estimator: str,
    temperature: float,
    k: int,
    sampled: int,
) -> Callable[[Row], mpf]:
    """One state's loss as a function of the student's logits.

    Sets of tokens and what an estimator holds constant are those of `logits`. There, a policy
    gradient's loss is minus its advantages; elsewhere it is the surrogate's, up to a constant.
    """
    log_q = log_softmax(teacher_logits, temperature)
    now = log_softmax(logits, temperature)
    tokens = support_tokens(top_k(logits, k), top_k(teacher_logits, k), support)

    def loss(x: Row) -> mpf:
        log_p = log_softmax(x, temperature)
        if objective == "full":
            return divergence(log_p, log_q, divergence_kind)
        if objective == "sampled":
            advantage = log_q[sampled] - now[sampled]
            return -advantage * (1 + log_p[sampled] - now[sampled])
        if not tokens:
            return mpf(0)
        p_bar, q_bar = (restricted(row, tokens, tail) for row in (log_p, log_q))
        if estimator == "direct":
            # Masses that differ belong to the divergence of what does not sum to 1.
            masses = {"reverse_kl": mass(q_bar) - mass(p_bar), "jsd": 0}
            masses["forward_kl"] = -masses["reverse_kl"]
            dropped = masses[divergence_kind] if tail == "drop" else 0
            return divergence(p_bar, q_bar, divergence_kind) + dropped
        weight = [_exp(x) for x in restricted(now, tokens, tail)]
        return -mp.fsum(
            w * (log_q[token] - now[token]) * (1 + log_p[token] - now[token])
            for w, token in zip(weight[: len(tokens)], tokens, strict=True)
        )

    return loss


def gradient(loss: Callable[[Row], mpf], x: Row) -> list[mpf]:
    """Derivative in each coordinate."""
    found = []
    for i in range(len(x)):
        up, down = list(x), list(x)
        up[i], down[i] = x[i] + _STEP, x[i] - _STEP
        found.append((loss(up) - loss(down)) / (2 * _STEP))
    return found
