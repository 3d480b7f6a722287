"""axolotl's data sets of text with the teacher's top-k lists for the tokens of the answer.

The rows are those that ``axolotl.integrations.kd.chat_template`` reads, at 067b021 (2026-07-24):
messages that end with the answer, and for each of its tokens, as vLLM generated them, a list of
``{"token": "token_id:N", "logprob": L}``; in newer ones, lists of numbers beside
``target_token_ids``. What axolotl makes of them (``target_logprobs``) is not read: it is normalised
over the lists, so that the log-probabilities are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from opdprobe.errors import RolloutError, shown
from opdprobe.rollout.caches.lists import teacher_lists
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.rollout import Rollout
from opdprobe.store.safe_text import is_number

# axolotl's setting `logprobs_field`, by default and in its documentation's example.
_LOGPROBS = ("llm_text_generation_vllm_logprobs", "logprobs")
_MESSAGES = ("messages_combined", "messages")
# Of a text's tokens, the engine lists each; texts that are split otherwise have far fewer.
_LEAST_LISTED = 0.5
_MOST_ID = 2**31 - 1


def fits(row: Mapping[str, Any]) -> bool:
    """Whether a row is of such a data set."""
    lists = row.get(_first(row, _LOGPROBS) or "") or [None]
    # Dumps of rollouts have numbers there, one for each token.
    return _first(row, _MESSAGES) is not None and isinstance(lists[0], list)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(row.get(name), list)), None)


def rollout(row: Row, name: str, encode: Callable[[Rollout], Rollout]) -> Rollout:
    """Return the answer of a row, tokenised anew.

    Parameters
    ----------
    row
        A row that `fits`.
    name
        Of its prompt.
    encode
        Gives a rollout of text its token ids, with an end token if it is finished.

    Raises
    ------
    RolloutError
        The answer's tokens are not those that the lists were made for.
    """
    messages, logprobs = _first(row.data, _MESSAGES), _first(row.data, _LOGPROBS)
    if messages is None or logprobs is None:
        raise row.fault(f"no {' or '.join(_LOGPROBS)}; expected lists beside the messages.")
    said = row.messages(messages)
    if said[-1]["role"] not in ("assistant", "gpt") or len(said) < 2:
        raise row.fault(
            f"{messages!r} ends with a message of {shown(said[-1]['role'])}; expected a question, "
            "and the assistant's answer last."
        )
    lists = _lists(row, logprobs)
    found = encode(
        Rollout(
            0,
            name,
            prompt=said[:-1],
            response=said[-1]["content"],
            finished=True,
            source=row.source,
        )
    )
    tokens = list(found.response_ids or ())
    ended = len(tokens) == len(lists)
    tokens = tokens[: len(lists)] if len(tokens) == len(lists) + 1 else tokens
    if len(tokens) != len(lists) or not tokens:
        raise row.fault(
            f"the answer has {len(tokens)} tokens with its end, and the cache {len(lists)} lists; "
            "expected one for each, with or without the end: the texts were made with another "
            "tokenizer, or are split otherwise than they were drawn."
        )
    listed = sum(token in dict(pairs) for token, pairs in zip(tokens, lists, strict=True))
    if listed < _LEAST_LISTED * len(tokens):
        raise row.fault(
            f"{listed} of {len(tokens)} tokens are in the teacher's list at their place, and an "
            "engine lists each token that it draws: the lists are shifted, or the tokenizer is "
            "another one."
        )
    # A token that was drawn from outside the top-k stands behind them.
    ranked = [sorted(pairs, key=lambda pair: -pair[1]) for pairs in lists]
    k, most = min(map(len, ranked)), max(map(len, ranked))
    ids, logp = np.full((len(lists), most), -1), np.full((len(lists), most), -np.inf)
    for i, pairs in enumerate(ranked):
        ids[i, : len(pairs)], logp[i, : len(pairs)] = zip(*pairs, strict=True)
    own = teacher_lists(row.source, ids, logp)
    return replace(
        found,
        response_ids=tokens,
        finished=True if ended else None,
        teacher_lists=replace(
            own,
            token_id=own.token_id[:, :k],
            logp=own.logp[:, :k],
            also_id=own.token_id[:, k:],
            also_logp=own.logp[:, k:],
        ),
    )


def _lists(row: Row, name: str) -> list[list[tuple[int, float]]]:
    """Ids and log-probabilities, for each token that has a list."""
    lists = row.need(name)
    ids = row.data.get("target_token_ids")
    if ids is not None and (not isinstance(ids, list) or len(ids) != len(lists)):
        raise row.fault(
            f"{len(lists)} lists of log-probabilities, and 'target_token_ids' is {shown(ids)}; "
            "expected as many."
        )
    found: list[list[tuple[int, float]]] = []
    for i, entries in enumerate(lists):
        own = None if ids is None else ids[i]
        pairs: list[tuple[Any, Any]] = []
        if isinstance(entries, list) and own is None:
            pairs = [_pair(entry) for entry in entries]
        elif isinstance(entries, list) and isinstance(own, list) and len(own) == len(entries):
            pairs = list(zip(own, entries, strict=True))
        good = [p for p in pairs if type(p[0]) is int and 0 <= p[0] <= _MOST_ID and is_number(p[1])]
        if not pairs or len(good) < len(pairs):
            raise row.fault(
                f"{name!r} holds {shown(entries)} for token {i}; expected a list of token ids "
                "(token_id:N) and log-probabilities."
            )
        found.append([(token, float(value)) for token, value in good])
    return found


def _pair(entry: Any) -> tuple[Any, Any]:
    if not isinstance(entry, Mapping):
        return None, None
    token = entry.get("token")
    digits = token.removeprefix("token_id:") if isinstance(token, str) else ""
    known = digits.isascii() and digits.isdecimal() and len(digits) < 11 and digits != token
    return (int(digits) if known else None), entry.get("logprob")


def check_not_prepared(row: Row) -> None:
    """Refuse a data set that axolotl has prepared.

    Raises
    ------
    RolloutError
        It is one.
    """
    if {"target_logprobs", "target_token_ids"} <= row.data.keys():
        raise RolloutError(
            f"{row.source}: a data set that axolotl has prepared (target_logprobs): its lists are "
            "normalised to 1 each, so what the teacher gives to a token is lost, and versions "
            "differ in the token that a list is of. Give the data set that it was prepared from."
        )
