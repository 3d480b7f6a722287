"""Read prompts from files and rows, and write them."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opdprobe.errors import ConfigError, PromptError, shown
from opdprobe.rollout.prompts import (
    BOX,
    BOXED_TEMPLATE,
    BROKEN_BOX,
    DAPO_TEMPLATE,
    EncodedPrompt,
    OnError,
    Prompt,
    encode_prompts,
    report_faults,
    strip_instruction,
)
from opdprobe.rollout.row_files import read_rows
from opdprobe.store.files import write_text

__all__ = [
    "BOXED_TEMPLATE",
    "DAPO_TEMPLATE",
    "EncodedPrompt",
    "Prompt",
    "encode_prompts",
    "load_prompts",
    "prompts_from_rows",
    "save_prompts",
    "strip_instruction",
]

logger = logging.getLogger("opdprobe")


def load_prompts(
    path: str | Path,
    *,
    limit: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    repair_boxed: bool = False,
    on_error: OnError = "raise",
) -> list[Prompt]:
    r"""Read prompts from a file.

    Parameters
    ----------
    path : str or Path
        A file of rows: .parquet; .jsonl, one JSON object per line; .json, the same or one list of
        objects; .csv with a header, for plain texts. The last three are UTF-8, and may be
        compressed (.jsonl.gz, .jsonl.zst). Columns as in `prompts_from_rows`.
    limit : int, optional
        Read the first `limit` rows only.
    prompt_column, answer_column, repair_boxed
        As in `prompts_from_rows`.
    on_error : {"raise", "skip"}
        As in `prompts_from_rows`. A line that is not JSON, or has another number of fields than a
        .csv file's header, counts as an unusable row.

    Returns
    -------
    list of Prompt
        In the file's order.

    Raises
    ------
    PromptError
        The file is missing, unreadable or empty, or a compressed one unpacks to more than 100
        times its size plus 64 MiB; else as in `prompts_from_rows`.
    ConfigError
        `limit` is below 1.
    MissingExtraError
        The file is a .parquet or .zst, and pyarrow (``opdprobe[train]``) is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "sums.jsonl")
    ...     _ = file.write_text('{"prompt": "2+2=", "answer": 4}\n{"prompt": "5+5="}\n')
    ...     load_prompts(file, limit=1)
    [Prompt(id='0', messages=(), text='2+2=', answer='4', meta={})]
    """
    path = Path(os.path.expanduser(path))
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit}; expected 1 or more, or None for all rows.")
    return prompts_from_rows(
        read_rows(path, limit),
        source=str(path),
        prompt_column=prompt_column,
        answer_column=answer_column,
        repair_boxed=repair_boxed,
        on_error=on_error,
    )


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
        list of text parts, {"type": "text", "text": …}, whose texts are joined. The rest is
        optional: `reward_model` {ground_truth} or `answer`; `extra_info` {index} or `id`
        (default: the row's number). These are verl's columns. `chat_template_kwargs`, TRL's, are
        passed to the chat template. Values may be numpy's or pandas', and `rows` may be a
        DataFrame; None, NaN, NA and NaT are gaps. An answer that ends in ``#### 72``, as GSM8K's
        do, is 72.
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
        usable; the latter with "skip" too.

    Examples
    --------
    >>> prompts_from_rows([{"prompt": "2+2=", "answer": "Two and two are 4.\n#### 4"}])
    [Prompt(id='0', messages=(), text='2+2=', answer='4', meta={})]
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
    boxed = count = without = 0
    for number, row in enumerate(_records(rows)):
        count += 1
        try:
            columns = _columns(row)
            without += prompt_column not in columns
            prompt, was_boxed = _from_row(
                columns, number, prompt_column, answer_column, repair_boxed
            )
            if prompt.id in first_row:
                raise PromptError(f"id {shown(prompt.id)} repeats row {first_row[prompt.id]}.")
        except PromptError as error:
            faults.append(f"row {number}: {error}".rstrip("."))
            continue
        first_row[prompt.id] = number
        prompts.append(prompt)
        boxed += was_boxed
    if without and without == count:
        raise PromptError(
            f"{source}: {faults[0].partition(': ')[2]} in any row: name the column of the prompts "
            "with prompt_column (--prompt-column)."
        )
    report_faults(source, faults, count, kept=len(prompts), on_error=on_error)
    if boxed:
        logger.warning(
            "%s: %d prompts have a literal \\boxed{{}}, %s.",
            source,
            boxed,
            "repaired to \\boxed{}" if repair_boxed else "kept; repair_boxed=True repairs it",
        )
    return prompts


def save_prompts(prompts: Iterable[Prompt], path: str | Path) -> None:
    """Write prompts as JSON lines that `load_prompts` reads back equal.

    Parameters
    ----------
    prompts : iterable of Prompt
        At least one; ids must differ. A row has `prompt`, `id`, `answer` and the columns of `meta`.
    path : str or Path
        The .jsonl file. An existing one is replaced atomically.

    Raises
    ------
    PromptError
        There is no prompt, an id repeats, or a prompt would not be read back equal: `meta` has
        values that JSON cannot hold, or verl's columns that contradict the id or the answer.
    StoreError
        The disk is full.

    Examples
    --------
    >>> import tempfile
    >>> prompts = [Prompt("a", text="2+2=", answer="4", meta={"level": 1})]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_prompts(prompts, Path(folder, "sums.jsonl"))
    ...     load_prompts(Path(folder, "sums.jsonl")) == prompts
    True
    """
    path = Path(os.path.expanduser(path))
    if path.suffix != ".jsonl":
        raise PromptError(f"{path}: expected a path that ends in .jsonl.")
    lines: list[str] = []
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(f"{path}: two prompts have the id {prompt.id!r}: rename one.")
        seen.add(prompt.id)
        lines.append(_to_line(prompt))
    if not lines:
        raise PromptError(f"{path}: no prompts to write; expected at least one.")
    text = "".join(line + "\n" for line in lines)
    write_text(path, text)


def _to_line(prompt: Prompt) -> str:
    row = {
        "prompt": [dict(m) for m in prompt.messages] if prompt.text is None else prompt.text,
        "id": prompt.id,
        **({} if prompt.answer is None else {"answer": prompt.answer}),
        **prompt.meta,
    }
    try:
        line = json.dumps(row)
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"prompt {prompt.id!r} cannot be written as JSON ({error}): correct its messages or "
            "meta."
        ) from error
    found, _ = _from_row(_columns(json.loads(line)), 0, "prompt", None, False)
    for name in ("id", "text", "messages", "answer", "meta"):
        wanted, got = getattr(prompt, name), getattr(found, name)
        if wanted != got:
            raise PromptError(
                f"prompt {prompt.id!r} would not be read back unchanged: its {name} is {wanted!r}, "
                f"but would be {got!r}; correct its meta, which has {sorted(prompt.meta)}."
            )
    return line


def _records(rows: Any) -> Iterable[Any]:
    # Iterating over a DataFrame gives the names of its columns.
    is_frame = hasattr(rows, "columns") and hasattr(rows, "to_dict")
    return rows.to_dict("records") if is_frame else rows


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
) -> tuple[Prompt, bool]:
    """Make the row's prompt; return it, and whether it has the broken box."""
    for column in (prompt_column, answer_column):
        if column is None:
            continue
        if column not in row:
            raise PromptError(f"no column {column!r} among {shown(sorted(map(str, row)))}.")
        if row[column] is None:
            raise PromptError(f"column {column!r} is empty.")
    prompt = row[prompt_column]
    if isinstance(prompt, str):
        messages = [{"content": prompt}]
    elif isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt):
        messages = [_with_text(message) for message in prompt]
    else:
        raise PromptError(
            f"{prompt_column!r} is of type {type(prompt).__name__}; expected str or list of "
            "messages."
        )
    boxed = False
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and BROKEN_BOX in content:
            boxed = True
            if repair_boxed:
                message["content"] = content.replace(BROKEN_BOX, BOX)
    answer = _answer(
        row[answer_column]
        if answer_column
        else _nested(row, "reward_model", "ground_truth", "answer")
    )
    used = {"prompt", "answer", "id", prompt_column, answer_column}
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
        ),
        boxed,
    )


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
    if isinstance(value, dict | list):
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
    try:
        return str(value)
    except ValueError:  # Python refuses to write an int of more than 4300 digits
        raise PromptError(f"{shown(value)}: give it as text.") from None


def _nested(row: Mapping[str, Any], column: str, key: str, plain: str) -> Any:
    """``row[column][key]`` as verl has it, else ``row[plain]``, else None."""
    outer = row.get(column)
    inner = outer.get(key) if isinstance(outer, Mapping) else None
    return row.get(plain) if inner is None else inner
