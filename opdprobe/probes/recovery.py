"""The gap recovery rate, and when there is a gap to recover."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import ConfigError
from opdprobe.probes.bootstrap import MIN_UNITS

MIN_GAP = 0.05
"""Smallest gap, in accuracy, of which a share is given: what is left of it is not mostly noise."""


def gap_recovery_rate(
    before: ArrayLike, after: ArrayLike, teacher: ArrayLike, *, min_gap: float = MIN_GAP
) -> NDArray[np.float64]:
    """Compute the share of the gap to the teacher that distillation closed.

    Parameters
    ----------
    before, after, teacher : (...) array_like of float
        Accuracy of the student before, of the student after, and of the teacher; they broadcast.
    min_gap : float, default 0.05
        Smallest gap, teacher - before, that a rate is given for; above 0.

    Returns
    -------
    (...) ndarray of float64
        (after - before) / (teacher - before), unit 1: 1 if the gap is closed, negative if
        the student moved away from the teacher, above 1 if it passed the teacher. NaN where the
        gap is below `min_gap`, or the teacher weaker than the student: a student that loses
        accuracy on its way to a weaker teacher has recovered nothing.

    Raises
    ------
    ConfigError
        If `min_gap` is not above 0.

    See Also
    --------
    gap_recovery : the same from the scores of each problem, with an interval.

    References
    ----------
    §3.2 and Fig. 4.

    Examples
    --------
    >>> gap_recovery_rate(0.25, 0.5, [0.75, 0.27, 0.1])
    array([0.5, nan, nan])
    """
    _check_min_gap(min_gap)
    before = np.asarray(before, dtype=np.float64)
    gap = np.asarray(teacher, dtype=np.float64) - before
    gap = np.where(gap >= min_gap, gap, np.nan)
    return ((np.asarray(after, dtype=np.float64) - before) / gap)[()]


@dataclass(frozen=True)
class GapRecovery:
    """A gap recovery rate with its interval; made by `gap_recovery`.

    Parameters
    ----------
    value, low, high
        The rate and the ends of its interval; NaN where it is undefined.
    gap, gap_low, gap_high
        Teacher minus student before, in accuracy, and its interval; no bounds (NaN) for too few
        problems.
    min_gap
        What the gap's interval has to be above.
    n
        Number of independent problems, or of groups of them.
    level
        Coverage of the intervals.
    """

    value: float
    low: float
    high: float
    gap: float
    gap_low: float
    gap_high: float
    min_gap: float
    n: int
    level: float

    @property
    def defined(self) -> bool:
        """Whether there is a gap that a share can be given of."""
        return not np.isnan(self.value)

    @property
    def text(self) -> str:
        """The rate in words, or why there is none."""
        if np.isnan(self.gap_low):
            few = f"gap {self.gap:.3f}, {self.n} independent problems of at least {MIN_UNITS}"
            return f"gap recovery undefined: {few}"
        gap = f"gap {self.gap:.3f} [{self.gap_low:.3f}, {self.gap_high:.3f}]"
        if self.defined:
            return f"gap recovery {self.value:.3f} [{self.low:.3f}, {self.high:.3f}] of a {gap}"
        if self.gap_high < 0:
            return f"gap recovery undefined: the teacher is weaker than the student's start, {gap}"
        return f"gap recovery undefined: {gap} is not clearly above {self.min_gap:g}"


def gap_recovery(
    before: ArrayLike,
    after: ArrayLike,
    teacher: ArrayLike,
    *,
    cluster: ArrayLike | None = None,
    level: float = 0.95,
    min_gap: float = MIN_GAP,
) -> GapRecovery:
    """Compute the gap recovery rate from each problem's scores, with Fieller's interval.

    Parameters
    ----------
    before, after, teacher : (problem,) array_like of float
        Mean score of each problem, in [0, 1]: of the student before and after, and of the teacher,
        on the same problems in the same order. Problems without all three (NaN) are left out.
    cluster : (problem,) array_like, optional
        Group of each problem; problems of one group are not independent. Default: all are.
    level : float, default 0.95
        Coverage of the intervals, in (0, 1).
    min_gap : float, default 0.05
        A rate is given only if the interval of the gap, teacher - before, is above this; above 0.

    Returns
    -------
    GapRecovery
        The rate is undefined (NaN) if the gap is not clearly above `min_gap`, the teacher is
        weaker, or there are fewer than 16 groups. `GapRecovery.text` says which.

    Raises
    ------
    ConfigError
        If `level` is not in (0, 1), or `min_gap` not above 0.
    ValueError
        If the arrays differ in shape or are not one-dimensional.

    Notes
    -----
    A ratio of two means has no useful standard error where its denominator is uncertain. Fieller's
    interval is the set of rates r for which a t-test does not reject that after - before - r
    (teacher - before) has mean 0. Both means are taken over the same problems, so their covariance
    counts; groups are the units, with one degree of freedom less than their number. The numbers of
    samples and the models are taken as they are: the interval is over problems.

    References
    ----------
    §3.2. E. C. Fieller, Some problems in interval estimation, J. R. Stat. Soc. B 16 (1954).

    Examples
    --------
    >>> problems = np.random.default_rng(0).random((3, 200)) < [[0.3], [0.5], [0.7]]
    >>> gap_recovery(*problems).text
    'gap recovery 0.457 [0.271, 0.637] of a gap 0.460 [0.372, 0.548]'
    >>> gap_recovery(problems[2], problems[1], problems[0]).text
    "gap recovery undefined: the teacher is weaker than the student's start, gap -0.460 [...]"
    """
    _check_min_gap(min_gap)
    if not 0 < level < 1:
        raise ConfigError(f"level = {level!r}; expected a number in (0, 1).")
    scores = [np.asarray(one, np.float64) for one in (before, after, teacher)]
    groups = np.arange(scores[0].size) if cluster is None else np.asarray(cluster)
    shapes = [one.shape for one in (*scores, groups)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"before, after, teacher and cluster have shapes {', '.join(map(str, shapes))}; "
            "expected one score of each model per problem, on the same problems."
        )
    known = ~np.isnan(scores).any(axis=0)
    start, end, theirs = (one[known] for one in scores)
    group = np.unique(groups[known], return_inverse=True)[1]
    n_group, nan = int(group.max(initial=-1)) + 1, float("nan")
    parts = np.array([end - start, theirs - start])  # (2, problem): numerator and denominator
    if n_group < MIN_UNITS:
        gap = float(parts[1].mean()) if parts.size else nan
        return GapRecovery(nan, nan, nan, gap, nan, nan, min_gap, n_group, level)
    from scipy.special import stdtrit  # a fifth of what importing opdprobe takes

    (gain, gap), (v_gain, v_both, v_gap) = _moments(parts, group, n_group)
    t = float(stdtrit(n_group - 1, (1 + level) / 2))
    half = t * v_gap**0.5
    gap_low, gap_high = gap - half, gap + half
    if not gap_low > min_gap:
        return GapRecovery(nan, nan, nan, gap, gap_low, gap_high, min_gap, n_group, level)
    # (gain - r gap)² <= t² var(gain - r gap), a quadratic in r that opens upward: gap² > t² v_gap.
    a, b, c = gap**2 - t**2 * v_gap, gain * gap - t**2 * v_both, gain**2 - t**2 * v_gain
    root = max(b**2 - a * c, 0.0) ** 0.5
    low, high = (b - root) / a, (b + root) / a
    return GapRecovery(gain / gap, low, high, gap, gap_low, gap_high, min_gap, n_group, level)


def _moments(
    parts: NDArray[np.float64], group: NDArray[np.intp], n_group: int
) -> tuple[tuple[float, float], tuple[float, float, float]]:
    """Return two means over problems, and the variances and covariance of the means by groups."""
    means = parts.mean(axis=1)
    off = np.array([np.bincount(group, row, n_group) for row in parts - means[:, None]])
    scatter = off @ off.T * n_group / (n_group - 1) / parts.shape[1] ** 2
    gain, gap = means.tolist()
    return (gain, gap), (float(scatter[0, 0]), float(scatter[0, 1]), float(scatter[1, 1]))


def _check_min_gap(min_gap: float) -> None:
    if not min_gap > 0:
        raise ConfigError(f"min_gap = {min_gap!r}; expected a difference in accuracy above 0.")
