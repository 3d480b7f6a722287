"""What it changes that the teacher reads prompts of its own: the same responses behind both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from opdprobe.preflight.estimates import UNKNOWN, Number, prompt_mean
from opdprobe.probes.bootstrap import MIN_UNITS_HEAVY

QUANTITIES = ("reverse_kl", "first_reverse_kl", "teacher_accuracy")


@dataclass(frozen=True)
class Contexts:
    """The student's responses beside a teacher with the student's prompts, and with its own.

    Parameters
    ----------
    shared, own, change
        By name: ``reverse_kl`` over all states and ``first_reverse_kl`` at the first token of each
        response, in nats; ``teacher_accuracy`` of the teacher's own responses, unknown without
        answers. `change` is own minus shared, over the same prompts.
    by_position
        Reverse KL by output position: ``start``, ``stop`` (exclusive), ``shared``, ``own``.
    """

    shared: Mapping[str, Number]
    own: Mapping[str, Number]
    change: Mapping[str, Number]
    by_position: Sequence[Mapping[str, float]]

    @property
    def finding(self) -> str:
        """Say which form of the prompts suits the teacher, as far as the intervals tell."""
        said = []
        better = self.change["teacher_accuracy"]
        if better.low > 0:
            said.append(
                "The student's prompts do not suit the teacher: it answers more with its own "
                f"({_signed(better)})."
            )
        elif better.high < 0:
            said.append(
                "The teacher's own prompts do not suit it: it answers more with the student's "
                f"({_signed(better)})."
            )
        for name, where in (("first_reverse_kl", "At the first token"), ("reverse_kl", "Overall")):
            change = self.change[name]
            if change.high < 0 or change.low > 0:
                nearer = "closer to" if change.high < 0 else "further from"
                said.append(
                    f"{where}, its own prompts bring it {nearer} the student's responses "
                    f"({_signed(change)} nats)."
                )
        return " ".join(said) or (
            "These prompts do not tell whether the teacher's own suit it better than the "
            "student's: no interval excludes 0."
        )


def compare_contexts(
    shared: xr.Dataset,
    own: xr.Dataset,
    shared_rows: Sequence[Mapping[str, float]],
    own_rows: Sequence[Mapping[str, float]],
    prompt: np.ndarray,
    accuracy: tuple[np.ndarray, np.ndarray] | None,
) -> Contexts:
    """Compare two records of the same responses.

    Parameters
    ----------
    shared, own
        The student's rollouts, scored with the student's prompts and with the teacher's own.
    shared_rows, own_rows
        Their averages by position.
    prompt : ndarray of int, (rollout,)
        Index of each rollout's prompt.
    accuracy : (ndarray, ndarray), optional
        Grades of the teacher's own responses to the prompts of both forms, in the same order.
    """
    kl = [step["reverse_kl"].values.astype(np.float64) for step in (shared, own)]
    of_state = prompt[shared["rollout"].values]
    first = shared["position"].values == 0
    table: dict[str, list[Number]] = {}
    for name, rows in (("reverse_kl", np.ones_like(first)), ("first_reverse_kl", first)):
        theirs, its = (values[rows] for values in kl)
        table[name] = [
            prompt_mean(values, of_state[rows], least=MIN_UNITS_HEAVY)
            for values in (theirs, its, its - theirs)
        ]
    table["teacher_accuracy"] = [UNKNOWN] * 3
    if accuracy is not None:
        theirs, its = accuracy
        table["teacher_accuracy"] = [
            prompt_mean(theirs, prompt, (0, 1)),
            prompt_mean(its, prompt, (0, 1)),
            prompt_mean(its - theirs, prompt, (-1, 1)),
        ]
    before, after, change = ({name: table[name][i] for name in QUANTITIES} for i in range(3))
    return Contexts(
        before,
        after,
        change,
        [
            {
                "start": a["start"],
                "stop": a["stop"],
                "shared": a["reverse_kl"],
                "own": b["reverse_kl"],
            }
            for a, b in zip(shared_rows, own_rows, strict=True)
        ],
    )


def _signed(change: Number) -> str:
    return f"{change.value:+.3g} [{change.low:+.3g}, {change.high:+.3g}]"
