"""Write a run: create or continue its directory, add steps and metrics."""

import json
import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from opdprobe.errors import ConfigError, StoreError
from opdprobe.store.budget import MOST_YAML
from opdprobe.store.claim import differences, refuse_other_files
from opdprobe.store.files import (
    explain_unwritable,
    open_append,
    put_on_disk,
    read_entries,
    refuse_links,
    remove_files,
    remove_temporaries,
    write_text,
)
from opdprobe.store.lock import LOCK, lock_run
from opdprobe.store.run import open_run
from opdprobe.store.schema import ADDED, SCHEMA_VERSION, VARIABLES, Step, to_step
from opdprobe.store.step import write_step_file
from opdprobe.store.step_parts import Part, list_files, step_path

_NAMES = ("run.json", "config.yaml", "metrics.jsonl", "evaluations.jsonl", "steps", "checkpoints")
_LIBRARIES = ("opdprobe", "numpy", "xarray", "zarr", "torch", "transformers")


class RunWriter:
    """Write a run directory, step by step.

    Creating a writer creates the directory, or continues the run in it. Leftovers of a killed
    writer (temporary files, half a line of metrics) are removed. One process writes a directory at
    a time. The directory may be a link to one elsewhere; what is in it may not.

    Parameters
    ----------
    run_dir : path-like
        Directory of the run: absent, empty, or holding the run to continue.
    attrs : mapping
        Identity of the run: models, revisions, hashes, tokenizer hash, k, sampling, seed, commit,
        …. JSON types only. ``schema_version``, ``versions`` (of libraries) and ``commit`` are
        added.
    config : mapping
        Settings of the run. YAML types only.
    resume : bool
        Continue the run in `run_dir` if there is one.
    part : tuple of (int, int)
        ``(rank, size)`` of this process. Each process writes its part of every step. Create rank
        0's writer first: it alone writes metrics and evaluations and truncates.
    defaults : mapping, optional
        Values of settings that an older run may lack, having been written before they existed.

    Raises
    ------
    StoreError
        The directory already holds a run and `resume` is false; it holds another run (an attribute
        other than ``commit``, ``versions`` and ``device`` differs); or it holds other files, or
        links in place of its own.
    ConfigError
        The run has another config; the message lists the old and new value of each changed key.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_step
    >>> with TemporaryDirectory() as folder:
    ...     writer = RunWriter(folder, attrs={"seed": 0}, config={"lr": 1e-6}, resume=False)
    ...     file = writer.write_step(7, synthetic_step(7))
    ...     writer.log_metrics(7, {"loss": 0.7})
    ...     file.name, open_run(folder).steps
    ('000007.zarr.zip', [7])
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        attrs: Mapping[str, Any],
        config: Mapping[str, Any],
        resume: bool,
        part: Part = (0, 1),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(run_dir)
        self._part = part
        self._steps_dir = self.path / "steps"
        self._metrics_file = self.path / "metrics.jsonl"
        self._evaluations_file = self.path / "evaluations.jsonl"
        self._written: set[int] = set()
        self._form: dict[str, Any] | None = None  # of the run's steps, once one is written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="opdprobe-writer")
        self._pending: list[Future] = []  # submitted to the thread, in order
        refuse_links(*(self.path / name for name in _NAMES))
        if part[0] > 0:
            open_run(self.path)  # raises unless rank 0 has created it
            return
        config_text = _to_yaml(config)
        root = json.loads(json.dumps(dict(attrs)))  # tuples become lists, as they do on disk
        # run.json is written last.
        refuse_other_files(self.path, "run.json", "run", beginnings=("config.yaml", "steps", LOCK))
        with explain_unwritable(f"opening {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_run(self.path)
        if (self.path / "run.json").exists():
            known = yaml.safe_load(_to_yaml(defaults or {}))
            self._continue(root, yaml.safe_load(config_text), known, resume)
        else:
            self._create(root, config_text)

    def _create(self, attrs: dict[str, Any], config_text: str) -> None:
        self._steps_dir.mkdir(exist_ok=True)
        self._remove_temporaries()
        attrs |= {"schema_version": SCHEMA_VERSION, "versions": _versions(), "commit": _commit()}
        text = json.dumps(attrs, indent=2) + "\n"
        write_text(self.path / "config.yaml", config_text)
        write_text(self.path / "run.json", text)

    def _continue(
        self,
        attrs: dict[str, Any],
        config: dict[str, Any],
        defaults: dict[str, Any],
        resume: bool,
    ) -> None:
        run = open_run(self.path)
        if not resume:
            raise StoreError(
                f"{self.path} holds a run already ({len(run.steps)} recorded steps): "
                "resume it, or choose another directory."
            )
        # These only decide which prompts are left out, and the prompts themselves are identified.
        if changes := differences(run.attrs, attrs, ignore=("max_prompt_length", "on_error")):
            raise StoreError(
                f"{self.path} holds a different run: {changes}; choose another directory."
            )
        if changes := differences(defaults | run.config, config):
            raise ConfigError(
                f"{self.path} was begun with another config: {changes}; "
                "restore it, or choose another directory."
            )
        self._steps_dir.mkdir(exist_ok=True)
        self._remove_temporaries()
        self._rewrite_lines(math.inf)  # drops an incomplete last line
        if run.steps:
            self._form = _form(run.load(run.steps[-1]))

    def _remove_temporaries(self) -> None:
        # A report may be writing its page beside the run's own files.
        remove_temporaries(self.path, *_NAMES)
        for directory in (self._steps_dir, self.path / "checkpoints"):
            remove_temporaries(directory)

    def write_step(self, step: int, ds: xr.Dataset) -> Path:
        """Write one step, completely or not at all.

        `logp` is rounded to 12 bits of mantissa: a relative error of at most 2**-13, which is
        0.002 nats for a token of probability 1e-7. Everything else is exact.

        Parameters
        ----------
        step : int
            Training step, >= 0. A step that a continued run already holds is replaced.
        ds : xarray.Dataset
            A step that passes `opdprobe.validate`; its `step` coordinate equals `step`.

        Returns
        -------
        pathlib.Path
            The file.

        Raises
        ------
        StoreError
            The dataset is not a valid step, or has other variables than the steps before; this
            writer already wrote the step; or the disk is full (nothing half-written is left).
        """
        return self._write(step, to_step(ds))

    def _write(self, step: int, made: Step) -> Path:
        if step in self._written:
            raise StoreError(f"step {step} was already written: a step cannot be changed.")
        if unknown := sorted(str(name) for name in set(made.variables) - set(VARIABLES)):
            raise StoreError(
                f"{unknown[0]} is not a variable of the schema: use ds.drop_vars({unknown})."
            )
        steps = made["step"].values
        if (steps != step).any():
            found = np.unique(steps).tolist()
            raise StoreError(f"step = {found} in the dataset; expected {step} throughout.")
        made = _as_begun(made, self._form)
        form = _form(made)
        if self._form not in (None, form):
            changes = differences(self._form or {}, form)
            raise StoreError(
                f"step {step} differs from the run's earlier steps: {changes}; "
                "expected the same variables and k in all steps."
            )
        path = step_path(self.path, step, self._part)
        write_step_file(path, made)
        self._form = form
        self._written.add(step)
        return path

    def submit_step(self, step: int, ds: xr.Dataset | Callable[[], Step]) -> None:
        """Write one step on a thread, while the caller continues.

        One step is written at a time: this waits until the previous one is on disk.

        Parameters
        ----------
        step
            As for `write_step`.
        ds : xarray.Dataset or callable
            As for `write_step`, or a function, called on the thread, that makes a
            `opdprobe.store.schema.Step`. A Step is not checked again, which would be a third of the
            cost. The arrays must not change afterwards.

        Raises
        ------
        StoreError
            What `write_step` raised for the previous step.
        """
        self.flush()

        def write() -> Path:
            return self._write(step, ds() if callable(ds) else to_step(ds))

        self._pending.append(self._thread.submit(write))

    def submit_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics, which readers see at once; the thread flushes it to disk.

        Parameters
        ----------
        step, metrics
            As for `log_metrics`.

        Raises
        ------
        StoreError
            The disk is full, or an earlier write on the thread failed.
        """
        self._wait(1)
        if self._part[0] == 0:
            self._append(self._metrics_file, _metrics_line(step, metrics), on_disk=False)
            self._pending.append(self._thread.submit(_put_on_disk, self._metrics_file))

    def flush(self) -> None:
        """Wait until the submitted step and metrics are on disk.

        Raises
        ------
        StoreError
            What writing them raised.
        """
        self._wait(0)

    def _wait(self, most: int) -> None:
        """Block until at most `most` submitted writes are pending."""
        while len(self._pending) > most:
            try:
                self._pending[0].result()  # if interrupted, the next call waits for it
            except Exception:
                wait(self._pending)  # report only the first failure; it usually explains the rest
                self._pending.clear()
                raise
            self._pending.pop(0)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line of metrics.

        Lines of one step are merged; the last value of a name counts.

        Parameters
        ----------
        step : int
            Training step.
        metrics : mapping of str to float
            Name to number; NaN and infinities are kept.

        Raises
        ------
        StoreError
            The disk is full; the line is left out.
        """
        if self._part[0] > 0:
            return
        self._append(self._metrics_file, _metrics_line(step, metrics))

    def log_evaluation(
        self,
        step: int,
        benchmark: str,
        prompt_ids: Sequence[str],
        scores: Sequence[float],
        *,
        unfinished: str | None = None,
    ) -> None:
        """Append the result of one evaluation, problem by problem.

        Parameters
        ----------
        step : int
            Training step.
        benchmark : str
            Name of the problem set.
        prompt_ids : sequence of str
            Names of its problems.
        scores : sequence of float
            Mean score of each problem's samples, in [0, 1].
        unfinished : {"wrong", "graded"}, optional
            What a response that reached the length limit counts as: wrong, or as graded by what it
            says so far. Default: not recorded.

        Raises
        ------
        StoreError
            The disk is full; the line is left out.
        """
        if self._part[0] > 0:
            return
        line = {
            "step": int(step),
            "benchmark": benchmark,
            "prompt_id": list(prompt_ids),
            "score": [float(score) for score in scores],
        }
        if unfinished is not None:
            line["unfinished"] = unfinished
        self._append(self._evaluations_file, line)

    def _append(self, path: Path, entry: Mapping[str, Any], *, on_disk: bool = True) -> None:
        line = (json.dumps(entry) + "\n").encode()
        with (
            explain_unwritable(f"writing to {path}"),
            # Unbuffered: a buffer would retry the write that was taken back.
            open_append(path, buffering=0) as file,
        ):
            end = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
                if on_disk:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(end)  # else the next line would continue this one
                raise

    def truncate_after(self, step: int) -> None:
        """Drop everything recorded after a step, to resume from it.

        Parameters
        ----------
        step : int
            The last step to keep, in metrics, evaluations and step files.
        """
        self._written = {written for written in self._written if written <= step}
        if self._part[0] > 0:
            return
        self._rewrite_lines(step)
        later = [file for file, (at, _) in list_files(self.path).items() if at > step]
        remove_files(self._steps_dir, [file.name for file in later])

    def _rewrite_lines(self, last_step: float) -> None:
        for path in (self._metrics_file, self._evaluations_file):
            kept = [line for line in read_entries(path) if line["step"] <= last_step]
            if path.exists():
                write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _metrics_line(step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
    values = {name: float(value) for name, value in metrics.items() if name != "step"}
    return {"step": int(step), **values}


def _put_on_disk(path: Path) -> None:
    with explain_unwritable(f"writing to {path}"):
        put_on_disk(path)


@cache
@cache  # reading their metadata takes milliseconds
def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue  # torch and transformers are not needed to write a step
    return found


@cache  # the code stays what it was when it was loaded
def _commit() -> str | None:
    """Commit of the checkout that this code runs from; None if it runs from an installed copy."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        shown = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return shown.stdout.strip() or None


