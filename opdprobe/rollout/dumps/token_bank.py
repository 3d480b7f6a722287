"""The token bank of IER-OPD and TA-OPD: one row a token, with both models' top-k lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from opdprobe.errors import RolloutError, shown
from opdprobe.rollout.dumps.format import Format, Rows, has
from opdprobe.rollout.dumps.row import Row, nested
from opdprobe.rollout.dumps.top_lists import Pairs, top_lists
from opdprobe.rollout.rollout import Rollout

_SAMPLE = ("rollout_id", "sample_ordinal")


def _grouped(rows: Rows) -> Rows:
    """Join the rows of a response, which follow one another."""
    group: list[Row] = []
    broken: RolloutError | None = None
    for row in rows:
        if isinstance(row, RolloutError):
            broken = broken or row
            continue
        if group and _sample(row) != _sample(group[0]):
            yield _joined(group, broken)
            group, broken = [], None
        group.append(row)
    if group:
        yield _joined(group, broken)
    elif broken:
        yield broken


def _sample(row: Row) -> list[Any]:
    return [row.data.get(name) for name in _SAMPLE]


def _joined(group: list[Row], broken: RolloutError | None) -> Row | RolloutError:
    """A response of which a token cannot be read cannot be read."""
    first = group[0]
    return broken or Row({**first.data, "tokens": group}, first.source, first.given_step)


def _rollouts(row: Row) -> Iterator[Rollout]:
    tokens: list[Row] = row.data["tokens"]
    n = len(tokens)
    if row.whole("resp_len") not in (None, n):
        raise row.fault(
            f"'resp_len' is {row.data['resp_len']}, but {n} rows follow; expected them."
        )
    places = [token.whole("tok_pos") for token in tokens]
    if places != list(range(n)):
        raise row.fault(f"'tok_pos' is {shown(places)}; expected 0 to {n - 1}, in order.")
    ids = [token.whole("token_id") for token in tokens]
    yield Rollout(
        step=row.step("rollout_id"),
        # The bank has no prompts: it numbers them, anew in each step.
        prompt_id=f"{row.data.get('rollout_id', '')}-{_group(row)}",
        prompt_ids=(),
        response_ids=row.as_ids(ids, "token_id"),
        mask=_mask(tokens),
        finished=None if row.data.get("truncated") is None else not row.whole("truncated"),
        labels=row.labels(teacher="teacher_name", student="student_name"),
        # Of the engine that sampled, as the student's lists are: there is nothing to compare.
        student_logp=_logps(tokens, "student_logp_sampled"),
        teacher_logp=_logps(tokens, "teacher_logp_sampled"),
        top=top_lists(row, [_pairs(t, "student") for t in tokens], _teachers(tokens)),
        source=row.source,
    )


def _teachers(tokens: list[Row]) -> list[Pairs]:
    return [_pairs(token, "teacher") for token in tokens]


def _group(row: Row) -> Any:
    group = row.data.get("group_index")
    return row.data.get("sample_ordinal") if group is None else group


def _mask(tokens: list[Row]) -> Any:
    drawn = np.array([token.whole("loss_mask_original") != 0 for token in tokens])
    return None if drawn.all() else drawn


def _logps(tokens: list[Row], name: str) -> Any:
    values = [_number(token, name) for token in tokens]
    return (
        None
        if all(value is None for value in values)
        else tokens[0].as_logps(values, name, len(tokens))
    )


def _number(row: Row, name: str) -> Any:
    value = row.data.get(name)
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise row.fault(f"{name!r} is {shown(value)}; expected a number.") from None


def _pairs(row: Row, model: str) -> Pairs:
    """A model's list; it is empty unless the raw lists were kept."""
    names = f"{model}_top_ids", f"{model}_top_logps"
    if not all(row.data.get(name) for name in names):
        raise row.fault(
            f"{names[0]!r} is empty; expected the lists, which --opd-token-bank-raw-topk keeps."
        )
    ids, logps = nested(row, names[0]), nested(row, names[1])
    if not isinstance(ids, list) or not isinstance(logps, list) or len(ids) != len(logps):
        raise row.fault(f"{names[0]!r} and {names[1]!r} do not fit: {shown(ids)}, {shown(logps)}.")
    return list(zip(ids, logps, strict=True))


TOKEN_BANK = Format(
    "token-bank",
    "A",
    "--opd-token-bank-raw-topk of IER-OPD and TA-OPD: rollout_ID.csv or .jsonl",
    (".csv", ".jsonl"),
    has("student_top_ids", "teacher_top_ids", "token_id", "tok_pos"),
    _rollouts,
    "prompts, grades, a model's log-probabilities of tokens that only the other lists, entropies",
    _grouped,
)
