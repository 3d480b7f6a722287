"""Claims and verdicts as text, for the page and for the terminal."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from analyses.results import Claim, Results

SIGNS = {"shown": "✓", "not shown": "–", "opposite": "✗"}
COLOURS = {"shown": "green", "not shown": "yellow", "opposite": "red"}


def number(value: float) -> str:
    """Write a number with three significant digits.

    Examples
    --------
    >>> number(0.91234), number(-0.25), number(float("nan"))
    ('0.912', '−0.25', 'n/a')
    """
    return "n/a" if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def finding(claim: "Claim") -> str:
    """Write what was found for a claim: the number, its interval if it has one, its unit.

    Examples
    --------
    >>> from analyses.results import Claim
    >>> nan = float("nan")
    >>> finding(Claim("fig06.x", "", "", 0.9, 0.85, 0.954, "", "", "shown"))
    '0.9 [0.85, 0.954]'
    >>> finding(Claim("fig06.x", "", "", 0.9, nan, nan, "nats", "", "shown"))
    '0.9 nats'
    """
    text = number(claim.ours)
    if not (math.isnan(claim.low) and math.isnan(claim.high)):
        text += f" [{number(claim.low)}, {number(claim.high)}]"
    return f"{text} {claim.unit}".rstrip()


def verdict(claim: "Claim") -> str:
    """Write a verdict with its sign, which tells it without colour."""
    return f"{SIGNS[claim.verdict]} {claim.verdict}"


def counts(results: "Sequence[Results]") -> dict[str, int]:
    """Count the claims of each verdict, all verdicts included.

    Examples
    --------
    >>> counts([])
    {'shown': 0, 'not shown': 0, 'opposite': 0}
    """
    verdicts = [claim.verdict for result in results for claim in result.claims]
    return {name: verdicts.count(name) for name in SIGNS}


def claims_table(results: "Sequence[Results]") -> Table:
    """Tabulate all claims for the terminal.

    Parameters
    ----------
    results : sequence of analyses.results.Results
        One a figure.

    Returns
    -------
    rich.table.Table
        One row a claim; the counts of verdicts below.

    Examples
    --------
    >>> claims_table([]).caption
    '0 shown, 0 not shown, 0 opposite'
    """
    caption = ", ".join(f"{n} {name}" for name, n in counts(results).items())
    table = Table(caption=caption, caption_justify="left")
    for column in ("verdict", "claim and its test", "paper", "ours"):
        table.add_column(column, no_wrap=column == "verdict")
    for result in results:
        for claim in result.claims:
            # Text, not str: brackets in a str would be read as markup.
            table.add_row(
                Text(verdict(claim), COLOURS[claim.verdict]),
                Text(f"{result.figure}: {claim.claim}").append(f"\n{claim.test}", "dim"),
                Text(claim.paper),
                Text(finding(claim)),
            )
        table.add_section()
    return table
