"""Figure 7: are the shared tokens enough to learn from (§4.2)?"""

import numpy as np

from analyses.evidence import Evidence, accuracy_panel, claim, curve_panel, differences
from analyses.results import Results
from opdprobe.report.course import EDGE
from opdprobe.report.estimate import exact
from opdprobe.store import Run

RUNS = {
    "baseline": "student top-k",
    "support_overlap": "overlap",
    "support_non_overlap": "non-overlap",
}


def analyse(evidence: Evidence) -> Results:
    """Accuracy and overlap ratio for three supports of one loss."""
    student, overlap, rest = (evidence.accuracy(name) for name in RUNS)
    falls = [_fall(run) for run in evidence.runs["support_non_overlap"]]
    return Results(
        figure="fig07",
        title="Supports of the loss",
        section="4.2",
        claim="Training on the overlap alone does as well as on the student's top-k; training on "
        "the non-overlapping tokens is clearly weaker.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, {"rl_student": "teacher"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
        ],
        claims=[
            claim(
                "fig07.overlap",
                "the overlap support does as well as the student's top-k",
                paper="nearly the same",
                ours=differences(overlap, student),
                statistic="difference of the mean accuracies over training",
                above=-0.03,
                below=0.03,
            ),
            claim(
                "fig07.non_overlap",
                "the non-overlap support is clearly weaker",
                paper="clearly weaker",
                ours=differences(rest, student),
                statistic="difference of the mean accuracies over training",
                below=-0.1,
            ),
            claim(
                "fig07.dip",
                "on the non-overlap support the overlap ratio falls first",
                paper="falls",
                ours=[exact(fall) for fall, _ in falls],
                statistic="first − lowest (5-step means)",
                above=0.02,
            ),
            claim(
                "fig07.recovers",
                "and then partly recovers",
                paper="partly recovers",
                ours=[
                    exact(regained / fall if fall >= 0.02 else np.nan) for fall, regained in falls
                ],
                statistic="share of a fall ≥ 0.02 that is regained",
                above=0.1,
                below=1,
            ),
        ],
    )


def _fall(run: Run) -> tuple[float, float]:
    """Return how far the overlap ratio falls below its start, and its regain (5-step means).

    NaN for a run of fewer than ten steps: two such means share steps, and do not tell.
    """
    values = run.metrics["overlap_ratio"].dropna("step").values
    if len(values) < 2 * EDGE:
        return np.nan, np.nan
    smooth = np.convolve(values, np.ones(EDGE) / EDGE, "valid")
    return float(smooth[0] - smooth.min()), float(smooth[-1] - smooth.min())
