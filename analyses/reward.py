"""Figure 14: does the teacher's reward separate right rollouts from wrong ones (§6.2)?"""

from operator import itemgetter

import numpy as np

from analyses.evidence import Evidence, claim
from analyses.results import Results
from opdprobe.probes.bootstrap import Estimate
from opdprobe.probes.signal import signal_estimates
from opdprobe.report.panel import Panel, Series
from opdprobe.store import Run

RUNS = {"probe_success": "RL'd same-size teacher", "probe_failure": "larger same-pipeline teacher"}


def analyse(evidence: Evidence) -> Results:
    """Sequence mean reward of correct and incorrect rollouts, under both teachers."""
    signal = {name: [_signal(run) for run in evidence.runs[name]] for name in RUNS}
    return Results(
        figure="fig14",
        title="Sequence mean reward",
        section="6.2",
        claim="The reward is informative under both teachers: the failure is not for want of a "
        "signal in the sum.",
        meta=evidence.meta(list(RUNS)),
        panels=[_panel(evidence.runs[name], name, label) for name, label in RUNS.items()],
        claims=[
            claim(
                f"fig14.{name.removeprefix('probe_')}{suffix}",
                f"the reward of the {label} {text}",
                paper=paper if not suffix else "not in the paper",
                ours=[of(one) for one in signal[name]],
                statistic=statistic,
                above=limit,
            )
            for suffix, text, statistic, of, limit in _TESTS
            for (name, label), paper in zip(RUNS.items(), ("0.73", "0.75"), strict=True)
        ],
    )


def _beyond_length(signal: dict[str, Estimate]) -> Estimate:
    return signal["reward_within"].map(
        signal["length_within"], by=lambda reward, length: reward - np.maximum(length, 1 - length)
    )


_TESTS = (
    ("", "separates correct from incorrect rollouts", "AUROC", itemgetter("reward"), 0.6),
    (
        "_within",
        "separates correct from incorrect rollouts of one prompt",
        "AUROC, pairs within a prompt",
        itemgetter("reward_within"),
        0.6,
    ),
    (
        "_length",
        "tells more than the length of the response does",
        "AUROC, pairs within a prompt, of the reward − of the length (or of its opposite)",
        _beyond_length,
        0.0,
    ),
)
"""Suffix of the claim's name, what it says, its statistic in words and as a function, its limit."""


def _signal(run: Run) -> dict[str, Estimate]:
    reward, correct, length, prompt = _rewards(run)
    return signal_estimates(reward, correct, length, prompt)


def _rewards(run: Run) -> tuple[np.ndarray, ...]:
    """Return reward, correctness, length and prompt of every rollout of an untrained student."""
    ds = run.load(*run.steps)
    return (
        ds.opd.sequence_mean_reward().values,
        ds["correct"].values,
        ds["length"].values,
        ds["prompt_id"].values,
    )


def _panel(runs: list[Run], name: str, label: str) -> Panel:
    reward, correct, *_ = (
        np.concatenate(parts) for parts in zip(*map(_rewards, runs), strict=True)
    )
    return Panel(
        name=name,
        title=label[0].upper() + label[1:],
        x_label="sequence mean reward [nats]",
        y_label="density",
        kind="histogram",
        series=[
            Series("correct", "correct", values=reward[correct == 1].tolist()),
            Series("incorrect", "incorrect", values=reward[correct == 0].tolist()),
        ],
    )
