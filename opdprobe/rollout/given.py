"""Rollouts that exist already: check them, and lay out what they bring as rows of the store."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opdprobe.errors import RolloutError, StoreError, VocabularyError, shown
from opdprobe.models.positions import most_tokens, n_embeddings
from opdprobe.rollout.rollout import Rollout
from opdprobe.rollout.rows import rollout_arrays
from opdprobe.rollout.sample import Rollouts
from opdprobe.store.schema import MODELS, Step, build_step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("opdprobe")

_LARGEST = 2**31 - 1  # of a token id and of a step
_TOLERANCE = 1e-3  # nats above 0 that rounding may have added to a log-probability


@dataclass(frozen=True)
class Given:
    """A step's rollouts in two forms.

    Parameters
    ----------
    rows
        The rollouts, checked.
    rollouts
        Their texts and states. A response begins with the first token that the student drew and
        ends with the last one: what is before belongs to the prompt, what is after is left out.
    chosen
        For each rollout, the places of its states in the response as it was given.
    """

    rows: Sequence[Rollout]
    rollouts: Rollouts
    chosen: Sequence[NDArray[np.intp]]

    @property
    def n_states(self) -> int:
        """Number of states of all rollouts."""
        return sum(map(len, self.chosen))

    def column(self, name: str) -> NDArray[np.float32]:
        """Put an attribute of the rollouts' tokens in the order of the states; NaN where unknown.

        Parameters
        ----------
        name
            ``"sampler_logp"``, ``"student_logp"`` or ``"teacher_logp"``.
        """
        parts = [np.zeros(0, np.float32)]
        for row, places in zip(self.rows, self.chosen, strict=True):
            values = getattr(row, name)
            unknown = np.full(len(places), np.nan, np.float32)
            parts.append(unknown if values is None else np.asarray(values, np.float32)[places])
        # Rounding may have put a certain token's above 0.
        return np.minimum(np.concatenate(parts), 0)


@dataclass(frozen=True)
class Columns:
    """What all steps of a run have besides the scores; the first step decides.

    Parameters
    ----------
    labels
        Names of the labels.
    sampler, reported
        Whether there are log-probabilities of the sampler, and of the trainer.
    teacher
        Whether the teacher reads prompts of its own.
    """

    labels: tuple[str, ...]
    sampler: bool
    reported: bool
    teacher: bool

    @classmethod
    def of_rows(cls, rows: Sequence[Rollout]) -> "Columns":
        """Columns for a run that begins with these rollouts."""
        return cls(
            tuple(dict.fromkeys(name for row in rows for name in row.labels)),
            any(row.sampler_logp is not None for row in rows),
            any(row.student_logp is not None or row.teacher_logp is not None for row in rows),
            any(row.teacher_prompt_ids is not None for row in rows),
        )

    @classmethod
    def of_step(cls, step: Any) -> "Columns":
        """Columns of a recorded step."""
        labels = step["label_name"].values.tolist() if "label_name" in step else []
        return cls(
            tuple(labels),
            "sampler_logp" in step,
            "reported_logp" in step,
            "teacher_prompt_ids" in step,
        )

    def warn(self, rows: Sequence[Rollout]) -> None:
        """Say what is left out of a later step, since the run's first step has none.

        Raises
        ------
        RolloutError
            The teacher's own prompts would be left out, which would change the scores.
        """
        own = Columns.of_rows(rows)
        if own.teacher and not self.teacher:
            row = next(row for row in rows if row.teacher_prompt_ids is not None)
            raise RolloutError(
                f"{named(row)}: the teacher reads a prompt of its own (teacher_prompt_ids), and in "
                "the run's first step it does not: record it into another run."
            )
        more = [f"label {name!r}" for name in own.labels if name not in self.labels]
        more += ["the sampler's log-probabilities"] * (own.sampler and not self.sampler)
        more += ["the trainer's log-probabilities"] * (own.reported and not self.reported)
        if more:
            logger.warning(
                "%s: %s, which the first step of the run does not have, are left out.",
                named(rows[0]),
                ", ".join(more),
            )


def by_step(rollouts: Iterable[Rollout | None]) -> Iterator[tuple[int, list[Rollout]]]:
    """Put rollouts together by step, one step in memory at a time.

    A step is complete when a rollout of another one comes, or None.

    Raises
    ------
    RolloutError
        A rollout cannot be used, or a step comes again after another one.
    """
    done: set[int] = set()
    some: list[Rollout] = []
    for row in chain((row if row is None else check(row) for row in rollouts), [None]):
        if some and (row is None or row.step != some[0].step):
            done.add(int(some[0].step))
            yield int(some[0].step), some
            some = []
        if row is None:
            continue
        if int(row.step) in done:
            raise RolloutError(
                f"{named(row)}: step {row.step} comes again after another step; expected all "
                "rollouts of a step one after another: sort them by step."
            )
        some.append(row)


def named(row: Rollout) -> str:
    """Name a rollout in a message."""
    return row.source or f"a rollout of step {row.step}, prompt {shown(row.prompt_id)}"


def check(row: Rollout) -> Rollout:
    """Return a rollout if its parts fit together.

    Raises
    ------
    RolloutError
        They do not; names the rollout.
    """
    if reason := _fault(row):
        raise RolloutError(f"{named(row)}: {reason}.")
    return row


def _fault(row: Rollout) -> str | None:
    if not isinstance(row, Rollout):
        return f"a {type(row).__name__}; expected an opdprobe.Rollout"
    if not _is_whole(row.step) or not 0 <= row.step <= _LARGEST:
        return f"step = {shown(row.step)}; expected a whole number from 0"
    if not isinstance(row.prompt_id, str):
        return f"prompt_id = {shown(row.prompt_id)}; expected a str"
    if row.response_ids is None:
        return "it has no response_ids; expected token ids: tokenise its text first"
    for name in ("prompt_ids", "teacher_prompt_ids", "response_ids"):
        ids = np.asarray(getattr(row, name) if getattr(row, name) is not None else [])
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            return f"{name} = {shown(getattr(row, name))}; expected a list of token ids"
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= _LARGEST:
            return f"{name} has {ids.min()} to {ids.max()}; expected token ids from 0"
    n = len(row.response_ids)
    for name in ("mask", "sampler_logp", "student_logp", "teacher_logp"):
        values = getattr(row, name)
        if values is not None and np.shape(values) != (n,):
            return f"{name} has shape {np.shape(values)}; expected one of each response token, {n}"
        if name != "mask" and values is not None and (np.asarray(values) > _TOLERANCE).any():
            return f"{name} has {np.nanmax(values):.3g}; expected log-probabilities, at most 0"
    if row.finished is not None and not isinstance(row.finished, bool | np.bool_):
        return f"finished = {shown(row.finished)}; expected True, False or None"
    if not (np.isnan(row.correct) or 0 <= row.correct <= 1):
        return f"correct = {shown(row.correct)}; expected a number from 0 to 1, or NaN"
    if bad := [pair for pair in row.labels.items() if not all(isinstance(x, str) for x in pair)]:
        return f"labels has {shown(bad[0])}; expected a str for a str"
    if row.teacher_lists is not None:
        ids, logp = np.shape(row.teacher_lists.token_id), np.shape(row.teacher_lists.logp)
        if len(ids) != 2 or ids[0] != n or logp != ids:
            return f"the teacher's lists have shapes {ids} and {logp}; expected ({n}, k) for both"
    if row.top is not None:
        ids, logp = np.shape(row.top.token_id), np.shape(row.top.logp)
        if len(ids) != 3 or ids[:2] != (n, 2) or logp != (n, 2, 2, ids[2]):
            return (
                f"the top lists have shapes {ids} and {logp}; expected ({n}, 2, k) and "
                f"({n}, 2, 2, k)"
            )
    return None


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def gather(rows: Sequence[Rollout], columns: Columns) -> Given:
    """Cut rollouts to what has states; see `Given`."""
    theirs: list[list[int]] = []
    prompts: list[list[int]] = []
    responses: list[list[int]] = []
    drawn: list[list[int]] = []
    chosen: list[NDArray[np.intp]] = []
    for row in rows:
        prompt, response = (
            [] if ids is None else np.asarray(ids, np.int64).tolist()
            for ids in (row.prompt_ids, row.response_ids)
        )
        mask = np.ones(len(response), bool) if row.mask is None else np.asarray(row.mask, bool)
        places = np.flatnonzero(mask)
        start, end = (places[0], places[-1] + 1) if places.size else (len(response),) * 2
        own = row.teacher_prompt_ids
        own = prompt if own is None else np.asarray(own, np.int64).tolist()
        prompts.append(prompt + response[:start])
        theirs.append(own + response[:start])
        responses.append(response[start:end])
        drawn.append((places - start).tolist())
        chosen.append(places)
    gaps = any(len(some) < len(response) for some, response in zip(drawn, responses, strict=True))
    names = {name: i for i, name in enumerate(dict.fromkeys(row.prompt_id for row in rows))}
    return Given(
        rows,
        Rollouts(
            prompts,
            responses,
            finished=[bool(row.finished) for row in rows],
            prompt_index=[names[row.prompt_id] for row in rows],
            drawn=drawn if gaps else None,
            teacher_prompt_ids=theirs if columns.teacher else None,
        ),
        chosen,
    )


def check_readable(given: Given, models: "Mapping[str, PreTrainedModel]", width: int) -> None:
    """Refuse rollouts that a model has no embeddings, no logits or no positions for.

    Parameters
    ----------
    given
        A step's rollouts.
    models
        The models that run here, by role.
    width
        Number of tokens that both models have logits for.

    Raises
    ------
    RolloutError, VocabularyError
        Names the rollout.
    """
    # Found once: looking through a model's modules costs as much as scoring some tokens.
    limits = [(role, most_tokens(model), n_embeddings(model)) for role, model in models.items()]
    read = {role: given.rollouts.read_by(role).prompt_ids for role in MODELS}
    for i, (row, response) in enumerate(zip(given.rows, given.rollouts.response_ids, strict=True)):
        if not response:
            continue
        if not all(read[role][i] for role in MODELS):
            raise RolloutError(
                f"{named(row)}: it has no prompt, so nothing predicts the first token of its "
                "response: put that token into prompt_ids, or leave the rollout out."
            )
        drawn = max(response[place] for place in given.rollouts.states(i))
        if drawn >= width:
            raise VocabularyError(
                f"{named(row)}: the student drew token {drawn}, but the models share {width} "
                "tokens: give the models and the tokenizer that the rollouts were sampled with."
            )
        for role, most, known in limits:
            prompt = read[role][i]
            length, largest = len(prompt) + len(response) - 1, max(max(prompt), max(response))
            if most is not None and length > most:
                raise RolloutError(
                    f"{named(row)}: it has {length + 1} tokens, but the {role} reads texts of up "
                    f"to {most}: leave the rollout out."
                )
            if known is not None and largest >= known:
                raise VocabularyError(
                    f"{named(row)}: it has token {largest}, but the {role} has embeddings for the "
                    f"ids 0 to {known - 1} only: give the model that the rollouts were made for."
                )


def own_arrays(
    given: Given, columns: Columns, correct: Sequence[float]
) -> dict[str, ArrayLike | None]:
    """Lay out all that the rollouts bring, apart from both models' scores."""
    rows = given.rows
    arrays: dict[str, ArrayLike | None] = {
        **rollout_arrays(given.rollouts),
        "prompt_id": [row.prompt_id for row in rows],
        "finished": _finished(rows),
        "correct": np.asarray(correct, np.float32),
    }
    if columns.sampler:
        arrays["sampler_logp"] = given.column("sampler_logp")
    if columns.reported:
        arrays["reported_logp"] = _both(given)
    if columns.labels:
        table = [[row.labels.get(name, "") for name in columns.labels] for row in rows]
        arrays["label"] = np.array(table, str).reshape(len(rows), len(columns.labels))
        arrays["label_name"] = list(columns.labels)
    return arrays


