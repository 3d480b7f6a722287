"""Figures: each draws from its results, looks the same twice, and fails with a reason."""

import re
import subprocess
import sys
from math import nan
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import seaborn
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import figures
from analyses.results import Claim, Meta, Panel, Reference, Results, ResultsError, Series, save
from figures import panels, style
from figures.make import FIGURES

STEPS = np.arange(0, 100)
ROOT = Path(__file__).parents[1]


def course(role, label, first, last, *, band=0.02, seed=0, steps=STEPS):
    """A noisy approach from one level to another, with a band."""
    noise = np.random.default_rng(seed).normal(0, 0.05 * abs(last - first), len(steps))
    y = last + (first - last) * np.exp(-steps / 25) + noise
    x = steps.tolist()
    return Series(role, label, x, y.tolist(), (y - band).tolist(), (y + band).tolist())


def line_panel(name, title, y_label, *series, references=()):
    return Panel(name, title, "training step", y_label, "line", series, references)


def accuracy(*series, references=()):
    return line_panel("accuracy", "Accuracy", "accuracy (avg@4)", *series, references=references)


def histogram(name, title, shift):
    rng = np.random.default_rng(1)
    right, wrong = rng.normal(-0.10, 0.05, 310), rng.normal(-0.10 - shift, 0.08, 202)
    samples = [Series("correct", "correct", values=right.tolist())]
    samples.append(Series("incorrect", "incorrect", values=wrong.tolist()))
    return Panel(name, title, "sequence mean reward [nats]", "density", "histogram", samples)


def example(name):
    """Realistic results of a figure."""
    rl = Reference("rl_student", "RL'd teacher", 0.86)
    large = Reference("large", "larger teacher", 0.72)
    evaluated = STEPS[::10]
    two = {"success": "RL'd same-size teacher", "failure": "larger same-pipeline teacher"}

    def pair(success, failure, **options):
        ends = zip(two.items(), (success, failure), strict=True)
        return [course(r, label, *e, seed=i, **options) for i, ((r, label), e) in enumerate(ends)]

    three = {"success": 0.86, "support_overlap": 0.85, "support_non_overlap": 0.63}
    content = {
        "fig05": lambda: [
            accuracy(
                course("reverse_small", "toward its pre-RL checkpoint", 0.86, 0.5, steps=evaluated),
                course("reverse_large", "toward the larger model", 0.86, 0.53, steps=evaluated),
                references=[Reference("student", "pre-RL student", 0.5), large],
            )
        ],
        "fig06": lambda: [
            accuracy(
                *pair((0.5, 0.85), (0.5, 0.55), steps=evaluated, band=0.04), references=[rl, large]
            ),
            line_panel(
                "overlap", "Overlap ratio", "overlap ratio", *pair((0.72, 0.91), (0.7, 0.7))
            ),
            line_panel(
                "advantage",
                "Overlap-token advantage",
                "overlap-token advantage [nats]",
                *pair((-0.02, -0.001), (-0.018, -0.016), band=0.001),
            ),
            line_panel("gap", "Entropy gap", "entropy gap [nats]", *pair((0.4, 0.1), (0.3, 0.3))),
        ],
        "fig07": lambda: [
            accuracy(
                *(course(r, r, 0.5, end, steps=evaluated) for r, end in three.items()),
                references=[Reference("rl_student", "teacher", 0.86)],
            ),
            line_panel(
                "overlap",
                "Overlap ratio",
                "overlap ratio",
                *(course(r, r, 0.72, end) for r, end in three.items()),
            ),
        ],
        "fig14": lambda: [
            histogram("probe_success", "RL'd same-size teacher", 0.06),
            histogram("probe_failure", "Larger same-pipeline teacher", 0.08),
        ],
        "fig18": lambda: [
            line_panel(
                title.lower(),
                title,
                "overlap mass",
                course("student", "student mass", first, 0.985, band=0.004),
                course("teacher", "teacher mass", first - 0.01, 0.98, band=0.004),
            )
            for title, first in {"Success": 0.97, "Failure": 0.98}.items()
        ],
        "fig19": lambda: [
            line_panel("loss", "Loss", "loss [nats]", *pair((0.3, 0.03), (0.12, 0.1), band=nan)),
            line_panel("norm", "Gradient norm", "gradient norm", *pair((3, 0.5), (1, 1), band=nan)),
            line_panel(
                "extreme",
                "Extreme-advantage gap",
                "extreme-advantage gap",
                *pair((0.1, 0.01), (0.09, 0.08)),
            ),
        ],
    }[name]()
    runs = {r: {"student": "zoo:sft-small", "teacher": "zoo:rl-small", "steps": 100} for r in two}
    meta = Meta("quick", [0], 16, 6400, 204_800, "95 % bootstrap over rollouts", runs, "", "0.1.0")
    auroc = [
        Claim(f"fig14.{run}", "it separates", "0.73", 0.71, 0.66, 0.76, "", "≥ 0.60", "shown")
        for run in two
        if name == "fig14"
    ]
    return Results(name, "A title", "4.1", "The claim.", meta, content, auroc)


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name in figures.figure_names():
        save(example(name), folder / f"{name}.json")
    return folder


