"""Which of several teachers teaches this student best?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from opdprobe.errors import ConfigError
from opdprobe.models.load import load_model, load_tokenizer
from opdprobe.models.vocabulary import shared_vocabulary
from opdprobe.preflight.procedure import Preflight, preflight
from opdprobe.preflight.verdict import LIKELY
from opdprobe.probes.bootstrap import MIN_UNITS, draw_units, numbered_keys
from opdprobe.rollout.grade import Grader
from opdprobe.rollout.prompt_files import as_prompts
from opdprobe.rollout.prompts import OnError, Prompt

VALIDATED = (
    "Tried on five students of the testbed with two or three teachers each (docs/verdicts.md): the "
    "first taught best, or within 0.05 of it, in four. The measure was developed on these pairs. "
    "The probabilities are over prompts: they leave out that another refit could come out "
    "differently, and that training may do what a refitted readout does not."
)
"""How far the ranking is validated; part of every ranking."""

# Below this probability the first teacher is not called the best.
_SURE = 0.9


@dataclass(frozen=True)
class Ranking:
    """Teachers of one student, the most promising first.

    Parameters
    ----------
    teachers
        Names. Teachers whose gain is unknown come last, in the order in which they were given.
    found
        Preflight of each teacher, on the same prompts and the same rollouts of the student.
    best
        Probability, over prompts of the same kind, that a teacher's gain is the largest of all
        teachers whose gain is known; NaN where it is unknown, or there are fewer than 16 prompts.
        Equal gains share it.
    """

    teachers: tuple[str, ...]
    found: tuple[Preflight, ...]
    best: tuple[float, ...]
    validated: str = VALIDATED

    @property
    def finding(self) -> str:
        """The ranking in words."""
        known = sum(bool(one.answers.gain_by_prompt) for one in self.found)
        if known == 0:
            return (
                "The teachers cannot be ranked: no teacher's gain could be measured "
                f"({self.found[0].verdict.reasons[0]})"
            )
        first, chance = self.found[0], self.best[0]
        name, gain = self.teachers[0], first.answers.gain.value
        if chance >= _SURE:
            line = f"{name} promises most ({gain:+.2f}): the best of {known} with a probability "
            line += f"of {chance:.2f}."
        else:
            why = (
                f"{len(first.answers.gain_by_prompt)} prompts are too few to tell"
                if chance != chance
                else f"the best of {known} with a probability of only {chance:.2f}"
            )
            line = f"Not settled: {name} comes first ({gain:+.2f}), {why}."
        if first.verdict.word != LIKELY:
            line += f" But its verdict is *{first.verdict.word}*."
        if missing := self.teachers[known:]:
            line += f" Not ranked, since their gain is unknown: {', '.join(missing)}."
        return line

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values; None for an unknown number."""
        return {
            "teachers": [
                {"teacher": name, "best": None if chance != chance else chance} | one.to_dict()
                for name, chance, one in zip(self.teachers, self.best, self.found, strict=True)
            ],
            "finding": self.finding,
            "validated": self.validated,
        }


def rank_teachers(
    student: nn.Module | str | Path,
    teachers: Mapping[str, nn.Module | str | Path],
    prompts: Sequence[Prompt],
    *,
    grader: Grader | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_error: OnError = "raise",
    device: str = "auto",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Ranking:
    """Rank teachers of one student, without training.

    Each teacher is judged by `opdprobe.preflight.preflight` on the same rollouts of the student,
    which are sampled once. Teachers are ranked by the gain of the student with its readout refitted
    to them. One teacher at a time is in memory if they are given by name.

    Parameters
    ----------
    student, prompts, grader, tokenizer, on_error, device, dtype, attn_implementation
        As for `preflight`.
    teachers : mapping of str to PreTrainedModel, str or Path
        Two or more, by the name under which they are shown.
    on_progress
        Called with (teachers done, number of teachers).
    **settings
        All other settings of `preflight`, the same for every teacher.

    Returns
    -------
    Ranking
        Its ``finding`` says which teacher promises most, and how surely.

    Raises
    ------
    ConfigError
        There are fewer than two teachers; or as for `preflight`.
    VocabularyError, PromptError, ModelError
        As for `preflight`. Tokenizers of all teachers are compared before any weights are read.
    """
    if len(teachers) < 2:
        raise ConfigError(f"{len(teachers)} teachers; expected two or more to rank.")
    read = as_prompts(prompts, on_error=on_error)
    if isinstance(student, str | Path):
        tokenizer = tokenizer or load_tokenizer(student)
        for teacher in teachers.values():
            if isinstance(teacher, str | Path):
                shared_vocabulary(tokenizer, load_tokenizer(teacher))
        student = load_model(
            student, device=device, dtype=dtype, attn_implementation=attn_implementation
        )
    found: dict[str, Preflight] = {}
    rollouts = None
    for name, teacher in teachers.items():
        if on_progress is not None:
            on_progress(len(found), len(teachers))
        one = preflight(
            student,
            teacher,
            read,
            grader=grader,
            tokenizer=tokenizer,
            on_error=on_error,
            rollouts=rollouts,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            **settings,
        )
        rollouts = one.rollouts
        found[name] = replace(one, settings={**one.settings, "teacher": name})
    if on_progress is not None:
        on_progress(len(found), len(teachers))
    gains = {name: one.answers.gain_by_prompt for name, one in found.items()}
    known = sorted(
        (name for name in found if gains[name]), key=lambda name: -found[name].answers.gain.value
    )
    order = [*known, *(name for name in found if name not in known)]
    chances = dict(zip(known, _best(np.array([gains[name] for name in known])), strict=True))
    return Ranking(
        tuple(order),
        tuple(found[name] for name in order),
        tuple(chances.get(name, np.nan) for name in order),
    )


def _best(gains: NDArray[np.float64]) -> list[float]:
    """Probability that each row has the largest mean; paired bootstrap over the columns."""
    if not len(gains):
        return []
    n = gains.shape[1]
    if n < MIN_UNITS:
        return [np.nan] * len(gains)
    means = draw_units(numbered_keys(n)) @ gains.T
    first = np.isclose(means, means.max(-1, keepdims=True), atol=1e-9)
    return (first / first.sum(-1, keepdims=True)).mean(0).tolist()
