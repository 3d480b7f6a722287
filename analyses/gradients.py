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
    ends = {"starts with": slice(EDGE), "ends with": slice(-EDGE, None)}
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
                    f"fig19.{name}" + "_end" * (part != "starts with"),
                    f"the failing run {part} the smaller {scalar(name).long_name}",
                    paper="small" if part == "starts with" else "stays small",
                    ours=[
                        _mean(f, name, where).map(_mean(s, name, where), by=ratio)
                        for s, f in zip(
                            evidence.runs["success"], evidence.runs["failure"], strict=True
                        )
                    ],
                    statistic=f"mean of the {'first' if where.start is None else 'last'} {EDGE} "
                    "steps, failure / success",
                    below=1,
                )
                for part, where in ends.items()
                for name in LOGGED
            ),
            claim(
                "fig19.gap",
                "the extreme-advantage gap closes in the success",
                paper="→ 0",
                ours=gap["success"],
                statistic="size, last / first",
                below=0.5,
            ),
            claim(
                "fig19.gap_stays",
                "the extreme-advantage gap stays in the failure",
                paper="stays",
                ours=gap["failure"],
                statistic="size, last / first",
                above=0.7,
            ),
        ],
    )


def _mean(run: Run, name: str, where: slice) -> Estimate:
    # Drop the row of the last evaluation, which has no loss: in a short run it is among the first.
    return resample(run.metrics[name].dropna("step").values[where])
