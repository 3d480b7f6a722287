"""The rule that turns what was measured into a verdict. No models, no torch."""

from dataclasses import dataclass

from opdprobe.preflight.estimates import Number

LIKELY = "likely to work"
UNLIKELY = "unlikely to help"
HARMFUL = "harmful"
UNKNOWN = "cannot tell"

VALIDATED = (
    "Validated on 10 pairs of the testbed's models only, of which training helps 5, leaves 3 as "
    "they were and harms 2: right on 8, cannot tell on 1, misses 1 that training helps. But it was "
    "corrected with all ten in view; an earlier form, made on other models, was right on 7. No "
    "real language model is among them."
)
"""What every verdict says about the rule itself."""

# Accuracy that a pattern has to gain or lose before it counts, and the bounds of an interval that
# hides nothing larger. On the testbed: +0.14 to +0.30 where training works and the rule sees it,
# -0.08 to +0.05 where it changes nothing, -0.42 to -0.34 where it harms; intervals of about ±0.1
# (32 prompts × 4).
_WORTH = 0.1
_BLIND = 0.2
# Cosine between groups of 16 rollouts: consistent from the first on if 0 is ruled out, cancelled if
# 0 is possible and the second ruled out. On the testbed 0.24 to 0.52 where training works, but 0.10
# for one pair; -0.03 to 0.04 where a teacher of the same pipeline changes nothing.
_CONSISTENT = 0.2
_CANCELS = 0.3
# The paper's successful runs start at 0.72, the one that needs a cold start at 0.55 (Fig. 6 and 8);
# the testbed's lineages at 0.81 to 0.83, and 0.46 to 0.74 across them.
_OVERLAP = 0.7
_TRUNCATED = 0.5
_REPETITIVE = 0.1
# Tokens; the shortest prefix that the paper cuts at (Fig. 11b). Below it there is no tail to cut.
_TAIL = 1000


@dataclass(frozen=True)
class Evidence:
    """What the rule looks at.

    Parameters
    ----------
    overlap
        Overlap ratio (Eq. 6).
    reverse_kl
        Over the full vocabulary, nats a token.
    noise
        The same between two passes of the student itself.
    cosine
        Between the gradients of groups of prompts.
    accuracy, teacher_accuracy
        Of either model's own responses; NaN if no answers are known.
    gap
        Teacher's accuracy minus student's.
    pattern
        Accuracy of the student going on from the teacher's openings, minus its own.
    tail
        First prefix length at which the teacher's continuation is no longer better than the
        student's, though its own answers are; None if there is none.
    truncated, teacher_truncated
        Share of responses that reached the length limit.
    repetitive
        Share of the student's responses that repeat themselves.
    """

    overlap: Number
    reverse_kl: Number
    noise: float
    cosine: Number
    accuracy: Number
    teacher_accuracy: Number
    gap: Number
    pattern: Number
    tail: int | None
    truncated: float
    teacher_truncated: float
    repetitive: float


@dataclass(frozen=True)
class Verdict:
    """An answer to: will this teacher teach this student?

    Parameters
    ----------
    word
        ``likely to work``, ``unlikely to help``, ``harmful`` or ``cannot tell``.
    reasons
        The evidence for it, in the paper's terms.
    advice
        What to try.
    validated
        How far the rule has been tested.
    """

    word: str
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    validated: str = VALIDATED


def judge(evidence: Evidence) -> Verdict:
    """Judge a pair of models.

    The paper finds that a student takes over its teacher's *pattern* of thinking, not its scale
    (§3). What that pattern is worth *to this student* can be measured without training: let the
    teacher open a response and the student finish it. If answers are known, then, in this order,

    1. a teacher that is clearly the weaker model is *harmful* (§3.3): what a student loses needs no
       capacity. Should its pattern help the student all the same, that is *cannot tell*;
    2. a student that does better after the teacher's openings is *likely to work*;
    3. one that does worse after them will be led there: *harmful*. If the teacher is clearly the
       better model, that is *cannot tell*: the student may lose by the opening and gain by the
       rest;
    4. if the changes of its weights that different prompts ask for cancel (§6.2), the student will
       hardly move: *unlikely to help*;
    5. one that does no better has no better pattern to take over: *unlikely to help*.

    Without usable answers the value of the pattern is unknown: changes that cancel make it
    *unlikely to help*, all else is *cannot tell*. A pair that differs by no more than rounding has
    nothing to teach.

    Parameters
    ----------
    evidence
        What was measured.

    Returns
    -------
    Verdict
        Its ``validated`` says how far to trust this rule.
    """
    e = evidence
    if e.reverse_kl.value <= 10 * e.noise:
        same = (
            f"Reverse KL {e.reverse_kl.value:.2g} nats a token is no more than rounding "
            f"({e.noise:.2g} between two passes of the student): the models are the same."
        )
        return Verdict(UNLIKELY, (same,), ())
    consistent, gradients = _gradients(e)
    obstacle = _obstacle(e)
    pattern = None if obstacle else _pattern(e.pattern)
    weaker = obstacle is None and e.gap.high <= -_WORTH
    if weaker:
        word = UNKNOWN if pattern == "better" else HARMFUL
    elif pattern == "better":
        word = LIKELY
    elif pattern == "worse":
        word = UNKNOWN if e.gap.low > 0 else HARMFUL
    else:
        word = UNLIKELY if pattern == "no better" or consistent is False else UNKNOWN
    reasons = [obstacle or _pattern_reason(e, pattern), gradients, _overlap_reason(e)]
    if weaker:
        reasons.insert(0, f"The teacher is the weaker model: {_shown(e.gap)} in accuracy.")
    return Verdict(word, tuple(reasons), tuple(_advice(e)))


