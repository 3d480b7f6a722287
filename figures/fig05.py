"""Figure 5 (§3.3): reverse distillation undoes the gain of RL.

The RL'd student regresses to its pre-RL level towards either teacher, the larger and stronger one
included, along nearly the same curve.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "Accuracy of the RL'd student by training step, towards each of two teachers; dotted: accuracy "
    "before RL and of the larger teacher."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
