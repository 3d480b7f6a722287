"""Figure 11 (§6.1): the teacher's signal fades with depth, so longer is not better.

Accuracy is best for a middle range of maximum response lengths; the teacher's gain over the
student in continuing a response falls with the length of the prefix.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "(a) Accuracy after training, by maximum response length in tokens, dotted: before training; "
    "(b) accuracy when the teacher continues a student's response from some depth, minus that of "
    "the student's own continuation."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
