"""Figure 5: does distilling an RL'd student towards weaker patterns undo the RL (§3.3)?"""

from analyses.evidence import Evidence, accuracy_panel, claim, differences
from analyses.results import Results

RUNS = {"reverse_small": "toward its pre-RL checkpoint", "reverse_large": "toward the larger model"}


def analyse(evidence: Evidence) -> Results:
    """Accuracy of both reverse runs against the pre-RL level."""
    end = {name: evidence.accuracy(name, "end") for name in RUNS}
    pre_rl = evidence.role("student")
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
                ours=differences(end["reverse_small"], pre_rl),
                statistic="accuracy at the end − before RL",
                above=-0.1,
                below=0.1,
            ),
            claim(
                "fig05.large",
                "towards the larger same-pipeline model it regresses to the pre-RL level as well",
                paper="0.54 → 0.30 (teacher 0.55)",
                ours=differences(end["reverse_large"], pre_rl),
                statistic="accuracy at the end − before RL",
                above=-0.1,
                below=0.1,
            ),
            claim(
                "fig05.loses",
                "the larger teacher costs the student what RL had gained",
                paper="−0.24",
                ours=evidence.gain("reverse_large"),
                statistic="accuracy at the end − at the start",
                below=-0.15,
            ),
            claim(
                "fig05.same",
                "both curves end at nearly the same accuracy",
                paper="nearly the same",
                ours=differences(end["reverse_large"], end["reverse_small"]),
                statistic="difference of the accuracies at the end",
                above=-0.1,
                below=0.1,
            ),
        ],
    )
