"""Figures 2, 3, 17: which of two comparable teachers suits a base student (§3.1, App. A.3)?"""

from analyses.bars import bar_series
from analyses.evidence import (
    FIRST,
    Evidence,
    accuracy_panel,
    claim,
    curve_panel,
    differences,
)
from analyses.results import Results
from opdprobe.report.panel import Panel

RUNS = {
    "base_rl": "toward the RL'd-base teacher",
    "base_post": "toward the other-pattern teacher",
}
TEACHERS = {"rl_base_large": "RL'd-base teacher", "post_large": "other-pattern teacher"}


def analyse(evidence: Evidence) -> Results:
    """Figure 2: accuracy and overlap ratio of a base student under two teachers."""
    rl, post = (evidence.role(role) for role in TEACHERS)
    overlap = [evidence.mean(name, "overlap_ratio", FIRST) for name in RUNS]
    return Results(
        figure="fig02",
        title="Two teachers of one base student",
        section="3.1",
        claim="The RL'd-base teacher wins and starts with the higher overlap, though it is not the "
        "stronger one: shared thinking patterns decide.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, TEACHERS),
            curve_panel(evidence, "overlap_ratio", RUNS),
        ],
        claims=[
            claim(
                "fig02.wins",
                "the RL'd-base teacher leads to the higher accuracy",
                paper="wins",
                ours=differences(*(evidence.accuracy(name) for name in RUNS)),
                statistic="difference of the mean accuracies over training",
                above=0.03,
            ),
            claim(
                "fig02.overlap_start",
                "the RL'd-base teacher starts with the higher overlap ratio",
                paper="higher",
                ours=differences(*overlap),
                statistic="difference over the first 5 steps",
                above=0,
            ),
            claim(
                "fig02.not_stronger",
                "the RL'd-base teacher is not the stronger one",
                paper="comparable (fig. 3)",
                ours=differences(rl, post),
                statistic="difference of the teachers' accuracies",
                below=0.05,
                repeats="fig03.comparable",
            ),
        ],
    )


def own_accuracy(evidence: Evidence) -> Results:
    """Figure 3: accuracy of the two teachers themselves, by benchmark."""
    rl, post = (evidence.role(role) for role in TEACHERS)
    n = evidence.runs["base_rl"][0].config["eval_n"]
    return Results(
        figure="fig03",
        title="The teachers' own accuracy",
        section="3.1",
        claim="The two teachers are comparable: what their students learn is no matter of their "
        "strength.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            Panel(
                name="accuracy",
                title="Teachers",
                x_label="benchmark",
                y_label=f"accuracy (avg@{n})",
                kind="bar",
                series=[
                    bar_series(
                        [evidence.role(role, benchmark=name) for name in evidence.benchmarks],
                        role=role,
                        label=label,
                    )
                    for role, label in TEACHERS.items()
                ],
                ticks=evidence.benchmarks,
            )
        ],
        claims=[
            claim(
                "fig03.comparable",
                "the two teachers are comparable",
                paper="comparable",
                ours=differences(rl, post),
                statistic="difference of accuracies over all benchmarks",
                above=-0.05,
                below=0.05,
            )
        ],
    )


def by_benchmark(evidence: Evidence) -> Results:
    """Figure 17: figure 2's accuracy, benchmark by benchmark."""
    return Results(
        figure="fig17",
        title="Two teachers, by benchmark",
        section="A.3",
        claim="The RL'd-base teacher wins on every benchmark.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, TEACHERS, title=name, benchmark=name)
            for name in evidence.benchmarks
        ],
        claims=[
            claim(
                f"fig17.{name}",
                f"the RL'd-base teacher leads to the higher accuracy on {name}",
                paper="same trend as figure 2",
                ours=differences(*(evidence.accuracy(run, benchmark=name) for run in RUNS)),
                statistic="difference of the mean accuracies over training",
                above=0,
                repeats="fig02.wins",
            )
            for name in evidence.benchmarks
        ],
    )
