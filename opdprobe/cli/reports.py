"""The commands that report on runs: ``report RUN``, ``figures RUN``, ``power RUN``."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def power(arguments: argparse.Namespace) -> None:
    """Print what a difference between two runs needs."""
    from opdprobe.report.course import course
    from opdprobe.report.power import MIN_RUNS, plan

    made = plan(
        [course(run) for run in commands.open_runs(arguments.runs)],
        quantity=arguments.quantity,
        difference=arguments.difference,
        power=arguments.power,
    )
    if arguments.json:
        values = asdict(made)
        print(json.dumps({key: _plain(value) for key, value in values.items()}))
        return
    of = made.spread
    unit, part = ("problem", "sample") if of.quantity == "accuracy" else ("prompt", "rollout")
    within = f", between {part}s of one {unit} {of.within:.3g}" if of.within == of.within else ""
    lines = [
        f"{of.quantity} {of.value:.3g} over {of.prompts} {unit}s × {of.rollouts:.3g}",
        f"standard deviation between {unit}s {of.between:.3g}{within}",
        f"Two such runs, each on {unit}s of its own, show a difference of {made.smallest:.2g} or "
        f"more (chance {made.power:.0%}).",
        f"To show a difference of {made.difference:g}, each run needs",
        *(
            f"  {n:>6,} {unit}s × {rollouts} {part}{'s' if rollouts > 1 else ''}"
            for rollouts, n in made.prompts.items()
        ),
    ]
    if len(arguments.runs) < MIN_RUNS:
        lines.append(
            "One run of each setting does not tell the setting's effect from the seed's: give "
            f"{MIN_RUNS} or more runs that differ in their seeds alone to see how many are needed."
        )
    else:
        needed = "more than 1000" if made.seeds is None else made.seeds
        lines.append(
            f"Between these {len(arguments.runs)} runs the standard deviation is "
            f"{made.seeds_spread:.2g}: to show a difference of {made.difference:g} between two "
            f"settings, each needs {needed} seeds."
        )
    for text in lines:
        console.print(text, soft_wrap=True, highlight=False)


def _plain(value: Any) -> Any:
    """Make a value ready for JSON: None for NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
