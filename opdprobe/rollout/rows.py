"""Lay out a step's rollouts and scores as rows of the store."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.models.processes import Processes
from opdprobe.probes import entropy_gap, extreme_advantage_gap, sampler_gap, sampler_kl
from opdprobe.probes.divergence import overlap_statistics
from opdprobe.probes.quantities import LIKELY
from opdprobe.probes.sets import mask_of_match, ratio_of_match
from opdprobe.rollout.prompts import Prompt
from opdprobe.rollout.sample import Rollouts
from opdprobe.rollout.score import Scores
from opdprobe.store.schema import MODELS, Step, build_step


def record_step(
    step: int,
    rollouts: Rollouts,
    scores: Scores,
    prompts: Sequence[Prompt],
    correct: Sequence[float] | None = None,
    missing: Sequence[str] = (),
) -> Step:
    """Lay out a step in the store's schema: one row per state, in rollout order.

    Parameters
    ----------
    step
        Number of optimiser steps the student had taken when it sampled.
    rollouts
        What the student sampled.
    scores
        Both models' scores, in rollout order.
    prompts
        Each rollout's prompt.
    correct
        Each rollout's grade in [0, 1], if graded.
    missing
        Models whose scores are only partly known; see `opdprobe.store.schema`.

    Returns
    -------
    Step
        See `opdprobe.store.schema`.
    """
    arrays = {
        "step": step,
        **score_arrays(scores),
        **rollout_arrays(rollouts),
        "prompt_id": [p.id for p in prompts],
        "finished": rollouts.finished,
        "correct": np.full(len(rollouts), np.nan) if correct is None else correct,
    }
    return build_step(arrays, {"missing": list(missing)} if missing else None)


def score_arrays(scores: Scores) -> dict[str, NDArray | None]:
    """Name scores as the store does."""
    columns = ((f.name, getattr(scores, f.name)) for f in fields(scores))
    return {name: None if column is None else column.numpy() for name, column in columns}


def rollout_arrays(rollouts: Rollouts) -> dict[str, Any]:
    """Lay out the rollouts' texts, and the places of their states, as the store does."""
    lengths = np.array([len(r) for r in rollouts.response_ids], int)
    places = [np.asarray(rollouts.states(i), int) for i in range(len(lengths))]
    rollout = np.repeat(np.arange(len(lengths)), [len(some) for some in places])
    position = _joined(places)
    response_ids = _joined(rollouts.response_ids)
    own = rollouts.teacher_prompt_ids
    return {
        "sampled_id": response_ids[(np.cumsum(lengths) - lengths)[rollout] + position],
        "rollout": rollout,
        "position": position,
        "prompt_length": np.array([len(p) for p in rollouts.prompt_ids], int),
        "length": lengths,
        "prompt_ids": _joined(rollouts.prompt_ids),
        "response_ids": response_ids,
        **(
            {}
            if rollouts.teachers is None
            else {
                "label": np.array(rollouts.teachers, str).reshape(-1, 1),
                "label_name": ["teacher"],
            }
        ),
        **(
            {}
            if rollouts.sampler_logp is None
            else {"sampler_logp": _sampler_logp(rollouts.sampler_logp, places)}
        ),
        **(
            {}
            if own is None
            else {
                "teacher_prompt_length": np.array([len(p) for p in own], int),
                "teacher_prompt_ids": _joined(own),
            }
        ),
    }


def _sampler_logp(logp: Sequence[Sequence[float]], places: Sequence[NDArray]) -> NDArray:
    at_states = (np.asarray(row, np.float32)[at] for row, at in zip(logp, places, strict=True))
    return np.concatenate([np.zeros(0, np.float32), *at_states])


def _joined(rows: Sequence[Sequence[int] | NDArray]) -> NDArray:
    return np.concatenate([np.zeros(0, np.int32), *(np.asarray(row, np.int32) for row in rows)])


def record_dataset(
    step: int,
    rollouts: Rollouts,
    scores: Scores,
    prompts: Sequence[Prompt],
    correct: Sequence[float] | None = None,
    missing: Sequence[str] = (),
) -> xr.Dataset:
    """Lay out a step as `record_step` does, and return it as a Dataset."""
    return record_step(step, rollouts, scores, prompts, correct, missing).to_dataset()


