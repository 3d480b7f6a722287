"""Draw figures from results files: a PDF and a PNG each, and the captions of all.

The same results give the same bytes, on one release of Matplotlib. A PNG carries its caption as its
``Description``.
"""

import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from analyses.results import Results, load
from figures import fig05, fig06, fig07, fig14, fig18, fig19
from figures.style import FigureError, style

FIGURES = {
    "fig05": fig05,
    "fig06": fig06,
    "fig07": fig07,
    "fig14": fig14,
    "fig18": fig18,
    "fig19": fig19,
}


def figure_names() -> list[str]:
    """Return the names of all figures there are.

    Examples
    --------
    >>> figure_names()[:2]
    ['fig05', 'fig06']
    """
    return list(FIGURES)


def make(results_dir: Path, out_dir: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Draw figures.

    Parameters
    ----------
    results_dir
        Directory with a ``figNN.json`` a figure.
    out_dir
        Where to write; made if need be.
    names
        Figures to draw; all by default.

    Returns
    -------
    list of Path
        ``figNN.pdf`` and ``figNN.png`` of every figure drawn, then ``captions.md``: the captions of
        all figures that `results_dir` has results for.

    Raises
    ------
    FigureError
        If a figure is unknown; lists those there are.
    ResultsError
        If results are missing or unreadable; names the command that makes them. No file has been
        written then.
    """
    written = []
    for name, content in list(_files(Path(results_dir), names)):
        path = Path(out_dir, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)
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
        If a file is missing or differs; names it and the command that draws it again.
    """
    stale = []
    for name, content in _files(Path(results_dir), names):
        path = Path(out_dir, name)
        if not path.exists() or path.read_bytes() != content:
            stale.append(name)
    if stale:
        raise FigureError(
            f"{', '.join(stale)} in {out_dir}: missing, or not what the results in {results_dir} "
            f"give; draw again with `opdprobe figures --results {results_dir} --out {out_dir}`."
        )


def _files(results_dir: Path, names: Sequence[str] | None) -> Iterator[tuple[str, bytes]]:
    names = list(FIGURES) if names is None else list(names)
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        raise FigureError(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}.")
    for name in names:
        yield from _images(name, load(results_dir / f"{name}.json"))
    captions = [
        f"## {name}\n\n{module.caption(load(path))}\n"
        for name, module in FIGURES.items()
        if (path := results_dir / f"{name}.json").exists()
    ]
    yield "captions.md", "\n".join(captions).encode()


def _images(name: str, results: Results) -> Iterator[tuple[str, bytes]]:
    if results.figure != name:
        raise FigureError(f"{name}.json holds the results of {results.figure}; rename it.")
    # None leaves out the date and the program, which would change the bytes.
    metadata = {
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None, "Title": results.title},
        "png": {"Software": None, "Description": FIGURES[name].caption(results)},
    }
    figure = FIGURES[name].draw(results)
    with style():
        for extension, entries in metadata.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=extension, metadata=entries)
            yield f"{name}.{extension}", buffer.getvalue()
