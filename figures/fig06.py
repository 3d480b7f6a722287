"""Figure 6 (§4.1): what distinguishes a run that works from one that fails.

In the success the overlap ratio rises, the overlap-token advantage goes to zero and the entropy gap
narrows; in the failure all three stagnate, though the teacher is stronger.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "By training step: (a) accuracy, dotted: of the two teachers; (b) overlap ratio; (c) "
    "overlap-token advantage, 0 is agreement; (d) entropy gap."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes, columns=2)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
