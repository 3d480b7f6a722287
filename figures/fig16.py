"""Figure 16 (§6.3): a single token makes training unstable.

With k = 1, entropy and gradient norm have spikes, which do not appear with more tokens.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "By training step, for the sampled token and for several k: (a) overlap ratio; (b) student's "
    "entropy; (c) global gradient norm before clipping."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
