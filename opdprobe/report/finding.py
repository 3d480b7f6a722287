"""Findings, and the evidence for them: numbers with intervals, each with a text."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from opdprobe.probes.bootstrap import LEVEL, Estimate, ratio, resample
from opdprobe.probes.quantities import scalar
from opdprobe.report.course import Course
from opdprobe.report.estimate import combine, exact, number
from opdprobe.store.schema import MODELS

Kind = Literal["good", "bad", "note", "unclear"]

_SIGNS: dict[Kind, str] = {"good": "✓", "bad": "✗", "note": "•", "unclear": "?"}


@dataclass(frozen=True)
class Evidence:
    """A number that supports a finding.

    Parameters
    ----------
    quantity
        Key of `opdprobe.probes.quantities.QUANTITIES`, a metric, or ``accuracy``.
    text
        The number in words, with its interval and steps.
    value, low, high
        The number compared with a limit (a level, a difference or a ratio), and its 95 %
        interval; NaN if there is none.
    steps
        First and last step of each stretch of steps that was compared.

    Examples
    --------
    >>> seen = Evidence("loss", "loss 0.2; step 3", 0.2, float("nan"), float("nan"), ((3, 3),))
    >>> seen.to_dict()["low"] is None
    True
    """

    quantity: str
    text: str
    value: float
    low: float
    high: float
    steps: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: None for a number that is not finite."""
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Finding:
    """One finding from a run's curves.

    Parameters
    ----------
    name
        Identifier, such as ``aligning``.
    kind
        ``good``, ``bad``, ``note`` or ``unclear``.
    title, text
        What was found, and what it means, in the paper's terms.
    evidence
        The numbers that support it.
    advice
        What to try; may be empty.
    step, rollout, by
        Where to look in the token viewer, and the quantity to colour by.
    """

    name: str
    kind: Kind
    title: str
    text: str
    evidence: tuple[Evidence, ...]
    advice: str = ""
    step: int = 0
    rollout: int = 0
    by: str = "reverse_kl"

    @property
    def sign(self) -> str:
        """Sign that shows the kind without colour."""
        return _SIGNS[self.kind]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        evidence = [one.to_dict() for one in self.evidence]
        return asdict(self) | {"evidence": evidence}


def level(found: Course, name: str, where: slice) -> Evidence:
    """Measure a quantity's mean over some steps.

    Parameters
    ----------
    found
        A run's course.
    name
        Key of `opdprobe.probes.quantities.QUANTITIES`.
    where
        Positions in the course's steps, such as `Course.first`.
    """
    value, low, high = interval(found.mean(name, where))
    steps = _steps(found.steps, where)
    text = f"{lower(name)} {shown(value, low, high)}; {_said(steps)}"
    return Evidence(name, text, value, low, high, (steps,))


def change(
    found: Course, name: str, *, before: slice | None = None, relative: bool = False
) -> Evidence:
    """Measure how a quantity's mean over the last steps differs from an earlier mean.

    Parameters
    ----------
    found, name
        As in `level`.
    before
        Positions of the earlier steps. Default: the run's first.
    relative
        Whether to compare by last / earlier rather than by the difference.
    """
    before = found.first if before is None else before
    stretches = (before, found.last)
    earlier, last = (found.mean(name, where) for where in stretches)
    steps = [_steps(found.steps, where) for where in stretches]
    return _compared(name, earlier, last, steps, relative=relative)


