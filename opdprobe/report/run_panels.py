"""The panels that the report on one run, or on two, draws."""

from collections.abc import Sequence

import numpy as np

from opdprobe.probes import heat_map
from opdprobe.probes.bootstrap import resample
from opdprobe.report.course import RUN_ROLES, Course, course_panels, samples_per_problem
from opdprobe.report.estimate import combine
from opdprobe.report.panel import Heat, Panel, Series
from opdprobe.store import Run

HEAT_ROWS = 20


def report_panels(runs: Sequence[Run], courses: Sequence[Course]) -> list[Panel]:
    """Return panels of the accuracy, of every quantity by step, and of student entropy by position.

    Parameters
    ----------
    runs, courses
        One run or two, and their courses. Two runs share axes, except that each has its own heat
        map (Fig. 13). A heat map is left out for a run with fewer than two steps, or with responses
        shorter than two tokens per row (40 tokens).

    Returns
    -------
    list of Panel
        Lines, then heat maps.
    """
    maps = [
        _heat_panel(run, course.label if len(runs) > 1 else "")
        for run, course in zip(runs, courses, strict=True)
        if course.has("student_entropy")
    ]
    return [
        *_accuracy_panel(courses),
        *course_panels(courses),
        *(panel for panel in maps if panel is not None),
    ]


def _accuracy_panel(courses: Sequence[Course]) -> list[Panel]:
    """Return at most one panel: the accuracy over the problems of all benchmarks."""
    lines = []
    for course, role in zip(courses, RUN_ROLES[: len(courses)], strict=True):
        if course.evaluated:
            points = [combine([resample(scores, bounds=(0, 1))]) for scores in course.scores]
            y, low, high = np.array(points).T.tolist()
            lines.append(Series(role, course.label, x=course.evaluated, y=y, low=low, high=high))
    samples = {samples_per_problem(course.config) for course in courses if course.evaluated}
    label = f"accuracy (avg@{samples.pop()})" if len(samples) == 1 else "accuracy"
    return [Panel("accuracy", "Accuracy", "training step", label, "line", lines)] if lines else []


def _heat_panel(run: Run, label: str) -> Panel | None:
    found = heat_map(run, lambda ds: ds.opd.entropy("student"), bins=HEAT_ROWS)
    if found.sizes["step"] < 2 or found["position_stop"].values[-1] < 2 * HEAT_ROWS:
        return None
    return Panel(
        name="position_entropy",
        title="Student entropy by position" + (f", {label}" if label else ""),
        x_label="training step",
        y_label="output position [tokens]",
        kind="heatmap",
        series=[],
        heat=Heat(
            x=found["step"].values.tolist(),
            y=found["position"].values.tolist(),
            z=found["value"].values.tolist(),
            label="student entropy [nats]",
        ),
    )
