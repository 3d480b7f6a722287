"""Read a dump's files row by row, in bounded memory."""

from __future__ import annotations

import copy
import csv
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from opdprobe.errors import RolloutError, needs_train_extra, shown
from opdprobe.rollout.dumps.growing_lines import GrowingLines
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.parquet import ParquetError, parquet_rows
from opdprobe.rollout.row_files import NotRows, open_text
from opdprobe.store.budget import (
    CSV_FIELD,
    MOST_LINE,
    OverBudgetError,
    check_parsed,
    most_bytes,
    most_unpacked,
)
from opdprobe.store.safe_text import parse_json

TEXT = (".jsonl", ".json", ".csv")
PICKLES = (".pt", ".pth", ".pkl", ".pickle")
KINDS = (*TEXT, ".parquet", ".eval", *PICKLES)
# The zip archive's number for zstd; inspect-ai's logs have it since 2026.
_ZSTD = 93


def kind_of(path: Path) -> str | None:
    """Return the kind of a dump's file by its name, such as .jsonl for .jsonl.gz, or None."""
    suffix = path.suffix.lower()
    if suffix in (".gz", ".zst"):
        suffix = Path(path.stem).suffix.lower()
        return suffix if suffix in TEXT else None
    return suffix if suffix in KINDS else None


