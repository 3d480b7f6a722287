"""The parts of figures: a grid of axes, one per panel; one legend below them; the caption."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple

from analyses.results import Results
from opdprobe.report import marks
from opdprobe.report.style import DOUBLE_COLUMN, SINGLE_COLUMN, FigureError, role, style

ROW_HEIGHT = 2.1  # inches per row of panels, with titles and axis labels
MARGIN = 0.08  # inches


def draw(
    results: Results,
    axes: Sequence[Axes] | None = None,
    *,
    columns: int = 3,
    sharey: bool = False,
) -> Figure:
    """Draw every panel of a figure.

    Parameters
    ----------
    results
        The figure's results.
    axes
        Axes of the caller's figure to draw into, one per panel; the caller adds the legend.
        Default: a new figure, one text column wide for a single panel and two for more, with one
        legend below its panels.
    columns
        Largest number of panels side by side.
    sharey
        Whether all panels share one vertical scale.

    Returns
    -------
    Figure
        The figure that the axes belong to.

    Raises
    ------
    FigureError
        The number of axes differs from that of panels, or a role is unknown.
    """
    if axes is not None:
        _fill(results, axes)
        return _owner(axes[0])
    n = len(results.panels)
    rows = -(-n // columns)
    columns = -(-n // rows)  # four panels in rows of at most three: two rows of two
    with style():
        width = SINGLE_COLUMN if n == 1 else DOUBLE_COLUMN
        figure = Figure(figsize=(width, ROW_HEIGHT * rows))
        axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
        for spare in axes[n:]:
            spare.remove()
        _fill(results, axes[:n])
        _legend(figure, results, axes[:n])
    return figure


def caption(results: Results, reading: str) -> str:
    """Compose a caption.

    Parameters
    ----------
    results
        The figure's results.
    reading
        How to read the figure, in full sentences.

    Returns
    -------
    str
        One paragraph of plain text: the paper's claim, how to read the figure, and the source of
        its numbers.
    """
    meta = results.meta
    runs = "; ".join(
        f"{name} (student {run['student']}, teacher {run['teacher']})"
        for name, run in meta.runs.items()
    )
    seeds = ", ".join(map(str, meta.seeds))
    claim = "The paper's claim" if results.section else "What others claim"
    return (
        f"{results.heading}. {results.title}. "
        f"{claim}: {results.claim} {reading} Intervals: {meta.interval}. "
        f"Runs: {runs}. Preset {meta.preset}; seed{'s' if len(meta.seeds) != 1 else ''} {seeds}; "
        f"k = {meta.k}; n = {meta.n_rollouts:,} rollouts, {meta.n_states:,} states."
    )


def _fill(results: Results, axes: Sequence[Axes]) -> None:
    if len(axes) != len(results.panels):
        raise FigureError(
            f"{results.figure} has {len(results.panels)} panels, but there are {len(axes)} axes; "
            "expected one per panel."
        )
    limits = marks.heat_limits(results.panels)
    for i, (panel, ax) in enumerate(zip(results.panels, axes, strict=True)):
        match panel.kind:
            case "line":
                marks.draw_lines(panel, ax)
            case "bar":
                marks.draw_bars(panel, ax)
            case "histogram":
                marks.draw_histogram(panel, ax)
            case "heatmap":
                marks.draw_heatmap(panel, ax, limits)
        title = panel.title if len(axes) == 1 else f"({chr(ord('a') + i)}) {panel.title}"
        ax.set_title(title, loc="left")
        ax.set_xlabel(panel.x_label)
        ax.set_ylabel(panel.y_label)


def _legend(figure: Figure, results: Results, axes: Sequence[Axes]) -> None:
    """Add one legend below all panels, and make the figure taller to hold it.

    An entry with the same label and look in several panels appears once, with its line and its bar
    if it has both.
    """
    entries = {}
    for panel, ax in zip(results.panels, axes, strict=True):
        looks = {line.label: role(line.role) for line in (*panel.series, *panel.references)}
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault((label, looks[label]), {}).setdefault(type(handle), handle)
    if not entries:
        return
    labels = [label for label, _ in entries]
    # Legends accept tuples of artists, though their annotation does not say so.
    handles: list[Any] = [tuple(by_kind.values()) for by_kind in entries.values()]
    for rows in range(1, len(labels) + 1):
        legend = figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=-(-len(labels) // rows),
            handler_map={tuple: HandlerTuple(ndivide=None)},
        )
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width - 2 * MARGIN * figure.dpi or rows == len(labels):
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()


def _owner(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes always belong to a figure
    return figure
