"""Figures 8, 21: does SFT on the teacher's rollouts, before OPD, help (§5.1, App. C.2)?"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analyses.evidence import (
    EVERY,
    FIRST,
    Evidence,
    above,
    accuracy_panel,
    at_least,
    below,
    curve_panel,
    differences,
    ratios,
)
from analyses.results import Results
from opdprobe.probes.bootstrap import Estimate, resample
from opdprobe.store.schema import MODELS

RUNS = {"cold_start": "cold start", "no_cold_start": "no cold start"}


def analyse(evidence: Evidence) -> Results:
    """Figure 8: accuracy, overlap ratio and entropy gap, with a cold start and without."""
    gap = [evidence.mean(name, "entropy_gap", FIRST) for name in RUNS]
    overlap = [evidence.mean(name, "overlap_ratio", FIRST) for name in RUNS]
    wobble = [
        [resample(np.abs(np.diff(values))) for values in evidence.by_step(name, "overlap_ratio")]
        for name in RUNS
    ]
    return Results(
        figure="fig08",
        title="Cold start",
        section="5.1",
        claim="After SFT on the teacher's rollouts, OPD starts higher, runs smoother and reaches a "
        "higher ceiling.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, {"cold_teacher": "teacher"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
            curve_panel(evidence, "entropy_gap", RUNS),
        ],
        claims=[
            at_least(
                "fig08.final",
                "OPD after a cold start ends with the higher accuracy",
                paper="higher ceiling",
                ours=differences(*(evidence.accuracy(name) for name in RUNS)),
                statistic="difference of final accuracies",
                limit=0.03,
            ),
            at_least(
                "fig08.starts_higher",
                "OPD after a cold start begins with the higher accuracy",
                paper="higher",
                ours=differences(*(evidence.accuracy(name, end=0) for name in RUNS)),
                statistic="difference of initial accuracies",
                limit=0.05,
            ),
            above(
                "fig08.overlap_start",
                "a cold start begins with the higher overlap ratio",
                paper="about 0.75 against 0.55",
                ours=differences(*overlap),
                statistic="difference over the first 5 steps",
            ),
            below(
                "fig08.gap_start",
                "a cold start begins with the smaller entropy gap",
                paper="smaller",
                ours=ratios(*gap),
                statistic="with / without over the first 5 steps",
                limit=1,
            ),
            below(
                "fig08.smoother",
                "after a cold start the overlap ratio moves smoother",
                paper="smoother",
                ours=ratios(*wobble),
                statistic="mean |change of the overlap ratio from step to step|, with / without",
                limit=1,
            ),
        ],
    )


def mass(evidence: Evidence) -> Results:
    """Figure 21: both models' mass on the overlap, with a cold start and without."""
    means = {
        model: [evidence.mean(name, f"{model}_overlap_mass", EVERY) for name in RUNS]
        for model in MODELS
    }
    spread = [
        [_deviation(values) for values in evidence.by_step(name, "student_overlap_mass")]
        for name in RUNS
    ]
    return Results(
        figure="fig21",
        title="Overlap mass after a cold start",
        section="C.2",
        claim="After a cold start the mass on the shared tokens is high and stable; without it is "
        "low and unstable.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            replace(
                curve_panel(evidence, f"{model}_overlap_mass", RUNS),
                title=f"{model.capitalize()} mass",
            )
            for model in MODELS
        ],
        claims=[
            *(
                above(
                    f"fig21.{model}_mass",
                    f"after a cold start the {model}'s mass on the overlap is higher",
                    paper="high against low",
                    ours=differences(*means[model]),
                    statistic="difference of the means over all steps",
                )
                for model in MODELS
            ),
            below(
                "fig21.steadier",
                "after a cold start the student's mass on the overlap is steadier",
                paper="stable against unstable",
                ours=ratios(*spread),
                statistic="standard deviation over the steps, with / without",
                limit=1,
            ),
        ],
    )


def _deviation(values: NDArray[np.float64]) -> Estimate:
    """Estimate the standard deviation; the bootstrap resamples steps."""
    centred = values - values.mean()
    return resample(centred**2).map(
        resample(centred),
        # For equal numbers, rounding can put the mean of squares below the squared mean.
        by=lambda square, mean: np.sqrt(np.maximum(square - mean**2, 0)),
    )
