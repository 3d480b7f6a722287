"""The report: complete in one file, readable as text, safe with hostile text."""

import base64
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console

from analyses.claims import claims_markdown, counts, figures_table
from analyses.page import ReportError, write_report
from analyses.pages import check_pages, write_pages
from analyses.results import Claim, Meta, Results, load, save
from figures import COMMITTED
from opdprobe.errors import OPDProbeError

ROOT = Path(__file__).parents[2]
HOSTILE = """<script>alert("x")</script>' onerror="alert(1)"""
VOID = {"img", "meta", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects tags and text; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def results(figure, verdicts=(), *, runs=("success",), title="A title", commit="abc"):
    claims = [
        Claim(
            f"{figure}.{i}", f"claim {i}", "> 80 %", 0.912, low, 0.9666, 0.95, [0.9], "g > 0.8", v
        )
        for i, (v, low) in enumerate(zip(verdicts, (0.85, -0.5, 0.1), strict=False))
    ]
    table = {r: {"student": "s", "teacher": f"t of {r}", "steps": 100} for r in runs}
    meta = Meta("quick", [0, 1], 16, 64, 512, "95 % bootstrap", table, commit, "0.1.0")
    return Results(figure, title, "4.1", "The claim.", meta, [], claims)


def picture(folder, figure, caption: str | None = "A caption."):
    info = PngInfo()
    if caption:
        info.add_itxt("Description", caption)
    Image.new("RGB", (40, 20), "white").save(folder / f"{figure}.png", pnginfo=info)


def page(folder, *content, title="Title"):
    write_report(folder / "new" / "report.html", content, folder, title=title)
    return Page((folder / "new" / "report.html").read_text(encoding="utf-8"))


def squeezed(text):
    return re.sub(r"\s+", " ", text)


def test_the_page_has_counts_claims_figures_and_runs(tmp_path):
    picture(tmp_path, "fig06", "Caption of six: → 0.")
    picture(tmp_path, "fig14", "Caption of fourteen.")
    six = results("fig06", ["supported", "inconclusive", "refuted"], runs=["success", "failure"])
    found = page(tmp_path, six, results("fig14", ["supported"]))
    text = squeezed(found.text)
    assert "2 supported 1 inconclusive 1 refuted" in text
    assert "claim 0 > 80 % 0.912 [0.85, 0.967] g > 0.8 ✓ supported" in text
    assert "0.912 [−0.5, 0.967] g > 0.8 – inconclusive" in text
    assert "✗ refuted" in text
    assert "Figure 6 (§4.1): A title" in text
    assert "Caption of six: → 0." in text
    assert "Run Student Teacher Steps Seeds Figures" in text
    # A run that several figures show stands in the table once.
    assert re.search(r"success s t of success 100 0, 1 6, 14", text)
    assert text.count("t of success") == 1
    assert "opdprobe 0.1.0, runs recorded at commit abc." in text


def test_the_page_is_one_file_with_its_figures(tmp_path):
    picture(tmp_path, "fig06")
    found = page(tmp_path, results("fig06"))
    (image,) = found.all("img")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (tmp_path / "fig06.png").read_bytes()
    assert not found.all("link") + found.all("script")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?:|url\(", html)


def test_the_page_is_accessible(tmp_path):
    picture(tmp_path, "fig06", "A caption.")
    found = page(tmp_path, results("fig06", ["supported"]))
    assert found.all("html")[0]["lang"] == "en"
    assert [image["alt"] for image in found.all("img")] == ["A caption."]
    assert {attrs.get("scope") for attrs in found.all("th")} == {"col", "row", "rowgroup"}
    assert len(found.all("h1")) == 1
    ids = {attrs["id"] for _, attrs in found.tags if "id" in attrs}
    assert {link["href"].removeprefix("#") for link in found.all("a")} <= ids
    labels = {a["aria-labelledby"] for _, a in found.tags if "aria-labelledby" in a}
    assert labels <= ids
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in html
    assert found.all("meta")[1]["name"] == "viewport"


def test_hostile_text_is_shown_as_text(tmp_path):
    picture(tmp_path, "fig06", HOSTILE)
    hostile = results("fig06", ["supported"], runs=[HOSTILE], title=HOSTILE, commit=HOSTILE)
    found = page(tmp_path, hostile, title=HOSTILE)
    assert not found.all("script")
    assert not [attrs for _, attrs in found.tags if "onerror" in attrs]
    assert found.all("img")[0]["alt"] == HOSTILE
    # title, h1, figure's title, caption, run's name, its teacher, commit
    assert found.text.count(HOSTILE) == 7


def test_the_same_results_give_the_same_page(tmp_path):
    picture(tmp_path, "fig06")
    for name in ("a", "b"):
        write_report(tmp_path / name, [results("fig06", ["supported"])], tmp_path, title="Title")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_page_without_results_is_a_page(tmp_path):
    assert "0 supported 0 inconclusive 0 refuted" in squeezed(page(tmp_path).text)


def test_a_missing_figure_names_the_command(tmp_path):
    with pytest.raises(
        ReportError, match=r"no figure .*fig06\.png; draw it with `opdprobe figures"
    ):
        page(tmp_path, results("fig06"))
    picture(tmp_path, "fig06", caption=None)
    with pytest.raises(ReportError, match=r"fig06\.png has no caption .*`opdprobe figures fig06`"):
        page(tmp_path, results("fig06"))
    assert not (tmp_path / "new").exists()


def test_the_terminal_has_a_line_for_each_figure_and_reads_no_markup():
    six, eight = (
        results("fig06", ["supported", "inconclusive", "refuted"]),
        results("fig08", ["refuted"]),
    )
    loud = Results(eight.figure, "[red]loud[/]", "5.1", "c", eight.meta, [], eight.claims)
    none = Results("fig09", "t", "5.2", "c", six.meta, [], [])
    screen = StringIO()
    Console(width=80, file=screen).print(figures_table([six, loud, none]))
    head, *rows, caption = (line.split() for line in screen.getvalue().splitlines())
    assert head == "figure title main claim supported".split()
    assert rows[0] == ["fig06", *six.title.split(), "✓", "supported", "1", "of", "3"]
    assert rows[1] == ["fig08", "[red]loud[/]", "✗", "refuted", "0", "of", "1"]
    assert rows[2] == ["fig09", "t", "0", "of", "0"]
    assert " ".join(caption) == "1 supported, 1 inconclusive, 2 refuted"


def test_every_published_figure_fits_into_80_columns():
    every = [load(path) for path in sorted(COMMITTED.glob("*.json"))]
    screen = StringIO()
    Console(width=80, file=screen).print(figures_table(every))
    lines = screen.getvalue().splitlines()
    assert len(lines) == len(every) + 2
    assert all(result.title in line for result, line in zip(every, lines[1:-1], strict=True))


@pytest.mark.slow
def test_figures_and_report_run_without_torch():
    code = """
import sys
for name in ("torch", "transformers", "tokenizers", "accelerate"):
    sys.modules[name] = None  # importing it now fails
import analyses.results, figures, opdprobe.report
assert "matplotlib.pyplot" not in sys.modules  # it would choose a backend for the user
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# The page of claims


def test_the_page_of_claims_has_the_counts_and_a_row_for_each_claim():
    page = claims_markdown(
        [
            results("fig05", ["supported", "refuted"]),
            results("fig06", ["inconclusive", "supported"]),
        ]
    )
    assert "**4 distinct claims: 2 supported, 1 inconclusive, 1 refuted.**" in page
    rows = [line for line in page.splitlines() if line.startswith("| claim ")]
    assert len(rows) == 2 + 4  # a head a table, a row a claim
    assert "| claim 0 | > 80 % | 0.912 [0.85, 0.967] | g > 0.8 | ✓ supported |" in rows
    assert "## Figure 5 (§4.1): A title" in page


def repeating(figure, verdicts, repeats):
    """Results whose first claim repeats another figure's."""
    made = results(figure, verdicts)
    first, *rest = made.claims
    return replace(made, claims=[replace(first, repeats=repeats), *rest])


@pytest.mark.parametrize("order", [1, -1])
def test_a_comparison_that_two_figures_make_counts_once_and_is_marked(order, tmp_path):
    five, one = (
        results("fig05", ["refuted", "supported"]),
        repeating("fig01", ["refuted"], "fig05.0"),
    )
    both = [five, one][::order]
    assert counts(both) == {"supported": 1, "inconclusive": 0, "refuted": 1}
    # Without the figure that it repeats, it is the only one to say so.
    assert counts([one]) == {"supported": 0, "inconclusive": 0, "refuted": 1}
    text = claims_markdown(both)
    assert "**2 distinct claims: 1 supported, 0 inconclusive, 1 refuted.**" in text
    assert [line for line in text.splitlines() if "↑ |" in line] == [
        "| claim 0 ↑ | > 80 % | 0.912 [0.85, 0.967] | g > 0.8 | ✗ refuted |"
    ]
    for figure in ("fig01", "fig05"):
        picture(tmp_path, figure)
    shown = squeezed(page(tmp_path, *both).text)
    assert "1 supported 0 inconclusive 1 refuted" in shown
    assert shown.count("claim 0 ↑ > 80 %") == 1


def test_an_interval_says_its_level_if_it_is_another():
    made = results("fig05", ["supported"])
    (claim,) = made.claims
    text = claims_markdown([replace(made, claims=[replace(claim, level=0.9)])])
    assert "| 0.912 [0.85, 0.967] (90 %) |" in text


def test_the_page_of_the_testbeds_claims_says_how_they_were_planned():
    made = results("fig05", ["supported"])
    planned = "[the notebook](lab-notebook.md) says how"
    assert planned in claims_markdown([made])
    assert planned not in claims_markdown([replace(made, meta=replace(made.meta, preset="mine"))])


def test_a_bar_in_a_test_does_not_end_its_cell():
    result = results("fig05", ["supported"])
    claim = replace(result.claims[0], test="|difference| ≤ 0.1")
    (row,) = [
        line
        for line in claims_markdown([replace(result, claims=[claim])]).splitlines()
        if "difference" in line
    ]
    assert r"\|difference\| ≤ 0.1" in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


def test_the_pages_are_written_from_a_directory_and_checked(tmp_path):
    figures, from_ = tmp_path / "docs/figures", tmp_path / "results"
    save(results("fig06", ["supported"]), from_ / "fig06.json")
    with pytest.raises(OPDProbeError, match=r"claims\.md is missing or out of date"):
        check_pages(figures, from_)
    claims, gallery = write_pages(figures, from_)
    check_pages(figures, from_)
    assert "**1 distinct claim: 1 supported," in claims.read_text(encoding="utf-8")
    assert gallery.read_text(encoding="utf-8").splitlines()[4:] == [
        "## [Figure 6 (§4.1): A title](claims.md#figure-6-41-a-title)",
        "",
        "![Figure 6 (§4.1): A title](figures/fig06.png)",
    ]
    save(results("fig06", ["refuted"]), from_ / "fig06.json")
    with pytest.raises(OPDProbeError, match=r"write it again with `opdprobe figures`"):
        check_pages(figures, from_)
