"""The states of a run, piece by piece: what a pass through a run of any size reads.

A piece holds at most 131,072 states, small steps side by side or a part of a large one, and reads
and decodes a variable when that is first used.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from opdprobe.errors import StoreError
from opdprobe.store.run import Run
from opdprobe.store.schema import COORDS, MODELS, SCHEMA_VERSION, VARIABLES, variable_attrs
from opdprobe.store.step_decode import StepArchive
from opdprobe.store.step_parts import LABELS, JoinedArchive, open_step, step_files

PIECE = 131_072  # states; a large step's parts are then its chunks
# A batch of small steps holds some 50,000 states (at k = 16), and so many files open.
_BATCH_BYTES = 8 * 2**20
_BATCH_STEPS = 64


class Piece(NamedTuple):
    """Some states of a run.

    Attributes
    ----------
    states : xarray.Dataset
        Their variables; valid until the next piece is asked for. The step's tables of rollouts are
        in it where the batch is one step.
    parts : list of (step, n_rollout, n_state)
        Which steps they are of, in order: how many rollouts each has in all, and states here.
    """

    states: xr.Dataset
    parts: list[tuple[int, int, int]]


class _Segment(NamedTuple):
    step: int
    archive: StepArchive | JoinedArchive
    start: int
    stop: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Arguments of `StepArchive.rows`; none for all rows, which are read in one go."""
        whole = self.start == 0 and self.stop == self.archive.n_state
        return () if whole else (self.start, self.stop)


def batches(run: Run, *, joined: bool = True) -> list[list[int]]:
    """Divide a run's steps into batches of some megabytes, each read by one process.

    Parameters
    ----------
    run : Run
        The run.
    joined : bool
        Whether small steps come together; else a batch is a step.
    """
    found: list[list[int]] = []
    filled = 0
    for step, files in step_files(run.path).items():
        size = sum(file.stat().st_size for file in files) if joined else _BATCH_BYTES
        if not found or filled + size > _BATCH_BYTES or len(found[-1]) == _BATCH_STEPS:
            found.append([])
            filled = 0
        found[-1].append(step)
        filled += size
    return found


def pieces(run: Run, steps: Sequence[int]) -> Iterator[Piece]:
    """Read the states of some steps, in pieces; their files are open meanwhile.

    Parameters
    ----------
    run : Run
        The run.
    steps : sequence of int
        A batch of its steps.

    Yields
    ------
    Piece
        A step without a state is in one, too.

    Raises
    ------
    StoreError
        A file is missing, torn, not a step, or unlike the first.
    """
    with ExitStack() as stack:
        archives = ((step, stack.enter_context(open_step(run.path, step))) for step in steps)
        for segments in _together(_segments(archives)):
            columns = _columns(segments, tables=len(steps) == 1)
            parts = [(s.step, s.archive.n_rollout, s.stop - s.start) for s in segments]
            yield Piece(_dataset(columns), parts)
            # A Dataset and its accessors hold each other: without this, some hundred megabytes
            # would wait for the garbage collector.
            for column in columns:
                column.forget()


def _segments(archives: Iterable[tuple[int, StepArchive | JoinedArchive]]) -> Iterator[_Segment]:
    """Cut steps into segments of at most `PIECE` states; a step without a state gives one, too."""
    for step, archive in archives:
        for start in range(0, max(archive.n_state, 1), PIECE):
            yield _Segment(step, archive, start, min(start + PIECE, archive.n_state))


def _together(segments: Iterable[_Segment]) -> Iterator[list[_Segment]]:
    """Collect segments in order as long as they have at most `PIECE` states together."""
    waiting: list[_Segment] = []
    for segment in segments:
        if waiting and sum(s.stop - s.start for s in (*waiting, segment)) > PIECE:
            yield waiting
            waiting = []
        waiting.append(segment)
    if waiting:
        yield waiting


def _columns(segments: list[_Segment], *, tables: bool) -> "list[_Column]":
    """Prepare the variables of a piece; with the step's tables of rollouts, if asked for."""
    step, first = segments[0].step, segments[0].archive
    columns = []
    for name in VARIABLES:
        if name not in first.variables or name in LABELS:
            continue
        if VARIABLES[name].dims[0] == "state":
            columns.append(_Column(name, segments))
        elif tables:
            columns.append(_Column(name, [_Segment(step, first, 0, first.form(name)["shape"][0])]))
    return columns


def _dataset(columns: "list[_Column]") -> xr.Dataset:
    variables: dict[str, Any] = {}
    for column in columns:
        lazy = indexing.LazilyIndexedArray(column)
        dims, attrs = VARIABLES[column.name].dims, variable_attrs(column.name)
        variables[column.name] = xr.Variable(dims, lazy, attrs, fastpath=True)
    coords = {name: variables.pop(name) for name in COORDS if name in variables}
    labels = {name: (name, list(MODELS), variable_attrs(name)) for name in LABELS}
    return xr.Dataset(variables, coords | labels, {"schema_version": SCHEMA_VERSION})


class _Column(BackendArray):
    """One variable of a piece: read when first used, then kept until it is told to forget."""

    def __init__(self, name: str, segments: list[_Segment]) -> None:
        form = segments[0].archive.form(name)
        self.name, self._segments = name, segments
        self.shape = (sum(s.stop - s.start for s in segments), *form["shape"][1:])
        text = form["data_type"] == "string"
        self.dtype = np.dtype(object) if text else np.dtype(form["data_type"])
        self._values: NDArray[Any] | None = None

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        basic = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, basic, self._at)

    def forget(self) -> None:
        """Free what has been read."""
        self._values = None

    def _at(self, places: tuple[Any, ...]) -> NDArray[Any]:
        if self._values is None:
            blocks = [self._read(segment) for segment in self._segments]
            self._values = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return self._values[places]

    def _read(self, segment: _Segment) -> NDArray[Any]:
        block = segment.archive.rows(self.name, *segment.rows)
        if block.shape[1:] != self.shape[1:]:
            raise StoreError(
                f"{segment.archive.path}: a row of {self.name} has shape {block.shape[1:]}, "
                f"but {self.shape[1:]} in the steps before: move it to the run that it belongs to"
            )
        return block
