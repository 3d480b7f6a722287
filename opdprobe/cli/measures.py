"""What some figures measure on a finished run: jobs of `opdprobe.cli.reproduce`, beside the run.

Like every job, they do nothing if the result is there.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.experiments import EXPERIMENTS, POINTS
from analyses.presets import Preset
from opdprobe.cli.jobs import measured_path, run_dir, run_name
from opdprobe.errors import OPDProbeError
from opdprobe.store import open_run
from opdprobe.store.files import write_text
from opdprobe.train.pool import Report

_PROMPTS, _GENERATIONS, _TOKENS = 24, 2, 2
_SPECTRUM = 8
_STATES, _CANDIDATES, _SAMPLES = 60, 4, 12
_CHOICE = 0.1


def label(measure: str, name: str, seed: int) -> str:
    """Name of the task that measures something on an experiment's run with one seed."""
    return f"{measure} of {run_name(name, seed)}"


def cohere(name: str, seed: int, preset: Preset, folder: Path, report: Report) -> None:
    """Compare the gradients of a run's student before training or after it; see `POINTS`."""
    from opdprobe.cli.names import resolve_model, resolve_prompts
    from opdprobe.train.checkpoint import latest_checkpoint
    from opdprobe.train.coherence import coherence

    path = measured_path(folder, "coherence", name, seed)
    if path.exists():
        return
    experiment = EXPERIMENTS[name]
    prompts, _ = resolve_prompts(preset.prompts[experiment.prompts], preset.n_prompts)
    n = min(_PROMPTS, preset.n_probe, len(prompts))
    chosen = np.random.default_rng(seed).choice(len(prompts), n, replace=False)
    ends = sorted({end for steps in POINTS.values() for run, end in steps.values() if run == name})
    found: dict[str, Any] = {}
    for done, end in enumerate(ends):
        report(done, len(ends))
        student = resolve_model(preset.model(experiment.student, seed))
        if end == "end":
            checkpoint = latest_checkpoint(run_dir(folder, name, seed))
            if checkpoint is None:
                raise OPDProbeError(
                    f"{run_dir(folder, name, seed)} has no checkpoint; expected the trained "
                    "student: delete the directory, and run this again."
                )
            student = checkpoint.path
        one = coherence(
            student,
            resolve_model(preset.model(experiment.teacher, seed)),
            [prompts[i] for i in chosen],
            config=replace(preset.config, num_generations=_GENERATIONS, seed=seed),
            tokens_per_rollout=_TOKENS,
            device=preset.device,
        )
        found[end] = {
            "n_rollouts": one.n_rollouts,
            "n_tokens": one.n_tokens,
            "token_norm": one.token_norm,
            "survives": one.survives["all"],
            "by_chance": one.by_chance["all"],
            "cosine_within": one.cosine_within[0],
            "cosine_between": one.cosine_between[0],
            "directions": one.effective_directions,
            "spectrum": one.spectrum[:_SPECTRUM].tolist(),
        }
    report(len(ends), len(ends))
    write_text(path, json.dumps(found))


def force(name: str, seed: int, preset: Preset, folder: Path, report: Report) -> None:
    """Sample the untrained student's success after each of its likely tokens, at some states.

    The states are drawn among those in which its second choice has a probability of 0.1 or more,
    one of a prompt.
    """
    from opdprobe.cli.names import resolve_model, resolve_prompts
    from opdprobe.models.load import load_model, load_tokenizer
    from opdprobe.rollout.continuation import Sampling
    from opdprobe.rollout.forced import forced_success

    path = measured_path(folder, "forced", name, seed)
    if path.exists():
        return
    experiment, config = EXPERIMENTS[name], preset.config
    prompts, grader = resolve_prompts(preset.prompts[experiment.prompts], preset.n_probe)
    if grader is None:
        raise OPDProbeError(f"{preset.prompts[experiment.prompts]}: expected prompts with answers.")
    model_name = resolve_model(preset.model(experiment.student, seed))
    model = load_model(
        model_name,
        device=preset.device,
        dtype=preset.dtype,
        attn_implementation=preset.attn_implementation,
    )
    step = open_run(run_dir(folder, name, seed)).load(0)
    states = branching(step, config.max_completion_length, np.random.default_rng(seed))
    ids = step["token_id"].sel(support="student").values[states, :_CANDIDATES]
    report(0, 1)
    scores = forced_success(
        step,
        model,
        load_tokenizer(model_name),
        prompts,
        grader,
        Sampling(config.max_completion_length, seed=seed, unfinished=config.unfinished),
        states=states,
        tokens=ids,
        n=_SAMPLES,
    )
    report(1, 1)
    found = {"states": states.tolist(), "tokens": ids.tolist(), "scores": scores.tolist()}
    write_text(path, json.dumps(found))


def branching(step: xr.Dataset, limit: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw states in which the student has a choice, at most one of a prompt."""
    second = step["logp"].sel(model="student", support="student").values[:, 1]
    open_ = (second >= np.log(_CHOICE)) & (step["position"].values + 1 < limit)
    prompts = step["prompt_id"].values[step["rollout"].values]
    shuffled = rng.permutation(np.flatnonzero(open_))
    _, first = np.unique(prompts[shuffled], return_index=True)
    return np.sort(shuffled[np.sort(first)[:_STATES]])


MEASURES: dict[str, Callable[..., None]] = {"coherence": cohere, "forced": force}
"""Measurement to its job, which takes what a run's takes."""
