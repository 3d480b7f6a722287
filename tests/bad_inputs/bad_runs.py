"""Run directories: missing, foreign, torn, and made to do harm."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from case import Case

from opdprobe.errors import ConfigError, StoreError
from opdprobe.store import Run, RunWriter, open_run
from opdprobe.store.schema import validate
from opdprobe.testing import synthetic_run

_RUN = "FOLDER/run"
_STEP = f"{_RUN}/steps/000000.zarr.zip"
_DELETE = ": delete it to read the run without this step, or resume the run from a step before it."


def _made(folder: Path, **options: Any) -> Run:
    return synthetic_run(folder / "run", [0, 1], n_rollouts=2, length=2, **{"k": 4} | options)


def _run(
    fed: str, damage: Callable[[Path], object], message: str, error: type[Exception] = StoreError
) -> Case:
    """A run to which something was done; all of it is read."""

    def feed(folder: Path) -> object:
        path = _made(folder).path
        damage(path)
        run = open_run(path)
        for step in run.steps:
            validate(run.load(step))
        return run.metrics, [run.evaluation(name) for name in run.benchmarks]

    return Case("Runs", fed, feed, error, message)


def _text(file: str, content: str | bytes) -> Callable[[Path], object]:
    """Replace a file."""
    return lambda run: (run / file).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def _newer(run: Path) -> None:
    attrs = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(attrs | {"schema_version": 99}))


def _step(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Change the bytes of a step's file."""

    def damage(run: Path) -> None:
        file = run / "steps/000000.zarr.zip"
        file.write_bytes(change(file.read_bytes()))

    return damage


def _flipped(content: bytes) -> bytes:
    place = content.index(b"logp/c/0/0/0/0") + 60
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _members(change: Callable[[dict[str, bytes]], object]) -> Callable[[Path], object]:
    """Change the members of a step's file, with checksums that are right."""

    def damage(run: Path) -> None:
        file = run / "steps/000000.zarr.zip"
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members)
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return damage


def _metadata(name: str, **changes: Any) -> Callable[[Path], object]:
    """Change what a variable's metadata, or the group's, says."""

    def change(members: dict[str, bytes]) -> None:
        where = f"{name}/zarr.json".removeprefix("/")
        members[where] = json.dumps(json.loads(members[where]) | changes).encode()

    return _members(change)


def _compressed(run: Path) -> None:
    file = run / "steps/000000.zarr.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", b"{" + b" " * 10_000_000 + b"}")


def _link(run: Path) -> None:
    file = run / "steps/000000.zarr.zip"
    file.unlink()
    file.symlink_to(run / "nowhere")


def _of_another_run(folder: Path) -> object:
    run = _made(folder)
    other = synthetic_run(folder / "other", [1], n_rollouts=2, length=2, k=2)
    os.replace(other.path / "steps/000001.zarr.zip", run.path / "steps/000001.zarr.zip")
    return open_run(run.path).states().compute()


def _torn(fed: str, damage: Callable[[Path], object], why: str) -> Case:
    return _run(fed, damage, f"{_STEP} is torn or not a step ({why}){_DELETE}")


def _continued(folder: Path, **changes: Any) -> object:
    settings: dict[str, Any] = {"attrs": {"seed": 0}, "config": {"k": 4}, "resume": True}
    RunWriter(folder / "run", **settings)
    return RunWriter(folder / "run", **settings | changes)


def _beside_a_thesis(folder: Path) -> object:
    (folder / "thesis.tex").write_text("")
    return RunWriter(folder, attrs={}, config={}, resume=True)


