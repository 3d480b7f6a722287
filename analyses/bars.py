"""Panels of bars: one number per model or run, side by side."""

from collections.abc import Mapping, Sequence

from analyses.evidence import Evidence
from opdprobe.probes.bootstrap import Estimate
from opdprobe.report.estimate import combine
from opdprobe.report.panel import Panel, Series


def recovery_panel(
    evidence: Evidence, bars: Mapping[tuple[str, str], Sequence[str]], families: Sequence[str]
) -> Panel:
    """Gap recovery rate by model family.

    Parameters
    ----------
    bars
        Plotting role and legend label to one experiment per family.
    families
        Names of the families.
    """
    return Panel(
        name="recovery",
        title="Gap recovery",
        x_label="model family",
        y_label="gap recovery rate",
        kind="bar",
        series=[
            bar_series([evidence.recovery(name) for name in experiments], role=role, label=label)
            for (role, label), experiments in bars.items()
        ],
        ticks=families,
    )


def bar_series(groups: Sequence[Sequence[Estimate]], *, role: str, label: str) -> Series:
    """Return one bar per group, at its tick; a group has one estimate per seed."""
    value, low, high = zip(*map(combine, groups), strict=True)
    x = list(range(len(groups)))
    return Series(role, label, x=x, y=list(value), low=list(low), high=list(high))
