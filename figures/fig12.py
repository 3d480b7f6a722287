"""Figure 12 (§6.1): the longest responses collapse late.

After a start like that of the others, their overlap ratio falls, and entropy and gradient norm
rise.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "One run for each maximum response length of figure 11. By training step: (a) overlap ratio; "
    "(b) student's entropy; (c) global gradient norm before clipping."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
