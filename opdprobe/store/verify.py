"""Verify that every file of a run is as it was written.

A step file carries checksums of its content; those of the other files are in the last checkpoint
(`opdprobe.store.checksums`).
"""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

from opdprobe.errors import StoreError
from opdprobe.store.checksums import (
    LINES,
    TEXTS,
    Fault,
    check_checkpoint,
    check_texts,
    checkpoint_files,
    read_checksums,
    tokenizer_files,
)
from opdprobe.store.files import read_entries, within
from opdprobe.store.run import open_run
from opdprobe.store.safe_text import parse_json, parse_yaml
from opdprobe.store.schema import validate
from opdprobe.store.step import read_step
from opdprobe.store.step_parts import list_files, step_files, step_path

_MOST_MISSING = 1000  # steps that are listed
RESUME = "resume the run"


class Verification(NamedTuple):
    """What `verify_run` found.

    Attributes
    ----------
    n_files : int
        Number of files that were read.
    faults : list of Fault
        What is wrong, one entry per file; empty if the run is as it was written.
    unproven : list of pathlib.Path
        Text files that can be read, but that no checkpoint has a checksum of: a changed number in
        them would go unnoticed.
    """

    n_files: int
    faults: list[Fault]
    unproven: list[Path]


def verify_run(path: str | Path) -> Verification:
    """Read all files of a run to their ends and compare them with their checksums.

    No process should be writing the run meanwhile. Files derived from a run (pages, figures, sums)
    are left out, and so is its tokenizer if no checkpoint has checksums of it.

    Parameters
    ----------
    path : path-like
        Directory of the run.

    Returns
    -------
    Verification
        How many files were read, and what is wrong with which of them.

    Raises
    ------
    StoreError
        `path` is not a directory.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     file = synthetic_run(folder, steps=[0, 1]).path / "steps/000001.zarr.zip"
    ...     n_bytes = file.write_bytes(file.read_bytes()[:-1])
    ...     found = verify_run(folder)
    ...     found.n_files, [fault.path.name for fault in found.faults]
    (5, ['000001.zarr.zip'])
    """
    folder = Path(path)
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a directory; expected the directory of a run.")
    texts = [folder / name for name in TEXTS if (folder / name).exists()]
    steps = list_files(folder)
    checkpoints = [p for p in sorted((folder / "checkpoints").glob("*")) if p.name.isdecimal()]
    faults = _text(folder, texts)
    for file in sorted(steps):
        faults += _step(file, steps[file][0])
    faults += _missing(folder, max((int(c.name) for c in checkpoints), default=0))
    summed: set[str] = set()
    for checkpoint in checkpoints:
        own = check_checkpoint(checkpoint)
        faults += [*own, *check_texts(checkpoint, folder)]
        if not own:
            summed |= read_checksums(checkpoint).keys()
    first: dict[Path, Fault] = {}  # the first fault of a file says most
    for fault in faults:
        first.setdefault(fault.path, fault)
    return Verification(
        len(texts)
        + len(steps)
        + sum(len(checkpoint_files(c)) for c in checkpoints)
        + len(tokenizer_files(folder).keys() & summed),
        list(first.values()),
        [text for text in texts if text.name not in summed],
    )


def _text(folder: Path, texts: list[Path]) -> list[Fault]:
    faults = []
    for name, parse in (("run.json", parse_json), ("config.yaml", parse_yaml)):
        try:
            if not isinstance(parse(within(folder / name).read_text(encoding="utf-8")), dict):
                raise ValueError("it does not hold a mapping")
        except (ValueError, OSError) as error:
            faults.append(Fault(folder / name, f"cannot be read ({error}): restore the file"))
    if not faults:
        try:
            open_run(folder)
        except StoreError as error:
            faults.append(Fault(folder / "run.json", str(error)))
    for path in texts:
        if path.name in LINES:
            try:
                read_entries(path)
            except StoreError as error:
                faults.append(Fault(path, str(error)))
                continue
            if path.read_bytes()[-1:] not in (b"", b"\n"):
                faults.append(Fault(path, f"ends in half a line: {RESUME} to drop it"))
    return faults


def _step(path: Path, step: int) -> list[Fault]:
    try:
        ds = read_step([path])
        validate(ds)
    except StoreError as error:
        return [Fault(path, str(error))]
    except OSError as error:  # the disk failed
        return [Fault(path, f"cannot be read ({error})")]
    found = sorted(set(ds["step"].values.tolist()) - {step})
    return [Fault(path, f"holds step {found[0]}: rename the file to match")] if found else []


def _missing(folder: Path, checkpoint: int) -> list[Fault]:
    """Report steps that are missing, and steps of which only some parts exist.

    A step is missing if it lies before a checkpoint or before another step, both of which are
    written later, and if the run was configured to record it or logged metrics of its recording.
    """
    recorded = step_files(folder)
    whole = {file for files in recorded.values() for file in files}
    faults = [
        Fault(path, f"is part {which + 1} of {n} of a step whose other parts are missing")
        for path, (_, (which, n)) in sorted(list_files(folder).items())
        if path not in whole
    ]
    try:
        every = open_run(folder).config.get("record_every")
        entries = read_entries(folder / LINES[0])
    except StoreError:  # reported already
        return faults
    if every == 0:
        return faults
    if isinstance(every, int) and every > 0:
        # Lazy: one file may be called 999999999.
        expected = range(0, max([checkpoint, *recorded]), every)
    else:
        logged = {entry["step"] for entry in entries if "overlap_ratio" in entry}
        expected = sorted(step for step in logged if 0 <= step < max(recorded, default=0))
    missing = list(islice((step for step in expected if step not in recorded), _MOST_MISSING + 1))
    faults += [
        Fault(step_path(folder, step), f"is missing: {RESUME} from a checkpoint before it")
        for step in missing[:_MOST_MISSING]
    ]
    if len(missing) > _MOST_MISSING:
        faults.append(Fault(folder / "steps", f"lacks step {missing[-1]}, too, and maybe more"))
    return faults
