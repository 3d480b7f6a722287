"""The results file: what an analysis hands to a figure and to the report, one small JSON a figure.

Equal results give equal bytes: no time stamps, keys sorted. JSON has no NaN and no infinity; they
are written as ``null`` and as ``"inf"`` or ``"-inf"``.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from opdprobe.errors import OPDProbeError

FORMAT = "opdprobe-results"
FORMAT_VERSION = 2  # 1 knew neither bars nor heat maps

Kind = Literal["line", "histogram", "bar", "heatmap"]
Verdict = Literal["shown", "not shown", "opposite"]

KINDS: tuple[Kind, ...] = ("line", "histogram", "bar", "heatmap")
VERDICTS: tuple[Verdict, ...] = ("shown", "not shown", "opposite")


class ResultsError(OPDProbeError):
    """Results are missing, foreign, damaged, of a newer format or contradict themselves."""


@dataclass(frozen=True)
class Series:
    """One line with its band, one colour of bars, or the sample behind one histogram.

    Parameters
    ----------
    role
        Key of `figures.style.ROLES`: fixes colour, marker and line style.
    label
        Name in the legend.
    x, y, low, high : sequence of float
        Points (of a line, or tops of bars) and ends of their intervals, of one length; NaN where
        there is none.
    values : sequence of float
        Sample; then the line is empty.

    Raises
    ------
    ResultsError
        If lengths differ, or there is both a line and a sample.

    Examples
    --------
    >>> line = Series("success", "RL'd teacher", x=[0], y=[0.5], low=[0.4], high=[0.6])
    >>> Series("correct", "correct", values=[]).values  # a run without a correct rollout
    []
    >>> Series("success", "RL'd teacher", x=[0, 1], y=[0.5])
    Traceback (most recent call last):
    ...
    analyses.results.ResultsError: series "RL'd teacher": x, y, low, high have 2, 1, 0, 0 ...
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
            raise ResultsError(
                f"series {self.label!r}: x, y, low, high have {', '.join(map(str, lengths))} "
                "values; give each the same number (NaN where there is no interval)."
            )
        if self.x and self.values:
            raise ResultsError(
                f"series {self.label!r} has a line and a sample; give x, y, low, high or values."
            )


