"""Figure 28: does the gradient point to success where a response branches, and can one tell where?

At states of the student's rollouts in which it has a choice, success after each of its likely
tokens is sampled. The ideal direction on their logits is p (Q - mean Q), that of distillation
p (f - mean f) with f = log q - log p, p renormalised on these tokens and means under p
(2605.10889). Rollouts and success are the student's, so both teachers are judged by the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.bars import bar_series
from analyses.evidence import Evidence, claim, differences
from analyses.experiments import SELECTED
from analyses.registry import FIGURES
from analyses.results import Results
from opdprobe.probes.bootstrap import Estimate, ratio
from opdprobe.probes.evaluate import evaluate
from opdprobe.probes.selectors import SELECTORS
from opdprobe.report.estimate import combine, exact
from opdprobe.report.panel import Panel, Reference, Series

TEACHERS = {"success": "RL'd same-size teacher", "failure": "larger same-pipeline teacher"}
OTHERS = {
    "teacher_entropy": "teacher's entropy",
    "overlap_ratio": "overlap ratio",
    "jensen_shannon": "Jensen–Shannon",
    "argmax_disagreement": "other first choice",
}
"""Probes beside what others select tokens by."""
QUADRANTS = ("sure, close", "unsure, close", "sure, apart", "unsure, apart")
HALVES = "ideal, half of the samples with the other"
ALIGNED, RELATED = 0.1, 0.1
"""A mean cosine and a rank correlation that count."""
_SEEN = {name: text for name, text in SELECTED.items() if name != "random"}


def analyse(evidence: Evidence) -> Results:
    """Alignment of both teachers' gradients with the ideal one, and what it goes with."""
    names = FIGURES["fig28"].experiments
    found = {
        teacher: [
            _seed(run.load(0), forced)
            for run, forced in zip(
                evidence.runs[f"probe_{teacher}"],
                evidence.measured["forced", "probe_success"],
                strict=True,
            )
        ]
        for teacher in TEACHERS
    }
    cosine = {t: [_mean(one["cosine"]) for one in found[t]] for t in TEACHERS}
    harmed = {
        t: [_mean((one["gain"][one["there"]] < 0).astype(float)) for one in found[t]]
        for t in TEACHERS
    }
    halves = [_mean(one["halves"]) for one in found["success"]]
    related = {
        t: {name: [_related(one, name) for one in found[t]] for name in (*_SEEN, *OTHERS)}
        for t in TEACHERS
    }
    noise = [
        [_related(one, name, "halves") for one in found["success"]] for name in (*_SEEN, *OTHERS)
    ]
    return Results(
        figure="fig28",
        title="Does the gradient point to success?",
        section="",
        claim="The gradient points to success where the teacher teaches; what others select tokens "
        "by finds the states where it does.",
        meta=evidence.meta(names),
        panels=[
            Panel(
                name="alignment",
                title="Cosine of the gradients",
                x_label="cosine with the ideal gradient",
                y_label="density",
                kind="histogram",
                series=[
                    Series(
                        teacher,
                        label,
                        values=_all_known(found, "cosine", teacher),
                    )
                    for teacher, label in TEACHERS.items()
                ]
                + [Series("tokens_random", HALVES, values=_all_known(found, "halves"))],
            ),
            Panel(
                name="quadrants",
                title="By entropy and divergence",
                x_label="student's entropy, reverse KL, cut at the medians",
                y_label="mean cosine",
                kind="bar",
                series=[
                    bar_series(
                        [[_quadrant(one, i) for one in found[teacher]] for i in range(4)],
                        role=teacher,
                        label=label,
                    )
                    for teacher, label in TEACHERS.items()
                ],
                references=[
                    Reference(
                        "tokens_random",
                        HALVES,
                        combine(halves)[0],
                    )
                ],
                ticks=QUADRANTS,
            ),
            Panel(
                name="related",
                title="What goes with it",
                x_label="diagnostic",
                y_label="rank correlation",
                kind="bar",
                series=[
                    bar_series(list(related[teacher].values()), role=teacher, label=label)
                    for teacher, label in TEACHERS.items()
                ]
                + [bar_series(noise, role="tokens_random", label=HALVES)],
                ticks=(*_SEEN.values(), *OTHERS.values()),
            ),
        ],
        claims=[
            claim(
                "fig28.aligned",
                "the RL'd teacher's gradient points to success",
                paper="aligned (2605.10889)",
                ours=cosine["success"],
                statistic="mean cosine with the ideal gradient",
                above=ALIGNED,
            ),
            claim(
                "fig28.aligned_failing",
                "the failing teacher's has nothing to do with it",
                paper="not tested",
                ours=cosine["failure"],
                statistic="mean cosine with the ideal gradient",
                above=-ALIGNED,
                below=ALIGNED,
            ),
            claim(
                "fig28.better",
                "the RL'd teacher's points to success more than the failing teacher's",
                paper="not tested",
                ours=differences(cosine["success"], cosine["failure"]),
                statistic="difference of the mean cosines",
                above=ALIGNED,
            ),
            claim(
                "fig28.harm",
                "it makes success less likely in fewer than a third of the states",
                paper="not tested",
                ours=harmed["success"],
                statistic="share of the states in which a step along it lowers success",
                below=1 / 3,
            ),
            claim(
                "fig28.harm_failing",
                "the failing teacher's does so in a third or more",
                paper="not tested",
                ours=harmed["failure"],
                statistic="share of the states in which a step along it lowers success",
                above=1 / 3,
            ),
            *(
                claim(
                    f"fig28.{name}",
                    f"{text} is higher where the RL'd teacher's gradient points to success",
                    paper="selects the tokens that teach",
                    ours=related["success"][name],
                    statistic="rank correlation with the cosine over states",
                    above=RELATED,
                )
                for name, text in _SEEN.items()
            ),
        ],
    )


