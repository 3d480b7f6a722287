"""One run by itself, or two in the same axes: the paper's quantities by step."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from analyses.results import Panel
from figures.marks import draw_heatmap, draw_lines, heat_limits
from figures.style import DOUBLE_COLUMN, SINGLE_COLUMN, style


def draw(panels: Sequence[Panel]) -> Figure:
    """Draw the four panels of `analyses.single.panels`."""
    with style():
        figure = Figure(figsize=(DOUBLE_COLUMN, 4.2), layout="constrained")
        for ax, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
            draw_lines(panel, ax)
            ax.set(xlabel=panel.x_label, ylabel=panel.y_label)
            ax.set_title(panel.title, loc="left")
            if len(panel.series) > 1:
                ax.legend()
        return figure


def save(panels: Sequence[Panel], path: Path) -> None:
    """Draw and write to `path`, in the format of its suffix."""
    with style():
        draw(panels).savefig(path, dpi=300)


def images(panels: Sequence[Panel]) -> list[bytes]:
    """Draw each panel by itself, for a page that lays them out.

    Parameters
    ----------
    panels
        Lines and heat maps; the latter share one colour scale.

    Returns
    -------
    list of bytes
        A PNG each, 3.3 inches wide at 200 dots an inch. A panel's title is left to the page.
    """
    limits = heat_limits(panels)
    drawn = []
    for panel in panels:
        with style():
            figure = Figure(figsize=(SINGLE_COLUMN, 2.2), layout="constrained")
            ax = figure.subplots()
            if panel.kind == "heatmap":
                draw_heatmap(panel, ax, limits)
            else:
                draw_lines(panel, ax)
            ax.set(xlabel=panel.x_label, ylabel=panel.y_label)
            if len(panel.series) > 1:
                ax.legend()
            buffer = BytesIO()
            figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        drawn.append(buffer.getvalue())
    return drawn
