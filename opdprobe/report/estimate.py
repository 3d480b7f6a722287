"""Point estimates with intervals: bootstrap within a run, Student's t over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np

from opdprobe.probes.bootstrap import LEVEL, N_BOOT, Estimate

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


def combine(estimates: Sequence[Estimate], level: float = LEVEL) -> tuple[float, float, float]:
    """Average over seeds.

    Returns
    -------
    value, low, high
        Mean and interval. With three or more seeds, for other seeds and other prompts or problems
        of the same kind: the half-widths of Student's t over seeds and of the bootstrap over what
        the seeds share, added in squares. Otherwise the bootstrap's within the runs. Never beyond
        the estimates' own bounds; NaN where a run gives none.

    Notes
    -----
    All seeds have the same problems, which the spread over seeds does not show; the bootstrap
    draws them together (of a logged scalar, the steps). It also sees the sampling within each run,
    which the spread over seeds contains already, so that the interval is a little too wide.
    """
    values = np.array([e.value for e in estimates])
    mean = float(values.mean())
    if len(values) >= MIN_SEEDS:
        from scipy.special import stdtrit  # a fifth of what importing opdprobe takes

        seeds = stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / len(values) ** 0.5
        drawn = np.mean([e.samples for e in estimates], axis=0)
        drawn = drawn[np.isfinite(drawn)]
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if drawn.size else (0, 0)
        half = float(np.hypot(seeds, (ends[1] - ends[0]) / 2))
        least, most = np.transpose([e.bounds for e in estimates])
        low, high = np.maximum(mean - half, least.max()), np.minimum(mean + half, most.min())
        return mean, float(low), float(high)
    first, *others = estimates
    if not others:
        return mean, *first.interval(level)
    return mean, *first.map(*others, by=lambda *values: np.mean(values, axis=0)).interval(level)


def interval_name(n_seeds: int) -> str:
    """Describe the intervals, for captions."""
    if n_seeds >= MIN_SEEDS:
        return f"95 % over {n_seeds} seeds (Student's t) and over prompts or problems (bootstrap)"
    return "95 % bootstrap over prompts (curves) or problems (accuracy)"


def number(value: float) -> str:
    """Write a number with three significant digits.

    Examples
    --------
    >>> number(0.91234), number(-0.25), number(1e-17), number(float("nan"))
    ('0.912', '−0.25', '0', 'n/a')
    """
    if np.isnan(value):
        return "n/a"
    # A difference of equal means is 0, give or take their rounding.
    return f"{value:.3g}".replace("-", "−") if abs(value) > 1e-12 else "0"
