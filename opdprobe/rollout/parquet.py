"""Read the rows of a parquet file in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opdprobe.errors import needs_train_extra
from opdprobe.store.budget import ROW, OverBudgetError, most_bytes, most_unpacked

_BATCH = 64  # rows
# A row becomes Python's objects, which take several times the memory of Arrow's numbers and texts.
_AS_OBJECTS = 8


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
        with pq.ParquetFile(path) as file:
            largest = _check_columns(file.metadata, size)
            # A value that stands in the file once may be that of every row.
            n_rows = max(1, min(_BATCH, most // max(largest * _AS_OBJECTS, 1)))
            for batch in file.iter_batches(n_rows):
                as_rows = batch.num_rows * ROW + batch.nbytes * (_AS_OBJECTS if kept else 1)
                left -= as_rows
                if left < 0:
                    raise OverBudgetError(
                        f"its rows take more than {most} bytes, too many for a file of {size}"
                    )
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ParquetError(str(error)) from error


def _check_columns(metadata: Any, file_size: int) -> int:
    """Return the bytes of the largest part of a column, unpacked; refuse claims that do not fit."""
    parts = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    unpacked = [part.total_uncompressed_size for part in parts]
    if sum(unpacked) > most_unpacked(file_size):
        raise OverBudgetError(
            f"it unpacks to {sum(unpacked)} bytes, more than {most_unpacked(file_size)}, too many "
            f"for a file of {file_size}: unpack it, if you trust it"
        )
    return max(unpacked, default=0)
