"""A rollout that exists already: read from a trainer's dump, or made by the caller."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TopLists:
    """Both models' top-k lists at every response token of one rollout, as the store has them.

    Parameters
    ----------
    token_id : ndarray of int (tokens, 2, k)
        Top-k token ids of the student and of the teacher, most probable first.
    logp : ndarray of float (tokens, 2, 2, k)
        ``logp[:, m, s]`` is the log-probability, in nats, that model m gives to the tokens
        ``token_id[:, s]``; NaN for a token of the other model's list that m was not asked about.
    """

    token_id: NDArray[np.int32]
    logp: NDArray[np.float32]


@dataclass(frozen=True)
class TeacherLists:
    """What a cache holds of a teacher at every response token of one rollout, at temperature 1.

    Parameters
    ----------
    token_id : ndarray of int (tokens, k)
        The teacher's top-k token ids, most probable first; -1 where a list is shorter, or missing.
    logp : ndarray of float (tokens, k)
        Their log-probabilities over the full vocabulary, in nats; ``-inf`` where there is no id.
    sampled_logp : ndarray of float (tokens,)
        Log-probability of the response's own token, in nats; NaN where the cache does not have it.
    entropy : ndarray of float (tokens,), optional
        The teacher's entropy, in nats.
    also_id : ndarray of int (tokens, m), optional
        Further tokens, in no order, of which the teacher's log-probability is known.
    also_logp : ndarray of float (tokens, m), optional
        Their log-probabilities, in nats; NaN where it is not known after all.
    """

    token_id: NDArray[np.int32]
    logp: NDArray[np.float32]
    sampled_logp: NDArray[np.float32]
    entropy: NDArray[np.float32] | None = None
    also_id: NDArray[np.int32] | None = None
    also_logp: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Rollout:
    """One response of the student to one prompt.

    A rollout has token ids (`prompt_ids` and `response_ids`) or text (`prompt` and `response`); a
    text has to be tokenised before a model can score it.

    Parameters
    ----------
    step
        Number of optimiser steps that the student had taken when it sampled.
    prompt_id
        Name of the prompt; the rollouts of one prompt share it.
    prompt_ids, response_ids
        Token ids. The response holds its end token if it ended by itself.
    prompt
        Text of the prompt as the model read it, or messages, to which a chat template applies.
    response
        Text of the response.
    mask
        For each response token: whether the student drew it. Tokens of a tool or of a user are
        not drawn. None: all were drawn.
    finished
        Whether the response ended by itself; None: the dump does not say.
    correct
        Grade in [0, 1]; NaN: not graded.
    labels
        What else is known of it: data source, domain, teacher.
    sampler_logp, student_logp, teacher_logp : ndarray of float (tokens,)
        Log-probabilities, in nats, of the response tokens as the dump has them: of the engine that
        sampled, of the trained student, of the teacher. NaN where a token has none.
    top
        Both models' top-k lists.
    teacher_lists
        The teacher's top-k lists, where a cache is the teacher.
    teacher_prompt_ids
        Token ids that the teacher reads before the response, if they are not `prompt_ids`. The
        first step of a run decides whether it has any.
    source
        Where it was read, for messages: ``FILE:LINE`` or ``FILE, row N``.
    """

    step: int
    prompt_id: str
    prompt_ids: Sequence[int] | None = None
    response_ids: Sequence[int] | None = None
    prompt: str | Sequence[Mapping[str, Any]] | None = None
    response: str | None = None
    mask: NDArray[np.bool_] | None = None
    finished: bool | None = None
    correct: float = math.nan
    labels: Mapping[str, str] = field(default_factory=dict)
    sampler_logp: NDArray[np.float32] | None = None
    student_logp: NDArray[np.float32] | None = None
    teacher_logp: NDArray[np.float32] | None = None
    top: TopLists | None = None
    teacher_lists: TeacherLists | None = None
    teacher_prompt_ids: Sequence[int] | None = None
    source: str = ""
