"""``opdprobe watch``: a run's curves and its first finding, while it grows."""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opdprobe.cli.runs import console, errors, progress
from opdprobe.errors import printable
from opdprobe.probes.quantities import LOGGED, QUANTITIES, axis_label, scalar
from opdprobe.report.course import Course, planned_steps
from opdprobe.report.diagnosis import diagnose
from opdprobe.report.follow import Follower

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24


def watch(arguments: argparse.Namespace) -> None:
    """Show the run until it ends or the user interrupts."""
    path = arguments.run_dir
    if arguments.once:
        follower = Follower(path)
        with progress() as show:
            follower.look(lambda done, total: show("step", done, total))
        console.print(_heading(follower), _body(follower))
        return
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    if live is None:
        _follow(path, arguments.interval, None)
        return
    with live:
        _follow(path, arguments.interval, live)


def _follow(path: Path, interval: float, live: Live | None) -> None:
    follower, shown = None, ""

    def say(text: str) -> None:
        """Show a line in place of the page; where there is no terminal, once on stderr."""
        nonlocal shown
        if live:
            live.update(Text(printable(text)), refresh=True)
        elif text != shown:
            errors.print(text, markup=False, highlight=False, soft_wrap=True)
        shown = text

    body: RenderableType = ""
    while True:
        if reason := missing(path):
            follower, body = None, ""
            say(f"waiting for {path}: {reason}")
        else:
            follower = follower or Follower(path)
            new = follower.look(
                (lambda done, total: say(f"reading {path}: {done} of {total} new steps"))
                if live and not body
                else None
            )
            if changed := new or not body:
                body = _body(follower)
            if live:
                live.update(Group(_heading(follower), body), refresh=True)
            elif changed:
                console.print(_heading(follower), body)
            elif follower.ended:
                console.print(_heading(follower))
            if follower.ended:
                return
        time.sleep(interval)


def missing(path: Path) -> str | None:
    """Say what is missing before there is a run to watch."""
    if not path.exists():
        return "it does not exist yet"
    if path.is_dir() and not (path / "run.json").exists():
        return "it is not a run yet (no run.json)"
    return None


def _heading(follower: Follower) -> Text:
    parts = [f"{follower.path}"]
    if follower.ended:
        parts.append("ended")
    elif follower.written:
        parts.append(f"last written {_ago(time.time() - follower.written)} ago")
    return Text(printable(" · ".join(parts)), style="bold")


def _ago(seconds: float) -> str:
    """Write a duration in the largest unit that fits.

    Examples
    --------
    >>> _ago(59.4), _ago(61), _ago(7300), _ago(-1)
    ('59 s', '1 min', '2 h', '0 s')
    """
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds // 60:.0f} min" if seconds < 3600 else f"{seconds // 3600:.0f} h"


def _body(follower: Follower) -> Group:
    found = follower.course()
    parts: list[RenderableType] = [Text(_steps(found))]
    if found.steps:
        parts.append(_diagnosis(found))
    if rows := list(_curves(found, follower)):
        parts.append(_table(rows))
    parts += [
        Text(printable(f"step {step} is left out: {why}"), style="yellow")
        for step, why in follower.unreadable().items()
    ]
    return Group(*parts)


def _steps(found: Course) -> str:
    logged, planned = found.metrics["step"].values, planned_steps(found.config)
    last = max([*found.steps[-1:], *logged[-1:].tolist()], default=None)
    if last is None:
        return "no step yet"
    of = f" of {planned}" if planned else ""
    n = len(found.steps)
    recorded = f"{n} recorded step{'s' * (n != 1)}" if n else "no recorded step yet"
    return f"step {last}{of}, {recorded}"


def _diagnosis(found: Course) -> Text:
    first, *others = diagnose(found)
    lines = [
        f"{first.sign} {first.title}. {first.text}",
        *(f"    {evidence.text}" for evidence in first.evidence),
        *([f"  Try: {first.advice}"] if first.advice else []),
        *([f"  Also: {'; '.join(f'{o.sign} {o.title}' for o in others)}"] if others else []),
    ]
    return Text(printable("\n".join(lines)))


_Curve = tuple[str, Sequence[int], NDArray[np.float64]]


def _curves(found: Course, follower: Follower) -> Iterator[_Curve]:
    """Yield the label, steps and values of each curve that has any."""
    accuracy = {f"accuracy/{name}": scores for name, scores in follower.evaluations.items()}
    logged = [str(name) for name in found.metrics.data_vars]
    for name in dict.fromkeys((*QUANTITIES, *LOGGED, *logged)):
        if name in accuracy or name.startswith("seconds"):
            continue
        x, y = _values(found, name)
        if np.isfinite(y).any():
            known = name in QUANTITIES or name in LOGGED
            label = axis_label(*scalar(name)) if known else name
            yield label, x, y
    for name, scores in accuracy.items():
        x = sorted(scores)
        yield name, x, np.array([scores[step].mean() for step in x])


def _values(found: Course, name: str) -> tuple[Sequence[int], NDArray[np.float64]]:
    """Return a curve's steps and values: as logged if that has more steps than are recorded."""
    x, y = found.values(name)
    if name not in found.sums.n or name not in found.metrics:
        return x, y
    logged = found.metrics[name].dropna("step")
    return (logged["step"].values.tolist(), logged.values) if logged.size > y.size else (x, y)


def _table(rows: Sequence[_Curve]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("first", justify="right")
    plain = console.options.ascii_only
    if not plain:
        table.add_column("", no_wrap=True)
    table.add_column("last", justify="right")
    table.add_column("at step", justify="right")
    for label, x, y in rows:
        known = np.flatnonzero(np.isfinite(y))
        cells = [Text(printable(label)), _number(float(y[known[0]]))]
        cells += [] if plain else [spark(y)]
        table.add_row(*cells, _number(float(y[known[-1]])), str(x[known[-1]]))
    return table


def _number(value: float) -> str:
    return f"{value:.4g}"


def spark(values: NDArray[np.float64], width: int = _WIDTH) -> str:
    """Draw a curve as a line of bars, the lowest value as the lowest bar.

    Parameters
    ----------
    values
        In order; those that are not finite are left out of the means, or blank.
    width
        Most bars; more values are averaged.

    Examples
    --------
    >>> spark(np.array([0.0, 1.0, np.nan, 7.0])), spark(np.array([2.0, 2.0]))
    ('▁▂ █', '▄▄')
    """
    parts = np.array_split(values, min(width, len(values)))
    finite = [part[np.isfinite(part)] for part in parts]
    means = np.array([part.mean() if part.size else np.nan for part in finite])
    low, high = np.nanmin(means), np.nanmax(means)
    if low == high:
        levels = np.full(len(means), 3.0)
    else:
        levels = np.round((means - low) / (high - low) * (len(_BARS) - 1))
    return "".join(
        _BARS[int(level)] if known else " "
        for level, known in zip(levels, np.isfinite(means), strict=True)
    )
