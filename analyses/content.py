"""Figure 10: do the prompts that the teacher was trained on help (§5.2)?"""

from analyses.evidence import (
    EVERY,
    LAST,
    Evidence,
    accuracy_panel,
    claim,
    curve_panel,
    differences,
    ratios,
)
from analyses.results import Results

RUNS = {"base_rl": "teacher's prompts", "content_other": "other in-domain prompts"}
OTHER = "other"  # problems like those of the other prompts


def analyse(evidence: Evidence) -> Results:
    """Accuracy, overlap ratio, student overlap mass and student entropy for two prompt sets."""
    own = differences(*(evidence.accuracy(name) for name in RUNS))
    other = differences(*(evidence.accuracy(name, benchmark=OTHER) for name in RUNS))
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
            accuracy_panel(
                evidence,
                RUNS,
                {"rl_base_large": "teacher"},
                title="Teacher's kind of problems",
            ),
            *evidence.crossed_panels(RUNS, {OTHER: "Other kind of problems"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
            curve_panel(evidence, "student_overlap_mass", RUNS),
            curve_panel(evidence, "student_entropy", RUNS),
        ],
        claims=[
            claim(
                "fig10.accuracy",
                "the teacher's prompts lead to the higher accuracy on problems like those",
                paper="better",
                ours=own,
                statistic="difference of the mean accuracies over training",
                above=0.02,
            ),
            claim(
                "fig10.accuracy_other",
                "and on problems like the other prompts",
                paper="not tested",
                ours=other,
                statistic="difference of the mean accuracies over training",
                above=0,
            ),
            claim(
                "fig10.interaction",
                "either kind of prompts helps more on problems of its own kind",
                paper="not tested",
                ours=differences(own, other),
                statistic="the first difference − the second",
                above=0,
            ),
            claim(
                "fig10.overlap",
                "the overlap ratio is lower on the teacher's prompts",
                paper="lower",
                ours=differences(*overlap),
                statistic="difference of the means over all steps",
                below=0,
            ),
            claim(
                "fig10.mass",
                "the student's mass on the overlap is higher on the teacher's prompts",
                paper="higher",
                ours=differences(*mass),
                statistic="difference of the means over all steps",
                above=0,
            ),
            claim(
                "fig10.entropy",
                "the student's entropy is much lower on the teacher's prompts",
                paper="much lower",
                ours=ratios(*entropy),
                statistic="teacher's / other prompts over the last 5 steps",
                below=0.8,
            ),
        ],
    )
