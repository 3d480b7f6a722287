"""How much of a mean rests on few states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.probes.bootstrap import MIN_UNITS, Estimate
from opdprobe.probes.rollout_sums import rollout_sums
from opdprobe.store import Run

SHARE = 0.01
CAP = 1.0  # nats


@dataclass(frozen=True)
class HeavyTail:
    """What few states contribute to a mean reverse KL.

    Parameters
    ----------
    share
        Share of the sum over all states that the 1 % with the largest values hold.
    capped
        The mean with each state's value capped at 1 nat. Bounded, it needs fewer prompts for an
        interval than the mean itself.
    """

    share: float
    capped: Estimate


def top_share(values: NDArray) -> float:
    """Return the share of a sum of sizes that the largest 1 % hold; NaN if it is 0 or infinite.

    Examples
    --------
    >>> float(top_share(np.r_[np.ones(99), 99.0]))
    0.5
    """
    size = np.sort(np.abs(values[~np.isnan(values)].astype(np.float64)))[::-1]
    total = size.sum()
    if not 0 < total < np.inf:
        return np.nan
    return float(size[: max(1, round(SHARE * size.size))].sum() / total)


def reverse_kl_tail(run: Run, steps: Sequence[int]) -> HeavyTail | None:
    """Measure the tail of the reverse KL over some steps; None where it was not recorded."""
    parts = [run.load(step) for step in steps]
    if not all("reverse_kl" in part for part in parts):
        return None
    share = top_share(np.concatenate([part["reverse_kl"].values for part in parts]))
    sums = rollout_sums(parts, {"capped": _capped})
    return HeavyTail(share, sums.mean("capped", least=MIN_UNITS))


def _capped(ds: xr.Dataset) -> xr.DataArray:
    return ds.opd.reverse_kl().clip(max=CAP)
