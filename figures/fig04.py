"""Figure 4 (§3.2): a larger teacher teaches more once it has had RL itself.

The same larger teacher closes little of the gap before RL and much more of it after (5.3 → 16.9 %
and 15.6 → 58.6 % in the paper), in two families of models.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "(a), (b) Accuracy by training step in two families of models, towards a larger teacher "
    "before and after its own RL, dotted: of the teachers; (c) gap recovery rate of each run, 1 "
    "is the whole gap between the student and its teacher."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
