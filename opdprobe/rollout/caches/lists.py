"""Check the lists that a cache holds, and lay them out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import RolloutError, shown
from opdprobe.rollout.rollout import TeacherLists

_TOLERANCE = 1e-3  # nats above 0 that rounding may have added to a log-probability
_MOST_MASS = 1.1  # of a list; half precision and DistillKit's polynomials miss 1 by less
_MOST_ID = 2**31 - 1


def teacher_lists(
    source: str,
    token_id: NDArray[np.integer],
    logp: NDArray[np.floating],
    sampled_logp: NDArray[np.floating] | None = None,
) -> TeacherLists:
    """Check and sort lists.

    Parameters
    ----------
    source
        Where they were read, for messages.
    token_id : (tokens, k)
        Ids; those below 0 and those with a log-probability of ``-inf`` fill up a shorter list.
    logp : (tokens, k)
        Log-probabilities in nats.
    sampled_logp : (tokens,), optional
        Of the text's own tokens; NaN where unknown. By default, nothing is known beside the lists.

    Raises
    ------
    RolloutError
        A list repeats an id, or does not hold log-probabilities.
    """
    with np.errstate(invalid="ignore"):
        values = np.asarray(logp, np.float64)
    ids = np.asarray(token_id, np.int64)
    there = (ids >= 0) & (values != -np.inf)
    if (bad := there & ~(values <= _TOLERANCE)).any():
        row, column = np.argwhere(bad)[0]
        raise RolloutError(
            f"{source}: the list of token {row} holds {values[row, column]:g}; expected "
            "log-probabilities, at most 0."
        )
    if (bad := there & (ids > _MOST_ID)).any():
        raise RolloutError(f"{source}: a list holds id {ids[bad][0]}; expected token ids.")
    values = np.where(there, np.minimum(values, 0), -np.inf)
    mass = np.exp(values).sum(-1)
    if (mass > _MOST_MASS).any():
        row = int(mass.argmax())
        raise RolloutError(
            f"{source}: the probabilities of the list of token {row} add up to {mass[row]:.3g}; "
            "expected log-probabilities over the full vocabulary, so at most 1."
        )
    ids = np.where(there, ids, -1)
    order = np.argsort(-values, axis=-1, kind="stable")
    ids, values = np.take_along_axis(ids, order, -1), np.take_along_axis(values, order, -1)
    ordered = np.sort(ids, axis=-1)
    if (twice := (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        row = int(np.argwhere(twice)[0, 0])
        raise RolloutError(
            f"{source}: the list of token {row} repeats the id "
            f"{shown(int(ordered[:, 1:][twice][0]))}; expected each once."
        )
    if sampled_logp is None:
        sampled_logp = np.full(len(ids), np.nan)
    return TeacherLists(
        ids.astype(np.int32), values.astype(np.float32), np.asarray(sampled_logp, np.float32)
    )
