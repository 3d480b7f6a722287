"""Figures 15 and 16: how many tokens does the loss need (§6.3)?"""

from analyses.dynamics import dynamics_panels, largest_rise, logged, points, spike
from analyses.evidence import (
    Evidence,
    accuracy_panel,
    claim,
    differences,
    ratios,
)
from analyses.registry import FIGURES
from analyses.results import Results
from opdprobe.report.panel import Panel

# `baseline` is k = 16. A single token has no direct gradient, so k = 1 uses the policy gradient.
RUNS = {
    "sampled": "sampled token",
    "k1_pg": "k = 1",
    "k4": "k = 4",
    "baseline": "k = 16",
    "k64": "k = 64",
}
ALSO = {
    "k4_pg": "k = 4, policy gradient",
    "k16_pg": "k = 16, policy gradient",
    "k64_pg": "k = 64, policy gradient",
}
TICKS = ("sampled", "1", "4", "16", "64")
# Tick to experiment.
DIRECT = {2: "k4", 3: "baseline", 4: "k64"}
POLICY_GRADIENT = {0: "sampled", 1: "k1_pg", 2: "k4_pg", 3: "k16_pg", 4: "k64_pg"}


def analyse(evidence: Evidence) -> Results:
    """Accuracy for a sampled token and for top-k lists of several sizes, by both estimators."""
    final = {name: evidence.accuracy(name, "end") for name in FIGURES["fig15"].experiments}
    whole = {name: evidence.accuracy(name) for name in final}
    return Results(
        figure="fig15",
        title="Support size",
        section="6.3",
        claim="Only k = 1 is clearly worse: a few tokens do as well as many, and as the sampled "
        "token.",
        meta=evidence.meta(FIGURES["fig15"].experiments),
        panels=[
            accuracy_panel(evidence, RUNS | ALSO, {}),
            Panel(
                name="final_accuracy",
                title="Final accuracy",
                x_label="tokens in the loss, k",
                y_label=f"accuracy (avg@{evidence.runs['baseline'][0].config['eval_n']})",
                kind="line",
                series=[
                    points(role, label, {x: final[name] for x, name in names.items()})
                    for role, label, names in (
                        ("direct", "direct gradient", DIRECT),
                        ("policy_gradient", "policy gradient", POLICY_GRADIENT),
                    )
                ],
                ticks=TICKS,
            ),
        ],
        claims=[
            claim(
                "fig15.k1_worse",
                "k = 1 is clearly worse than k = 16 with the same estimator",
                paper="clearly worse",
                ours=differences(whole["k16_pg"], whole["k1_pg"]),
                statistic="difference of the mean accuracies over training",
                above=0.03,
            ),
            *(
                claim(
                    f"fig15.flat_{k}",
                    f"k = {k} does as well as k = 64",
                    paper="nearly the same",
                    ours=differences(whole[name], whole["k64"]),
                    statistic="difference of the mean accuracies over training",
                    above=-0.03,
                    below=0.03,
                )
                for k, name in ((4, "k4"), (16, "baseline"))
            ),
            claim(
                "fig15.sampled_close",
                "the sampled token does as well as k = 16 with the same estimator",
                paper="not clearly worse",
                ours=differences(whole["sampled"], whole["k16_pg"]),
                statistic="difference of the mean accuracies over training",
                above=-0.05,
                below=0.05,
            ),
        ],
    )


def dynamics(evidence: Evidence) -> Results:
    """Overlap ratio, student entropy and gradient norm by step, by support size."""
    spikes = {name: logged(evidence, name, "grad_norm", spike) for name in ("k1_pg", "k16_pg")}
    rises = {
        name: logged(evidence, name, "student_entropy", largest_rise)
        for name in ("k1_pg", "k16_pg")
    }
    return Results(
        figure="fig16",
        title="Dynamics by support size",
        section="6.3",
        claim="k = 1 is unstable: entropy and gradient norm show spikes.",
        meta=evidence.meta(FIGURES["fig16"].experiments),
        panels=dynamics_panels(evidence, RUNS),
        claims=[
            claim(
                "fig16.k1_unstable",
                "with k = 1 the gradient norm has higher spikes than with k = 16",
                paper="spikes",
                ours=ratios(spikes["k1_pg"], spikes["k16_pg"]),
                statistic="largest / median gradient norm, k = 1 / k = 16 by policy gradient",
                above=1.5,
            ),
            claim(
                "fig16.entropy_spike",
                "with k = 1 the student's entropy has larger spikes than with k = 16",
                paper="spikes",
                ours=ratios(rises["k1_pg"], rises["k16_pg"]),
                statistic="largest rise of the entropy in one step, k = 1 / k = 16 by policy "
                "gradient",
                above=1,
            ),
        ],
    )
