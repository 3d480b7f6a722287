"""``opdprobe log``: a run's scalars, sent to a tracker through accelerate."""

import argparse
import math
from pathlib import Path

from opdprobe.cli.runs import console, progress
from opdprobe.errors import ConfigError, StoreError
from opdprobe.probes.quantities import QUANTITIES
from opdprobe.store import Run, open_run

TRACKERS = ("tensorboard", "wandb", "trackio")


def log(arguments: argparse.Namespace) -> None:
    """Send every step's metrics and accuracies, in the order of the steps."""
    run = open_run(arguments.run_dir)
    scalars, left_out = _scalars(run)
    if not scalars:
        raise StoreError(f"{run.path} has no metrics, evaluations or recorded steps to send.")
    name = arguments.name or run.path.resolve().name
    _send(arguments.to, arguments.project, name, run, scalars)
    n = sum(map(len, scalars.values()))
    more = f"; {left_out} that are not finite were left out" if left_out else ""
    where = run.path / arguments.project / name if arguments.to == "tensorboard" else name
    console.print(
        f"{where}: {len(scalars)} steps, {n} values sent to {arguments.to}{more}", soft_wrap=True
    )


def _scalars(run: Run) -> tuple[dict[int, dict[str, float]], int]:
    """Return the finite scalars by step and name, and the number of others."""
    from opdprobe.report.course import course
    from opdprobe.store.files import read_entries

    merged: dict[int, dict[str, float]] = {}
    for line in read_entries(run.path / "metrics.jsonl"):
        merged.setdefault(line["step"], {}).update(line)
    names = {name for values in merged.values() for name in values}
    if run.steps and not names & QUANTITIES.keys():  # logged by none of opdprobe's own writers
        found = course(run)
        for name in filter(found.has, QUANTITIES):
            for step, value in zip(*found.values(name), strict=True):
                if not math.isnan(value):  # no state of this step has a value
                    merged.setdefault(step, {})[name] = float(value)
    for line in read_entries(run.path / "evaluations.jsonl"):
        if line["score"]:
            accuracy = sum(line["score"]) / len(line["score"])
            merged.setdefault(line["step"], {})[f"accuracy/{line['benchmark']}"] = accuracy
    n = sum(name != "step" for values in merged.values() for name in values)
    # Trackers that write JSON cannot represent the others.
    kept = {
        step: {
            name: float(value)
            for name, value in merged[step].items()
            if name != "step" and math.isfinite(value)
        }
        for step in sorted(merged)
    }
    kept = {step: values for step, values in kept.items() if values}
    return kept, n - sum(map(len, kept.values()))


def _send(to: str, project: str, name: str, run: Run, scalars: dict[int, dict[str, float]]) -> None:
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    if to not in map(str, get_available_trackers()):
        raise ConfigError(
            f"--to {to}: {to} is not installed, or accelerate is too old to know it; run pip "
            f"install -U {to} accelerate first."
        )
    if to == "tensorboard":
        _refuse_second_log(run.path / project / name)
        project, settings = f"{project}/{name}", {}
    else:
        settings = {to: {"name": name}}
    accelerator = Accelerator(log_with=to, project_dir=run.path)
    try:
        accelerator.init_trackers(project, config=_settings(run), init_kwargs=settings)
        with progress() as show:
            for done, (step, values) in enumerate(scalars.items(), start=1):
                accelerator.log(values, step=step)
                show("step", done, len(scalars))
        # `end_training` would also end a process group.
        for tracker in accelerator.trackers:
            tracker.finish()
    except Exception as error:  # trackers share no class of errors
        raise ConfigError(
            f"--to {to}: {to} did not take the run ({type(error).__name__}: {error}); check that "
            f"{to} works here by itself, for example that you are logged in."
        ) from error


def _refuse_second_log(folder: Path) -> None:
    """Refuse to log twice: TensorBoard would draw both in one zigzag line."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists already; expected a new --name, since TensorBoard would draw both as "
            "one curve: choose another name, or remove it."
        )


def _settings(run: Run) -> dict[str, bool | int | float | str]:
    """Return the run's settings as trackers take them: no lists, mappings or None."""
    return {
        str(key): value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in run.config.items()
        if value is not None
    }
