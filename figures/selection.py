"""Data selection (§5.2): ways to choose prompts, side by side.

This figure is not in the paper. It compares six choices: the template of the teacher's RL, its
questions, both, a mixture with other questions, the prompts on which the two models differ most,
and none of these.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = "By training step: accuracy, dotted: of the teacher; and overlap ratio."


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
