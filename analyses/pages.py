"""The Markdown pages beside the figures: one with all claims, one with all figures."""

import re
from collections.abc import Sequence
from pathlib import Path

from analyses.claims import claims_markdown
from analyses.fares import with_fares
from analyses.results import Results, load
from opdprobe.errors import OPDProbeError
from opdprobe.store.files import write_text


def gallery_markdown(results: Sequence[Results], figure_dir: str) -> str:
    """Write a page that shows all figures.

    Parameters
    ----------
    results : sequence of analyses.results.Results
        One per figure.
    figure_dir : str
        Directory of ``figNN.png`` and ``captions.md``, relative to the page.

    Returns
    -------
    str
        A page with one picture per figure; each heading links to the figure in ``claims.md``.
    """
    lines = [
        "# All figures",
        "",
        "Written by `opdprobe figures` from the results files; not edited by hand. "
        f"[The captions]({figure_dir}/captions.md) give models, settings and numbers of rollouts. "
        "Each heading links to the figure's claims.",
    ]
    for result in results:
        heading = f"{result.heading}: {result.title}"
        lines += [
            "",
            f"## [{heading}](claims.md#{_anchor(heading)})",
            "",
            f"![{heading}]({figure_dir}/{result.figure}.png)",
        ]
    return "\n".join(lines) + "\n"


def _anchor(heading: str) -> str:
    """Name a heading as MkDocs does."""
    kept = re.sub(r"[^\w\s-]", "", heading.encode("ascii", "ignore").decode())
    return re.sub(r"[-\s]+", "-", kept.strip().lower())


def write_pages(figure_dir: Path, results_dir: Path) -> list[Path]:
    """Write ``claims.md`` and ``gallery.md`` atomically beside a directory of figures.

    Where ``diagnostics.md`` is beside it, too, its section on how selectors fare is written anew.

    Returns
    -------
    list of Path
        Paths of the pages.
    """
    pages = _pages(figure_dir, results_dir)
    figure_dir.parent.mkdir(parents=True, exist_ok=True)
    for path, text in pages.items():
        write_text(path, text)
    return list(pages)


def check_pages(figure_dir: Path, results_dir: Path) -> None:
    """Compare the pages with what the results give; write nothing.

    Raises
    ------
    OPDProbeError
        A page is missing or differs.
    """
    for path, text in _pages(figure_dir, results_dir).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            raise OPDProbeError(
                f"{path} is missing or out of date with the results in {results_dir}; write it "
                "again with `opdprobe figures`."
            )


def _pages(figure_dir: Path, results_dir: Path) -> dict[Path, str]:
    results = [load(path) for path in sorted(results_dir.glob("*.json"))]
    pages = {
        figure_dir.with_name("claims.md"): claims_markdown(results),
        figure_dir.with_name("gallery.md"): gallery_markdown(results, figure_dir.name),
    }
    diagnostics = figure_dir.with_name("diagnostics.md")
    if diagnostics.exists():
        text = diagnostics.read_text(encoding="utf-8")
        if (filled := with_fares(text, results)) != text:
            pages[diagnostics] = filled
    return pages
