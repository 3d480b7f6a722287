"""Read the rows of a parquet file in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opdprobe.errors import needs_train_extra, shown
from opdprobe.rollout.parquet_deltas import check_deltas
from opdprobe.rollout.parquet_pages import ColumnClaims, column_claims
from opdprobe.store.budget import LEAST, ROW, OverBudgetError, most_bytes, most_unpacked

_BATCH = 2048  # rows; for far fewer, starting a batch costs more than its values
# A row becomes Python's objects, which take several times the memory of Arrow's numbers and texts.
_AS_OBJECTS = 8
_VALUE = 8  # bytes that a value takes at least, as one of Python's objects or in a dictionary


class ParquetError(ValueError):
    """A parquet file is not readable, or claims more than its size accounts for."""


def parquet_rows(path: Path, *, kept: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a parquet file's rows, with the file's own columns only.

    A folder called ``split=train`` would otherwise add one.

    Parameters
    ----------
    path
        The file.
    kept
        Whether all rows will be in memory together, as Python's objects.

    Raises
    ------
    ParquetError
        The file is damaged, or its columns claim more than a file of its size may hold.
    MissingExtraError
        pyarrow (``opdprobe[train]``) is not installed.
    """
    with needs_train_extra(f"reading {path}"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    size = path.stat().st_size
    most = left = most_bytes(size)
    try:
        columns = column_claims(path, most_unpacked(size))
        _check_columns(columns, size)
        check_deltas(path, columns)
        # A value that stands in the file once may be that of every row.
        of_row = sum(c.unpacked if c.beginnings else c.dictionary for c in columns)
        n_rows = max(1, min(_BATCH, most // max(of_row * _AS_OBJECTS, 1)))
        # One row may have so many of them that its texts should not be written out to count them.
        kept_apart = {c.path for c in columns if c.repeated and c.values * c.dictionary > most}
        plain = pq.read_schema(path) if kept_apart else None
        with pq.ParquetFile(path, read_dictionary=sorted(kept_apart)) as file:
            # Rows may be large, as those of a cache of logits are.
            n_bytes = sum(c.unpacked for c in columns) * _AS_OBJECTS
            n_rows = max(1, min(n_rows, LEAST * file.metadata.num_rows // max(n_bytes, 1)))
            for batch in file.iter_batches(n_rows):
                n_bytes = batch.nbytes
                if kept_apart:
                    n_bytes += sum(_written_out(column) for column in batch.columns)
                left -= batch.num_rows * ROW + n_bytes * (_AS_OBJECTS if kept else 1)
                if left < 0:
                    raise OverBudgetError(
                        f"its rows take more than {most} bytes, too many for a file of {size}"
                    )
                # One by one, texts of a dictionary are read slowly.
                rows = pa.Table.from_batches([batch]).cast(plain) if kept_apart else batch
                yield from rows.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ParquetError(str(error)) from error


def _check_columns(columns: list[ColumnClaims], file_size: int) -> None:
    """Refuse claims that do not fit the file."""
    most = most_bytes(file_size)
    unpacked = sum(column.unpacked for column in columns)
    if unpacked > most_unpacked(file_size):
        raise OverBudgetError(
            f"it unpacks to {unpacked} bytes, more than {most_unpacked(file_size)}, too many "
            f"for a file of {file_size}: unpack it, if you trust it"
        )
    values = sum(column.values + column.entries for column in columns)
    if values * _VALUE > most:
        raise OverBudgetError(f"it has {values} values, too many for a file of {file_size}")
    for column in columns:
        if column.beginnings and column.repeated and column.values * column.unpacked > most:
            raise OverBudgetError(
                f"the texts of {shown(column.path)} may take {column.values * column.unpacked} "
                f"bytes, too many for a file of {file_size}: write it without DELTA_BYTE_ARRAY"
            )


def _written_out(column: Any) -> int:
    """Bytes that the texts of a column take more than its dictionaries, which have each once.

    Negative where few of a dictionary's texts are in the column: each batch has all of it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.DictionaryArray):
        lengths: Any = pc.binary_length(column.dictionary)  # pyright: ignore[reportAttributeAccessIssue]
        total = pc.sum(pc.take(lengths, column.indices))  # pyright: ignore[reportAttributeAccessIssue]
        return (total.as_py() or 0) - column.dictionary.nbytes
    if isinstance(column, pa.StructArray):
        return sum(map(_written_out, column.flatten()))
    if isinstance(column, pa.ListArray | pa.LargeListArray | pa.MapArray | pa.FixedSizeListArray):
        return _written_out(column.flatten())
    return 0
