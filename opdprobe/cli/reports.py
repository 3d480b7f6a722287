"""The commands that report on one run or two: ``report RUN``, ``figures RUN``."""

import argparse
import json
from pathlib import Path

from opdprobe.cli import runs as commands
from opdprobe.cli.runs import console
from opdprobe.errors import ConfigError


def report(arguments: argparse.Namespace) -> None:
    """Write the report, print the findings."""
    import opdprobe.report.draw
    from opdprobe.report.run_report import write_run_report

    paths = [path for path in (arguments.run_dir, arguments.other) if path]
    out = arguments.out or arguments.run_dir / "report.html"
    runs = commands.open_runs(paths)
    commands.tell_thinned(runs, [str(path) for path in paths])
    found = write_run_report(
        out,
        runs,
        draw=opdprobe.report.draw.images,
        view=not arguments.no_view,
    )
    if arguments.json:
        parts = [
            {"run_dir": str(path), "findings": [finding.to_dict() for finding in findings]}
            for path, findings in zip(paths, found, strict=True)
        ]
        print(json.dumps({"report": str(out), "runs": parts}))
        return
    for path, findings in zip(paths, found, strict=True):
        console.print(f"{path}", soft_wrap=True)
        for finding in findings:
            console.print(f"  {finding.sign} {finding.title}. {finding.text}", soft_wrap=True)
            for evidence in finding.evidence:
                console.print(f"      {evidence.text}", soft_wrap=True)
            if finding.advice:
                console.print(f"    Try: {finding.advice}", soft_wrap=True)
    console.print(f"{out}: open it in a browser.", soft_wrap=True)


def figures_of(arguments: argparse.Namespace) -> None:
    """Draw the curves of one run, or of two in the same axes; by default the paper's figures."""
    names = arguments.name
    # Look for runs before importing `figures`, which may be a user's own file here.
    runs = [Path(name) for name in names if Path(name).is_dir()]
    if not runs:
        commands.figures(arguments)
        return
    if len(runs) < len(names) or len(runs) > 2 or arguments.check or arguments.results:
        raise ConfigError(
            f"{', '.join(map(str, runs))} {'is a run' if len(runs) == 1 else 'are runs'}; expected "
            "one run or two, without a figure's name, --check or --results."
        )
    out = arguments.out or runs[0]
    opened = commands.open_runs(runs)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "curves.pdf", out / "curves.png"]
    commands.draw_runs(opened, paths)
    for path in paths:
        console.print(str(path), soft_wrap=True)
