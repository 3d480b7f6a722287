"""``opdprobe export``: a run as one file that pandas, polars and DuckDB read."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from opdprobe.cli.runs import console, file_size
from opdprobe.errors import StoreError, needs_train_extra
from opdprobe.store import open_run
from opdprobe.store.files import write_whole

if TYPE_CHECKING:
    import pandas


def export(arguments: argparse.Namespace) -> None:
    """Write the file, which appears only when it is complete."""
    run = open_run(arguments.run_dir)
    steps = run.steps if arguments.steps is None else arguments.steps
    if not steps:
        raise StoreError(f"{run.path} has no recorded step to export.")
    out = arguments.out or run.path / f"{arguments.by}s.{arguments.to}"
    frames = (run.to_dataframe(step, by=arguments.by) for step in steps)  # one step in memory
    fill = {"parquet": _parquet, "csv": _csv, "jsonl": _jsonl}[arguments.to]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda file: fill(frames, file))
    console.print(f"{out}: {len(steps)} steps, {file_size(out.stat().st_size)}", soft_wrap=True)


def _parquet(frames: "Iterator[pandas.DataFrame]", file: BinaryIO) -> None:
    with needs_train_extra("opdprobe export --to parquet"):
        import pyarrow
        from pyarrow import parquet

    writer = None
    for frame in frames:
        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        if writer is None:
            writer = parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _csv(frames: "Iterator[pandas.DataFrame]", file: BinaryIO) -> None:
    for i, frame in enumerate(frames):
        frame.to_csv(file, index=False, header=i == 0, lineterminator="\n")


def _jsonl(frames: "Iterator[pandas.DataFrame]", file: BinaryIO) -> None:
    for frame in frames:
        frame.to_json(file, orient="records", lines=True, double_precision=15)
