"""``opdprobe demo``: figure 6's two runs with one seed, drawn and reported side by side.

The runs are those of ``opdprobe reproduce --preset quick``, which reuses them:

    OUT/quick/runs/success-s0, failure-s0    the recorded runs
    OUT/quick/figures/fig06.png, fig06.pdf
    OUT/quick/success-and-failure.html       the report on both runs
    OUT/quick/success-and-failure-view.html  every token of both runs
"""

import argparse
import time
from textwrap import wrap
from typing import TYPE_CHECKING

from opdprobe.cli.runs import console, progress

if TYPE_CHECKING:
    from analyses.results import Results
    from opdprobe.report.finding import Finding

_FIGURE = "fig06"
_WIDTH = 79  # columns of the summary; a path may be longer

_START = """\
One student, two teachers. Success: the teacher is the student itself after RL.
Failure: the teacher is larger and stronger, but without RL.
About 2 minutes on two cores. If interrupted, the same command resumes."""


def demo(arguments: argparse.Namespace) -> None:
    """Train the two runs, draw the figure, write the report, print a summary."""
    import opdprobe.report.draw
    from analyses.presets import PRESETS
    from analyses.registry import FIGURES
    from opdprobe.cli import jobs
    from opdprobe.cli.reproduce import draw_figures
    from opdprobe.report.run_report import write_run_report
    from opdprobe.store import open_run

    start = time.monotonic()
    preset, folder = PRESETS["quick"], arguments.out / "quick"
    console.print(_START, soft_wrap=True)
    runs = {
        name: jobs.run_dir(folder, name, preset.seeds[0]) for name in FIGURES[_FIGURE].experiments
    }
    report = folder / "success-and-failure.html"
    with progress(plain=True) as show:
        (results,) = draw_figures(
            preset, folder, [_FIGURE], workers=arguments.workers, on_progress=show
        )
        show("report", 0, 1)
        found = write_run_report(
            report, [open_run(path) for path in runs.values()], draw=opdprobe.report.draw.images
        )
        show("report", 1, 1)
    paths = {
        "figure": folder / "figures" / f"{_FIGURE}.png",
        "report": report,
        "tokens": report.with_name(f"{report.stem}-view.html"),
        **runs,
    }
    console.print("\n".join(summary(results, dict(zip(runs, found, strict=True)))), soft_wrap=True)
    console.print("\n".join(f"{name:<9}{path}" for name, path in paths.items()), soft_wrap=True)
    console.print(f"{time.monotonic() - start:.0f} s. Open the report in a browser.")


def summary(results: "Results", findings: "dict[str, list[Finding]]") -> list[str]:
    """Describe the two runs in lines of at most 79 columns.

    Parameters
    ----------
    results
        Figure 6: its curves and its claims.
    findings
        Findings of each run, by the name of its experiment.

    Returns
    -------
    list of str
        First and last value of each curve, the first finding per run, the verdicts on the claims.
    """
    from opdprobe.report.estimate import number

    lines = ["", f"{'first → last step':<34}" + "".join(f"{name:>22}" for name in findings)]
    for panel in results.panels:
        curves = {series.role: series.y for series in panel.series}
        ends = (f"{number(curves[name][0])} → {number(curves[name][-1])}" for name in findings)
        lines.append(f"{panel.y_label:<34}" + "".join(f"{text:>22}" for text in ends))
    lines.append("")
    for name, (first, *_) in findings.items():
        lines += _wrapped(f"{name}: {first.sign} {first.title}. {first.text}")
    supported = [claim for claim in results.claims if claim.verdict == "supported"]
    lines += _wrapped(
        f"Figure 6: one seed supports {len(supported)} of the paper's {len(results.claims)} claims."
    )
    for verdict in ("inconclusive", "refuted"):
        if these := [claim.claim for claim in results.claims if claim.verdict == verdict]:
            lines += _wrapped(f"{verdict}: {'; '.join(these)}")
    return [*lines, ""]


def _wrapped(text: str) -> list[str]:
    return wrap(text, _WIDTH, subsequent_indent="  ")
