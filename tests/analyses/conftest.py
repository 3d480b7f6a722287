"""Hand-made evidence: runs in which the success aligns and the failure does not."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyses.evidence import Evidence
from analyses.experiments import CROSSED, EXPERIMENTS
from analyses.presets import PRESETS
from analyses.sums import add_up
from opdprobe import open_run
from opdprobe.probes.rollout_sums import RolloutSums
from opdprobe.store import Run, RunWriter
from opdprobe.testing import synthetic_step

sys.path.insert(0, str(Path(__file__).parent))  # where tests find the oracle

N_STEPS, K = 12, 8
EVALUATED = (0, 4, 9, 12)  # the last two are in the last quarter
LENGTHS = 4 * [7, 3, 0, 9, 5, 6]  # a rollout without a state is left out of every mean

# Problems of each benchmark.
BENCHMARKS = {"easy": 20, "medium": 18, "hard": 16}
N_PROBLEMS = sum(BENCHMARKS.values())

# Of the models, over all benchmarks.
ACCURACY = {
    "student": 0.35,
    "rl_student": 0.9,
    "large": 0.7,
    "rl_large": 0.95,
    "extra_large": 0.97,
    "base": 0.2,
    "rl_base_large": 0.8,
    "post": 0.4,
    "post_large": 0.8,
    "rl_post_large": 0.88,
    "cold_teacher": 0.8,
    "cold_start": 0.45,
}
# Accuracy at the evaluated steps, the last two of which have the same.
ACCURACIES = {
    "success": (0.35, 0.7, 0.88),
    "baseline": (0.35, 0.7, 0.88),
    "failure": (0.35, 0.37, 0.4),
    "reverse_small": (0.9, 0.5, 0.38),
    "reverse_large": (0.9, 0.6, 0.38),
    "support_overlap": (0.35, 0.69, 0.88),
    "support_non_overlap": (0.35, 0.4, 0.5),
    "base_rl": (0.2, 0.6, 0.75),
    "base_post": (0.2, 0.35, 0.5),
    "no_cold_start": (0.2, 0.35, 0.5),
    "large_same": (0.35, 0.37, 0.4),
    "large_rl": (0.35, 0.6, 0.75),
    "post_same": (0.4, 0.42, 0.45),
    "post_rl": (0.4, 0.65, 0.75),
    "cold_start": (0.45, 0.6, 0.7),
    "template_original": (0.35, 0.6, 0.75),
    "content_other": (0.2, 0.5, 0.6),
    "large_success": (0.7, 0.85, 0.95),
    "large_failure": (0.7, 0.7, 0.72),
    "select_none": (0.35, 0.4, 0.45),
    "select_template": (0.35, 0.55, 0.7),
    "select_mixed": (0.35, 0.65, 0.8),
    "select_divergence": (0.35, 0.5, 0.65),
    "no_cold_start_long": (0.2, 0.45, 0.55),
    "k16_pg": (0.35, 0.7, 0.88),
    "k1_pg": (0.35, 0.4, 0.5),
    **dict.fromkeys(("failure_slow", "failure_fast"), (0.35, 0.36, 0.38)),
    **dict.fromkeys(("post_same_slow", "post_same_fast"), (0.4, 0.41, 0.42)),
    **dict.fromkeys(("base_post_slow", "base_post_fast"), (0.2, 0.3, 0.4)),
    **dict.fromkeys(("non_overlap_slow", "non_overlap_fast"), (0.35, 0.4, 0.45)),
    **dict.fromkeys(("k1_slow", "k1_fast"), (0.35, 0.38, 0.4)),
    **dict.fromkeys(("control_self", "control_still", "control_permuted"), (0.35, 0.35, 0.35)),
    "control_base_self": (0.2, 0.2, 0.2),
}
# Runs whose evaluations draw the same samples at every step.
STILL = ("control_self", "control_base_self", "control_still", "control_permuted")
# What is added to the scores on problems like those of the other prompt roles, in that order.
TESTED = {
    "baseline": (0.0, -0.2, -0.3),
    "template_original": (0.0, 0.2, 0.1),
    "base_rl": (-0.2, 0.0, 0.0),
    "content_other": (0.3, 0.0, 0.0),
    "select_template": (0.1, -0.1, -0.2),
}
# Correlation of both models' logits in the first and in the second half of a run.
AGREEMENT = {
    "success": (0.3, 0.9999),
    "baseline": (0.3, 0.9999),
    "large_success": (0.3, 0.9999),
    "base_rl": (0.9, 0.95),
    "base_post": (0.2, 0.7),
    "no_cold_start": (0.2, 0.7),
    "content_other": (0.95, 0.97),
    "cold_start": (0.999, 0.999),
    "template_original": (0.0, 0.3),
    **dict.fromkeys(("control_self", "control_base_self", "control_still"), (0.9999, 0.9999)),
    "control_permuted": (0.0, 0.0),
}
# Factor on both models' entropies.
ENTROPY = {"base_rl": 0.4, "template_original": 0.5, "select_mixed": 1.5}
# What the non-overlap run logs: its 5-step means start at 0.8, fall to 0.7, and end at 0.73.
OVERLAP = [0.8] * 5 + [0.75] + [0.7] * 5 + [0.85]


def problem_scores(accuracy: float, seed: int) -> dict[str, np.ndarray]:
    """Scores of each benchmark's problems, of four samples each: the same ones are hard for all."""
    difficulty = np.random.default_rng(0).normal(size=N_PROBLEMS)
    chance = 1 / (1 + np.exp(difficulty - np.log(accuracy / (1 - accuracy)) * 1.2))
    scores = np.random.default_rng([1, seed]).binomial(4, chance) / 4
    parts = np.split(scores, np.cumsum(list(BENCHMARKS.values()))[:-1])
    return dict(zip(BENCHMARKS, parts, strict=True))


