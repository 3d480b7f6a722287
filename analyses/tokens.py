"""Figures 25 and 26: which tokens teach? Training on the part that a selector keeps, or the rest.

Runs differ in the tokens of their loss alone, which is the mean over those, so that a step of any
of them is about as large under Adam. A difference that would matter is 0.05 of accuracy.
"""

from collections.abc import Mapping
from dataclasses import replace

from analyses.bars import bar_series
from analyses.dynamics import points
from analyses.evidence import Evidence, accuracy_panel, claim, differences
from analyses.experiments import SELECTED, SELECTION_MATTERS, SWEPT, tokens
from analyses.registry import FIGURES
from analyses.results import Claim, Results
from opdprobe.report.estimate import combine
from opdprobe.report.panel import Panel, Reference

KEPT = {
    "entropy": "the fifth of the tokens with the highest entropy",
    "reverse_kl": "the fifth with the largest reverse KL",
    "tip": "the fifth with the highest TIP score",
    "teachability": "the fifth with the highest teachability",
    "information_to_error": "the fifth with the highest information-to-error ratio",
    "early": "the first fifth of the positions",
    "early_signal": "the fifth with the largest IW-OPD weights",
    "reward": "the fifth with the highest sampled reward",
    "random": "a random fifth",
}
# Selector to what is claimed of its fifth, and by whom.
SUFFICES = {
    "entropy": "as good or better (RLVR, 2506.01939)",
    "reverse_kl": "carries the signal",
    "tip": "as good or better (2604.14084)",
    "early": "suffices",
    "random": "not tested",
}
BETTER = {
    "entropy": "better",
    "reverse_kl": "better",
    "tip": "better (2604.14084)",
    "teachability": "better (2605.26844)",
    "information_to_error": "better (2609.24432)",
    "early": "better",
    "early_signal": "more weight on these is better (2606.22600)",
    "reward": "not tested",
}
SHARES = (10, 20, 50)


def analyse(evidence: Evidence) -> Results:
    """Accuracy after training by selector and share of the tokens, against random and all."""
    end = {name: evidence.accuracy(name, "end") for name in FIGURES["fig25"].experiments}
    everything, at_random = end["baseline"], end[tokens("random")]
    after = "difference of the accuracies at the end"
    by_share = {s: {i: end[tokens(s, n)] for i, n in enumerate(SHARES)} for s in SWEPT}
    others = [selector for selector in SELECTED if selector != "random"]
    recovery = {name: evidence.recovery(name) for name in ("baseline", *map(tokens, SELECTED))}
    return Results(
        figure="fig25",
        title="Training on a part of the tokens",
        section="",
        claim="A fifth of the tokens, well chosen, teaches as much as all of them, and more than "
        "as many random ones.",
        meta=evidence.meta(FIGURES["fig25"].experiments),
        panels=[
            Panel(
                name="final_accuracy",
                title="Final accuracy",
                x_label="share of the tokens in the loss",
                y_label=f"accuracy (avg@{evidence.runs['baseline'][0].config['eval_n']})",
                kind="line",
                series=[
                    points(f"tokens_{s}", SELECTED[s], shares | {len(SHARES): everything})
                    for s, shares in by_share.items()
                ],
                ticks=(*(f"{n} %" for n in SHARES), "all"),
            ),
            Panel(
                name="recovery",
                title="Gap recovery with a fifth of the tokens",
                x_label="selector",
                y_label="gap recovery rate",
                kind="bar",
                series=[
                    bar_series(
                        [recovery[tokens(selector)] for selector in others],
                        role="tokens_kept",
                        label="the fifth that the selector keeps",
                    )
                ],
                references=[
                    Reference("baseline", "all tokens", combine(recovery["baseline"])[0]),
                    Reference("tokens_random", "random", combine(recovery[tokens("random")])[0]),
                ],
                ticks=[SELECTED[selector] for selector in others],
            ),
        ],
        claims=[
            *(
                claim(
                    f"fig25.{selector}_suffices",
                    f"{KEPT[selector]} teaches no less than all tokens",
                    paper=paper,
                    ours=differences(end[tokens(selector)], everything),
                    statistic=f"{after}, the fifth − all",
                    above=-SELECTION_MATTERS,
                )
                for selector, paper in SUFFICES.items()
            ),
            *(
                claim(
                    f"fig25.{selector}_chosen",
                    f"{KEPT[selector]} teaches more than a random fifth",
                    paper=paper,
                    ours=differences(end[tokens(selector)], at_random),
                    statistic=f"{after}, the fifth − a random fifth",
                    above=SELECTION_MATTERS,
                )
                for selector, paper in BETTER.items()
            ),
            claim(
                "fig25.tip_better",
                "the half of the tokens with the highest TIP score teaches more than all",
                paper="matches or exceeds (2604.14084)",
                ours=differences(end[tokens("tip", 50)], everything),
                statistic=f"{after}, the half − all",
                above=SELECTION_MATTERS,
            ),
            claim(
                "fig25.tip_half",
                "and no less than all",
                paper="matches or exceeds (2604.14084)",
                ours=differences(end[tokens("tip", 50)], everything),
                statistic=f"{after}, the half − all",
                above=-SELECTION_MATTERS,
            ),
            claim(
                "fig25.random_half",
                "half of the tokens at random teaches as much as all",
                paper="not tested",
                ours=differences(end[tokens("random", 50)], everything),
                statistic=f"{after}, the half − all",
                above=-SELECTION_MATTERS,
                below=SELECTION_MATTERS,
            ),
            claim(
                "fig25.divergence_tenth",
                "the tenth with the largest reverse KL teaches more than a random tenth",
                paper="carries the signal",
                ours=differences(end[tokens("reverse_kl", 10)], end[tokens("random", 10)]),
                statistic=f"{after}, the tenth − a random tenth",
                above=SELECTION_MATTERS,
            ),
        ],
    )


