"""Point estimates with intervals: bootstrap within a run, Student's t over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

N_BOOT = 1000
LEVEL = 0.95
# From this many seeds on, an interval is over seeds; below it, over what was sampled in the runs.
MIN_SEEDS = 3


@dataclass(frozen=True)
class Estimate:
    """A statistic of one seed's runs and its bootstrap distribution.

    Parameters
    ----------
    value
        The statistic.
    samples : ndarray (N_BOOT,)
        The statistic of resampled problems or rollouts.
    """

    value: float
    samples: NDArray[np.float64]

    def map(self, *others: "Estimate", by: Callable[..., NDArray]) -> "Estimate":
        """Apply a function of several estimates, to values and samples alike."""
        every = (self, *others)
        return Estimate(
            float(by(*(np.float64(e.value) for e in every))), by(*(e.samples for e in every))
        )


def ratio(numerator: NDArray | float, denominator: NDArray | float) -> NDArray[np.float64]:
    """Divide; NaN, not infinity, where there is nothing to divide by."""
    denominator = np.asarray(denominator, np.float64)
    return (numerator / np.where(denominator == 0, np.nan, denominator))[()]


def resample(values: NDArray, weights: NDArray | None = None, *, seed: int = 0) -> Estimate:
    """Estimate a mean over independent units.

    Parameters
    ----------
    values : ndarray (n,)
        One value a unit (a problem, a rollout). With `weights`, sums over what is in the unit.
    weights : ndarray (n,), optional
        How much is in each unit; the mean is ``values.sum() / weights.sum()``, NaN for nothing.
    seed
        The same seed and n draw the same units, so that two estimates over the same problems are
        resampled together.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    rows = np.random.default_rng(seed).integers(0, len(values), (N_BOOT, len(values)))
    return Estimate(
        float(ratio(values.sum(), weights.sum())),
        ratio(values[rows].sum(1), weights[rows].sum(1)),
    )


def exact(value: float) -> Estimate:
    """Wrap a number of which a single run has no interval."""
    return Estimate(value, np.full(N_BOOT, np.nan))


def ranked(candidates: Mapping[str, Sequence[Estimate]]) -> list[str]:
    """Order the names of some quantities by their mean over seeds, the lowest first.

    To pick the largest of several by its mean flatters it less than to pick it anew in every seed.
    """
    return sorted(candidates, key=lambda name: float(np.mean([e.value for e in candidates[name]])))


def spearman(x: NDArray, y: NDArray) -> float:
    """Correlate the ranks of two samples; ties share their mean rank.

    Returns
    -------
    float
        In [-1, 1]; NaN for fewer than two pairs, or where one of them never changes.

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
        Mean and 95 % interval: Student's t over seeds if there are three or more, else percentiles
        of the bootstrap.
    """
    values = np.array([e.value for e in estimates])
    mean = float(values.mean())
    if len(values) >= MIN_SEEDS:
        half = stdtrit(len(values) - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / len(values) ** 0.5
        return mean, float(mean - half), float(mean + half)
    tail = 100 * (1 - LEVEL) / 2
    samples = np.mean([e.samples for e in estimates], axis=0)
    samples = samples[~np.isnan(samples)]
    low, high = np.percentile(samples, [tail, 100 - tail]) if samples.size else (np.nan, np.nan)
    return mean, float(low), float(high)


def interval_name(n_seeds: int) -> str:
    """Name what the intervals are, for captions."""
    if n_seeds >= MIN_SEEDS:
        return f"95 % t-interval over {n_seeds} seeds"
    return "95 % bootstrap over rollouts (curves) or problems (accuracy)"


def number(value: float) -> str:
    """Write a number with three significant digits.

    Examples
    --------
    >>> number(0.91234), number(-0.25), number(float("nan"))
    ('0.912', '−0.25', 'n/a')
    """
    return "n/a" if np.isnan(value) else f"{value:.3g}".replace("-", "−")
