"""The files of a step: one, or one part per process that recorded it.

``steps/000120.zarr.zip``, or ``steps/000120.1-of-2.zarr.zip`` and ``steps/000120.2-of-2.zarr.zip``.
A part is a complete step file of some of the step's rollouts; the parts in order are the step. A
step counts as recorded only if none of its parts is missing.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.store.step_decode import MissingStepError, StepArchive, open_archive, torn

# A step is an int32, and has one name.
_NAME = re.compile(
    r"(\d{6}|[1-9]\d{6,8})(?:\.([1-9]\d{0,5})-of-([1-9]\d{0,5}))?\.zarr\.zip", re.ASCII
)

LABELS = ("model", "support")
_SAME = (*LABELS, "label_name")  # equal in all parts

Part = tuple[int, int]  # rank, from 0, and number of parts


def step_path(run_dir: Path, step: int, part: Part = (0, 1)) -> Path:
    """Return the path of a step's file, or of a part of it, whether or not it exists."""
    if step < 0:
        raise StoreError(f"step = {step}; expected >= 0.")
    rank, size = part
    which = "" if size == 1 else f".{rank + 1}-of-{size}"
    return run_dir / "steps" / f"{step:06d}{which}.zarr.zip"


def list_files(run_dir: Path) -> dict[Path, tuple[int, Part]]:
    """List all files of steps, complete or not, in no particular order."""
    found = {}
    for path in (run_dir / "steps").glob("*.zarr.zip"):
        if name := _NAME.fullmatch(path.name):
            step, which, size = name.groups(default="1")
            found[path] = int(step), (int(which) - 1, int(size))
    return found


def step_files(run_dir: Path) -> dict[int, tuple[Path, ...]]:
    """List the files of each recorded step, both in order."""
    found: dict[tuple[int, int], dict[int, Path]] = {}
    for path, (step, (rank, size)) in list_files(run_dir).items():
        if rank < size:
            found.setdefault((step, size), {})[rank] = path
    whole = {key: files for key, files in found.items() if len(files) == key[1]}
    # The fewest parts win if a step was recorded with different numbers of them.
    return {
        step: tuple(path for _, path in sorted(whole[step, size].items()))
        for step, size in sorted(whole, key=lambda key: (key[0], -key[1]))
    }


def list_steps(run_dir: Path) -> list[int]:
    """List the recorded steps of a run, in order; one that is still being written is left out."""
    return list(step_files(run_dir))


class JoinedArchive:
    """The parts of a step, opened for reading as if they were one file; made by `open_files`.

    Attributes and methods are those of `opdprobe.store.step_decode.StepArchive`.
    """

    def __init__(self, archives: Sequence[StepArchive]) -> None:
        self._archives = archives
        self.path = archives[0].path
        self.variables = archives[0].variables
        self.attributes = archives[0].attributes
        self.n_state = sum(archive.n_state for archive in archives)
        self.n_rollout = sum(archive.n_rollout for archive in archives)
        self.most_bytes = sum(archive.most_bytes for archive in archives)

    def check_sizes(self) -> None:
        """Check the sizes of each part."""
        for archive in self._archives:
            archive.check_sizes()

    def form(self, variable: str) -> dict[str, Any]:
        """Read the metadata of a variable, with the rows of all parts."""
        if variable in _SAME:
            return self._archives[0].form(variable)
        first, *others = (archive.form(variable) for archive in self._archives)
        n = sum(form["shape"][0] for form in (first, *others))
        types = {form["data_type"] for form in (first, *others)}
        # `finished` is not bool in a part of which it is partly unknown.
        joined = types.pop() if len(types) == 1 else np.result_type(*types).name
        return first | {"shape": [n, *first["shape"][1:]], "data_type": joined}

    def rows(self, variable: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Decode rows of a variable; `rollout` counts through all parts."""
        if variable in _SAME:
            return self._archives[0].rows(variable, start, stop)
        blocks: list[NDArray[Any]] = []
        first_row = first_rollout = 0
        for archive in self._archives:
            n = archive.form(variable)["shape"][0]
            # Rows of this part; none if the requested rows lie in other parts.
            begin = _clamp(start - first_row, 0, n)
            end = n if stop is None else _clamp(stop - first_row, begin, n)
            block = archive.rows(variable, begin, end)
            if blocks and block.shape[1:] != blocks[0].shape[1:]:
                raise torn(archive.path, f"{variable} differs in shape from the first part's")
            if variable == "rollout":
                block = block + block.dtype.type(first_rollout)
            blocks.append(block)
            first_row += n
            first_rollout += archive.n_rollout
        return np.concatenate(blocks)


def _clamp(place: int, low: int, high: int) -> int:
    return min(max(place, low), high)


@contextmanager
def open_files(files: Sequence[Path]) -> Iterator[StepArchive | JoinedArchive]:
    """Open the files of a step; they are closed at the end of the block.

    Raises
    ------
    StoreError
        A file is missing, torn, or not a step.
    """
    with ExitStack() as stack:
        archives = [stack.enter_context(open_archive(file)) for file in files]
        yield archives[0] if len(archives) == 1 else JoinedArchive(archives)


@contextmanager
def open_step(run_dir: Path, step: int) -> Iterator[StepArchive | JoinedArchive]:
    """Open a step of a run, as `open_files`."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(open_archive(step_path(run_dir, step)))
        except MissingStepError:  # listing the files first would cost a request
            if not (files := step_files(run_dir).get(step)):
                raise
            archive = stack.enter_context(open_files(files))
        yield archive
