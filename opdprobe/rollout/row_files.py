"""Read the rows of prompt files, of which nothing is trusted."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from opdprobe.errors import PromptError, needs_train_extra, shown
from opdprobe.rollout.parquet import ParquetError, parquet_rows
from opdprobe.store.budget import (
    LEAST,
    ROW,
    UNPACKED_TIMES,
    most_bytes,
    most_unpacked,
    parsed_bytes,
)
from opdprobe.store.safe_text import parse_json

KINDS = (
    "a .parquet, .jsonl, .json or .csv file (the last three also .gz or .zst), a directory of "
    "them, or a data set such as openai/gsm8k:main:test"
)

_TEXT = (".jsonl", ".json", ".csv")
_TOO_MUCH = "holds far more rows and fields than its size accounts for: unpack it, if you trust it."
_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": (".gz", "gzip"), b"\x28\xb5\x2f\xfd": (".zst", "zstd")}
# How pandas writes a list of messages into a CSV file.
_ESCAPED = re.compile("[\udc80-\udcff]")
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]""")


def read_file(path: Path, limit: int | None = None) -> list[Any]:
    """Read a file's rows, in its order.

    Parameters
    ----------
    path : Path
        A .parquet, .jsonl, .json or .csv file; the last three may be compressed (.gz, .zst).
    limit : int, optional
        Read the first `limit` rows only.

    Returns
    -------
    list
        Rows as mappings. In place of a row that cannot be read is the `PromptError` that says why.

    Raises
    ------
    PromptError
        The file is of another kind or unreadable.
    MissingExtraError
        pyarrow (``opdprobe[train]``) is not installed, and the file is a .parquet or .zst.
    """
    kind, suffix = kind_of(path), path.suffix.lower()
    if kind is None:
        raise PromptError(f"{path}: expected {KINDS}, got {path.suffix or path.name!r}.")
    if kind == ".parquet":
        return _read_parquet(path, limit)
    with ExitStack() as stack:
        try:
            lines = open_text(path, suffix, stack, kept=True)
            rows = _csv_rows(lines) if kind == ".csv" else _json_rows(lines, kind == ".json")
            return list(islice(rows, limit))
        except UnicodeDecodeError as error:
            raise PromptError(
                f"{path}: not a readable UTF-8 text ({error}): save it as UTF-8."
            ) from error
        except csv.Error as error:
            raise PromptError(
                f"{path}: not a readable CSV file ({error}): quote fields that hold commas, "
                "quotes or line breaks."
            ) from error
        except NotRows as error:
            raise PromptError(f"{path}: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise PromptError(
                f"{path}: not a readable file ({error}): check that it is complete."
            ) from error


