"""The look of every figure: one colour, marker and line style per role, defined only here.

A colour has one meaning in all figures. The three most common stand for teachers: green leads to an
RL'd model, vermilion to a larger model without RL, blue to the model before RL. Roles with the same
meaning in figures of different models look the same. Within a panel, lines also differ in marker
and dashes, and bars in hatching, so that no reader needs the colours.
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
INDIGO = "#332288"  # from Paul Tol's "muted": that palette has no dark colour
DARK = "#262626"
# seaborn's "crest", light to dark.
CREST = ("#7dba91", "#59a590", "#40908e", "#287a8c", "#1c6488", "#254b7f")

SOLID = "-"
DASHED = (0, (4, 1.5))
DOTTED = (0, (1, 1.2))
DASH_DOTTED = (0, (5, 1.2, 1, 1.2))
LONG_DASHED = (0, (8, 2))
DASH_DOT_DOTTED = (0, (5, 1.2, 1, 1.2, 1, 1.2))

HATCHES = {
    SOLID: "",
    DASHED: "/////",
    DOTTED: "....",
    DASH_DOTTED: "xxxx",
    LONG_DASHED: "-----",
    DASH_DOT_DOTTED: "++++",
}


class FigureError(OPDProbeError):
    """A figure or a role is unknown, or a drawn figure is not up to date."""


@dataclass(frozen=True)
class Role:
    """The look of a role.

    Parameters
    ----------
    color, marker, linestyle
        As in Matplotlib.
    """

    color: str
    marker: str
    linestyle: Any

    @property
    def hatch(self) -> str:
        """Hatching of its bars, which corresponds to the dashes of its lines."""
        return HATCHES[self.linestyle]


TO_RL = Role(GREEN, "o", SOLID)
TO_LARGER = Role(VERMILION, "s", DASHED)
OTHER_PROMPTS = Role(SKY, "D", LONG_DASHED)

ROLES = {
    # the two models of a run
    "student": Role(BLUE, "h", SOLID),
    "teacher": Role(ORANGE, "s", DASHED),
    # models whose accuracy is a reference line
    "rl_student": Role(GREEN, "*", DASH_DOTTED),
    "rl_base_large": Role(GREEN, "*", DASH_DOTTED),
    "rl_large": Role(GREEN, "<", DASH_DOTTED),
    "rl_post_large": Role(GREEN, "<", DASH_DOTTED),
    "large": Role(VERMILION, "P", DASHED),
    "post_large": Role(VERMILION, "P", DASHED),
    "cold_teacher": Role(VERMILION, "P", DASHED),
    "extra_large": Role(VERMILION, "X", DASHED),
    # a reader's own runs, in the order given: the colours do not say where they lead
    "first_run": Role(INDIGO, "o", SOLID),
    "second_run": Role(ORANGE, "X", DASHED),
    # runs, coloured by where they lead
    "success": TO_RL,
    "baseline": TO_RL,
    "base_rl": TO_RL,
    "large_rl": TO_RL,
    "post_rl": TO_RL,
    "large_success": TO_RL,
    "failure": TO_LARGER,
    "base_post": TO_LARGER,
    "no_cold_start": TO_LARGER,
    "post_same": TO_LARGER,
    "large_failure": TO_LARGER,
    "reverse_small": Role(BLUE, "^", SOLID),
    "reverse_large": Role(VERMILION, "v", DASHED),
    "cold_start": Role(ORANGE, "o", SOLID),  # to the same teacher as `no_cold_start`
    # bars: a teacher's results before and after its own RL
    "no_cold_start_long": Role(GREY, "p", DOTTED),
    "before": TO_LARGER,
    "after": TO_RL,
    # prompts; `baseline` and `base_rl` have the teacher's own, in its own template
    "template_original": Role(BROWN, "^", DASHED),
    "content_other": OTHER_PROMPTS,
    "select_template": OTHER_PROMPTS,
    "select_mixed": Role(INDIGO, "v", DASH_DOTTED),
    "select_divergence": Role(PINK, "X", DASH_DOT_DOTTED),
    "select_none": Role(GREY, "p", DOTTED),
    # maximum response lengths: the longer, the darker
    "length_1": Role(CREST[0], "o", DOTTED),
    "length_2": Role(CREST[1], "s", DASH_DOT_DOTTED),
    "length_3": Role(CREST[2], "^", DASH_DOTTED),
    "length_4": Role(CREST[3], "D", DASHED),
    "length_5": Role(CREST[4], "v", LONG_DASHED),
    "length_6": Role(CREST[5], "X", SOLID),
    # k, by colour, of the direct gradient (solid; k = 16 is `baseline`) and the policy gradient
    "k4": Role(SKY, "D", SOLID),
    "k64": Role(INDIGO, "s", SOLID),
    "k1_pg": Role(ORANGE, "X", DASHED),
    "k4_pg": Role(SKY, "^", DASHED),
    "k16_pg": Role(GREEN, "v", DASHED),
    "k64_pg": Role(INDIGO, "P", DASHED),
    "sampled": Role(GREY, "p", DOTTED),
    "direct": Role(DARK, "o", SOLID),
    "policy_gradient": Role(DARK, "v", DASHED),
    # token sets, and the runs whose loss is on them
    "arm_larger": Role(VERMILION, "s", DASHED),
    "arm_family_2": Role(BROWN, "^", SOLID),
    "arm_pattern": Role(INDIGO, "D", DASH_DOTTED),
    "arm_support": Role(PINK, "X", DASH_DOT_DOTTED),
    "arm_k1": Role(ORANGE, "p", DOTTED),
    "control_self": Role(BLUE, "h", LONG_DASHED),
    "control_base_self": Role(SKY, "D", DASHED),
    "control_still": Role(GREY, "p", DOTTED),
    "control_permuted": Role(PINK, "X", DASH_DOTTED),
    "overlap": Role(SKY, "D", DASHED),
    "non_overlap": Role(PINK, "X", DASH_DOTTED),
    "support_overlap": Role(SKY, "D", DASHED),
    "support_non_overlap": Role(PINK, "X", DASH_DOTTED),
    # selectors of the tokens that a run is trained on; `baseline` is trained on all
    "tokens_entropy": Role(ORANGE, "X", DASHED),
    "tokens_reverse_kl": Role(INDIGO, "v", DASH_DOTTED),
    "tokens_tip": Role(PINK, "P", DASH_DOT_DOTTED),
    "tokens_early": Role(SKY, "D", LONG_DASHED),
    "tokens_random": Role(GREY, "p", DOTTED),
    "tokens_kept": Role(BLUE, "s", SOLID),
    "tokens_rest": Role(BROWN, "^", DASHED),
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
        There is no such role; lists the known ones.

    Examples
    --------
    >>> role("success").marker
    'o'
    >>> role("succes")
    Traceback (most recent call last):
    ...
    opdprobe.report.style.FigureError: no role 'succes'; expected one of student, teacher, ...
    """
    if name not in ROLES:
        raise FigureError(f"no role {name!r}; expected one of {', '.join(ROLES)}.")
    return ROLES[name]


def style() -> AbstractContextManager[None]:
    """Apply the figures' style inside a ``with`` block, whatever the user's own style is."""
    # Not plt.style.context: it would load pyplot and keep some of the user's own settings.
    return mpl.rc_context(fname=Path(__file__).with_name("opdprobe.mplstyle"))
