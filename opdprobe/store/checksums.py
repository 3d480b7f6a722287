"""Checksums of a checkpoint, of the run's text files up to its step, and of the run's tokenizer.

Weights carry no checksum of their own, and a flipped bit in a text can turn one number into
another. The checksum file lies in the checkpoint and is written before the checkpoint gets its
final name.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from opdprobe.errors import StoreError
from opdprobe.store.files import OddFileError, regular, within
from opdprobe.store.safe_text import parse_json

CHECKSUMS = "checksums.json"
LINES = ("metrics.jsonl", "evaluations.jsonl")
TEXTS = ("run.json", "config.yaml", *LINES)
TOKENIZER = "tokenizer"
"""Directory of the run's own tokenizer, which does not change once it is written."""


class Fault(NamedTuple):
    """What is wrong with a file of a run."""

    path: Path
    what: str


class Sum(NamedTuple):
    """Length and checksum of the first bytes of a file."""

    n_bytes: int
    sha256: str


def write_checksums(checkpoint: Path, run_dir: Path) -> None:
    """Record length and SHA-256 of a checkpoint's files and of the run's texts and tokenizer.

    Parameters
    ----------
    checkpoint : pathlib.Path
        Its directory, complete except for the checksum file.
    run_dir : pathlib.Path
        Directory of the run.
    """
    files = checkpoint_files(checkpoint)
    files |= {name: run_dir / name for name in TEXTS if (run_dir / name).exists()}
    files |= tokenizer_files(run_dir)
    sums = {}
    for name, path in files.items():
        size = path.stat().st_size
        sums[name] = {"bytes": size, "sha256": _sha256(path, size)}
    (checkpoint / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def read_checksums(checkpoint: Path) -> dict[str, Sum]:
    """Read what `write_checksums` recorded, by file name.

    Raises
    ------
    StoreError
        The checksum file is missing or torn.
    """
    path = checkpoint / CHECKSUMS
    try:
        return {
            name: Sum(int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in parse_json(within(path).read_bytes()).items()
        }
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; expected checksums of files.") from None
    except (ValueError, OverflowError, AttributeError, TypeError, LookupError) as error:
        raise StoreError(f"{path} is torn ({error}); expected checksums of files.") from error


def check_checkpoint(checkpoint: Path) -> list[Fault]:
    """Compare the files of a checkpoint with their checksums.

    Parameters
    ----------
    checkpoint : pathlib.Path
        Its directory.

    Returns
    -------
    list of Fault
        One entry per file that is missing, unknown or changed; empty if there is none.
    """
    try:
        sums = read_checksums(checkpoint)
    except StoreError as error:
        return [Fault(checkpoint / CHECKSUMS, str(error))]
    files = checkpoint_files(checkpoint)
    missing = sorted(name for name in sums.keys() - files.keys() if not _of_run(name))
    faults = [Fault(checkpoint / name, "is missing") for name in missing]
    for name, path in files.items():
        if name not in sums:
            faults.append(Fault(path, "does not belong to the checkpoint"))
        elif (reason := _leads_out(path, checkpoint.parent.parent)) is not None:
            faults.append(Fault(path, reason))
        elif not _fits(path, sums[name]):
            faults.append(Fault(path, "is not as it was written"))
    return faults


def check_texts(checkpoint: Path, run_dir: Path) -> list[Fault]:
    """Compare the run's texts and tokenizer with the checksums that a checkpoint has of them.

    Checkpoints of older versions have none of the tokenizer.
    """
    try:
        sums = read_checksums(checkpoint)
    except StoreError:  # `check_checkpoint` reports it
        return []
    faults = []
    for name in filter(_of_run, sums):
        path = run_dir / name
        if (reason := _leads_out(path, run_dir)) is not None:
            faults.append(Fault(path, reason))
        elif not _fits(path, sums[name], grown=name in LINES):
            faults.append(Fault(path, f"is not as it was when {checkpoint} was written"))
    own = tokenizer_files(run_dir)
    if not own.keys().isdisjoint(sums):
        added = sorted(own.keys() - sums.keys())
        faults += [Fault(own[name], "does not belong to the run's tokenizer") for name in added]
    return faults


def checkpoint_files(checkpoint: Path) -> dict[str, Path]:
    """List the files of a checkpoint by relative name, without the checksum file."""
    found = (p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != CHECKSUMS)
    return {path.relative_to(checkpoint).as_posix(): path for path in found}


def tokenizer_files(run_dir: Path) -> dict[str, Path]:
    """List the files of a run's own tokenizer by their names in the run; empty if it has none."""
    found = (path for path in sorted((run_dir / TOKENIZER).rglob("*")) if path.is_file())
    return {path.relative_to(run_dir).as_posix(): path for path in found}


def _of_run(name: str) -> bool:
    """Whether a file that a checkpoint has a checksum of lies in the run, beside checkpoints."""
    return name in TEXTS or re.fullmatch(rf"{TOKENIZER}(/[\w.-]+){{1,2}}", name) is not None


def _fits(path: Path, noted: Sum, *, grown: bool = False) -> bool:
    """Return whether a file matches its checksum; with `grown`, whether its beginning does."""
    try:
        size = path.stat().st_size
        long_enough = size >= noted.n_bytes if grown else size == noted.n_bytes
        return long_enough and _sha256(path, noted.n_bytes) == noted.sha256
    except OSError:  # missing, or on a part of the disk that cannot be read
        return False


def _leads_out(path: Path, run_dir: Path) -> str | None:
    try:
        within(path, run_dir)
    except OddFileError as error:
        return f"cannot be read ({error})"
    return None


def _sha256(path: Path, n_bytes: int) -> str:
    digest = hashlib.sha256()
    with regular(path).open("rb") as file:
        while n_bytes > 0 and (block := file.read(min(n_bytes, 2**20))):
            digest.update(block)
            n_bytes -= len(block)
    return digest.hexdigest()