def _obstacle(e: Evidence) -> str | None:
    """Why accuracies say nothing, if they do not."""
    if e.pattern.value != e.pattern.value:
        return "No answers are known, so whether the teacher's pattern is worth having is open."
    if max(e.truncated, e.teacher_truncated) > _TRUNCATED:
        return (
            f"{e.truncated:.0%} of the student's and {e.teacher_truncated:.0%} of the teacher's "
            "responses reached the length limit, so their accuracies say little."
        )
    if max(e.accuracy.value, e.teacher_accuracy.value) < _WORTH:
        return (
            f"Student and teacher solve {e.accuracy.value:.0%} and {e.teacher_accuracy.value:.0%} "
            "of these prompts: too few for accuracies to say anything."
        )
    return None


def _pattern(change: Number) -> str | None:
    """What the teacher's openings do for the student; None if too few rollouts tell."""
    if change.low > 0 and change.value >= _WORTH:
        return "better"
    if change.high < 0 and change.value <= -_WORTH:
        return "worse"
    return "no better" if max(-change.low, change.high) < _BLIND else None


def _pattern_reason(e: Evidence, pattern: str | None) -> str:
    change = (
        f"Going on from the teacher's openings changes the student's accuracy of "
        f"{e.accuracy.value:.2f} by {_shown(e.pattern)}"
    )
    if pattern is None:
        return f"{change}: too few rollouts to tell."
    if pattern == "better":
        return f"{change}: it can use the teacher's pattern (§3.1)."
    if pattern == "worse":
        reason = (
            f"{change}: the teacher's pattern does not suit this student, and a student takes over "
            "the pattern, not the scale (§3.3)."
        )
        if e.gap.low > 0:
            reason += f" The teacher is better by {_shown(e.gap)}: it may gain by the rest."
        return reason
    if e.gap.low > 0:
        return (
            f"{change}. The teacher is better by {_shown(e.gap)}, but by ability, not by a pattern "
            "the student lacks: same pipeline, expect little (§3.2)."
        )
    return f"{change}: there is no better pattern to take over."


def _gradients(e: Evidence) -> tuple[bool | None, str]:
    """Whether prompts ask for one change (None: unclear), in words."""
    c = e.cosine
    shown = f"Gradients of different prompts have cosine {_shown(c)}"
    if c.low > 0 and c.value >= _CONSISTENT:
        return True, f"{shown}: they ask for the same change."
    if c.low <= 0 and c.high < _CANCELS:
        return False, f"{shown}: they cancel in a batch (the hypothesis of §6.2)."
    return None, f"{shown}: unclear."


def _overlap_reason(e: Evidence) -> str:
    o = e.overlap
    side = "within" if o.low >= _OVERLAP else "not clearly within"
    return (
        f"Overlap ratio {o.value:.2f} [{o.low:.2f}, {o.high:.2f}], {side} the range in which the "
        f"paper's successful runs start ({_OVERLAP} and above). It depends on k and vocabulary: no "
        "part of the rule."
    )


def _advice(e: Evidence) -> list[str]:
    advice = []
    if e.overlap.high < _OVERLAP:
        advice.append(
            "Patterns differ: try a cold start, SFT on the teacher's rollouts, or prompts in the "
            "teacher's template (§5)."
        )
    if e.gap.low > 0 and e.pattern.low <= 0:
        advice.append(
            "A teacher of the student's own lineage with something new, for instance after RL, "
            "has more to give than a larger one of the same pipeline (§3.2)."
        )
    if e.tail is not None and e.tail >= _TAIL:
        advice.append(
            f"From {e.tail} student tokens on the teacher does no better than the student: "
            "supervision further back is worth little; try shorter responses (§6.1)."
        )
    if max(e.truncated, e.teacher_truncated) > _TRUNCATED:
        advice.append("Allow longer responses (--max-new-tokens) for accuracies that count.")
    if e.repetitive > _REPETITIVE:
        advice.append(
            f"{e.repetitive:.0%} of the student's responses repeat themselves: leave such out, or "
            "shorten responses; a repetitive tail is easy to agree on."
        )
    return advice


def _shown(number: Number) -> str:
    return f"{number.value:+.2f} [{number.low:+.2f}, {number.high:+.2f}]"
