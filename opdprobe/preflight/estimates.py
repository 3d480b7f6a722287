"""Numbers with intervals: bootstrap over prompts, whose rollouts are not independent."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.probes import curves
from opdprobe.probes.bootstrap import (
    LEVEL,
    MIN_UNITS,
    MIN_UNITS_HEAVY,
    N_BOOT,
    Estimate,
    resample,
)
from opdprobe.probes.signal import signal_estimates


@dataclass(frozen=True)
class Number:
    """An estimate.

    Parameters
    ----------
    value
        NaN if unknown.
    low, high
        Its 95 % interval; NaN if unknown, for example from too few prompts.
    """

    value: float
    low: float = np.nan
    high: float = np.nan


UNKNOWN = Number(np.nan)


def state_means(step: xr.Dataset, names: tuple[str, ...]) -> dict[str, Number]:
    """Means of probes over all states; bootstrap over prompts."""
    found = curves(step, names, ci=LEVEL, n_boot=N_BOOT).squeeze("step")
    return {
        name: Number(*(float(found[end].sel(probe=name)) for end in ("value", "low", "high")))
        for name in names
    }


def prompt_mean(
    values: NDArray[np.float64],
    prompt: NDArray[np.intp],
    bounds: tuple[float, float] = (-np.inf, np.inf),
    least: int = MIN_UNITS,
) -> Number:
    """Mean of a value per rollout or state, without NaN; bootstrap over prompts.

    Parameters
    ----------
    values, prompt : (N,) ndarray
        The values, and the index of the prompt of each.
    bounds
        Between which the values lie.
    least
        Fewest prompts for an interval; heavy tails need more.
    """
    known = ~np.isnan(values)
    if not known.any():
        return UNKNOWN
    n = int(prompt.max()) + 1
    total = np.bincount(prompt, np.where(known, values, 0.0), minlength=n)
    count = np.bincount(prompt, known, minlength=n)
    return _number(resample(total, count, bounds=bounds, least=least))


def prompt_signal(
    reward: NDArray[np.float64],
    correct: NDArray[np.float64],
    length: NDArray[np.integer],
    prompt: NDArray[np.intp],
) -> dict[str, Number]:
    """AUROCs of `opdprobe.probes.reward_signal`; bootstrap over prompts."""
    found = signal_estimates(reward, correct, length, prompt)
    return {name: UNKNOWN if np.isnan(one.value) else _number(one) for name, one in found.items()}


def share_removed(before: NDArray[np.float64], after: NDArray[np.float64]) -> Number:
    """Share of a total that was removed, 1 - sum(after) / sum(before); bootstrap over prompts.

    Parameters
    ----------
    before, after : (P,) ndarray
        One value per prompt; prompts with NaN (in both) are left out.
    """
    known = ~np.isnan(before)
    before, after = before[known], after[known]
    if not before.sum() > 0:
        return UNKNOWN  # there is nothing to remove
    left = resample(after, before, least=MIN_UNITS_HEAVY)
    return _number(left.map(by=lambda share: 1 - share))


def _number(estimate: Estimate) -> Number:
    return Number(estimate.value, *estimate.interval())