def kind_of(path: Path) -> str | None:
    """Return the kind of a prompt file by its name, such as .jsonl for a .jsonl.gz, or None."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return suffix
    kind = Path(path.stem).suffix.lower() if suffix in (".gz", ".zst") else suffix
    return kind if kind in _TEXT else None


class NotRows(Exception):
    """The file as a whole cannot be read, for this reason."""


class _Limited(io.RawIOBase):
    """A stream of which at most `most` bytes can be read, with rows of at most `memory` bytes."""

    def __init__(self, stream: Any, most: int, memory: float):
        self._stream, self._left, self._most, self._memory = stream, most, most, memory

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise NotRows(
                f"unpacks to more than {self._most} bytes, which is {UNPACKED_TIMES} times its "
                f"size and {LEAST} more: unpack it, if you trust it."
            )
        if self._memory < math.inf:
            self._memory -= parsed_bytes(data) + ROW * data.count(b"\n")
            if self._memory < 0:
                raise NotRows(_TOO_MUCH)
        buffer[: len(data)] = data
        return len(data)


def open_text(
    path: Path,
    suffix: str,
    stack: ExitStack,
    raw: io.RawIOBase | None = None,
    *,
    kept: bool = False,
) -> io.BufferedReader[Any]:
    """Open the text of a file, unpacked, after its byte order mark.

    Parameters
    ----------
    path, suffix
        The file and how it is compressed, if it is.
    stack
        Closes it.
    raw
        Read in place of the file.
    kept
        Whether all rows of a compressed file will be in memory together.

    Raises
    ------
    NotRows
        The text is compressed in another way than its name says, or is in UTF-16. Reading raises it
        if the file unpacks to more than it should.
    """
    if suffix == ".gz":
        unpacked = stack.enter_context(gzip.GzipFile(path))
    elif suffix == ".zst":
        with needs_train_extra(f"reading {path}"):
            import pyarrow as pa
        unpacked = stack.enter_context(pa.input_stream(path, compression="zstd"))
    else:
        unpacked = None
    lines: io.BufferedReader[Any]
    if raw is not None:
        lines = stack.enter_context(io.BufferedReader(raw, 2**16))
    elif unpacked is None:
        lines = stack.enter_context(path.open("rb"))
    else:
        size = path.stat().st_size
        limited = _Limited(unpacked, most_unpacked(size), most_bytes(size) if kept else math.inf)
        lines = stack.enter_context(io.BufferedReader(limited, 2**16))
    start = lines.peek(4)
    for magic, (ending, name) in _MAGIC.items():
        if start.startswith(magic):
            raise NotRows(
                f"compressed by {name}; expected a name that ends in {ending}: rename it."
            )
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise NotRows("a text in UTF-16: save it as UTF-8.")
    if start.startswith(_BOM):
        lines.read(len(_BOM))
    return lines


def _read_parquet(path: Path, limit: int | None) -> list[dict[str, Any]]:
    try:
        return list(islice(parquet_rows(path, kept=True), limit))
    except ParquetError as error:
        raise PromptError(
            f"{path}: not a readable parquet file ({error}): check that it is complete."
        ) from error


def _json_rows(lines: io.BufferedReader[Any], may_be_whole: bool) -> Iterator[Any]:
    """Rows of a file of JSON lines; or of one JSON list, or an object that holds one."""
    wanted = "expected a JSON object per line"
    if may_be_whole:
        wanted += ", one list of objects, or an object that holds one such list"
        start = lines.peek(1).lstrip()
        if start.startswith((b"[", b"{")):
            text = lines.read()
            try:
                yield from _whole_rows(parse_json(text.decode()), wanted)
                return
            except ValueError as error:
                if start.startswith(b"["):
                    if isinstance(error, UnicodeDecodeError):
                        raise
                    raise NotRows(f"not JSON ({error}); {wanted}.") from error
            lines = io.BufferedReader(io.BytesIO(text))  # several objects
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield PromptError(f"line {number} is not UTF-8 text ({error}): save it as UTF-8.")
            continue
        try:
            row = parse_json(text)
        except ValueError as error:
            yield PromptError(f"line {number} is not JSON ({error}): {text[:60]!r}; {wanted}.")
            continue
        if isinstance(row, dict):
            yield row
        else:
            yield PromptError(f"line {number} is not a JSON object: {text[:60]!r}; {wanted}.")


def _whole_rows(found: Any, wanted: str) -> list[Any]:
    """Rows of a file that is one JSON value: a list or an object."""
    if isinstance(found, list):
        return found
    lists = {
        name: value
        for name, value in found.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    # An object whose list holds messages is a row itself.
    if any({"content", "value"} & row.keys() for value in lists.values() for row in value):
        return [found]
    if len(lists) > 1:
        raise NotRows(f"an object with several lists of objects, {shown(sorted(lists))}; {wanted}.")
    return next(iter(lists.values()), [found])


def _csv_rows(lines: io.BufferedReader[Any]) -> Iterator[Any]:
    """Rows of a CSV file with a header; an empty field is None."""
    # Bytes that are not UTF-8 become halves of surrogate pairs, which no UTF-8 text holds.
    reader = csv.reader((line.decode(errors="surrogateescape") for line in lines), strict=True)
    header = next(reader, [])
    if any(map(_ESCAPED.search, header)):
        raise NotRows("the header is not UTF-8 text: save the file as UTF-8.")
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise NotRows(f"more than one column is called {shown(twice)}: rename all but one.")
    for fields in _csv_fields(reader):
        if isinstance(fields, PromptError):
            yield fields
        elif not fields:  # a blank line
            continue
        elif any(map(_ESCAPED.search, fields)):
            yield PromptError(
                f"line {reader.line_num} ends a row that is not UTF-8 text: save it as UTF-8."
            )
        elif len(fields) != len(header):
            yield PromptError(
                f"line {reader.line_num} ends a row of {len(fields)} fields; expected "
                f"{len(header)}, as in the header."
            )
        elif any(map(_MESSAGES.match, fields)):
            yield PromptError(
                f"line {reader.line_num} ends a row with a list of messages written as text; "
                "expected a plain text: save conversations as .jsonl or .parquet."
            )
        else:
            yield {name: field or None for name, field in zip(header, fields, strict=True)}


def _csv_fields(reader: Any) -> Iterator[list[str] | PromptError]:
    """Fields of each row; in place of a row that cannot be split, the error that says why."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise  # a quote that is not closed has taken in all that follows
            yield PromptError(
                f"line {reader.line_num} ends a row that is not CSV ({error}): quote fields that "
                "hold commas, quotes or line breaks."
            )
