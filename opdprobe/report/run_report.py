"""The report on one run, or on two: a diagnosis in words, and the curves."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from opdprobe.errors import ConfigError
from opdprobe.probes.quantities import QUANTITIES, axis_label
from opdprobe.probes.thinning import thinned
from opdprobe.report.by_teacher import teacher_rows
from opdprobe.report.change_mix import change_mix, mix_finding, mix_rows
from opdprobe.report.course import Course, course
from opdprobe.report.diagnosis import TUNED, diagnose
from opdprobe.report.estimate import interval_name
from opdprobe.report.finding import Finding, interval, shown
from opdprobe.report.panel import Panel
from opdprobe.report.reward_signal import signal_rows
from opdprobe.report.run_panels import report_panels
from opdprobe.report.selection import class_rows, kept_at_ends, selector_rows
from opdprobe.report.token_text import visible
from opdprobe.report.view import model_name, run_labels, short_name, token_texts, write_view
from opdprobe.store import Run
from opdprobe.store.files import refuse_links, write_text
from opdprobe.store.prompt_form import prompt_form
from opdprobe.store.schema import TOP_K
from opdprobe.train.config import OPDConfig

# What most runs have: no stop tokens, grades or sampler's log-probabilities is no lack.
_EXPECTED = {
    name: quantity
    for name, quantity in QUANTITIES.items()
    if quantity.needs in (*TOP_K, "sampled_logp", "finished")
}


def write_run_report(
    path: str | Path,
    runs: Sequence[Run],
    *,
    draw: Callable[[Sequence[Panel]], list[bytes]],
    view: bool = True,
) -> list[list[Finding]]:
    """Write the report on one run, or on two side by side; the file appears only when complete.

    The page is self-contained apart from links to the token viewer, which is written beside it:
    each finding links to a step and a rollout to look at.

    Parameters
    ----------
    path : path-like
        The HTML file, replaced if it exists.
    runs : sequence of Run
        One run, or two to compare.
    draw : callable
        Returns one PNG per panel: `opdprobe.report.draw.images`.
    view : bool
        Whether to write ``NAME-view.html`` beside ``NAME.html``, and link to it.

    Returns
    -------
    list of list of Finding
        What `opdprobe.report.diagnosis.diagnose` found in each run, and whether most of a change
        is due to the mix of positions (`opdprobe.report.change_mix.mix_finding`).

    Raises
    ------
    ConfigError
        The number of runs is neither one nor two.
    StoreError
        A run has no recorded step, or a page's path is a link.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from opdprobe.testing import synthetic_run
    >>> with TemporaryDirectory() as folder:
    ...     run = synthetic_run(folder + "/mine", steps=[0])
    ...     found = write_run_report(
    ...         folder + "/report.html", [run], draw=lambda panels: [b""] * len(panels)
    ...     )
    >>> found[0][0].title
    'One recorded step'
    """
    if len(runs) not in (1, 2):
        raise ConfigError(f"{len(runs)} runs to report on; expected one, or two to compare.")
    path = Path(path)
    view_path = path.with_name(f"{path.stem}-view.html") if view else None
    refuse_links(path, *([view_path] if view_path else []))  # before the work
    courses = [
        course(run, label=visible(label)) for run, label in zip(runs, run_labels(runs), strict=True)
    ]
    mixes = [change_mix(run, found) for run, found in zip(runs, courses, strict=True)]
    findings = [
        [*diagnose(found), *mix_finding(found, mix)]
        for found, mix in zip(courses, mixes, strict=True)
    ]
    panels = report_panels(runs, courses)
    signals = signal_rows(runs, courses)
    ends = kept_at_ends(runs, courses, [token_texts(run)[0].classes() for run in runs])
    kinds, kinds_kept = class_rows(ends)
    images = [base64.b64encode(image).decode() for image in draw(panels)]
    # Escape all text: names and settings may come from anywhere.
    environment = Environment(
        loader=PackageLoader("opdprobe.report"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("run_report.html.jinja").render(
        title=" and ".join(found.label for found in courses),
        labels=[found.label for found in courses],
        facts=_facts(runs, courses),
        settings=_settings(runs),
        diagnoses=[_linked(some, i, view_path) for i, some in enumerate(findings)],
        view=quote(view_path.name) if view_path else None,
        figures=[(panel.title, image) for panel, image in zip(panels, images, strict=True)],
        numbers=[*_numbers(courses), *signals, *teacher_rows(runs, courses)],
        signals=bool(signals),
        mixes=mix_rows(mixes),
        selectors=selector_rows(ends),
        kinds=kinds,
        kinds_kept=kinds_kept,
        thinned=_thinned(runs, courses),
        widths=sorted({found.width for found in courses}),
        interval=interval_name(1),
        tuned=TUNED,
    )
    if view_path:
        linked = [[finding.step for finding in some] for some in findings]
        write_view(view_path, runs, keep=linked)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return findings


def _facts(runs: Sequence[Run], courses: Sequence[Course]) -> list[tuple[str, list[str]]]:
    """Describe the runs: rows of a heading and one text per run."""
    rows: dict[str, list[str]] = {}
    for run, found in zip(runs, courses, strict=True):
        steps = found.steps
        length = found.sums.length
        facts = {
            "Student": short_name(model_name(run, "student")) or "unknown",
            "Teacher": short_name(model_name(run, "teacher")) or "unknown",
            "Recorded": f"{len(steps)} step{'s' * (len(steps) != 1)}, {steps[0]} to {steps[-1]}",
            "Rollouts": f"{length.size:,}",
            "States": f"{length.sum():,}",
            "Benchmarks": ", ".join(run.benchmarks) or "none",
            "Prompts": prompt_form(run.attrs) or "not recorded",
            "Contexts": _contexts(run),
            "Positions": thinned(run) or "all recorded",
        }
        absent = [q.name.long_name for name, q in _EXPECTED.items() if not found.has(name)]
        facts["Not recorded"] = ", ".join(absent) or "–"
        for name, text in facts.items():
            rows.setdefault(name, []).append(visible(text))
    if set(rows["Not recorded"]) == {"–"}:
        del rows["Not recorded"]
    return list(rows.items())


def _contexts(run: Run) -> str:
    fixed = run.attrs.get("fixed_contexts")
    if not isinstance(fixed, dict):
        return "the student's own rollouts at each step"
    return (
        f"fixed: {fixed.get('rollouts')} rollouts of {fixed.get('run')}, step {fixed.get('step')}"
    )


def _thinned(runs: Sequence[Run], courses: Sequence[Course]) -> list[str]:
    """Warn of averages that leave positions out, one text per run that has such averages."""
    return [
        (f"{found.label}: " if len(runs) > 1 else "") + visible(text)
        for run, found in zip(runs, courses, strict=True)
        if (text := thinned(run))
    ]


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """List the settings that differ from the paper's, or between the runs."""
    paper = OPDConfig().to_dict()
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.config):
        values = [run.config.get(name, "–") for run in runs]
        usual = paper.get(name, "–")
        differ = any(value != values[0] for value in values)
        if differ or values[0] != usual:
            rows.append(
                {
                    "name": visible(str(name)),
                    "paper": _text(usual),
                    "values": [_text(value) for value in values],
                    "differ": differ,
                }
            )
    return sorted(rows, key=lambda row: not row["differ"])  # stable: otherwise in the run's order


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return visible(f"{value:g}" if isinstance(value, float) else str(value))


def _linked(findings: list[Finding], run: int, view: Path | None) -> list[dict[str, Any]]:
    """Pair findings with their addresses in the viewer."""
    rows = []
    for finding in findings:
        place = {"run": run, "step": finding.step, "rollout": finding.rollout, "by": finding.by}
        address = f"{quote(view.name)}#{urlencode(place)}" if view else None
        rows.append({"finding": finding, "address": address})
    return rows


def _numbers(courses: Sequence[Course]) -> list[tuple[str, list[tuple[str, str]]]]:
    """List every quantity's first and last mean with intervals, one pair per run."""

    def mean(found: Course, name: str, where: slice) -> str:
        return shown(*interval(found.mean(name, where))) if found.has(name) else "–"

    rows = []
    for name, quantity in QUANTITIES.items():
        if any(found.has(name) for found in courses):
            pairs = [
                (mean(found, name, found.first), mean(found, name, found.last)) for found in courses
            ]
            rows.append((axis_label(quantity.title, quantity.name.units), pairs))
    return rows
