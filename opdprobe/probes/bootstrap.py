"""The bootstrap over independent units, which every interval within a run comes from.

A unit is what was drawn independently: a prompt with all its rollouts, or a problem of a benchmark.
Each unit has a key, made of its name, and its own stream of random weights. A prompt that several
steps repeat, or that two runs share, is therefore drawn together everywhere.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

N_BOOT = 1000
LEVEL = 0.95
MIN_UNITS = 16
"""Fewest units for which an interval is given of quantities without heavy tails."""
MIN_UNITS_HEAVY = 64
"""Fewest units for all others, a divergence for one, of which few states may hold half: with fewer,
most samples lack those states and show no sign of them. `benchmarks/coverage.py` measures both."""
MAX_UNITS = 2048
"""Most units that a curve's interval tells apart; `folded` joins more into groups."""

_KEPT = 2**21  # numbers in weights that are kept for the next quantity: 16 MiB
_MOST_LEFT_OUT = 2**25  # units times rows of a jackknife
_BLOCK = 2 * MAX_UNITS  # units whose weights are in memory at once: 32 MiB of N_BOOT replicates
# Residuals that are this small beside their sum of squares are rounding errors.
_ROUNDING = 1e-18


def unit_keys(names: Iterable[str]) -> NDArray[np.uint64]:
    """Return a key for each name; equal names have equal keys.

    Examples
    --------
    >>> a, b, c = unit_keys(["p1", "p2", "p1"])
    >>> a == c, a == b
    (np.True_, np.False_)
    """
    return np.array([_key(str(name)) for name in names], np.uint64)


@lru_cache(maxsize=2**16)
def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def numbered_keys(n: int) -> NDArray[np.uint64]:
    """Return keys of n units without names; equal numbers have equal keys."""
    return np.arange(n, dtype=np.uint64)


