"""Numbers with intervals: bootstrap over prompts, whose rollouts are not independent."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.probes import curve, reward_auroc

N_BOOT = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Number:
    """An estimate.

    Parameters
    ----------
    value
        NaN if unknown.
    low, high
        Its 95 % interval; NaN if unknown, as from a single prompt.
    """

    value: float
    low: float = np.nan
    high: float = np.nan


UNKNOWN = Number(np.nan)


def state_mean(step: xr.Dataset, probe: str | Callable[[xr.Dataset], xr.DataArray]) -> Number:
    """Mean of a probe over all states, bootstrap over rollouts."""
    found = curve(step, probe, ci=LEVEL, n_boot=N_BOOT)
    return Number(*(float(found[name].item()) for name in ("value", "low", "high")))


def prompt_mean(values: NDArray[np.float64], prompt: NDArray[np.intp]) -> Number:
    """Mean of a value a rollout, NaN left out, bootstrap over prompts."""
    known = ~np.isnan(values)
    if not known.any():
        return UNKNOWN
    n = int(prompt.max()) + 1
    total = np.bincount(prompt, np.where(known, values, 0.0), minlength=n)
    count = np.bincount(prompt, known, minlength=n)
    drawn = _draws(n)
    with np.errstate(invalid="ignore"):  # 0/0 where only prompts without a value were drawn
        samples = (drawn @ total) / (drawn @ count)
    return _number(float(values[known].mean()), samples, units=int(np.count_nonzero(count)))


def prompt_auroc(
    reward: NDArray[np.float64], correct: NDArray[np.float64], prompt: NDArray[np.intp]
) -> Number:
    """AUROC of a reward for correct rollouts, bootstrap over prompts."""
    value = reward_auroc(reward, correct)
    if np.isnan(value):
        return UNKNOWN
    rows = [np.flatnonzero(prompt == p) for p in range(int(prompt.max()) + 1)]
    samples = []
    for drawn in _draws(len(rows))[:200]:  # each replicate is a sort; 200 fix a bound to 0.01
        chosen = np.concatenate([np.tile(rows[p], int(n)) for p, n in enumerate(drawn) if n])
        samples.append(reward_auroc(reward[chosen], correct[chosen]))
    return _number(value, np.array(samples), units=len(rows))


def share_removed(before: NDArray[np.float64], after: NDArray[np.float64]) -> Number:
    """Share of a total that is gone, 1 - sum(after) / sum(before), bootstrap over prompts.

    Parameters
    ----------
    before, after : (P,) ndarray
        A row a prompt; NaN, in both, is left out.
    """
    known = ~np.isnan(before)
    before, after = before[known], after[known]
    if not before.sum() > 0:
        return UNKNOWN  # nothing was there to remove
    drawn = _draws(len(before))
    with np.errstate(invalid="ignore"):  # 0/0 where only prompts without any were drawn
        samples = 1 - (drawn @ after) / (drawn @ before)
    return _number(float(1 - after.sum() / before.sum()), samples, units=len(before))


def _draws(n: int) -> NDArray[np.float64]:
    """How often each of n units is drawn, one row a replicate."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=N_BOOT).astype(float)


def _number(value: float, samples: NDArray[np.float64], *, units: int) -> Number:
    samples = samples[~np.isnan(samples)]
    if units < 2 or not samples.size:  # one unit drawn again and again shows no spread
        return Number(value)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Number(value, float(low), float(high))
