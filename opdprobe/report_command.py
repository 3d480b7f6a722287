"""The command ``opdprobe report``: what one run's curves say, or two runs' side by side."""

import argparse
import json

import figures.run
from opdprobe.commands import console
from opdprobe.report.run_report import write_run_report
from opdprobe.store import open_run


def report(arguments: argparse.Namespace) -> None:
    """Write the report, print the findings."""
    paths = [path for path in (arguments.run_dir, arguments.other) if path]
    out = arguments.out or arguments.run_dir / "report.html"
    found = write_run_report(
        out,
        [open_run(path) for path in paths],
        draw=figures.run.images,
        view=not arguments.no_view,
    )
    if arguments.json:
        runs = [
            {"run_dir": str(path), "findings": [finding.to_dict() for finding in findings]}
            for path, findings in zip(paths, found, strict=True)
        ]
        print(json.dumps({"report": str(out), "runs": runs}))
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
