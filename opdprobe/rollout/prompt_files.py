"""Read prompts from files, directories and the Hugging Face Hub, and write them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdprobe.errors import ConfigError, PromptError
from opdprobe.rollout.prompt_rows import prompt_of_row, prompts_from_rows
from opdprobe.rollout.prompts import (
    BOXED_TEMPLATE,
    DAPO_TEMPLATE,
    EncodedPrompt,
    OnError,
    Prompt,
    encode_prompts,
    strip_instruction,
)
from opdprobe.rollout.row_sets import read_rows
from opdprobe.store.files import write_text

__all__ = [
    "BOXED_TEMPLATE",
    "DAPO_TEMPLATE",
    "EncodedPrompt",
    "Prompt",
    "as_prompts",
    "encode_prompts",
    "load_prompts",
    "prompts_from_rows",
    "save_prompts",
    "strip_instruction",
]


def load_prompts(
    path: str | Path,
    *,
    limit: int | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    repair_boxed: bool = False,
    on_error: OnError = "raise",
) -> list[Prompt]:
    r"""Read prompts from a file, a directory or the Hugging Face Hub.

    Parameters
    ----------
    path : str or Path
        One of these, with columns as in `prompts_from_rows`:

        - a file of rows: .parquet; .jsonl, one JSON object per line; .json, the same, one list of
          objects or one object that holds such a list ({"data": […]}); .csv with a header, for
          plain texts. The last three are UTF-8, and may be compressed (.jsonl.gz, .jsonl.zst);
        - a directory of such files (shards), which are read in the order of their names;
        - a directory that `datasets` saved (``save_to_disk``);
        - a data set of the Hub, ``OWNER/NAME``; ``OWNER/NAME:CONFIG:SPLIT`` if it has several.

        A split of a directory or data set is named after a colon, as `datasets` names it:
        ``folder:test``, ``openai/gsm8k:main:train[:500]`` (slices for data sets only).
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
        times its size plus 64 MiB; there are several splits, and none is named; else as in
        `prompts_from_rows`.
    ConfigError
        `limit` is below 1.
    MissingExtraError
        The file is a .parquet or .zst, and pyarrow (``opdprobe[train]``) is not installed; or
        `path` is a data set, and `datasets` is not.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "sums.jsonl")
    ...     _ = file.write_text('{"prompt": "2+2=", "answer": 4}\n{"prompt": "5+5="}\n')
    ...     load_prompts(file, limit=1)
    [Prompt(id='0', messages=(), text='2+2=', answer='4', meta={}, teacher=None)]
    """
    name = os.path.expanduser(path)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit}; expected 1 or more, or None for all rows.")
    return prompts_from_rows(
        read_rows(name, limit),
        source=name,
        prompt_column=prompt_column,
        answer_column=answer_column,
        repair_boxed=repair_boxed,
        on_error=on_error,
    )


def as_prompts(given: Any, *, on_error: OnError = "raise") -> list[Prompt]:
    """Return prompts, whatever form they come in.

    Parameters
    ----------
    given : sequence of Prompt, str, Path or rows
        Prompts; the name of a file, directory or data set for `load_prompts`; or rows for
        `prompts_from_rows`.
    on_error : {"raise", "skip"}
        Whether an unusable row raises an error, or is left out and logged.

    Returns
    -------
    list of Prompt
        In order.

    Raises
    ------
    PromptError
        As in `load_prompts` and `prompts_from_rows`.

    Examples
    --------
    >>> as_prompts([{"prompt": "2+2="}])
    [Prompt(id='0', messages=(), text='2+2=', answer=None, meta={}, teacher=None)]
    """
    if isinstance(given, str | os.PathLike):
        return load_prompts(os.fspath(given), on_error=on_error)
    if isinstance(given, Sequence | np.ndarray):
        prompts = list(given)
        if all(isinstance(prompt, Prompt) for prompt in prompts):
            return prompts
    return prompts_from_rows(given, on_error=on_error)


def save_prompts(prompts: Iterable[Prompt], path: str | Path) -> None:
    """Write prompts as JSON lines that `load_prompts` reads back equal.

    Parameters
    ----------
    prompts : iterable of Prompt
        At least one; ids must differ. A row has `prompt`, `id`, `answer`, `teacher_prompt` and the
        columns of `meta`.
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
        **({} if prompt.teacher is None else {"teacher_prompt": prompt.teacher}),
        **prompt.meta,
    }
    try:
        line = json.dumps(row)
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"prompt {prompt.id!r} cannot be written as JSON ({error}): correct its messages or "
            "meta."
        ) from error
    found = prompt_of_row(json.loads(line))
    for name in ("id", "text", "messages", "answer", "meta"):
        wanted, got = getattr(prompt, name), getattr(found, name)
        if wanted != got:
            raise PromptError(
                f"prompt {prompt.id!r} would not be read back unchanged: its {name} is {wanted!r}, "
                f"but would be {got!r}; correct its meta, which has {sorted(prompt.meta)}."
            )
    return line
