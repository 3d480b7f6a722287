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
from opdprobe.rollout.row_files import KINDS

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


def _directory(files: dict[str, str], split: str = ""):
    def feed(folder: Path) -> object:
        for name, content in files.items():
            _file(folder, content, name)
        return load_prompts(f"{folder}{split}")

    return feed


def _rows(*rows: Any):
    return lambda _: prompts_from_rows(rows)


def _row(fed: str, row: Any, fault: str) -> Case:
    message = f"prompts: 1 of 1 rows cannot be used: row 0: {fault}. {SKIP}"
    return Case("Prompts", fed, _rows(row), PromptError, message)


def _prompts(fed: str, feed: Any, message: str) -> Case:
    return Case("Prompts", fed, feed, PromptError, message)


_GOOD = _lines({"prompt": "2+2="})


def _line(fed: str, line: bytes | str, fault: str) -> Case:
    """After a good one."""
    line = line.encode() if isinstance(line, str) else line
    message = f"FOLDER/prompts.jsonl: 1 of 2 rows cannot be used: row 1: {fault}. {SKIP}"
    return _prompts(fed, _load(_GOOD.encode() + line), message)


_FILES = [
    _prompts(
        "a file that is not there",
        lambda folder: load_prompts(folder / "absent.parquet"),
        f"FOLDER/absent.parquet: no such file; expected {KINDS}.",
    ),
    _prompts(
        "an empty directory",
        load_prompts,
        f"FOLDER: a directory without prompt files; expected {KINDS}.",
    ),
    _prompts(
        "a directory with two splits",
        _directory({"train.jsonl": _GOOD, "test.jsonl": _GOOD}),
        "FOLDER: a directory with the splits ['test', 'train']; name one, such as FOLDER:test, or "
        "a file.",
    ),
    _prompts(
        "a split that a directory lacks",
        _directory({"train.jsonl": _GOOD}, ":test"),
        "FOLDER:test: the directory has the splits ['train']; name one of them, or a file in it.",
    ),
    _prompts(
        "a directory of files of two kinds",
        _directory({"a.jsonl": _GOOD, "b.csv": "prompt\n2+2=\n"}),
        "FOLDER: a directory of .csv, .jsonl files; expected one kind: name a file in it.",
    ),
    _prompts(
        "a data set that datasets saved, damaged",
        _directory({"state.json": "{", "dataset_info.json": "{}"}),
        "FOLDER: not a readable data set (…): check that it is complete.",
    ),
    _prompts(
        "a file of another kind",
        _load("prompt\n2+2=\n", "prompts.tsv"),
        f"FOLDER/prompts.tsv: expected {KINDS}, got '.tsv'.",
    ),
    _prompts(
        "an empty file",
        _load(""),
        "FOLDER/prompts.jsonl: no rows; expected at least one prompt.",
    ),
    _line(
        "a line in another encoding than UTF-8",
        '{"prompt": "¿2+2?"}\n'.encode("latin-1"),
        "line 2 is not UTF-8 text (…): save it as UTF-8",
    ),
    _line(
        "a line that is not JSON",
        "2+3=\n",
        "line 2 is not JSON (…): '2+3=\\n'; expected a JSON object per line",
    ),
    _line(
        "a line of 100 000 brackets",
        "[" * 100_000,
        f"line 2 is not JSON (nested too deeply): '{'[' * 60}'; expected a JSON object per line",
    ),
    _line(
        "a line that is a list",
        '["2+2="]\n',
        "line 2 is not a JSON object: '[\"2+2=\"]\\n'; expected a JSON object per line",
    ),
    _prompts(
        "a text in UTF-16",
        _load(_GOOD.encode("utf-16")),
        "FOLDER/prompts.jsonl: a text in UTF-16: save it as UTF-8.",
    ),
    _prompts(
        "a compressed file under the name of a plain one",
        _load(gzip.compress(_GOOD.encode())),
        "FOLDER/prompts.jsonl: compressed by gzip; expected a name that ends in .gz: rename it.",
    ),
    _prompts(
        "a compressed file, cut off",
        _load(gzip.compress(_GOOD.encode())[:-4], "prompts.jsonl.gz"),
        "FOLDER/prompts.jsonl.gz: not a readable file (…): check that it is complete.",
    ),
    _prompts(
        "a compressed file of 100 MB of one letter",
        _load(gzip.compress(bytes(10**8)), "prompts.jsonl.gz"),
        "FOLDER/prompts.jsonl.gz: unpacks to more than … bytes, which is 100 times its size and "
        "67108864 more: unpack it, if you trust it.",
    ),
    _prompts(
        "a JSON list, cut off",
        _load('[{"prompt": "2+2="}, ', "prompts.json"),
        "FOLDER/prompts.json: not JSON (…); expected a JSON object per line, one list of objects, "
        "or an object that holds one such list.",
    ),
    _prompts(
        "a JSON object with two lists of rows",
        _load('{"train": [{"prompt": "2+2="}], "test": [{"prompt": "2+3="}]}', "prompts.json"),
        "FOLDER/prompts.json: an object with several lists of objects, ['test', 'train']; expected "
        "a JSON object per line, one list of objects, or an object that holds one such list.",
    ),
    _prompts(
        "a CSV file with a row in another encoding than UTF-8",
        _load(b"prompt\n2+2=\n\xbf2+2?\n", "prompts.csv"),
        "FOLDER/prompts.csv: 1 of 2 rows cannot be used: row 1: line 3 ends a row that is not "
        f"UTF-8 text: save it as UTF-8. {SKIP}",
    ),
    _prompts(
        "a CSV file with text after a quoted field",
        _load('prompt\n2+2=\n"2+"2=\n', "prompts.csv"),
        "FOLDER/prompts.csv: 1 of 2 rows cannot be used: row 1: line 3 ends a row that is not CSV "
        f"(…): quote fields that hold commas, quotes or line breaks. {SKIP}",
    ),
    _prompts(
        "a CSV file whose last quote is not closed",
        _load('prompt\n"2+2=\n', "prompts.csv"),
        "FOLDER/prompts.csv: not a readable CSV file (…): quote fields that hold commas, quotes "
        "or line breaks.",
    ),
    _prompts(
        "a CSV file with a comma too many",
        _load("prompt,answer\n2+2=,4\n2,2?,4\n", "prompts.csv"),
        "FOLDER/prompts.csv: 1 of 2 rows cannot be used: row 1: line 3 ends a row of 3 fields; "
        f"expected 2, as in the header. {SKIP}",
    ),
    _prompts(
        "a CSV file in which two columns share a name",
        _load("prompt,prompt\n2+2=,4\n", "prompts.csv"),
        "FOLDER/prompts.csv: more than one column is called ['prompt']: rename all but one.",
    ),
    _prompts(
        "a CSV file of conversations",
        _load("prompt,answer\n\"[{'role': 'user', 'content': '2+2='}]\",4\n", "prompts.csv"),
        "FOLDER/prompts.csv: 1 of 1 rows cannot be used: row 0: line 2 ends a row with a list of "
        "messages written as text; expected a plain text: save conversations as .jsonl or "
        f".parquet. {SKIP}",
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
    _prompts(
        "rows without the column",
        _rows({"question": "2+2="}, {"question": "2+3="}),
        "prompts: no column 'prompt' among ['question'] in any row: name the column of the "
        "prompts with prompt_column (--prompt-column); is it 'question'?",
    ),
    _prompts(
        "rows without the column of answers",
        lambda _: prompts_from_rows([{"prompt": "2+2=", "solution": "4"}], answer_column="answer"),
        "prompts: no column 'answer' among ['prompt', 'solution'] in any row: name the column of "
        "the answers with answer_column (--answer-column); is it 'solution'?",
    ),
    _prompts(
        "columns instead of rows",
        lambda _: prompts_from_rows({"prompt": ["2+2="]}),  # pyright: ignore[reportArgumentType]
        "prompts: a dict of ['prompt']; expected rows: a list of mappings, a DataFrame, or one "
        "split of a data set.",
    ),
    _prompts(
        "a number instead of rows",
        lambda _: prompts_from_rows(7),  # pyright: ignore[reportArgumentType]
        "prompts: 7 is of type int; expected rows, such as a list of mappings.",
    ),
    _prompts(
        "a row without the column",
        _rows({"prompt": "2+2="}, {"question": "2+3="}),
        "prompts: 1 of 2 rows cannot be used: row 1: no column 'prompt' among ['question']. "
        + SKIP,
    ),
    _row("no prompt", {"prompt": None}, "column 'prompt' is empty"),
    _row(
        "a message with an image",
        {"prompt": [{"role": "user", "content": [{"type": "image"}]}]},
        "a message has a part of type 'image'; expected parts of text only, "
        '{"type": "text", "text": …}',
    ),
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
        "an answer of bytes",
        {"prompt": "2+2=", "answer": b"4"},
        "the answer is b'4'; expected a text or a number",
    ),
    _prompts(
        "a conversation that the assistant ends, as a prompt",
        lambda _: Prompt("a", messages=({"role": "assistant", "content": "4"},)),
        "prompt 'a': the last message is the assistant's, which the model is to write; leave it "
        "out.",
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
