"""Read the metrics that another trainer logged into the form of ``Run.metrics``. Needs no torch."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xarray as xr

from opdprobe.errors import StoreError, shown
from opdprobe.probes.keys import check_source, renamed
from opdprobe.store.columns import columns
from opdprobe.store.safe_text import is_number, parse_json

# "step:12 - actor/entropy:0.93 - timing_s/gen:4.1": verl's console logger. The line may follow a
# worker's prefix, "(TaskRunner pid=7) step:12 - …".
_CONSOLE = re.compile(r"\bstep:(\d{1,18}) - (\S+:\S+(?: - \S+:\S+)*)")
# "step 12: {'train/loss': 0.93, …}": slime's and miles' console; also "rollout 12:", "perf 12:".
# It ends with the line, which is not in the form: trying that from each beginning takes time that
# grows with the square of the line's length.
_DICTIONARY = re.compile(r"\b(?:step|rollout|perf|eval) (\d{1,18}): \{")
_ITEM = re.compile(r"'([^']+)': (np\.\w+\([^()]*\)|[^\s,{}\[\]'()]+)(?=[,\s]|$)")
# numpy 2 prints its scalars as np.float64(0.5) and verl passes them on.
_NUMPY = re.compile(r"np\.\w+\((.*)\)")


def read_log(path: str | Path, source: str) -> xr.Dataset:
    r"""Read a training log of another project.

    Parameters
    ----------
    path : path-like
        - verl and the paper's code (its fork): the file logger's ``.jsonl``, one
          ``{"step": …, "data": {…}}`` per line, or the text that the console logger wrote, in which
          lines without ``step:N - key:value - …`` are skipped;
        - TRL and ms-swift: ``trainer_state.json`` of a checkpoint, whose ``log_history`` is read;
        - slime and miles: the text that was printed, of which the lines ``step N: {…}``,
          ``rollout N: {…}`` and ``perf N: {…}`` are read. Their numbers are those of the
          optimiser's step and of the rollout: the same if there is one step a rollout;
        - tinker-cookbook and prime-rl: ``metrics.jsonl``, one ``{"step": …, key: …}`` per line; and
          in this form, what a tracker of any of the last six exports (W&B has ``_step``).
    source : str
        Whose log it is, one of `opdprobe.probes.keys.SOURCES`: the same key means different things.

    Returns
    -------
    Dataset
        Float64 scalars over ``step``, as ``Run.metrics``: our names where `opdprobe.keys` has a
        counterpart, else theirs. NaN where a step lacks a metric; values that are not numbers are
        left out. A step logged twice takes the later value, so that a resumed run reads as one.

    Raises
    ------
    ConfigError
        If `source` is unknown.
    StoreError
        If the file is missing, is not a log of that kind, or holds no step.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     log = Path(folder, "console.txt")
    ...     _ = log.write_text("step:1 - actor/distillation/overlap_ratio:0.72 - perf/mfu:0.4\n")
    ...     metrics = read_log(log, "verl")
    >>> {name: metrics[name].item() for name in metrics.data_vars}
    {'overlap_ratio': 0.72, 'perf/mfu': 0.4}
    """
    path = Path(path)
    check_source(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise StoreError(f"{path} is not a file; expected a training log of {source}.") from None
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not UTF-8 text ({error}); expected a training log.") from error
    if source in ("trl", "ms-swift"):
        lines = _log_history(text, path)
    elif source not in ("verl", "thunlp"):
        flat = text.lstrip().startswith("{")
        lines = _flat(text, path) if flat else _printed(text)
    elif text.lstrip().startswith("{"):
        lines = _file_logger(text, path)
    else:
        lines = _console_logger(text)
    merged: dict[int, dict[str, float]] = {}
    for step, values in lines:
        numbers = {
            name: number
            for name, value in values.items()
            if name not in ("step", "_step") and (number := _number(value)) is not None
        }
        merged.setdefault(step, {}).update(numbers)
    if not merged:
        raise StoreError(f"{path} holds no logged step; expected a training log of {source}.")
    return renamed(columns(merged, str(path)), source)


def _log_history(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for entry in parse_json(text)["log_history"]:
            yield _step(entry["step"]), dict(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} has no readable log_history of entries with a step ({error!r}); expected the "
            "trainer_state.json of a checkpoint."
        ) from error


def _file_logger(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = text.removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            yield _step(entry["step"]), dict(entry["data"])
        except (KeyError, TypeError, ValueError) as error:
            if number == len(lines) and not text.endswith("\n"):
                return  # an incomplete last line: the run is still writing
            raise StoreError(
                f"{path}, line {number}: {error!r}; expected {{'step': …, 'data': {{…}}}} as "
                "verl's file logger writes it."
            ) from error


def _flat(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            step = entry["step"] if "step" in entry else entry["_step"]
            yield _step(step), dict(entry)
        except (KeyError, TypeError, ValueError) as error:
            if number == text.count("\n") + 1:
                return  # an incomplete last line: the run is still writing
            raise StoreError(
                f"{path}, line {number}: {error!r}; expected {{'step': …, …}}, one object per line."
            ) from error


def _printed(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in text.splitlines():
        line = line.rstrip()
        if line.endswith("}") and (match := _DICTIONARY.search(line)):
            items = _ITEM.finditer(line, match.end(), len(line) - 1)
            yield int(match[1]), {item[1]: item[2] for item in items}


def _console_logger(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in text.splitlines():
        if match := _CONSOLE.search(line):
            # A key may hold colons, a value does not.
            pairs = (pair.rpartition(":") for pair in match[2].split(" - "))
            yield int(match[1]), {key: value for key, _, value in pairs}


def _step(value: Any) -> int:
    if not isinstance(value, int | float) or not abs(value) < 2**63 or value != int(value):
        raise ValueError(f"step = {shown(value)}; expected an integer")
    return int(value)


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        wrapped = _NUMPY.fullmatch(value)
        try:
            return float(wrapped[1] if wrapped else value)
        except ValueError:
            return None
    # JSON has no NaN of its own; null stands for an unknown number.
    if value is None:
        return math.nan
    return float(value) if is_number(value) or isinstance(value, bool) else None
