"""What is published: results, the figures drawn from them, and the page of their claims agree."""

from importlib.metadata import version
from pathlib import Path

import pytest

import figures
from analyses.pages import check_pages
from analyses.presets import PRESETS
from analyses.reasons import DOUBTS, REASONS
from analyses.registry import FIGURES
from analyses.results import load

ROOT = Path(__file__).parents[2]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)


@pytest.fixture(scope="module")
def published():
    return {path.stem: load(path) for path in sorted(figures.COMMITTED.glob("*.json"))}


def test_there_are_results_for_every_figure_of_five_seeds_and_one_commit(published):
    assert sorted(published) == sorted(FIGURES)
    for figure, result in published.items():
        assert result.figure == figure
        assert result.claims
        assert result.meta.preset == "full"
        assert list(result.meta.seeds) == list(PRESETS["full"].seeds)
        assert result.meta.commit
        assert result.meta.config


def test_the_results_are_small():
    assert sum(path.stat().st_size for path in figures.COMMITTED.iterdir()) < 5e6


@pytest.mark.skipif(
    version("matplotlib") != PINNED["matplotlib"],
    reason="another release of Matplotlib draws other bytes",
)
@pytest.mark.slow
@pytest.mark.parametrize(("results", "pages"), [("", "docs"), ("real", "docs/smollm2")])
def test_the_figures_are_what_the_results_give(results, pages):
    figures.check(figures.COMMITTED / results, ROOT / pages / "figures")


def test_every_claim_that_is_not_supported_says_why(published):
    verdicts = {c.id: c.verdict for result in published.values() for c in result.claims}
    assert set(REASONS) <= set(verdicts)
    assert {verdicts[name] for name in DOUBTS} == {"supported"}
    assert {name for name, verdict in verdicts.items() if verdict != "supported"} <= set(REASONS)


@pytest.mark.parametrize(("results", "pages"), [("", "docs"), ("real", "docs/smollm2")])
def test_claims_and_gallery_are_what_the_results_give(results, pages):
    check_pages(ROOT / pages / "figures", figures.COMMITTED / results)
