"""Diagnose a run from its curves, in the paper's terms. Needs neither models nor torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from opdprobe.report import signs
from opdprobe.report.course import Course, planned_steps
from opdprobe.report.finding import (
    Evidence,
    Finding,
    accuracy_change,
    change,
    level,
    logged_change,
    look,
    lower,
)
from opdprobe.report.reported import reported_findings

Direction = Literal["toward", "away", "flat", "unclear"]

TUNED = (
    "Rules and limits were chosen with the paper's numbers and the testbed's runs in view. On 233 "
    "runs that they had not seen, of 130 that learnt 12 were called stagnating after a quarter of "
    "their steps, 1 after half of them and none at their end (docs/verdicts.md). Since then "
    "nothing is called stagnating before half of its steps. On eight short runs of a real language "
    "model it pointed the wrong way: the three in which the accuracy rose were called drifting "
    "apart at their end, and two of the five in which it fell partly aligning; changes are small "
    "(docs/real-model.md). The rules for late collapse, entropy collapse and length explosion were "
    "tested on synthetic runs only; the first two occur in none of the 233."
)
"""How far the rules are validated; part of every diagnosis."""

# What counts as a move: a difference for the overlap, the share that is left for the others. In
# the paper's success the overlap goes from 0.72 to 0.91, the advantage to 0, and the gap narrows;
# in its failure none of them moves (Fig. 6). In the testbed's failures (20 runs of 4 pairs) the
# overlap rises by at most 0.01, and at least 0.55 of the advantage and 0.85 of the gap are left.
_MOVED = {"overlap_ratio": 0.02, "overlap_token_advantage": 0.5, "entropy_gap": 0.8}
# What the intervals must exclude to say that nothing moved: the success of `analyses.alignment`, or
# as much of it as a steady pace would have made by now.
_SUCCESS = {"overlap_ratio": 0.05, "overlap_token_advantage": 0.2, "entropy_gap": 0.5}
# Before this share of the planned steps, what has not moved may still move: of 130 runs that
# learnt, 12 had not moved after a quarter and 1 after half.
_EARLY = 0.5
# Reverse KL of the last steps, as a share of that in the middle of the run, that counts as falling.
_FALLING = 0.95
# Above the end of the paper's success (0.91).
_ALIGNED = 0.95
_ACCURACY = 0.05
_ACCURACY_BLIND = 0.1


def diagnose(found: Course) -> list[Finding]:
    """Diagnose a run from its curves.

    Compares the first and the last 5 recorded steps (a third of a shorter run), with bootstrap
    intervals over prompts, and over problems for the accuracy. A change counts if its interval
    excludes zero change and it has at least the size below. No change counts if the interval
    excludes a change that would matter. Everything else is *no clear sign*. Steps are not
    resampled. Too few prompts give no interval (see `opdprobe.curve`).

    Parameters
    ----------
    found
        A run's course.

    Returns
    -------
    list of Finding
        First always one finding on the alignment:

        - ``aligning``: overlap ratio up by 0.02, overlap-token advantage down to 0.5 and entropy
          gap to 0.8 of what they were: the success signature (§4.1). ``partly_aligning``: some of
          them moved that way, and none the other way;
        - ``stagnating``: none moved that far, and intervals exclude a success like the paper's
          (0.05 of overlap; 0.2 of the advantage and 0.5 of the gap left), or, before the planned
          end, what a steady pace would have made of it by now: the failure signature (§4.1,
          App. B.2). ``too_early``: the same, but less than half of the planned steps is
          recorded, or reverse KL still falls, by 0.05 or more over the run's second half.
          ``aligned_from_the_start``: the same, from an overlap of at least 0.95;
        - ``drifting_apart``: some moved the other way and none that way; ``mixed``: both;
        - ``no_clear_sign``, ``too_short`` for a single step, or ``not_recorded`` for a run without
          top-k lists;

        then, where they apply,

        - ``accuracy_…``: the accuracy moved by 0.05, or its interval excludes a change of 0.1, or
          neither;
        - ``low_overlap``: overlap starts below 0.7 (§5.1);
        - ``late_collapse``: overlap ends 0.02 below its best 5-step mean, which was 0.01 above the
          start, and the student's entropy is 1.1 times its value there (§6.1);
        - ``entropy_collapse``: student entropy at most half of its start and 0.8 of the teacher's
          at the same states (§5.2);
        - ``length_explosion``: responses are at least 1.25 times as long as at the start (interval
          above 1.1), and the share that ends fell by 0.1 or more (interval beyond 0.05); otherwise
          ``truncated``: more than 0.1 of the last responses reached the limit (§6.1);
        - ``heavy_tail``: 1 % of the last states hold half of the reverse KL or more;
        - ``gradient_spikes``: a gradient norm 5 times the median of the 20 steps around it, and
          above those of the first steps (§6.3);
        - ``sampler_…``, ``student_…``, ``teacher_…``: log-probabilities that the rollouts brought
          agree with the recomputed ones (to 0.05 nats on average), or what explains at least half
          of the difference: ``_temperature``, ``_shifted`` by a token, ``_reads_otherwise`` from
          the first token on, or else ``_differs``;
        - ``blind_loss``: with a top-k loss, less than 0.9 of a model's probability is on the shared
          tokens at the end (App. B.1).

        Limits are the numbers of the paper or of the analyses if they have any, otherwise chosen
        with the testbed's runs in view; see `TUNED`.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.report.course import course
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     run = synthetic_run(folder, steps=range(12), n_rollouts=64)
    ...     [finding.name for finding in diagnose(course(run))][:2]
    ['stagnating', 'accuracy_unclear']
    """
    alignment = _alignment(found)
    explosion = signs.length_explosion(found)
    others = (
        _accuracy(found, alignment.name),
        signs.low_overlap(found),
        signs.late_collapse(found),
        signs.entropy_collapse(found),
        explosion or signs.truncated(found),
        signs.heavy_tail(found),
        signs.gradient_spikes(found),
        signs.blind_loss(found),
    )
    told = (finding for finding in others if finding)
    return [alignment, *told, *reported_findings(found)]


# ---- the alignment


def _alignment(found: Course) -> Finding:
    where = look(found, "reverse_kl", found.last, 1, "reverse_kl")
    if not any(found.has(name) for name in _MOVED):
        if not found.has("reverse_kl"):
            where = look(found, "sampled_reward", found.last, -1, "sampled_reward")
        text = (
            "The run holds log-probabilities of the drawn tokens only, no top-k lists, so overlap, "
            "advantage and entropies are not known."
        )
        advice = "Score its rollouts with both models (opdprobe.score_rollouts)."
        title = "Alignment is not recorded"
        return Finding("not_recorded", "unclear", title, text, (), advice, **where)
    if len(found.steps) < 2:
        text = "Alignment can be seen only over several steps."
        return Finding("too_short", "unclear", "One recorded step", text, (), **where)
    moves = [change(found, name, relative=name != "overlap_ratio") for name in _MOVED]
    # At k = 1 the single shared token, renormalised, has no advantage.
    directions: dict[Evidence, Direction] = {
        move: _direction(move, _share_done(found)) for move in moves if not np.isnan(move.value)
    }
    ways = set(directions.values())
    finding = _still(found, directions) if ways <= {"flat", "unclear"} else _moving(directions)
    text = finding.text
    if untold := [lower(name) for name in _MOVED if not found.has(name)]:
        text += f" Not recorded: {', '.join(untold)}."
    return replace(finding, text=text, **where)


def _names(directions: Mapping[Evidence, Direction], *wanted: Direction) -> str:
    chosen = (move for move, direction in directions.items() if direction in wanted)
    return ", ".join(lower(move.quantity) for move in chosen)


def _moving(directions: Mapping[Evidence, Direction]) -> Finding:
    """Say where the quantities of the signature went; at least one moved."""
    evidence, ways = tuple(directions), set(directions.values())
    toward, away = _names(directions, "toward"), _names(directions, "away")
    if ways == {"toward"}:
        text = f"The student moves toward the teacher in {toward}: the success signature (§4.1)."
        return Finding("aligning", "good", "Aligning", text, evidence)
    if ways >= {"toward", "away"}:
        text = f"Toward the teacher: {toward}. Away from it: {away}. Neither signature of §4.1."
        return Finding("mixed", "note", "Moving both ways", text, evidence)
    if "toward" in ways:
        text = (
            f"Toward the teacher: {toward}. Not clearly moving, though part of the success "
            f"signature (§4.1): {_names(directions, 'flat', 'unclear')}."
        )
        return Finding("partly_aligning", "good", "Partly aligning", text, evidence)
    text = f"Away from the teacher: {away}. Nothing moves toward it."
    advice = (
        "Lower the learning rate, shorten responses (§6.1), and check that the loss covers the "
        "tokens that matter (§4.2)."
    )
    return Finding("drifting_apart", "bad", "Drifting apart", text, evidence, advice)


def _still(found: Course, directions: Mapping[Evidence, Direction]) -> Finding:
    """Say whether nothing moved, or too little is known to tell."""
    evidence = tuple(directions)
    start = level(found, "overlap_ratio", found.first)
    flat = set(directions.values()) == {"flat"}
    # Full agreement in every state has no interval, and needs none.
    agreed = start.value == level(found, "overlap_ratio", found.last).value == 1
    if agreed or (flat and start.low >= _ALIGNED):
        text = "The models agree on nearly all candidates throughout: there is little to learn."
        title = "Aligned from the start"
        return Finding("aligned_from_the_start", "note", title, text, (*evidence, start))
    if early := _too_early(found, evidence):
        return early
    if not flat:
        text = (
            "Too few prompts, or too few steps so far, to tell whether the models align: the "
            "intervals allow both, or the quantities have none."
        )
        advice = (
            "Record more prompts a step (record_fraction; with a hook, more prompts), or train "
            "longer."
        )
        return Finding("no_clear_sign", "unclear", "No clear sign", text, evidence, advice)
    text = (
        f"None of these moves as in a success: {_names(directions, 'flat')}. This is the failure "
        "signature (§4.1); a small loss and small gradients at the beginning go with it "
        "(App. B.2), not at the end. The student takes over little of what the teacher teaches."
    )
    advice = (
        "Run opdprobe preflight on the pair; try a cold start (§5.1), prompts in the teacher's "
        "template (§5.2), or a teacher that has learnt something new, for example by RL (§3.2)."
    )
    if loss := logged_change(found, "loss"):
        evidence = (*evidence, loss)
    return Finding("stagnating", "bad", "Stagnating", text, evidence, advice)


def _too_early(found: Course, evidence: tuple[Evidence, ...]) -> Finding | None:
    """Say why a run that has not moved yet is no failure yet; None if nothing speaks for it."""
    reasons = []
    if _share_done(found) < _EARLY:
        planned = planned_steps(found.config)
        reasons.append(f"only {found.steps[-1] + 1} of {planned} planned steps are recorded")
    n, width = len(found.steps), found.width
    start = n // 2 - width // 2
    middle = slice(start, start + width)
    if middle.stop <= n - width and found.has("reverse_kl"):
        falling = change(found, "reverse_kl", before=middle, relative=True)
        if falling.value <= _FALLING and falling.high < 1:
            reasons.append(f"reverse KL still falls, to {falling.value:.0%} of its middle value")
            evidence = (*evidence, falling)
    if not reasons:
        return None
    text = (
        f"None of these moves as in a success yet: {_names_of(evidence)}. But "
        f"{' and '.join(reasons)}, so this is no sign of failure."
    )
    advice = "Look again after more steps."
    return Finding("too_early", "unclear", "Too early to tell", text, evidence, advice)


def _names_of(evidence: tuple[Evidence, ...]) -> str:
    return ", ".join(lower(one.quantity) for one in evidence if one.quantity in _MOVED)


def _share_done(found: Course) -> float:
    """Return the share of the planned steps that is recorded; 1 if the plan is not known."""
    planned = planned_steps(found.config)
    return 1.0 if planned is None else min(1.0, (found.steps[-1] + 1) / planned)


def _direction(move: Evidence, share: float) -> Direction:
    """Classify a change of the signature: the overlap by difference, the others by ratio.

    `share` is that of the planned steps: a part of a run shows a part of a success.
    """
    moved, success = _MOVED[move.quantity], _SUCCESS[move.quantity]
    success = success * share if move.quantity == "overlap_ratio" else success**share
    if move.quantity == "overlap_ratio":
        if move.value >= moved and move.low > 0:
            return "toward"
        if move.value <= -moved and move.high < 0:
            return "away"
        within = move.low > -success and move.high < success
    else:
        if move.value <= moved and move.high < 1:
            return "toward"
        if move.value >= 1 / moved and move.low > 1:
            return "away"
        within = move.low > success and move.high < 1 / success
    return "flat" if within else "unclear"


def _accuracy(found: Course, alignment: str) -> Finding | None:
    moved = accuracy_change(found)
    if moved is None:
        return None
    aligned = alignment in ("aligning", "partly_aligning")
    advice = ""
    if moved.value >= _ACCURACY and moved.low > 0:
        if alignment in ("stagnating", "drifting_apart"):
            name, kind = "accuracy_without_alignment", "note"
            title = "Accuracy rose although alignment did not"
            text = (
                "The student learnt something other than the teacher's distribution: an answer's "
                "format, its length, its end. Read some responses before you trust the number."
            )
        else:
            name, kind, title = "accuracy_rose", "good", "Accuracy rose"
            text = "The student solves more problems."
    elif moved.value <= -_ACCURACY and moved.high < 0:
        if aligned:
            name, kind = "accuracy_fell_with_alignment", "bad"
            title = "The student follows its teacher down"
            text = (
                "It aligns and solves fewer problems: a student takes over its teacher's pattern, "
                "whatever the teacher's own accuracy (§3.3)."
            )
            advice = "Choose a teacher whose pattern helps the student: run opdprobe preflight."
        else:
            name, kind, title = "accuracy_fell", "bad", "Accuracy fell"
            text = "The student solves fewer problems."
    elif moved.low > -_ACCURACY_BLIND and moved.high < _ACCURACY_BLIND:
        name, kind, title = "accuracy_flat", "note", "Accuracy did not move"
        text = (
            "The student aligns, but the teacher's pattern does not help it solve more (§3.2)."
            if aligned
            else "The student solves about as many problems as before."
        )
    else:
        name, kind, title = "accuracy_unclear", "unclear", "Accuracy: no clear sign"
        text = "The interval allows both a change that would matter and no change."
        advice = "Evaluate on more problems, or with more samples per problem (eval_n)."
    # A failed rollout if there is one; the rollouts' answers may be unknown.
    where = look(found, "correct", found.last, -1, "reverse_kl")
    return Finding(name, kind, title, text, (moved,), advice, **where)
