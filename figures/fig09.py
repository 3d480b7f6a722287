"""Figure 9 (§5.2): prompts in the template that the teacher was trained on teach more.

The teacher's template gives the higher accuracy, and the higher overlap from the first step.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "The same questions in the template of the teacher's RL and in another one. By training step: "
    "accuracy, dotted: of the teacher; and overlap ratio."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
