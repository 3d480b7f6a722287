"""The report on runs: one safe file with curves, words, and links that the viewer follows."""

import argparse
import base64
import gzip
import html
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import opdprobe.report.draw
from opdprobe.cli.parser import main
from opdprobe.cli.reports import report
from opdprobe.errors import ConfigError, StoreError
from opdprobe.report.course import course
from opdprobe.report.run_panels import report_panels
from opdprobe.report.run_report import write_run_report
from opdprobe.store import RunWriter, open_run
from opdprobe.testing import synthetic_step
from opdprobe.train.config import OPDConfig

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>\u202e&'\""


def written(folder, name="run", *, attrs=None, config=None, steps=(0, 5, 10), **kwargs):
    attrs = attrs or {"student": "a student", "teacher": {"name": "org/teacher"}}
    writer = RunWriter(folder / name, attrs=attrs, config=config or {}, resume=False)
    for step in steps:
        writer.write_step(step, synthetic_step(step, **kwargs))
        writer.log_metrics(step, {"loss": 1.0 / (step + 1), "grad_norm": 0.5})
    for step in (steps[0], steps[-1]):
        writer.log_evaluation(step, "test", ["p", "q"], [0.0, 1.0])
    return open_run(writer.path)


def blank(panels):
    """Draw nothing: for tests that do not look at the figures."""
    return [b"png"] * len(panels)


