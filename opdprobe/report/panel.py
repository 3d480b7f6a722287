"""Panels as data: lines, bars, samples and heat maps. Does not import matplotlib."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from opdprobe.errors import OPDProbeError

Kind = Literal["line", "histogram", "bar", "heatmap"]

KINDS: tuple[Kind, ...] = ("line", "histogram", "bar", "heatmap")


class PanelError(OPDProbeError):
    """A panel's data contradict each other."""


@dataclass(frozen=True)
class Series:
    """One line with its band, one colour of bars, or the sample behind one histogram.

    Parameters
    ----------
    role
        Key of `opdprobe.report.style.ROLES`: fixes colour, marker and line style.
    label
        Name in the legend.
    x, y, low, high : sequence of float
        Points of a line (or tops of bars) and ends of their intervals, of equal length; NaN where
        there is no interval.
    values : sequence of float
        Sample of a histogram; `x`, `y`, `low` and `high` are then empty.

    Raises
    ------
    PanelError
        The lengths differ, or the series has both a line and a sample.

    Examples
    --------
    >>> line = Series("success", "RL'd teacher", x=[0], y=[0.5], low=[0.4], high=[0.6])
    >>> Series("correct", "correct", values=[]).values  # a run without a correct rollout
    []
    >>> Series("success", "RL'd teacher", x=[0, 1], y=[0.5])
    Traceback (most recent call last):
    ...
    opdprobe.report.panel.PanelError: series "RL'd teacher": x, y, low, high have 2, 1, 0, 0 ...
    """

    role: str
    label: str
    x: Sequence[float] = ()
    y: Sequence[float] = ()
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    values: Sequence[float] = ()

    def __post_init__(self):
        lengths = [len(v) for v in (self.x, self.y, self.low, self.high)]
        if len(set(lengths)) > 1:
            raise PanelError(
                f"series {self.label!r}: x, y, low, high have {', '.join(map(str, lengths))} "
                "values; give each the same number (NaN where there is no interval)."
            )
        if self.x and self.values:
            raise PanelError(
                f"series {self.label!r} has a line and a sample; give x, y, low, high or values."
            )


@dataclass(frozen=True)
class Reference:
    """A horizontal line: an accuracy to compare a curve or bars with.

    Parameters
    ----------
    role, label
        As in `Series`.
    y
        Height, in the panel's unit.
    """

    role: str
    label: str
    y: float


@dataclass(frozen=True)
class Heat:
    """The data of a heat map: one number per column and row.

    Parameters
    ----------
    x
        Columns, such as training steps, increasing.
    y
        Rows, such as the middles of bins of output positions, increasing.
    z
        One sequence per row, with one number per column; NaN for an empty cell.
    label
        Label of the colour bar: the quantity with its unit.

    Raises
    ------
    PanelError
        `x` or `y` is empty or does not increase, or the shape of `z` does not match them.

    Examples
    --------
    >>> heat = Heat(x=[0, 10], y=[16, 48, 80], z=[[0.9, 0.8], [0.9, 0.7], [1.2, float("nan")]],
    ...             label="student entropy [nats]")
    >>> heat.z[2][0]  # at step 0, around position 80
    1.2
    >>> Heat(x=[0, 10], y=[16], z=[[0.9]], label="student entropy [nats]")
    Traceback (most recent call last):
    ...
    opdprobe.report.panel.PanelError: heat map 'student entropy [nats]': z has 1 rows of 1 ...
    """

    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Sequence[float]]
    label: str

    def __post_init__(self):
        for name, values in (("x", self.x), ("y", self.y)):
            if not len(values) or not all(a < b for a, b in pairwise([-math.inf, *values])):
                raise PanelError(
                    f"heat map {self.label!r}: {name} is {list(values)}; give increasing numbers."
                )
        widths = sorted({len(row) for row in self.z})
        if len(self.z) != len(self.y) or widths != [len(self.x)]:
            raise PanelError(
                f"heat map {self.label!r}: z has {len(self.z)} rows of "
                f"{' or '.join(map(str, widths))} numbers; give {len(self.y)} (y) "
                f"of {len(self.x)} (x)."
            )


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Parameters
    ----------
    name
        Identifier, unique in a figure.
    title
        Heading.
    x_label, y_label
        Axis labels, with the unit where there is one.
    kind
        ``"line"``, ``"histogram"``, ``"bar"`` or ``"heatmap"``: which of the fields here and in
        `Series` are filled.
    series
        Series to draw, the first at the bottom. A heat map has none.
    references
        Horizontal lines.
    ticks
        Names of categories; required for bars, optional for lines. The `x` of the series are then
        positions in this list, 0 to ``len(ticks) - 1``.
    heat
        Data of a heat map; None for every other kind.

    Raises
    ------
    PanelError
        The kind is unknown, a field belongs to another kind, or an `x` has no tick.

    Examples
    --------
    >>> def bars(x):
    ...     return Series("teacher", "teacher", x=x, y=[0.7, 0.4], low=[0.6, 0.3], high=[0.8, 0.5])
    >>> Panel("accuracy", "Teachers", "benchmark", "accuracy", "bar", [bars([0, 1])],
    ...       ticks=["AIME24", "AMC23"]).ticks
    ['AIME24', 'AMC23']
    >>> Panel("accuracy", "Teachers", "benchmark", "accuracy", "bar", [bars([1, 2])],
    ...       ticks=["AIME24", "AMC23"])
    Traceback (most recent call last):
    ...
    opdprobe.report.panel.PanelError: panel 'accuracy' has x 2 in teacher, but 2 ticks; ...
    """

    name: str
    title: str
    x_label: str
    y_label: str
    kind: Kind
    series: Sequence[Series]
    references: Sequence[Reference] = ()
    ticks: Sequence[str] = ()
    heat: Heat | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise PanelError(
                f"panel {self.name!r} is of kind {self.kind!r}; choose one of {', '.join(KINDS)}."
            )
        if (self.heat is not None) != (self.kind == "heatmap"):
            has = "no heat" if self.heat is None else "heat"
            raise PanelError(
                f"panel {self.name!r} is a {self.kind} with {has}; give heat to heatmaps only."
            )
        if self.kind == "heatmap" and (self.series or self.references):
            raise PanelError(
                f"panel {self.name!r} is a heatmap, but has series or references; it shows neither."
            )
        other = "x" if self.kind == "histogram" else "values"
        wrong = [s.label for s in self.series if len(getattr(s, other))]
        if wrong:
            raise PanelError(
                f"panel {self.name!r} is a {self.kind}, but has {other} in {', '.join(wrong)}."
            )
        self._check_ticks()

    def _check_ticks(self) -> None:
        if self.kind == "bar" and not self.ticks:
            raise PanelError(f"panel {self.name!r} is a bar without ticks; name its categories.")
        if not self.ticks:
            return
        if self.kind not in ("line", "bar"):
            raise PanelError(f"panel {self.name!r} is a {self.kind}, which has no ticks.")
        places = range(len(self.ticks))
        for series in self.series:
            outside = [str(x) for x in series.x if x not in places]
            if outside:
                raise PanelError(
                    f"panel {self.name!r} has x {', '.join(outside)} in {series.label}, but "
                    f"{len(places)} ticks; give whole numbers from 0 to {places[-1]}."
                )
