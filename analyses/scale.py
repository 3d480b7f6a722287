"""Figure 4: which helps more, a larger teacher of the same pipeline or RL of it (§3.2)?"""

from dataclasses import replace

from analyses.bars import recovery_panel
from analyses.evidence import Evidence, accuracy_panel, claim, differences
from analyses.experiments import EXPERIMENTS
from analyses.results import Results
from opdprobe.report.panel import Panel

# Runs before and after the teacher's RL, one pair per family (paper: R1-Distill; Qwen3).
FAMILIES = {"Family 1": ("large_same", "large_rl"), "Family 2": ("post_same", "post_rl")}
PAPER = ("5.3 % → 16.9 % (R1-Distill)", "15.6 % → 58.6 % (Qwen3)")
# Plotting roles and labels, for both families: they share one legend.
LINES = {"failure": "before RL", "success": "after RL"}
REFERENCES = {"large": "teacher before RL", "rl_large": "teacher after RL"}


def analyse(evidence: Evidence) -> Results:
    """Accuracy and gap recovery, before and after the teacher's RL, for two families."""
    bars = dict(zip(LINES.items(), zip(*FAMILIES.values(), strict=True), strict=True))
    return Results(
        figure="fig04",
        title="The teacher before and after RL",
        section="3.2",
        claim="A larger teacher of the student's own pipeline closes little of the gap; the same "
        "teacher after RL closes far more: it has something new to teach.",
        meta=evidence.meta([name for pair in FAMILIES.values() for name in pair]),
        panels=[
            *(_accuracy(evidence, family) for family in FAMILIES),
            recovery_panel(evidence, bars, list(FAMILIES)),
        ],
        claims=[
            claim(
                f"fig04.family{i}",
                f"after RL the larger teacher closes more of its gap, family {i}",
                paper=paper,
                ours=differences(evidence.recovery(after), evidence.recovery(before)),
                statistic="difference of the gap recoveries",
                above=0.1,
            )
            for i, ((before, after), paper) in enumerate(
                zip(FAMILIES.values(), PAPER, strict=True), start=1
            )
        ],
    )


def _accuracy(evidence: Evidence, family: str) -> Panel:
    runs = FAMILIES[family]
    teachers = [EXPERIMENTS[run].teacher for run in runs]
    panel = accuracy_panel(
        evidence,
        dict(zip(runs, LINES.values(), strict=True)),
        dict(zip(teachers, REFERENCES.values(), strict=True)),
        title=family,
    )
    return replace(
        panel,
        name=f"accuracy_{runs[0]}",
        series=[replace(s, role=r) for s, r in zip(panel.series, LINES, strict=True)],
        references=[replace(s, role=r) for s, r in zip(panel.references, REFERENCES, strict=True)],
    )
