"""All that means over states and their intervals need of a run: sums by rollout, in one pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.probes.evaluate import Probe
from opdprobe.probes.rollout_sums import StepSums, step_sums
from opdprobe.report.estimate import Estimate, resample
from opdprobe.report.panel import axis_label
from opdprobe.store import Run
from opdprobe.store.files import write_whole

PROBES: dict[str, Probe] = {
    name: name
    for name in (
        "overlap_ratio",
        "overlap_token_advantage",
        "entropy_gap",
        "student_overlap_mass",
        "teacher_overlap_mass",
        "student_entropy",
        "teacher_entropy",
        "reverse_kl",
        "extreme_advantage_gap",
    )
} | {"extreme_advantage_size": lambda ds: abs(ds.opd.extreme_advantage_gap())}


@dataclass(frozen=True)
class Sums:
    """Sums of probes over the states of each rollout of a run.

    Parameters
    ----------
    steps : ndarray (steps,)
        Recorded steps.
    first : ndarray (steps + 1,)
        Row of each step's first rollout; the last entry is the number of rows.
    length : ndarray (rows,)
        States of each rollout.
    total, n : dict of str to ndarray (rows,)
        By probe: sum over the states that have a value, and how many those are.
    label : dict of str to str
        By probe: its name and unit, for an axis.
    """

    steps: NDArray[np.int64]
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    total: dict[str, NDArray[np.float64]]
    n: dict[str, NDArray[np.int64]]
    label: dict[str, str]

    def rows(self, steps: slice) -> slice:
        """Rows of some of the steps, by their place."""
        start, stop, _ = steps.indices(len(self.steps))
        return slice(int(self.first[start]), int(self.first[stop]))


def add_up(run: Run) -> Sums:
    """Evaluate every probe at every state of a run, in one pass; a piece at a time is in memory."""
    found = [step for batch in step_sums(run, [*PROBES.values()], _listed) for step in batch]
    parts = [sums for _, sums in found]
    labels = [axis_label(about["long_name"], about["units"]) for about in found[0][0]]
    total = np.concatenate([sums.total[..., 0] for sums in parts], axis=1)
    n = np.concatenate([sums.n[..., 0] for sums in parts], axis=1)
    return Sums(
        np.array([sums.step for sums in parts], np.int64),
        np.cumsum([0, *(sums.length.size for sums in parts)]),
        np.concatenate([sums.length for sums in parts]),
        dict(zip(PROBES, total, strict=True)),
        dict(zip(PROBES, n, strict=True)),
        dict(zip(PROBES, labels, strict=True)),
    )


def _listed(
    about: list[dict[str, Any]], steps: Iterator[StepSums]
) -> list[tuple[list[dict[str, Any]], StepSums]]:
    return [(about, sums) for sums in steps]


def window(run: Run, probe: Callable[[xr.Dataset], xr.DataArray], steps: Sequence[int]) -> Estimate:
    """Estimate the mean of a probe over all states of some steps; units are rollouts."""
    sums, counts = [], []
    for step in steps:
        ds = run.load(step)
        values = probe(ds).values.astype(np.float64)
        known = ~np.isnan(values)
        rollout, n = ds["rollout"].values, ds.sizes["rollout"]
        sums.append(np.bincount(rollout, np.where(known, values, 0), minlength=n))
        counts.append(np.bincount(rollout, known, minlength=n))
    return resample(np.concatenate(sums), np.concatenate(counts))


def save(sums: Sums, path: Path) -> None:
    """Write sums, whole or not at all; makes the directory."""
    arrays: dict[str, Any] = {"steps": sums.steps, "first": sums.first, "length": sums.length}
    for name in sums.total:
        arrays[f"total/{name}"], arrays[f"n/{name}"] = sums.total[name], sums.n[name]
        arrays[f"label/{name}"] = np.array(sums.label[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: np.savez(file, **arrays))


def load(path: Path) -> Sums:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Sums(
            arrays["steps"],
            arrays["first"],
            arrays["length"],
            {name: arrays[f"total/{name}"] for name in PROBES},
            {name: arrays[f"n/{name}"] for name in PROBES},
            {name: str(arrays[f"label/{name}"]) for name in PROBES},
        )