def grade(ds: xr.Dataset) -> None:
    """Make four rollouts of each prompt; in most, the two of the higher reward are correct."""
    rows = np.arange(ds.sizes["rollout"])
    ds["prompt_id"].values[:] = [f"prompt-{row // 4}" for row in rows]
    reward = np.nan_to_num(ds.opd.sequence_mean_reward().values, nan=-np.inf).reshape(-1, 4)
    higher = reward > np.sort(reward, axis=1)[:, [1]]
    higher[1::8] ^= True
    ds["correct"].values[:] = higher.ravel()


def agreements(name: str, n_recorded: int) -> tuple[float, ...]:
    early, late = AGREEMENT.get(name, (0.3, 0.3))
    return tuple(early if step < N_STEPS / 2 else late for step in range(n_recorded))


@cache  # many experiments record the same states
def recorded_step(step: int, agreement: float, entropy: float, seed: int, train: bool):
    lengths = LENGTHS if train else 4 * LENGTHS
    size = {"n_rollouts": len(lengths), "length": lengths, "k": K}
    ds = synthetic_step(step, agreement=agreement, seed=seed, **size)
    ds["entropy"] *= np.float32(entropy)
    if not train:
        grade(ds)
    return ds


def write_run(path: Path, name: str, seed: int, n_recorded: int, crossed: bool) -> Run:
    attrs = {"seed": seed, "k": K, "student": {"name": "s"}, "teacher": {"name": "t"}}
    writer = RunWriter(path, attrs=attrs, config={"eval_n": 4}, resume=False)
    rng = np.random.default_rng([2, seed])
    train = EXPERIMENTS[name].train
    agreement = agreements(name, n_recorded)
    for step in range(N_STEPS if train else 1):
        if step < n_recorded:
            ds = recorded_step(step, agreement[step], ENTROPY.get(name, 1.0), seed, train)
            writer.write_step(step, ds)
        metrics = {
            "loss": (3.0 if name == "success" else 1.0) + rng.random(),
            "grad_norm": 2.0 if name == "success" else 1.0,
            "overlap_ratio": OVERLAP[step] if name == "support_non_overlap" else 0.8,
        }
        writer.log_metrics(step, metrics)
    accuracies = ACCURACIES.get(name, ())
    for step, accuracy in zip(EVALUATED, (*accuracies, *accuracies[-1:]), strict=False):
        scores = problem_scores(accuracy, 100 * seed + (0 if name in STILL else step))
        if EXPERIMENTS[name].crossed and crossed:
            shift = dict(zip(CROSSED, TESTED.get(name, (0.0, 0.0, 0.0)), strict=True))
            scores |= {role: np.clip(scores["easy"] + more, 0, 1) for role, more in shift.items()}
        for benchmark, values in scores.items():
            ids = [f"{benchmark}-{i}" for i in range(len(values))]
            writer.log_evaluation(step, benchmark, ids, values.tolist())
        if step == N_STEPS:  # as the trainer does: a row of metrics with the accuracies alone
            writer.log_metrics(step, {f"accuracy/{b}": v.mean() for b, v in scores.items()})
    return open_run(path)


@pytest.fixture(scope="session")
def make_evidence(tmp_path_factory) -> Callable[..., Evidence]:
    """Make the evidence of some experiments, one run a seed, with so many recorded steps.

    Runs that recorded the same states share their sums.
    """
    known: dict[tuple, RolloutSums] = {}

    def added_up(run: Run, name: str, n_recorded: int) -> RolloutSums:
        states = agreements(name, n_recorded), ENTROPY.get(name), EXPERIMENTS[name].train
        key = (*states, run.attrs["seed"])
        if key not in known:
            known[key] = add_up(run)
        return known[key]

    def make(
        recorded: dict[str, int], seeds: Sequence[int] = (0,), *, crossed: bool = True
    ) -> Evidence:
        folder = tmp_path_factory.mktemp("runs")
        runs = {
            name: [write_run(folder / f"{name}-{seed}", name, seed, n, crossed) for seed in seeds]
            for name, n in recorded.items()
        }
        return Evidence(
            preset="quick",
            models=PRESETS["quick"].models,
            runs=runs,
            scores={role: [problem_scores(a, 99)] * len(seeds) for role, a in ACCURACY.items()},
            sums={
                run.path: added_up(run, name, recorded[name])
                for name, some in runs.items()
                for run in some
            },
        )

    return make


@pytest.fixture(scope="session")
def evidence(make_evidence) -> Evidence:
    """One seed; whole runs of the two whose states are looked at."""
    whole = {"success": N_STEPS, "failure": N_STEPS}
    return make_evidence(whole | {"baseline": 1, "reverse_small": 1})


@pytest.fixture(scope="session")
def five_seeds(make_evidence) -> Evidence:
    return make_evidence({"success": 3, "failure": 3}, seeds=range(5))
