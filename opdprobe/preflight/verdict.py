"""The rule that turns measurements into a verdict. Needs neither models nor torch."""

import math
from dataclasses import dataclass

from opdprobe.preflight.estimates import Number

LIKELY = "likely to work"
UNLIKELY = "unlikely to help"
HARMFUL = "harmful"
UNKNOWN = "cannot tell"

VALIDATED = (
    "Tested on 64 pairs of small models from fresh seeds, which played no part in making it: right "
    "on 38 of the 58 that it judges (a change of 0.05 counts); the accuracy gap alone is right on "
    "33 of these. Only seven pairs gain: none was called harmful, four unlikely to help (they gain "
    "0.05 to 0.11), and one likely to work, so that this word is nearly untested. Expected losses "
    "are too large. Of eight pairs of a real language model, with 24 prompts, it judged three, all "
    "as unlikely to help: they gained 0.08 [-0.01, 0.17], 0.05 [-0.03, 0.13] and nothing."
)
"""How far the rule is validated; part of every verdict."""

# Accuracy that a refitted readout must gain or lose to count. With 256 prompts × 4 on the testbed:
# +0.23 to +0.31 where training helps by more than 0.1, -0.06 to +0.07 where it does not, -0.18
# where a weaker teacher harms. An interval that excludes it on both sides is evidence of no effect.
WORTH = 0.15
# Accuracy by which a weaker teacher must be behind. On the testbed a teacher that harms is behind
# by 0.2 or more, and no other teacher is behind at all.
_WEAKER = 0.1
# Share of the divergence that a refitted readout removes on held-out prompts: 0.48 and more where
# training helps on the testbed, -0.01 to 0.19 where a teacher of the same pipeline does not help.
# Only an interval below it counts against a teacher.
_LEARNT = 0.25
# The paper's successful runs start at 0.72, the one that needs a cold start at 0.55 (Fig. 6 and 8);
# the testbed's lineages at 0.81 to 0.83, and 0.46 to 0.74 across them.
_OVERLAP = 0.7
# Prompts, at four rollouts each, that somebody might sample to settle a question.
_MOST = 20_000
_TRUNCATED = 0.5
_SOLVED = 0.1
_REPETITIVE = 0.1
# Tokens; the shortest prefix that the paper cuts at (Fig. 11b). Below it there is no tail to cut.
_TAIL = 1000


@dataclass(frozen=True)
class Evidence:
    """What the rule depends on.

    Parameters
    ----------
    overlap
        Overlap ratio (Eq. 6).
    reverse_kl
        Over the full vocabulary, in nats per token.
    noise
        The same between two passes of the student itself.
    learnt
        Share of the divergence that a refitted readout removes on held-out prompts.
    accuracy, teacher_accuracy
        Accuracy of each model's own responses; NaN if no answers are known.
    gap
        Teacher's accuracy minus student's.
    gain
        Accuracy of the student with the refitted readout, minus its own; NaN if not measured.
    tail
        First prefix length, in tokens, at which the interval excludes that the teacher's
        continuation is better than the student's by 0.15, although its own answers are better; None
        if there is no such length.
    truncated, teacher_truncated
        Share of responses that reached the length limit.
    repetitive
        Share of the student's responses that repeat themselves.
    prompts
        Number of prompts that were measured.
    """

    overlap: Number
    reverse_kl: Number
    noise: float
    learnt: Number
    accuracy: Number
    teacher_accuracy: Number
    gap: Number
    gain: Number
    tail: int | None
    truncated: float
    teacher_truncated: float
    repetitive: float
    prompts: int


