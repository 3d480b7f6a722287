"""Figure 13 (§6.1): instability starts at the end of responses and moves forward.

The student's entropy rises first at the last positions, then at ever earlier ones.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "Mean entropy of the student over the states of a training step (across) in a range of output "
    "positions (upwards), in the run with the longest responses; light grey: no response was that "
    "long."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
