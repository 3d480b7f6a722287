"""Figure 28: the gradient of distillation against the ideal one, where responses branch.

This figure is not in the paper. Success after a forced token is sampled, which gives the direction
on the logits that raises it most.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.results import Results
from figures import panels

READING = (
    "At states in which the student's second choice has a probability of 0.1 or more, one of a "
    "prompt, on the logits of its four likeliest tokens, each continued 12 times: (a) cosine of "
    "the distillation gradient with the ideal one, where success depends on the token, and of the "
    "ideal direction from half of the samples with that from the other half, which noise alone "
    "keeps below 1; (b) the mean by the student's entropy and the reverse KL; (c) rank correlation "
    "of a state's score with the cosine, by what others select tokens by and more."
)


def draw(results: Results, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw the figure; see `figures.panels.draw` for the parameters."""
    return panels.draw(results, axes, columns=1)


def caption(results: Results) -> str:
    """Return the caption, one paragraph of plain text."""
    return panels.caption(results, READING)
