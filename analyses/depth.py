"""Figures 13 and 23: where in a response does instability begin (§6.1, App. D.1)?"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.evidence import FIRST, Evidence, claim, ratios
from analyses.results import Claim, Results
from analyses.sums import window
from opdprobe.probes import heat_map
from opdprobe.probes.bootstrap import Estimate, ratio
from opdprobe.probes.quantities import axis_label
from opdprobe.report.estimate import exact, spearman
from opdprobe.report.panel import Heat, Panel

RUN = "length_6"
N_ROWS = 20
MAX_COLUMNS = 40
# High entropy: this multiple of that at the beginning of responses before training.
HIGH = 1.5


def student(evidence: Evidence) -> Results:
    """Student entropy by output position over training steps."""
    return _analyse(evidence, "fig13", "student", section="6.1")


def teacher(evidence: Evidence) -> Results:
    """Teacher entropy by output position over training steps."""
    return _analyse(evidence, "fig23", "teacher", section="D.1")


def _analyse(evidence: Evidence, figure: str, model: str, *, section: str) -> Results:
    def entropy(ds: xr.Dataset) -> xr.DataArray:
        return ds.opd.entropy(model)

    edges = _edges(evidence)
    maps = [heat_map(run, entropy, bins=edges.tolist()) for run in evidence.runs[RUN]]
    return Results(
        figure=figure,
        title=f"{model.capitalize()} entropy by output position",
        section=section,
        claim="Instability starts at the end of responses and moves forward as training goes on.",
        meta=evidence.meta([RUN]),
        panels=[_panel(maps, model)],
        claims=[
            _end_first(evidence, figure, model, edges),
            claim(
                f"{figure}.moves_forward",
                f"the {model}'s high entropy moves forward as training goes on",
                paper="from back to front",
                ours=[exact(spearman(found["step"].values, onsets(found))) for found in maps],
                test="rank correlation of step and first position from which on entropy exceeds "
                "1.5 × that of the first quarter at the first step ≤ −0.3",
                holds=lambda r: r <= -0.3,
                opposite=lambda low, high: low > 0,
            ),
        ],
    )


def _end_first(evidence: Evidence, figure: str, model: str, edges: NDArray[np.int64]) -> Claim:
    width = _quarter(edges.size - 1)

    def mean(start: int, stop: int) -> list[Estimate]:
        def part(ds: xr.Dataset) -> xr.DataArray:
            inside = (ds["position"] >= start) & (ds["position"] < stop)
            return ds.opd.entropy(model).where(inside)

        return [window(run, part, run.steps[FIRST]) for run in evidence.runs[RUN]]

    return claim(
        f"{figure}.end_first",
        f"early on, the {model}'s entropy is higher at the end of responses than at the beginning",
        paper="the end first",
        ours=ratios(mean(edges[-1 - width], edges[-1]), mean(0, edges[width])),
        test="mean of the first 5 steps, last / first quarter of the positions ≥ 1.2",
        holds=lambda r: r >= 1.2,
        opposite=lambda low, high: high < 1,
    )


def onsets(found: xr.Dataset) -> NDArray[np.float64]:
    """Return the position from which entropy is high, for each step.

    Parameters
    ----------
    found
        A heat map of the entropy, positions in order, from `opdprobe.heat_map`.

    Returns
    -------
    (step,) ndarray of float64
        Start of the first range from which on every range with a state exceeds 1.5 times the mean
        of the first quarter of the ranges at the first step; the end of the last range if there is
        no such range.
    """
    value, n = found["value"].values, found["n"].values
    start = slice(_quarter(len(value)))
    reference = ratio(np.nansum(value[start, 0] * n[start, 0]), n[start, 0].sum())
    bounds = [*found["position_start"].values, found["position_stop"].values[-1]]
    result = []
    for column in value.T:
        seen = np.flatnonzero(~np.isnan(column))
        low = seen[~(column[seen] > HIGH * reference)]
        later = seen[seen > low[-1]] if low.size else seen
        result.append(bounds[later[0]] if later.size else bounds[-1])
    return np.array(result, np.float64)


def _quarter(n: int) -> int:
    return max(1, n // 4)


def _edges(evidence: Evidence) -> NDArray[np.int64]:
    """Return ranges of positions up to the longest response of any seed, shared by all seeds."""
    longest = max(int(run.rollouts()["length"].max()) for run in evidence.runs[RUN])
    return np.unique(np.linspace(0, max(longest, 1), N_ROWS + 1).round().astype(np.int64))


def _panel(maps: list[xr.Dataset], model: str) -> Panel:
    """Average over the states of all seeds, merging neighbouring steps."""
    steps = maps[0]["step"].values
    first = np.unique(np.linspace(0, steps.size, min(MAX_COLUMNS, steps.size) + 1).astype(int))[:-1]
    total = sum((found["value"].fillna(0) * found["n"]).values for found in maps)
    n = sum(found["n"].values for found in maps)
    z = ratio(np.add.reduceat(total, first, axis=1), np.add.reduceat(n, first, axis=1))
    x = np.add.reduceat(steps, first) / np.diff([*first, steps.size])
    attrs = maps[0]["value"].attrs
    return Panel(
        name=f"{model}_entropy",
        title=f"{model.capitalize()} entropy",
        x_label="training step",
        y_label="output position [tokens]",
        kind="heatmap",
        series=[],
        heat=Heat(
            x=x.tolist(),
            y=maps[0]["position"].values.tolist(),
            z=z.tolist(),
            label=axis_label(attrs["long_name"], attrs["units"]),
        ),
    )
