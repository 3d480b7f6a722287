"""A teacher's top-k lists on fixed texts: know the format, and read texts and lists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdprobe.errors import ConfigError, RolloutError, VocabularyError, shown
from opdprobe.models.chat_template import turn_end
from opdprobe.models.vocabulary import tokenizer_hash
from opdprobe.rollout.caches import axolotl, distillkit, megatron, own
from opdprobe.rollout.dumps.files import kind_of, rows_of
from opdprobe.rollout.dumps.read import first_row, order
from opdprobe.rollout.dumps.row import Row
from opdprobe.rollout.dumps.text import TextEncoder
from opdprobe.rollout.prompt import OnError
from opdprobe.rollout.rollout import Rollout
from opdprobe.store import open_run
from opdprobe.store.budget import most_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("opdprobe")

_ROWS = (".parquet", ".jsonl", ".json")


def find_cache(path: str | Path) -> str | None:
    """Return the format of a cache, or None if a path is none.

    Parameters
    ----------
    path : str or Path
        A file or a directory.

    Returns
    -------
    str or None
        ``"run"`` (one of ours), ``"distillkit"``, ``"axolotl"`` or ``"megatron"``.

    Raises
    ------
    RolloutError
        It is a cache of which the teacher's log-probabilities or the texts are not known.
    """
    path = Path(path).expanduser()
    if (path / "run.json").is_file():
        return "run"
    files = _files(path)
    if any(megatron.NAME.fullmatch(file.name) for file in files):
        return "megatron"
    if older := next((file for file in files if megatron.OLDER.fullmatch(file.name)), None):
        raise RolloutError(
            f"{older}: an older cache of Megatron's, without token ids, or in its first layout of "
            "version 3; expected dpR__A-B.inputs.tar beside dpR__A-B.targets.tar "
            "(--logits-save-inputs)."
        )
    for file in files:
        if kind_of(file) not in _ROWS or (row := first_row(file)) is None:
            continue
        if set(distillkit.COLUMNS) <= row.data.keys():
            return "distillkit"
        if {"packed_indices", "exact_values", "coeffs"} <= row.data.keys():
            raise RolloutError(
                f"{row.source}: DistillKit's older rows, which hold logits, not log-probabilities: "
                f"what the teacher gives to a token is lost; expected {shown(distillkit.COLUMNS)}."
            )
        axolotl.check_not_prepared(row)
        return "axolotl" if axolotl.fits(row.data) else None
    return None


class TeacherCache:
    """A teacher's top-k lists on fixed texts, as the teacher of these texts.

    Parameters
    ----------
    path : str or Path
        A run of ours, or a file or a directory that DistillKit, axolotl or Megatron (version 3)
        wrote. The format is found by looking.
    tokenizer : PreTrainedTokenizerBase, optional
        That of the student, which text is tokenised with. Only axolotl's data sets have text.
    on_error : {"raise", "skip"}
        Whether a row that cannot be used raises an error, or is left out and logged.
    chat_template_kwargs : mapping, optional
        For text: variables for the chat template, as the teacher saw them.

    Attributes
    ----------
    path : Path
    format : str
        As from `find_cache`.
    rows_left_out : int
        Rows left out so far.

    Raises
    ------
    RolloutError
        The path is no cache, or one whose lists cannot be used.

    Examples
    --------
    >>> cache = TeacherCache("captured/")                                      # doctest: +SKIP
    >>> score_rollouts("my/student", cache, cache.rollouts(), "runs/x", k=16)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        on_error: OnError = "raise",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.path = Path(path).expanduser()
        self.rows_left_out = 0
        self._tokenizer, self._on_error = tokenizer, on_error
        self._chat_template_kwargs = chat_template_kwargs
        found = find_cache(self.path)
        if found is None:
            raise RolloutError(
                f"{self.path}: no cache of a teacher's lists; expected a run of opdprobe, or what "
                "DistillKit, axolotl or Megatron (version 3) wrote."
            )
        self.format = found

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def attrs(self) -> dict[str, Any]:
        """How a run describes the teacher."""
        described: dict[str, Any] = {"name": self.path.resolve().name, "cache": self.format}
        if self.format == "run":
            teacher = open_run(self.path).attrs.get("teacher")
            if isinstance(teacher, Mapping) and isinstance(teacher.get("name"), str):
                described["name"] = teacher["name"]
        return described

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer that is not the cache's, as far as the cache says.

        Raises
        ------
        VocabularyError
            It is another one.
        ConfigError
            The cache was recorded at another temperature than 1.
        """
        if self.format == "run":
            attrs = open_run(self.path).attrs
            theirs, ours = attrs.get("tokenizer_hash"), tokenizer_hash(tokenizer)
            if theirs is not None and theirs != ours:
                raise VocabularyError(
                    f"{self.path}: recorded with a tokenizer of hash {shown(theirs)}, and the "
                    f"student's has {ours}: give a student of the same vocabulary."
                )
            if attrs.get("temperature", 1.0) != 1:
                raise ConfigError(
                    f"{self.path}: recorded at temperature {shown(attrs['temperature'])}; expected "
                    "1: a list of k tokens cannot be put to another temperature."
                )
        if self.format == "distillkit":
            for folder in sorted({file.parent for file in self._row_files()}):
                settings = distillkit.compression(folder / distillkit.CONFIG)
                distillkit.check_vocabulary(settings, len(tokenizer))

    def rollouts(self) -> Iterator[Rollout]:
        """Yield the cache's texts, each with `Rollout.teacher_lists`.

        A run's steps and prompts are its own. Elsewhere, all texts are of step 0, and each is a
        prompt of its own. Of texts that do not say where an answer begins, the first token is the
        prompt.

        Raises
        ------
        RolloutError
            A file or a row cannot be used; names it.
        ConfigError
            The cache has text, and there is no tokenizer.
        """
        if self.format == "run":
            yield from own.rollouts(self.path)
        elif self.format == "megatron":
            files = [file for file in _files(self.path) if megatron.NAME.fullmatch(file.name)]
            for pair in megatron.pairs(files):
                yield from megatron.rollouts(*pair)
        else:
            read = self._distillkit() if self.format == "distillkit" else self._axolotl()
            for file in self._row_files():
                yield from self._rows(file, read)

    def _row_files(self) -> list[Path]:
        files = [file for file in _files(self.path) if kind_of(file) in _ROWS]
        if self.format == "distillkit":
            files = [file for file in files if kind_of(file) == ".parquet"]
        return sorted(files, key=lambda file: order(file, None))

    def _rows(
        self, file: Path, read: Callable[[Row, Path, str], Iterable[Rollout]]
    ) -> Iterator[Rollout]:
        for number, row in enumerate(rows_of(file, 0)):
            try:
                if isinstance(row, RolloutError):
                    raise row
                yield from read(row, file, f"{file.name.partition('.')[0]}-{number}")
            except RolloutError as error:
                if self._on_error == "raise":
                    raise RolloutError(
                        f"{error} Correct it, or leave such rows out: --on-error skip "
                        "(on_error='skip')."
                    ) from error
                self.rows_left_out += 1
                logger.warning("%s It is left out.", error)

    def _distillkit(self) -> Callable[[Row, Path, str], Iterable[Rollout]]:
        settings = {
            folder: distillkit.compression(folder / distillkit.CONFIG)
            for folder in {file.parent for file in self._row_files()}
        }

        def read(row: Row, file: Path, name: str) -> Iterator[Rollout]:
            most = most_bytes(file.stat().st_size)
            return distillkit.rollouts(row, settings[file.parent], name, most)

        return read

    def _axolotl(self) -> Callable[[Row, Path, str], Iterable[Rollout]]:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise ConfigError(
                f"{self.path}: text, which needs the student's tokenizer: pass it (tokenizer=, "
                "--tokenizer)."
            )
        end = turn_end(tokenizer)
        ends: list[Any] = [*(end.ids[:1] if end else ()), tokenizer.eos_token_id]
        known = [one for one in ends if isinstance(one, int)]
        encoder = TextEncoder(tokenizer, known, self._chat_template_kwargs)

        def read(row: Row, file: Path, name: str) -> list[Rollout]:
            axolotl.check_not_prepared(row)
            return [axolotl.rollout(row, name, encoder)]

        return read


def _files(path: Path) -> list[Path]:
    """Files of a cache: one, or those in a directory."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    ]
