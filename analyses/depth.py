"""Figures 13 and 23: where in a response does instability begin (§6.1, App. D.1)?"""

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analyses.evidence import FIRST, LAST, Evidence, claim, ratios
from analyses.results import Results
from analyses.sums import window
from opdprobe.probes import heat_map
from opdprobe.probes.bootstrap import Estimate, ratio
from opdprobe.probes.quantities import axis_label
from opdprobe.report.panel import Heat, Panel

Probe = Callable[[xr.Dataset], xr.DataArray]

RUN = "length_6"
N_ROWS = 20
MAX_COLUMNS = 40


def student(evidence: Evidence) -> Results:
    """Student entropy by output position over training steps."""
    return _analyse(evidence, "fig13", "student", section="6.1")


def teacher(evidence: Evidence) -> Results:
    """Teacher entropy by output position over training steps."""
    return _analyse(evidence, "fig23", "teacher", section="D.1")


def _analyse(evidence: Evidence, figure: str, model: str, *, section: str) -> Results:
    def entropy(ds: xr.Dataset) -> xr.DataArray:
        return ds.opd.entropy(model)

    def part(start: float, stop: float, steps: slice) -> list[Estimate]:
        return _part(evidence, entropy, start, stop, steps)

    edges = _edges(evidence)
    width = max(1, (edges.size - 1) // 4)
    maps = [heat_map(run, entropy, bins=edges.tolist()) for run in evidence.runs[RUN]]
    return Results(
        figure=figure,
        title=f"{model.capitalize()} entropy by output position",
        section=section,
        claim="Instability starts at the end of responses and moves forward as training goes on.",
        meta=evidence.meta([RUN]),
        panels=[_panel(maps, model)],
        claims=[
            claim(
                f"{figure}.end_first",
                f"early on, the {model}'s entropy is higher at the end of responses than at the "
                "beginning",
                paper="the end first",
                ours=ratios(part(0.75, 1, FIRST), part(0, 0.25, FIRST)),
                statistic="mean of the first 5 steps, last / first quarter of each finished "
                "response",
                above=1.2,
            ),
            claim(
                f"{figure}.end_first_position",
                f"early on, the {model}'s entropy is higher at late positions than at early ones",
                paper="the end first",
                ours=ratios(
                    _positions(evidence, entropy, edges[-1 - width], edges[-1]),
                    _positions(evidence, entropy, 0, edges[width]),
                ),
                statistic="mean of the first 5 steps, last / first quarter of the positions",
                above=1.2,
            ),
            claim(
                f"{figure}.moves_forward",
                f"the {model}'s high entropy moves forward as training goes on",
                paper="from back to front",
                ours=ratios(
                    ratios(part(0.25, 0.75, LAST), part(0.75, 1, LAST)),
                    ratios(part(0.25, 0.75, FIRST), part(0.75, 1, FIRST)),
                ),
                statistic="middle half / last quarter of each finished response, last 5 steps / "
                "first 5 steps",
                above=1,
            ),
        ],
    )


def _part(
    evidence: Evidence, probe: Probe, start: float, stop: float, steps: slice
) -> list[Estimate]:
    """Mean over a part of each finished response, given by shares of its length, one per seed."""

    def inside(ds: xr.Dataset) -> xr.DataArray:
        rollout = ds["rollout"].values
        share = ds["position"].values / ds["length"].values[rollout]
        there = (share >= start) & (share < stop) & (ds["finished"].values[rollout] == 1)
        return probe(ds).where(xr.DataArray(there, dims="state"))

    return [window(run, inside, run.steps[steps]) for run in evidence.runs[RUN]]


def _positions(evidence: Evidence, probe: Probe, start: int, stop: int) -> list[Estimate]:
    """Mean over a range of positions in the first steps, one per seed."""

    def inside(ds: xr.Dataset) -> xr.DataArray:
        return probe(ds).where((ds["position"] >= start) & (ds["position"] < stop))

    return [window(run, inside, run.steps[FIRST]) for run in evidence.runs[RUN]]


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
