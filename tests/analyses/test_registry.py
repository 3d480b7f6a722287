"""The table of figures: a row, an analysis and a module to draw it are all that a figure needs."""

import ast
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import analyses
import figures
from analyses import alignment
from analyses.experiments import EXPERIMENTS
from analyses.pages import write_pages
from analyses.presets import PRESETS
from analyses.registry import FIGURES, Figure
from analyses.results import Meta, Results
from figures import fig06
from opdprobe.cli.reproduce import plan
from opdprobe.report.panel import Panel, Series

ROOT = Path(analyses.__file__).parent


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_row_names_what_there_is(name):
    module, function = FIGURES[name].analysis.split(".")
    assert callable(getattr(import_module(f"analyses.{module}"), function))
    assert callable(import_module(f"figures.{name}").draw)
    assert set(FIGURES[name].experiments) <= set(EXPERIMENTS)


def test_an_analysis_is_called_with_the_evidence(monkeypatch):
    monkeypatch.setattr(alignment, "analyse", lambda evidence: ("fig06 of", evidence))
    assert FIGURES["fig06"].analyse("these runs") == ("fig06 of", "these runs")


def test_a_new_figure_needs_three_places(tmp_path, monkeypatch):
    line = Series("success", "one", [0, 1], [2.0, 3.0], [1.0, 2.0], [3.0, 4.0])
    panel = Panel("p", "Answer", "x", "y", "line", [line])
    meta = Meta("quick", [0], 16, 1, 1, "none", {}, "", "0.1.0")
    question, drawing = ModuleType("analyses.question"), ModuleType("figures.fig99")
    vars(question)["answer"] = lambda evidence: Results(
        "fig99", "New", "9", "It is new.", replace(meta, preset=evidence.preset), [panel], []
    )
    vars(drawing).update(draw=fig06.draw, caption=lambda results: f"A new figure: {results.title}")
    monkeypatch.setitem(sys.modules, "analyses.question", question)
    monkeypatch.setitem(sys.modules, "figures.fig99", drawing)
    monkeypatch.setitem(FIGURES, "fig99", Figure("question.answer", ()))

    folder = tmp_path / "mine"
    (task,) = plan(PRESETS["quick"], folder, ["fig99"])
    task.function(*task.arguments, lambda done, total: None)
    figures.make(folder / "results", folder / "figures")
    _, gallery = write_pages(folder / "figures", folder / "results")
    with Image.open(folder / "figures/fig99.png") as image:
        assert image.info["Description"] == "A new figure: New"
    assert "![Figure 99 (§9): New](figures/fig99.png)" in gallery.read_text(encoding="utf-8")
    assert figures.figure_names()[-1] == "fig99"


def test_an_analysis_answers_one_question_and_knows_of_no_other():
    questions = {figure.analysis.split(".")[0] for figure in FIGURES.values()}
    for path in ROOT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                modules = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            else:
                continue
            assert not modules & {f"analyses.{name}" for name in questions}, path


def test_the_table_is_read_without_the_analyses():
    code = (
        "import sys, analyses.registry as r; names = {f.analysis.split('.')[0] for f in "
        "r.FIGURES.values()}; print(*(n for n in names if f'analyses.{n}' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""
