"""Learning rates: do the arms that fail at the usual rate fail at others, too?"""

from collections.abc import Sequence

import numpy as np

from analyses.dynamics import points
from analyses.evidence import Evidence, claim, differences
from analyses.registry import FIGURES
from analyses.results import Claim, Results
from opdprobe.probes.bootstrap import Estimate
from opdprobe.report.estimate import ranked
from opdprobe.report.panel import Panel

# Plotting role, label and experiments of each arm, by learning rate: slow, usual, fast.
ARMS = {
    "failure": ("arm_larger", "larger teacher", ("failure_slow", "large_same", "failure_fast")),
    "post_same": (
        "arm_family_2",
        "larger teacher, family 2",
        ("post_same_slow", "post_same", "post_same_fast"),
    ),
    "base_post": (
        "arm_pattern",
        "other-pattern teacher",
        ("base_post_slow", "base_post", "base_post_fast"),
    ),
    "non_overlap": (
        "arm_support",
        "non-overlap support",
        ("non_overlap_slow", "support_non_overlap", "non_overlap_fast"),
    ),
    "k1": ("arm_k1", "k = 1", ("k1_slow", "k1_pg", "k1_fast")),
}
TICKS = ("0.25", "1", "4")


def analyse(evidence: Evidence) -> Results:
    """Accuracy at the end by learning rate, and the best rate of each arm against its rival."""

    def best(arm: str) -> str:
        """Name the arm's best experiment: the best for the arm, so the worst for the claim."""
        return ranked({name: evidence.accuracy(name, "end") for name in ARMS[arm][-1]})[-1]

    def behind(arm: str, rival: str) -> list[Estimate]:
        ends = (evidence.accuracy(name, "end") for name in (rival, best(arm)))
        return differences(*ends)

    def judge(
        arm: str,
        text: str,
        ours: Sequence[Estimate],
        statistic: str,
        *,
        above: float = -np.inf,
        below: float = np.inf,
    ) -> Claim:
        return claim(
            f"rates.{arm}",
            text,
            paper="not tested",
            ours=ours,
            statistic=statistic,
            above=above,
            below=below,
        )

    return Results(
        figure="rates",
        title="Learning rates of the arms that fail",
        section="3",
        claim="What fails at the usual learning rate fails at a quarter and at four times of it.",
        meta=evidence.meta(FIGURES["rates"].experiments),
        panels=[
            Panel(
                name="accuracy",
                title="Accuracy at the end",
                x_label="learning rate, as a multiple of the usual one",
                y_label=f"accuracy (avg@{evidence.runs['large_same'][0].config['eval_n']})",
                kind="line",
                series=[
                    points(
                        role,
                        label,
                        {x: evidence.accuracy(name, "end") for x, name in enumerate(names)},
                    )
                    for role, label, names in ARMS.values()
                ],
                ticks=TICKS,
            )
        ],
        claims=[
            judge(
                "failure",
                "at no rate does the larger same-pipeline teacher close much of its gap",
                evidence.recovery(best("failure")),
                "gap recovery at the best of three rates",
                below=0.5,
            ),
            judge(
                "post_same",
                "nor in the second family",
                evidence.recovery(best("post_same")),
                "gap recovery at the best of three rates",
                below=0.5,
            ),
            judge(
                "base_post",
                "at no rate does the other-pattern teacher do as well as the RL'd-base teacher",
                behind("base_post", "base_rl"),
                "difference of the accuracies at the end, to the best of three rates",
                above=0.03,
            ),
            judge(
                "non_overlap",
                "at no rate does the non-overlap support do as well as the student's top-k",
                behind("non_overlap", "baseline"),
                "difference of the accuracies at the end, to the best of three rates",
                above=0.03,
            ),
            judge(
                "k1",
                "at no rate does k = 1 do as well as k = 16 with the same estimator",
                behind("k1", "k16_pg"),
                "difference of the accuracies at the end, to the best of three rates",
                above=0.03,
            ),
        ],
    )