def logged_change(found: Course, name: str) -> Evidence | None:
    """Measure how a logged scalar's mean differs between its first and last steps; no interval."""
    steps, values = found.values(name)
    if len(values) < 2:
        return None
    width = min(found.width, len(values) // 2)
    ends = (slice(width), slice(len(values) - width, len(values)))
    first, last = (exact(float(values[end].mean())) for end in ends)
    return _compared(name, first, last, [_steps(steps, end) for end in ends])


def accuracy_change(found: Course) -> Evidence | None:
    """Measure the last evaluation minus the first, over the same problems.

    Without evaluations, the share of correct rollouts is used; None if no answers are known.
    """
    if len(found.scores) > 1:
        first, last = (found.scores[end] for end in (0, -1))
        ends = [(step, step) for step in (found.evaluated[0], found.evaluated[-1])]
        before, after = (resample(scores, bounds=(0, 1)) for scores in (first, last))
        difference = resample(last - first, bounds=(-1, 1))
        return _compared("accuracy", before, after, ends, difference=difference)
    if len(found.steps) > 1 and found.has("correct"):
        return change(found, "correct")
    return None


def stops_change(found: Course) -> Evidence | None:
    """Measure how the student's stop-token mass, summed over a response, differs between the ends.

    At each state the mass is the chance that the response ends there, so the mean of the sums is
    the share of responses that end by themselves, if they were drawn from the recorded
    distributions and every token has a state. None if the mass was not recorded.
    """
    name = "student_stop_token_mass"
    if not found.has(name):
        return None
    stretches = (found.first, found.last)
    earlier, last = (
        found.mean(name, where).map(found.mean("completion_length", where), by=np.multiply)
        for where in stretches
    )
    return _compared(
        name, earlier, last, [_steps(found.steps, where) for where in stretches], unit=" a response"
    )


def student_to_teacher(found: Course) -> Evidence:
    """Measure the ratio of the two entropies over the last steps, at the same states."""
    student, teacher = (found.mean(f"{m}_entropy", found.last) for m in MODELS)
    value, low, high = interval(student.map(teacher, by=ratio))
    steps = _steps(found.steps, found.last)
    text = f"student / teacher entropy {shown(value, low, high)}; {_said(steps)}"
    return Evidence("student_entropy", text, value, low, high, (steps,))


def look(found: Course, name: str, where: slice, sign: int, by: str) -> dict[str, Any]:
    """Choose where in the viewer to look: a finding's `step`, `rollout` and `by`.

    Parameters
    ----------
    found, name
        As in `level`.
    where
        Positions of the steps to choose from.
    sign
        1: the rollout in which the quantity is highest; -1: lowest.
    by
        Quantity to colour the tokens by.
    """
    step, rollout = found.extreme(name, where, sign)
    return {"step": step, "rollout": rollout, "by": by}


def _compared(
    name: str,
    earlier: Estimate,
    last: Estimate,
    steps: list[tuple[int, int]],
    *,
    relative: bool = False,
    difference: Estimate | None = None,
    unit: str = "",
) -> Evidence:
    if difference is None:
        difference = last.map(earlier, by=ratio if relative else np.subtract)
    value, low, high = interval(difference)
    if np.isnan(low) and not relative:
        # Shares that differ in few prompts have bounds of their own: half of the error each.
        level = (1 + LEVEL) / 2
        earlier_low, earlier_high = earlier.interval(level)
        last_low, last_high = last.interval(level)
        low, high = last_low - earlier_high, last_high - earlier_low
    sign = "× " if relative else "+" if value >= 0 else ""
    text = (
        f"{lower(name)}{unit} {number(earlier.value)} → {number(last.value)}, "
        f"{sign}{shown(value, low, high)}; {_said(*steps)}"
    )
    return Evidence(name, text, value, low, high, tuple(steps))


def interval(estimate: Estimate) -> tuple[float, float, float]:
    """Return an estimate and its 95 % interval; NaN bounds if the estimate is not finite."""
    if not np.isfinite(estimate.value):
        return estimate.value, np.nan, np.nan
    return combine([estimate])


def shown(value: float, low: float, high: float) -> str:
    """Write a number with its interval.

    Examples
    --------
    >>> shown(0.5, 0.4, 0.6), shown(2.0, float("nan"), float("nan"))
    ('0.5 [0.4, 0.6]', '2, no interval')
    """
    if np.isnan(low):
        return f"{number(value)}, no interval"
    return f"{number(value)} [{number(low)}, {number(high)}]"


def lower(name: str) -> str:
    """Return a quantity's name for use inside a sentence."""
    return "accuracy" if name == "accuracy" else scalar(name).long_name


def _steps(steps: list[int], where: slice) -> tuple[int, int]:
    return steps[where][0], steps[where][-1]


def _said(*stretches: tuple[int, int]) -> str:
    """Name the steps, or the two stretches of steps that are compared.

    Examples
    --------
    >>> _said((0, 4), (7, 7))
    'steps 0–4 → 7'
    """
    texts = [f"{first}–{last}" if last > first else f"{first}" for first, last in stretches]
    one = len(stretches) == 1 and "–" not in texts[0]
    return f"step{'' if one else 's'} {' → '.join(texts)}"
