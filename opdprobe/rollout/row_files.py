"""Read the rows of prompt files, of which nothing is trusted."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from opdprobe.errors import PromptError, needs_train_extra, shown
from opdprobe.store.safe_text import parse_json

KINDS = "a .parquet, .jsonl, .json or .csv file (the last three also .gz or .zst)"

_TEXT = (".jsonl", ".json", ".csv")
# Most that a compressed file may unpack to: a few kilobytes can hold gigabytes of one letter.
_MOST_BYTES, _MOST_TIMES = 2**26, 100
_BOM = b"\xef\xbb\xbf"
_MAGIC = {b"\x1f\x8b": (".gz", "gzip"), b"\x28\xb5\x2f\xfd": (".zst", "zstd")}
# How pandas writes a list of messages into a CSV file.
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]""")


def read_rows(path: Path, limit: int | None = None) -> list[Any]:
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
        The file is missing, of another kind or unreadable.
    MissingExtraError
        pyarrow (``opdprobe[train]``) is not installed, and the file is a .parquet or .zst.
    """
    if not path.is_file():
        found = "a directory" if path.is_dir() else "no such file"
        raise PromptError(f"{path}: {found}; expected {KINDS}.")
    suffix = path.suffix.lower()
    packed = suffix in (".gz", ".zst")
    kind = Path(path.stem).suffix.lower() if packed else suffix
    if kind == ".parquet" and not packed:
        return _read_parquet(path, limit)
    if kind not in _TEXT:
        raise PromptError(f"{path}: expected {KINDS}, got {path.suffix or path.name!r}.")
    with ExitStack() as stack:
        try:
            lines = _open(path, suffix, stack)
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
        except _NotRows as error:
            raise PromptError(f"{path}: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise PromptError(
                f"{path}: not a readable file ({error}): check that it is complete."
            ) from error


class _NotRows(Exception):
    """The file as a whole cannot be read, for this reason."""


class _Limited(io.RawIOBase):
    """A stream of which at most `most` bytes can be read."""

    def __init__(self, stream: Any, most: int):
        self._stream, self._left, self._most = stream, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise _NotRows(
                f"unpacks to more than {self._most} bytes, which is {_MOST_TIMES} times its size "
                f"and {_MOST_BYTES} more: unpack it, if you trust it."
            )
        buffer[: len(data)] = data
        return len(data)


def _open(path: Path, suffix: str, stack: ExitStack) -> io.BufferedReader[Any]:
    """Open the text of a file, unpacked, after its byte order mark."""
    if suffix == ".gz":
        unpacked = stack.enter_context(gzip.GzipFile(path))
    elif suffix == ".zst":
        with needs_train_extra(f"reading {path}"):
            import pyarrow as pa
        unpacked = stack.enter_context(pa.input_stream(path, compression="zstd"))
    else:
        unpacked = None
    lines: io.BufferedReader[Any]
    if unpacked is None:
        lines = stack.enter_context(path.open("rb"))
    else:
        most = _MOST_BYTES + _MOST_TIMES * path.stat().st_size
        lines = stack.enter_context(io.BufferedReader(_Limited(unpacked, most), 2**16))
    start = lines.peek(4)
    for magic, (ending, name) in _MAGIC.items():
        if start.startswith(magic):
            raise _NotRows(
                f"compressed by {name}; expected a name that ends in {ending}: rename it."
            )
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _NotRows("a text in UTF-16: save it as UTF-8.")
    if start.startswith(_BOM):
        lines.read(len(_BOM))
    return lines


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


def _json_rows(lines: io.BufferedReader[Any], may_be_list: bool) -> Iterator[Any]:
    """Rows of a file of JSON lines, or of one JSON list."""
    wanted = "expected a JSON object per line"
    if may_be_list:
        wanted += ", or one list of objects"
        if lines.peek(1).lstrip().startswith(b"["):
            text = lines.read().decode()
            try:
                yield from parse_json(text)
            except ValueError as error:
                raise _NotRows(f"not JSON ({error}); {wanted}.") from error
            return
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


def _csv_rows(lines: io.BufferedReader[Any]) -> Iterator[Any]:
    """Rows of a CSV file with a header; an empty field is None."""
    reader = csv.reader((line.decode() for line in lines), strict=True)
    header = next(reader, [])
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise _NotRows(f"more than one column is called {shown(twice)}: rename all but one.")
    for fields in reader:
        if not fields:  # a blank line
            continue
        if len(fields) != len(header):
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
