"""Figure 1: the three headlines in one strip.

The larger teacher teaches more after its own RL; reverse distillation undoes the gain of RL, even
towards a stronger teacher; and in a run that works the overlap ratio rises.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "(a) Gap recovery rate by family of models, towards a larger teacher before and after its own "
    "RL. By training step: (b) accuracy of the RL'd student, towards its own pre-RL checkpoint "
    "and towards the larger model, dotted: accuracies of untrained models; (c) overlap ratio of a "
    "run that works and of one that does not."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
