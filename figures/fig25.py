"""Figure 25: training on a part of the tokens, chosen by what others choose by.

This figure is not in the paper. Runs that differ in the tokens of their loss alone.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "(a) Accuracy after training by the share of each step's tokens in the loss, one line for each "
    "selector; (b) share of the accuracy gap to the teacher that is closed with a fifth of the "
    "tokens, by selector; lines: with as many random tokens and with all."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes, columns=1)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
