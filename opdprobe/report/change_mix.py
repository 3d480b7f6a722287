"""How much of a run's changes is left at the same output positions, for the report."""

from collections.abc import Mapping, Sequence

import numpy as np

from opdprobe.probes.mix import Mix, position_mix
from opdprobe.probes.quantities import QUANTITIES, axis_label
from opdprobe.report.course import Course
from opdprobe.report.estimate import number
from opdprobe.report.finding import Evidence, Finding, change, look, lower
from opdprobe.store import Run

_LEAST_COVERED = 0.5


def change_mix(run: Run, found: Course) -> dict[str, Mix]:
    """Split the change of each quantity between the run's first and last steps.

    Parameters
    ----------
    run, found
        A run and its course. Reads the first and the last steps again.

    Returns
    -------
    dict of str to Mix
        By quantity of states; empty for a run of one step.
    """
    names = [n for n, q in QUANTITIES.items() if q.per == "state" and found.has(n)]
    if len(found.steps) < 2 or not names:
        return {}
    first, last = found.steps[found.first], found.steps[found.last]
    return position_mix(run, {name: name for name in names}, first, last)


def mix_finding(found: Course, mix: Mapping[str, Mix]) -> list[Finding]:
    """Name the clear changes most of which is due to the mix of positions; at most one finding.

    A change is clear if its interval excludes 0, and the comparison says something if the last
    steps reach at least half of the first steps' states by position.
    """
    evidence = []
    for name, one in mix.items():
        moved = change(found, name)
        clear = moved.low > 0 or moved.high < 0
        if clear and one.mostly_mix and one.covered >= _LEAST_COVERED:
            text = (
                f"{lower(name)} {_signed(one.change)} over the visited states, "
                f"{_signed(one.standardised)} at the positions of the first steps"
            )
            nan = float("nan")
            evidence.append(Evidence(name, text, one.standardised, nan, nan, moved.steps))
    if not evidence:
        return []
    return [
        Finding(
            "other_positions",
            "note",
            "Other positions rather than other values",
            "Most of these changes come from where in their responses the states are: the models "
            "changed less than the curves did, or the other way.",
            tuple(evidence),
            "Score the same contexts with every checkpoint (opdprobe probe --fixed-contexts).",
            **look(found, evidence[0].quantity, found.last, 1, "reverse_kl"),
        )
    ]


def mix_rows(mixes: Sequence[Mapping[str, Mix]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return rows for the report: a quantity, and its two changes per run."""
    return [
        (
            axis_label(QUANTITIES[name].title, QUANTITIES[name].name.units),
            [_cells(mix.get(name)) for mix in mixes],
        )
        for name in QUANTITIES
        if any(name in mix for mix in mixes)
    ]


def _cells(one: Mix | None) -> tuple[str, str]:
    if one is None:
        return "–", "–"
    same = one.standardised if one.covered >= _LEAST_COVERED else np.nan
    return _signed(one.change), _signed(same)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)
