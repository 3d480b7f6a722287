"""Figure 10 (§5.2): questions that the teacher was trained on teach more, at lower entropy.

Accuracy is better though the overlap ratio is *lower*: the student puts more probability on the
tokens that are shared, and its entropy falls.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "Questions of the teacher's RL, and others of their domain without duplicates of those. By "
    "training step: accuracy, dotted: of the teacher; overlap ratio; student's probability on the "
    "overlap, not renormalised; student's entropy."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes, columns=2)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
