"""Figure 6: what tells a run that works from one that does not (§4.1)?"""

import numpy as np

from analyses.estimate import Estimate, ratio
from analyses.evidence import Evidence, accuracy_panel, claim, curve_panel
from analyses.results import Results

RUNS = {"success": "RL'd same-size teacher", "failure": "larger same-pipeline teacher"}


def analyse(evidence: Evidence) -> Results:
    """Accuracy and the three alignment curves, success against failure."""
    student, large = evidence.role("student"), evidence.role("large")
    success, failure = evidence.recovery("success"), evidence.recovery("failure")
    share: list[Estimate] = [f.map(s, by=ratio) for f, s in zip(failure, success, strict=True)]
    overlap = {name: evidence.change(name, lambda ds: ds.opd.overlap_ratio()) for name in RUNS}
    advantage = {
        name: evidence.remaining(name, lambda ds: ds.opd.overlap_token_advantage()) for name in RUNS
    }
    gap = {name: evidence.remaining(name, lambda ds: ds.opd.entropy_gap()) for name in RUNS}
    return Results(
        figure="fig06",
        title="Success and failure",
        section="4.1",
        claim="Success comes with a rising overlap, an advantage going to zero and a narrowing "
        "entropy gap; in the failure all three stagnate, though the teacher is stronger.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(
                evidence,
                RUNS,
                {"rl_student": "RL'd teacher", "large": "larger teacher"},
            ),
            curve_panel(evidence, "overlap_ratio", RUNS, title="Overlap ratio"),
            curve_panel(evidence, "overlap_token_advantage", RUNS, title="Overlap-token advantage"),
            curve_panel(evidence, "entropy_gap", RUNS, title="Entropy gap"),
        ],
        claims=[
            claim(
                "fig06.recovery",
                "the RL'd same-size teacher closes the gap",
                paper="> 80 %",
                ours=success,
                test="gap recovery ≥ 0.80",
                holds=lambda r: r >= 0.8,
                opposite=lambda low, high: high < 0,
            ),
            claim(
                "fig06.stronger",
                "the failing teacher is stronger than the student",
                paper="0.55 against 0.28",
                ours=[large.map(student, by=np.subtract)],
                test="teacher − student accuracy ≥ 0.15",
                holds=lambda d: d >= 0.15,
                opposite=lambda low, high: high < 0,
            ),
            claim(
                "fig06.failure",
                "the larger same-pipeline teacher closes little of its gap",
                paper="5 % (fig. 4)",
                ours=share,
                test="recovery ≤ 0.5 × that of the success",
                holds=lambda r: r <= 0.5,
                opposite=lambda low, high: low > 1,
            ),
            claim(
                "fig06.overlap",
                "the overlap ratio rises in the success",
                paper="0.72 → 0.91",
                ours=overlap["success"],
                test="last − first ≥ 0.05",
                holds=lambda d: d >= 0.05,
                opposite=lambda low, high: high < 0,
            ),
            claim(
                "fig06.overlap_flat",
                "the overlap ratio stagnates in the failure",
                paper="flat",
                ours=[
                    f.map(s, by=ratio)
                    for f, s in zip(overlap["failure"], overlap["success"], strict=True)
                ],
                test="its rise ≤ 0.5 × that of the success",
                holds=lambda r: r <= 0.5,
                opposite=lambda low, high: low > 1,
            ),
            claim(
                "fig06.advantage",
                "the overlap-token advantage goes to zero in the success",
                paper="→ 0",
                ours=advantage["success"],
                test="last / first ≤ 0.2",
                holds=lambda r: r <= 0.2,
                opposite=lambda low, high: low > 1,
            ),
            claim(
                "fig06.advantage_flat",
                "the overlap-token advantage stagnates in the failure",
                paper="flat",
                ours=advantage["failure"],
                test="last / first ≥ 0.5",
                holds=lambda r: r >= 0.5,
                opposite=lambda low, high: high < 0.2,
            ),
            claim(
                "fig06.gap",
                "the entropy gap narrows in the success",
                paper="narrows",
                ours=gap["success"],
                test="last / first ≤ 0.5",
                holds=lambda r: r <= 0.5,
                opposite=lambda low, high: low > 1,
            ),
            claim(
                "fig06.gap_flat",
                "the entropy gap stays in the failure",
                paper="flat",
                ours=gap["failure"],
                test="last / first ≥ 0.7",
                holds=lambda r: r >= 0.7,
                opposite=lambda low, high: high < 0.5,
            ),
        ],
    )