class Page(HTMLParser):
    """Headings, links, cells and attributes of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.links = [], [], []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.text += data


# ---- what is in it


def test_the_page_is_one_file_without_a_script(tmp_path):
    run = written(tmp_path)
    write_run_report(tmp_path / "report.html", [run], draw=blank)
    page, text = Page(tmp_path / "report.html"), (tmp_path / "report.html").read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "script" not in page.tags
    assert {"link", "iframe", "object", "form"}.isdisjoint(page.tags)
    assert all(
        value.startswith("data:image/png;base64,") for k, value in page.attributes if k == "src"
    )
    assert all(link.startswith("report-view.html") for link in page.links)
    assert not list(tmp_path.glob("*.tmp"))
    titles = re.findall(r"<figcaption>([^<]*)", text)
    assert titles == [
        "Accuracy", "Correct responses", "Overlap ratio", "Overlap-token advantage", "Entropy gap",
        "Overlap mass", "Entropy", "Reverse KL", "Loss", "Gradient norm",
        "Extreme-advantage gap", "Response length", "Finished responses", "Stop-token mass",
        "Sampled-token reward",
    ]  # fmt: skip


def test_names_and_settings_are_text(tmp_path):
    attrs = {"student": {"name": HOSTILE}, "teacher": {"name": "/home/me/secret/teacher"}}
    run = written(tmp_path, name="<b>&'", attrs=attrs, config={f"{HOSTILE}_{HOSTILE}": HOSTILE})
    write_run_report(tmp_path / "report.html", [run], draw=blank)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert "<b>&" not in text
    assert "\u202e" not in text
    assert "secret" not in text
    assert html.escape("<script>alert(1)</script>") in text
    assert "teacher" in Page(tmp_path / "report.html").text


def test_settings_are_compared_with_the_papers(tmp_path):
    usual = OPDConfig().to_dict()
    run = written(tmp_path, config=usual | {"k": 4, "max_steps": 12})
    write_run_report(tmp_path / "report.html", [run], draw=blank, view=False)
    text = (tmp_path / "report.html").read_text().replace("<wbr>", "")
    rows = re.findall(r'<th scope="row">(\w+)</th><td class="whole">([^<]*)</td>', text)
    assert rows == [("k", "16"), ("max_steps", "none")]
    same = written(tmp_path, name="same", config=usual)
    write_run_report(tmp_path / "report.html", [same], draw=blank, view=False)
    assert "All settings are the paper's." in (tmp_path / "report.html").read_text()


def test_two_runs_share_axes_and_show_what_differs(tmp_path):
    usual = OPDConfig().to_dict()
    one = written(tmp_path, name="one", config=usual | {"k": 4, "seed": 3})
    two = written(tmp_path, name="two", config=usual | {"k": 4, "seed": 7}, seed=1)
    found = write_run_report(tmp_path / "r.html", [one, two], draw=blank)
    assert len(found) == 2
    text = (tmp_path / "r.html").read_text()
    rows = re.findall(r'<tr( class="differ")?><th scope="row">([a-z_]+)( ≠)?</th>', text)
    assert rows == [(' class="differ"', "seed", " ≠"), ("", "k", "")]
    assert "<h3>one</h3>" in text
    assert "<h3>two</h3>" in text
    panels = {
        panel.name: panel for panel in report_panels([one, two], list(map(course, [one, two])))
    }
    assert [series.label for series in panels["overlap_ratio"].series] == ["one", "two"]
    assert panels["accuracy"].series[0].role != panels["accuracy"].series[1].role
    assert {"student_entropy", "teacher_entropy"} <= set(panels)
    assert "entropy" not in panels


def test_the_table_holds_first_and_last_means(tmp_path):
    run = written(tmp_path, steps=range(6))
    write_run_report(tmp_path / "r.html", [run], draw=blank, view=False)
    row = re.search(
        r'Overlap ratio</th>\s*<td data-label="first">([\d.]+) \[([\d.]+), ([\d.]+)\]</td>'
        r'<td data-label="last">([\d.]+) ',
        (tmp_path / "r.html").read_text(),
    )
    assert row is not None
    first, low, high, last = map(float, row.groups())
    assert first == pytest.approx(float(run.states([0, 1]).opd.overlap_ratio().mean()), rel=5e-3)
    assert last == pytest.approx(float(run.states([4, 5]).opd.overlap_ratio().mean()), rel=5e-3)
    assert low < first < high


def test_accuracy_is_over_the_problems(tmp_path):
    run = written(tmp_path, config={"eval_n": 4})
    panel = report_panels([run], [course(run)])[0]
    assert (panel.title, panel.y_label) == ("Accuracy", "accuracy (avg@4)")
    assert panel.series[0].x == [0, 10]
    assert panel.series[0].y == [0.5, 0.5]
    want = stats.binomtest(1, 2).proportion_ci(method="exact")  # two problems
    assert (panel.series[0].low[0], panel.series[0].high[0]) == pytest.approx((want.low, want.high))


def test_positions_are_drawn_where_responses_are_long(tmp_path):
    long = written(tmp_path, name="long", n_rollouts=2, length=60, k=2)
    short = written(tmp_path, name="short", n_rollouts=2, length=30, k=2)
    panels = report_panels([long, short], [course(long), course(short)])
    (heat,) = [panel for panel in panels if panel.kind == "heatmap"]
    assert heat.title == "Student entropy by position, long"
    assert heat.heat is not None
    assert heat.heat.x == [0, 5, 10]
    expected = long.load(5).entropy.values[:, 0].reshape(2, 60)[:, :3].mean()
    assert heat.heat.z[0][1] == pytest.approx(expected)


def test_one_figure_holds_all_panels(tmp_path):
    runs = [written(tmp_path, name=name, n_rollouts=2, length=60, k=2) for name in ("one", "two")]
    panels = report_panels(runs, list(map(course, runs)))
    figure = opdprobe.report.draw.draw(panels)
    titles = [ax.get_title("left").replace("\n", " ") for ax in figure.get_axes()]
    assert [title for title in titles if title] == [panel.title for panel in panels]
    # The two runs' names are said once, and units where the title has none.
    assert sum(ax.get_legend() is not None for ax in figure.get_axes()) == 1
    labels = {ax.get_title("left"): ax.get_ylabel() for ax in figure.get_axes()}
    assert (labels["Reverse KL"], labels["Overlap ratio"]) == ("[nats]", "")


def test_images_are_drawn_one_a_panel(tmp_path):
    run = written(tmp_path, n_rollouts=2, length=60, k=2)
    panels = report_panels([run], [course(run)])
    drawn = opdprobe.report.draw.images(panels)
    assert len(drawn) == len(panels)
    for image in drawn:
        with Image.open(BytesIO(image)) as opened:
            assert opened.size == (660, 440)
            assert len(np.unique(np.asarray(opened.convert("L")))) > 2


# ---- what may go wrong


def test_bad_runs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="0 runs to report on"):
        write_run_report(tmp_path / "r.html", [], draw=blank)
    RunWriter(tmp_path / "empty", attrs={}, config={}, resume=False)
    with pytest.raises(StoreError, match="no recorded step"):
        write_run_report(tmp_path / "r.html", [open_run(tmp_path / "empty")], draw=blank)
    assert not list(tmp_path.glob("*.html"))


def test_a_run_without_metrics_evaluations_or_settings(tmp_path):
    writer = RunWriter(tmp_path / "run", attrs={}, config={}, resume=False)
    writer.write_step(0, synthetic_step(0, n_rollouts=1, length=1))
    (findings,) = write_run_report(
        tmp_path / "r.html", [open_run(tmp_path / "run")], draw=opdprobe.report.draw.images
    )
    assert findings[0].name == "too_short"
    assert "unknown" in (tmp_path / "r.html").read_text()


# ---- the links


def test_findings_link_into_the_viewer(tmp_path):
    runs = [written(tmp_path, name=name) for name in ("one", "two")]
    found = write_run_report(tmp_path / "a #1.html", runs, draw=blank)
    links = Page(tmp_path / "a #1.html").links
    assert links[-1] == "a%20%231-view.html"
    expected = [
        f"a%20%231-view.html#run={i}&step={one.step}&rollout={one.rollout}&by={one.by}"
        for i, findings in enumerate(found)
        for one in findings
    ]
    assert links[:-1] == expected
    assert (tmp_path / "a #1-view.html").exists()


def test_the_viewer_has_every_step_that_a_finding_links_to(tmp_path):
    # By default it shows what both runs have: here step 0 only.
    runs = [written(tmp_path, name="one"), written(tmp_path, name="two", steps=(0, 7))]
    found = write_run_report(tmp_path / "r.html", runs, draw=blank)
    text = (tmp_path / "r-view.html").read_text()
    packed = re.search(r'id="index">([A-Za-z0-9+/=]*)<', text)
    assert packed is not None
    index = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    for run, findings in zip(index["runs"], found, strict=True):
        linked = {finding.step for finding in findings}
        assert linked - {0}
        assert {step["step"] for step in run["steps"]} == {0} | linked


def test_without_a_viewer_there_are_no_links(tmp_path):
    write_run_report(tmp_path / "r.html", [written(tmp_path)], draw=blank, view=False)
    assert Page(tmp_path / "r.html").links == []
    assert not (tmp_path / "r-view.html").exists()


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_the_viewer_opens_where_a_finding_points(tmp_path):
    run = written(tmp_path)
    ((finding, *_),) = write_run_report(tmp_path / "r.html", [run], draw=blank)
    link = Page(tmp_path / "r.html").links[0]
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
        f"file://{tmp_path}/{link}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    shown = re.search(r'<h2 id="title-a">([^<]*)</h2>', done.stdout)
    assert shown is not None
    assert shown[1] == f"step {finding.step}, rollout {finding.rollout}"


# ---- the command


def arguments(run, **changes):
    given = {"run_dir": run, "other": None, "out": None, "no_view": False, "json": False}
    return argparse.Namespace(**given | changes)


def test_the_command(tmp_path, capsys):
    run = written(tmp_path, name="one").path
    report(arguments(run))
    printed = capsys.readouterr().out
    assert (run / "report.html").exists()
    assert (run / "report-view.html").exists()
    assert "overlap ratio" in printed
    assert "open it in a browser" in printed
    with pytest.raises(ConfigError, match="are the same run"):
        report(arguments(run, other=run))


def test_the_command_for_a_script(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(opdprobe.report.draw, "images", blank)
    one, two = (written(tmp_path, name=name).path for name in ("one", "two"))
    out = tmp_path / "out" / "page.html"
    report(arguments(one, other=two, out=out, no_view=True, json=True))
    given = json.loads(capsys.readouterr().out)
    assert given["report"] == str(out)
    assert [run["run_dir"] for run in given["runs"]] == [str(one), str(two)]
    assert given["runs"][0]["findings"][0]["evidence"][0]["quantity"] == "overlap_ratio"
    assert list(out.parent.iterdir()) == [out]


def test_figures_takes_runs(tmp_path, capsys, monkeypatch):
    one, two = (str(written(tmp_path, name=name).path) for name in ("one", "two"))
    with monkeypatch.context() as patch:
        patch.setattr("opdprobe.report.draw.save", lambda panels, path: path.touch())
        assert main(["figures", one]) == 0
    assert capsys.readouterr().out == f"{one}/curves.pdf\n{one}/curves.png\n"
    assert {"curves.pdf", "curves.png"} <= set(os.listdir(one))
    out = tmp_path / "new" / "folder"
    assert main(["figures", one, two, "--out", str(out)]) == 0
    capsys.readouterr()
    for name in ("curves.pdf", "curves.png"):
        assert (out / name).stat().st_size > 10_000
    with Image.open(out / "curves.png") as image:
        assert image.width == 2025
    for more in (["fig01"], ["--check"], ["--results", one], [one, two]):
        assert main(["figures", one, *more]) == 1
        assert "expected one run or two, without a figure's name" in capsys.readouterr().err
    assert main(["figures", one, one, "--out", str(tmp_path / "none")]) == 1
    assert "are the same run" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main(["figures", str(tmp_path)]) == 1
    assert "is not a run" in capsys.readouterr().err


def test_the_report_needs_no_torch_and_is_the_same_in_any_process(tmp_path):
    run = written(tmp_path, n_rollouts=2)
    script = f"""
import sys
for name in ("torch", "transformers", "tokenizers"):
    sys.modules[name] = None
import opdprobe.report.draw
from opdprobe import open_run
from opdprobe.report.run_report import write_run_report
assert "scipy.stats" not in sys.modules
run = open_run({str(run.path)!r})
write_run_report({str(tmp_path / "r.html")!r}, [run], draw=opdprobe.report.draw.images)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)
    write_run_report(tmp_path / "here" / "r.html", [run], draw=opdprobe.report.draw.images)
    for name in ("r.html", "r-view.html"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