def _both(given: Given) -> NDArray[np.float32]:
    return np.stack([given.column(f"{model}_logp") for model in MODELS], 1)


def _finished(rows: Sequence[Rollout]) -> NDArray[Any]:
    known = [row.finished for row in rows]
    if None in known:
        return np.array([np.nan if one is None else one for one in known], np.float32)
    return np.array(known, bool)


def step_of_dump(step: int, given: Given, arrays: Mapping[str, ArrayLike | None], k: int) -> Step:
    """Make a step without a model: from both top-k lists, or from the drawn tokens' log-probs.

    Raises
    ------
    RolloutError
        A rollout has neither, or its lists are no valid ones; names it.
    """
    known: dict[str, ArrayLike | None]
    if all(row.top is not None for row in given.rows):
        known, missing = _from_lists(given, k), list(MODELS)
    else:
        for row in given.rows:
            if row.student_logp is None or row.teacher_logp is None:
                raise RolloutError(
                    f"{named(row)}: it has neither both models' top lists, as all rollouts of a "
                    "step must have, nor log-probabilities of both models: give a student and a "
                    "teacher to score it with."
                )
        sampled = _both(given)
        known = {"sampled_logp": sampled}
        missing = [model for m, model in enumerate(MODELS) if np.isnan(sampled[:, m]).any()]
    # What was reported is all that is known here.
    rest = {name: values for name, values in arrays.items() if name != "reported_logp"}
    try:
        return build_step(
            {"step": step, **rest, **known}, {"missing": missing} if missing else None
        )
    except StoreError as error:
        if len(given.rows) > 1:  # to name the one that is wrong
            for row in given.rows:
                bare = Columns((), sampler=False, reported=False, teacher=False)
                one = gather([row], bare)
                step_of_dump(step, one, own_arrays(one, bare, [np.nan]), k)
        raise RolloutError(f"{named(given.rows[0])}: {error}") from error


