"""Lay out two models' top-k lists as the store has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opdprobe.errors import shown
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.rollout import TopLists

Pairs = Sequence[tuple[int, float]]

_NAME = "top-k list"


def top_lists(
    row: Row,
    student: Sequence[Pairs],
    teacher: Sequence[Pairs],
    *,
    student_on: Sequence[Pairs] | None = None,
    teacher_on: Sequence[Pairs] | None = None,
) -> TopLists:
    """Return both lists at each token, with each model's log-probabilities on both.

    Parameters
    ----------
    row
        Where they come from; named if they do not fit.
    student, teacher
        Each model's list at each token: ids and log-probabilities in nats.
    student_on, teacher_on
        What a model gives to further tokens, among them those of the other's list. A token that is
        in neither is NaN.

    Raises
    ------
    RolloutError
        A list is empty, repeats an id, or holds other than ids and log-probabilities.
    """
    k = min((len(pairs) for pairs in (*student, *teacher)), default=1)
    if k == 0:
        raise row.fault("a top-k list is empty; expected a list of each model at every token.")
    n = len(student)
    ids = np.empty((n, 2, k), np.int32)
    logp = np.full((n, 2, 2, k), np.nan, np.float32)
    for m, own in enumerate((student, teacher)):
        ranked = [pair for pairs in own for pair in sorted(pairs, key=_minus_logp)[:k]]
        ids[:, m] = np.reshape(row.as_ids([token for token, _ in ranked], _NAME), (n, k))
        values = row.as_logps([value for _, value in ranked], _NAME, n * k)
        if (unknown := np.isnan(values)).any():
            raise row.fault(
                f"a top-k list holds {shown(ranked[int(np.argmax(unknown))])}; expected an id and "
                "a log-probability."
            )
        logp[:, m, m] = values.reshape(n, k)
        ordered = np.sort(ids[:, m])
        if (twice := ordered[:, 1:] == ordered[:, :-1]).any():
            raise row.fault(
                f"a top-k list repeats the id {ordered[:, 1:][twice][0]}; expected each once."
            )
    same = ids[:, 0, :, None] == ids[:, 1, None, :]
    for m, (own, more) in enumerate(((student, student_on), (teacher, teacher_on))):
        # Of tokens in both lists, the model's own number: another request may round differently.
        place, other, mine = np.nonzero(same.transpose(0, 2, 1) if m == 0 else same)
        logp[place, m, 1 - m, other] = logp[place, m, m, mine]
        for i in np.flatnonzero(np.isnan(logp[:, m, 1 - m]).any(-1)).tolist():
            further = dict(more[i] if more is not None else ())
            if len(own[i]) > k:
                further |= dict(own[i])
            if further:
                found = [further.get(token) for token in ids[i, 1 - m].tolist()]
                found = row.as_logps(found, _NAME, k)
                known = logp[i, m, 1 - m]
                logp[i, m, 1 - m] = np.where(np.isnan(known), found, known)
    return TopLists(ids, logp)


def _minus_logp(pair: tuple[int, float]) -> float:
    return -pair[1] if isinstance(pair[1], int | float) else 0.0
