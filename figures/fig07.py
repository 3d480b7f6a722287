"""Figure 7 (§4.2): the shared tokens are enough to learn from.

Training on the overlap does as well as on the student's top-k; training on the tokens that only one
of the two lists has is clearly weaker, and its overlap ratio falls before it partly recovers.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "The loss is on the student's top-k, on the overlap of both top-k lists or on what only one of "
    "them has. By training step: (a) accuracy, dotted: of the teacher; (b) overlap ratio, of the "
    "whole lists in every run."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