@dataclass(frozen=True)
class Verdict:
    """The answer to "will this teacher teach this student?".

    Parameters
    ----------
    word
        ``likely to work``, ``unlikely to help``, ``harmful`` or ``cannot tell``.
    reasons
        The evidence for the verdict, in the paper's terms.
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
    (§3). What a student can take over without new knowledge, a refit of its own readout can take
    over too: other choices among what its last hidden states hold. If answers are known, the first
    of these that applies decides:

    1. the teacher is clearly the weaker model: *harmful* (§3.3), or *cannot tell* if its pattern
       helps the student all the same;
    2. the refitted readout answers better on held-out prompts: *likely to work*;
    3. it answers worse, which the teacher's pattern causes: *harmful*;
    4. it answers no better: *unlikely to help*; but *cannot tell* if the prompts share a pattern
       and the teacher is better by more than would matter, since the last layer may not be enough.

    If none applies, or answers cannot be used: *unlikely to help* if the refitted readout does not
    lower the divergence on held-out prompts, since the teacher then has no pattern to give;
    otherwise *cannot tell*. If the models differ only by rounding: *unlikely to help*.

    Every *no* needs evidence: an interval that excludes an effect of the size that would matter. An
    interval that is too wide to exclude it leads to *cannot tell*, with the number of prompts that
    would settle it.

    Parameters
    ----------
    evidence
        The measurements.

    Returns
    -------
    Verdict
        Its ``validated`` says how far to trust this rule.
    """
    e = evidence
    if same(e.reverse_kl.value, e.noise):
        reason = (
            f"Reverse KL {e.reverse_kl.value:.2g} nats per token is no more than rounding "
            f"({e.noise:.2g} between two passes of the student): the models are the same."
        )
        return Verdict(UNLIKELY, (reason,), ())
    learns, learnt = _learnt(e.learnt)
    blocked = obstacle(e.accuracy, e.teacher_accuracy, e.truncated, e.teacher_truncated)
    worth = None if blocked else _worth(e.gain)
    deeper = worth == "no better" and learns is True and e.gap.low > WORTH
    weaker = not blocked and e.gap.high < 0 and e.gap.value <= -_WEAKER
    if weaker:
        word = UNKNOWN if worth == "better" else HARMFUL
    elif worth == "better":
        word = LIKELY
    elif worth == "worse":
        word = HARMFUL
    elif worth == "no better":
        word = UNKNOWN if deeper else UNLIKELY
    else:
        word = UNLIKELY if learns is False else UNKNOWN
    reasons = [blocked or _gain_reason(e, worth, deeper=deeper), learnt, _overlap_reason(e)]
    if weaker:
        reasons.insert(0, f"The teacher is the weaker model: {_shown(e.gap)} in accuracy.")
    return Verdict(word, tuple(reasons), tuple(_advice(e, learns, worth)))


def same(reverse_kl: float, noise: float) -> bool:
    """Whether two models differ by no more than rounding.

    Parameters
    ----------
    reverse_kl, noise
        Reverse KL, in nats per token, between them and between two passes of the student.
    """
    return reverse_kl <= 10 * noise


def obstacle(
    accuracy: Number, teacher_accuracy: Number, truncated: float, teacher_truncated: float
) -> str | None:
    """Say why accuracies cannot be used; None if they can.

    Parameters
    ----------
    accuracy, teacher_accuracy
        Accuracy of each model's own responses; NaN if no answers are known.
    truncated, teacher_truncated
        Share of responses that reached the length limit.
    """
    if accuracy.value != accuracy.value:
        return "No answers are known, so the worth of the teacher's pattern cannot be measured."
    if max(truncated, teacher_truncated) > _TRUNCATED:
        return (
            f"{truncated:.0%} of the student's and {teacher_truncated:.0%} of the teacher's "
            "responses reached the length limit, so their accuracies say little."
        )
    if max(accuracy.value, teacher_accuracy.value) < _SOLVED:
        return (
            f"Student and teacher solve {accuracy.value:.0%} and {teacher_accuracy.value:.0%} "
            "of these prompts: too few for accuracies to mean anything."
        )
    return None


def _worth(gain: Number) -> str | None:
    """Classify the pattern's effect on the student; None if the interval allows several."""
    if gain.low > 0 and gain.value >= WORTH:
        return "better"
    if gain.high < 0 and gain.value <= -WORTH:
        return "worse"
    return "no better" if gain.low > -WORTH and gain.high < WORTH else None


def _prompts_needed(gain: Number, prompts: int) -> str:
    """Say how many prompts would settle the effect, from the width of its interval."""
    half = (gain.high - gain.low) / 2
    if not half > 0:
        return "too few prompts for an interval"
    size = abs(gain.value)
    margin = size if size >= WORTH else WORTH - size
    needed = math.ceil(round(prompts * (half / margin) ** 2, 6)) if margin > 0.02 else 0
    if not prompts < needed <= _MOST:
        return f"too close to the {WORTH} that would matter for any number of prompts to tell soon"
    return f"too few prompts to tell; about {needed:,} would"


