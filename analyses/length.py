"""Figures 11 and 12: how long may responses be, and what happens beyond (§6.1)?"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.dynamics import dynamics_panels, last_quarter, late_fall, logged, points
from analyses.evidence import LAST, Evidence, claim, differences, ratios
from analyses.experiments import LENGTHS
from analyses.registry import FIGURES
from analyses.results import Results
from opdprobe.probes.bootstrap import Estimate, resample, sum_by_unit, unit_keys
from opdprobe.report.estimate import combine, exact
from opdprobe.report.panel import Panel, Reference

SHORTEST, *_, LONGEST = LENGTHS
# The run at the preset's own length, in the middle of the sweep.
USUAL = "length_4"
# A mean over fewer rollouts depends more on which they are than on the depth.
MIN_ROLLOUTS = 20


def analyse(evidence: Evidence) -> Results:
    """Accuracy by maximum response length, and continuation gain by depth of the prefix."""
    final = {name: evidence.accuracy(name, "end") for name in LENGTHS}
    values = np.array([[e.value for e in final[name]] for name in LENGTHS])
    gains = _gains(evidence.continuations.get("probe_success", []))
    unknown = [exact(np.nan)] * len(evidence.runs["probe_success"])
    first, *deeper = list(gains.values()) or [unknown]
    last = deeper[-1] if deeper else unknown
    return Results(
        figure="fig11",
        title="Response length",
        section="6.1",
        claim="There is a sweet spot of the response length; what the teacher gains by going on "
        "from a student's prefix shrinks as the prefix grows.",
        meta=evidence.meta(FIGURES["fig11"].experiments),
        panels=[_accuracy_panel(evidence, final), _gain_panel(gains)],
        claims=[
            claim(
                "fig11.sweet_spot",
                "accuracy is best at a length between the shortest and the longest",
                paper="best at 3K to 7K of 15K",
                ours=[exact(float(place)) for place in 1 + values.argmax(axis=0)],
                statistic="place of the best of the six lengths",
                above=1,
                below=len(LENGTHS),
            ),
            claim(
                "fig11.long",
                "responses of the fourth length end better than the longest",
                paper="best at 3K to 7K of 15K",
                ours=differences(final[USUAL], final[LONGEST]),
                statistic="difference of the accuracies at the end",
                above=0.02,
            ),
            claim(
                "fig11.short",
                "responses of the fourth length end better than the shortest",
                paper="best at 3K to 7K, from 0.5K",
                ours=differences(final[USUAL], final[SHORTEST]),
                statistic="difference of the accuracies at the end",
                above=0.05,
            ),
            claim(
                "fig11.gain_start",
                "from a short prefix the teacher goes on better than the student",
                paper="0.366 at 1K",
                ours=first,
                statistic="continuation gain at the smallest depth, of rollouts that reach the "
                "deepest",
                above=0.1,
            ),
            claim(
                "fig11.gain_falls",
                "the continuation gain falls as the prefix grows",
                paper="0.366 → 0.024 from 1K to 16K",
                ours=_slopes(gains) or unknown,
                statistic="slope of the continuation gain by the logarithm (base 2) of the depth, "
                "of the same rollouts",
                below=0,
            ),
            claim(
                "fig11.gain_ends",
                "and is much smaller at the end",
                paper="0.366 → 0.024 from 1K to 16K",
                ours=differences(last, first),
                statistic="continuation gain at the deepest depth − at the smallest, of the same "
                "rollouts",
                below=-0.1,
            ),
        ],
    )


def dynamics(evidence: Evidence) -> Results:
    """Overlap ratio, student entropy and gradient norm by step, for all lengths."""
    entropy = {name: evidence.mean(name, "student_entropy", LAST) for name in (LONGEST, USUAL)}
    gradient = {
        name: logged(evidence, name, "grad_norm", last_quarter) for name in (LONGEST, USUAL)
    }
    labels = {name: f"{_limit(evidence, name)} tokens" for name in LENGTHS}
    return Results(
        figure="fig12",
        title="Dynamics by response length",
        section="6.1",
        claim="The longest responses collapse late: the overlap ratio falls, entropy and gradient "
        "norm rise.",
        meta=evidence.meta(list(LENGTHS)),
        panels=dynamics_panels(evidence, labels),
        claims=[
            claim(
                "fig12.collapse",
                "with the longest responses the overlap ratio falls late in the run",
                paper="collapses",
                ours=logged(evidence, LONGEST, "overlap_ratio", late_fall),
                statistic="mean of the last 5 steps − highest 5-step mean",
                below=-0.02,
            ),
            claim(
                "fig12.entropy",
                "with the longest responses the student's entropy ends higher",
                paper="rises",
                ours=ratios(entropy[LONGEST], entropy[USUAL]),
                statistic="mean of the last 5 steps, longest / length 4",
                above=1,
            ),
            claim(
                "fig12.gradient",
                "with the longest responses the gradients end larger",
                paper="rises",
                ours=ratios(gradient[LONGEST], gradient[USUAL]),
                statistic="gradient norm, mean of the last quarter of the steps, "
                "longest / length 4",
                above=1,
            ),
        ],
    )


def _limit(evidence: Evidence, name: str) -> int:
    """Longest response that a run allows, in tokens."""
    return evidence.runs[name][0].config["max_completion_length"]


def _accuracy_panel(evidence: Evidence, final: dict[str, list[Estimate]]) -> Panel:
    start, _, _ = combine(evidence.start(USUAL))
    return Panel(
        name="accuracy",
        title="Final accuracy",
        x_label="maximum response length [tokens]",
        y_label=f"accuracy (avg@{evidence.runs[USUAL][0].config['eval_n']})",
        kind="line",
        series=[points("success", "final accuracy", dict(enumerate(final.values())))],
        references=[Reference("student", "initial accuracy", start)],
        ticks=[str(_limit(evidence, name)) for name in final],
    )


def _gain_panel(gains: dict[int, list[Estimate]]) -> Panel:
    return Panel(
        name="continuation_gain",
        title="Continuation gain, same rollouts",
        x_label="prefix length [tokens]",
        y_label="continuation gain",
        kind="line",
        series=[points("teacher", "teacher − student", dict(enumerate(gains.values())))],
        ticks=[str(depth) for depth in gains],
    )


def _gains(continuations: list[xr.Dataset]) -> dict[int, list[Estimate]]:
    """Mean gain by depth, one per seed, of the rollouts that reach the deepest depth.

    One cohort for all depths: a mean over those that are left at each depth would change with who
    is left. Deepest is the depth that at least `MIN_ROLLOUTS` rollouts of every seed reach; depth 0
    is no prefix.
    """
    if not continuations:
        return {}
    depths = [d for d in sorted(continuations[0]["depth"].values.tolist()) if d > 0]
    gains = [ds["gain"].sel(depth=depths).values for ds in continuations]  # (depth, rollout)
    reached = [
        d
        for i, d in enumerate(depths)
        if min(np.count_nonzero(~np.isnan(gain[i])) for gain in gains) >= MIN_ROLLOUTS
    ]
    found: dict[int, list[Estimate]] = {depth: [] for depth in reached}
    for ds, gain in zip(continuations, gains, strict=True) if reached else ():
        cohort = ~np.isnan(gain[len(reached) - 1])
        keys = unit_keys(ds["prompt_id"].values[cohort])
        for depth, values in zip(reached, gain[:, cohort], strict=False):
            units, (total, n) = sum_by_unit(keys, values, np.ones(values.size))
            found[depth].append(resample(total, n, keys=units))
    return found


def _slopes(gains: dict[int, list[Estimate]]) -> list[Estimate]:
    """Least-squares slope of the gain by the logarithm of the depth, one per seed."""
    if len(gains) < 2:
        return []
    x = np.log2(list(gains))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()

    def slope(*values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.einsum("d,d...->...", weights, np.array(values))

    return [first.map(*rest, by=slope) for first, *rest in zip(*gains.values(), strict=True)]
