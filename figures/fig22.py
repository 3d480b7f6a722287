"""Figure 22 (App. C.4): figure 9, benchmark by benchmark.

The teacher's own template raises gap recovery from about 80 to 85 % in the paper.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = "Accuracy by training step, one panel a benchmark, dotted: of the teacher."


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
