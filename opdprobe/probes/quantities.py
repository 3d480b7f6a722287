"""The one table of a run's quantities: name, unit, what each needs, how each is computed.

Curves, logged metrics, report, viewer, preflight and analyses read it; no other place defines a
quantity's title or unit.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from opdprobe.probes.bootstrap import MIN_UNITS, MIN_UNITS_HEAVY

Compute = Callable[[xr.Dataset], xr.DataArray]

LIKELY = 1e-3
"""Probability from which a token counts in ``likely_overlap_ratio``."""


class Scalar(NamedTuple):
    """Name and unit of a number.

    Attributes
    ----------
    long_name : str
        Its name inside a sentence.
    units : str
        ``"nats"``, ``"tokens"``, or ``"1"`` for everything without a unit.
    """

    long_name: str
    units: str

    @property
    def title(self) -> str:
        """Its name as a heading."""
        return self.long_name[0].upper() + self.long_name[1:]

    @property
    def label(self) -> str:
        """Its name and unit, for an axis."""
        return axis_label(self.long_name, self.units)


class Quantity(NamedTuple):
    """One quantity of a recorded step.

    Attributes
    ----------
    name : Scalar
        Its name and unit.
    needs : str
        The variable of a step that it cannot be computed without.
    compute : callable
        Computes one value per state, or one per rollout, from a step.
    per : str
        ``"state"`` or ``"rollout"``.
    worse : int
        For the viewer: +1 if high values are bad, -1 if low ones are, 0 if neither, or both alike.
    two_sided : bool
        Whether the viewer colours values of both signs.
    """

    name: Scalar
    needs: str
    compute: Compute
    per: str = "state"
    worse: int = 0
    two_sided: bool = False

    @property
    def title(self) -> str:
        """Its name as a heading."""
        return self.name.title


def axis_label(long_name: str, units: str) -> str:
    """Compose an axis label.

    Examples
    --------
    >>> axis_label("entropy gap", "nats"), axis_label("overlap ratio", "1")
    ('entropy gap [nats]', 'overlap ratio')
    """
    return long_name if units == "1" else f"{long_name} [{units}]"


def _state(
    long_name: str, units: str, needs: str, compute: Compute, worse: int = 0, **more: bool
) -> Quantity:
    return Quantity(Scalar(long_name, units), needs, compute, "state", worse, **more)


def _rollout(long_name: str, units: str, variable: str) -> Quantity:
    return Quantity(Scalar(long_name, units), variable, lambda ds: ds[variable], "rollout")


QUANTITIES: Mapping[str, Quantity] = {
    "overlap_ratio": _state(
        "overlap ratio", "1", "match", lambda ds: ds.opd.overlap_ratio(), worse=-1
    ),
    "likely_overlap_ratio": _state(
        f"overlap ratio above {LIKELY:g}", "1", "match", lambda ds: ds.opd.likely_overlap_ratio()
    ),
    "overlap_token_advantage": _state(
        "overlap-token advantage",
        "nats",
        "logp",
        lambda ds: ds.opd.overlap_token_advantage(),
        worse=-1,
    ),
    "entropy_gap": _state("entropy gap", "nats", "entropy", lambda ds: ds.opd.entropy_gap()),
    "student_overlap_mass": _state(
        "student overlap mass", "1", "logp", lambda ds: ds.opd.overlap_mass("student")
    ),
    "teacher_overlap_mass": _state(
        "teacher overlap mass", "1", "logp", lambda ds: ds.opd.overlap_mass("teacher")
    ),
    "student_entropy": _state(
        "student entropy", "nats", "entropy", lambda ds: ds.opd.entropy("student"), worse=1
    ),
    "teacher_entropy": _state(
        "teacher entropy", "nats", "entropy", lambda ds: ds.opd.entropy("teacher"), worse=1
    ),
    "reverse_kl": _state(
        "reverse KL", "nats", "reverse_kl", lambda ds: ds.opd.reverse_kl(), worse=1
    ),
    "extreme_advantage_gap": _state(
        "extreme-advantage gap", "1", "logp", lambda ds: ds.opd.extreme_advantage_gap()
    ),
    "sampled_reward": _state(
        "sampled-token reward",
        "nats",
        "sampled_logp",
        lambda ds: ds.opd.sampled_reward(),
        worse=-1,
        two_sided=True,
    ),
    "student_stop_token_mass": _state(
        "student stop-token mass",
        "1",
        "stop_logp",
        lambda ds: ds.opd.stop_token_mass("student"),
    ),
    "teacher_stop_token_mass": _state(
        "teacher stop-token mass",
        "1",
        "stop_logp",
        lambda ds: ds.opd.stop_token_mass("teacher"),
    ),
    "sampler_gap": _state(
        "student minus sampler",
        "nats",
        "sampler_logp",
        lambda ds: ds.opd.sampler_gap(),
        two_sided=True,
    ),
    "sampler_kl": _state(
        "KL of sampler from student (k3)",
        "nats",
        "sampler_logp",
        lambda ds: ds.opd.sampler_kl(),
    ),
    "completion_length": _rollout("response length", "tokens", "length"),
    "finished": _rollout("finished responses", "1", "finished"),
    "correct": _rollout("correct responses", "1", "correct"),
}
"""Every quantity that a recorded step gives, by its name in ``Run.metrics``."""

DIAGNOSTICS: Mapping[str, Quantity] = {
    "jaccard": _state("Jaccard index of the lists", "1", "match", lambda ds: ds.opd.jaccard()),
    "rank_biased_overlap": _state(
        "rank-biased overlap", "1", "match", lambda ds: ds.opd.rank_biased_overlap()
    ),
    "kendall_tau": _state(
        "Kendall's tau of the shared tokens", "1", "match", lambda ds: ds.opd.kendall_tau()
    ),
    "nucleus_overlap": _state(
        "overlap of the top-p sets", "1", "logp", lambda ds: ds.opd.nucleus_overlap()
    ),
    "argmax_disagreement": _state(
        "different first choice", "1", "match", lambda ds: ds.opd.argmax_disagreement()
    ),
    "top1_acceptance": _state(
        "student's first choice in the teacher's top 5",
        "1",
        "match",
        lambda ds: ds.opd.top1_acceptance(),
    ),
    "student_drawn_rank": _state(
        "student's rank of the drawn token",
        "1",
        "token_id",
        lambda ds: ds.opd.drawn_rank("student"),
    ),
    "teacher_drawn_rank": _state(
        "teacher's rank of the drawn token",
        "1",
        "token_id",
        lambda ds: ds.opd.drawn_rank("teacher"),
    ),
    "student_effective_support": _state(
        "student's effective number of tokens",
        "tokens",
        "entropy",
        lambda ds: ds.opd.effective_support("student"),
    ),
    "teacher_effective_support": _state(
        "teacher's effective number of tokens",
        "tokens",
        "entropy",
        lambda ds: ds.opd.effective_support("teacher"),
    ),
    "teacher_unsure": _state(
        "teacher's entropy of 0.8 nats or more", "1", "entropy", lambda ds: ds.opd.teacher_unsure()
    ),
    "forward_kl": _state("forward KL, lower bound", "nats", "logp", lambda ds: ds.opd.forward_kl()),
    "jensen_shannon": _state(
        "Jensen–Shannon divergence, lower bound", "nats", "logp", lambda ds: ds.opd.jensen_shannon()
    ),
    "bhattacharyya": _state(
        "Bhattacharyya coefficient, lower bound", "1", "logp", lambda ds: ds.opd.bhattacharyya()
    ),
    "information_to_error": _state(
        "information-to-error ratio", "1", "logp", lambda ds: ds.opd.information_to_error()
    ),
    "positive_reward": _state(
        "positive sampled reward", "1", "sampled_logp", lambda ds: ds.opd.positive_reward()
    ),
}
"""Diagnostics of other papers and of practitioners, one value per state; in no report by itself.