def _gain_reason(e: Evidence, worth: str | None, *, deeper: bool) -> str:
    change = (
        f"Reading its own states out as the teacher would changes the student's accuracy of "
        f"{e.accuracy.value:.2f} by {_shown(e.gain)}"
    )
    if worth is None:
        return f"{change}: {_prompts_needed(e.gain, e.prompts)}."
    if worth == "better":
        return f"{change}: it can use the teacher's pattern (§3.1)."
    if worth == "worse":
        return (
            f"{change}: the teacher's pattern does not suit this student, and a student takes over "
            "its teacher's pattern, not its scale (§3.3)."
        )
    if deeper:
        return (
            f"{change}. But the teacher is better by {_shown(e.gap)}, and what one prompt teaches "
            "helps on others: more than the last layer may have to learn it."
        )
    empty = (
        f" But a gain must reach {WORTH} to count, and the teacher is ahead by less: this excludes "
        "little."
        if 0 < e.gap.value < WORTH
        else ""
    )
    if e.gap.low > 0:
        return (
            f"{change}. The teacher is better by {_shown(e.gap)}, but by ability rather than by a "
            f"pattern that the student lacks: expect little (§3.2).{empty}"
        )
    return f"{change}: there is no better pattern to take over.{empty}"


def _learnt(share: Number) -> tuple[bool | None, str]:
    """Whether what one prompt teaches helps on others (None: unclear), and the same in words."""
    if share.value != share.value:
        return None, "Whether what one prompt teaches helps on others was not measured."
    shown = (
        f"A readout refitted on half of the prompts removes {share.value:.0%} of the divergence "
        f"{_bounds(share, '.0%')} on the other half"
    )
    if share.low >= _LEARNT:
        return True, f"{shown}: the prompts share a pattern."
    if share.high < _LEARNT:
        return False, f"{shown}: the prompts share little of a pattern (§6.2)."
    return None, f"{shown}: unclear."


def _overlap_reason(e: Evidence) -> str:
    o = e.overlap
    side = "within" if o.low >= _OVERLAP else "not clearly within"
    return (
        f"Overlap ratio {o.value:.2f} {_bounds(o, '.2f')}, {side} the range in which the paper's "
        f"successful runs start ({_OVERLAP} and above). It depends on k and the vocabulary, so the "
        "rule does not use it."
    )


def _advice(e: Evidence, learns: bool | None, worth: str | None) -> list[str]:
    advice = []
    if e.overlap.high < _OVERLAP and worth != "worse":
        advice.append(
            "The overlap is low: a cold start (SFT on the teacher's rollouts), or prompts in the "
            "teacher's template, raise it (§5)."
        )
    if e.gap.low > 0 and worth == "no better":
        advice.append(
            "Try a teacher of the student's own lineage that has learnt something new, for example "
            "after RL; it has more to give than a larger one of the same pipeline (§3.2)."
        )
    if learns is False:
        advice.append(
            "If you train all the same, keep the learning rate low: if prompts have little in "
            "common, most of an update is noise, which costs accuracy."
        )
    if e.tail is not None and e.tail >= _TAIL:
        advice.append(
            f"After {e.tail} student tokens the teacher does no better than the student, so "
            "supervision beyond them is worth little: try shorter responses (§6.1)."
        )
    if max(e.truncated, e.teacher_truncated) > _TRUNCATED:
        advice.append(
            "Allow longer responses (--max-completion-length), so that accuracies can be used."
        )
    if e.repetitive > _REPETITIVE:
        advice.append(
            f"{e.repetitive:.0%} of the student's responses repeat themselves: leave these out or "
            "shorten responses; models agree easily on a repetitive tail."
        )
    return advice


def _shown(number: Number) -> str:
    return f"{number.value:+.2f} {_bounds(number, '+.2f')}"


def _bounds(number: Number, form: str) -> str:
    known = number.low == number.low
    return f"[{number.low:{form}}, {number.high:{form}}]" if known else "(no interval)"