def complements(evidence: Evidence) -> Results:
    """Accuracy with the fifth of the tokens that a selector keeps, and with all others."""
    names = FIGURES["fig26"].experiments
    end = {name: evidence.accuracy(name, "end") for name in names}
    whole = {name: evidence.accuracy(name) for name in names}
    parts = {False: ("tokens_kept", "the fifth"), True: ("tokens_rest", "all others")}
    return Results(
        figure="fig26",
        title="The tokens that are kept, and the others",
        section="",
        claim="The fifth of the tokens that a selector keeps carries the signal: it teaches as "
        "much as the others, as fast as all, and little is learnt without it.",
        meta=evidence.meta(names),
        panels=[
            Panel(
                name="final_accuracy",
                title="Final accuracy",
                x_label="selector",
                y_label=f"accuracy (avg@{evidence.runs['baseline'][0].config['eval_n']})",
                kind="bar",
                series=[
                    bar_series(
                        [end[tokens(selector, rest=rest)] for selector in SWEPT],
                        role=role,
                        label=label,
                    )
                    for rest, (role, label) in parts.items()
                ],
                references=[Reference("baseline", "all tokens", combine(end["baseline"])[0])],
                ticks=[SELECTED[selector] for selector in SWEPT],
            ),
            *(
                _by_step(
                    evidence,
                    {tokens(selector, rest=rest): selector for selector in SWEPT},
                    title=title,
                )
                for rest, title in ((False, "On the fifth that is kept"), (True, "On all others"))
            ),
        ],
        claims=[
            one
            for selector in SWEPT
            if selector != "random"
            for one in _against_rest(selector, end, whole)
        ],
    )


def _against_rest(selector: str, end: Mapping, whole: Mapping) -> list[Claim]:
    kept, rest = tokens(selector), tokens(selector, rest=True)
    return [
        claim(
            f"fig26.{selector}_kept",
            f"{KEPT[selector]} teaches no less than the other four",
            paper="carries the signal",
            ours=differences(end[kept], end[rest]),
            statistic="difference of the accuracies at the end, kept − others",
            above=-SELECTION_MATTERS,
        ),
        claim(
            f"fig26.{selector}_needed",
            "without it less is learnt than without a random fifth",
            paper="carries the signal",
            ours=differences(end[tokens("random", rest=True)], end[rest]),
            statistic="difference of the accuracies at the end, without a random fifth − without "
            "this one",
            above=SELECTION_MATTERS,
        ),
        claim(
            f"fig26.{selector}_speed",
            "and it teaches no more slowly than all tokens",
            paper="as fast or faster",
            ours=differences(whole[kept], whole["baseline"]),
            statistic="difference of the mean accuracies over training, the fifth − all",
            above=-SELECTION_MATTERS,
        ),
    ]


def _by_step(evidence: Evidence, runs: Mapping[str, str], *, title: str) -> Panel:
    """Accuracy by step; each line looks like its selector's in every panel."""
    labels = {"baseline": "all tokens"} | {
        name: SELECTED[selector] for name, selector in runs.items()
    }
    panel = accuracy_panel(evidence, labels, {}, title=title)
    roles = {name: f"tokens_{selector}" for name, selector in runs.items()}
    lines = [replace(one, role=roles.get(one.role, one.role)) for one in panel.series]
    return replace(panel, name=f"accuracy_{title}".lower().replace(" ", "_"), series=lines)
