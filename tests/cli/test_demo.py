"""`opdprobe demo`, from nothing to its pages, at the smallest size."""

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest

from analyses.presets import PRESETS
from analyses.results import load
from opdprobe import open_run
from opdprobe.cli import jobs, reproduce
from opdprobe.cli.demo import summary
from opdprobe.cli.parser import main
from opdprobe.report.finding import Finding
from opdprobe.train.pool import Task, work

pytestmark = pytest.mark.slow

TINY = replace(
    PRESETS["quick"],
    n_prompts=16,
    n_problems=4,
    config=replace(
        PRESETS["quick"].config,
        batch_size=4,
        num_generations=2,
        max_completion_length=16,
        eval_max_completion_length=16,
        max_steps=1,  # success and failure take four times as many
        eval_every=2,
        eval_n=1,
        save_steps=2,
    ),
)
PATHS = {
    "figure": "quick/figures/fig06.png",
    "report": "quick/success-and-failure.html",
    "tokens": "quick/success-and-failure-view.html",
    "success": "quick/runs/success-s0",
    "failure": "quick/runs/failure-s0",
}


def here(tasks, *, workers, on_progress):
    """Stands for the pool of processes."""
    for task in tasks:
        task.function(*task.arguments, lambda i, n, label=task.label: on_progress(label, i, n))


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Where the command ran, and what it printed to stdout and stderr."""
    folder, out, err = tmp_path_factory.mktemp("demo"), StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setitem(PRESETS, "quick", TINY)
        patch.setattr(reproduce, "work", here)
        patch.chdir(folder)
        patch.setenv("COLUMNS", "80")
        (folder / "out/quick").mkdir(parents=True)
        (folder / "out/quick/report.html").write_text("of all figures")
        assert main(["demo"]) == 0
    return folder / "out", out.getvalue(), err.getvalue()


def test_it_leaves_what_it_names(first_run):
    out, printed, _ = first_run
    named = dict(line.split() for line in printed.splitlines() if "out/quick/" in line)
    assert named == {name: f"out/{path}" for name, path in PATHS.items()}
    for name in ("success", "failure"):
        run = open_run(out / PATHS[name])
        assert run.steps == [0, 1, 2, 3]
    assert (out / PATHS["figure"]).read_bytes().startswith(b"\x89PNG")
    page = (out / PATHS["report"]).read_text(encoding="utf-8")
    assert "success-and-failure-view.html#" in page
    assert "success-s0 and failure-s0" in page
    assert "success-s0" in (out / PATHS["tokens"]).read_text(encoding="utf-8")


def test_the_page_of_all_figures_is_left_alone(first_run):
    out, *_ = first_run
    assert (out / "quick/report.html").read_text() == "of all figures"


def test_the_summary_fits_on_a_screen(first_run):
    _, printed, _ = first_run
    lines = printed.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80


def test_the_summary_has_the_ends_of_the_curves_and_the_verdicts(first_run):
    out, printed, _ = first_run
    results = load(out / "quick/results/fig06.json")
    accuracy, *_ = (line for line in printed.splitlines() if line.startswith("accuracy"))
    for series in results.panels[0].series:
        assert f"{series.y[0]:.3g} → {series.y[-1]:.3g}" in accuracy
    supported = [claim for claim in results.claims if claim.verdict == "supported"]
    assert f"one seed supports {len(supported)} of the paper's 9 claims" in printed
    told = " ".join(printed.split())
    for verdict in ("inconclusive", "refuted"):
        these = [claim.claim for claim in results.claims if claim.verdict == verdict]
        assert (f"{verdict}: {'; '.join(these)}" in told) == bool(these)


def test_where_there_is_no_terminal_each_task_says_when_it_ends(first_run):
    _, _, err = first_run
    # Loading bars, too: only the pool's processes silence those, and here there are none.
    ended = sorted(line for line in err.splitlines() if line.endswith(": done"))
    assert ended == [
        *("accuracy of large: done", "accuracy of rl_student: done", "accuracy of student: done"),
        *("analysis of fig06: done", "failure-s0: done", "report: done", "success-s0: done"),
    ]


def test_a_process_that_loads_models_prints_nothing(tmp_path, capfd):
    work([Task("accuracy", jobs.score, ("student", 0, TINY, tmp_path))], workers=1)
    assert (tmp_path / "scores/student.json").exists()
    assert capfd.readouterr() == ("", "")


def test_a_second_time_it_trains_nothing_and_says_the_same(first_run, monkeypatch, capsys):
    out, printed, _ = first_run
    monkeypatch.setitem(PRESETS, "quick", TINY)
    monkeypatch.setattr(reproduce, "work", here)
    monkeypatch.chdir(out.parent)
    monkeypatch.setenv("COLUMNS", "80")

    def recorded():
        files = [*out.glob("quick/runs/*/steps/*"), *out.glob("quick/scores/*")]
        return {path: path.stat().st_mtime_ns for path in files}

    before = recorded()
    assert main(["demo"]) == 0
    assert recorded() == before
    again = capsys.readouterr().out.splitlines()
    assert again[:-1] == printed.splitlines()[:-1]  # but for the seconds


def test_the_longest_findings_stay_within_the_columns():
    results = load(reproduce.figures.COMMITTED / "fig06.json")
    long = Finding("stagnating", "bad", "Stagnating", "nothing moves " * 20, ())
    lines = summary(results, {"success": [long], "failure": [long]})
    assert max(map(len, lines)) < 80
    assert sum("nothing moves" in line for line in lines) > 4
