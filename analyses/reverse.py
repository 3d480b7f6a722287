"""Figure 5: does distilling an RL'd student towards weaker patterns undo the RL (§3.3)?"""

import numpy as np

from analyses.evidence import Evidence, accuracy_panel, claim
from analyses.results import Results

RUNS = {"reverse_small": "toward its pre-RL checkpoint", "reverse_large": "toward the larger model"}


def analyse(evidence: Evidence) -> Results:
    """Accuracy of both reverse runs against the pre-RL level."""
    before = evidence.role("student")
    to_pre_rl = {
        name: [after.map(before, by=np.subtract) for after in evidence.accuracy(name)]
        for name in RUNS
    }
    small, large = evidence.accuracy("reverse_small"), evidence.accuracy("reverse_large")
    loss = [
        after.map(start, by=np.subtract)
        for after, start in zip(large, evidence.accuracy("reverse_large", end=0), strict=True)
    ]
    return Results(
        figure="fig05",
        title="Reverse distillation",
        section="3.3",
        claim="The RL'd student falls back to its pre-RL level towards either teacher, also the "
        "larger and stronger one: it inherits patterns, not scale.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(
                evidence,
                RUNS,
                {"student": "pre-RL student", "large": "larger teacher"},
                title="Reverse distillation",
            )
        ],
        claims=[
            claim(
                "fig05.small",
                "towards its own pre-RL checkpoint the student regresses to the pre-RL level",
                paper="0.54 → 0.30 (pre-RL 0.28)",
                ours=to_pre_rl["reverse_small"],
                test="|final − pre-RL accuracy| ≤ 0.10",
                holds=lambda d: abs(d) <= 0.10,
            ),
            claim(
                "fig05.large",
                "towards the larger same-pipeline model it regresses to the pre-RL level as well",
                paper="0.54 → 0.30 (teacher 0.55)",
                ours=to_pre_rl["reverse_large"],
                test="|final − pre-RL accuracy| ≤ 0.10",
                holds=lambda d: abs(d) <= 0.10,
                opposite=lambda low, high: low > 0.10,
            ),
            claim(
                "fig05.loses",
                "the larger teacher costs the student what RL had gained",
                paper="−0.24",
                ours=loss,
                test="final − initial accuracy ≤ −0.15",
                holds=lambda d: d <= -0.15,
                opposite=lambda low, high: low > 0,
            ),
            claim(
                "fig05.same",
                "both curves end at nearly the same accuracy",
                paper="nearly the same",
                ours=[b.map(a, by=np.subtract) for a, b in zip(small, large, strict=True)],
                test="|difference of the final accuracies| ≤ 0.10",
                holds=lambda d: abs(d) <= 0.10,
            ),
        ],
    )
