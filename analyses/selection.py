"""Data selection: which way of choosing prompts helps, and at what cost in entropy (§5.2)?"""

from analyses.evidence import (
    LAST,
    Evidence,
    above,
    accuracy_panel,
    curve_panel,
    differences,
    ratios,
)
from analyses.results import Results

RUNS = {
    "select_none": "none",
    "select_template": "template",
    "template_original": "content",
    "select_mixed": "mixed",
    "select_divergence": "largest divergence",
    "baseline": "template and content",
}
# The claimed gain of each over no selection. The paper names the largest divergence only in a
# summary.
GAINS = {
    "both": ("baseline", "the teacher's prompts in its own template help", "higher (figs. 9, 10)"),
    "template": ("select_template", "the teacher's template alone helps", "higher (fig. 9)"),
    "content": ("template_original", "the teacher's prompts alone help", "higher (fig. 10)"),
    "mixed": ("select_mixed", "a mix of the teacher's and other prompts helps", "helps"),
    "max_divergence": (
        "select_divergence",
        "the prompts on which the two models differ most help",
        "not in the paper",
    ),
}


def analyse(evidence: Evidence) -> Results:
    """Accuracy and overlap ratio for every way of choosing prompts."""
    none = evidence.accuracy("select_none")
    entropy = [
        evidence.mean(name, "student_entropy", LAST) for name in ("select_mixed", "baseline")
    ]
    return Results(
        figure="selection",
        title="Ways of choosing prompts",
        section="5.2",
        claim="Prompts aligned with the teacher's training, by template, by content or both, lead "
        "to the higher accuracy; mixing in other prompts keeps the student's entropy up.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, {"rl_student": "teacher"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
        ],
        claims=[
            *(
                above(
                    f"selection.{name}",
                    text,
                    paper=paper,
                    ours=differences(evidence.accuracy(run), none),
                    statistic="difference to the final accuracy without selection",
                )
                for name, (run, text, paper) in GAINS.items()
            ),
            above(
                "selection.entropy",
                "mixing in other prompts keeps the student's entropy up",
                paper="higher",
                ours=ratios(*entropy),
                statistic="entropy over the last 5 steps, mixed / template and content",
                limit=1,
            ),
        ],
    )
