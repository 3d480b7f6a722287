"""Find the files of dumps, know their format, and read them in the order of their steps."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from opdprobe.errors import ConfigError, RolloutError, shown
from opdprobe.rollout.dumps.evaluations import INSPECT, LM_EVAL
from opdprobe.rollout.dumps.files import PICKLES, kind_of, rows_of
from opdprobe.rollout.dumps.format import Format
from opdprobe.rollout.dumps.nemo_rl import NEMO_RL, NEMO_RL_DISTILLATION
from opdprobe.rollout.dumps.open_instruct import OPEN_INSTRUCT, TINKER
from opdprobe.rollout.dumps.prime_rl import PRIME_RL, VERIFIERS
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.dumps.slime import MILES, MILES_DASHBOARD, SLIME, SLIME_TRAIN
from opdprobe.rollout.dumps.texts import (
    AREAL,
    LLAMAFACTORY,
    SKYRL,
    THUNLP_EVAL,
    THUNLP_ROLLOUT,
)
from opdprobe.rollout.dumps.token_bank import TOKEN_BANK
from opdprobe.rollout.dumps.trl import MS_SWIFT, TRL
from opdprobe.rollout.dumps.verl import VERL, VERL_GENERATION
from opdprobe.rollout.prompt import OnError
from opdprobe.rollout.rollout import Rollout

logger = logging.getLogger("opdprobe")

FORMATS: dict[str, Format] = {
    found.name: found
    for found in (
        VERL,
        VERL_GENERATION,
        TRL,
        MS_SWIFT,
        SLIME,
        SLIME_TRAIN,
        MILES,
        MILES_DASHBOARD,
        PRIME_RL,
        VERIFIERS,
        NEMO_RL,
        NEMO_RL_DISTILLATION,
        OPEN_INSTRUCT,
        TINKER,
        AREAL,
        SKYRL,
        THUNLP_EVAL,
        THUNLP_ROLLOUT,
        LM_EVAL,
        INSPECT,
        LLAMAFACTORY,
        TOKEN_BANK,
    )
}
"""The formats by name. A file is of the first one that its first row fits."""

_DIGITS = re.compile(r"(\d+)")
# Rows that are looked at until one of them can be read.
_LOOKED_AT = 20


class NoDump(RolloutError):
    """There is no file yet."""


class DumpReader:
    """Dumps whose files and format are known, to be read once.

    Parameters
    ----------
    paths
        Files, directories and patterns.
    format
        One of `FORMATS`; None finds it by looking.
    step
        The step of rows of which neither the row nor the file's name says one.
    on_error
        Whether a row that cannot be read raises an error, or is left out and logged.
    on_progress
        Called with (files done, files in total).

    Attributes
    ----------
    files : list of Path
        What will be read, in order.
    format : Format
    left_out : list of str
        Files that will not be read, and why.
    rows_left_out : int
        Rows left out so far.

    Raises
    ------
    RolloutError
        There is no file, or none of a known format, or there are several formats.
    ConfigError
        `format` is not one of `FORMATS`.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        format: str | None = None,
        *,
        step: int | None = None,
        on_error: OnError = "raise",
        on_progress: Callable[[int, int], None] | None = None,
    ):
        if format is not None and format not in FORMATS:
            raise ConfigError(f"format = {format!r}; expected one of {', '.join(FORMATS)}.")
        named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.left_out: list[str] = []
        self.rows_left_out = 0
        self._step, self._on_error, self._on_progress = step, on_error, on_progress
        self._done: set[int] = set()
        self._before: int | None = None
        self._named = named
        files = self._first_files()
        self.format = self._known(files, format)
        self.files = sorted(self._fitting(files), key=self._order)

    def _first_files(self) -> dict[Path, bool]:
        return self._found(self._named)

    def __iter__(self) -> Iterator[Rollout | None]:
        for number, path in enumerate(self.files):
            self._tell(number)
            yield from self._rollouts(path)
        self._tell(len(self.files))

    def _order(self, path: Path) -> tuple[int, list[int | str]]:
        return order(path, self.format.step_in(path))

    def _rollouts(self, path: Path, at_end: Callable[[], bool] | None = None) -> Iterator[Rollout]:
        own = self.format.step_in(path)
        for found in self.format.read_each(path, self._step if own is None else own, at_end):
            if isinstance(found, RolloutError):
                self._skip(found)
                continue
            if found.step != self._before:
                if found.step in self._done:
                    raise RolloutError(
                        f"{found.source}: step {found.step} again, after step {self._before}; "
                        "expected each step's rollouts together: sort the rows by step, or "
                        "leave out those of a run that was resumed."
                    )
                self._done.add(found.step)
                self._before = found.step
            yield found

    def each(
        self, rollouts: Iterable[Rollout | None], change: Callable[[Rollout], Rollout] | None
    ) -> Iterator[Rollout | None]:
        """Yield changed rollouts; treat one that cannot be changed as one that cannot be read."""
        for rollout in rollouts:
            try:
                yield rollout if change is None or rollout is None else change(rollout)
            except RolloutError as error:
                self._skip(error)

    def _tell(self, done: int) -> None:
        if self._on_progress:
            self._on_progress(done, len(self.files))

    def _skip(self, error: RolloutError) -> None:
        if self._on_error == "raise":
            raise RolloutError(
                f"{error} Correct it, or leave such rows out: --on-error skip (on_error='skip')."
            ) from error
        self.rows_left_out += 1
        logger.warning("%s It is left out.", error)

    def _found(self, named: Sequence[str | Path]) -> dict[Path, bool]:
        """Files of a kind that can be read; and whether each was named itself."""
        files: dict[Path, bool] = {}
        for name in [os.fspath(name) for name in named]:
            path = Path(os.path.expanduser(name))
            if path.is_file():
                if kind_of(path) is None:
                    raise RolloutError(
                        f"{path}: a file of kind {path.suffix or path.name!r}; expected .jsonl, "
                        ".json, .csv (also .gz or .zst), .parquet, .eval or .pt."
                    )
                files[path] = True
            elif path.is_dir():
                inside = self._inside(path)
                if not inside:
                    raise NoDump(
                        f"{path}: a directory without dumps; expected .jsonl, .json, .csv, "
                        ".parquet, .eval or .pt files."
                    )
                files.update({file: False for file in inside if file not in files})
            else:
                matched = sorted(map(Path, glob.glob(os.path.expanduser(name), recursive=True)))
                kept = [file for file in matched if file.is_file() and kind_of(file)]
                if not kept:
                    raise NoDump(
                        f"{path}: no such file or directory, and no dump fits it as a pattern; "
                        "expected files, directories or patterns such as 'dump/*.jsonl'."
                    )
                files.update(dict.fromkeys(kept, True))
        return files

    def _inside(self, folder: Path) -> list[Path]:
        found = [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            and kind_of(path)
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        kept: list[Path] = []
        for path in found:
            parts = path.relative_to(folder).parts
            if any(part == "eval" or part.startswith(("eval_", "eval-")) for part in parts):
                self.left_out.append(f"{path}: of an evaluation; name it to read it")
            elif (
                "all" in parts
                and Path(*("effective" if p == "all" else p for p in path.parts)) in found
            ):
                self.left_out.append(f"{path}: also in effective/, which is read")
            else:
                kept.append(path)
        return kept

    def _known(self, files: dict[Path, bool], format: str | None) -> Format:
        if format is not None:
            return FORMATS[format]
        pickles = [path for path in files if kind_of(path) in PICKLES]
        if len(pickles) == len(files):
            names = [found.name for found in FORMATS.values() if found.kinds == PICKLES]
            raise RolloutError(
                f"{pickles[0]}: a pickle, which can run code when it is read; to read it, and of "
                f"it plain values and tensors only, name its format: --format {' or '.join(names)}."
            )
        seen: Counter[str] = Counter()
        first: dict[str, Path] = {}
        for path in files:
            if path not in pickles and (row := first_row(path)) is not None:
                for found in FORMATS.values():
                    if kind_of(path) in found.kinds and found.fits(row.data, path):
                        seen[found.name] += 1
                        first.setdefault(found.name, path)
                        break
        if len(seen) > 1:
            kinds = ", ".join(
                f"{name} ({n} files, such as {first[name]})" for name, n in seen.items()
            )
            raise RolloutError(
                f"{next(iter(files))}: dumps of several formats: {kinds}; expected one: name it "
                "with --format, or name fewer files."
            )
        if not seen:
            path = next(path for path in files if path not in pickles)
            row = first_row(path)
            has = "no row that can be read" if row is None else f"the columns {_columns(row)}"
            raise RolloutError(
                f"{path}: {has}, as no known format has; expected a dump of {', '.join(FORMATS)}: "
                "name one with --format to see what it lacks."
            )
        return FORMATS[next(iter(seen))]

    def _fitting(self, files: dict[Path, bool]) -> list[Path]:
        """Leave out the files in directories that are of another format."""
        kept: list[Path] = []
        for path, is_named in files.items():
            if kind_of(path) not in self.format.kinds:
                reason = f"not of the kinds of {self.format.name}, {', '.join(self.format.kinds)}"
            elif is_named or fits(self.format, path):
                kept.append(path)
                continue
            else:
                reason = f"not of the format {self.format.name}"
            if is_named:
                raise RolloutError(f"{path}: {reason}; expected {self.format.files}.")
            self.left_out.append(f"{path}: {reason}")
        if not kept:
            raise RolloutError(
                f"{next(iter(files))}: {len(files)} files, none of the format {self.format.name}; "
                f"expected {self.format.files}."
            )
        return kept


def fits(format: Format, path: Path) -> bool:
    """Whether a file, of a kind that the format comes in, is of the format."""
    if format.kinds == PICKLES:
        # They are not loaded to be looked at. slime keeps both in folders of their own.
        other = "rollout_data" if format is SLIME_TRAIN else "train_data"
        return other not in path.parts
    row = first_row(path)
    # A file without a row that can be read is not left out in silence: reading names the fault.
    return row is None or format.fits(row.data, path)


def first_row(path: Path) -> Row | None:
    """The first row that can be read, of the first few."""
    rows = islice(rows_of(path, None), _LOOKED_AT)
    return next((row for row in rows if isinstance(row, Row)), None)


def _columns(row: Row) -> str:
    return shown(sorted(map(str, row.data)))


def order(path: Path, step: int | None) -> tuple[int, list[int | str]]:
    """Sort files by step, then by name, in which numbers count as numbers."""
    parts = [int(p) if p.isdecimal() else p for p in _DIGITS.split(str(path))]
    return (-1 if step is None else step), parts


def read_dumps(
    paths: str | Path | Sequence[str | Path],
    format: str | None = None,
    *,
    step: int | None = None,
    on_error: OnError = "raise",
) -> Iterator[Rollout]:
    """Read rollouts that a trainer or an evaluation wrote, one by one.

    Parameters
    ----------
    paths : str, Path or sequence of them
        Files, directories and patterns (``dump/*.jsonl``), of one format. In a directory, files of
        other formats and evaluations in the midst of training (``eval_12.pt``) are left out.
    format : str, optional
        One of `FORMATS`; by default, it is found by looking at the files. Pickles are read only if
        their format is named, and of them plain values and tensors only.
    step : int, optional
        The step of rows of which neither the row nor the file's name says one.
    on_error : {"raise", "skip"}
        Whether a row that cannot be read raises an error, or is left out and logged.

    Yields
    ------
    Rollout
        In the order of steps; those of one step follow one another.

    Raises
    ------
    RolloutError
        No file, none of a known format, several formats; a file or a row that cannot be read, named
        with its line; a step that comes back after another one.
    ConfigError
        `format` is not one of `FORMATS`.
    MissingExtraError
        A package that reads the file is not installed.

    Examples
    --------
    >>> import json, tempfile
    >>> row = {"input": "2+2=", "output": "4", "gts": "4", "score": 1.0, "step": 12}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "12.jsonl").write_text(json.dumps(row))
    ...     (rollout,) = read_dumps(folder)
    >>> rollout.step, rollout.prompt, rollout.response, rollout.correct
    (12, '2+2=', '4', 1.0)
    """
    reader = DumpReader(paths, format, step=step, on_error=on_error)
    return (rollout for rollout in reader if rollout is not None)
