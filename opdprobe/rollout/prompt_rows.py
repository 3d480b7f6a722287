"""Make prompts from rows, whatever library they come from."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from opdprobe.errors import PromptError, shown
from opdprobe.rollout.prompt import BOX, BROKEN_BOX, SYSTEM_ROLES, OnError, Prompt, report_faults

logger = logging.getLogger("opdprobe")

# Columns that data sets have in place of `prompt` and `answer`, the likeliest first.
_PROMPT_COLUMNS = ("messages", "conversations", "question", "problem", "query", "instruction")
_PROMPT_COLUMNS += ("input", "text", "content")
_ANSWER_COLUMNS = ("answer", "final_answer", "expected_answer", "ground_truth", "solution")
_ANSWER_COLUMNS += ("target", "label")
_SYSTEM_COLUMNS = ("system_prompt", "system")
# ShareGPT's names of the roles.
_ROLES = {"human": "user", "gpt": "assistant"}


def prompts_from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str = "prompts",
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    repair_boxed: bool = False,
    on_error: OnError = "raise",
) -> list[Prompt]:
    r"""Make prompts from rows, such as those of a `datasets.Dataset`.

    Parameters
    ----------
    rows : iterable of mapping
        Column `prompt`: a list of {role, content}, or a str for a plain text. A content may be a
        list of text parts, {"type": "text", "text": …}, whose texts are joined; ShareGPT's {from,
        value} are read alike. An assistant's turn at the end is left out, with a note in the log.
        The rest is optional: `reward_model` {ground_truth} or `answer`; `extra_info` {index} or
        `id` (default: the row's number). These are verl's columns. `chat_template_kwargs`, TRL's,
        are passed to the chat template. `system_prompt` or `system` becomes the first message of
        a conversation that has no system message. `teacher_prompt`, a text or messages, is what
        the teacher reads in place of the prompt. `rows` may be a DataFrame or a pyarrow.Table,
        and values may be numpy's or pandas'; None, NaN, NA and NaT are gaps. An answer that ends
        in ``#### 72``, as GSM8K's do, is 72.
    source : str
        What to call the rows in messages.
    prompt_column : str
        Column to take prompts from.
    answer_column : str, optional
        Column to take answers from; every row must have one.
    repair_boxed : bool
        Replace the literal ``\boxed{{}}`` of dapo-math-17k-processed by ``\boxed{}``. The number
        of prompts that have it is logged either way.
    on_error : {"raise", "skip"}
        Whether an unusable row raises an error, or is left out and logged.

    Returns
    -------
    list of Prompt
        In the rows' order.

    Raises
    ------
    PromptError
        Rows lack a column, are empty or repeat an id (listed by number, from 0), or no row is
        usable; the latter with "skip" too. `rows` is no collection of rows.

    Examples
    --------
    >>> prompts_from_rows([{"prompt": "2+2=", "answer": "Two and two are 4.\n#### 4"}])
    [Prompt(id='0', messages=(), text='2+2=', answer='4', meta={}, teacher=None)]
    >>> prompts_from_rows([{"prompt": "2+2="}, {"prompt": ""}, {"question": "?"}])
    Traceback (most recent call last):
    ...
    opdprobe.errors.PromptError: prompts: 2 of 3 rows cannot be used: row 1: prompt '1': empty
    prompt; row 2: no column 'prompt' among ['question']. Correct them, or leave them out with
    on_error="skip".
    """
    prompts: list[Prompt] = []
    faults: list[str] = []
    first_row: dict[str, int] = {}
    found: Counter[str] = Counter()
    count = 0
    missing = dict.fromkeys(filter(None, (prompt_column, answer_column)), 0)
    columns: dict[str, Any] = {}
    for number, row in enumerate(_records(rows, source)):
        count += 1
        try:
            columns = _columns(row)
            for name in missing:
                missing[name] += name not in columns
            prompt, notes = _from_row(columns, number, prompt_column, answer_column, repair_boxed)
            if prompt.id in first_row:
                raise PromptError(f"id {shown(prompt.id)} repeats row {first_row[prompt.id]}.")
        except PromptError as error:
            faults.append(f"row {number}: {error}".rstrip("."))
            continue
        first_row[prompt.id] = number
        prompts.append(prompt)
        found.update(notes)
    for name, without in missing.items():
        if without and without == count:
            what = "prompt" if name == prompt_column else "answer"
            known = _PROMPT_COLUMNS if what == "prompt" else _ANSWER_COLUMNS
            likely = next((c for k in known for c in columns if str(c).lower() == k), None)
            raise PromptError(
                f"{source}: no column {name!r} among {_names(columns)} in any row: name the column "
                f"of the {what}s with {what}_column (--{what}-column)"
                + (f"; is it {shown(likely)}?" if likely is not None else ".")
            )
    report_faults(source, faults, count, kept=len(prompts), on_error=on_error)
    _log_notes(source, found, repair_boxed)
    return prompts


def prompt_of_row(row: Mapping[str, Any]) -> Prompt:
    """Make the prompt of one row with the columns that `prompts_from_rows` knows."""
    return _from_row(_columns(row), 0, "prompt", None, False)[0]


def _log_notes(source: str, found: Counter[str], repaired: bool) -> None:
    if found["boxed"]:
        logger.warning(
            "%s: %d prompts have a literal \\boxed{{}}, %s.",
            source,
            found["boxed"],
            "repaired to \\boxed{}" if repaired else "kept; repair_boxed=True repairs it",
        )
    if found["answered"]:
        logger.warning(
            "%s: %d conversations end in an assistant's turn, which is left out: the model is to "
            "write it.",
            *(source, found["answered"]),
        )
    if found["system"]:
        logger.warning(
            "%s: %d rows have a system prompt that a plain text cannot take: give the prompt as "
            "messages.",
            *(source, found["system"]),
        )


def _records(rows: Any, source: str) -> Iterable[Any]:
    """Return rows one by one; iterating over a DataFrame or a Table would give its columns."""
    if hasattr(rows, "columns") and hasattr(rows, "to_dicts"):  # polars
        return rows.to_dicts()
    if hasattr(rows, "columns") and hasattr(rows, "to_dict"):  # pandas
        return rows.to_dict("records")
    if hasattr(rows, "to_pylist"):  # pyarrow
        return rows.to_pylist()
    if hasattr(rows, "with_format") and not isinstance(rows, Mapping):
        return rows.with_format(None)  # a Dataset, which may be set to give other types
    if isinstance(rows, Mapping):
        raise PromptError(
            f"{source}: a {type(rows).__name__} of {_names(rows)}; expected rows: a list of "
            "mappings, a DataFrame, or one split of a data set."
        )
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise PromptError(
            f"{source}: {shown(rows)} is of type {type(rows).__name__}; expected rows, such as a "
            "list of mappings."
        )
    return rows


def _names(columns: Iterable[Any]) -> str:
    names = sorted(map(str, columns))
    return f"[{', '.join(map(shown, names[:20]))}{', …' if len(names) > 20 else ''}]"


def _columns(row: Any) -> dict[str, Any]:
    """Return a row's columns as Python's own types, gaps as None."""
    if isinstance(row, PromptError):  # in place of a row that the file does not hold
        raise row
    if not isinstance(row, Mapping) and hasattr(row, "to_dict"):  # pandas.Series
        row = row.to_dict()
    if not isinstance(row, Mapping):
        raise PromptError(f"a {type(row).__name__}; expected a mapping of columns to values.")
    try:
        return _plain(row)
    except RecursionError:
        raise PromptError("nested too deeply.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim else value[()]
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.floating):
        # By its digits: as a double, float32's 0.1 would be 0.10000000149011612.
        value = float(str(value))
    elif isinstance(value, np.generic):
        value = value.item()
    return None if _is_gap(value) else value


def _is_gap(value: Any) -> bool:
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas.NA, pandas.NaT
        return True
    return isinstance(value, float) and math.isnan(value)


def _from_row(
    row: dict[str, Any],
    number: int,
    prompt_column: str,
    answer_column: str | None,
    repair_boxed: bool,
) -> tuple[Prompt, set[str]]:
    """Make the row's prompt; return it, and what is worth a note."""
    for column in (prompt_column, answer_column):
        if column is None:
            continue
        if column not in row:
            raise PromptError(f"no column {column!r} among {_names(row)}.")
        if row[column] is None:
            raise PromptError(f"column {column!r} is empty.")
    prompt, notes = row[prompt_column], set[str]()
    used = {"prompt", "answer", "id", "teacher_prompt", prompt_column, answer_column}
    system = next((c for c in _SYSTEM_COLUMNS if isinstance(row.get(c), str) and row[c]), None)
    if isinstance(prompt, str):
        messages = [{"content": prompt}]
        notes |= {"system"} if system else set()
    elif isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt):
        messages = [_with_text(_with_role(message)) for message in prompt]
        while messages and messages[-1].get("role") == "assistant":
            messages.pop()
            notes.add("answered")
        if system and messages and messages[0].get("role") not in SYSTEM_ROLES:
            messages.insert(0, {"role": "system", "content": row[system]})
            used.add(system)
    else:
        raise PromptError(
            f"{prompt_column!r} is of type {type(prompt).__name__}; expected str or list of "
            "messages."
        )
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and BROKEN_BOX in content:
            notes.add("boxed")
            if repair_boxed:
                message["content"] = content.replace(BROKEN_BOX, BOX)
    answer = _answer(
        row[answer_column]
        if answer_column
        else _nested(row, "reward_model", "ground_truth", "answer")
    )
    meta = {key: value for key, value in row.items() if key not in used}
    if answer_column and isinstance(meta.get("reward_model"), dict):
        # One answer, so that a saved prompt is read back equal.
        meta["reward_model"]["ground_truth"] = answer
    return (
        Prompt(
            id=_row_id(row, number),
            messages=() if isinstance(prompt, str) else tuple(messages),
            text=messages[0]["content"] if isinstance(prompt, str) else None,
            answer=answer,
            meta=meta,
            teacher=_teacher(row.get("teacher_prompt")),
        ),
        notes,
    )


