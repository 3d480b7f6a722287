"""slime and miles: samples that torch saved, and miles' columns in parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import shown
from opdprobe.rollout.dumps.files import PICKLES
from opdprobe.rollout.dumps.format import Format, has
from opdprobe.rollout.dumps.row import Row, prompt_name
from opdprobe.rollout.dumps.top_lists import Pairs, top_lists
from opdprobe.rollout.rollout import Rollout, TopLists

_FINISHED = {"completed": True, "truncated": False, "aborted": False}
_MAPS = "input_token_ids_logprobs"


def _rollouts(row: Row) -> Iterator[Rollout]:
    """A sample of ``rollout_data``, saved before its rewards are processed."""
    sample = _Sample(row)
    reward, teacher = row.data.get("reward"), None
    top = None
    if isinstance(reward, Mapping):
        answer = row.at(reward.get("teacher", reward), "reward")
        teacher = sample.scored(answer)
        top = sample.top_lists(row.at(reward, "reward"))
    if row.data.get("teacher_log_probs") is not None:
        teacher = row.logps("teacher_log_probs", sample.length)
    yield sample.rollout(
        finished=_FINISHED.get(_status(row)),
        correct=row.grade("reward"),
        teacher_logp=teacher,
        top=top,
    )


def _trained(row: Row) -> Iterator[Rollout]:
    """A sample of ``train_data``: what the trainer computed."""
    sample = _Sample(row)
    # Its rewards are normalised, and so no grades.
    yield sample.rollout(
        student_logp=row.logps("log_probs", sample.length),
        teacher_logp=row.logps("teacher_log_probs", sample.length),
    )


def _columns(row: Row) -> Iterator[Rollout]:
    """A row of miles' ``dashboard_columns``."""
    yield _Sample(row).rollout()


def _status(row: Row) -> str:
    status = row.data.get("status")
    return status if isinstance(status, str) else ""


class _Sample:
    """The tokens of a sample, of which the last `length` are the response."""

    def __init__(self, row: Row):
        self._row = row
        tokens = row.ids("tokens")
        self.length = row.count(
            "response_length" if "response_length" in row.data else "response_lengths", len(tokens)
        )
        self.prompt_ids = tokens[: len(tokens) - self.length]
        self.response_ids = tokens[len(tokens) - self.length :]

    def rollout(self, **known: Any) -> Rollout:
        """Return the rollout, with what else is `known` of it."""
        row, masks = self._row, "loss_mask" if "loss_mask" in self._row.data else "loss_masks"
        sampler = row.logps("rollout_log_probs", self.length)
        if known.get("top") is not None:
            # The student's lists are of the engine that sampled: there is nothing to compare.
            known["student_logp"], sampler = sampler, None
        return Rollout(
            step=row.step("rollout_id"),
            prompt_id=prompt_name(self.prompt_ids),
            prompt_ids=self.prompt_ids,
            response_ids=self.response_ids,
            mask=row.mask(masks, self.length),
            sampler_logp=sampler,
            source=row.source,
            **known,
        )

    def scored(self, answer: Row) -> NDArray[np.float32] | None:
        """The teacher's log-probabilities of the response, as SGLang answers them."""
        entries = self._meta(answer, "input_token_logprobs")
        if entries is None:
            return None
        logps = [entry[0] for entry in entries if isinstance(entry, list | tuple) and entry]
        return answer.as_logps(logps, "input_token_logprobs", self.length)

    def top_lists(self, reward: Row) -> TopLists | None:
        """Both models' lists (``--opd-log-prob-top-k`` with union or xor); None if one is missing.

        A dump of the other strategies has the list of one model only.
        """
        metadata = self._row.data.get("metadata")
        own = metadata.get("opd_student_top_logprobs") if isinstance(metadata, Mapping) else None
        if own is None or "teacher" not in reward.data:
            return None
        teacher = reward.at(reward.data["teacher"], "teacher")
        theirs = self._meta(teacher, "input_top_logprobs")
        if theirs is None:
            return None
        others = [self._others(teacher), None]
        if "student_on_teacher" in reward.data:
            student = reward.at(reward.data["student_on_teacher"], "student_on_teacher")
            others[1] = self._others(student)
        row = self._row
        if not isinstance(own, list) or len(own) < self.length:
            raise row.fault(
                f"'opd_student_top_logprobs' is {shown(own)}; expected a list for each of "
                f"{self.length} tokens."
            )
        return top_lists(
            row,
            self._pairs(own[len(own) - self.length :], row),
            self._pairs(theirs, teacher),
            student_on=others[1],
            teacher_on=others[0],
        )

    def _meta(self, answer: Row, name: str) -> list[Any] | None:
        """A list of an answer for the response's tokens: its first place stands for no token."""
        meta = answer.data.get("meta_info")
        values = meta.get(name) if isinstance(meta, Mapping) else None
        if values is None:
            return None
        if not isinstance(values, list) or len(values) - 1 < self.length:
            raise answer.fault(
                f"{name!r} is {shown(values)}; expected one entry more than {self.length} tokens."
            )
        return values[len(values) - self.length :]

    def _others(self, answer: Row) -> list[Pairs] | None:
        """What a model gives to tokens that it was asked about."""
        entries = self._meta(answer, _MAPS)
        return None if entries is None else self._pairs(entries, answer)

    def _pairs(self, entries: list[Any], row: Row) -> list[Pairs]:
        """Token ids and log-probabilities at each place, from SGLang's [logp, id, text]."""
        try:
            return [
                [(entry[1], entry[0]) for entry in place or () if entry is not None]
                for place in entries
            ]
        except (TypeError, IndexError, KeyError):
            raise row.fault(
                f"{shown(entries)}; expected lists of [log-probability, id, text]."
            ) from None


_LOSS = "nothing that scoring needs"
SLIME = Format(
    "slime",
    "B",
    "--save-debug-rollout-data or --dump-details: rollout_data/ID.pt (also miles)",
    PICKLES,
    has("tokens", "response_length"),
    _rollouts,
    _LOSS,
)
SLIME_TRAIN = Format(
    "slime-train",
    "B",
    "--save-debug-train-data or --dump-details: train_data/ID.pt",
    PICKLES,
    has("tokens", "response_lengths"),
    _trained,
    "grades, and whether a response ended, unless its last token says so",
)
MILES = Format(
    "miles",
    "A",
    "rollout_data/ID.pt of --opd-log-prob-top-k with union or xor; else as slime",
    PICKLES,
    has("tokens", "response_length"),
    _rollouts,
    "entropies and the divergence over the whole vocabulary",
)
MILES_DASHBOARD = Format(
    "miles-dashboard",
    "B",
    "dashboard_columns/rollout_ID.parquet",
    (".parquet",),
    has("sample_index", "tokens", "response_length", "total_length"),
    _columns,
    "grades, and whether a response ended, unless its last token says so",
)