def _from_lists(given: Given, k: int) -> dict[str, ArrayLike | None]:
    """Cut the rollouts' top lists to k, and look the drawn tokens up in them."""
    ids, logp = [np.zeros((0, 2, k), np.int32)], [np.zeros((0, 2, 2, k), np.float32)]
    for row, places in zip(given.rows, given.chosen, strict=True):
        assert row.top is not None
        there = np.shape(row.top.token_id)[-1]
        if there < k and len(places):
            raise RolloutError(
                f"{named(row)}: its top lists have {there} tokens, but k = {k}: use k = {there} "
                "or less."
            )
        if len(places):
            ids.append(np.asarray(row.top.token_id)[places, :, :k])
            logp.append(np.asarray(row.top.logp, np.float32)[places][..., :k])
    token_id, lists = np.concatenate(ids), np.minimum(np.concatenate(logp), 0)
    sampled = _both(given)
    drawn = np.asarray(rollout_arrays(given.rollouts)["sampled_id"])
    for support in (1, 0):
        hit = token_id[:, support] == drawn[:, None]
        found = np.where(hit[:, None], lists[:, :, support], -np.inf).max(-1)
        found = np.where(hit.any(-1)[:, None], found, np.nan)  # (state, model)
        sampled = np.where(np.isnan(sampled), found, sampled)
    n = len(token_id)
    return {
        "token_id": token_id,
        "logp": lists,
        "entropy": np.full((n, 2), np.nan, np.float32),
        "reverse_kl": np.full(n, np.nan, np.float32),
        "sampled_logp": sampled,
    }
