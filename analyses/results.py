"""The results file, one small JSON per figure: an analysis writes it, figure and report read it.

Equal results give equal bytes: there are no time stamps, and keys are sorted. Since JSON has no NaN
or infinity, they are written as ``null`` and as ``"inf"`` or ``"-inf"``.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from opdprobe.errors import OPDProbeError
from opdprobe.report.panel import Heat, Panel, PanelError, Reference, Series
from opdprobe.store.files import write_text

FORMAT = "opdprobe-results"
FORMAT_VERSION = 3

Verdict = Literal["supported", "inconclusive", "refuted"]

VERDICTS: tuple[Verdict, ...] = ("supported", "inconclusive", "refuted")


_OWN = {
    "selection": "Data selection",
    "rates": "Learning rates",
    "controls": "Negative controls",
}


class ResultsError(OPDProbeError):
    """Results are missing, foreign, damaged, of a newer format, or contradict each other."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the result of these runs on it.

    Parameters
    ----------
    id
        The figure's name, a full stop and the claim's name: ``figNN.what``, ``selection.what``.
    claim
        The paper's claim.
    paper
        The paper's number for it, as text.
    ours, low, high
        The number found and its interval; NaN if there is none.
    level
        Level of the interval: 0.95, or 0.9 for an equivalence.
    seeds
        The number for each seed.
    test
        What the claim says of the number.
    verdict
        ``"supported"`` if that holds on the whole interval, ``"refuted"`` if it holds nowhere on
        it, ``"inconclusive"`` otherwise.
    repeats
        Name of another figure's claim about the same comparison; empty if there is none.

    Raises
    ------
    ResultsError
        The verdict is none of these.

    Examples
    --------
    >>> claim = Claim("fig06.recovery", "the teacher closes the gap", "> 80 %", 0.9, 0.85,
    ...               float("nan"), 0.95, [0.9], "gap recovery > 0.8", "inconclusive")
    >>> claim.to_dict()["ours"], claim.to_dict()["high"]
    (0.9, None)
    """

    id: str
    claim: str
    paper: str
    ours: float
    low: float
    high: float
    level: float
    seeds: Sequence[float]
    test: str
    verdict: Verdict
    repeats: str = ""

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
    """Provenance of the numbers, without time stamps: the same input gives the same bytes.

    Parameters
    ----------
    preset
        Preset of `opdprobe reproduce`.
    seeds
        Seeds, one run each.
    k
        Number of tokens of a top-k list.
    n_rollouts, n_states
        Number of recorded rollouts and states behind the figure.
    interval
        Meaning of bands and brackets, in words.
    runs
        Run to its properties (``student``, ``teacher``, ``steps``, …), in the order to list them.
    commit
        Commit of the code that recorded the runs, or several; empty if unknown.
    version
        Version of opdprobe that analysed them.
    config
        Settings that all runs share; the property ``settings`` of a run holds its own.
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
    """All data of a figure and of the report on it.

    Parameters
    ----------
    figure
        ``figNN`` with the paper's number; or one that the paper does not have: those above 23;
        ``selection``, ways to select data; ``rates``, learning rates of what fails; ``controls``,
        negative controls.
    title
        Heading.
    section
        The paper's section, such as ``"4.1"`` or ``"B.1"``; empty if the claims are others'.
    claim
        The paper's or others' claim that the figure tests, in one line.
    meta
        Provenance.
    panels
        Axes, in reading order.
    claims
        Claims with their verdicts.

    Raises
    ------
    ResultsError
        The figure has no such name.

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
        if not re.fullmatch(r"fig\d\d|selection|rates|controls", self.figure):
            raise ResultsError(
                f"figure = {self.figure!r}; expected figNN, such as fig06, selection, rates or "
                "controls."
            )

    @property
    def heading(self) -> str:
        """Name and section in the paper, such as ``"Figure 6 (§4.1)"``."""
        name = _OWN.get(self.figure) or f"Figure {int(self.figure[3:])}"
        if not self.section:
            return name
        appendix = self.section[:1].isalpha()
        return f"{name} ({'App. ' if appendix else '§'}{self.section})"


def save(results: Results, path: Path) -> None:
    """Write a results file atomically; creates its directory.

    Parameters
    ----------
    results
        The results.
    path
        The file, replaced if it exists.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **_encode(asdict(results))}
    # Runs are listed in this order, which sorted keys would lose.
    content["meta"]["runs"] = [{"name": n, **run} for n, run in content["meta"]["runs"].items()]
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def load(path: Path) -> Results:
    """Read a results file.

    Parameters
    ----------
    path
        File written by `save`, named after its figure.

    Raises
    ------
    ResultsError
        The file is missing, damaged, of a newer format, or not a results file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(
            f"no results for {path.stem}: {path} does not exist; "
            f"run `opdprobe reproduce --only {path.stem}`."
        ) from None
    except ValueError as error:  # JSON's and UTF-8's errors are both ValueErrors
        raise ResultsError(f"{path} is not a JSON file ({error}); {_again(path)}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ResultsError(f'{path} is not a results file; expected "format": "{FORMAT}" in it.')
    version = content.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ResultsError(
            f"{path} is of format version {version}; this opdprobe reads version "
            f"{FORMAT_VERSION}: update opdprobe, or {_again(path)}"
        )
    try:
        return _decode(content)
    except (ResultsError, PanelError, AttributeError, KeyError, TypeError, ValueError) as error:
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
        Claim(
            **{
                **claim,
                **{name: _float(claim[name]) for name in ("ours", "low", "high")},
                "seeds": [_float(value) for value in claim["seeds"]],
            }
        )
        for claim in content.pop("claims")
    ]
    return Results(**content, meta=Meta(**meta, runs=runs), panels=panels, claims=claims)


def _panel(
    series: list[dict[str, Any]],
    references: list[dict[str, Any]],
    heat: dict[str, Any] | None,
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
        raise TypeError(f"{value!r} is not a number")
    return value  # an int stays an int, so that saving again gives the same bytes