`opdprobe.curve` and ``ds.opd`` take their names like those of `QUANTITIES`."""

PER_STATE: Mapping[str, Quantity] = {
    **{name: quantity for name, quantity in QUANTITIES.items() if quantity.per == "state"},
    **DIAGNOSTICS,
}
"""Every quantity with a value per state."""

SHARES = frozenset(
    {
        "overlap_ratio",
        "likely_overlap_ratio",
        "student_overlap_mass",
        "teacher_overlap_mass",
        "student_stop_token_mass",
        "teacher_stop_token_mass",
        "finished",
        "correct",
        "jaccard",
        "rank_biased_overlap",
        "nucleus_overlap",
        "argmax_disagreement",
        "top1_acceptance",
        "teacher_unsure",
        "bhattacharyya",
        "positive_reward",
    }
)
"""Quantities in [0, 1]."""

_NOT_NEGATIVE = frozenset(
    {
        "entropy_gap",
        "student_entropy",
        "teacher_entropy",
        "reverse_kl",
        "forward_kl",
        "jensen_shannon",
        "sampler_kl",
        "completion_length",
        "grad_norm",
    }
)

_LIGHT = frozenset(
    {
        "overlap_ratio",
        "entropy_gap",
        "student_entropy",
        "teacher_entropy",
        "completion_length",
        "finished",
        "correct",
    }
)

LOGGED: Mapping[str, Scalar] = {
    "loss": Scalar("loss", "nats"),
    "grad_norm": Scalar("gradient norm", "1"),
    "empty_overlap": Scalar("states without a shared token", "1"),
}
"""Scalars that are logged and have no value per state."""

MAIN = (
    "overlap_ratio",
    "overlap_token_advantage",
    "entropy_gap",
    "student_overlap_mass",
    "teacher_overlap_mass",
    "reverse_kl",
)
"""What a run is judged by: both signatures of the paper (§4.1) and the masses (App. B.1)."""


def bounds_of(name: str) -> tuple[float, float]:
    """Return the least and the greatest value of a quantity or a logged scalar, or infinity."""
    if name in SHARES:
        return 0.0, 1.0
    return (0.0 if name in _NOT_NEGATIVE else -np.inf), np.inf


def fewest_prompts(probe: object) -> int:
    """Return the number of prompts below which a probe's mean has no interval.

    It depends on the probe's name and never on the values: a sample in which the heavy tail is
    missing looks like one without.
    """
    return MIN_UNITS if probe in _LIGHT else MIN_UNITS_HEAVY


def scalar(name: str) -> Scalar:
    """Look up the name and unit of a quantity or a logged scalar."""
    known = {**QUANTITIES, **DIAGNOSTICS}
    return known[name].name if name in known else LOGGED[name]
