"""Figure 27: do the signals of a failing teacher cancel when they are summed (§6.2)?

The arms' gradients are compared over training. The arms of the lower panels have teachers of one
size, before and after RL, so that neither size nor the student's capacity sets them apart.
"""

from collections.abc import Sequence

import numpy as np

from analyses.bars import bar_series
from analyses.dynamics import points
from analyses.evidence import FIRST, Evidence, claim, differences, ratios
from analyses.experiments import POINTS
from analyses.registry import FIGURES
from analyses.results import Claim, Results
from opdprobe.probes.bootstrap import Estimate, ratio
from opdprobe.report.estimate import exact
from opdprobe.report.panel import Panel

ARMS = {"success": "RL'd same-size teacher", "failure": "larger same-pipeline teacher"}
LATER = {"success": (48, 192), "failure": (96, 192)}  # steps at which trained students are measured
RL = {
    "before": ("before RL", ("failure", "post_same")),
    "after": ("after RL", ("large_rl", "post_rl")),
}
LITTLE = 0.05
"""A cosine whose size is below this is that of directions that have nothing in common."""
EARLY = "step 48 (success) or 96 (failure)"
KNOWN = "; known before but for four of the five RL'd students"


def analyse(evidence: Evidence) -> Results:
    """Norms, cosines and spectrum of the gradients, success against failure, over training."""
    experiments = FIGURES["fig27"].experiments
    read = _Measured(evidence)
    numbers = {
        "cosine_between": ("Cosine between prompts", "cosine"),
        "cosine_within": ("Cosine within a prompt", "cosine"),
        "over_chance": ("What survives the sum", "share / share by chance"),
        "token_norm": ("Gradient of a token", "norm [nats]"),
    }
    return Results(
        figure="fig27",
        title="Do a failing teacher's signals cancel?",
        section="6.2",
        claim="A failing teacher's signals per token are large and point in too many directions, "
        "so that they cancel in the sum; the paper supposes it and does not test it.",
        meta=evidence.meta(experiments),
        panels=[
            *(
                Panel(
                    name=name,
                    title=title,
                    x_label="training step",
                    y_label=label,
                    kind="line",
                    series=[
                        points(
                            arm, ARMS[arm], {step: read(arm, step, name) for step in POINTS[arm]}
                        )
                        for arm in ARMS
                    ],
                )
                for name, (title, label) in numbers.items()
            ),
            Panel(
                name="spectrum",
                title="Spectrum, before training",
                x_label="eigenvalue of the prompts' cosines",
                y_label="share",
                kind="line",
                series=[
                    points(arm, ARMS[arm], dict(enumerate(read.spectrum(arm, 0)))) for arm in ARMS
                ],
                ticks=tuple(str(i + 1) for i in range(len(read.spectrum("success", 0)))),
            ),
            Panel(
                name="same_size",
                title="As (a), before and after RL",
                x_label="family and step",
                y_label="cosine",
                kind="bar",
                series=[
                    bar_series(
                        [read(arm, step, "cosine_between") for arm in arms for step in (0, 96)],
                        role=role,
                        label=text,
                    )
                    for role, (text, arms) in RL.items()
                ],
                ticks=("1, start", "1, later", "2, start", "2, later"),
            ),
        ],
        claims=_claims(evidence, read),
    )


