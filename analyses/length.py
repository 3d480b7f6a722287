"""Figures 11 and 12: how long may responses be, and what happens beyond (§6.1)?"""

import numpy as np
import xarray as xr

from analyses.dynamics import dynamics_panels, last_quarter, late_fall, logged, points
from analyses.evidence import LAST, Evidence, above, at_least, claim, differences, ratios
from analyses.experiments import LENGTHS
from analyses.registry import FIGURES
from analyses.results import Results
from opdprobe.probes.bootstrap import Estimate, resample, sum_by_unit, unit_keys
from opdprobe.report.estimate import combine, exact, ranked
from opdprobe.report.panel import Panel, Reference

SHORTEST, *_, LONGEST = LENGTHS
MIDDLE = ("length_3", "length_4", "length_5")
# The run at the preset's own length, in the middle of the sweep.
USUAL = "length_4"
# A mean over fewer rollouts depends more on which are left than on the depth.
MIN_ROLLOUTS = 20


def analyse(evidence: Evidence) -> Results:
    """Accuracy by maximum response length, and continuation gain by depth of the prefix."""
    final = {name: evidence.accuracy(name) for name in LENGTHS}
    best = ranked({name: final[name] for name in MIDDLE})[-1]
    gains = _gains(evidence.continuations["probe_success"])
    unknown = [exact(np.nan)]
    first = gains[min(gains)] if gains else unknown
    last = gains[max(gains)] if gains else unknown
    return Results(
        figure="fig11",
        title="Response length",
        section="6.1",
        claim="There is a sweet spot of the response length; what the teacher gains by going on "
        "from a student's prefix shrinks as the prefix grows.",
        meta=evidence.meta(FIGURES["fig11"].experiments),
        panels=[_accuracy_panel(evidence, final), _gain_panel(gains)],
        claims=[
            at_least(
                "fig11.sweet_spot",
                "responses of a middle length end better than the longest",
                paper="best at 3K to 7K of 15K",
                ours=differences(final[best], final[LONGEST]),
                statistic="final accuracy, best of lengths 3 to 5 − the longest",
                limit=0.02,
            ),
            at_least(
                "fig11.short",
                "responses of a middle length end better than the shortest",
                paper="best at 3K to 7K, from 0.5K",
                ours=differences(final[best], final[SHORTEST]),
                statistic="final accuracy, best of lengths 3 to 5 − the shortest",
                limit=0.05,
            ),
            at_least(
                "fig11.gain_start",
                "from a short prefix the teacher goes on better than the student",
                paper="0.366 at 1K",
                ours=first,
                statistic="continuation gain at the smallest depth",
                limit=0.10,
            ),
            claim(
                "fig11.gain_falls",
                "the continuation gain falls as the prefix grows",
                paper="0.366 → 0.024 from 1K to 16K",
                ours=differences(last, first),
                test=f"gain at the deepest depth that {MIN_ROLLOUTS} rollouts reach − at the "
                "smallest ≤ −0.10",
                holds=lambda d: d <= -0.10,
                opposite=lambda low, high: low > 0,
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
                test="mean of the last 5 steps − highest 5-step mean ≤ −0.02",
                holds=lambda d: d <= -0.02,
            ),
            above(
                "fig12.entropy",
                "with the longest responses the student's entropy ends higher",
                paper="rises",
                ours=ratios(entropy[LONGEST], entropy[USUAL]),
                statistic="mean of the last 5 steps, longest / length 4",
                limit=1,
            ),
            above(
                "fig12.gradient",
                "with the longest responses the gradients end larger",
                paper="rises",
                ours=ratios(gradient[LONGEST], gradient[USUAL]),
                statistic="gradient norm, mean of the last quarter of the steps, "
                "longest / length 4",
                limit=1,
            ),
        ],
    )


def _limit(evidence: Evidence, name: str) -> int:
    """Longest response that a run allows, in tokens."""
    return evidence.runs[name][0].config["max_completion_length"]


def _accuracy_panel(evidence: Evidence, final: dict[str, list[Estimate]]) -> Panel:
    start, _, _ = combine(evidence.accuracy(USUAL, end=0))
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
        title="Continuation gain",
        x_label="prefix length [tokens]",
        y_label="continuation gain",
        kind="line",
        series=[points("teacher", "teacher − student", dict(enumerate(gains.values())))],
        ticks=[str(depth) for depth in gains],
    )


def _gains(continuations: list[xr.Dataset]) -> dict[int, list[Estimate]]:
    """Mean gain by depth, one per seed; without depths that too few rollouts of a seed reach."""
    found = {}
    for depth in sorted(continuations[0]["depth"].values.tolist()):
        gains = [ds["gain"].sel(depth=depth).values for ds in continuations]
        going = [~np.isnan(gain) for gain in gains]
        if min(map(np.count_nonzero, going)) >= MIN_ROLLOUTS:
            found[depth] = []
            for ds, gain, n in zip(continuations, gains, going, strict=True):
                # All rollouts at every depth, so that depths are resampled together.
                keys, (total, count) = sum_by_unit(
                    unit_keys(ds["prompt_id"].values), np.nan_to_num(gain), n
                )
                found[depth].append(resample(total, count, keys=keys))
    return found