def _to_yaml(config: Mapping[str, Any]) -> str:
    try:
        text = yaml.safe_dump(json.loads(json.dumps(dict(config))), sort_keys=False)
    except TypeError as error:
        raise ConfigError(
            f"the config cannot be written as YAML ({error}); expected only str, int, float, "
            "bool, None, lists and dicts."
        ) from error
    if len(text) > MOST_YAML:
        raise ConfigError(
            f"the config takes {len(text)} characters of YAML; expected at most {MOST_YAML}, "
            "which readers accept: keep data in files of their own."
        )
    return text


def _form(ds: xr.Dataset | Step) -> dict[str, Any]:
    """Describe what all steps of a run share: the names of their variables, and k."""
    form: dict[str, Any] = {name: "present" for name in sorted(map(str, ds.variables))}
    if "logp" in ds.variables:
        form["k"] = ds.variables["logp"].shape[-1]
    if "label_name" in ds.variables:
        form["label_name"] = ds.variables["label_name"].values.tolist()
    return form


def _as_begun(made: Step, form: Mapping[str, Any] | None) -> Step:
    """Leave out what the earlier steps of an older run do not have."""
    new = {name for name in ADDED if form is not None and name not in form}
    if new.isdisjoint(made.variables):
        return made
    kept = {name: v for name, v in made.variables.items() if name not in new}
    return Step(kept, made.attrs)
