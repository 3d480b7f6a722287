"""Data selection: which way of choosing prompts helps, and at what cost in entropy (§5.2)?"""

import numpy as np

from analyses.evidence import (
    LAST,
    Evidence,
    accuracy_panel,
    claim,
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


# The preset's benchmarks, of the teacher's kind in the teacher's template, and the others.
TESTS = (None, "other", "original", "other_original")


def analyse(evidence: Evidence) -> Results:
    """Accuracy and overlap ratio for every way of choosing prompts."""
    entropy = [
        evidence.mean(name, "student_entropy", LAST) for name in ("select_mixed", "baseline")
    ]
    gains = {
        test: {
            run: differences(
                evidence.accuracy(run, benchmark=test),
                evidence.accuracy("select_none", benchmark=test),
            )
            for run, _, _ in GAINS.values()
        }
        for test in TESTS
    }
    return Results(
        figure="selection",
        title="Ways of choosing prompts",
        section="5.2",
        claim="Prompts aligned with the teacher's training, by template, by content or both, lead "
        "to the higher accuracy; mixing in other prompts keeps the student's entropy up.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(
                evidence, RUNS, {"rl_student": "teacher"}, title="Teacher's kind of problems"
            ),
            *evidence.crossed_panels(RUNS, {"other": "Other kind of problems"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
        ],
        claims=[
            *(
                claim(
                    f"selection.{name}",
                    text,
                    paper=paper,
                    ours=[
                        first.map(*rest, by=lambda *values: np.mean(values, axis=0))
                        for first, *rest in zip(*(gains[test][run] for test in TESTS), strict=True)
                    ],
                    statistic="difference to no selection of the mean accuracy over training, "
                    "averaged over tests in both templates and of both contents",
                    above=0,
                )
                for name, (run, text, paper) in GAINS.items()
            ),
            *(
                claim(
                    f"selection.{name}_own",
                    f"{name} helps more where it is tested than where it is not",
                    paper="not tested",
                    ours=differences(gains[matched][run], gains[unmatched][run]),
                    statistic=f"that difference, {tested}",
                    above=0,
                )
                for name, run, matched, unmatched, tested in (
                    # Both templates with other problems; both contents in the other template.
                    (
                        "template",
                        "select_template",
                        "other",
                        "other_original",
                        "on other problems in the teacher's − in the other template",
                    ),
                    (
                        "content",
                        "template_original",
                        "original",
                        "other_original",
                        "in the other template on the teacher's − on other problems",
                    ),
                )
            ),
            claim(
                "selection.entropy",
                "mixing in other prompts keeps the student's entropy up",
                paper="higher",
                ours=ratios(*entropy),
                statistic="entropy over the last 5 steps, mixed / template and content",
                above=1,
            ),
        ],
    )