def drawn_text(figure):
    axes = figure.axes
    titles = [ax.get_title(loc="left") for ax in axes]
    labels = [text for ax in axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return titles, labels, legends


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_figure_shows_every_panel_with_labels_and_one_legend(name):
    results = example(name)
    titles, labels, legends = drawn_text(FIGURES[name].draw(results))
    assert len(titles) == len(results.panels)
    for title, panel in zip(titles, results.panels, strict=True):
        assert panel.title in title
    assert labels == [text for p in results.panels for text in (p.x_label, p.y_label)]
    shown = [line.label for p in results.panels for line in (*p.series, *p.references)]
    assert sorted(legends) == sorted(set(shown))


@pytest.mark.parametrize("name", list(FIGURES))
def test_nothing_overlaps_or_is_cut_off(name):
    """The legend covers no axes, no text leaves the page, and no text is below 7 pt."""
    figure = FIGURES[name].draw(example(name))
    figure.draw_without_rendering()
    page, legend = figure.bbox, figure.legends[0].get_window_extent()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    for box in boxes:
        assert not box.overlaps(legend)
    for box in (*boxes, legend):
        assert page.x0 - 1 <= box.x0
        assert box.x1 <= page.x1 + 1
        assert page.y0 - 1 <= box.y0
        assert box.y1 <= page.y1 + 1
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
    texts = [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, *ax.get_xticklabels())]
    assert min(t.get_fontsize() for t in (*texts, *figure.legends[0].get_texts())) >= 7


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_caption_names_runs_seeds_sizes_and_the_interval(name):
    text = FIGURES[name].caption(example(name))
    assert text.startswith(f"Figure {int(name[3:])} (§4.1). A title. The paper's claim: The claim.")
    for part in ("zoo:rl-small", "seed 0", "k = 16", "6,400 rollouts", "204,800 states"):
        assert part in text
    assert "95 % bootstrap over rollouts" in text


def test_caption_of_figure_14_counts_rollouts():
    assert "(a) 310 correct, 202 incorrect; (b) 310" in FIGURES["fig14"].caption(example("fig14"))


def test_figure_14_carries_the_auroc_of_each_teacher():
    titles, _, _ = drawn_text(FIGURES["fig14"].draw(example("fig14")))
    assert [title.split("\n")[1] for title in titles] == ["AUROC 0.71 [0.66, 0.76]"] * 2


def test_lines_bands_and_references_are_the_numbers_of_the_panel():
    series = Series("success", "s", [0, 1, 2], [0.1, 0.2, nan], [0.0, 0.1, nan], [0.2, 0.3, nan])
    panel = accuracy(series, references=[Reference("large", "r", 0.9)])
    ax = Figure().subplots()
    panels.draw_lines(panel, ax)
    run, level = ax.get_lines()
    np.testing.assert_array_equal(run.get_xydata(), [[0, 0.1], [1, 0.2], [2, nan]])
    np.testing.assert_array_equal(level.get_ydata(), [0.9, 0.9])
    corners = {tuple(v) for path in ax.collections[0].get_paths() for v in np.array(path.vertices)}
    assert {(0, 0), (1, 0.1), (0, 0.2), (1, 0.3)} <= corners
    assert (run.get_label(), level.get_label()) == ("s", "r")


def test_histograms_share_bins_are_densities_and_mark_the_median():
    panel = Panel(
        "h", "h", "x", "y", "histogram",
        [
            Series("correct", "right", values=[0.0, 1.0, 2.0, nan]),
            Series("incorrect", "wrong", values=[2.0, 5.0]),
        ],
    )  # fmt: skip
    ax = Figure().subplots()
    panels.draw_histogram(panel, ax)
    outlines = [np.array(patch.get_path().vertices) for patch in ax.patches if not patch.get_fill()]
    edges = [np.unique(xy[:, 0]) for xy in outlines]
    np.testing.assert_allclose(edges[0], np.linspace(0, 5, panels.N_BINS + 1))
    np.testing.assert_array_equal(edges[0], edges[1])
    for xy in outlines:  # a step outline: the area below it is the sum over its flat pieces
        np.testing.assert_allclose(np.sum(np.diff(xy[:, 0]) * xy[1:, 1]), 1)
    assert [list(np.array(line.get_xdata())) for line in ax.get_lines()] == [[1.0], [3.5]]


def test_a_sample_without_values_leaves_the_other(recwarn):
    some, none = Series("correct", "right", values=[1.0]), Series("incorrect", "w", values=[])
    for series in ([some, none], [none]):
        ax = Figure().subplots()
        panels.draw_histogram(Panel("h", "h", "x", "y", "histogram", series), ax)
        assert len(ax.get_lines()) == len(series) - 1
    assert not recwarn.list


