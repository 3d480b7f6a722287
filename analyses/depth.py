"""Figures 13 and 23: where in a response does instability begin (§6.1, App. D.1)?"""

from collections.abc import Callable, Mapping

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

    edges = _edges(evidence)
    width = max(1, (edges.size - 1) // 4)
    parts = {"first": _share(0, 0.25), "middle": _share(0.25, 0.75), "last": _share(0.75, 1)}
    positions = {
        "early": _positions(0, edges[width]),
        "late": _positions(edges[-1 - width], edges[-1]),
    }
    begin = _means(evidence, entropy, parts | positions, FIRST)
    end = _means(evidence, entropy, parts, LAST)
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
                ours=ratios(begin["last"], begin["first"]),
                statistic="mean of the first 5 steps, last / first quarter of each finished "
                "response",
                above=1.2,
            ),
            claim(
                f"{figure}.end_first_position",
                f"early on, the {model}'s entropy is higher at late positions than at early ones",
                paper="the end first",
                ours=ratios(begin["late"], begin["early"]),
                statistic="mean of the first 5 steps, last / first quarter of the positions",
                above=1.2,
            ),
            claim(
                f"{figure}.moves_forward",
                f"the {model}'s high entropy moves forward as training goes on",
                paper="from back to front",
                ours=ratios(
                    ratios(end["middle"], end["last"]),
                    ratios(begin["middle"], begin["last"]),
                ),
                statistic="middle half / last quarter of each finished response, last 5 steps / "
                "first 5 steps",
                above=1,
            ),
        ],
    )


def _share(start: float, stop: float) -> Probe:
    """Tell which states are in a part of a finished response, given by shares of its length."""

    def inside(ds: xr.Dataset) -> xr.DataArray:
        rollout = ds["rollout"].values
        share = ds["position"].values / ds["length"].values[rollout]
        there = (share >= start) & (share < stop) & (ds["finished"].values[rollout] == 1)
        return xr.DataArray(there, dims="state")

    return inside


def _positions(start: int, stop: int) -> Probe:
    """Tell which states are in a range of positions."""
    return lambda ds: (ds["position"] >= start) & (ds["position"] < stop)


def _means(
    evidence: Evidence, probe: Probe, inside: Mapping[str, Probe], steps: slice
) -> dict[str, list[Estimate]]:
    """Mean of a probe over each set of states in some steps, one per seed; reads a step once."""
    masked = {name: lambda ds, of=of: probe(ds).where(of(ds)) for name, of in inside.items()}
    every = [window(run, masked, run.steps[steps]) for run in evidence.runs[RUN]]
    return {name: [one[name] for one in every] for name in inside}


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
