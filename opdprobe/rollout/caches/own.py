"""A run of ours as a cache: the teacher's lists at its states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from opdprobe.errors import RolloutError
from opdprobe.rollout.caches.lists import teacher_lists
from opdprobe.rollout.continuation import token_rows
from opdprobe.rollout.rollout import Rollout
from opdprobe.store import open_run
from opdprobe.store.schema import TOP_K

_NEEDED = (*TOP_K, "sampled_logp", "prompt_ids", "response_ids", "prompt_length", "length")


def rollouts(path: Path) -> Iterator[Rollout]:
    """Yield the rollouts of all steps of a run, with what it recorded of the teacher.

    Raises
    ------
    RolloutError
        A step has no texts or no top-k lists.
    StoreError
        The run cannot be read.
    """
    run = open_run(path)
    for step in run.steps:
        yield from _of_step(f"{path}, step {step}", step, run.load(step))


def _of_step(source: str, step: int, ds: xr.Dataset) -> Iterator[Rollout]:
    if missing := [name for name in (*_NEEDED, "prompt_id") if name not in ds]:
        raise RolloutError(
            f"{source}: no {', '.join(missing)}; expected a recorded step with the texts of its "
            "rollouts and top-k lists."
        )
    prompts, responses = token_rows(ds, "prompt"), token_rows(ds, "response")
    theirs = token_rows(ds, "teacher_prompt") if "teacher_prompt_ids" in ds else None
    rollout, position = ds["rollout"].values, ds["position"].values
    names = ds["label_name"].values.astype(str).tolist() if "label_name" in ds else []
    for i in range(ds.sizes["rollout"]):
        states = np.flatnonzero(rollout == i)
        states = states[np.argsort(position[states])]
        places, n = position[states], len(responses[i])
        ids, also = ds["token_id"].values[states], ds["logp"].values[states, 1]
        lists = teacher_lists(
            f"{source}, rollout {i}",
            _at(ids[:, 1], places, n, -1),
            _at(also[:, 1], places, n, -np.inf),
            _at(ds["sampled_logp"].values[states, 1], places, n, np.nan),
        )
        entropy = _at(ds["entropy"].values[states, 1], places, n, np.nan)
        finished = float(ds["finished"].values[i]) if "finished" in ds else np.nan
        yield Rollout(
            step,
            str(ds["prompt_id"].values[i]),
            prompts[i],
            responses[i],
            # What was left out when the run was recorded has no list, nor has what a tool wrote.
            mask=None if len(places) == n else np.isin(np.arange(n), places),
            finished=None if np.isnan(finished) else bool(finished),
            correct=float(ds["correct"].values[i]) if "correct" in ds else np.nan,
            labels=dict(zip(names, ds["label"].values[i].astype(str).tolist(), strict=True))
            if names
            else {},
            teacher_prompt_ids=None if theirs is None else theirs[i],
            teacher_lists=replace(
                lists,
                entropy=entropy.astype(np.float32),
                also_id=_at(ids[:, 0], places, n, -1).astype(np.int32),
                also_logp=_at(also[:, 0], places, n, np.nan).astype(np.float32),
            ),
            source=f"{source}, rollout {i}",
        )


def _at(values: np.ndarray, places: np.ndarray, n: int, fill: float) -> np.ndarray:
    """Put the states' values at their places among `n` tokens."""
    kind = np.int64 if values.dtype.kind in "iu" else np.float64
    rows = np.full((n, *values.shape[1:]), fill, kind)
    rows[places] = values
    return rows
