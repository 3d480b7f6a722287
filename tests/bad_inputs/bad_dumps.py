"""Dumps of rollouts, of which nothing is trusted."""

import json
import pickle
from pathlib import Path
from typing import Any

from case import Case

from opdprobe.errors import ConfigError, RolloutError
from opdprobe.hooks.dumps import import_rollouts
from opdprobe.rollout.dumps import FORMATS, read_dumps
from opdprobe.rollout.dumps.growing import GrowingDump

_VERL = {"input": "2+2=", "output": "4", "gts": "4", "score": 1.0, "step": 1}
_TRACE = {
    "step": 1,
    "prompt_tokens": [5, 6],
    "response_tokens": [7, 2],
    "logprobs": [-0.5, -0.25],
    "reward": 1.0,
}
_SKIP = "Correct it, or leave such rows out: --on-error skip (on_error='skip')."


def _read(content: bytes | str, name: str = "1.jsonl", **options: Any):
    def feed(folder: Path) -> object:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return list(read_dumps(path, **options))

    return feed


def _lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _case(fed: str, feed: Any, message: str, error: type[BaseException] = RolloutError) -> Case:
    return Case("Dumps of rollouts", fed, feed, error, message)


def _row(fed: str, message: str, **changed: Any) -> Case:
    """A row of token ids."""
    feed = _read(_lines({**_TRACE, **changed}), "run_rollouts_000000.jsonl")
    return _case(fed, feed, f"FOLDER/run_rollouts_000000.jsonl:1: {message} {_SKIP}")


def _shortened(folder: Path) -> object:
    path = folder / "dump.jsonl"
    path.write_text(_lines(_TRACE, _TRACE))

    def wait(what: str) -> bool:
        path.write_text(_lines(_TRACE))
        return True

    return list(GrowingDump(path, "open-instruct", wait=wait))


def _several(folder: Path) -> object:
    (folder / "1.jsonl").write_text(_lines(_VERL))
    (folder / "run_rollouts_000000.jsonl").write_text(_lines(_TRACE))
    return list(read_dumps(folder))


CASES = [
    _case(
        "a dump that is not there",
        lambda folder: read_dumps(folder / "absent.jsonl"),
        "FOLDER/absent.jsonl: no such file or directory, and no dump fits it as a pattern; "
        "expected files, directories or patterns such as 'dump/*.jsonl'.",
    ),
    _case(
        "an empty directory, as a dump",
        read_dumps,
        "FOLDER: a directory without dumps; expected .jsonl, .json, .csv, .parquet, .eval or .pt "
        "files.",
    ),
    _case(
        "a dump of a kind that no trainer writes",
        _read("a", "a.txt"),
        "FOLDER/a.txt: a file of kind '.txt'; expected .jsonl, .json, .csv (also .gz or .zst), "
        ".parquet, .eval or .pt.",
    ),
    _case(
        "columns that no format has",
        _read(_lines({"text": "2+2=4"})),
        "FOLDER/1.jsonl: the columns ['text'], as no known format has; expected a dump of "
        f"{', '.join(FORMATS)}: name one with --format to see what it lacks.",
    ),
    _case(
        "a directory with dumps of two formats",
        _several,
        "FOLDER/1.jsonl: dumps of several formats: verl (1 files, such as FOLDER/1.jsonl), "
        "open-instruct (1 files, such as FOLDER/run_rollouts_000000.jsonl); expected one: name it "
        "with --format, or name fewer files.",
    ),
    _case(
        "a format that there is not",
        _read(_lines(_VERL), format="vrl"),
        f"format = 'vrl'; expected one of {', '.join(FORMATS)}.",
        ConfigError,
    ),
    _case(
        "a pickle whose format is not named",
        _read(pickle.dumps({}), "1.pt"),
        "FOLDER/1.pt: a pickle, which can run code when it is read; to read it, and of it plain "
        "values and tensors only, name its format: --format slime or slime-train or miles.",
    ),
    _case(
        "a line of a dump that is cut off",
        _read('{"input": "2+', format="verl"),
        'FOLDER/1.jsonl:1: not JSON (…): \'{"input": "2+\'; expected a JSON object per line. The '
        f"file ends here: is it still being written? {_SKIP}",
    ),
    _case(
        "a parquet file that is cut off, as a dump",
        _read(b"PAR1", "completions_00001.parquet"),
        "FOLDER/completions_00001.parquet: not a readable parquet file (…): check that it is "
        "complete.",
    ),
    _case(
        "a response that is no text",
        _read(_lines({**_VERL, "output": 4})),
        f"FOLDER/1.jsonl:1: 'output' is 4; expected a text. {_SKIP}",
    ),
    _row(
        "a token id below 0",
        "'response_tokens' holds -1; expected token ids, from 0 on.",
        response_tokens=[7, -1],
    ),
    _row(
        "a token id that is no whole number",
        "'prompt_tokens' is a list with 5.5 at index 0; expected token ids.",
        prompt_tokens=[5.5, 6],
    ),
    _row(
        "a log-probability for one token only",
        "'logprobs' has 1 values; expected one for each of 2 tokens.",
        logprobs=[-0.5],
    ),
    _row(
        "a probability in place of its logarithm",
        "'logprobs' holds 0.5; expected log-probabilities, <= 0.",
        logprobs=[0.5, 0.25],
    ),
    _row(
        "a row without a step, in a file whose name has none",
        "neither the row nor the file's name says of which step it is: give it with --step N "
        "(step=).",
        step=None,
    ),
    _case(
        "a step that comes back after another one",
        _read(_lines(*({**_TRACE, "step": step} for step in (1, 2, 1)))),
        "FOLDER/1.jsonl:3: step 1 again, after step 2; expected each step's rollouts together: "
        "sort the rows by step, or leave out those of a run that was resumed.",
    ),
    _case(
        "a growing file that is shortened while it is followed",
        _shortened,
        "FOLDER/dump.jsonl: was shortened while it was read: import it again from its start.",
    ),
    _case(
        "text, and no models that score it",
        lambda folder: import_rollouts(_written(folder), folder / "run"),
        "FOLDER/1.jsonl:1: text; expected models that score it: give --student and --teacher "
        "(student=, teacher=).",
        ConfigError,
    ),
]


def _written(folder: Path) -> Path:
    path = folder / "1.jsonl"
    path.write_text(_lines(_VERL))
    return path
