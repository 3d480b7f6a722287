"""Negative controls: where there is nothing to learn, or nothing right, do our numbers say so?"""

from analyses.evidence import FIRST, Evidence, accuracy_panel, claim, curve_panel, differences
from analyses.results import Claim, Results

RUNS = {
    "baseline": "RL'd teacher",
    "control_self": "the student itself",
    "control_base_self": "the base student itself",
    "control_still": "RL'd teacher, learning rate 0",
    "control_permuted": "RL'd teacher, tokens permuted",
}
NOTHING = {
    "control_self": "with the student itself as the teacher",
    "control_base_self": "with the base student itself as the teacher",
    "control_still": "at a learning rate of 0",
}


def analyse(evidence: Evidence) -> Results:
    """Accuracy and overlap ratio of runs that can learn nothing, or nothing right."""
    return Results(
        figure="controls",
        title="Runs that can learn nothing right",
        section="4.1",
        claim="Without anything to learn nothing moves; from a teacher of the wrong tokens nothing "
        "is gained.",
        meta=evidence.meta(list(RUNS)),
        panels=[
            accuracy_panel(evidence, RUNS, {"rl_student": "RL'd teacher itself"}),
            curve_panel(evidence, "overlap_ratio", RUNS),
        ],
        claims=[
            *(one for name, text in NOTHING.items() for one in _unmoved(evidence, name, text)),
            claim(
                "controls.permuted",
                "a teacher of permuted tokens teaches nothing",
                paper="not tested",
                ours=evidence.gain("control_permuted"),
                statistic="accuracy at the end − at the start",
                below=0.05,
            ),
            claim(
                "controls.permuted_overlap",
                "and the overlap ratio with it begins lower",
                paper="not tested",
                ours=differences(
                    *(
                        evidence.mean(name, "overlap_ratio", FIRST)
                        for name in ("control_permuted", "baseline")
                    )
                ),
                statistic="difference to the RL'd teacher's over the first 5 steps",
                below=0,
            ),
        ],
    )


def _unmoved(evidence: Evidence, name: str, text: str) -> list[Claim]:
    control = name.removeprefix("control_")
    return [
        claim(
            f"controls.{control}_accuracy",
            f"{text} accuracy does not change",
            paper="not tested",
            ours=evidence.gain(name),
            statistic="accuracy at the end − at the start",
            above=-0.05,
            below=0.05,
        ),
        claim(
            f"controls.{control}_overlap",
            f"{text} the overlap ratio does not change",
            paper="not tested",
            ours=evidence.change(name, "overlap_ratio"),
            statistic="last − first",
            above=-0.02,
            below=0.02,
        ),
    ]
