"""Figure 19 (App. B.2): a failing run shows in its loss and gradients.

It starts with a small loss and small gradients and stays there; its extreme-advantage gap does not
close.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "By training step: (a) loss; (b) global gradient norm before clipping; (c) student's minus "
    "teacher's probability at the shared token with the largest advantage, 0 is agreement."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