def rows_of(
    path: Path, step: int | None, at_end: Callable[[], bool] | None = None
) -> Iterator[Row | RolloutError]:
    """Yield a file's rows; in place of a row that cannot be read, the error that says why.

    Parameters
    ----------
    path
        A file of a kind in `KINDS`.
    step
        The step of rows that do not say theirs.
    at_end
        For a file of lines that is still being written (`grows`): as for `GrowingLines`.

    Raises
    ------
    RolloutError
        The file as a whole cannot be read.
    MissingExtraError
        pyarrow or torch (``opdprobe[train]``) is not installed, and the file needs it.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        found = _parquet(path)
    elif kind == ".eval":
        found = _zipped(path)
    elif kind in PICKLES:
        found = _pickled(path)
    elif at_end is not None:
        found = _lines(path, at_end)
    else:
        found = {".csv": _csv, ".json": _json}.get(kind or "", _lines)(path)
    for data, where in found:
        if isinstance(data, RolloutError):
            yield data
        else:
            yield Row(data, f"{path}{where}", step)


_Found = Iterator[tuple[Any, str]]


@contextmanager
def _readable(path: Path) -> Iterator[ExitStack]:
    try:
        with ExitStack() as stack:
            yield stack
    except UnicodeDecodeError as error:
        raise RolloutError(
            f"{path}: not a readable UTF-8 text ({error}): save it as UTF-8."
        ) from error
    except NotRows as error:
        raise RolloutError(f"{path}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RolloutError(
            f"{path}: not a readable file ({error}): check that it is complete."
        ) from error


def _lines(path: Path, at_end: Callable[[], bool] | None = None) -> _Found:
    """JSON lines. Most trainers write one object a line, ms-swift also one list of objects."""
    with _readable(path) as stack:
        raw = None if at_end is None else GrowingLines(path, at_end, MOST_LINE)
        stream = open_text(path, path.suffix.lower(), stack, raw)
        number, most = 0, _most_of_line(path)
        while line := stream.readline(MOST_LINE + 1):
            number += 1
            where = f":{number}"
            if len(line) > MOST_LINE:
                raise RolloutError(
                    f"{path}{where}: a line of more than {MOST_LINE} bytes; expected a JSON "
                    "object per line, of one rollout or one step."
                )
            if not line.strip():
                continue
            for data in _parsed(line, f"{path}{where}", most):
                yield data, where


def _most_of_line(path: Path) -> float:
    """Bytes of memory that a line may take; one of a plain file takes what it takes."""
    packed = path.suffix.lower() in (".gz", ".zst")
    return most_bytes(path.stat().st_size) if packed else math.inf


def _parsed(line: bytes, source: str, most: float = math.inf) -> list[Any]:
    wanted = "expected a JSON object per line"
    try:
        check_parsed(line, most)
    except OverBudgetError as error:
        return [RolloutError(f"{source}: {error}: unpack the file, if you trust it.")]
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return [RolloutError(f"{source}: not UTF-8 text ({error}): save it as UTF-8.")]
    try:
        found = parse_json(text)
    except ValueError as error:
        torn = "" if text.endswith("\n") else " The file ends here: is it still being written?"
        return [RolloutError(f"{source}: not JSON ({error}): {text[:60]!r}; {wanted}.{torn}")]
    found = found if isinstance(found, list) and found else [found]
    return [
        one
        if isinstance(one, dict)
        else RolloutError(f"{source}: not a JSON object: {text[:60]!r}; {wanted}.")
        for one in found
    ]


def _json(path: Path) -> _Found:
    """One JSON value: a list of rows, or an object whose ``samples`` are the rows; else lines."""
    with _readable(path) as stack:
        stream = open_text(path, path.suffix.lower(), stack)
        text = stream.read(MOST_LINE + 1)
        if len(text) > MOST_LINE:
            raise RolloutError(
                f"{path}: more than {MOST_LINE} bytes in one JSON value; expected JSON lines, or "
                "for inspect the .eval log: convert it."
            )
        try:
            check_parsed(text, _most_of_line(path))
            found = parse_json(text.decode())
        except ValueError as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            if isinstance(error, OverBudgetError):
                raise RolloutError(f"{path}: {error}: unpack it, if you trust it.") from error
            if b"}\n{" not in text:
                raise RolloutError(
                    f"{path}: not JSON ({error}): check that it is complete."
                ) from error
            found = None
    if found is None:
        yield from _lines(path)
        return
    rows = found.get("samples", found) if isinstance(found, dict) else found
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        where = f", row {number}" if isinstance(rows, list) else ""
        if isinstance(row, dict):
            yield row, where
        else:
            yield RolloutError(f"{path}{where}: {shown(row)}; expected a JSON object."), where


def _csv(path: Path) -> _Found:
    """Rows of a CSV file with a header, as texts; an empty field is None."""
    csv.field_size_limit(MOST_LINE)
    most = _most_of_line(path)
    with _readable(path) as stack:
        lines = io.TextIOWrapper(open_text(path, path.suffix.lower(), stack), "utf-8", newline="")
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            for fields in reader:
                where = f":{reader.line_num}"
                if len(fields) * CSV_FIELD > most:
                    raise NotRows(f"{len(fields)} fields in a row, too many for its size.")
                if not fields:
                    continue
                if len(fields) != len(header):
                    yield (
                        RolloutError(
                            f"{path}{where}: {len(fields)} fields; expected {len(header)}, as in "
                            "the header."
                        ),
                        where,
                    )
                    continue
                yield dict(zip(header, (field or None for field in fields), strict=True)), where
        except csv.Error as error:
            raise RolloutError(
                f"{path}:{reader.line_num}: not CSV ({error}): check that it is complete."
            ) from error


def _parquet(path: Path) -> _Found:
    try:
        for number, row in enumerate(parquet_rows(path)):
            yield row, f", row {number}"
    except ParquetError as error:
        raise RolloutError(
            f"{path}: not a readable parquet file ({error}): check that it is complete."
        ) from error


def _zipped(path: Path) -> _Found:
    """Samples of an inspect log: one JSON file each, in a zip archive."""
    with _readable(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if m.filename.startswith("samples/")]
                size = path.stat().st_size
                if (total := sum(member.file_size for member in members)) > most_unpacked(size):
                    raise RolloutError(
                        f"{path}: unpacks to {total} bytes; expected at most "
                        f"{most_unpacked(size)}: unpack it, if you trust it."
                    )
                for member in sorted(members, key=lambda member: member.filename):
                    where = f", {member.filename}"
                    if member.file_size > MOST_LINE:
                        yield (
                            RolloutError(
                                f"{path}{where}: {member.file_size} bytes; expected at most "
                                f"{MOST_LINE}."
                            ),
                            where,
                        )
                        continue
                    for data in _parsed(
                        _unpacked(archive, member), f"{path}{where}", most_bytes(size)
                    ):
                        yield data, where
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise RolloutError(
                f"{path}: not a readable .eval log ({error}): check that it is complete, or "
                "convert it with `inspect log convert --to json`."
            ) from error


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes; inspect packs them by zstd, which zipfile reads from Python 3.14 on."""
    # The size in the directory may be a lie.
    most = member.file_size + 1
    if member.compress_type != _ZSTD:
        with archive.open(member) as stream:
            return stream.read(most)[:most]
    with needs_train_extra(f"reading {archive.filename}"):
        import pyarrow as pa
    packed = copy.copy(member)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, member.compress_size
    packed.CRC = None  # pyright: ignore[reportAttributeAccessIssue]  # it is that of the unpacked
    with archive.open(packed) as stream, pa.CompressedInputStream(stream, "zstd") as unpacked:
        found = unpacked.read(most)
    if zlib.crc32(found) != member.CRC:
        raise zipfile.BadZipFile(f"bad CRC-32 for file {member.filename!r}")
    return found


def _pickled(path: Path) -> _Found:
    """Samples that torch saved, of plain values and tensors only."""
    from opdprobe.rollout.dumps.pickled import load

    found = load(path)
    samples = found.get("samples") if isinstance(found, Mapping) else None
    if not isinstance(samples, list):
        has = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise RolloutError(
            f"{path}: holds {shown(has)}; expected a dict with rollout_id and samples, as slime "
            "and miles save it."
        )
    for number, sample in enumerate(samples):
        where = f", sample {number}"
        if isinstance(sample, Mapping):
            yield {"rollout_id": found.get("rollout_id"), **_named(sample)}, where
        else:
            yield RolloutError(f"{path}{where}: {shown(sample)}; expected a dict."), where


def _named(sample: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in sample.items() if name != "rollout_id"}
