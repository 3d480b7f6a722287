"""The report of a reproduction: verdicts, figures and runs in a single HTML file."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from analyses.claims import counts, finding, verdict
from opdprobe.errors import OPDProbeError
from opdprobe.store.files import write_text

if TYPE_CHECKING:
    from analyses.results import Results


class ReportError(OPDProbeError):
    """The report lacks a figure."""


def write_report(path: Path, results: "Sequence[Results]", figure_dir: Path, *, title: str) -> None:
    """Write the report as a self-contained page; the file appears only when complete.

    Parameters
    ----------
    path
        The HTML file, replaced if it exists.
    results : sequence of analyses.results.Results
        One per figure, in the order to show them.
    figure_dir
        Directory of ``figNN.png`` as written by `figures.make`, which stores the captions inside.
    title
        Heading of the page.

    Raises
    ------
    ReportError
        A figure is missing or has no caption.
    """
    # Escape all text: run labels and model names may come from anywhere.
    environment = Environment(
        loader=PackageLoader("analyses"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(finding=finding, verdict=verdict)
    page = environment.get_template("report.html.jinja").render(
        title=title,
        counts=counts(results),
        figures=[{"results": r, **_image(Path(figure_dir, f"{r.figure}.png"))} for r in results],
        runs=_runs(results),
        sources=sorted({(r.meta.version, r.meta.commit) for r in results}),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def _image(path: Path) -> dict[str, Any]:
    advice = f"draw it with `opdprobe figures {path.stem}`."
    if not path.exists():
        raise ReportError(f"no figure {path}; {advice}")
    with Image.open(path) as image:
        caption = image.info.get("Description")
        width, height = image.size
    if not caption:
        raise ReportError(f"{path} has no caption (Description) inside; {advice}")
    return {
        "caption": caption,
        "width": width,
        "height": height,
        "data": base64.b64encode(path.read_bytes()).decode(),
    }


def _runs(results: "Sequence[Results]") -> dict[str, Any]:
    """Return the table of runs: one row per run, even if several figures show it."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, run in result.meta.runs.items():
            row = rows.setdefault(name, {"run": name, "figures": [], **run})
            row["seeds"] = ", ".join(map(str, result.meta.seeds))
            row["figures"].append(result.figure.removeprefix("fig").lstrip("0"))
    known = dict.fromkeys(key for row in rows.values() for key in row)
    columns = ["run", *(key for key in known if key not in ("run", "figures")), "figures"]
    for row in rows.values():
        row["figures"] = ", ".join(row["figures"])
    return {"columns": columns, "rows": list(rows.values())}
