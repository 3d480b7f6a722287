"""Claims and verdicts as text, for the page and for the terminal."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from analyses.reasons import REASONS
from analyses.results import Claim, Results
from opdprobe.report.estimate import number

# Presets on the testbed's models: the limits of the testbed explain no other models' results.
_TESTBED = ("quick", "full")

SIGNS = {"shown": "✓", "not shown": "–", "opposite": "✗"}
COLOURS = {"shown": "green", "not shown": "yellow", "opposite": "red"}


def finding(claim: Claim) -> str:
    """Write a claim's result: the number, its interval if it has one, its unit.

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


def verdict(claim: Claim) -> str:
    """Write a verdict with its sign, which shows it without colour."""
    return f"{SIGNS[claim.verdict]} {claim.verdict}"


def counts(results: Sequence[Results]) -> dict[str, int]:
    """Count the claims per verdict, including verdicts without claims.

    Examples
    --------
    >>> counts([])
    {'shown': 0, 'not shown': 0, 'opposite': 0}
    """
    verdicts = [claim.verdict for result in results for claim in result.claims]
    return {name: verdicts.count(name) for name in SIGNS}


def figures_table(results: Sequence[Results]) -> Table:
    """Count the verdicts of each figure, for the terminal.

    Parameters
    ----------
    results : sequence of analyses.results.Results
        One per figure; the first claim of each is the figure's main one.

    Returns
    -------
    rich.table.Table
        One row per figure, and the counts of all verdicts below. Fits into 80 columns.

    Examples
    --------
    >>> figures_table([]).caption
    '0 shown, 0 not shown, 0 opposite'
    """
    caption = ", ".join(f"{n} {name}" for name, n in counts(results).items())
    table = Table(box=None, caption=caption, caption_justify="left", pad_edge=False)
    for column in ("figure", "title", "main claim", "claims shown"):
        table.add_column(column, no_wrap=True)
    for result in results:
        main = result.claims[0] if result.claims else None
        n_shown = counts([result])["shown"]
        table.add_row(
            result.figure,
            Text(result.title),
            Text(verdict(main), COLOURS[main.verdict]) if main else "",
            f"{n_shown} of {len(result.claims)}",
        )
    return table


def claims_markdown(results: Sequence[Results]) -> str:
    """Write all claims as a Markdown page.

    Parameters
    ----------
    results : sequence of analyses.results.Results
        One per figure; the first claim of each is the figure's main one.

    Returns
    -------
    str
        A page with one table per figure.
    """
    found = counts(results)
    main = [result.claims[0] for result in results if result.claims]
    shown = sum(claim.verdict == "shown" for claim in main)
    lines = [
        "# Claims of the paper, and what these runs say",
        "",
        "Written by `opdprobe figures` from the results files; not edited by hand. Each test was "
        "stated before the runs: which statistic, which direction, which threshold. *Shown* means "
        "that the test holds; *opposite*, that the whole interval speaks for the contrary; *not "
        "shown* is everything else. The first claim of each figure is its main one.",
        "",
        *_pilots(results),
        f"**Main claims: {shown} of {len(main)} shown. All claims: "
        + ", ".join(f"{n} {name}" for name, n in found.items())
        + ".**",
    ]
    for result in results:
        meta = result.meta
        n = len(meta.seeds)
        lines += [
            "",
            f"## {result.heading}: {result.title}",
            "",
            f"{result.claim} Preset {meta.preset}, {n} seed{'s' * (n != 1)}; {meta.n_rollouts:,} "
            f"rollouts; intervals: {meta.interval}.",
            "",
            "| claim | paper | ours | test | verdict |",
            "|---|---|---|---|---|",
        ]
        for claim in result.claims:
            cells = (claim.claim, claim.paper, finding(claim), claim.test, verdict(claim))
            # A bare bar would end the cell.
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        why = [
            f"- *{claim.claim}*: {REASONS[claim.id]}"
            for claim in result.claims
            if claim.verdict != "shown" and claim.id in REASONS and meta.preset in _TESTBED
        ]
        if why:
            lines += ["", "Why not:", "", *why]
    return "\n".join(lines) + "\n"


def _pilots(results: Sequence[Results]) -> list[str]:
    """Say what was known when the testbed's runs were planned."""
    if not any(result.meta.preset in _TESTBED for result in results):
        return []
    return [
        "The testbed, the lengths of its runs and their learning rates were chosen on pilots with "
        "seed 0, which is one of the seeds here; [the notebook](lab-notebook.md) says how.",
        "",
    ]
