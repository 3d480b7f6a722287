"""What a run with several teachers did with each of them, for the report's first and last."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from opdprobe.probes.quantities import QUANTITIES, axis_label
from opdprobe.report.course import Course
from opdprobe.report.finding import interval, shown
from opdprobe.report.token_text import visible
from opdprobe.store import Run

LABEL = "teacher"
"""Name of the label that says which teacher scored a rollout."""

QUANTITIES_BY_TEACHER = ("overlap_ratio", "reverse_kl", "entropy_gap", "correct")

_UNKNOWN = "–"


def teacher_rows(
    runs: Sequence[Run], courses: Sequence[Course]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return rows for the report's numbers: the main quantities by teacher, one pair per run.

    Parameters
    ----------
    runs, courses
        One run or two, and their courses.

    Returns
    -------
    list of (str, list of (str, str))
        A quantity and a teacher, and the means with intervals over prompts at the first and the
        last steps of each run. Empty if no run has several teachers.
    """
    labels = [_teachers(run, found) for run, found in zip(runs, courses, strict=True)]
    names = dict.fromkeys(
        name for known in labels if known is not None for name in np.unique(known).tolist() if name
    )
    rows = []
    for name in names:
        parts = [
            None if known is None else replace(found, sums=found.sums.only(known == name))
            for found, known in zip(courses, labels, strict=True)
        ]
        for key in QUANTITIES_BY_TEACHER:
            if any(part is not None and part.has(key) for part in parts):
                title = axis_label(QUANTITIES[key].title, QUANTITIES[key].name.units)
                rows.append((f"{title}, teacher {visible(name)}", [_ends(p, key) for p in parts]))
    return rows


def _ends(found: Course | None, name: str) -> tuple[str, str]:
    if found is None or not found.has(name):
        return _UNKNOWN, _UNKNOWN
    first, last = (shown(*interval(found.mean(name, where))) for where in (found.first, found.last))
    return first, last


def _teachers(run: Run, found: Course) -> NDArray[np.str_] | None:
    """Name the teacher of each rollout of the recorded steps; None if there was only one."""
    table = run.rollouts(found.steps)
    if "label_name" not in table or LABEL not in table["label_name"].values:
        return None
    return table["label"].sel(label_name=LABEL).values.astype(str)
