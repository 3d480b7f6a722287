"""The sums by rollout that analyses use, and their file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdprobe.probes.bootstrap import Estimate
from opdprobe.probes.evaluate import Probe
from opdprobe.probes.rollout_sums import RolloutSums, rollout_sums
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

_COLUMNS = ("steps", "first", "unit", "length")


def add_up(run: Run) -> RolloutSums:
    """Evaluate every probe at every state of a run, in one pass."""
    return rollout_sums([run], PROBES)


def window(run: Run, probes: Mapping[str, Probe], steps: Sequence[int]) -> dict[str, Estimate]:
    """Estimate the mean of each probe over all states of some steps; units are prompts."""
    sums = rollout_sums(map(run.load, steps), probes)
    return {name: sums.mean(name) for name in probes}


def save(sums: RolloutSums, path: Path) -> None:
    """Write sums atomically; creates the directory."""
    arrays: dict[str, Any] = {name: getattr(sums, name) for name in _COLUMNS}
    for name in sums.total:
        arrays[f"total/{name}"], arrays[f"n/{name}"] = sums.total[name], sums.n[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: np.savez(file, **arrays))


def load(path: Path) -> RolloutSums:
    """Read a file written by `save`."""
    with np.load(path, allow_pickle=False) as arrays:
        return RolloutSums(
            **{name: arrays[name] for name in _COLUMNS},
            total={name: arrays[f"total/{name}"] for name in PROBES},
            n={name: arrays[f"n/{name}"] for name in PROBES},
        )
