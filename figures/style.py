"""How everything looks: one colour, marker and line style a role, fixed here and nowhere else.

A colour stands for one thing across figures. The three that return most are teachers: what leads to
the RL'd model is green, what leads to the larger model vermilion, what leads to the model before RL
blue. Within any figure, lines also differ in marker and dashes, so that colour is never needed.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from opdprobe.errors import OPDProbeError

SINGLE_COLUMN = 3.3  # inches
DOUBLE_COLUMN = 6.75

# seaborn's "colorblind" palette, by value: importing seaborn takes seconds.
BLUE = "#0173b2"
ORANGE = "#de8f05"
GREEN = "#029e73"
VERMILION = "#d55e00"
PINK = "#cc78bc"
BROWN = "#ca9161"
GREY = "#949494"
SKY = "#56b4e9"

SOLID = "-"
DASHED = (0, (4, 1.5))
DOTTED = (0, (1, 1.2))
DASH_DOTTED = (0, (5, 1.2, 1, 1.2))


class FigureError(OPDProbeError):
    """A figure or a role is unknown, or a drawn figure is not up to date."""


@dataclass(frozen=True)
class Role:
    """What a role looks like.

    Parameters
    ----------
    color, marker, linestyle
        As Matplotlib takes them.
    """

    color: str
    marker: str
    linestyle: Any


ROLES = {
    # the two models of a run
    "student": Role(BLUE, "o", SOLID),
    "teacher": Role(ORANGE, "s", DASHED),
    # models whose accuracy is a reference line
    "rl_student": Role(GREEN, "*", DASH_DOTTED),
    "large": Role(VERMILION, "P", DASHED),
    # runs, coloured by where they lead
    "success": Role(GREEN, "o", SOLID),
    "failure": Role(VERMILION, "s", DASHED),
    "reverse_small": Role(BLUE, "^", SOLID),
    "reverse_large": Role(VERMILION, "v", DASHED),
    # token sets, and the runs whose loss is on them
    "overlap": Role(SKY, "D", DASHED),
    "non_overlap": Role(PINK, "X", DASH_DOTTED),
    "support_overlap": Role(SKY, "D", DASHED),
    "support_non_overlap": Role(PINK, "X", DASH_DOTTED),
    "full": Role(BROWN, "h", SOLID),
    "sampled": Role(GREY, "p", DOTTED),
    # rollouts
    "correct": Role(BLUE, "o", SOLID),
    "incorrect": Role(ORANGE, "X", DASHED),
}


def role(name: str) -> Role:
    """Look up a role.

    Parameters
    ----------
    name
        Key of `ROLES`.

    Returns
    -------
    Role
        Its colour, marker and line style.

    Raises
    ------
    FigureError
        If there is no such role; lists those there are.

    Examples
    --------
    >>> role("success").marker
    'o'
    >>> role("succes")
    Traceback (most recent call last):
    ...
    figures.style.FigureError: no role 'succes'; there are student, teacher, ...
    """
    if name not in ROLES:
        raise FigureError(f"no role {name!r}; there are {', '.join(ROLES)}.")
    return ROLES[name]


def style() -> AbstractContextManager[None]:
    """Put the figures' style in force inside a ``with`` block, whatever the user's own style is."""
    # Not plt.style.context: it would load pyplot, and the user's own settings would shine through.
    return mpl.rc_context(fname=Path(__file__).with_name("opdprobe.mplstyle"))