def _seed(step: xr.Dataset, forced: Mapping[str, list]) -> dict[str, NDArray]:
    """Return all numbers of one teacher's scores of a seed's states."""
    states = np.array(forced["states"])
    success = np.array(forced["scores"])  # (state, token, sample)
    n_tokens = success.shape[1]
    on_list = step["logp"].sel(support="student").values[states, :, :n_tokens].astype(np.float64)
    order = [step["model"].values.tolist().index(name) for name in ("student", "teacher")]
    student, teacher = (on_list[:, i] for i in order)
    p = np.exp(student)
    p /= p.sum(axis=1, keepdims=True)
    parts = success[..., ::2], success[..., 1::2]
    ideal, *half = (weighted(p, part.mean(axis=-1)) for part in (success, *parts))
    ours = weighted(p, teacher - student)
    gain = (ideal * ours).sum(axis=1)
    there = np.abs(ideal).sum(axis=1) > 0
    scores = {name: np.asarray(SELECTORS[name](step), np.float64)[states] for name in _SEEN}
    scores |= {name: evaluate(name, step).values[states] for name in OTHERS}
    return {
        "cosine": cosines(ideal, ours),
        "halves": cosines(*half),
        "gain": gain,
        "there": there,
        **scores,
    }


def weighted(p: NDArray, value: NDArray) -> NDArray[np.float64]:
    """Gradient of Σ p v by the logits: p (v - Σ p v), along the last axis."""
    return p * (value - (p * value).sum(axis=-1, keepdims=True))


def cosines(a: NDArray, b: NDArray) -> NDArray[np.float64]:
    """Cosines along the last axis; NaN where one is 0: success does not depend on the token."""
    return ratio((a * b).sum(-1), np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _all_known(
    found: Mapping[str, list[dict[str, NDArray]]], name: str, teacher: str = "success"
) -> list[float]:
    """Return the known numbers of all seeds' states; the ideal's own do not depend on a teacher."""
    values = np.concatenate([one[name] for one in found[teacher]])
    return values[~np.isnan(values)].tolist()


def _related(one: Mapping[str, NDArray], name: str, of: str = "cosine") -> Estimate:
    """Rank correlation of a score with a cosine, where this is known."""
    from scipy.stats import spearmanr  # a fifth of what importing opdprobe takes

    known = ~np.isnan(one[of])
    score, cosine = one[name][known], one[of][known]
    if len(np.unique(score)) < 2 or len(np.unique(cosine)) < 2:
        return exact(np.nan)
    found: Any = spearmanr(score, cosine)
    return exact(float(found.statistic))


def _quadrant(one: Mapping[str, NDArray], place: int) -> Estimate:
    """Mean cosine of the states of a quadrant of entropy and divergence."""
    unsure, apart = (one[name] > np.median(one[name]) for name in ("entropy", "reverse_kl"))
    inside = (unsure + 2 * apart == place) & one["there"]
    return _mean(one["cosine"][inside])


def _mean(values: NDArray[np.float64]) -> Estimate:
    """Average what is known; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return exact(float(known.mean()) if known.size else np.nan)