class _Measured:
    """What was measured at an arm's steps, one estimate per seed."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    def _found(self, arm: str, step: int) -> list[dict]:
        name, end = POINTS[arm][step]
        return [found[end] for found in self._evidence.measured["coherence", name]]

    def __call__(self, arm: str, step: int, number: str) -> list[Estimate]:
        """Return a number at a step; ``over_chance``: what survives, over that by chance."""
        found = self._found(arm, step)
        if number == "over_chance":
            return [exact(one["survives"] / one["by_chance"]) for one in found]
        return [exact(one[number]) for one in found]

    def mean(self, arm: str, steps: Sequence[int], number: str) -> list[Estimate]:
        """Return the mean of a number over some steps."""
        first, *others = (self(arm, step, number) for step in steps)
        return [
            one.map(*rest, by=lambda *values: np.mean(values, axis=0))
            for one, *rest in zip(first, *others, strict=True)
        ]

    def spectrum(self, arm: str, step: int) -> list[list[Estimate]]:
        """Return the shares of the largest eigenvalues, the largest first."""
        shares = zip(*(one["spectrum"] for one in self._found(arm, step)), strict=True)
        return [[exact(value) for value in rank] for rank in shares]


def _claims(evidence: Evidence, read: _Measured) -> list[Claim]:
    between, within = "cosine_between", "cosine_within"
    apart = "success − failure"
    return [
        claim(
            "fig27.cancel",
            "while the success learns, its prompts' gradients agree more than the failure's",
            paper="supposed",
            ours=differences(
                read.mean("success", (0, 48), between), read.mean("failure", (0, 96), between)
            ),
            statistic=f"cosine between prompts, mean of step 0 and {EARLY}, {apart}",
            above=LITTLE,
        ),
        claim(
            "fig27.cancel_start",
            f"so they do before training{KNOWN}",
            paper="supposed",
            ours=differences(read("success", 0, between), read("failure", 0, between)),
            statistic=f"cosine between prompts, {apart}",
            above=LITTLE,
        ),
        claim(
            "fig27.cancel_later",
            "so they do later",
            paper="supposed",
            ours=differences(
                read.mean("success", LATER["success"], between),
                read.mean("failure", LATER["failure"], between),
            ),
            statistic=f"cosine between prompts, mean of {EARLY} and step 192, {apart}",
            above=LITTLE,
        ),
        claim(
            "fig27.nothing",
            "under the failing teacher two prompts' gradients have nothing in common at any later "
            "point",
            paper="supposed",
            ours=read.mean("failure", LATER["failure"], between),
            statistic="cosine between prompts, mean of steps 96 and 192",
            above=-LITTLE,
            below=LITTLE,
        ),
        claim(
            "fig27.chance",
            "less than twice of what chance leaves survives the sum over its batch",
            paper="supposed",
            ours=read.mean("failure", LATER["failure"], "over_chance"),
            statistic="what survives / by chance, mean of steps 96 and 192",
            below=2,
        ),
        claim(
            "fig27.within",
            "and yet two rollouts of one prompt agree: it is not noise",
            paper="not in the paper",
            ours=read.mean("failure", LATER["failure"], within),
            statistic="cosine within a prompt, mean of steps 96 and 192",
            above=0.1,
        ),
        claim(
            "fig27.spectrum",
            "the success has a common direction that the failure lacks",
            paper="supposed",
            ours=[
                s.map(f, by=np.subtract)
                for s, f in zip(
                    read.spectrum("success", 0)[0], read.spectrum("failure", 0)[0], strict=True
                )
            ],
            statistic=f"share of the first eigenvalue before training, {apart}",
            above=LITTLE,
        ),
        claim(
            "fig27.large",
            f"the failing teacher's gradients per token are large before training{KNOWN}",
            paper="large",
            ours=ratios(read("failure", 0, "token_norm"), read("success", 0, "token_norm")),
            statistic="mean norm of a token's gradient, failure / success",
            above=0.5,
        ),
        claim(
            "fig27.large_later",
            "and stay as large, since nothing of what they ask is learnt",
            paper="large",
            ours=ratios(
                read.mean("failure", LATER["failure"], "token_norm"),
                read("failure", 0, "token_norm"),
            ),
            statistic="mean norm of a token's gradient, mean of steps 96 and 192 / start",
            above=0.7,
        ),
        claim(
            "fig27.divergence",
            "the failing teacher differs from the student no less than the other (else there "
            "is little to learn, and nothing has to cancel)",
            paper="not in the paper",
            ours=[
                f.map(s, by=ratio)
                for f, s in zip(
                    evidence.mean("failure", "reverse_kl", FIRST),
                    evidence.mean("success", "reverse_kl", FIRST),
                    strict=True,
                )
            ],
            statistic="reverse KL per state, mean of the first 5 steps, failure / success",
            above=0.5,
        ),
        claim(
            "fig27.same_size",
            "it is not the teacher's size or the student's capacity: RL gives the same larger "
            "teacher a common direction",
            paper="not in the paper",
            ours=differences(
                read.mean("large_rl", (0, 96), between), read.mean("failure", (0, 96), between)
            ),
            statistic="cosine between prompts, mean of steps 0 and 96, after − before RL",
            above=LITTLE,
        ),
        claim(
            "fig27.family",
            "the same of the second family",
            paper="not in the paper",
            ours=differences(
                read.mean("post_rl", (0, 96), between), read.mean("post_same", (0, 96), between)
            ),
            statistic="cosine between prompts, mean of steps 0 and 96, after − before RL",
            above=LITTLE,
        ),
        claim(
            "fig27.family_nothing",
            "before RL, nothing is in common in the second family, either, after training",
            paper="not in the paper",
            ours=read("post_same", 96, between),
            statistic="cosine between prompts at step 96",
            above=-LITTLE,
            below=LITTLE,
        ),
    ]
