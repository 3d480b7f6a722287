"""Figure 1: the paper's three headlines in one strip."""

from analyses.bars import recovery_panel
from analyses.evidence import (
    Evidence,
    accuracy_panel,
    claim,
    curve_panel,
    differences,
)
from analyses.results import Results

BARS = {
    ("before", "larger teacher"): ["large_same"],
    ("after", "larger teacher after RL"): ["large_rl"],
}
REVERSE = {
    "reverse_small": "toward its pre-RL checkpoint",
    "reverse_large": "toward the larger model",
}
OVERLAP = {"success": "RL'd same-size teacher", "failure": "larger same-pipeline teacher"}


def analyse(evidence: Evidence) -> Results:
    """Gap recovery, reverse distillation and overlap ratio."""
    rise = {name: evidence.change(name, "overlap_ratio") for name in OVERLAP}
    return Results(
        figure="fig01",
        title="Overview",
        section="1",
        claim="A teacher has to know something new, not to be larger; distilling backwards shows "
        "that the student inherits patterns, not scale; and success shows in a rising overlap.",
        meta=evidence.meta(["large_same", "large_rl", *REVERSE, "success", "failure"]),
        panels=[
            recovery_panel(evidence, BARS, ["student's family"]),
            accuracy_panel(
                evidence,
                REVERSE,
                {"student": "pre-RL student", "large": "larger model"},
                title="Reverse distillation",
            ),
            curve_panel(evidence, "overlap_ratio", OVERLAP),
        ],
        claims=[
            claim(
                "fig01.recovery",
                "after RL the larger teacher closes more of its gap",
                paper="5.3 % → 16.9 %",
                ours=differences(evidence.recovery("large_rl"), evidence.recovery("large_same")),
                statistic="difference of the gap recoveries",
                above=0.1,
                repeats="fig04.family1",
            ),
            claim(
                "fig01.reverse",
                "towards the larger same-pipeline model the RL'd student regresses to the pre-RL "
                "level",
                paper="0.54 → 0.30 (pre-RL 0.28)",
                ours=differences(
                    evidence.accuracy("reverse_large", "end"), evidence.role("student")
                ),
                statistic="accuracy at the end − before RL",
                above=-0.1,
                below=0.1,
                repeats="fig05.large",
            ),
            claim(
                "fig01.overlap",
                "the overlap ratio rises more in the success than in the failure",
                paper="0.72 → 0.91 against flat",
                ours=differences(rise["success"], rise["failure"]),
                statistic="difference of their last − first",
                above=0.03,
            ),
        ],
    )
