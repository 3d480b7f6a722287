"""The rule that turns what was measured into a verdict. No models, no torch."""

from dataclasses import dataclass

from opdprobe.preflight.estimates import Number

LIKELY = "likely to work"
UNLIKELY = "unlikely to help"
HARMFUL = "harmful"
UNKNOWN = "cannot tell"

VALIDATED = (
    "Validated on 13 pairs of the testbed's models only, with 128 prompts × 4 rollouts: right on "
    "11. It expects little where training gains 0.10, and misses the harm that too high a learning "
    "rate does. The rule was made with all of them in view. No real language model is among them."
)
"""What every verdict says about the rule itself."""

# Accuracy that a refitted readout has to gain or lose before it counts, and what it may at most
# before it is little. With 256 prompts × 4 on the testbed: +0.23 to +0.31 where training helps by
# more than 0.1, -0.06 to +0.07 where it does not, -0.18 where a weaker teacher harms.
_WORTH = 0.15
_LITTLE = 0.1
# Accuracy by which a teacher has to be behind. On the testbed 0.2 or more where it harms, while no
# other teacher is behind at all.
_WEAKER = 0.1
# Share of the divergence that a refitted readout takes away on prompts it has not seen: 0.48 and
# more where training helps on the testbed, -0.01 to 0.19 where a teacher of the same pipeline does
# not. It takes an interval that holds 0 to speak against a teacher.
_LEARNT = 0.25
# The paper's successful runs start at 0.72, the one that needs a cold start at 0.55 (Fig. 6 and 8);
# the testbed's lineages at 0.81 to 0.83, and 0.46 to 0.74 across them.
_OVERLAP = 0.7
_TRUNCATED = 0.5
_SOLVED = 0.1
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
    learnt
        Share of the divergence that a refitted readout takes away on prompts it has not seen.
    accuracy, teacher_accuracy
        Of either model's own responses; NaN if no answers are known.
    gap
        Teacher's accuracy minus student's.
    gain
        Accuracy of the student with the refitted readout, minus its own; NaN if it was not tried.
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
    learnt: Number
    accuracy: Number
    teacher_accuracy: Number
    gap: Number
    gain: Number
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
    (§3). What it can take over without new knowledge is what a refit of its own readout can: other
    choices among what its last hidden states hold. If answers are known, then, in this order,

    1. a teacher that is clearly the weaker model is *harmful* (§3.3). Should its pattern help the
       student all the same, that is *cannot tell*;
    2. a student whose refitted readout answers better, on prompts it was not fitted on, is *likely
       to work*;
    3. one that answers worse is led there by its teacher: *harmful*;
    4. one that answers no better has nothing to gain from the pattern: *unlikely to help*.

    Without usable answers, or with too few, a teacher whose divergence is no smaller on prompts
    that the readout was not fitted on has no pattern to give, *unlikely to help*; all else is
    *cannot tell*. A pair that differs by no more than rounding has nothing to teach.

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
    learns, learnt = _learnt(e.learnt)
    blocked = obstacle(e.accuracy, e.teacher_accuracy, e.truncated, e.teacher_truncated)
    worth = None if blocked else _worth(e.gain)
    weaker = not blocked and e.gap.high < 0 and e.gap.value <= -_WEAKER
    if weaker:
        word = UNKNOWN if worth == "better" else HARMFUL
    elif worth == "better":
        word = LIKELY
    elif worth == "worse":
        word = HARMFUL
    else:
        word = UNLIKELY if worth == "no better" or learns is False else UNKNOWN
    reasons = [blocked or _gain_reason(e, worth), learnt, _overlap_reason(e)]
    if weaker:
        reasons.insert(0, f"The teacher is the weaker model: {_shown(e.gap)} in accuracy.")
    return Verdict(word, tuple(reasons), tuple(_advice(e, learns, worth)))


def obstacle(
    accuracy: Number, teacher_accuracy: Number, truncated: float, teacher_truncated: float
) -> str | None:
    """Say why accuracies tell nothing, if they do not; None if they do.

    Parameters
    ----------
    accuracy, teacher_accuracy
        Of either model's own responses; NaN if no answers are known.
    truncated, teacher_truncated
        Share of responses that reached the length limit.
    """
    if accuracy.value != accuracy.value:
        return "No answers are known, so whether the teacher's pattern is worth having is open."
    if max(truncated, teacher_truncated) > _TRUNCATED:
        return (
            f"{truncated:.0%} of the student's and {teacher_truncated:.0%} of the teacher's "
            "responses reached the length limit, so their accuracies say little."
        )
    if max(accuracy.value, teacher_accuracy.value) < _SOLVED:
        return (
            f"Student and teacher solve {accuracy.value:.0%} and {teacher_accuracy.value:.0%} "
            "of these prompts: too few for accuracies to say anything."
        )
    return None


