"""Figure 10: do the prompts that the teacher was trained on help (§5.2)?"""

from analyses.evidence import (
    EVERY,
    LAST,
    Evidence,
    above,
    accuracy_panel,
    at_least,
    below,
    claim,
    curve_panel,
    differences,
    ratios,
)
from analyses.results import Results

RUNS = {"base_rl": "teacher's prompts", "content_other": "other in-domain prompts"}


def analyse(evidence: Evidence) -> Results:
    """Accuracy, overlap ratio, student overlap mass and student entropy for two prompt sets."""
    overlap = [evidence.mean(name, "overlap_ratio", EVERY) for name in RUNS]
    mass = [evidence.mean(name, "student_overlap_mass", EVERY) for name in RUNS]
    entropy = [evidence.mean(name, "student_entropy", LAST) for name in RUNS]
    return Results(
        figure="fig10",
        title="Prompt content",
        section="5.2",
        claim="On the teacher's own prompts the student gets more accurate, with a lower overlap "
        "ratio but more of its mass on the overlap, and with a much lower entropy.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, {"rl_base_large": "teacher"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
            curve_panel(evidence, "student_overlap_mass", RUNS),
            curve_panel(evidence, "student_entropy", RUNS),
        ],
        claims=[
            at_least(
                "fig10.accuracy",
                "the teacher's prompts lead to the higher accuracy",
                paper="better",
                ours=differences(*(evidence.accuracy(name) for name in RUNS)),
                statistic="difference of final accuracies",
                limit=0.02,
            ),
            below(
                "fig10.overlap",
                "the overlap ratio is lower on the teacher's prompts",
                paper="lower",
                ours=differences(*overlap),
                statistic="difference of the means over all steps",
            ),
            above(
                "fig10.mass",
                "the student's mass on the overlap is higher on the teacher's prompts",
                paper="higher",
                ours=differences(*mass),
                statistic="difference of the means over all steps",
            ),
            claim(
                "fig10.entropy",
                "the student's entropy is much lower on the teacher's prompts",
                paper="much lower",
                ours=ratios(*entropy),
                test="teacher's / other prompts over the last 5 steps ≤ 0.80",
                holds=lambda r: r <= 0.8,
                opposite=lambda low, high: low > 1,
            ),
        ],
    )
