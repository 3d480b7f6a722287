"""Figure 21 (App. C.2): after a cold start the shared tokens carry more probability.

The overlap mass is high and stable with a cold start, low and unstable without one.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "Probability, not renormalised, on the tokens in both top-k lists, by training step: (a) "
    "student's; (b) teacher's."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes, sharey=True)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
