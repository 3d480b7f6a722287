"""Pieces that sweeps over one setting share: scalars by step, one point per setting (§6)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analyses.evidence import Evidence, metric_series
from opdprobe.probes.bootstrap import Estimate
from opdprobe.probes.quantities import scalar
from opdprobe.report.estimate import combine, exact
from opdprobe.report.panel import Panel, Series

LOGGED = ("overlap_ratio", "student_entropy", "grad_norm")


def dynamics_panels(
    evidence: Evidence,
    experiments: Mapping[str, str],
    quantities: Sequence[str] = LOGGED,
) -> list[Panel]:
    """Logged scalars by training step: overlap ratio, student entropy and gradient norm.

    They are means over all states of a step, even if only a part was recorded.

    Parameters
    ----------
    experiments
        Experiment to legend label; an experiment's name is also its plotting role.
    quantities
        Names in ``Run.metrics``.
    """
    return [
        Panel(
            name=name,
            title=scalar(name).title,
            x_label="training step",
            y_label=scalar(name).label,
            kind="line",
            series=[
                metric_series(evidence.runs[run], name, role=run, label=legend)
                for run, legend in experiments.items()
            ],
        )
        for name in quantities
    ]


def points(role: str, label: str, settings: Mapping[int, Sequence[Estimate]]) -> Series:
    """Return one point per setting, at its tick."""
    value, low, high = np.array([combine(e) for e in settings.values()]).reshape(-1, 3).T.tolist()
    return Series(role, label, x=list(settings), y=value, low=low, high=high)


def logged(
    evidence: Evidence, experiment: str, metric: str, statistic: Callable[[NDArray], float]
) -> list[Estimate]:
    """Return a statistic of a logged scalar over a run, one per seed.

    Parameters
    ----------
    metric
        Name in ``Run.metrics``; steps without it, such as the row of the last evaluation, are left
        out.
    statistic
        Takes the values in the order of the steps.
    """
    return [
        exact(float(statistic(run.metrics[metric].dropna("step").values)))
        for run in evidence.runs[experiment]
    ]


def last_quarter(values: NDArray) -> float:
    """Mean over the last quarter of the steps.

    Examples
    --------
    >>> last_quarter(np.array([9, 9, 9, 9, 9, 9, 1, 2]))
    1.5
    """
    return float(values[-max(1, len(values) // 4) :].mean())


def late_fall(values: NDArray, *, width: int = 5) -> float:
    """Mean of the last `width` steps minus the highest mean of `width` successive steps; ≤ 0.

    Examples
    --------
    >>> late_fall(np.array([0.6, 0.9, 0.9, 0.8, 0.7]), width=2)  # 0.75 - 0.9
    -0.15000000000000002
    """
    width = min(width, len(values))
    means = np.convolve(values, np.ones(width) / width, "valid")
    return float(means[-1] - means.max())


def spike(values: NDArray) -> float:
    """Largest value as a multiple of the median; NaN if that is 0.

    Examples
    --------
    >>> spike(np.array([2.0, 1.0, 2.0, 10.0, 2.0]))
    5.0
    """
    median = np.median(values)
    return float(values.max() / median) if median else float("nan")


def largest_rise(values: NDArray) -> float:
    """Largest rise from one step to the next; 0 if there is none.

    Examples
    --------
    >>> largest_rise(np.array([3, 1, 2, 2, 4])), largest_rise(np.array([3, 1, 0]))
    (2.0, 0.0)
    """
    return float(np.diff(values).max(initial=0))
