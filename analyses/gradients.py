"""Figure 19: does a failing run show in its loss and gradients (App. B.2)?"""

from analyses.dynamics import dynamics_panels
from analyses.evidence import Evidence, claim, curve_panel
from analyses.results import Results
from opdprobe.probes.bootstrap import Estimate, ratio, resample
from opdprobe.probes.quantities import scalar
from opdprobe.report.course import EDGE
from opdprobe.store import Run

RUNS = {"success": "success", "failure": "failure"}
LOGGED = ("loss", "grad_norm")


def analyse(evidence: Evidence) -> Results:
    """Loss, gradient norm and extreme-advantage gap, success against failure."""
    panels = dynamics_panels(evidence, RUNS, LOGGED)
    gap = {name: evidence.remaining(name, "extreme_advantage_size") for name in RUNS}
    start = {
        name: [
            _start(f, name).map(_start(s, name), by=ratio)
            for s, f in zip(evidence.runs["success"], evidence.runs["failure"], strict=True)
        ]
        for name in LOGGED
    }
    return Results(
        figure="fig19",
        title="Loss and gradients",
        section="B.2",
        claim="A failing run starts with a small loss and small gradients and stays there; its "
        "extreme-advantage gap does not close.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            *panels,
            curve_panel(evidence, "extreme_advantage_gap", RUNS),
        ],
        claims=[
            *(
                claim(
                    f"fig19.{name}",
                    f"the failing run starts with the smaller {scalar(name).long_name}",
                    paper="small",
                    ours=start[name],
                    test="mean of the first 5 steps, failure / success < 1, whole interval",
                    holds=lambda r: r < 1,
                    whole_interval=True,
                    opposite=lambda low, high: low > 1,
                )
                for name in LOGGED
            ),
            claim(
                "fig19.gap",
                "the extreme-advantage gap closes in the success",
                paper="→ 0",
                ours=gap["success"],
                test="size, last / first ≤ 0.5",
                holds=lambda r: r <= 0.5,
                opposite=lambda low, high: low > 1,
            ),
            claim(
                "fig19.gap_stays",
                "the extreme-advantage gap stays in the failure",
                paper="stays",
                ours=gap["failure"],
                test="size, last / first ≥ 0.7",
                holds=lambda r: r >= 0.7,
                opposite=lambda low, high: high < 0.5,
            ),
        ],
    )


def _start(run: Run, name: str) -> Estimate:
    # Drop the row of the last evaluation, which has no loss: in a short run it is among the first.
    return resample(run.metrics[name].dropna("step").values[:EDGE])
