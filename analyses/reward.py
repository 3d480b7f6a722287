"""Figure 14: does the teacher's reward separate right rollouts from wrong ones (§6.2)?"""

import numpy as np

from analyses.evidence import Evidence, claim
from analyses.results import Results
from opdprobe.probes import reward_auroc
from opdprobe.probes.bootstrap import Estimate, resample_statistic
from opdprobe.report.panel import Panel, Series
from opdprobe.store import Run

RUNS = {"probe_success": "RL'd same-size teacher", "probe_failure": "larger same-pipeline teacher"}


def analyse(evidence: Evidence) -> Results:
    """Sequence mean reward of correct and incorrect rollouts, under both teachers."""
    auroc = {name: [_auroc(run) for run in evidence.runs[name]] for name in RUNS}
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
                f"fig14.{name.removeprefix('probe_')}",
                f"the reward of the {label} separates correct from incorrect rollouts",
                paper=paper,
                ours=auroc[name],
                test="AUROC ≥ 0.60",
                holds=lambda a: a >= 0.6,
                opposite=lambda low, high: high < 0.5,
            )
            for (name, label), paper in zip(RUNS.items(), ("0.73", "0.75"), strict=True)
        ],
    )


def _rewards(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return reward, correctness and prompt of every rollout."""
    reward, correct, prompt = [], [], []
    for step in run.steps:
        ds = run.load(step)
        reward.append(ds.opd.sequence_mean_reward().values)
        correct.append(ds["correct"].values)
        prompt.append(ds["prompt_id"].values)
    return np.concatenate(reward), np.concatenate(correct), np.concatenate(prompt)


def _auroc(run: Run) -> Estimate:
    reward, correct, prompt = _rewards(run)
    return resample_statistic(
        lambda rows: reward_auroc(reward[rows], correct[rows]),
        np.unique(prompt, return_inverse=True)[1],
    )


def _panel(runs: list[Run], name: str, label: str) -> Panel:
    reward, correct, _ = (np.concatenate(parts) for parts in zip(*map(_rewards, runs), strict=True))
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
