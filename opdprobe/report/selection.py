"""How much of the signal each token selector would keep, for the report."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from opdprobe.probes.selectors import compare_selectors
from opdprobe.report.course import Course
from opdprobe.store import Run

FRACTION = 0.2
# Of a step of more states, the first rollouts count: enough for shares, and a second's work.
MOST_STATES = 50_000
_SHARES = ("reverse_kl", "gradient", "position")
_NAMES = {
    "entropy": "where the student is least sure",
    "reverse_kl": "where the models differ most (reverse KL)",
    "tip": "unsure or apart (TIP)",
    "teachability": "within the student's reach (teachability)",
    "information_to_error": "signal over noise (IER)",
    "early": "first positions",
    "early_signal": "early signal (IW-OPD)",
    "reward": "highest sampled reward",
    "random": "at random",
}


def selector_rows(
    runs: Sequence[Run], courses: Sequence[Course]
) -> list[tuple[str, list[list[str]]]]:
    """Return rows for the report: a selector, and per run what it keeps of the signal.

    Parameters
    ----------
    runs, courses
        One run or two, and their courses.

    Returns
    -------
    list of (str, list of list of str)
        For each run the shares of the reverse KL and of the gradient, and the mean place in the
        response, at the first and at the last recorded step. Empty unless all runs have top-k lists
        and the whole reverse KL.
    """
    if not all(found.has("reverse_kl") for found in courses):
        return []
    ends = [(_kept(run, run.steps[0]), _kept(run, run.steps[-1])) for run in runs]
    return [
        (title, [[_change(*both, name, share) for share in _SHARES] for both in ends])
        for name, title in _NAMES.items()
    ]


def _kept(run: Run, step: int) -> xr.Dataset:
    ds = run.load(step)
    rollout = ds["rollout"].values
    ends = np.cumsum(np.bincount(rollout, minlength=1))
    n = max(int(np.searchsorted(ends, MOST_STATES, side="right")), 1)
    return compare_selectors(ds.isel(state=rollout < n), fraction=FRACTION)


def _change(first: xr.Dataset, last: xr.Dataset, selector: str, share: str) -> str:
    values = [float(one[share].sel(selector=selector)) for one in (first, last)]
    shown = "{:.2f}" if share == "position" else "{:.0%}"
    return " → ".join("n/a" if np.isnan(v) else shown.format(v) for v in values).replace("%", " %")
