"""How well the reward separates a run's correct rollouts, for the report (§6.2)."""

from collections.abc import Sequence

import numpy as np

from opdprobe.probes.signal import SIGNALS, signal_estimates
from opdprobe.report.course import Course
from opdprobe.report.finding import interval, shown
from opdprobe.store import Run

_UNKNOWN = "–"


def signal_rows(
    runs: Sequence[Run], courses: Sequence[Course]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return rows for the report's numbers: each AUROC at both ends, one pair per run.

    Parameters
    ----------
    runs, courses
        One run or two, and their courses.

    Returns
    -------
    list of (str, list of (str, str))
        A name, and the numbers with intervals over prompts at the first and the last steps of each
        run. Empty if no run is graded with 0 and 1, or has rewards.
    """
    ends = [
        [_signal(run, found, where) for where in (found.first, found.last)]
        for run, found in zip(runs, courses, strict=True)
    ]
    if not any(one for pair in ends for one in pair):
        return []
    return [
        (title, [(first.get(name, _UNKNOWN), last.get(name, _UNKNOWN)) for first, last in ends])
        for name, title in SIGNALS.items()
    ]


def _signal(run: Run, found: Course, where: slice) -> dict[str, str]:
    if not (found.has("sampled_reward") and found.has("correct")):
        return {}
    rows, sums = found.sums.rows(where), found.sums
    correct = np.where(sums.n["correct"][rows] > 0, sums.total["correct"][rows], np.nan)
    if not np.isin(correct[~np.isnan(correct)], (0, 1)).all():
        return {}  # grades in between have no pairs of correct and incorrect
    with np.errstate(invalid="ignore"):  # 0/0 where nothing was recorded
        reward = sums.total["sampled_reward"][rows] / sums.n["sampled_reward"][rows]
    tables = run.rollouts(found.steps[where])[["prompt_id", "length"]].compute()
    prompt = tables["prompt_id"].values.astype(str)
    at_step = np.char.add(np.char.add(tables["step"].values.astype(str), " "), prompt)
    estimates = signal_estimates(reward, correct, tables["length"].values, at_step, prompt)
    return {name: shown(*interval(one)) for name, one in estimates.items()}