def _worth(gain: Number) -> str | None:
    """What the teacher's pattern does for the student; None if too few rollouts tell."""
    if gain.low > 0 and gain.value >= _WORTH:
        return "better"
    if gain.high < 0 and gain.value <= -_WORTH:
        return "worse"
    small = abs(gain.value) <= _LITTLE and max(-gain.low, gain.high) < 2 * _LITTLE
    return "no better" if small else None


def _gain_reason(e: Evidence, worth: str | None) -> str:
    change = (
        f"Reading its own states out as the teacher would changes the student's accuracy of "
        f"{e.accuracy.value:.2f} by {_shown(e.gain)}"
    )
    if worth is None:
        return f"{change}: too few rollouts to tell."
    if worth == "better":
        return f"{change}: it can use the teacher's pattern (§3.1)."
    if worth == "worse":
        return (
            f"{change}: the teacher's pattern does not suit this student, and a student takes over "
            "the pattern, not the scale (§3.3)."
        )
    if e.gap.low > 0:
        return (
            f"{change}. The teacher is better by {_shown(e.gap)}, but by ability, not by a pattern "
            "the student lacks: expect little (§3.2)."
        )
    return f"{change}: there is no better pattern to take over."


def _learnt(share: Number) -> tuple[bool | None, str]:
    """Whether the teacher asks for anything that carries over (None: unclear), in words."""
    if share.value != share.value:
        return None, "Whether one prompt's lesson serves another was not measured."
    shown = (
        f"A readout refitted on half of the prompts takes away {share.value:.0%} of the divergence "
        f"{_bounds(share, '.0%')} on the other half"
    )
    if share.low >= _LEARNT:
        return True, f"{shown}: a pattern that prompts have in common."
    if share.low <= 0:
        return False, f"{shown}: no pattern that prompts have in common (§6.2)."
    return None, f"{shown}: unclear."


def _overlap_reason(e: Evidence) -> str:
    o = e.overlap
    side = "within" if o.low >= _OVERLAP else "not clearly within"
    return (
        f"Overlap ratio {o.value:.2f} {_bounds(o, '.2f')}, {side} the range in which the paper's "
        f"successful runs start ({_OVERLAP} and above). It depends on k and vocabulary: no part of "
        "the rule."
    )


def _advice(e: Evidence, learns: bool | None, worth: str | None) -> list[str]:
    advice = []
    if e.overlap.high < _OVERLAP:
        advice.append(
            "Patterns differ: try a cold start, SFT on the teacher's rollouts, or prompts in the "
            "teacher's template (§5)."
        )
    if e.gap.low > 0 and worth == "no better":
        advice.append(
            "A teacher of the student's own lineage with something new, for instance after RL, "
            "has more to give than a larger one of the same pipeline (§3.2)."
        )
    if learns is False:
        advice.append(
            "If you train all the same, keep the learning rate low: where prompts have little in "
            "common, most of an update is noise, and noise costs accuracy."
        )
    if e.tail is not None and e.tail >= _TAIL:
        advice.append(
            f"From {e.tail} student tokens on the teacher does no better than the student: "
            "supervision further back is worth little; try shorter responses (§6.1)."
        )
    if max(e.truncated, e.teacher_truncated) > _TRUNCATED:
        advice.append("Allow longer responses (--max-completion-length) for accuracies that count.")
    if e.repetitive > _REPETITIVE:
        advice.append(
            f"{e.repetitive:.0%} of the student's responses repeat themselves: leave such out, or "
            "shorten responses; a repetitive tail is easy to agree on."
        )
    return advice


def _shown(number: Number) -> str:
    return f"{number.value:+.2f} {_bounds(number, '+.2f')}"


def _bounds(number: Number, form: str) -> str:
    known = number.low == number.low
    return f"[{number.low:{form}}, {number.high:{form}}]" if known else "(no interval)"
