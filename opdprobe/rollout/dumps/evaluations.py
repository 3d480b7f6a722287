"""Samples of lm-evaluation-harness and inspect: text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opdprobe.errors import shown
from opdprobe.rollout.dumps.format import Format, Rows, has
from opdprobe.rollout.dumps.row import Row, row_name
from opdprobe.rollout.rollout import Rollout
from opdprobe.store.safe_text import parse_json

_STOPPED = {"stop": True, "max_tokens": False, "model_length": False}
_ATTACHED = "attachment://"
# How inspect's scorers write correct, incorrect, partial and no answer.
_LETTERS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


def _of_first_filter(rows: Rows) -> Rows:
    """Leave out what only repeats: each filter of a task writes all its samples anew."""
    first: Any = None
    for row in rows:
        if isinstance(row, Row):
            first = row.data.get("filter") if first is None else first
            if row.data.get("filter") != first:
                continue
        yield row


def _harness(row: Row) -> Iterator[Rollout]:
    prompt = _argument(row)
    metrics = row.data.get("metrics")
    grades = map(str, metrics) if isinstance(metrics, list) else ("exact_match", "acc")
    responses = list(_texts(row.need("resps")))
    # Of repeats, the metric is of what the filter made of them all: their first, their majority.
    correct = row.grade(*grades) if len(responses) == 1 else float("nan")
    for response in responses:
        yield Rollout(
            step=row.step(),
            prompt_id=row_name(row.need("doc_id"), prompt),
            prompt=prompt,
            response=row.as_text(response, "resps"),
            correct=correct,
            source=row.source,
        )


def _argument(row: Row) -> str | list[dict[str, str]]:
    """The first request's context: under names, as it is saved, or in lists; text or messages."""
    found = row.need("arguments")
    for key in ("gen_args_0", "arg_0"):
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list) and found:
            found = found[0]
    if isinstance(found, list) and found:
        if isinstance(found[0], Mapping):
            return row.as_messages(found, "arguments")
        found = found[0]  # messages for a server are a text in a list of one
    text = row.as_text(found, "arguments")
    if text.lstrip().startswith('[{"role"'):
        try:
            return row.as_messages(parse_json(text), "arguments")
        except ValueError:
            return text
    return text


def _texts(found: Any) -> Iterator[Any]:
    """Responses, however deep the lists are: of each request, each repeat."""
    if isinstance(found, list):
        for inner in found:
            yield from _texts(inner)
    else:
        yield found


def _inspect(row: Row) -> Iterator[Rollout]:
    output = row.at(row.need("output"), "output")
    choices = output.need("choices")
    if not isinstance(choices, list) or not choices:
        failed = row.data.get("error")
        if isinstance(failed, Mapping):
            raise row.fault(
                f"the sample failed with {shown(failed.get('message'))}; expected what the model "
                "answered."
            )
        raise output.fault(f"'choices' is {shown(choices)}; expected what the model answered.")
    prompt = _conversation(row)
    # Of several answers, the score is of the first, or of what the scorer made of them all.
    correct = _score(row) if len(choices) == 1 else float("nan")
    for number, choice in enumerate(choices):
        found = output.at(choice, f"choice {number}")
        answer = _resolved(row, [found.need("message")], "message")[0]["content"]
        yield Rollout(
            step=row.step(),
            prompt_id=row_name(row.need("id"), prompt),
            prompt=prompt,
            response=answer,
            finished=_STOPPED.get(str(found.data.get("stop_reason"))),
            correct=correct,
            source=row.source,
        )


def _conversation(row: Row) -> list[dict[str, str]]:
    """What the model was asked: the messages before its last answer, else the sample's input."""
    messages = row.data.get("messages")
    if isinstance(messages, list) and len(messages) > 1:
        found = _resolved(row, messages, "messages")
        if any(message["role"] in ("assistant", "tool") for message in found[:-1]):
            raise row.fault(
                "'messages' has several turns; expected one: turns with tools cannot be rebuilt "
                "from text."
            )
        return found[:-1] if found[-1]["role"] == "assistant" else found
    asked = row.need("input")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    return _resolved(row, asked, "input")


def _resolved(row: Row, messages: Any, name: str) -> list[dict[str, str]]:
    """Messages with the long texts that the log keeps apart, as attachments."""
    found = row.as_messages(messages, name)
    for message in found:
        mark, _, key = message["content"].partition(_ATTACHED)
        if not mark and key:
            attachments = row.at(row.need("attachments"), "attachments")
            message["content"] = attachments.text(key)
    return found


def _score(row: Row) -> float:
    """The only score's value, a number in [0, 1] or a letter."""
    scores = row.data.get("scores")
    if not isinstance(scores, Mapping) or len(scores) != 1:
        return float("nan")
    score = next(iter(scores.values()))
    value = score.get("value") if isinstance(score, Mapping) else None
    return Row(
        {"value": _LETTERS.get(value, value) if isinstance(value, str) else value}, ""
    ).grade("value")


LM_EVAL = Format(
    "lm-eval",
    "C",
    "--log_samples: samples_TASK_DATE.jsonl, of tasks that generate",
    (".jsonl",),
    has("doc_id", "arguments", "resps"),
    _harness,
    "whether a response ended; end tokens",
    _of_first_filter,
)
INSPECT = Format(
    "inspect",
    "C",
    "logs of inspect-ai: .eval, or .json",
    (".eval", ".json"),
    has("id", "input", "output"),
    _inspect,
    "end tokens",
)