_DIRECTORIES = [
    Case(
        "Runs",
        "a directory that is not there",
        lambda folder: open_run(folder / "absent"),
        StoreError,
        "FOLDER/absent does not exist; expected the directory of a run.",
    ),
    Case(
        "Runs",
        "a directory of something else",
        open_run,
        StoreError,
        "FOLDER is not a run: it has no run.json; expected the directory that a run was written "
        "to.",
    ),
    _run(
        "a newer schema",
        _newer,
        f"{_RUN}: schema_version = 99; expected at most 2: upgrade opdprobe.",
    ),
    _run(
        "no schema",
        _text("run.json", "{}"),
        f"{_RUN}: schema_version = None; expected an integer: opdprobe did not write this, or "
        "its attributes were dropped.",
    ),
    _run(
        "run.json that is a list",
        _text("run.json", "[]"),
        f"{_RUN}/run.json holds []; expected a mapping: restore the file.",
    ),
    _run(
        "run.json cut off",
        _text("run.json", '{"schema_version": 1'),
        f"run.json or config.yaml in {_RUN} cannot be read (…): restore the file.",
    ),
    _run(
        "config.yaml with a tag that would run a command",
        _text("config.yaml", "k: !!python/object/apply:os.system ['true']"),
        f"run.json or config.yaml in {_RUN} cannot be read (could not determine a constructor "
        "for the tag …): restore the file.",
    ),
    _run(
        "a line of metrics that is not JSON",
        _text("metrics.jsonl", '{"step": 0, "loss": 0.5}\n{"step": 1, "lo\n'),
        f"{_RUN}/metrics.jsonl, line 2: …; remove the line.",
    ),
    _run(
        "a metric that is a text",
        _text("metrics.jsonl", '{"step": 0, "loss": "low"}\n'),
        f"{_RUN}/metrics.jsonl, line 1: 'low' is not a number; remove the line.",
    ),
    _run(
        "an evaluation with a score too few",
        _text(
            "evaluations.jsonl",
            '{"step": 0, "benchmark": "easy", "prompt_id": ["a", "b"], "score": [1.0]}\n',
        ),
        f"{_RUN}/evaluations.jsonl, line 1: expected one score per prompt_id; remove the line.",
    ),
    Case(
        "Runs",
        "a step that was not recorded",
        lambda folder: _made(folder).load(7),
        StoreError,
        f"{_RUN} has no step 7; recorded steps: 0, 1.",
    ),
    Case(
        "Runs",
        "an evaluation that was not done",
        lambda folder: _made(folder).evaluation("hard"),
        StoreError,
        f"{_RUN} has no evaluation 'hard'; it has [].",
    ),
    Case(
        "Runs",
        "the run of something else, to be continued",
        lambda folder: _continued(folder, attrs={"seed": 1}),
        StoreError,
        f"{_RUN} holds a different run: seed: 0 before, 1 now; choose another directory.",
    ),
    Case(
        "Runs",
        "a run with another config, to be continued",
        lambda folder: _continued(folder, config={"k": 8}),
        ConfigError,
        f"{_RUN} was begun with another config: k: 4 before, 8 now; restore it, or choose another "
        "directory.",
    ),
    Case(
        "Runs",
        "a run that is there, not to be continued",
        lambda folder: _continued(folder, resume=False),
        StoreError,
        f"{_RUN} holds a run already (0 recorded steps): resume it, or choose another directory.",
    ),
    Case(
        "Runs",
        "a directory with other files, to be written to",
        _beside_a_thesis,
        StoreError,
        "FOLDER is not empty (thesis.tex is in it) and not a run: choose a new or an empty "
        "directory.",
    ),
    Case(
        "Runs",
        "a step of another run among a run's",
        _of_another_run,
        StoreError,
        f"{_RUN}/steps/000001.zarr.zip: a row of … has shape …; expected …, as in the first step: "
        "move the file to its own run.",
    ),
]

_STEPS = [
    _torn("a step's file, empty", _step(lambda _: b""), "File is not a zip file"),
    _torn("a step's file, cut off", _step(lambda c: c[: len(c) // 2]), "File is not a zip file"),
    _torn("a step's file with a bit flipped", _step(_flipped), "Bad CRC-32 for file …"),
    _run(
        "a link that leads nowhere",
        _link,
        f"{_STEP} is missing: it was removed, or the run was rolled back.",
    ),
    _torn(
        "a step without a variable",
        _members(lambda members: [members.pop(n) for n in [*members] if n.startswith("entropy/")]),
        "entropy is not in it",
    ),
    _torn(
        "a step with a variable that there is not",
        _members(lambda members: members.update({"hidden/zarr.json": members["step/zarr.json"]})),
        "hidden is not a variable of the schema",
    ),
    _torn(
        "a variable with other dimensions",
        _metadata("entropy", dimension_names=["state", "rank"]),
        "entropy has dims ['state', 'rank'], expected ['state', 'model']",
    ),
    _torn(
        "a variable that says it holds Python objects",
        _metadata("entropy", data_type="object"),
        "entropy has type 'object', expected float32",
    ),
    _torn(
        "a codec that unpickles",
        _metadata("entropy", codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
        "entropy/zarr.json has codecs [{'configuration': {}, 'name': 'numcodecs.pickle'}], which "
        "opdprobe does not write",
    ),
    _torn(
        "an array of zarr format 2, whose filters unpickle",
        _metadata("entropy", zarr_format=2),
        "entropy/zarr.json is not of zarr format 3",
    ),
    _torn(
        "metadata of format 2 beside that of format 3",
        _members(lambda members: members.update({"entropy/.zarray": b"{}"})),
        "it has a member called 'entropy/.zarray'",
    ),
    _torn(
        "a member that would be written outside",
        _members(lambda members: members.update({"../../.bashrc": b"true"})),
        "it has a member called '../../.bashrc'",
    ),
    _torn(
        "a shape that would fill the memory",
        _metadata("token_id", shape=[2**30, 2, 4]),
        "its variables take … bytes, too many for a file of …",
    ),
    _torn(
        "members that unpack to a thousand times their size",
        _compressed,
        "its members are compressed, or overlap",
    ),
    _torn(
        "a chunk that says it is larger than its variable",
        _members(lambda members: members.update({"entropy/c/0/0": b"\2\1\x21\4" + b"\xff" * 12})),
        "entropy/c/0/0 is not a chunk of 8 float32",
    ),
]

CASES = [*_DIRECTORIES, *_STEPS]
