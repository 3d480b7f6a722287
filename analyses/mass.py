"""Figure 18: how much of either model's probability lies on the shared tokens (App. B.1)?"""

from analyses.evidence import EVERY, Evidence, claim, curve_series
from analyses.results import Results
from opdprobe.report.panel import Panel

RUNS = {"success": "Success", "failure": "Failure"}
MODELS = {"student": "student mass", "teacher": "teacher mass"}


def analyse(evidence: Evidence) -> Results:
    """Overlap mass of both models by step, in the success and in the failure."""
    panels = [
        Panel(
            name=name,
            title=title,
            x_label="training step",
            y_label="overlap mass",
            kind="line",
            series=[
                curve_series(evidence, name, f"{model}_overlap_mass", role=model, label=label)
                for model, label in MODELS.items()
            ],
        )
        for name, title in RUNS.items()
    ]
    return Results(
        figure="fig18",
        title="Overlap mass",
        section="B.1",
        claim="The shared tokens carry 97 to 99 % of either model's probability throughout.",
        meta=evidence.meta(list(RUNS)),
        panels=panels,
        claims=[
            claim(
                f"fig18.{model}",
                f"the {model}'s mass on the overlap stays near one in the success",
                paper="97 to 99 %",
                ours=evidence.mean("success", f"{model}_overlap_mass", EVERY),
                statistic="mean over all steps",
                above=0.95,
            )
            for model in MODELS
        ],
    )