def test_axes_of_the_caller_are_filled_and_get_no_legend():
    own = Figure()
    axes = own.subplots(1, 2)
    assert FIGURES["fig07"].draw(example("fig07"), axes) is own
    assert axes[1].get_ylabel() == "overlap ratio"
    assert not own.legends
    with pytest.raises(style.FigureError, match="fig07 has 2 panels, but there are 1 axes"):
        FIGURES["fig07"].draw(example("fig07"), axes[:1])


def test_drawing_leaves_the_users_settings_alone():
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30}):
        before = dict(mpl.rcParams)
        figure = FIGURES["fig05"].draw(example("fig05"))
        assert dict(mpl.rcParams) == before
    assert figure.axes[0].get_lines()[0].get_linewidth() == 1.3


def test_roles_are_seaborns_colour_blind_palette():
    known = {to_hex(c) for c in seaborn.color_palette("colorblind")}
    assert {r.color for r in style.ROLES.values()} <= known


@pytest.mark.parametrize("name", list(FIGURES))
def test_lines_of_a_figure_differ_without_colour(name):
    results = example(name)
    for panel in results.panels:
        looks = [style.role(line.role) for line in panel.series]
        assert len({look.marker for look in looks}) == len(looks)
        assert len({str(look.linestyle) for look in looks}) == len(looks)
        every = [style.role(line.role) for line in (*panel.series, *panel.references)]
        assert len({look.marker for look in every}) == len(every)


def test_an_unknown_role_lists_those_there_are():
    with pytest.raises(style.FigureError, match=r"no role 'succes'; there are student, teacher,"):
        panels.draw_lines(accuracy(course("succes", "s", 0, 1)), Figure().subplots())


def test_make_writes_pdf_png_and_captions(results_dir, tmp_path):
    out = tmp_path / "new" / "figures"
    written = figures.make(results_dir, out)
    names = [f"{n}.{e}" for n in figures.figure_names() for e in ("pdf", "png")]
    assert [path.name for path in written] == [*names, "captions.md"]
    assert sorted(out.iterdir()) == sorted(written)
    captions = (out / "captions.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", captions, re.M) == figures.figure_names()
    for name in figures.figure_names():
        caption = FIGURES[name].caption(example(name))
        assert caption in captions
        with Image.open(out / f"{name}.png") as image:
            assert image.info["Description"] == caption
            assert round(image.info["dpi"][0]) == 300
            inches = style.SINGLE_COLUMN if name == "fig05" else style.DOUBLE_COLUMN
            assert image.width == round(300 * inches)
        # Type 3 fonts are refused by some journals; type 42 shows as TrueType.
        pdf = (out / f"{name}.pdf").read_bytes()
        assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
        assert b"/Type3" not in pdf


def test_the_same_results_give_the_same_bytes_in_another_process(results_dir, tmp_path):
    first = figures.make(results_dir, tmp_path / "first", ["fig06", "fig14"])
    code = "import sys, figures; figures.make(*sys.argv[1:3], ['fig06', 'fig14'])"
    subprocess.run(
        [sys.executable, "-c", code, results_dir, tmp_path / "second"],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path)},
        check=True,
    )
    for path in first:
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_check_tells_what_is_not_up_to_date(results_dir, tmp_path):
    with pytest.raises(
        style.FigureError, match=r"fig05\.pdf, fig05\.png, captions\.md in .*missing"
    ):
        figures.check(results_dir, tmp_path, ["fig05"])
    assert not list(tmp_path.iterdir())
    figures.make(results_dir, tmp_path, ["fig05"])
    figures.check(results_dir, tmp_path, ["fig05"])
    (tmp_path / "fig05.png").write_bytes(b"edited")
    with pytest.raises(style.FigureError, match=r"^fig05\.png in .*opdprobe figures --results"):
        figures.check(results_dir, tmp_path, ["fig05"])


def test_missing_results_name_the_command_and_nothing_is_written(results_dir, tmp_path):
    save(example("fig05"), tmp_path / "results" / "fig05.json")
    with pytest.raises(ResultsError, match="`opdprobe reproduce --only fig06`"):
        figures.make(tmp_path / "results", tmp_path / "out", ["fig05", "fig06"])
    assert not (tmp_path / "out").exists()


def test_unknown_names_list_those_there_are(results_dir, tmp_path):
    with pytest.raises(style.FigureError, match=r"no figure fig6; there are fig05, fig06,"):
        figures.make(results_dir, tmp_path, ["fig6"])


def test_results_of_another_figure_are_refused(tmp_path):
    save(example("fig05"), tmp_path / "fig06.json")
    with pytest.raises(style.FigureError, match=r"fig06\.json holds the results of fig05"):
        figures.make(tmp_path, tmp_path / "out", ["fig06"])
