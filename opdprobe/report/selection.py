"""How much of the signal each token selector would keep, for the report."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from opdprobe.probes.selectors import compare_selectors
from opdprobe.report.course import Course
from opdprobe.report.token_text import KINDS
from opdprobe.store import Run

FRACTION = 0.2
# Of a step of more states, the first rollouts count: enough for shares, and a second's work.
MOST_STATES = 50_000
_SHARES = ("reverse_kl", "gradient", "position")
TITLES = {
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
"""What each of `opdprobe.probes.SELECTORS` keeps, in words."""

Ends = tuple[xr.Dataset, xr.Dataset]
Rows = list[tuple[str, list[list[str]]]]


def kept_at_ends(
    runs: Sequence[Run], courses: Sequence[Course], classes: Sequence[Mapping[int, str]]
) -> list[Ends]:
    """Compare the selectors at the first and at the last recorded step of each run.

    Parameters
    ----------
    runs, courses
        One run or two, and their courses.
    classes
        For each run the class of each token id; may be empty.

    Returns
    -------
    list of (Dataset, Dataset)
        Results of `compare_selectors`. Empty unless all runs have top-k lists and the whole
        reverse KL.
    """
    if not all(found.has("reverse_kl") for found in courses):
        return []
    return [
        (_kept(run, run.steps[0], some), _kept(run, run.steps[-1], some))
        for run, some in zip(runs, classes, strict=True)
    ]


def selector_rows(ends: Sequence[Ends]) -> Rows:
    """Return rows for the report: a selector, and per run what it keeps of the signal.

    Returns
    -------
    list of (str, list of list of str)
        For each run the shares of the reverse KL and of the gradient, and the mean place in the
        response, at the first and at the last recorded step.
    """
    return [
        (title, [[_change(both, share, selector=name) for share in _SHARES] for both in ends])
        for name, title in TITLES.items()
        if ends
    ]


def class_rows(ends: Sequence[Ends]) -> tuple[list[str], Rows]:
    """Return a table for the report: the share of each kind of token that a selector keeps.

    Returns
    -------
    kinds : list of str
        Kinds of the tokens that were drawn in any run.
    rows : list of (str, list of list of str)
        First *all states*, with the share of the states that are of each kind; then for each
        selector the share of the kind's states that it keeps; per run, at the first and at the
        last recorded step. Empty if all tokens are of one kind, as without a tokenizer.
    """
    seen = [ds["token_class"].values[ds["class_states"].values > 0] for both in ends for ds in both]
    kinds = [kind for kind in KINDS if any(kind in some for some in seen)]
    if len(kinds) < 2:
        return [], []

    def cells(share: str, **where: str) -> list[list[str]]:
        return [
            [_change(both, share, token_class=kind, **where) for kind in kinds] for both in ends
        ]

    rows = [(title, cells("class_kept", selector=name)) for name, title in TITLES.items()]
    return kinds, [("all states", cells("class_states")), *rows]


def _kept(run: Run, step: int, classes: Mapping[int, str]) -> xr.Dataset:
    ds = run.load(step)
    rollout = ds["rollout"].values
    ends = np.cumsum(np.bincount(rollout, minlength=1))
    n = max(int(np.searchsorted(ends, MOST_STATES, side="right")), 1)
    return compare_selectors(ds.isel(state=rollout < n), fraction=FRACTION, token_classes=classes)


def _change(both: Ends, share: str, **where: str) -> str:
    values = [
        float(ds[share].sel(where)) if where.get("token_class", "other") in _classes(ds) else np.nan
        for ds in both
    ]
    shown = "{:.2f}" if share == "position" else "{:.0%}"
    return " → ".join("n/a" if np.isnan(v) else shown.format(v) for v in values).replace("%", " %")


def _classes(ds: xr.Dataset) -> list[str]:
    return ds["token_class"].values.tolist()
