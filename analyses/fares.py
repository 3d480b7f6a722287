"""How the selectors of tokens fare in figures 25 and 26: a section of the page of diagnostics."""

from collections.abc import Sequence

from analyses.claims import SIGNS, finding
from analyses.experiments import SELECTED, SELECTION_MATTERS
from analyses.results import Claim, Results

BEGIN = "<!-- fares: written by `opdprobe figures` from the results files; not edited by hand -->"
END = "<!-- end of fares -->"

COLUMNS = {
    "better than a random fifth": "fig25.{}_chosen",
    "as good as all": "fig25.{}_suffices",
    "as fast as all": "fig26.{}_speed",
    "as good as the other four": "fig26.{}_kept",
    "missed more than a random fifth": "fig26.{}_needed",
}
"""Column of the table to the name of the claim that it shows."""


def fares_markdown(results: Sequence[Results]) -> str:
    """Write the table of the selectors, and how to read it.

    Parameters
    ----------
    results : sequence of analyses.results.Results
        Those of figures 25 and 26 are used; others are ignored.

    Returns
    -------
    str
        A few paragraphs of Markdown; one sentence if neither figure is there.
    """
    used = [result for result in results if result.figure in ("fig25", "fig26")]
    if not used:
        return (
            "The runs that tell (figures 25 and 26) are not published yet; "
            "`make reproduce-selectors` makes them."
        )
    claims = {claim.id: claim for result in used for claim in result.claims}
    meta = used[0].meta
    lines = [
        f"Figures 25 and 26 train the testbed's student on a fifth of each step's tokens (preset "
        f"{meta.preset}, seeds {', '.join(map(str, meta.seeds))}); the [claims](claims.md) have "
        "tenths and halves, too. Numbers are differences of accuracies with their intervals. ✓: "
        "what the column says holds on the whole interval, ✗: nowhere on it, –: this is not told. "
        f"*Better* and *more* are by {SELECTION_MATTERS:g} or more; *as good* and *as fast* allow "
        f"for {SELECTION_MATTERS:g} less. One student, one task, one learning rate, and "
        "short runs: a selector that teaches more slowly may still arrive.",
        "",
        "| selector | " + " | ".join(COLUMNS) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for selector in SELECTED:
        found = [claims.get(name.format(selector)) for name in COLUMNS.values()]
        lines.append(f"| {SELECTED[selector]} | " + " | ".join(map(_cell, found)) + " |")
    return "\n".join(lines)


def with_fares(page: str, results: Sequence[Results]) -> str:
    """Write the section anew into a page that has its two marks; any other page stays."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        return page
    return f"{before}{begin}\n\n{fares_markdown(results)}\n\n{end}{after}"


def _cell(claim: Claim | None) -> str:
    return "not tried" if claim is None else f"{SIGNS[claim.verdict]} {finding(claim)}"
