"""Read a run: its settings, its metrics, one step, or all steps as one lazy dataset."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from opdprobe.errors import StoreError, shown
from opdprobe.store.columns import columns
from opdprobe.store.files import read_entries, within
from opdprobe.store.frame import By, step_frame
from opdprobe.store.safe_text import parse_json, parse_yaml
from opdprobe.store.schema import SCHEMA_VERSION, check_version, variable_attrs
from opdprobe.store.step import read_block, read_counts, read_finished_dtype, read_step
from opdprobe.store.step_parts import step_files

if TYPE_CHECKING:
    import pandas


def open_run(path: str | Path) -> "Run":
    """Open a run for reading.

    Parameters
    ----------
    path : path-like
        Directory of the run, finished or still being written; or its address on object storage,
        such as ``"s3://bucket/run"`` or ``"memory://run"`` (needs ``opdprobe[cloud]``, and
        credentials where that storage's library looks for them).

    Returns
    -------
    Run
        Its settings, metrics and steps.

    Raises
    ------
    StoreError
        `path` does not exist, is not a run, or was written by a newer opdprobe.

    Examples
    --------
    >>> open_run("no/such/run")
    Traceback (most recent call last):
    ...
    opdprobe.errors.StoreError: no/such/run does not exist; expected the directory of a run.
    """
    path = _locate(path)
    if not path.exists():
        raise StoreError(f"{path} does not exist; expected the directory of a run.")
    try:
        attrs = parse_json(within(path / "run.json").read_text(encoding="utf-8"))
        config = parse_yaml(within(path / "config.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{path} is not a run: it has no {Path(error.filename or error.args[0]).name}; "
            "expected the directory that a run was written to."
        ) from None
    except (ValueError, IsADirectoryError) as error:
        raise StoreError(
            f"run.json or config.yaml in {path} cannot be read ({error}): restore the file."
        ) from error
    for name, content in (("run.json", attrs), ("config.yaml", config)):
        if not isinstance(content, dict):
            raise StoreError(
                f"{path / name} holds {shown(content)}; expected a mapping: restore the file."
            )
    check_version(attrs.get("schema_version"), str(path))
    return Run(path, config, attrs)


@dataclass(frozen=True)
class Run:
    """A run opened for reading; made by `open_run`.

    Nothing is cached: each access to `steps` or `metrics` reads the files anew.

    Attributes
    ----------
    path : pathlib.Path
        The directory.
    config : dict
        Settings of the run.
    attrs : dict
        Identity of the run: schema and library versions, models, hashes, seed, ….
    """

    path: Path
    config: dict[str, Any] = field(repr=False)
    attrs: dict[str, Any] = field(repr=False)

    @property
    def steps(self) -> list[int]:
        """Recorded steps, in order."""
        return list(self.files)

    @property
    def files(self) -> dict[int, tuple[Path, ...]]:
        """Files of each recorded step: one, or one per process that recorded it."""
        return step_files(self.path)

    @property
    def metrics(self) -> xr.Dataset:
        """Logged metrics over `step`, float64; NaN where a step lacks one."""
        merged: dict[int, dict[str, float]] = {}
        for line in read_entries(self.path / "metrics.jsonl"):
            merged.setdefault(line["step"], {}).update(line)
        return columns(merged, str(self.path / "metrics.jsonl"))

    @property
    def benchmarks(self) -> list[str]:
        """Names of the evaluated benchmarks, in the order of their first evaluation."""
        lines = read_entries(self.path / "evaluations.jsonl")
        return list(dict.fromkeys(line["benchmark"] for line in lines))

    def evaluation(self, benchmark: str) -> xr.Dataset:
        """Scores of every problem of a benchmark at every evaluated step.

        Parameters
        ----------
        benchmark : str
            Name that the evaluation was logged under.

        Returns
        -------
        xarray.Dataset
            `score` over (step, problem): the mean score of a problem's samples, in [0, 1]; the
            mean over `problem` is avg@n. Coordinates `step` and `prompt_id`. The attribute
            `unfinished` says, if that was recorded, what a response counts as that reached the
            length limit: "wrong" or "graded"; both, with a comma, if steps differ.

        Raises
        ------
        StoreError
            The run has no such evaluation (the message lists those it has), or its problems differ
            between steps.
        """
        lines = read_entries(self.path / "evaluations.jsonl")
        by_step = {line["step"]: line for line in lines if line["benchmark"] == benchmark}
        if not by_step:
            found = sorted({line["benchmark"] for line in lines})
            raise StoreError(f"{self.path} has no evaluation {benchmark!r}; it has {found}.")
        steps = sorted(by_step)
        if len({tuple(line["prompt_id"]) for line in by_step.values()}) > 1:
            raise StoreError(
                f"{self.path}: the problems of {benchmark!r} differ between steps; "
                "expected the same ones at every step."
            )
        counted = sorted({str(e["unfinished"]) for e in by_step.values() if "unfinished" in e})
        return xr.Dataset(
            {"score": (("step", "problem"), [by_step[step]["score"] for step in steps])},
            {"step": steps, "prompt_id": ("problem", by_step[steps[0]]["prompt_id"])},
            {"unfinished": ", ".join(counted)} if counted else {},
        )

    def load(self, step: int) -> xr.Dataset:
        """Read one step.

        Parameters
        ----------
        step : int
            A recorded step.

        Returns
        -------
        xarray.Dataset
            The step, in memory.

        Raises
        ------
        StoreError
            The step is not recorded, its file is torn, or its schema is newer.
        """
        (files,) = self._files([step])
        return read_step(files)

    def to_dataframe(self, step: int, by: By = "token") -> "pandas.DataFrame":
        """Read one step as a pandas DataFrame, without its top-k lists.

        Parameters
        ----------
        step : int
            A recorded step.
        by : {"token", "rollout"}
            What a row is: a state, or a rollout with its token ids as lists.

        Returns
        -------
        pandas.DataFrame
            Columns are named as the variables, those of a model with it before the name
            (``student_entropy``), labels as ``label_NAME``. ``student_stop_logp`` is of the
            model's own stop tokens.

        Raises
        ------
        StoreError
            As for `load`.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from opdprobe.testing import synthetic_run
        >>> with TemporaryDirectory() as folder:
        ...     run = synthetic_run(folder, steps=[7])
        ...     tokens, rollouts = run.to_dataframe(7), run.to_dataframe(7, by="rollout")
        >>> tokens.groupby("rollout").student_entropy.mean().shape, len(rollouts)
        ((4,), 4)
        """
        return step_frame(self.load(step), by, step)

    def states(self, steps: Iterable[int] | None = None) -> xr.Dataset:
        """Concatenate the states of many steps, lazily.

        Parameters
        ----------
        steps : iterable of int, optional
            Steps to read, each once and in order. Default: all.

        Returns
        -------
        xarray.Dataset
            The variables over `state`, one dask block per step. The `rollout` coordinate counts
            through all steps: it is the row in ``rollouts(steps)``.

        Raises
        ------
        StoreError
            No step is recorded, or not all of those requested.
        """
        return self._concatenate("state", steps)

    def rollouts(self, steps: Iterable[int] | None = None) -> xr.Dataset:
        """Concatenate the rollouts of many steps, lazily.

        Parameters
        ----------
        steps : iterable of int, optional
            Steps to read, each once and in order. Default: all.

        Returns
        -------
        xarray.Dataset
            The variables over `rollout`, with a `step` coordinate, one dask block per step; token
            ids are left out (`prompt_ids`, `teacher_prompt_ids`, `response_ids`).

        Raises
        ------
        StoreError
            No step is recorded, or not all of those requested.
        """
        return self._concatenate("rollout", steps)

    def prompt_ids(self, step: int) -> list[NDArray[np.int32]]:
        """Token ids of each rollout's prompt at a step."""
        return _rows(self.load(step), "prompt_ids", "prompt_length")

    def teacher_prompt_ids(self, step: int) -> list[NDArray[np.int32]]:
        """Token ids of what the teacher read before each response of a step."""
        ds = self.load(step)
        own = "teacher_prompt" if "teacher_prompt_ids" in ds else "prompt"
        return _rows(ds, f"{own}_ids", f"{own}_length")

    def response_ids(self, step: int) -> list[NDArray[np.int32]]:
        """Token ids of each rollout's response at a step."""
        return _rows(self.load(step), "response_ids", "length")

    def _concatenate(
        self, dim: Literal["state", "rollout"], steps: Iterable[int] | None
    ) -> xr.Dataset:
        import dask.array as da  # takes half as long to import as everything else

        chosen = self.steps if steps is None else sorted(set(steps))
        if not chosen:
            raise StoreError(f"{self.path} has no recorded step to read.")
        files = self._files(chosen)
        # All steps of a run have one form, so the first one's variables describe them all. Only
        # the counts of the others are read.
        first = self.load(chosen[0])
        n_state, n_rollout = np.array([read_counts(some) for some in files]).T
        rows = n_state if dim == "state" else n_rollout
        offsets = tuple((np.cumsum(n_rollout) - n_rollout).tolist())
        variables: dict[Any, Any] = {}
        coords: dict[Any, Any]
        for name, variable in first.variables.items():
            if variable.dims[0] == dim:
                dtype = np.dtype(object) if variable.dtype.kind == "U" else variable.dtype
                if name == "finished":  # of some step, it may not be known of every rollout
                    dtype = np.result_type(*map(read_finished_dtype, files))
                blocks = da.map_blocks(
                    read_block,
                    files=files,
                    variable=name,
                    shift=offsets if name == "rollout" else (),
                    row_shape=variable.shape[1:],
                    chunks=(tuple(rows.tolist()), *((size,) for size in variable.shape[1:])),
                    dtype=dtype,
                    meta=np.empty((0,) * variable.ndim, dtype),
                )
                variables[name] = (variable.dims, blocks, variable.attrs)
        if dim == "state":
            coords = {name: variables.pop(name) for name in ("rollout", "position", "step")}
            coords |= {name: first[name] for name in ("model", "support") if name in first}
        else:
            of_step = np.repeat(np.asarray(chosen, np.int32), rows)
            coords = {"step": ("rollout", of_step, variable_attrs("step"))}
            if "label_name" in first:
                coords |= {"label_name": first["label_name"]}
        return xr.Dataset(variables, coords, {"schema_version": SCHEMA_VERSION})

    def _files(self, steps: list[int]) -> list[tuple[Path, ...]]:
        recorded = self.files
        for step in steps:
            if step not in recorded:
                listed = ", ".join(map(str, list(recorded)[:20])) + ", …" * (len(recorded) > 20)
                raise StoreError(
                    f"{self.path} has no step {step}; recorded steps: {listed or 'none so far'}."
                )
        return [recorded[step] for step in steps]


def _locate(path: str | Path) -> Path:
    """Turn a run's name into a path: on disk, or elsewhere if it begins with a protocol."""
    if not isinstance(path, str):
        return path
    if "://" not in path:
        return Path(path)
    try:
        from upath import UPath
    except ImportError as error:
        raise StoreError(
            f"{path} is not on this disk: install opdprobe[cloud] to read it there, or copy it."
        ) from error
    try:
        return UPath(path)  # pyright: ignore[reportReturnType]  # has what a Path has, for reading
    except (ImportError, ValueError) as error:
        raise StoreError(f"{path} cannot be reached ({error}): check the address.") from error


def _rows(ds: xr.Dataset, ids: str, lengths: str) -> list[NDArray[np.int32]]:
    if ids not in ds:
        raise StoreError(f"{ids} was not recorded in this run.")
    ends = np.cumsum(ds[lengths].values)
    flat = ds[ids].values
    return [flat[end - n : end] for end, n in zip(ends, ds[lengths].values, strict=True)]
