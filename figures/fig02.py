"""Figure 2 (§3.1): a base student learns from the teacher whose thinking it shares.

The RL'd base teacher beats the one post-trained to another pattern, and starts with the higher
overlap, though it is not the stronger model.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "By training step: (a) accuracy on all benchmarks, dotted: of the two teachers; (b) overlap "
    "ratio."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
