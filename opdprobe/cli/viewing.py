"""``opdprobe view``: the page of tokens, once or anew as a run grows."""

import argparse
import time
from pathlib import Path

from opdprobe.cli.runs import console, errors, file_size, open_runs
from opdprobe.cli.watch import missing
from opdprobe.errors import ConfigError, StoreError
from opdprobe.report.follow import Follower
from opdprobe.report.run_tokens import RunTokens
from opdprobe.report.view import write_view
from opdprobe.store import Run


def view(arguments: argparse.Namespace) -> None:
    """Write the page that shows a run's tokens; with ``--follow``, again whenever steps came."""
    out = arguments.out or arguments.run_dir / "view.html"
    if arguments.follow:
        if arguments.other:
            raise ConfigError(
                "--follow with two runs; expected one: leave out the second, or --follow."
            )
        _follow(arguments, out)
        return
    paths = [path for path in (arguments.run_dir, arguments.other) if path]
    _write(arguments, out, open_runs(paths))


def _write(
    arguments: argparse.Namespace,
    out: Path,
    runs: list[Run],
    *,
    steps: list[int] | None = None,
    tokens: list[RunTokens] | None = None,
    said: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Write the page; print what it does not show, unless that was said before."""
    notices = write_view(
        out,
        runs,
        steps=arguments.steps if steps is None else steps,
        rollouts=arguments.rollouts,
        tokenizer=arguments.tokenizer,
        max_mb=arguments.max_mb,
        tokens=tokens,
    )
    for notice in (notice for notice in notices if notice not in said):
        errors.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{out}: {file_size(out.stat().st_size)}; open it in a browser.", soft_wrap=True)
    return tuple(notices)


def _follow(arguments: argparse.Namespace, out: Path) -> None:
    """Write the page whenever a step came, changed or went, until the run ends."""
    path = arguments.run_dir
    follower, tokens = None, RunTokens()
    written: dict[int, object] = {}
    said, waiting = (), ""
    while True:
        if reason := missing(path):
            follower = None
            if reason != waiting:
                errors.print(f"waiting for {path}: {reason}", markup=False, soft_wrap=True)
            waiting = reason
        else:
            follower = follower or Follower(path)
            follower.look()
            steps = follower.readable()
            shown = [step for step in steps if arguments.steps is None or step in arguments.steps]
            if shown and steps != written:
                try:
                    tokens.update(follower.run, steps)
                    said = _write(
                        arguments, out, [follower.run], steps=shown, tokens=[tokens], said=said
                    )
                    written = dict(steps)
                except StoreError:
                    follower.look()
                    if follower.readable() == steps:
                        raise
                    # The run was rolled back meanwhile: the next look has what is left.
            if follower.ended:
                return
        time.sleep(arguments.interval)
