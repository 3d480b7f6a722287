"""Figure 8 (§5.1): a cold start on the teacher's rollouts brings the student close enough.

The student that was fine-tuned on rollouts of the teacher starts with the higher overlap, changes
more smoothly and ends higher.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "The same teacher, with and without fine-tuning the student on the teacher's rollouts first. "
    "By training step: (a) accuracy, dotted: of the teacher; (b) overlap ratio; (c) entropy gap."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
