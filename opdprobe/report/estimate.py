"""Point estimates with intervals: bootstrap within a run, Student's t over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from opdprobe.probes.bootstrap import LEVEL, N_BOOT, Estimate, ratio

# With at least this many seeds an interval is over seeds; with fewer, over the runs' samples.
MIN_SEEDS = 3


def exact(value: float) -> Estimate:
    """Wrap a number that has no interval within a single run."""
    return Estimate(value, np.full(N_BOOT, np.nan))


def ranked(candidates: Mapping[str, Sequence[Estimate]]) -> list[str]:
    """Order the names of some quantities by their mean over seeds, the lowest first.

    Picking the largest by its mean is less biased than picking the largest in every seed.
    """
    return sorted(candidates, key=lambda name: float(np.mean([e.value for e in candidates[name]])))


def spearman(x: NDArray, y: NDArray) -> float:
    """Return the rank correlation of two samples; ties share their mean rank.

    Returns
    -------
    float
        In [-1, 1]; NaN for fewer than two pairs, or if one sample is constant.

    Examples
    --------
    >>> spearman(np.array([1, 2, 3, 4]), np.array([10, 10, 7, -5]))
    -0.9486832980505138
    """
    ranks = []
    for values in (x, y):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    centred = np.array([r - r.mean() if r.size else r for r in ranks])
    size = np.sqrt((centred**2).sum(axis=1).prod())
    return float(ratio(centred[0] @ centred[1], size))


def combine(estimates: Sequence[Estimate]) -> tuple[float, float, float]:
    """Average over seeds.

    Returns
    -------
    value, low, high
        Mean and 95 % interval: Student's t over seeds if there are three or more, otherwise the
        bootstrap's within the runs. NaN bounds where a run gives none.
    """
    values = np.array([e.value for e in estimates])
    mean = float(values.mean())
    if len(values) >= MIN_SEEDS:
        half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / len(values) ** 0.5
        return mean, float(mean - half), float(mean + half)
    first, *others = estimates
    if not others:
        return mean, *first.interval()
    return mean, *first.map(*others, by=lambda *values: np.mean(values, axis=0)).interval()


def interval_name(n_seeds: int) -> str:
    """Describe the intervals, for captions."""
    if n_seeds >= MIN_SEEDS:
        return f"95 % t-interval over {n_seeds} seeds"
    return "95 % bootstrap over prompts (curves) or problems (accuracy)"


def number(value: float) -> str:
    """Write a number with three significant digits.

    Examples
    --------
    >>> number(0.91234), number(-0.25), number(float("nan"))
    ('0.912', '−0.25', 'n/a')
    """
    return "n/a" if np.isnan(value) else f"{value:.3g}".replace("-", "−")