def _teacher(prompt: Any) -> str | tuple[dict[str, Any], ...] | None:
    """Read what the teacher is asked: a text or messages."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
        raise PromptError(
            f"'teacher_prompt' is of type {type(prompt).__name__}; expected str or list of "
            "messages."
        )
    return tuple(_with_text(_with_role(message)) for message in prompt)


def _with_role(message: dict[str, Any]) -> dict[str, Any]:
    """Read a message of ShareGPT's, {from, value}."""
    if "role" in message or not isinstance(message.get("from"), str):
        return message
    role = _ROLES.get(message["from"], message["from"])
    return {"role": role, "content": message.get("value")}


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """Join the parts of a message's content if it comes in parts, as OpenAI's protocol has it."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    texts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            found = f"of type {kind!r}" if isinstance(kind, str) and kind != "text" else shown(part)
            raise PromptError(
                f"a message has a part {found}; expected parts of text only, "
                '{"type": "text", "text": …}.'
            )
        texts.append(part["text"])
    return {**message, "content": "".join(texts)}


def _answer(value: Any) -> str | None:
    if value is not None and not isinstance(value, str | int | float | Decimal):
        raise PromptError(f"the answer is {shown(value)}; expected a text or a number.")
    if isinstance(value, str):
        # GSM8K: the solution, then the number on a line of its own.
        _, _, final = value.rpartition("####")
        final = final.strip()
        return final if "####" in value and final and "\n" not in final else value
    return None if value is None else _written(value)


def _row_id(row: dict[str, Any], number: int) -> str:
    found = _nested(row, "extra_info", "index", "id")
    return _written(number if found is None else found)


def _written(value: Any) -> str:
    if isinstance(value, float):
        # A column of whole numbers with a gap holds floats: 34.0 is 34, and 1e16 has 17 digits.
        return np.format_float_positional(value, trim="-")
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    try:
        return str(value)
    except ValueError:  # Python refuses to write an int of more than 4300 digits
        raise PromptError(f"{shown(value)}: give it as text.") from None


def _nested(row: Mapping[str, Any], column: str, key: str, plain: str) -> Any:
    """``row[column][key]`` as verl has it, else ``row[plain]``, else None."""
    outer = row.get(column)
    inner = outer.get(key) if isinstance(outer, Mapping) else None
    return row.get(plain) if inner is None else inner
