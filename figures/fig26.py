"""Figure 26: the fifth of the tokens that a selector keeps, against all others.

This figure is not in the paper. What a selector keeps carries the signal if little is learnt
without it.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "(a) Accuracy after training on the fifth of the tokens that a selector keeps, and on all "
    "others; line: on all; accuracy by training step (b) on the fifth that is kept, (c) on all "
    "others."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
