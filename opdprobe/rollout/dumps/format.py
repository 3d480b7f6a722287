"""What a format of dumps is: how to know it, and how its rows become rollouts."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdprobe.errors import RolloutError
from opdprobe.rollout.dumps.files import rows_of
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.rollout import Rollout

Rows = Iterator[Row | RolloutError]


def same(rows: Rows) -> Rows:
    """Leave rows as they are."""
    return rows


_STEP = re.compile(r"(?:^|[_-])(?:step|rollout|completions)[_-]?(\d{1,9})(?=$|[_.-])|^(\d{1,9})$")


def step_in(path: Path) -> int | None:
    """Return the step that a path names: in the file's name, else in that of a folder above it.

    Examples
    --------
    >>> [step_in(Path(p)) for p in ("dump/12.jsonl", "completions_00012.parquet", "step_3/r.jsonl")]
    [12, 12, 3]
    >>> step_in(Path("Qwen3-4B/predictions.jsonl")) is None
    True
    """
    name = path.name.partition(".")[0]
    for part in (name, *reversed(path.parent.parts[-4:])):
        if found := _STEP.search(part):
            if found[2] and part is not name:
                continue  # a folder called 12 may be anything
            return int(found[1] or found[2])
    return None


@dataclass(frozen=True)
class Format:
    """One form in which a trainer or an evaluation writes rollouts.

    Parameters
    ----------
    name
        As ``--format`` takes it.
    level
        What is in it: "A" both models' top-k lists, "B" token ids, "C" text.
    files
        What it is, for messages and the guide.
    kinds
        The kinds of files that it comes in, such as ``.jsonl``.
    fits
        Whether a file is of this format, by its first row and its path. Pickles have no row to look
        at before they are loaded: their formats are chosen by name only.
    rollouts
        Turns one row into rollouts.
    loss
        What the format does not hold.
    grouped
        Joins rows that make one rollout.
    step_in
        Finds the step that a file's path names.
    """

    name: str
    level: str
    files: str
    kinds: tuple[str, ...]
    fits: Callable[[Mapping[str, Any], Path], bool]
    rollouts: Callable[[Row], Iterable[Rollout]]
    loss: str
    grouped: Callable[[Rows], Rows] = same
    step_in: Callable[[Path], int | None] = step_in

    def read(self, path: Path, step: int | None = None) -> Iterator[Rollout]:
        """Yield a file's rollouts, one by one.

        Parameters
        ----------
        path
            A file of this format.
        step
            The step of rows that do not say theirs.

        Raises
        ------
        RolloutError
            At the first row that cannot be read; names it and what was expected.
        """
        for found in self.read_each(path, step):
            if isinstance(found, RolloutError):
                raise found
            yield found

    def read_each(
        self,
        path: Path,
        step: int | None = None,
        at_end: Callable[[], bool] | None = None,
    ) -> Iterator[Rollout | RolloutError]:
        """Yield a file's rollouts; in place of a row that cannot be read, the error."""
        for row in self.grouped(rows_of(path, step, at_end)):
            if isinstance(row, RolloutError):
                yield row
                continue
            try:
                yield from self.rollouts(row)
            except RolloutError as error:
                yield error


def has(*names: str, without: tuple[str, ...] = ()) -> Callable[[Mapping[str, Any], Path], bool]:
    """Return a test of whether a row has some columns, and lacks others."""
    wanted, unwanted = set(names), set(without)
    return lambda row, _: wanted <= row.keys() and unwanted.isdisjoint(row)
