"""Draw figures from results files: a PDF and a PNG per figure, and one file of captions.

With one release of Matplotlib the same results give the same bytes. A PNG stores its caption as its
``Description``.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from analyses.registry import FIGURES
from analyses.results import Results, ResultsError, load
from opdprobe.report.style import FigureError, style
from opdprobe.store.files import write_whole

COMMITTED = Path(__file__).with_name("results")
"""Results of the preset *full* that come with the package."""


def figure_names() -> list[str]:
    """Return the names of all figures: the paper's, then ``selection``.

    Examples
    --------
    >>> figure_names()[:2]
    ['fig01', 'fig02']
    """
    return list(FIGURES)


def make(results_dir: Path, out_dir: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Draw figures.

    Parameters
    ----------
    results_dir
        Directory with one file per figure: ``figNN.json``, ``selection.json``.
    out_dir
        Directory to write to; created if needed.
    names
        Figures to draw. Default: all that `results_dir` has results for.

    Returns
    -------
    list of Path
        A PDF and a PNG of every figure drawn, then ``captions.md``: the captions of all that
        `results_dir` has results for.

    Raises
    ------
    FigureError
        A figure is unknown; lists the known ones.
    ResultsError
        Results are missing (of a named figure, or all) or unreadable; names the command that makes
        them. Then no file is written.
    """
    written = []
    for name, content in list(_files(Path(results_dir), names)):
        path = Path(out_dir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file, content=content: file.write(content))
        written.append(path)
    return written


def check(results_dir: Path, out_dir: Path, names: Sequence[str] | None = None) -> None:
    """Draw figures in memory and compare them with those on disk; write nothing.

    Parameters
    ----------
    results_dir, out_dir, names
        As for `make`.

    Raises
    ------
    FigureError
        A file is missing or differs; names it and the command that draws it again.
    """
    stale = []
    for name, content in _files(Path(results_dir), names):
        path = Path(out_dir, name)
        if not path.exists() or path.read_bytes() != content:
            stale.append(name)
    if stale:
        raise FigureError(
            f"{', '.join(stale)} in {out_dir}: missing, or out of date with {results_dir}; "
            f"draw again with `opdprobe figures --results {results_dir} --out {out_dir}`."
        )


def _files(results_dir: Path, names: Sequence[str] | None) -> Iterator[tuple[str, bytes]]:
    there = [name for name in FIGURES if (results_dir / f"{name}.json").exists()]
    if names is None and not there:
        raise ResultsError(f"no results in {results_dir}; run `opdprobe reproduce`.")
    names = there if names is None else list(names)
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        raise FigureError(
            f"no figure {', '.join(unknown)}; expected one of {', '.join(FIGURES)}, or the "
            "directory of a run."
        )
    for name in names:
        yield from _images(name, load(results_dir / f"{name}.json"))
    captions = [
        f"## {name}\n\n{_module(name).caption(load(results_dir / f'{name}.json'))}\n"
        for name in there
    ]
    yield "captions.md", "\n".join(captions).encode()


def _module(name: str) -> Any:
    return import_module(f"figures.{name}")


def _images(name: str, results: Results) -> Iterator[tuple[str, bytes]]:
    if results.figure != name:
        raise FigureError(f"{name}.json holds the results of {results.figure}; rename it.")
    # None leaves out the date and the program, which would change the bytes.
    metadata = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None, "Title": results.title},
        "png": {"Software": None, "Description": _module(name).caption(results)},
    }
    figure = _module(name).draw(results)
    with style():
        for extension, entries in metadata.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=extension, metadata=entries)
            yield f"{name}.{extension}", buffer.getvalue()
