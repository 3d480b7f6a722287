"""Figure 18 (App. B.1): the shared tokens carry almost all probability.

Both models keep 97 to 99 % of their probability on the overlap throughout training.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "Probability, not renormalised, that each model puts on the tokens in both top-k lists, by "
    "training step: (a) success; (b) failure."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes, sharey=True)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
