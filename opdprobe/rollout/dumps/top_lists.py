"""Lay out two models' top-k lists as the store has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opdprobe.errors import shown
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.rollout import TopLists

Pairs = Sequence[tuple[int, float]]


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
    for i in range(n):
        known: list[dict[int, float]] = []
        for m, (own, more) in enumerate(((student, student_on), (teacher, teacher_on))):
            ranked = sorted(own[i], key=_minus_logp)
            found = [token for token, _ in ranked]
            row.as_ids(found, "top-k list")
            if len(set(found)) < len(found):
                raise row.fault(f"a top-k list repeats an id: {shown(found)}; expected each once.")
            values = row.as_logps([value for _, value in ranked], "top-k list", len(ranked))
            if np.isnan(values).any():
                raise row.fault(f"a top-k list holds {shown(ranked)}; expected numbers.")
            # Another request may round in another way: the list's own numbers precede.
            known.append(dict(more[i]) if more is not None else {})
            known[m] |= dict(zip(found, values.tolist(), strict=True))
            ids[i, m] = found[:k]
        for m, s in np.ndindex(2, 2):
            values = [known[m].get(token) for token in ids[i, s].tolist()]
            logp[i, m, s] = row.as_logps(values, "top-k list", k)
    return TopLists(ids, logp)


def _minus_logp(pair: tuple[int, float]) -> float:
    return -pair[1] if isinstance(pair[1], int | float) else 0.0