@dataclass(frozen=True)
class Reference:
    """A horizontal line: an accuracy that a curve or bars are to be read against.

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
    """What a heat map shows: one number for each pair of a column and a row.

    Parameters
    ----------
    x
        Columns, such as training steps, increasing.
    y
        Rows, such as the middles of bins of output positions, increasing.
    z
        A sequence for each row, with a number for each column; NaN where there is nothing.
    label
        What the numbers are, with their unit: the label of the colour bar.

    Raises
    ------
    ResultsError
        If `x` or `y` is empty or does not increase, or `z` is not of their lengths.

    Examples
    --------
    >>> heat = Heat(x=[0, 10], y=[16, 48, 80], z=[[0.9, 0.8], [0.9, 0.7], [1.2, float("nan")]],
    ...             label="student entropy [nats]")
    >>> heat.z[2][0]  # at step 0, around position 80
    1.2
    >>> Heat(x=[0, 10], y=[16], z=[[0.9]], label="student entropy [nats]")
    Traceback (most recent call last):
    ...
    analyses.results.ResultsError: heat map 'student entropy [nats]': z has 1 rows of 1 numbers; ...
    """

    x: Sequence[float]
    y: Sequence[float]
    z: Sequence[Sequence[float]]
    label: str

    def __post_init__(self):
        for name, values in (("x", self.x), ("y", self.y)):
            if not len(values) or not all(a < b for a, b in pairwise([-math.inf, *values])):
                raise ResultsError(
                    f"heat map {self.label!r}: {name} is {list(values)}; give increasing numbers."
                )
        widths = sorted({len(row) for row in self.z})
        if len(self.z) != len(self.y) or widths != [len(self.x)]:
            raise ResultsError(
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
        What is drawn, first at the bottom. A heat map has none.
    references
        Horizontal lines.
    ticks
        Names of categories, for bars and where wanted for lines. The `x` of the series are then
        places in this list, 0 to ``len(ticks) - 1``.
    heat
        What a heat map shows; None for every other kind.

    Raises
    ------
    ResultsError
        If the kind is unknown, something is of another kind, or an `x` has no tick.

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
    analyses.results.ResultsError: panel 'accuracy' has x 2 in teacher, but 2 ticks; ...
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
            raise ResultsError(
                f"panel {self.name!r} is of kind {self.kind!r}; choose one of {', '.join(KINDS)}."
            )
        if (self.heat is not None) != (self.kind == "heatmap"):
            has = "no heat" if self.heat is None else "heat"
            raise ResultsError(
                f"panel {self.name!r} is a {self.kind} with {has}; give heat to heatmaps alone."
            )
        if self.kind == "heatmap" and (self.series or self.references):
            raise ResultsError(
                f"panel {self.name!r} is a heatmap, but has series or references; it shows neither."
            )
        other = "x" if self.kind == "histogram" else "values"
        wrong = [s.label for s in self.series if len(getattr(s, other))]
        if wrong:
            raise ResultsError(
                f"panel {self.name!r} is a {self.kind}, but has {other} in {', '.join(wrong)}."
            )
        self._check_ticks()

    def _check_ticks(self) -> None:
        if self.kind == "bar" and not self.ticks:
            raise ResultsError(f"panel {self.name!r} is a bar without ticks; name its categories.")
        if not self.ticks:
            return
        if self.kind not in ("line", "bar"):
            raise ResultsError(f"panel {self.name!r} is a {self.kind}, which has no ticks.")
        places = range(len(self.ticks))
        for series in self.series:
            outside = [str(x) for x in series.x if x not in places]
            if outside:
                raise ResultsError(
                    f"panel {self.name!r} has x {', '.join(outside)} in {series.label}, but "
                    f"{len(places)} ticks; give whole numbers from 0 to {places[-1]}."
                )


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what these runs say about it.

    Parameters
    ----------
    id
        The figure's name, a full stop and what is claimed: ``figNN.what``, ``selection.what``.
    claim
        The paper's claim.
    paper
        The paper's number for it, as text.
    ours, low, high
        The number found and its interval, in `unit`; NaN where there is none.
    unit
        Unit of the three; empty for a ratio.
    test
        The test that decides, in words.
    verdict
        ``"shown"``, ``"not shown"`` or ``"opposite"``.

    Raises
    ------
    ResultsError
        If the verdict is none of these.

    Examples
    --------
    >>> claim = Claim("fig06.recovery", "the teacher closes the gap", "> 80 %", 0.9, 0.8,
    ...               float("nan"), "", "gap recovery ≥ 0.80", "shown")
    >>> claim.to_dict()["ours"], claim.to_dict()["high"]
    (0.9, None)
    """

    id: str
    claim: str
    paper: str
    ours: float
    low: float
    high: float
    unit: str
    test: str
    verdict: Verdict

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ResultsError(
                f"claim {self.id!r} has the verdict {self.verdict!r}; "
                f"choose one of {', '.join(VERDICTS)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values: NaN becomes None."""
        return _encode(asdict(self))


@dataclass(frozen=True)
class Meta:
    """Where the numbers come from. No time stamps: the same input gives the same bytes.

    Parameters
    ----------
    preset
        Preset of `opdprobe reproduce`.
    seeds
        Seeds, one run each.
    k
        Tokens of a top-k list.
    n_rollouts, n_states
        Recorded rollouts and states behind the figure.
    interval
        What bands and brackets are, in words.
    runs
        Run to its properties (``student``, ``teacher``, ``steps``, …), in the order to list them.
    commit
        Commit of the code that recorded the runs, or several; empty if unknown.
    version
        Version of opdprobe that analysed them.
    config
        Settings that all the runs share; a run's own are among its properties, as ``settings``.
    """

    preset: str
    seeds: Sequence[int]
    k: int
    n_rollouts: int
    n_states: int
    interval: str
    runs: Mapping[str, Mapping[str, str | int]]
    commit: str
    version: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All that a figure shows and the report says about it.

    Parameters
    ----------
    figure
        ``figNN``, the paper's number; or ``selection``, for the comparison of ways to select data,
        which the paper has no figure of.
    title
        Heading.
    section
        The paper's section, such as ``"4.1"`` or ``"B.1"``.
    claim
        What the figure carries in the paper, in one line.
    meta
        Provenance.
    panels
        Axes, in reading order.
    claims
        Claims with their verdicts.

    Raises
    ------
    ResultsError
        If the figure's name is neither ``figNN`` nor ``selection``.

    Examples
    --------
    >>> import tempfile
    >>> meta = Meta("quick", [0], 16, 64, 512, "95 % bootstrap", {}, "", "0.1.0")
    >>> results = Results("fig06", "Success and failure", "4.1", "Overlap rises.", meta, [], [])
    >>> results.heading
    'Figure 6 (§4.1)'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(results, Path(folder, "fig06.json"))
    ...     load(Path(folder, "fig06.json")) == results
    True
    """

    figure: str
    title: str
    section: str
    claim: str
    meta: Meta
    panels: Sequence[Panel]
    claims: Sequence[Claim]

    def __post_init__(self):
        if not re.fullmatch(r"fig\d\d|selection", self.figure):
            raise ResultsError(
                f"figure {self.figure!r} should be figNN, such as fig06, or selection."
            )

    @property
    def heading(self) -> str:
        """Name and place in the paper, such as ``"Figure 6 (§4.1)"``."""
        name = "Data selection" if self.figure == "selection" else f"Figure {int(self.figure[3:])}"
        appendix = self.section[:1].isalpha()
        return f"{name} ({'App. ' if appendix else '§'}{self.section})"


def save(results: Results, path: Path) -> None:
    """Write a results file, whole or not at all; makes its directory.

    Parameters
    ----------
    results
        What to write.
    path
        The file, replaced if it exists.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **_encode(asdict(results))}
    # The runs' order is the order to list them in; sorted keys would lose it.
    content["meta"]["runs"] = [{"name": n, **run} for n, run in content["meta"]["runs"].items()]
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def load(path: Path) -> Results:
    """Read a results file.

    Parameters
    ----------
    path
        What `save` wrote, named after its figure.

    Raises
    ------
    ResultsError
        If the file is missing, is no results file, is damaged, or is of a newer format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"no results for {path.stem}: {path} does not exist; "
            f"run `opdprobe reproduce --only {path.stem}`."
        ) from None
    except ValueError as error:  # JSON's and UTF-8's errors are both ValueErrors
        raise ResultsError(f"{path} is no JSON file ({error}); {_again(path)}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ResultsError(f'{path} has no "format": "{FORMAT}": it is no results file.')
    version = content.pop("format_version", None)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ResultsError(
            f"{path} is of format version {version}; this opdprobe reads up to {FORMAT_VERSION}: "
            "update opdprobe."
        )
    try:
        return _decode(content)
    except (ResultsError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ResultsError(
            f"{path} is damaged ({type(error).__name__}: {error}); {_again(path)}"
        ) from None


def _again(path: Path) -> str:
    return f"write it again with `opdprobe reproduce --only {path.stem}`."


def _encode(value: Any) -> Any:
    if isinstance(value, float):
        value = float(value)  # NumPy's float64 is a float, but has another repr
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _encode(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    return value


def _decode(content: dict[str, Any]) -> Results:
    meta = content.pop("meta")
    runs = {run.pop("name"): run for run in meta.pop("runs")}
    panels = [_panel(**panel) for panel in content.pop("panels")]
    claims = [
        Claim(**{**claim, **{name: _float(claim[name]) for name in ("ours", "low", "high")}})
        for claim in content.pop("claims")
    ]
    return Results(**content, meta=Meta(**meta, runs=runs), panels=panels, claims=claims)


def _panel(
    series: list[dict[str, Any]],
    references: list[dict[str, Any]],
    heat: dict[str, Any] | None = None,  # absent in version 1, as ticks are
    **fields: Any,
) -> Panel:
    return Panel(
        **fields,
        series=[_series(**one) for one in series],
        references=[Reference(**{**line, "y": _float(line["y"])}) for line in references],
        heat=None if heat is None else _heat(**heat),
    )


def _heat(x: list[Any], y: list[Any], z: list[list[Any]], label: str) -> Heat:
    rows = [[_float(n) for n in row] for row in z]
    return Heat([_float(n) for n in x], [_float(n) for n in y], rows, label)


def _series(role: str, label: str, **numbers: list[Any]) -> Series:
    return Series(role, label, **{k: [_float(n) for n in v] for k, v in numbers.items()})


def _float(value: float | str | None) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        return float(value)
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is no number")
    return value  # a whole number stays one: what is read is written again as it was