def folded(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Join units into `MAX_UNITS` groups by their keys; a group of units is a unit, too."""
    return keys % np.uint64(MAX_UNITS)


def sum_by_unit(
    keys: NDArray[np.uint64], *columns: NDArray
) -> tuple[NDArray[np.uint64], list[NDArray[np.float64]]]:
    """Add up rows that have the same key.

    Parameters
    ----------
    keys : ndarray (rows,)
        The unit of each row.
    columns : ndarray (..., rows)
        Values to add.

    Returns
    -------
    keys : ndarray (units,)
        In order.
    columns : list of ndarray (..., units)
    """
    units, place = np.unique(keys, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    return units, [
        np.add.reduceat(np.asarray(column, np.float64)[..., order], starts, axis=-1)
        if len(units)
        else np.zeros((*column.shape[:-1], 0))
        for column in columns
    ]


def draw_units(
    keys: NDArray[np.uint64], seed: int = 0, n_boot: int = N_BOOT
) -> NDArray[np.float64]:
    """Draw units with replacement: Poisson(1) weights, once per replicate (Poisson bootstrap).

    Parameters
    ----------
    keys : ndarray (n,)
        The units. A unit's weights depend on its key and the seed alone.
    seed
        In [0, 2⁶⁴).
    n_boot
        Number of replicates.

    Returns
    -------
    ndarray (n_boot, n)
        How often each unit is drawn in each replicate; read-only.

    References
    ----------
    Chamandy et al., *Estimating uncertainty for massive data streams* (2012): independent Poisson
    weights give a ratio of sums the distribution of the usual bootstrap, and need no list of all
    units.
    """
    keys = np.ascontiguousarray(keys, np.uint64)
    make = _drawn if keys.size * n_boot > _KEPT else _kept
    return make(keys.tobytes(), seed, n_boot)


def _blocks(n: int) -> Iterator[slice]:
    """Cut n units into blocks; one, if they are few."""
    return (slice(start, start + _BLOCK) for start in range(0, max(n, 1), _BLOCK))


def _weighted(
    keys: NDArray[np.uint64], *columns: NDArray[np.float64], n_boot: int = N_BOOT
) -> list[NDArray[np.float64]]:
    """Return each column's sum and its weighted sums over the replicates, (1 + n_boot,)."""
    found = [np.zeros(1 + n_boot) for _ in columns]
    for block in _blocks(len(keys)):
        drawn = draw_units(keys[block], 0, n_boot)
        for sums, column in zip(found, columns, strict=True):
            sums[0] += column[block].sum()
            sums[1:] += drawn @ column[block]
    return found


def _drawn(keys: bytes, seed: int, n_boot: int) -> NDArray[np.float64]:
    # A generator of NumPy's for each unit would take longer to make than to use.
    start = _mixed(np.frombuffer(keys, np.uint64) ^ _mixed(np.array([seed], np.uint64)))
    words = np.arange(1, -(-n_boot // 4) + 1, dtype=np.uint64) * _GOLDEN
    bits = _mixed(start[:, None] + words).view(np.uint16)[:, :n_boot]
    drawn = _POISSON[bits].T.astype(float)
    drawn.flags.writeable = False
    return drawn


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's output function (Steele, Lea and Flood 2014), modulo 2⁶⁴."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# The quantiles of Poisson(1) at the middles of 2¹⁶ equal parts; mean and variance are 1 to 1e-4.
_POISSON = np.searchsorted(
    np.cumsum([math.exp(-1) / math.factorial(n) for n in range(12)]),
    (np.arange(2**16) + 0.5) / 2**16,
).astype(np.uint8)

# All quantities of a step, and all means over the same steps, draw the same units. Drawing takes
# longer than everything that is done with the draws.
_kept = lru_cache(maxsize=4)(_drawn)


def ratio(numerator: NDArray | float, denominator: NDArray | float) -> NDArray[np.float64]:
    """Divide; NaN, not infinity, where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    return (numerator / np.where(denominator == 0, np.nan, denominator))[()]


def mean_intervals(
    total: NDArray[np.float64],
    n: NDArray[np.float64],
    weights: NDArray[np.float64],
    level: float = LEVEL,
    *,
    least: int = MIN_UNITS_HEAVY,
) -> NDArray[np.float64]:
    """Compute studentised bootstrap intervals of means over items that units share.

    Parameters
    ----------
    total, n : ndarray (units, points)
        Sum of each unit's items at each point, and their number.
    weights : ndarray (n_boot, units)
        From `draw_units`.
    level
        Coverage.
    least
        Fewest units.

    Returns
    -------
    ndarray (2, points)
        Low and high; NaN where fewer than `least` units have items, where all units agree, or
        where all spread comes from so few units that the interval would be unbounded.

    See Also
    --------
    Estimate.interval : The same for a function of several means.
    """
    count, units = n.sum(axis=0), (n > 0).sum(axis=0)
    ends = np.full((2, count.size), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):  # infinite sums, empty points
        value = total.sum(axis=0) / count
        points = np.flatnonzero((units >= least) & np.isfinite(value))
        if not points.size:
            return ends
        n, value = n[:, points], value[points]
        residual = total[:, points] - value * n
        drawn = weights @ n
        off = (weights @ residual) / drawn
        # Expanded, since a sum of squares for each replicate, unit and point takes far longer.
        squares = (
            weights @ residual**2 - 2 * off * (weights @ (residual * n)) + off**2 * (weights @ n**2)
        )
        variance = _known(squares, (residual**2).sum(axis=0)) / drawn**2
        pivots = off / np.sqrt(variance * _unbiased(weights @ (n > 0)))
        error = np.sqrt((residual**2).sum(axis=0) * _unbiased(units[points])) / count[points]
    ends[:, points] = _ends(value, error, pivots.T, level)
    return ends


def _known(squares: NDArray[np.float64], scale: NDArray | float) -> NDArray[np.float64]:
    """Set sums of squares that are rounding errors to 0."""
    return np.where(squares > _ROUNDING * scale, squares, 0.0)


def _unbiased(units: NDArray) -> NDArray[np.float64]:
    """Return n / (n - 1), by which a variance of n units is too small."""
    return units / np.maximum(units - 1.0, 1.0)


def _ends(
    value: NDArray[np.float64],
    error: NDArray[np.float64],
    pivots: NDArray[np.float64],
    level: float,
) -> NDArray[np.float64]:
    """Turn pivots (points, n_boot) into intervals (2, points).

    Each end is the farther one of two: that of the equal-tailed interval, which follows skewness,
    and that of the symmetric one, which is steadier for few units.
    """
    n_boot = pivots.shape[-1]
    pivots = np.nan_to_num(pivots, nan=0.0, posinf=np.inf, neginf=-np.inf)  # 0/0: not moved
    tail = int((1 - level) / 2 * n_boot)
    order = np.sort(pivots, axis=-1)
    size = np.sort(np.abs(pivots), axis=-1)[..., n_boot - 1 - 2 * tail]
    below = np.maximum(order[..., n_boot - 1 - tail], size)
    above = np.maximum(-order[..., tail], size)
    with np.errstate(invalid="ignore"):
        ends = np.array([value - below * error, value + above * error])
    # A unit that differs from all others is in no draw too often for a bound.
    ends[:, ~(np.isfinite(ends).all(axis=0) & (error > 0))] = np.nan
    return ends


def binomial_interval(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    bounds: tuple[float, float],
    level: float = LEVEL,
) -> tuple[float, float]:
    """Compute a conservative interval of the mean of bounded values, also where all are equal.

    Parameters
    ----------
    values, weights : ndarray (n,)
        One value per unit, within `bounds`, and its weight in the mean.
    bounds
        Smallest and largest possible value; one is 0, or they are on both sides of it.
    level
        Coverage.

    Returns
    -------
    low, high

    Notes
    -----
    Of all variables in [0, 1] with the same mean, one that is 0 or 1 varies most, and for that one
    Clopper and Pearson's interval is exact. Values of both signs are a difference of two such
    variables, each of which then gets half of the error. Unequal weights count as fewer units
    (Kish).
    """
    from scipy.special import betaincinv  # a fifth of what importing opdprobe takes

    smallest, largest = bounds
    n = weights.sum() ** 2 / (weights**2).sum()
    tail = (1 - level) / (4 if smallest < 0 < largest else 2)

    def clopper_pearson(parts: NDArray[np.float64], size: float) -> NDArray[np.float64]:
        if size == 0:
            return np.zeros(2)
        # Rounding must not make more hits than units.
        hits = min(n * np.average(parts, weights=weights) / size, n)
        low = betaincinv(hits, n - hits + 1, tail) if hits > 0 else 0.0
        high = betaincinv(hits + 1, n - hits, 1 - tail) if hits < n else 1.0
        return size * np.array([low, high])

    up = clopper_pearson(np.maximum(values, 0), max(largest, 0.0))
    down = clopper_pearson(np.maximum(-values, 0), max(-smallest, 0.0))
    low, high = up - down[::-1]
    return float(low), float(high)


class _Mean(NamedTuple):
    """A mean over items that units share: of each unit, the sum of its items and their number."""

    keys: NDArray[np.uint64]
    total: NDArray[np.float64]
    n: NDArray[np.float64]
    least: int  # fewest units for an interval

    @property
    def suffices(self) -> bool:
        """Whether there are enough units with items for an interval."""
        return int(np.count_nonzero(self.n)) >= self.least


@dataclass(frozen=True, eq=False)
class Estimate:
    """A function of means over independent units, with its bootstrap distribution.

    Parameters
    ----------
    value
        The statistic.
    samples : ndarray (n_boot,)
        The statistic of the resampled units, one per replicate.
    means, slopes
        The means that it is a function of, and its derivatives by each, at the value and at every
        replicate, (1 + n_boot,); `resample` and `map` fill them in. Without them there is no
        interval.
    bounds
        Smallest and largest possible value of a unit, for a single mean.
    """

    value: float
    samples: NDArray[np.float64]
    means: tuple[_Mean, ...] = ()
    slopes: tuple[NDArray[np.float64], ...] = ()
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def map(self, *others: "Estimate", by: Callable[..., NDArray]) -> "Estimate":
        """Apply a smooth function of several estimates, to values and samples alike."""
        every = (self, *others)
        # The value in front of the samples.
        at = [np.concatenate([[e.value], e.samples]) for e in every]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.asarray(by(*at), np.float64)
            slopes = [_slope(by, at, i) for i in range(len(every))]
        means: dict[int, _Mean] = {}
        total: dict[int, NDArray[np.float64]] = {}
        for one, slope in zip(every, slopes, strict=True):
            for mean, inner in zip(one.means, one.slopes, strict=True):
                # The same mean may come in twice, as in (after - before) / (best - before).
                means[id(mean)] = mean
                total[id(mean)] = total.get(id(mean), 0.0) + slope * inner
        return Estimate(float(found[0]), found[1:], tuple(means.values()), tuple(total.values()))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Compute the studentised bootstrap interval.

        Returns
        -------
        low, high
            NaN if there are too few units, or the value is not finite. NaN, too, if all units
            agree or too few differ from the others. Within `bounds`. A mean with two finite ones
            always has an interval: neither end is farther than `binomial_interval` allows.
        """
        low = high = np.nan
        if not self.means or not np.isfinite(self.value):
            return low, high
        if all(mean.suffices for mean in self.means):
            error, pivots = self._pivots
            low, high = _ends(np.array([self.value]), np.array([error]), pivots[None], level)[:, 0]
        if np.isfinite(self.bounds).all():
            (mean,) = self.means
            there = mean.n > 0
            values = mean.total[there] / mean.n[there]
            least, most = binomial_interval(values, mean.n[there], self.bounds, level)
            low, high = np.fmax(low, least), np.fmin(high, most)
        # NaN first: max and min then keep it, and as the same object, so that findings are equal.
        return max(float(low), self.bounds[0]), min(float(high), self.bounds[1])

    @cached_property
    def _pivots(self) -> tuple[float, NDArray[np.float64]]:
        """The standard error, and each replicate's deviation in its own standard errors."""
        n_boot = len(self.samples)
        keys = np.unique(np.concatenate([mean.keys for mean in self.means]))
        with np.errstate(invalid="ignore", divide="ignore"):
            # Of each mean, by replicate: how many items were drawn, and their mean.
            drawn: list[NDArray[np.float64]] = []
            centres: list[NDArray[np.float64]] = []
            for mean in self.means:
                n, total = _weighted(mean.keys, mean.n, mean.total, n_boot=n_boot)
                drawn.append(n)
                centres.append(total / n)
            squares, n_present = np.zeros((2, 1 + n_boot))
            for block in _blocks(len(keys)):
                some = keys[block]
                # Each unit's influence on the value (row 0) and on each replicate.
                influence = np.zeros((1 + n_boot, some.size))
                present = np.zeros(some.size, bool)
                for mean, slope, n, centre in zip(
                    self.means, self.slopes, drawn, centres, strict=True
                ):
                    own, place = _within(mean.keys, some)
                    present[place] |= mean.n[own] > 0
                    influence[:, place] += (slope / n)[:, None] * (
                        mean.total[own] - centre[:, None] * mean.n[own]
                    )
                weights = np.vstack([np.ones(some.size), draw_units(some, 0, n_boot)])
                squares += np.einsum("bu,bu,bu->b", weights, influence, influence)
                n_present += weights @ present
            squares = _known(squares, squares[0]) * _unbiased(n_present)
            error = np.sqrt(squares)
            return float(error[0]), (self.samples - self.value) / error[1:]


def _within(
    keys: NDArray[np.uint64], some: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find the keys that are among some sorted ones: where they are, and their place there."""
    place = np.minimum(np.searchsorted(some, keys), max(some.size - 1, 0))
    own = np.flatnonzero(some[place] == keys) if some.size else np.zeros(0, np.intp)
    return own, place[own]


def _slope(by: Callable[..., NDArray], at: list[NDArray[np.float64]], i: int) -> NDArray:
    """Differentiate by the argument `i`, at the value and at every replicate."""
    step = 1e-6 * np.maximum(1.0, np.abs(at[i]))
    up, down = (by(*at[:i], at[i] + sign * step, *at[i + 1 :]) for sign in (1, -1))
    return (np.asarray(up, np.float64) - down) / (2 * step)


def resample(
    values: NDArray,
    weights: NDArray | None = None,
    *,
    keys: NDArray[np.uint64] | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    least: int = MIN_UNITS,
) -> Estimate:
    """Estimate a mean over independent units.

    Parameters
    ----------
    values : ndarray (n,)
        One value per unit (a problem, a prompt). With `weights`, the sum over the unit's items.
    weights : ndarray (n,), optional
        Number of items per unit; the mean is ``values.sum() / weights.sum()``, NaN without items.
    keys : ndarray (n,), optional
        The units' keys, each once. Units with equal keys are drawn together in several estimates.
        Default: their numbers.
    bounds
        Smallest and largest possible value of a unit, if there are any: (0, 1) for an accuracy,
        (-1, 1) for the difference of two, (0, inf) for a divergence.
    least
        Fewest units for an interval; without meaning for a mean with bounds.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    keys = numbered_keys(len(values)) if keys is None else keys
    with np.errstate(invalid="ignore"):  # 0 draws of an infinite sum
        value = float(ratio(values.sum(), weights.sum()))
        total, n = _weighted(keys, values, weights)
        samples = np.asarray(ratio(total[1:], n[1:]))
    mean = _Mean(keys, values, weights, least)
    return Estimate(value, samples, (mean,), (np.ones(1 + len(samples)),), bounds)


def resample_statistic(
    statistic: Callable[[NDArray[np.intp]], float], units: NDArray[np.intp], n_boot: int = N_BOOT
) -> Estimate:
    """Estimate a statistic that is not a function of means, such as an AUROC.

    Parameters
    ----------
    statistic
        Takes row numbers, some of which may occur several times.
    units : ndarray of int (rows,)
        The unit of each row, from 0; a unit's rows are drawn together.
    n_boot
        Number of replicates.

    Notes
    -----
    The jackknife gives each unit's influence: the statistic without it. Its time grows with the
    number of units times that of rows, so very many units are joined into groups. There is no
    interval with fewer than `MIN_UNITS_HEAVY` units: with few, an AUROC may depend on the one or
    two prompts that have a wrong response.
    """
    most = max(MIN_UNITS_HEAVY, min(MAX_UNITS, _MOST_LEFT_OUT // max(len(units), 1)))
    if units.max(initial=-1) >= most:
        units = units % most
    rows = np.arange(len(units))
    n = int(units.max(initial=-1)) + 1
    value = statistic(rows)
    drawn = draw_units(numbered_keys(n), 0, n_boot)
    samples = np.array([statistic(np.repeat(rows, t[units].astype(np.intp))) for t in drawn])
    without = np.array([statistic(rows[units != unit]) for unit in range(n)])
    # A statistic that is undefined without a unit says nothing of the unit's influence.
    pseudo = n * value - (n - 1) * np.where(np.isnan(without), value, without)
    mean = _Mean(numbered_keys(n), pseudo, np.ones(n), MIN_UNITS_HEAVY)
    return Estimate(value, samples, (mean,), (np.ones(1 + n_boot),))
