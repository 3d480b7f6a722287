"""Figures 9, 22: do prompts in the wording of the teacher's RL help (§5.2, App. C.4)?"""

from analyses.evidence import FIRST, Evidence, accuracy_panel, claim, curve_panel, differences
from analyses.results import Results

RUNS = {"baseline": "teacher's template", "template_original": "original template"}
REFERENCES = {"rl_student": "teacher"}
OTHER = "original"  # the same kind of problems in the other wording


def analyse(evidence: Evidence) -> Results:
    """Figure 9: accuracy and overlap ratio for two templates of the same questions."""
    overlap = [evidence.mean(name, "overlap_ratio", FIRST) for name in RUNS]
    own = differences(*(evidence.accuracy(name) for name in RUNS))
    other = differences(*(evidence.accuracy(name, benchmark=OTHER) for name in RUNS))
    return Results(
        figure="fig09",
        title="Prompt template",
        section="5.2",
        claim="With the teacher's own template the student gets more accurate, and the overlap is "
        "higher from the start.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, REFERENCES, title="Teacher's template"),
            *evidence.crossed_panels(RUNS, {OTHER: "Original template"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
        ],
        claims=[
            claim(
                "fig09.accuracy",
                "the teacher's template leads to the higher accuracy on prompts in that template",
                paper="higher",
                ours=own,
                statistic="difference of the mean accuracies over training",
                above=0.02,
            ),
            claim(
                "fig09.accuracy_other",
                "and on prompts in the original template",
                paper="not tested",
                ours=other,
                statistic="difference of the mean accuracies over training",
                above=0,
            ),
            claim(
                "fig09.interaction",
                "the teacher's template helps more where it is tested than where it is not",
                paper="not tested",
                ours=differences(own, other),
                statistic="the first difference − the second",
                above=0,
            ),
            claim(
                "fig09.overlap_start",
                "with the teacher's template the overlap ratio is higher from the start",
                paper="higher",
                ours=differences(*overlap),
                statistic="difference over the first 5 steps",
                above=0,
            ),
        ],
    )


def by_benchmark(evidence: Evidence) -> Results:
    """Figure 22: figure 9's accuracy, benchmark by benchmark, and the gap recovery over all."""
    return Results(
        figure="fig22",
        title="Prompt template, by benchmark",
        section="C.4",
        claim="With the teacher's own template the student recovers more of the gap.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, REFERENCES, title=name, benchmark=name)
            for name in evidence.benchmarks
        ],
        claims=[
            claim(
                "fig22.recovery",
                "the teacher's template recovers more of the gap",
                paper="80 → 85 %",
                ours=differences(*(evidence.recovery(name) for name in RUNS)),
                statistic="difference of the gap recoveries over all benchmarks",
                above=0,
                repeats="fig09.accuracy",
            )
        ],
    )
