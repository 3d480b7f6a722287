"""Find the rows of a prompt set by its name: a file, a directory or a data set."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

from opdprobe.errors import MissingExtraError, PromptError, shown
from opdprobe.rollout.row_files import KINDS, kind_of, read_file

# One part of a split as `datasets` writes it, such as train or train[:10%]; joined by plus signs.
_PART = r"[A-Za-z_]\w*(?:\[[^\]]*\])?"
_NAMED = re.compile(rf"(?P<base>.+?)(?::(?P<config>[\w.-]+))?:(?P<split>{_PART}(?:\+{_PART})*)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# How `datasets` names the shards of a split, and the names in which it looks for one.
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}\b")
_KEYWORD = re.compile(
    r"(?<![a-z0-9])(?:(train|training)|(test|testing|eval|evaluation)|(validation|valid|val|dev))"
    r"(?![a-z0-9])"
)
_SPLITS = ("train", "test", "validation")


def read_rows(name: str, limit: int | None = None) -> list[Any]:
    """Read the rows of a file, a directory or a data set.

    Parameters
    ----------
    name : str
        As `path` of `opdprobe.load_prompts`.
    limit : int, optional
        Read the first `limit` rows only.

    Returns
    -------
    list
        Rows as mappings. In place of a row that cannot be read is the `PromptError` that says why.

    Raises
    ------
    PromptError
        There is nothing of that name, or it cannot be read; or it has several splits or kinds of
        files, and `name` does not say which.
    MissingExtraError
        A package that reads it is not installed.
    """
    path = Path(name)
    if path.is_file():
        return read_file(path, limit)
    if path.is_dir():
        return _directory(path, None, limit)
    named = _NAMED.fullmatch(name)
    base, config, split = named.group("base", "config", "split") if named else (name, None, None)
    if Path(base).is_file() or (config is not None and Path(base).is_dir()):
        kind = "a file, which has" if Path(base).is_file() else "a directory, which has"
        what = "no splits" if Path(base).is_file() else "no configurations: name the one inside it"
        raise PromptError(f"{name}: {base} is {kind} {what}.")
    if Path(base).is_dir():
        return _directory(Path(base), split, limit)
    is_id = _HUB_ID.fullmatch(base) and not Path(base).parent.is_dir()  # else a path, mistyped
    if kind_of(path) is None and (is_id or (named and "/" not in base)):
        return _hub(name, base, config, split, limit)
    raise PromptError(f"{name}: no such file; expected {KINDS}.")


def _directory(path: Path, split: str | None, limit: int | None) -> list[Any]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        datasets = _datasets(f"{path}, which datasets saved,")
        try:
            found = datasets.load_from_disk(str(path))
        except Exception as error:  # whatever json, pyarrow or datasets raise on a damaged one
            raise PromptError(
                f"{path}: not a readable data set ({error}): check that it is complete."
            ) from error
        return _rows(found, str(path), split, limit)
    rows: list[Any] = []
    shards = _shards(path, split)
    for shard in shards:
        left = None if limit is None else limit - len(rows)
        if left == 0:
            break
        rows += [_in_file(row, shard, len(shards)) for row in read_file(shard, left)]
    return rows


def _in_file(row: Any, shard: Path, n_shards: int) -> Any:
    """Name the shard in which a row cannot be read."""
    if isinstance(row, PromptError) and n_shards > 1:
        return PromptError(f"{shard.name}, {row}")
    return row


def _shards(path: Path, split: str | None) -> list[Path]:
    """The files of a directory that make one set, in the order of their names."""
    by_kind: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.is_file() and (kind := kind_of(file)):
            by_kind[kind].append(file)
    if len(by_kind) > 1:
        by_kind.pop(".json", None)  # describes the others, such as dataset_infos.json
    if not by_kind:
        raise PromptError(f"{path}: a directory without prompt files; expected {KINDS}.")
    if len(by_kind) > 1:
        raise PromptError(
            f"{path}: a directory of {', '.join(sorted(by_kind))} files; expected one kind: name "
            "a file in it."
        )
    by_split: dict[str | None, list[Path]] = defaultdict(list)
    for file in next(iter(by_kind.values())):
        by_split[_split_of(file.relative_to(path))].append(file)
    named = sorted(name for name in by_split if name is not None)
    if split is None and len(by_split) > 1:
        raise PromptError(
            f"{path}: a directory with the splits {shown(named)}"
            + (" and other files" if None in by_split else "")
            + f"; name one, such as {path}:{named[0]}, or a file."
        )
    if split is not None and split not in by_split:
        has = f"the splits {shown(named)}" if named else "no splits"
        raise PromptError(
            f"{path}:{split}: the directory has {has}; name one of them, or a file in it."
        )
    files = next(iter(by_split.values())) if split is None else by_split[split]
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise PromptError(
            f"{path}: the files are in several directories, {shown(folders)}: name one of them."
        )
    return files


def _split_of(file: Path) -> str | None:
    """Split that a file belongs to by its name or its folders'; None if they do not say."""
    if shard := _SHARD.match(file.name):
        return shard[1]
    for part in reversed(file.parts):
        if found := _KEYWORD.search(part.lower()):
            return next(name for name, group in zip(_SPLITS, found.groups(), strict=True) if group)
    return None


def _hub(
    name: str, base: str, config: str | None, split: str | None, limit: int | None
) -> list[Any]:
    datasets = _datasets(f"{name}: no such file or directory; reading it as a data set")
    try:
        found = datasets.load_dataset(base, config, split=split)
    except Exception as error:  # whatever datasets and the libraries below it raise
        raise PromptError(
            f"{name}: no such file or directory, nor a data set that can be loaded ({error}); "
            f"expected {KINDS}."
        ) from error
    return _rows(found, name, None, limit)


def _datasets(what: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise MissingExtraError(
            f"{what} needs datasets, which is not installed: run pip install datasets first."
        ) from error
    return datasets


def _rows(found: Any, name: str, split: str | None, limit: int | None) -> list[Any]:
    """Rows of a `datasets.Dataset`, or of one split of a `datasets.DatasetDict`."""
    if isinstance(found, dict):
        if split is None and len(found) == 1:
            split = next(iter(found))
        if split not in found:
            raise PromptError(
                f"{name}: a data set with the splits {shown(sorted(found))}; name one of them "
                f"after a colon, such as {name}:{min(found, default='train')}."
            )
        found = found[split]
    elif split is not None and split != str(found.split):
        raise PromptError(f"{name}:{split}: the data set has no splits; leave {split} out.")
    # Python's own types, not those of a format that was saved with it.
    return list(islice(found.with_format(None), limit))
