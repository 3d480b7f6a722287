"""Figure 23 (App. D.1): the teacher, too, becomes uncertain first at the end of responses.

Its entropy on the student's responses shows the same trend as the student's own: back to front.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "Mean entropy of the teacher over the states of a training step (across) in a range of output "
    "positions (upwards), in the run of figure 13; light grey: no response was that long."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
