"""Prompt files, rows of them, and training logs."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from case import Case

from opdprobe.errors import PromptError, StoreError
from opdprobe.probes.logs import read_log
from opdprobe.rollout.prompt_files import load_prompts, prompts_from_rows, save_prompts
from opdprobe.rollout.prompts import Prompt

SKIP = 'Correct them, or leave them out with on_error="skip".'


def _file(folder: Path, content: bytes | str, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def _load(content: bytes | str, name: str = "prompts.jsonl"):
    return lambda folder: load_prompts(_file(folder, content, name))


def _rows(*rows: Any):
    return lambda _: prompts_from_rows(rows)


def _row(fed: str, row: Any, fault: str) -> Case:
    message = f"prompts: 1 of 1 rows cannot be used: row 0: {fault}. {SKIP}"
    return Case("Prompts", fed, _rows(row), PromptError, message)


def _prompts(fed: str, feed: Any, message: str) -> Case:
    return Case("Prompts", fed, feed, PromptError, message)


_GOOD = _lines({"prompt": "2+2="})

_FILES = [
    _prompts(
        "a file that is not there",
        lambda folder: load_prompts(folder / "absent.parquet"),
        "FOLDER/absent.parquet: no such file; expected a .parquet or .jsonl file of prompts.",
    ),
    _prompts(
        "a directory",
        load_prompts,
        "FOLDER: a directory; expected a .parquet or .jsonl file of prompts.",
    ),
    _prompts(
        "a file of another kind",
        _load("prompt\n2+2=\n", "prompts.csv"),
        "FOLDER/prompts.csv: expected a .parquet or .jsonl file, got '.csv'.",
    ),
    _prompts(
        "an empty file",
        _load(""),
        "FOLDER/prompts.jsonl: no rows; expected at least one prompt.",
    ),
    _prompts(
        "a file in another encoding than UTF-8",
        _load('{"prompt": "¿2+2?"}\n'.encode("latin-1")),
        "FOLDER/prompts.jsonl: not a readable UTF-8 text (…): save it as UTF-8.",
    ),
    _prompts(
        "a compressed file under the name of a plain one, cut off",
        _load(gzip.compress(_GOOD.encode())[:-4]),
        "FOLDER/prompts.jsonl: not a readable UTF-8 text (…): save it as UTF-8.",
    ),
    _prompts(
        "a line that is not JSON",
        _load(_GOOD + "2+3=\n"),
        "FOLDER/prompts.jsonl: line 2 is not JSON (…): '2+3=\\n'; expected a JSON object per line.",
    ),
    _prompts(
        "a line of 100 000 brackets",
        _load("[" * 100_000),
        "FOLDER/prompts.jsonl: line 1 is not JSON (nested too deeply): '"
        + "[" * 60
        + "'; expected a "
        "JSON object per line.",
    ),
    _prompts(
        "a line that is a list",
        _load('["2+2="]\n'),
        "FOLDER/prompts.jsonl: line 1 is not a JSON object: '[\"2+2=\"]\\n'; expected a JSON "
        "object per line.",
    ),
    _prompts(
        "a parquet file, cut off",
        _load(_parquet([{"prompt": "2+2="}])[:-9], "prompts.parquet"),
        "FOLDER/prompts.parquet: not a readable parquet file (…): check that it is complete.",
    ),
    _prompts(
        "a parquet file without rows",
        _load(_parquet([{"prompt": "2+2="}][:0]), "prompts.parquet"),
        "FOLDER/prompts.parquet: no rows; expected at least one prompt.",
    ),
]

_ROWS = [
    _row("a row without the column", {"question": "2+2="}, "no column 'prompt' among ['question']"),
    _row("an empty prompt", {"prompt": " \n"}, "prompt '0': empty prompt"),
    _row("no message", {"prompt": []}, "prompt '0': empty prompt"),
    _row(
        "a prompt that is a number",
        {"prompt": 7},
        "'prompt' is of type int; expected str or list of messages",
    ),
    _row(
        "a message without a role",
        {"prompt": [{"content": "2+2="}]},
        "prompt '0': a message needs a role and a content, both str; got {'content': '2+2='}",
    ),
    _row(
        "an answer that is a list",
        {"prompt": "2+2=", "answer": ["4"]},
        "the answer is ['4']; expected a text or a number",
    ),
    _row(
        "half of a surrogate pair, as JSON can hold it",
        {"prompt": "2+2=\ud83d"},
        "prompt '0': half a surrogate pair, U+D83D, in the text; replace it",
    ),
    _row("a row that is a text", "2+2=", "a str; expected a mapping of columns to values"),
    _row(
        "an id that would clear the screen",
        {"prompt": "", "id": "\x1b[2J"},
        "prompt '\\x1b[2J': empty prompt",
    ),
    _prompts(
        "two rows of one id",
        _rows({"prompt": "2+2=", "id": "a"}, {"prompt": "2+3=", "id": "a"}),
        f"prompts: 1 of 2 rows cannot be used: row 1: id 'a' repeats row 0. {SKIP}",
    ),
    _prompts(
        "nothing but unusable rows, to be skipped",
        lambda _: prompts_from_rows([{"prompt": ""}], on_error="skip"),
        "prompts: 1 of 1 rows cannot be used: row 0: prompt '0': empty prompt. No usable "
        "row is left: correct them.",
    ),
    _prompts(
        "a prompt of another type",
        lambda _: Prompt("a", text=7),  # pyright: ignore[reportArgumentType]
        "prompt 'a': the text is of type int; expected str.",
    ),
    _prompts(
        "columns that JSON cannot hold, to be saved",
        lambda folder: save_prompts(
            [Prompt("a", text="2+2=", meta={"seen": {1, 2}})], folder / "out.jsonl"
        ),
        "prompt 'a' cannot be written as JSON (Object of type set is not JSON serializable): "
        "correct its messages or meta.",
    ),
]


def _log(fed: str, content: str, source: str, message: str) -> Case:
    def feed(folder: Path) -> object:
        return read_log(_file(folder, content, "log.txt"), source)

    return Case("Training logs", fed, feed, StoreError, message)


_LOGS = [
    _log(
        "a console log without a step",
        "done\n",
        "verl",
        "FOLDER/log.txt holds no logged step; expected a training log of verl.",
    ),
    _log(
        "a step that is no number",
        '{"step": Infinity, "data": {}}\n',
        "verl",
        "FOLDER/log.txt, line 1: ValueError('step = inf; expected an integer'); expected "
        "{'step': …, 'data': {…}} as verl's file logger writes it.",
    ),
    _log(
        "a trainer's state without a history",
        '{"epoch": 1.0}',
        "trl",
        "FOLDER/log.txt has no readable log_history of entries with a step (KeyError("
        "'log_history')); expected the trainer_state.json of a checkpoint.",
    ),
]

CASES = [*_FILES, *_ROWS, *_LOGS]
