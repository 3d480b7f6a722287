"""Figure 27 (§6.2): do a failing teacher's signals cancel when they are summed?

The paper supposes it and leaves it open. Gradients of the same loss, by all of the student's
weights, before and during the training of figure 6, and for the teachers of figure 4.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "Gradients by all weights, of 24 prompts × 2 rollouts: (a) mean cosine of two prompts' "
    "gradients and (b) of two rollouts of one prompt's; (c) norm of the batch's gradient over the "
    "sum of its tokens' norms, divided by what would remain of orthogonal ones; (d) mean norm of a "
    "token's gradient; (e) largest eigenvalues of the cosines between prompts, over their sum; (f) "
    "as (a) for teachers of one size, before and after RL, before training and after 96 steps."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
