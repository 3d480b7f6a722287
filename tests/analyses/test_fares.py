"""The section on selectors in the page of diagnostics says what the results say, and is current."""

from pathlib import Path

import pytest

import figures
from analyses.experiments import SELECTED
from analyses.fares import BEGIN, COLUMNS, END, fares_markdown, with_fares
from analyses.pages import check_pages, write_pages
from analyses.results import Claim, Meta, Results, load, save
from opdprobe.errors import OPDProbeError
from opdprobe.probes.selectors import SELECTORS

PAGE = Path(__file__).parents[2] / "docs/diagnostics.md"
META = Meta("full", [5, 6, 7], 16, 1, 1, "none", {}, "", "0.1.0")


def made(figure, *claims):
    return Results(figure, "t", "", "c", META, [], claims)


def claim(name, value, verdict):
    low, high = value - 0.01, value + 0.01
    return Claim(name, "c", "p", value, low, high, 0.95, [value], "t", verdict)


def rows_of(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[1:]}


def test_each_cell_is_a_claim():
    text = fares_markdown(
        [
            made("fig24", claim("fig25.tip_chosen", 9.0, "supported")),  # of no concern
            made(
                "fig25",
                claim("fig25.entropy_suffices", -0.2, "refuted"),
                claim("fig25.entropy_chosen", 0.3, "supported"),
            ),
            made("fig26", claim("fig26.early_needed", 0.05, "inconclusive")),
        ]
    )
    rows = rows_of(text)
    assert list(rows) == [SELECTED[name] for name in SELECTORS] == list(SELECTED.values())
    want = {
        ("entropy", "as good as all"): "✗ −0.2 [−0.21, −0.19]",
        ("entropy", "better than a random fifth"): "✓ 0.3 [0.29, 0.31]",
        ("first positions", "missed more than a random fifth"): "– 0.05 [0.04, 0.06]",
    }
    for name, row in rows.items():
        assert list(row) == list(COLUMNS)
        for column, cell in row.items():
            assert cell == want.get((name, column), "not tried")
    assert "seeds 5, 6, 7" in text


def test_without_the_figures_it_says_so():
    assert "not published yet" in fares_markdown([made("fig24")])


def test_only_what_is_between_the_marks_is_written():
    page = f"# Mine\n{BEGIN}\nold\n{END}\nrest\n"
    found = with_fares(page, [])
    assert found.startswith(f"# Mine\n{BEGIN}\n\nThe runs")
    assert found.endswith(f"{END}\nrest\n")
    assert with_fares(found, []) == found
    for other in ("# Mine\n", f"{BEGIN}\nno end", f"{END}\n"):
        assert with_fares(other, []) == other


def test_the_page_is_written_and_checked_beside_the_figures(tmp_path):
    save(made("fig25", claim("fig25.tip_chosen", 0.1, "supported")), tmp_path / "r/fig25.json")
    page = tmp_path / "docs/diagnostics.md"
    page.parent.mkdir()
    page.write_text(f"{BEGIN}\n{END}\n")
    assert page in write_pages(tmp_path / "docs/figures", tmp_path / "r")
    assert "✓ 0.1" in page.read_text()
    check_pages(tmp_path / "docs/figures", tmp_path / "r")
    page.write_text(page.read_text().replace("✓ 0.1", "✓ 0.9"))
    with pytest.raises(OPDProbeError, match=r"diagnostics.md is missing or out of date"):
        check_pages(tmp_path / "docs/figures", tmp_path / "r")


def test_the_published_page_is_current():
    results = [load(path) for path in sorted(figures.COMMITTED.glob("*.json"))]
    text = PAGE.read_text(encoding="utf-8")
    assert BEGIN in text
    assert with_fares(text, results) == text
