"""Read a run: its settings, its metrics, one step, or all steps as one lazy dataset."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
import yaml
from numpy.typing import NDArray

from opdprobe.errors import StoreError
from opdprobe.schema import SCHEMA_VERSION, check_version, variable_attrs
from opdprobe.store.step_file import read_block, read_counts, read_step_file

_STEP_NAME = re.compile(r"(\d{6,})\.zarr\.zip")


def open_run(path: str | Path) -> "Run":
    """Open a run for reading.

    Parameters
    ----------
    path : path-like
        Directory of the run, finished or being written.

    Returns
    -------
    Run
        Its settings, metrics and steps.

    Raises
    ------
    StoreError
        There is nothing at `path`, it is no run, or a newer opdprobe wrote it.

    Examples
    --------
    >>> open_run("no/such/run")
    Traceback (most recent call last):
    ...
    opdprobe.errors.StoreError: no/such/run does not exist, expected the directory of a run
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"{path} does not exist, expected the directory of a run")
    try:
        attrs = json.loads((path / "run.json").read_text())
        config = yaml.safe_load((path / "config.yaml").read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{path} is not a run: it has no {Path(error.filename).name}; "
            "expected the directory that a run was written to"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StoreError(
            f"run.json or config.yaml in {path} cannot be read ({error}): restore the file"
        ) from error
    check_version(attrs.get("schema_version"), str(path))
    return Run(path, config, attrs)


@dataclass(frozen=True)
class Run:
    """A run, open for reading; made by `open_run`.

    Nothing is cached: each look at `steps` or `metrics` sees what is there now.

    Attributes
    ----------
    path : pathlib.Path
        The directory.
    config : dict
        Settings of the run.
    attrs : dict
        What the run is: schema and library versions, models, hashes, seed, ….
    """

    path: Path
    config: dict[str, Any] = field(repr=False)
    attrs: dict[str, Any] = field(repr=False)

    @property
    def steps(self) -> list[int]:
        """Recorded steps, in order."""
        return list_steps(self.path)

    @property
    def metrics(self) -> xr.Dataset:
        """Logged metrics over `step`, float64; NaN where a step lacks one."""
        merged: dict[int, dict[str, float]] = {}
        for line in read_lines(self.path / "metrics.jsonl"):
            merged.setdefault(line["step"], {}).update(line)
        steps = sorted(merged)
        names = dict.fromkeys(name for step in steps for name in merged[step] if name != "step")
        columns = {name: [merged[step].get(name, np.nan) for step in steps] for name in names}
        return xr.Dataset(
            {name: ("step", np.asarray(values, float)) for name, values in columns.items()},
            {"step": ("step", np.asarray(steps, np.int64), variable_attrs("step"))},
        )

    @property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks that have been evaluated, in the order of their first time."""
        lines = read_lines(self.path / "evaluations.jsonl")
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
            mean over `problem` is avg@n. Coordinates `step` and `prompt_id`.

        Raises
        ------
        StoreError
            The run has no such evaluation; lists those it has.
        """
        lines = read_lines(self.path / "evaluations.jsonl")
        by_step = {line["step"]: line for line in lines if line["benchmark"] == benchmark}
        if not by_step:
            found = sorted({line["benchmark"] for line in lines})
            raise StoreError(f"{self.path} has no evaluation {benchmark!r}; it has {found}")
        steps = sorted(by_step)
        return xr.Dataset(
            {"score": (("step", "problem"), [by_step[step]["score"] for step in steps])},
            {"step": steps, "prompt_id": ("problem", by_step[steps[0]]["prompt_id"])},
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
            The step, compressed in memory; a variable is decoded when first used.

        Raises
        ------
        StoreError
            There is no such step, its file is torn, or its schema is newer.
        """
        self._check_recorded([step])
        path = step_path(self.path, step)
        ds = read_step_file(path)
        check_version(ds.attrs.get("schema_version"), str(path))
        return ds

    def states(self, steps: Iterable[int] | None = None) -> xr.Dataset:
        """Line up the states of many steps, lazily.

        Parameters
        ----------
        steps : iterable of int, optional
            Which steps; all by default. Taken once each, in order.

        Returns
        -------
        xarray.Dataset
            The variables over `state`, one dask block a step. The `rollout` coordinate counts
            through all steps: it is the row in ``rollouts(steps)``.

        Raises
        ------
        StoreError
            There is no recorded step, or not that one.
        """
        return self._concatenate("state", steps)

    def rollouts(self, steps: Iterable[int] | None = None) -> xr.Dataset:
        """Line up the rollouts of many steps, lazily.

        Parameters
        ----------
        steps : iterable of int, optional
            Which steps; all by default. Taken once each, in order.

        Returns
        -------
        xarray.Dataset
            The variables over `rollout`, with a `step` coordinate, one dask block a step; token
            ids are left out (`prompt_ids`, `response_ids`).

        Raises
        ------
        StoreError
            There is no recorded step, or not that one.
        """
        return self._concatenate("rollout", steps)

    def prompt_ids(self, step: int) -> list[NDArray[np.int32]]:
        """Token ids of each rollout's prompt at a step."""
        return _rows(self.load(step), "prompt_ids", "prompt_length")

    def response_ids(self, step: int) -> list[NDArray[np.int32]]:
        """Token ids of each rollout's response at a step."""
        return _rows(self.load(step), "response_ids", "length")

    def _concatenate(
        self, dim: Literal["state", "rollout"], steps: Iterable[int] | None
    ) -> xr.Dataset:
        chosen = self.steps if steps is None else sorted(set(steps))
        if not chosen:
            raise StoreError(f"{self.path} has no recorded step to read")
        self._check_recorded(chosen)
        # All steps of a run have one form, so the first one's variables describe them all; of the
        # others only the counts are read.
        first = self.load(chosen[0])
        files = tuple(str(step_path(self.path, step)) for step in chosen)
        n_state, n_rollout = np.array([read_counts(Path(file)) for file in files]).T
        rows = n_state if dim == "state" else n_rollout
        offsets = tuple((np.cumsum(n_rollout) - n_rollout).tolist())
        variables: dict[Any, Any] = {}
        for name, variable in first.variables.items():
            if variable.dims[0] == dim:
                dtype = np.dtype(object) if variable.dtype.kind == "U" else variable.dtype
                blocks = da.map_blocks(
                    read_block,
                    files=files,
                    variable=name,
                    shift=offsets if name == "rollout" else (),
                    chunks=(tuple(rows.tolist()), *((size,) for size in variable.shape[1:])),
                    dtype=dtype,
                    meta=np.empty((0,) * variable.ndim, dtype),
                )
                variables[name] = (variable.dims, blocks, variable.attrs)
        if dim == "state":
            coords = {name: variables.pop(name) for name in ("rollout", "position", "step")}
            coords |= {name: first[name] for name in ("model", "support")}
        else:
            coords = {
                "step": (
                    "rollout",
                    np.repeat(np.asarray(chosen, np.int32), rows),
                    variable_attrs("step"),
                )
            }
        return xr.Dataset(variables, coords, {"schema_version": SCHEMA_VERSION})

    def _check_recorded(self, steps: list[int]) -> None:
        recorded = self.steps
        for step in steps:
            if step not in recorded:
                listed = ", ".join(map(str, recorded[:20])) + (", …" if recorded[20:] else "")
                raise StoreError(
                    f"{self.path} has no step {step}; recorded are: {listed or 'none so far'}"
                )


def step_path(run_dir: Path, step: int) -> Path:
    """Name the file of a step, whether or not there is one."""
    if step < 0:
        raise StoreError(f"step is {step}, expected >= 0")
    return run_dir / "steps" / f"{step:06d}.zarr.zip"


def list_steps(run_dir: Path) -> list[int]:
    """List the recorded steps of a run, in order; a file that is being written is none yet."""
    names = (_STEP_NAME.fullmatch(path.name) for path in (run_dir / "steps").glob("*.zarr.zip"))
    return sorted(int(name[1]) for name in names if name)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines, each a dict with ``step``; half a last line is left out."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    metrics = []
    # What follows the last line break is not yet whole.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise StoreError(f"{path}, line {number}: {error}; remove the line") from error
    return metrics


def _rows(ds: xr.Dataset, ids: str, lengths: str) -> list[NDArray[np.int32]]:
    if ids not in ds:
        raise StoreError(f"{ids} was not recorded in this run")
    ends = np.cumsum(ds[lengths].values)
    flat = ds[ids].values
    return [flat[end - n : end] for end, n in zip(ends, ds[lengths].values, strict=True)]
