"""Claims and verdicts as text, for the page and for the terminal."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from analyses.reasons import DOUBTS, REASONS
from analyses.results import Claim, Results
from opdprobe.probes.bootstrap import LEVEL
from opdprobe.report.estimate import number

# Presets on the testbed's models: the limits of the testbed explain no other models' results.
_TESTBED = ("quick", "full")

SIGNS = {"supported": "✓", "inconclusive": "–", "refuted": "✗"}
COLOURS = {"supported": "green", "inconclusive": "yellow", "refuted": "red"}


def finding(claim: Claim) -> str:
    """Write a claim's result: the number, and its interval if it has one.

    Examples
    --------
    >>> from analyses.results import Claim
    >>> nan = float("nan")
    >>> finding(Claim("fig06.x", "", "", 0.9, 0.85, 0.954, 0.95, [0.9], "", "supported"))
    '0.9 [0.85, 0.954]'
    >>> finding(Claim("fig06.x", "", "", 0.9, 0.85, 0.954, 0.9, [0.9], "", "supported"))
    '0.9 [0.85, 0.954] (90 %)'
    >>> finding(Claim("fig06.x", "", "", 0.9, nan, nan, 0.95, [0.9], "", "inconclusive"))
    '0.9'
    """
    text = number(claim.ours)
    if not (math.isnan(claim.low) and math.isnan(claim.high)):
        text += f" [{number(claim.low)}, {number(claim.high)}]"
        if claim.level != LEVEL:
            text += f" ({claim.level:.0%})".replace("%", " %")
    return text


def verdict(claim: Claim) -> str:
    """Write a verdict with its sign, which shows it without colour."""
    return f"{SIGNS[claim.verdict]} {claim.verdict}"


def counts(results: Sequence[Results]) -> dict[str, int]:
    """Count the distinct claims per verdict, including verdicts without claims.

    A claim about the same comparison as another figure's is counted only there, if that figure is
    among the results.

    Examples
    --------
    >>> counts([])
    {'supported': 0, 'inconclusive': 0, 'refuted': 0}
    """
    claims = [claim for result in results for claim in result.claims]
    known = {claim.id for claim in claims}
    verdicts = [claim.verdict for claim in claims if claim.repeats not in known]
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
    '0 supported, 0 inconclusive, 0 refuted'
    """
    caption = ", ".join(f"{n} {name}" for name, n in counts(results).items())
    table = Table(box=None, caption=caption, caption_justify="left", pad_edge=False)
    for column in ("figure", "title", "main claim", "supported"):
        table.add_column(column, no_wrap=True)
    for result in results:
        main = result.claims[0] if result.claims else None
        n_supported = sum(claim.verdict == "supported" for claim in result.claims)
        table.add_row(
            result.figure,
            Text(result.title),
            Text(verdict(main), COLOURS[main.verdict]) if main else "",
            f"{n_supported} of {len(result.claims)}",
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
    n = sum(found.values())
    lines = [
        "# Claims of the paper, and what these runs say",
        "",
        "Written by `opdprobe figures` from the results files; not edited by hand. Each claim is a "
        "statement about a number, with a limit that the code fixes. It is *supported* if the "
        "statement holds on the number's whole interval, *refuted* if it holds nowhere on it, and "
        "*inconclusive* otherwise. The interval is the 95 % one; of an equivalence, which has a "
        "limit on both sides, the 90 % one: two one-sided tests at 5 %. The first claim of each "
        "figure is its main one. The results files hold each seed's number, too.",
        "",
        *_design(results),
        f"**{n} distinct claim{'s' * (n != 1)}: "
        + ", ".join(f"{k} {name}" for name, k in found.items())
        + ".** "
        "A claim about the same comparison as another figure's, marked ↑, is counted only there.",
    ]
    for result in results:
        meta = result.meta
        seeds = ", ".join(map(str, meta.seeds))
        lines += [
            "",
            f"## {result.heading}: {result.title}",
            "",
            f"{result.claim} Preset {meta.preset}, seed{'s' * (len(meta.seeds) != 1)} {seeds}"
            f"; {meta.n_rollouts:,} rollouts; intervals: {meta.interval}.",
            "",
            f"| claim | {'paper' if result.section else 'others'} | ours | test | verdict |",
            "|---|---|---|---|---|",
        ]
        for claim in result.claims:
            text = claim.claim + " ↑" * bool(claim.repeats)
            cells = (text, claim.paper, finding(claim), claim.test, verdict(claim))
            # A bare bar would end the cell.
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        why = [
            f"- *{claim.claim}*: {REASONS[claim.id]}"
            for claim in result.claims
            if claim.verdict != "supported" and claim.id in REASONS and meta.preset in _TESTBED
        ]
        if why:
            lines += ["", "Why not:", "", *why]
        doubts = [
            f"- *{claim.claim}*: {DOUBTS[claim.id]}"
            for claim in result.claims
            if claim.verdict == "supported" and claim.id in DOUBTS and meta.preset in _TESTBED
        ]
        if doubts:
            lines += ["", "Supported by its number, and yet:", "", *doubts]
    return "\n".join(lines) + "\n"


def _design(results: Sequence[Results]) -> list[str]:
    """Say what was known when the testbed's runs were planned, and what is held fixed."""
    if not any(result.meta.preset in _TESTBED for result in results):
        return []
    return [
        "The lengths of the runs, their learning rates, the statistics and the limits were chosen "
        "on runs with the seeds 0 to 4, and frozen before any run with another seed, "
        "but for figures 25 and 26: their claims were stated before any run on selected tokens, "
        "when the runs on all tokens, with the same seeds, were known; [the "
        "notebook](lab-notebook.md) says how. The claims of figures 27 and 28 were stated when all "
        "runs were known, and before what these figures measure on them; what was known of that, "
        "too, is in the notebook. Intervals are for other seeds, prompts and problems "
        "of these kinds, given these models; only the RL'd student (`zoo:rl-small`) is another one "
        "with each seed, from an RL of its own. The first of the five served the plans, too.",
        "",
    ]
