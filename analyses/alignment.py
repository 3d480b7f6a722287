"""Figures 6, 20: what distinguishes a run that works from one that fails (§4.1, App. B.3)?"""

from analyses.evidence import Evidence, accuracy_panel, claim, curve_panel, differences, ratios
from analyses.experiments import EXPERIMENTS
from analyses.results import Claim, Results
from opdprobe.report.panel import Panel

LABELS = ("RL'd same-size teacher", "larger same-pipeline teacher")
PAPER = {
    "recovery": "> 80 %",
    "stronger": "0.55 against 0.28",
    "failure": "5 % (fig. 4)",
    "overlap": "0.72 → 0.91",
    "overlap_flat": "flat",
    "advantage": "→ 0",
    "advantage_flat": "flat",
    "gap": "narrows",
    "gap_flat": "flat",
}


def analyse(evidence: Evidence) -> Results:
    """Figure 6: accuracy and the three alignment curves, success against failure."""
    runs = ("success", "failure")
    return Results(
        figure="fig06",
        title="Success and failure",
        section="4.1",
        claim="Success comes with a rising overlap, an advantage going to zero and a narrowing "
        "entropy gap; in the failure all three stagnate, though the teacher is stronger.",
        meta=evidence.meta(runs),
        panels=_panels(evidence, *runs),
        claims=_claims("fig06", evidence, *runs, paper=PAPER),
    )


def larger_student(evidence: Evidence) -> Results:
    """Figure 20: the same with a larger student."""
    runs = ("large_success", "large_failure")
    return Results(
        figure="fig20",
        title="Success and failure of a larger student",
        section="B.3",
        claim="A larger student shows the same signature: overlap, advantage and entropy gap move "
        "in the success and stagnate in the failure.",
        meta=evidence.meta(runs),
        panels=_panels(evidence, *runs),
        claims=_claims("fig20", evidence, *runs, paper=dict.fromkeys(PAPER, "as in figure 6")),
    )


def _panels(evidence: Evidence, *runs: str) -> list[Panel]:
    labels = dict(zip(runs, LABELS, strict=True))
    rl, large = (EXPERIMENTS[name].teacher for name in runs)
    return [
        accuracy_panel(evidence, labels, {rl: "RL'd teacher", large: "larger teacher"}),
        curve_panel(evidence, "overlap_ratio", labels),
        curve_panel(evidence, "overlap_token_advantage", labels),
        curve_panel(evidence, "entropy_gap", labels),
    ]


def _claims(
    figure: str, evidence: Evidence, success: str, failure: str, *, paper: dict[str, str]
) -> list[Claim]:
    student = evidence.role(EXPERIMENTS[failure].student)
    large = evidence.role(EXPERIMENTS[failure].teacher)
    recovery = evidence.recovery(success)
    overlap, advantage, gap = {}, {}, {}
    for name in (success, failure):
        overlap[name] = evidence.change(name, "overlap_ratio")
        advantage[name] = evidence.remaining(name, "overlap_token_advantage")
        gap[name] = evidence.remaining(name, "entropy_gap")
    return [
        claim(
            f"{figure}.recovery",
            "the RL'd same-size teacher closes the gap",
            paper=paper["recovery"],
            ours=recovery,
            statistic="gap recovery",
            above=0.8,
        ),
        claim(
            f"{figure}.stronger",
            "the failing teacher is stronger than the student",
            paper=paper["stronger"],
            ours=differences(large, student),
            statistic="teacher − student accuracy",
            above=0.15,
        ),
        claim(
            f"{figure}.failure",
            "the larger same-pipeline teacher closes little of its gap",
            paper=paper["failure"],
            ours=ratios(evidence.recovery(failure), recovery),
            statistic="recovery / that of the success",
            below=0.5,
            relative_to=recovery,
        ),
        claim(
            f"{figure}.overlap",
            "the overlap ratio rises in the success",
            paper=paper["overlap"],
            ours=overlap[success],
            statistic="last − first",
            above=0.05,
        ),
        claim(
            f"{figure}.overlap_flat",
            "the overlap ratio stagnates in the failure",
            paper=paper["overlap_flat"],
            ours=ratios(overlap[failure], overlap[success]),
            statistic="its rise / that of the success",
            below=0.5,
            relative_to=overlap[success],
        ),
        claim(
            f"{figure}.advantage",
            "the overlap-token advantage goes to zero in the success",
            paper=paper["advantage"],
            ours=advantage[success],
            statistic="last / first",
            below=0.2,
        ),
        claim(
            f"{figure}.advantage_flat",
            "the overlap-token advantage stagnates in the failure",
            paper=paper["advantage_flat"],
            ours=advantage[failure],
            statistic="last / first",
            above=0.5,
        ),
        claim(
            f"{figure}.gap",
            "the entropy gap narrows in the success",
            paper=paper["gap"],
            ours=gap[success],
            statistic="last / first",
            below=0.5,
        ),
        claim(
            f"{figure}.gap_flat",
            "the entropy gap stays in the failure",
            paper=paper["gap_flat"],
            ours=gap[failure],
            statistic="last / first",
            above=0.7,
        ),
    ]
