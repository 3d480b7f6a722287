"""The bootstrap over whole units, which every interval of the library comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

N_BOOT = 1000
LEVEL = 0.95

_KEPT = 2**21  # numbers in draws that are kept for the next quantity: 16 MiB


def draw_units(n: int, seed: int | Sequence[int], n_boot: int = N_BOOT) -> NDArray[np.float64]:
    """Draw n of n units with replacement, once per replicate.

    Parameters
    ----------
    n
        Number of units: rollouts, prompts or problems.
    seed
        The same seed and `n` draw the same units, so that two estimates over the same units are
        resampled together.
    n_boot
        Number of replicates.

    Returns
    -------
    ndarray (n_boot, n)
        How often each unit is drawn in each replicate; read-only.
    """
    seeds = (seed,) if isinstance(seed, int) else tuple(seed)
    if n * n_boot > _KEPT:
        return _drawn(n, seeds, n_boot)
    return _kept(n, seeds, n_boot)


def _drawn(n: int, seeds: tuple[int, ...], n_boot: int) -> NDArray[np.float64]:
    if n == 0:
        return np.zeros((n_boot, 0))
    # A sequence of one seeds as the number itself does.
    rng = np.random.default_rng(seeds)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float)
    drawn.flags.writeable = False
    return drawn


# All quantities of a step, and all means over the same steps, draw the same units. Drawing takes
# longer than everything that is done with the draws.
_kept = lru_cache(maxsize=4)(_drawn)


def percentile_interval(samples: NDArray[np.float64], level: float = LEVEL) -> NDArray[np.float64]:
    """Compute the ends of the percentile interval over the last axis, ignoring NaN.

    Returns
    -------
    ndarray (2, ...)
        Low and high; NaN where all samples are NaN.
    """
    tails = [(1 - level) / 2, (1 + level) / 2]
    rows = samples.reshape(-1, samples.shape[-1])
    ends = np.full((2, len(rows)), np.nan)
    n_known = (~np.isnan(rows)).sum(axis=1)
    some, every = (n_known > 0) & (n_known < rows.shape[1]), n_known == rows.shape[1]
    with np.errstate(invalid="ignore"):  # inf - inf between two samples
        # nanquantile is several times slower.
        for which, quantile in ((some, np.nanquantile), (every, np.quantile)):
            if which.any():
                ends[:, which] = quantile(rows[which], tails, axis=1)
    return ends.reshape(2, *samples.shape[:-1])


def ratio(numerator: NDArray | float, denominator: NDArray | float) -> NDArray[np.float64]:
    """Divide; NaN, not infinity, where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    return (numerator / np.where(denominator == 0, np.nan, denominator))[()]


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap distribution.

    Parameters
    ----------
    value
        The statistic.
    samples : ndarray (N_BOOT,)
        The statistic of the resampled units, one per replicate.
    """

    value: float
    samples: NDArray[np.float64]

    def map(self, *others: "Estimate", by: Callable[..., NDArray]) -> "Estimate":
        """Apply a function of several estimates, to values and samples alike."""
        every = (self, *others)
        return Estimate(
            float(by(*(np.float64(e.value) for e in every))), by(*(e.samples for e in every))
        )


def resample(
    values: NDArray, weights: NDArray | None = None, *, seed: int | Sequence[int] = 0
) -> Estimate:
    """Estimate a mean over independent units.

    Parameters
    ----------
    values : ndarray (n,)
        One value per unit (a problem, a rollout). With `weights`, the sum over the unit's items.
    weights : ndarray (n,), optional
        Number of items per unit; the mean is ``values.sum() / weights.sum()``, NaN without items.
    seed
        As in `draw_units`.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    drawn = draw_units(len(values), seed)
    with np.errstate(invalid="ignore"):  # 0 draws of an infinite sum
        return Estimate(
            float(ratio(values.sum(), weights.sum())), ratio(drawn @ values, drawn @ weights)
        )


def resample_statistic(
    statistic: Callable[[NDArray[np.intp]], float], units: NDArray[np.intp], n_boot: int = N_BOOT
) -> Estimate:
    """Estimate a statistic that is not a mean.

    Parameters
    ----------
    statistic
        Takes row numbers, some of which may occur several times.
    units : ndarray of int (rows,)
        The unit of each row, from 0; a unit's rows are drawn together.
    n_boot
        Number of replicates.
    """
    rows = np.arange(len(units))
    samples = [
        statistic(np.repeat(rows, times[units].astype(np.intp)))
        for times in draw_units(int(units.max(initial=-1)) + 1, 0, n_boot)
    ]
    return Estimate(statistic(rows), np.array(samples))
