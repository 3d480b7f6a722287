"""Negative controls: what the paper does not show and a reader asks for.

Runs in which there is nothing to learn (the student as its own teacher, learning rate 0), or
nothing right (a teacher whose tokens are permuted).
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = "By training step: (a) accuracy, dotted: of the teacher; (b) overlap ratio."


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
