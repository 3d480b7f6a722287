"""Read the states of a run in pieces, so that a pass through a run of any size fits in memory.

A piece holds at most 131,072 states, from several small steps or a part of a large one. It reads
and decodes a variable when the variable is first used.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
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

PIECE = 131_072  # states; the parts of a large step are then its chunks
# Limits of a batch of small steps: about 50,000 states (at k = 16), and the number of open files.
_BATCH_BYTES = 8 * 2**20
_BATCH_STEPS = 64


class Piece(NamedTuple):
    """Some states of a run.

    Attributes
    ----------
    states : xarray.Dataset
        Their variables; valid until the next piece is requested. If the batch is one step, the
        step's rollout tables are included.
    parts : list of (step, n_rollout, n_state)
        The steps of these states, in order: each step's total number of rollouts, and its number of
        states in this piece.
    prompts : list of ndarray of str (n_rollout,)
        The prompt of each rollout of each of these steps; None for a step without prompts.
    """

    states: xr.Dataset
    parts: list[tuple[int, int, int]]
    prompts: list[NDArray[Any] | None]


class _Segment(NamedTuple):
    step: int
    archive: StepArchive | JoinedArchive
    start: int
    stop: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Arguments of `StepArchive.rows`; none for all rows, which are read at once."""
        whole = self.start == 0 and self.stop == self.archive.n_state
        return () if whole else (self.start, self.stop)


def batches(
    run: Run, *, joined: bool = True, steps: Collection[int] | None = None
) -> list[list[int]]:
    """Divide a run's steps into batches of a few megabytes, each read by one process.

    Parameters
    ----------
    run : Run
        The run.
    joined : bool
        Whether a batch may hold several small steps; otherwise, each batch is one step.
    steps : collection of int, optional
        The steps to divide. Default: all.
    """
    found: list[list[int]] = []
    filled = 0
    for step, files in step_files(run.path).items():
        if steps is not None and step not in steps:
            continue
        size = sum(file.stat().st_size for file in files) if joined else _BATCH_BYTES
        if not found or filled + size > _BATCH_BYTES or len(found[-1]) == _BATCH_STEPS:
            found.append([])
            filled = 0
        found[-1].append(step)
        filled += size
    return found


def pieces(run: Run, steps: Sequence[int]) -> Iterator[Piece]:
    """Read the states of some steps in pieces; their files stay open meanwhile.

    Parameters
    ----------
    run : Run
        The run.
    steps : sequence of int
        A batch of its steps.

    Yields
    ------
    Piece
        States in the order of the steps; a step without states is in a piece, too.

    Raises
    ------
    StoreError
        A file is missing, torn, not a step, or differs in form from the first.
    """
    with ExitStack() as stack:
        archives = ((step, stack.enter_context(open_step(run.path, step))) for step in steps)
        for segments in _together(_segments(archives)):
            columns = _columns(segments, tables=len(steps) == 1)
            parts = [(s.step, s.archive.n_rollout, s.stop - s.start) for s in segments]
            yield Piece(_dataset(columns), parts, [_prompts(s.archive) for s in segments])
            # A Dataset and its accessors refer to each other: without this, about a hundred
            # megabytes would wait for the garbage collector.
            for column in columns:
                column.forget()


def _prompts(archive: StepArchive | JoinedArchive) -> NDArray[Any] | None:
    return archive.rows("prompt_id") if "prompt_id" in archive.variables else None


def _segments(archives: Iterable[tuple[int, StepArchive | JoinedArchive]]) -> Iterator[_Segment]:
    """Cut steps into segments of at most `PIECE` states; a step without states gives one, too."""
    for step, archive in archives:
        for start in range(0, max(archive.n_state, 1), PIECE):
            yield _Segment(step, archive, start, min(start + PIECE, archive.n_state))


def _together(segments: Iterable[_Segment]) -> Iterator[list[_Segment]]:
    """Group consecutive segments that have at most `PIECE` states together."""
    waiting: list[_Segment] = []
    for segment in segments:
        if waiting and sum(s.stop - s.start for s in (*waiting, segment)) > PIECE:
            yield waiting
            waiting = []
        waiting.append(segment)
    if waiting:
        yield waiting


def _columns(segments: list[_Segment], *, tables: bool) -> "list[_Column]":
    """Prepare the variables of a piece, with the step's rollout tables if requested."""
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
    """One variable of a piece: read when first used, then kept until `forget` is called."""

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
                f"{segment.archive.path}: a row of {self.name} has shape {block.shape[1:]}; "
                f"expected {self.shape[1:]}, as in the steps before: move the file to its own run."
            )
        return block
