"""What a format of dumps is: how to know it, and how its rows become rollouts."""

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
    """

    name: str
    level: str
    files: str
    kinds: tuple[str, ...]
    fits: Callable[[Mapping[str, Any], Path], bool]
    rollouts: Callable[[Row], Iterable[Rollout]]
    loss: str
    grouped: Callable[[Rows], Rows] = same

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

    def read_each(self, path: Path, step: int | None = None) -> Iterator[Rollout | RolloutError]:
        """Yield a file's rollouts; in place of a row that cannot be read, the error."""
        for row in self.grouped(rows_of(path, step)):
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
