"""Read prompts from files and rows, and write them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdprobe.errors import ConfigError, PromptError, needs_train_extra, shown
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
from opdprobe.store.files import write_text
from opdprobe.store.safe_text import parse_json

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
    answer_column: str | None = None,
    repair_boxed: bool = False,
    on_error: OnError = "raise",
) -> list[Prompt]:
    r"""Read prompts from a .parquet or .jsonl file.

    Parameters
    ----------
    path : str or Path
        The file. Columns as in `prompts_from_rows`.
    limit : int, optional
        Read the first `limit` rows only.
    answer_column, repair_boxed, on_error
        As in `prompts_from_rows`.

    Returns
    -------
    list of Prompt
        In the file's order.

    Raises
    ------
    PromptError
        The file is missing, unreadable or empty; else as in `prompts_from_rows`.
    ConfigError
        `limit` is below 1.
    MissingExtraError
        The file is a .parquet, and pyarrow (``opdprobe[train]``) is not installed.

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
    if not path.is_file():
        found = "a directory" if path.is_dir() else "no such file"
        raise PromptError(f"{path}: {found}; expected a .parquet or .jsonl file of prompts.")
    if path.suffix == ".parquet":
        rows = _read_parquet(path, limit)
    elif path.suffix == ".jsonl":
        rows = _read_jsonl(path, limit)
    else:
        raise PromptError(
            f"{path}: expected a .parquet or .jsonl file, got {path.suffix or path.name!r}."
        )
    return prompts_from_rows(
        rows,
        source=str(path),
        answer_column=answer_column,
        repair_boxed=repair_boxed,
        on_error=on_error,
    )


def prompts_from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str = "prompts",
    answer_column: str | None = None,
    repair_boxed: bool = False,
    on_error: OnError = "raise",
) -> list[Prompt]:
    r"""Make prompts from rows, such as those of a `datasets.Dataset`.

    Parameters
    ----------
    rows : iterable of mapping
        Column `prompt`: a list of {role, content}, or a str for a plain text. The rest is
        optional: `reward_model` {ground_truth} or `answer`; `extra_info` {index} or `id`
        (default: the row's number). These are verl's columns.
    source : str
        What to call the rows in messages.
    answer_column : str, optional
        Column to take answers from; every row must have it.
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
    boxed = count = 0
    for number, row in enumerate(rows):
        count += 1
        try:
            prompt, was_boxed = _from_row(row, number, answer_column, repair_boxed)
            if prompt.id in first_row:
                raise PromptError(f"id {shown(prompt.id)} repeats row {first_row[prompt.id]}.")
        except PromptError as error:
            faults.append(f"row {number}: {error}".rstrip("."))
            continue
        first_row[prompt.id] = number
        prompts.append(prompt)
        boxed += was_boxed
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
    found, _ = _from_row(json.loads(line), 0, None, False)
    for name in ("id", "text", "messages", "answer", "meta"):
        wanted, got = getattr(prompt, name), getattr(found, name)
        if wanted != got:
            raise PromptError(
                f"prompt {prompt.id!r} would not be read back unchanged: its {name} is {wanted!r}, "
                f"but would be {got!r}; correct its meta, which has {sorted(prompt.meta)}."
            )
    return line


def _from_row(
    row: Mapping[str, Any], number: int, answer_column: str | None, repair_boxed: bool
) -> tuple[Prompt, bool]:
    """Make the row's prompt; return it, and whether it has the broken box."""
    if not isinstance(row, Mapping):
        raise PromptError(f"a {type(row).__name__}; expected a mapping of columns to values.")
    columns = ["prompt"] if answer_column is None else ["prompt", answer_column]
    for column in columns:
        if row.get(column) is None:
            raise PromptError(f"no column {column!r} among {shown(sorted(map(str, row)))}.")
    prompt = row["prompt"]
    if isinstance(prompt, str):
        messages = [{"content": prompt}]
    elif isinstance(prompt, Sequence) and all(isinstance(part, Mapping) for part in prompt):
        messages = [dict(part) for part in prompt]
    else:
        raise PromptError(
            f"'prompt' is of type {type(prompt).__name__}; expected str or list of messages."
        )
    boxed = False
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and BROKEN_BOX in content:
            boxed = True
            if repair_boxed:
                message["content"] = content.replace(BROKEN_BOX, BOX)
    answer = (
        row[answer_column]
        if answer_column
        else _nested(row, "reward_model", "ground_truth", "answer")
    )
    if isinstance(answer, Mapping | list | tuple):
        raise PromptError(f"the answer is {shown(answer)}; expected a text or a number.")
    used = {"prompt", "answer", "id", answer_column}
    return (
        Prompt(
            id=_row_id(row, number),
            messages=() if isinstance(prompt, str) else tuple(messages),
            text=messages[0]["content"] if isinstance(prompt, str) else None,
            answer=None if answer is None else _plain(answer),
            meta={key: value for key, value in row.items() if key not in used},
        ),
        boxed,
    )


def _row_id(row: Mapping[str, Any], number: int) -> str:
    found = _nested(row, "extra_info", "index", "id")
    return _plain(number if found is None else found)


def _plain(value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to write an int of more than 4300 digits
        raise PromptError(f"{shown(value)}: give it as text.") from None


def _nested(row: Mapping[str, Any], column: str, key: str, plain: str) -> Any:
    """``row[column][key]`` as verl has it, else ``row[plain]``, else None."""
    outer = row.get(column)
    inner = outer.get(key) if isinstance(outer, Mapping) else None
    return row.get(plain) if inner is None else inner


def _read_parquet(path: Path, limit: int | None) -> list[dict[str, Any]]:
    with needs_train_extra(f"reading {path}"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        # The file's own columns: a folder called split=train would add one.
        with pq.ParquetFile(path) as file:
            return file.read().slice(0, limit).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise PromptError(
            f"{path}: not a readable parquet file ({error}): check that it is complete."
        ) from error


def _read_jsonl(path: Path, limit: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                rows.append(_json_object(line, f"{path}: line {number}"))
                if len(rows) == limit:
                    break
    except (UnicodeDecodeError, OSError) as error:
        raise PromptError(
            f"{path}: not a readable UTF-8 text ({error}): save it as UTF-8."
        ) from error
    return rows


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise PromptError(
            f"{where} is not JSON ({error}): {line[:60]!r}; expected a JSON object per line."
        ) from error
    if not isinstance(row, dict):
        raise PromptError(
            f"{where} is not a JSON object: {line[:60]!r}; expected a JSON object per line."
        )
    return row
