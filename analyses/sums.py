"""All that means over states and their intervals need of a run: sums by rollout, in one pass."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.store import Run

PROBES: dict[str, Callable[[xr.Dataset], xr.DataArray]] = {
    "overlap_ratio": lambda ds: ds.opd.overlap_ratio(),
    "overlap_token_advantage": lambda ds: ds.opd.overlap_token_advantage(),
    "entropy_gap": lambda ds: ds.opd.entropy_gap(),
    "student_overlap_mass": lambda ds: ds.opd.overlap_mass("student"),
    "teacher_overlap_mass": lambda ds: ds.opd.overlap_mass("teacher"),
    "student_entropy": lambda ds: ds.opd.entropy("student"),
    "teacher_entropy": lambda ds: ds.opd.entropy("teacher"),
    "reverse_kl": lambda ds: ds.opd.reverse_kl(),
    "extreme_advantage_gap": lambda ds: ds.opd.extreme_advantage_gap(),
    "extreme_advantage_size": lambda ds: abs(ds.opd.extreme_advantage_gap()),
}


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
    """Evaluate every probe at every state of a run; one step at a time is in memory."""
    lengths, first = [], [0]
    total = {name: [] for name in PROBES}
    n = {name: [] for name in PROBES}
    label: dict[str, str] = {}
    for step in run.steps:
        ds = run.load(step)
        rollout, size = ds["rollout"].values, ds.sizes["rollout"]
        lengths.append(np.bincount(rollout, minlength=size))
        first.append(first[-1] + size)
        for name, probe in PROBES.items():
            quantity = probe(ds)
            values = quantity.values.astype(np.float64)
            known = ~np.isnan(values)
            total[name].append(np.bincount(rollout, np.where(known, values, 0), minlength=size))
            n[name].append(np.bincount(rollout, known, minlength=size).astype(np.int64))
            label[name] = axis_label(quantity.attrs["long_name"], quantity.attrs["units"])
    return Sums(
        np.asarray(run.steps, np.int64),
        np.asarray(first, np.int64),
        np.concatenate(lengths),
        {name: np.concatenate(parts) for name, parts in total.items()},
        {name: np.concatenate(parts) for name, parts in n.items()},
        label,
    )


def axis_label(long_name: str, units: str) -> str:
    """Compose an axis label from a variable's attributes."""
    return long_name if units == "1" else f"{long_name} [{units}]"


def save(sums: Sums, path: Path) -> None:
    """Write sums, whole or not at all; makes the directory."""
    arrays: dict[str, Any] = {"steps": sums.steps, "first": sums.first, "length": sums.length}
    for name in sums.total:
        arrays[f"total/{name}"], arrays[f"n/{name}"] = sums.total[name], sums.n[name]
        arrays[f"label/{name}"] = np.array(sums.label[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)
    os.replace(temporary, path)


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