def thin(
    step: Step,
    *,
    fraction: float,
    max_positions: int | None,
    seed: Sequence[int],
    part: tuple[int, int] | None = None,
) -> Step:
    """Keep a random share of the rollouts and the first positions of each.

    Parameters
    ----------
    step
        A full step, or a part of one.
    fraction
        Share of the step's rollouts to keep, in (0, 1]; at least one rollout is kept.
    max_positions
        Most states kept per rollout; None keeps all. The texts stay complete.
    seed
        Seed of the choice of rollouts.
    part
        ``(first, total)``: `step` has those from index `first` on of `total` rollouts.
    """
    if fraction == 1 and max_positions is None:
        return step
    variables, n = step.variables, step.sizes["rollout"]
    first, total = part or (0, n)
    keep = np.zeros(total, bool)
    size = max(1, round(total * fraction))
    keep[np.random.default_rng(list(seed)).choice(total, size, replace=False)] = True
    keep = keep[first : first + n]
    states = keep[variables["rollout"].values]
    if max_positions is not None:
        states &= variables["position"].values < max_positions
    rows = {
        "rollout": keep,
        "state": states,
        "prompt_token": np.repeat(keep, variables["prompt_length"].values),
        "response_token": np.repeat(keep, variables["length"].values),
    }
    if "teacher_prompt_length" in variables:
        lengths = variables["teacher_prompt_length"].values
        rows["teacher_prompt_token"] = np.repeat(keep, lengths)
    # Indices rather than masks, which NumPy would convert to indices again for each variable.
    places = {dim: np.flatnonzero(mask) for dim, mask in rows.items()}
    kept: dict[str, xr.Variable] = {}
    for name, variable in variables.items():
        dim = str(variable.dims[0])
        values = variable.values[places[dim]] if dim in places else variable.values
        kept[str(name)] = xr.Variable(variable.dims, values, variable.attrs, fastpath=True)
    rollout = kept["rollout"].values  # a copy, renumbered here among the kept rollouts
    rollout[:] = (np.cumsum(keep) - 1)[rollout]
    return Step(kept, step.attrs)


def step_metrics(
    dataset: xr.Dataset | Step, processes: Processes | None = None
) -> dict[str, float]:
    """Average the paper's quantities over all states of a step (paper §2.3, App. B).

    Parameters
    ----------
    dataset
        The step.
    processes
        Each process passes its part of the step as `dataset`, and gets the averages over all.

    Returns
    -------
    dict
        Averages by the probes' names, in nats, tokens or as shares. ``empty_overlap`` is the share
        of states whose overlap set is empty, which the advantage leaves out.
    """
    # The probes themselves rather than ds.opd: this runs every step, and the accessor's labels cost
    # more than the arithmetic where a step is small.
    there = dataset.variables
    metrics: dict[str, NDArray] = {}
    if "logp" in there:
        logp, entropy = dataset["logp"].values, dataset["entropy"].values
        student, teacher = logp[:, 0, 0], logp[:, 1, 0]
        match, own = dataset["match"].values, (student, logp[:, 1, 1])  # each on its own list
        mask = mask_of_match(match, *own)
        student_mass, teacher_mass, advantage = overlap_statistics(student, teacher, mask).T
        metrics |= {
            "overlap_ratio": ratio_of_match(match, *own),
            "likely_overlap_ratio": _known(ratio_of_match(match, *own, min_prob=LIKELY)),
            "student_overlap_mass": student_mass,
            "teacher_overlap_mass": teacher_mass,
            "overlap_token_advantage": _known(advantage),
            "empty_overlap": np.isnan(advantage),
            "entropy_gap": entropy_gap(entropy[:, 0], entropy[:, 1]),
            "student_entropy": entropy[:, 0],
            "teacher_entropy": entropy[:, 1],
            "reverse_kl": dataset["reverse_kl"].values,
            "extreme_advantage_gap": _known(extreme_advantage_gap(student, teacher, mask)),
        }
    sampled = dataset["sampled_logp"].values
    reward = sampled[:, 1] - sampled[:, 0]
    metrics["sampled_reward"] = _known(reward) if "missing" in dataset.attrs else reward
    if "stop_logp" in there:
        for m, model in enumerate(MODELS):
            stopping = dataset["stop_logp"].values[:, m, m].astype(np.float64)
            metrics[f"{model}_stop_token_mass"] = np.exp(stopping)
    if "sampler_logp" in there:
        pair = sampled[:, 0], dataset["sampler_logp"].values
        metrics["sampler_gap"] = _known(sampler_gap(*pair))
        metrics["sampler_kl"] = _known(sampler_kl(*pair))
    metrics |= {
        "completion_length": dataset["length"].values,
        "finished": _known(dataset["finished"].values),
        "correct": _known(dataset["correct"].values),
    }
    own = [(float(values.sum(dtype=np.float64)), values.size) for values in metrics.values()]
    total, n = np.sum((processes or Processes()).gather(own), axis=0).T
    return {
        name: t / count if count else math.nan
        for name, t, count in zip(metrics, total.tolist(), n.tolist(), strict=True)
    }


def _known(values: NDArray) -> NDArray:
    return values[~np.isnan(values)]
