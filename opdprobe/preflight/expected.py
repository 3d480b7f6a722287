"""What gain is to be expected of training, and how likely it helps or harms. Without torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MATTERS = 0.05
"""Change of accuracy from which on training helps or harms."""


@dataclass(frozen=True)
class Fit:
    """A straight line through pairs whose training is known.

    Parameters
    ----------
    intercept, slope
        Of the gain of training on the gain of the refitted readout.
    spread
        Standard deviation of the residuals, with n - 2 degrees of freedom.
    centre, scatter
        Mean of the readouts' gains, and their sum of squares about it.
    n
        Number of pairs.
    """

    intercept: float
    slope: float
    spread: float
    centre: float
    scatter: float
    n: int


@dataclass(frozen=True)
class Expected:
    """The gain of training that is to be expected, in accuracy.

    Parameters
    ----------
    value
        Expected gain.
    low, high
        Its 80 % prediction interval.
    helps, harms, neither
        Probabilities that accuracy rises by more than `MATTERS`, falls by more than that, or stays
        between.
    """

    value: float
    low: float
    high: float
    helps: float
    harms: float
    neither: float


FITS = {
    256: Fit(intercept=-0.063, slope=1.573, spread=0.144, centre=0.062, scatter=0.277, n=13),
    512: Fit(intercept=-0.092, slope=1.597, spread=0.111, centre=0.08, scatter=0.305, n=13),
}
"""By the number of rollouts that a line was measured with: 64 prompts × 4, and 128 × 4. The pairs
are those of the testbed in ``docs/verdicts.md``; `benchmarks/expected_gain.py` computes the lines.
"""

LEVEL = 0.8
"""Of the prediction interval: four in five pairs like those of the fit are inside."""


def fit_line(gains: Sequence[float], training: Sequence[float]) -> Fit:
    """Fit the gain of training to the gain of the refitted readout by least squares.

    Parameters
    ----------
    gains, training : (n,) sequence of float
        One pair of models each; three or more, whose `gains` are not all equal.
    """
    x, y = np.asarray(gains, float), np.asarray(training, float)
    about = x - x.mean()
    scatter = float(about @ about)
    slope = float(about @ y) / scatter
    residuals = y - y.mean() - slope * about
    return Fit(
        intercept=float(y.mean() - slope * x.mean()),
        slope=slope,
        spread=math.sqrt(float(residuals @ residuals) / (len(x) - 2)),
        centre=float(x.mean()),
        scatter=scatter,
        n=len(x),
    )


def predicted(fit: Fit, gain: float) -> Expected:
    """Predict the gain of training of one more pair.

    Student's t with n - 2 degrees of freedom: the spread about the line and the line's own
    uncertainty. It holds for a pair that is drawn like those of the fit.

    Parameters
    ----------
    fit
        The line.
    gain
        Gain of the refitted readout, in [-1, 1], measured with as many prompts as the fit's.
    """
    from scipy.special import stdtr, stdtrit  # a fifth of what importing opdprobe takes

    value = float(np.clip(fit.intercept + fit.slope * gain, -1, 1))  # no accuracy changes by more
    scale = fit.spread * math.sqrt(1 + 1 / fit.n + (gain - fit.centre) ** 2 / fit.scatter)
    free = fit.n - 2
    half = scale * float(stdtrit(free, (1 + LEVEL) / 2))
    harms = float(stdtr(free, (-MATTERS - value) / scale))
    helps = float(stdtr(free, (value - MATTERS) / scale))
    return Expected(
        value=value,
        low=max(-1.0, value - half),
        high=min(1.0, value + half),
        helps=helps,
        harms=harms,
        neither=max(0.0, 1 - helps - harms),
    )


def expected_gain(gain: float, rollouts: int) -> Expected | None:
    """Predict the gain of training from what a preflight measured.

    Parameters
    ----------
    gain
        Gain of the refitted readout; NaN if unknown.
    rollouts
        Of the student, over all prompts. A readout that is refitted with fewer rollouts gains
        less, so there is a line for each size, and the next smaller one is taken.

    Returns
    -------
    Expected or None
        None if the gain is unknown, or from fewer rollouts than any line's.
    """
    sizes = [size for size in FITS if size <= rollouts]
    if math.isnan(gain) or not sizes:
        return None
    return predicted(FITS[max(sizes)], gain)
