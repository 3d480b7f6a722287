"""Figure 15 (§6.3): a few tokens are enough.

Only k = 1 is clearly worse; neither more tokens nor the sampled token's estimate change much.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "(a) Accuracy by training step, by the number of tokens in the loss; (b) accuracy after "
    "training, by that number and the estimator of the gradient."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
