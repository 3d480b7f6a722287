"""One run by itself: overlap, masses, entropies and divergence by step."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analyses.results import Panel
from figures.marks import draw_lines
from figures.style import DOUBLE_COLUMN, style


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
