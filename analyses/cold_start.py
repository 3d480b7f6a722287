"""Figures 8, 21: does SFT on the teacher's rollouts, before OPD, help (§5.1, App. C.2)?"""

from dataclasses import replace

from analyses.evidence import (
    EVERY,
    FIRST,
    Evidence,
    accuracy_panel,
    claim,
    curve_panel,
    differences,
    ratios,
)
from analyses.results import Results
from opdprobe.store.schema import MODELS

RUNS = {"cold_start": "cold start", "no_cold_start": "no cold start"}
LONG = "no_cold_start_long"


def analyse(evidence: Evidence) -> Results:
    """Figure 8: accuracy, overlap ratio and entropy gap, with a cold start and without."""
    gap = [evidence.mean(name, "entropy_gap", FIRST) for name in RUNS]
    overlap = [evidence.mean(name, "overlap_ratio", FIRST) for name in RUNS]
    end = {name: evidence.accuracy(name, "end") for name in (*RUNS, LONG)}
    return Results(
        figure="fig08",
        title="Cold start",
        section="5.1",
        claim="After SFT on the teacher's rollouts, OPD starts higher, runs smoother and reaches a "
        "higher ceiling.",
        meta=evidence.meta([*RUNS, LONG]),
        panels=[
            accuracy_panel(
                evidence,
                RUNS | {LONG: "no cold start, as many rollouts"},
                {"cold_teacher": "teacher"},
            ),
            curve_panel(evidence, "overlap_ratio", RUNS),
            curve_panel(evidence, "entropy_gap", RUNS),
        ],
        claims=[
            claim(
                "fig08.ceiling",
                "a cold start and OPD end with the higher accuracy than OPD on as many rollouts as "
                "both together",
                paper="higher ceiling",
                ours=differences(end["cold_start"], end[LONG]),
                statistic="difference of the accuracies at the end",
                above=0.03,
            ),
            claim(
                "fig08.final",
                "OPD after a cold start ends with the higher accuracy than as many steps without",
                paper="higher",
                ours=differences(end["cold_start"], end["no_cold_start"]),
                statistic="difference of the accuracies at the end",
                above=0.03,
            ),
            claim(
                "fig08.adds",
                "OPD adds to what the cold start has reached",
                paper="rises",
                ours=evidence.gain("cold_start"),
                statistic="accuracy at the end − at the start",
                above=0.03,
            ),
            claim(
                "fig08.starts_higher",
                "OPD after a cold start begins with the higher accuracy",
                paper="higher",
                ours=differences(*(evidence.start(name) for name in RUNS)),
                statistic="difference of the accuracies before OPD",
                above=0.05,
            ),
            claim(
                "fig08.overlap_start",
                "a cold start begins with the higher overlap ratio",
                paper="about 0.75 against 0.55",
                ours=differences(*overlap),
                statistic="difference over the first 5 steps",
                above=0,
            ),
            claim(
                "fig08.gap_start",
                "a cold start begins with the smaller entropy gap",
                paper="smaller",
                ours=ratios(*gap),
                statistic="with / without over the first 5 steps",
                below=1,
            ),
            claim(
                "fig08.smoother",
                "after a cold start the overlap ratio moves smoother",
                paper="smoother",
                ours=differences(*(evidence.unrest(name, "overlap_ratio") for name in RUNS)),
                statistic="mean squared change from step to step beyond that of drawing prompts, "
                "with − without",
                below=0,
            ),
        ],
    )


def mass(evidence: Evidence) -> Results:
    """Figure 21: both models' mass on the overlap, with a cold start and without."""
    means = {
        model: [evidence.mean(name, f"{model}_overlap_mass", EVERY) for name in RUNS]
        for model in MODELS
    }
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
                claim(
                    f"fig21.{model}_mass",
                    f"after a cold start the {model}'s mass on the overlap is higher",
                    paper="high against low",
                    ours=differences(*means[model]),
                    statistic="difference of the means over all steps",
                    above=0,
                )
                for model in MODELS
            ),
            claim(
                "fig21.steadier",
                "after a cold start the student's mass on the overlap is steadier",
                paper="stable against unstable",
                ours=differences(*(evidence.unrest(name, "student_overlap_mass") for name in RUNS)),
                statistic="mean squared change from step to step beyond that of drawing prompts, "
                "with − without",
                below=0,
            ),
        ],
    )
