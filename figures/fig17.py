"""Figure 17 (App. A.3): figure 2, benchmark by benchmark.

The RL'd base teacher wins on each.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = "Accuracy by training step, one panel a benchmark, dotted: of the two teachers."


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
