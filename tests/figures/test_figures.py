"""Figures: each draws from its results, looks the same twice, and fails with a reason."""

import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from itertools import pairwise, zip_longest
from math import nan
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import figures
from analyses.registry import FIGURES
from analyses.results import Claim, Meta, Results, ResultsError, save
from opdprobe.report import marks, style
from opdprobe.report.panel import Heat, Panel, Reference, Series

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


LABELS = {
    "student": "pre-RL student",
    "teacher": "teacher − student",
    "rl_student": "RL'd teacher",
    "rl_base_large": "RL'd-base teacher",
    "rl_large": "teacher after RL",
    "large": "teacher before RL",
    "post_large": "other-pattern teacher",
    "extra_large": "still larger teacher",
    "success": "RL'd same-size teacher",
    "baseline": "k = 16",
    "base_rl": "toward the RL'd-base teacher",
    "large_success": "same teacher after RL",
    "failure": "larger same-pipeline teacher",
    "base_post": "toward the other-pattern teacher",
    "no_cold_start": "no cold start",
    "cold_teacher": "teacher",
    "large_failure": "larger same-pipeline teacher",
    "reverse_small": "toward its pre-RL checkpoint",
    "reverse_large": "toward the larger model",
    "cold_start": "cold start",
    "template_original": "original template",
    "content_other": "other in-domain prompts",
    "select_none": "neither",
    "select_template": "teacher's template",
    "select_mixed": "both, with other prompts",
    "select_divergence": "largest divergence",
    **{f"length_{i}": f"{n} tokens" for i, n in enumerate((32, 64, 128, 256, 384, 640), 1)},
    "sampled": "sampled token",
    **{f"k{k}": f"k = {k}" for k in (4, 64)},
    **{f"k{k}_pg": f"k = {k}, policy gradient" for k in (1, 4, 16, 64)},
    "direct": "direct gradient",
    "policy_gradient": "policy gradient",
    "support_overlap": "overlap top-k",
    "support_non_overlap": "non-overlap top-k",
    "before": "before RL",
    "after": "after RL",
    "no_cold_start_long": "no cold start, as many rollouts",
    "arm_larger": "larger teacher",
    "arm_family_2": "larger teacher, family 2",
    "arm_pattern": "other-pattern teacher",
    "arm_support": "non-overlap support",
    "arm_k1": "k = 1",
    "control_self": "the student itself",
    "control_base_self": "the base student itself",
    "control_still": "RL'd teacher, learning rate 0",
    "control_permuted": "RL'd teacher, tokens permuted",
    "tokens_entropy": "entropy",
    "tokens_reverse_kl": "reverse KL",
    "tokens_tip": "TIP",
    "tokens_early": "first positions",
    "tokens_random": "random",
    "tokens_kept": "the fifth that the selector keeps",
    "tokens_rest": "all others",
}
SELECTORS = [f"tokens_{name}" for name in ("entropy", "reverse_kl", "tip", "early", "random")]
LENGTHS = [f"length_{i}" for i in range(1, 7)]
SWEEP = ["sampled", "k1_pg", "k4_pg", "k4", "k16_pg", "baseline", "k64_pg", "k64"]
SELECTION = ["select_none", "select_template", "template_original", "select_mixed"]
SELECTION += ["select_divergence", "baseline"]
REVERSE = ["reverse_small", "reverse_large"]
CONTROLS = ["baseline", "control_self", "control_base_self", "control_still", "control_permuted"]
RL = {"failure": "before RL", "success": "after RL"}
FAMILIES = ["R1-Distill family", "Qwen3 family"]
BENCHMARKS = ["AIME24", "AIME25", "AMC23"]


def series(role, first=0.5, last=0.8, *, label="", band=0.02, x=range(100)):
    """A noisy approach from one level to another, with a band."""
    x = np.array(x)
    noise = np.random.default_rng(len(role)).normal(0, 0.05 * abs(last - first), len(x))
    y = last + (first - last) * np.exp(-x / 25) + noise
    ends = (y - band).tolist(), (y + band).tolist()
    return Series(role, label or LABELS[role], x.tolist(), y.tolist(), *ends)


def lines(title, roles, references=(), *, unit="", ticks=(), band=0.02, x=range(100), labels=()):
    """A panel of lines that end at different heights."""
    drawn = [
        series(role, last=0.8 - 0.05 * i, band=band, x=x, label=label)
        for i, (role, label) in enumerate(zip_longest(roles, labels))
    ]
    levels = [Reference(role, LABELS[role], 0.85 - 0.06 * i) for i, role in enumerate(references)]
    x_label = "training step" if not ticks else "tokens"
    y_label = title.lower() + unit
    return Panel(title, title, x_label, y_label, "line", drawn, levels, ticks)


def accuracy(roles, references=(), *, title="Accuracy", **options):
    panel = lines(title, roles, references, x=range(0, 100, 10), **options)
    return replace(panel, y_label="accuracy (avg@4)")


def bars(title, roles, ticks, *, labels=()):
    drawn = [
        series(role, last=0.9, band=0.07, x=range(len(ticks)), label=label)
        for role, label in zip_longest(roles, labels)
    ]
    return Panel(title, title, "", title.lower(), "bar", drawn, ticks=ticks)


def entropy_map(model):
    """Higher at the end of responses, which get longer with time."""
    steps, positions = np.arange(0, 120, 3), np.arange(16, 640, 32)
    z = 0.4 + np.add.outer(positions / 640, steps / 240)
    z[np.greater.outer(positions, 200 + 5 * steps)] = nan
    heat = Heat(steps.tolist(), positions.tolist(), z.tolist(), f"{model} entropy [nats]")
    axes = ("training step", "output position [tokens]")
    return Panel("entropy", f"{model.title()} entropy", *axes, "heatmap", [], heat=heat)


def histogram(name, title, shift):
    rng = np.random.default_rng(1)
    right, wrong = rng.normal(-0.10, 0.05, 310), rng.normal(-0.10 - shift, 0.08, 202)
    samples = [Series("correct", "correct", values=right.tolist())]
    samples.append(Series("incorrect", "incorrect", values=wrong.tolist()))
    return Panel(name, title, "sequence mean reward [nats]", "density", "histogram", samples)


def signature(success, failure, references):
    two = [success, failure]
    return [
        accuracy(two, references),
        lines("Overlap ratio", two),
        lines("Overlap-token advantage", two, unit=" [nats]"),
        lines("Entropy gap", two, unit=" [nats]"),
    ]


def masses(*roles):
    return [lines(f"{whose} overlap mass", roles) for whose in ("Student", "Teacher")]


def dynamics(roles):
    titles = {"Overlap ratio": "", "Student entropy": " [nats]", "Gradient norm": ""}
    return [lines(title, roles, unit=unit) for title, unit in titles.items()]


BASE, TWO = ["base_rl", "base_post"], ["success", "failure"]
PANELS = {
    "fig01": [
        bars("Gap recovery", ["before", "after"], FAMILIES),
        accuracy(REVERSE, ["student", "large"], title="Reverse distillation"),
        lines("Overlap ratio", TWO),
    ],
    "fig02": [accuracy(BASE, ["rl_base_large", "post_large"]), lines("Overlap ratio", BASE)],
    "fig03": [bars("Accuracy of the teachers", ["rl_base_large", "post_large"], BENCHMARKS)],
    "fig04": [
        *(accuracy(RL, ["large", "rl_large"], title=f, labels=RL.values()) for f in FAMILIES),
        bars("Gap recovery", RL, FAMILIES, labels=RL.values()),
    ],
    "fig05": [accuracy(REVERSE, ["student", "large"])],
    "fig06": signature("success", "failure", ["rl_student", "large"]),
    "fig07": [
        accuracy(["baseline", "support_overlap", "support_non_overlap"], ["rl_student"]),
        lines("Overlap ratio", ["baseline", "support_overlap", "support_non_overlap"]),
    ],
    "fig08": [
        accuracy(["cold_start", "no_cold_start", "no_cold_start_long"], ["cold_teacher"]),
        lines("Overlap ratio", ["no_cold_start", "cold_start"]),
        lines("Entropy gap", ["no_cold_start", "cold_start"], unit=" [nats]"),
    ],
    "fig09": [
        accuracy(
            ["baseline", "template_original"],
            ["rl_student"],
            title="Teacher's template",
        ),
        accuracy(["baseline", "template_original"], title="Original template"),
        lines("Overlap ratio", ["baseline", "template_original"]),
    ],
    "fig10": [
        accuracy(
            ["base_rl", "content_other"], ["rl_base_large"], title="Teacher's kind of problems"
        ),
        accuracy(["base_rl", "content_other"], title="Other kind of problems"),
        lines("Overlap ratio", ["base_rl", "content_other"]),
        lines("Student overlap mass", ["base_rl", "content_other"]),
        lines("Student entropy", ["base_rl", "content_other"], unit=" [nats]"),
    ],
    "fig11": [
        replace(
            lines("Accuracy by maximum length", ["success"], ["student"], x=range(6),
                  ticks=["32", "64", "128", "256", "384", "640"], labels=["final accuracy"]),
            x_label="maximum response length [tokens]",
        ),
        lines("Continuation gain", ["teacher"], x=range(4), ticks=["16", "64", "128", "224"]),
    ],
    "fig12": dynamics(LENGTHS),
    "fig13": [entropy_map("student")],
    "fig14": [
        histogram("probe_success", "RL'd same-size teacher", 0.06),
        histogram("probe_failure", "Larger same-pipeline teacher", 0.08),
    ],
    "fig15": [
        accuracy(SWEEP),
        lines("Final accuracy", ["direct", "policy_gradient"], x=range(5),
              ticks=["sampled", "1", "4", "16", "64"]),
    ],
    "fig16": dynamics(["sampled", "k1_pg", "k4", "baseline", "k64"]),
    "fig17": [accuracy(BASE, ["rl_base_large", "post_large"], title=b) for b in BENCHMARKS],
    "fig18": [
        lines(title, ["student", "teacher"], labels=["student mass", "teacher mass"], band=0.004)
        for title in ("Success", "Failure")
    ],
    "fig19": [
        lines("Loss", TWO, unit=" [nats]", band=nan),
        lines("Gradient norm", TWO, band=nan),
        lines("Extreme-advantage gap", TWO),
    ],
    "fig20": signature("large_success", "large_failure", ["rl_large", "extra_large"]),
    "fig21": masses("no_cold_start", "cold_start"),
    "fig22": [
        accuracy(["baseline", "template_original"], ["rl_student"], title=b) for b in BENCHMARKS
    ],
    "fig23": [entropy_map("teacher")],
    "fig25": [
        lines("Final accuracy", SELECTORS, x=range(4), ticks=["10 %", "20 %", "50 %", "all"]),
        bars("Gap recovery with a fifth of the tokens", ["tokens_kept"],
             ["entropy", "reverse KL", "TIP", "TA-OPD", "IER", "first positions", "IW-OPD",
              "reward"]),
    ],
    "fig26": [
        bars("Final accuracy", ["tokens_kept", "tokens_rest"],
             ["entropy", "reverse KL", "TIP", "first positions", "random"],
             labels=["the fifth", "all others"]),
        accuracy(["baseline", *SELECTORS], title="On the fifth that is kept"),
        accuracy(["baseline", *SELECTORS], title="On all others"),
    ],
    "fig27": [
        *(lines(title, ["success", "failure"], x=[0, 96, 192])
          for title in ("Cosine between prompts", "Cosine within a prompt", "What survives the sum",
                        "Gradient of a token")),
        lines("Spectrum", ["success", "failure"], x=range(8), ticks=[str(i) for i in range(1, 9)]),
        bars("As (a), before and after RL", RL,
             ["1, start", "1, later", "2, start", "2, later"], labels=RL.values()),
    ],
    "fig28": [
        Panel("alignment", "Cosine of the gradients", "cosine", "density", "histogram",
              [Series(role, LABELS[role], values=np.linspace(-1, 1, 90).tolist())
               for role in ("success", "failure")]),
        bars("By entropy and divergence", ["success", "failure"],
             ["sure, close", "unsure, close", "sure, apart", "unsure, apart"]),
        bars("What goes with it", ["success", "failure"],
             ["entropy", "reverse KL", "TIP", "TA-OPD", "IER", "first positions", "IW-OPD",
              "reward", "teacher's entropy", "overlap ratio", "Jensen–Shannon",
              "other first choice"]),
    ],
    "selection": [
        accuracy(SELECTION, ["rl_student"], title="Teacher's kind of problems"),
        accuracy(SELECTION, title="Other kind of problems"),
        lines("Overlap ratio", SELECTION),
    ],
    "rates": [
        replace(
            lines("Accuracy at the end",
                  ["arm_larger", "arm_family_2", "arm_pattern", "arm_support", "arm_k1"],
                  x=range(3), ticks=["0.25", "1", "4"]),
            x_label="learning rate, as a multiple of the usual one",
        ),
    ],
    "controls": [
        accuracy(CONTROLS, ["rl_student"]),
        lines("Overlap ratio", CONTROLS),
    ],
}  # fmt: skip


def example(name):
    """Realistic results of a figure."""
    runs = {r: {"student": "zoo:sft-small", "teacher": "zoo:rl-small", "steps": 100} for r in TWO}
    meta = Meta("quick", [0], 16, 6400, 204_800, "95 % bootstrap over rollouts", runs, "", "0.1.0")
    auroc = [
        Claim(f"fig14.{run}", "c", "0.73", 0.71, 0.66, 0.76, 0.95, [0.71], "> 0.6", "supported")
        for run in TWO
        if name == "fig14"
    ]
    return Results(name, "A title", "4.1", "The claim.", meta, PANELS[name], auroc)


def module(name):
    return import_module(f"figures.{name}")


@pytest.fixture(scope="module")
def results_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name in figures.figure_names():
        save(example(name), folder / f"{name}.json")
    return folder


# One of every kind of panel, and one of a single column. All are drawn where the published ones are
# compared with their results.
SOME = ["fig01", "fig05", "fig13", "fig14"]


@pytest.fixture(scope="module")
def drawn(results_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "new" / "figures"
    return out, figures.make(results_dir, out, SOME)


def plots(figure):
    """The axes of a figure's panels, without colour bars."""
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def drawn_text(figure):
    axes = plots(figure)
    titles = [ax.get_title(loc="left") for ax in axes]
    labels = [text for ax in axes for text in (ax.get_xlabel(), ax.get_ylabel())]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return titles, labels, legends


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_figure_shows_every_panel_with_labels_and_one_legend(name):
    results = example(name)
    figure = module(name).draw(results)
    titles, labels, legends = drawn_text(figure)
    assert len(titles) == len(results.panels)
    for title, panel in zip(titles, results.panels, strict=True):
        assert panel.title in title
    assert labels == [text for p in results.panels for text in (p.x_label, p.y_label)]
    shown = [line.label for p in results.panels for line in (*p.series, *p.references)]
    assert sorted(legends) == sorted(set(shown))
    bars = [ax.get_ylabel() for ax in figure.axes if ax not in plots(figure)]
    assert bars == [p.heat.label for p in results.panels if p.heat]


def assert_nothing_overlaps(figure):
    """The legend covers no axes, no text leaves the page or another, and none is below 7 pt."""
    figure.draw_without_rendering()
    page = figure.bbox
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    for i, box in enumerate(boxes):
        assert page.x0 - 1 <= box.x0
        assert box.x1 <= page.x1 + 1
        assert page.y0 - 1 <= box.y0
        assert box.y1 <= page.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:i])
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            boxes = [t.get_window_extent() for t in ticks if not t.get_rotation()]
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))  # aslant, boxes always do
    texts = [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, *ax.get_xticklabels())]
    texts += [t for legend in figure.legends for t in legend.get_texts()]
    assert min(t.get_fontsize() for t in texts) >= 7


@pytest.mark.parametrize("name", list(FIGURES))
def test_nothing_overlaps_or_is_cut_off(name):
    assert_nothing_overlaps(module(name).draw(example(name)))


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize(
    "text", ["k = {}", "teacher {} after RL", "toward larger teacher {} of its pipeline"]
)
def test_the_legend_takes_as_many_rows_as_its_labels_need(n, text):
    """Next to one panel and below two; one row where the labels are short enough."""
    labels = [text.format(i) for i in range(n)]
    shown = lines("Overlap ratio", LENGTHS[:1] * n, labels=labels)
    for panels in ([shown], [shown, shown]):
        figure = module("fig02").draw(replace(example("fig02"), panels=panels))
        assert_nothing_overlaps(figure)
        (legend,) = figure.legends
        width = sum(text.get_window_extent().width + 45 for text in legend.get_texts())
        rows = len({round(text.get_window_extent().y0) for text in legend.get_texts()})
        assert rows <= 1 + 1.5 * width / figure.bbox.width


@pytest.mark.parametrize(
    "ticks", [["a"], ["AIME24"] * 9, ["a long name of a benchmark"] * 3, ["AReallyLongName"] * 8]
)
def test_categories_of_any_number_and_length_are_readable(ticks):
    for panel in (
        bars("Accuracy", ["before", "after"], ticks),
        lines("Accuracy", ["success"], x=range(len(ticks)), ticks=ticks),
    ):
        for many in (1, 3):
            results = replace(example("fig03"), panels=[panel] * many)
            figure = module("fig03").draw(results)
            assert_nothing_overlaps(figure)
            written = [t.get_text().replace("\n", " ") for t in figure.axes[0].get_xticklabels()]
            assert written == ticks


@pytest.mark.parametrize(
    ("n", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 3), (7, 3, 3)]
)
def test_benchmarks_of_any_number_are_laid_out_in_rows(n, rows, columns):
    results = example("fig17")
    figure = module("fig17").draw(replace(results, panels=[results.panels[0]] * n))
    assert len(figure.axes) == n
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, columns)
    assert_nothing_overlaps(figure)


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_caption_names_runs_seeds_sizes_and_the_interval(name):
    text = module(name).caption(example(name))
    own = {
        "selection": "Data selection", "rates": "Learning rates", "controls": "Negative controls"
    }  # fmt: skip
    what = own.get(name) or f"Figure {int(name[3:])}"
    assert text.startswith(f"{what} (§4.1). A title. The paper's claim: The claim.")
    for part in ("zoo:rl-small", "seed 0", "k = 16", "6,400 rollouts", "204,800 states"):
        assert part in text
    assert "95 % bootstrap over rollouts" in text


def test_a_caption_says_whose_claim_a_figure_tests():
    text = module("fig25").caption(replace(example("fig25"), section=""))
    assert text.startswith("Figure 25. A title. What others claim: The claim.")


def test_caption_of_figure_14_counts_rollouts():
    assert "(a) 310 correct, 202 incorrect; (b) 310" in module("fig14").caption(example("fig14"))


def test_figure_14_carries_the_auroc_of_each_teacher():
    titles, _, _ = drawn_text(module("fig14").draw(example("fig14")))
    assert [title.split("\n")[1] for title in titles] == ["AUROC 0.71 [0.66, 0.76]"] * 2


def test_heat_maps_of_a_figure_share_one_colour_scale():
    low, high = (
        Panel("h", "h", "x", "y", "heatmap", [], heat=Heat([0], [1], [[z]], "z")) for z in (1, 3)
    )
    figure = module("fig13").draw(replace(example("fig13"), panels=[low, high]))
    assert [ax.collections[0].get_clim() for ax in plots(figure)] == [(1, 3), (1, 3)]
    assert_nothing_overlaps(figure)


@pytest.mark.parametrize("z", [nan, 0.5])
def test_a_heat_map_of_one_number_or_of_none_is_drawn(z):
    panel = Panel("h", "h", "x", "y", "heatmap", [], heat=Heat([3], [1], [[z]], "z"))
    figure = module("fig13").draw(replace(example("fig13"), panels=[panel]))
    assert_nothing_overlaps(figure)
    assert figure.axes[0].get_xlim() == (2.5, 3.5)


def test_axes_of_the_caller_are_filled_and_get_no_legend():
    own = Figure()
    axes = own.subplots(1, 2)
    assert module("fig07").draw(example("fig07"), axes) is own
    assert axes[1].get_ylabel() == "overlap ratio"
    assert not own.legends
    with pytest.raises(style.FigureError, match="fig07 has 2 panels, but there are 1 axes"):
        module("fig07").draw(example("fig07"), axes[:1])


def test_drawing_leaves_the_users_settings_alone():
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30}):
        before = dict(mpl.rcParams)
        figure = module("fig05").draw(example("fig05"))
        assert dict(mpl.rcParams) == before
    assert figure.axes[0].get_lines()[0].get_linewidth() == 1.3


def test_colours_are_of_palettes_for_the_colour_blind():
    import seaborn

    known = {to_hex(c) for c in seaborn.color_palette("colorblind")}
    crest = [to_hex(c) for c in seaborn.color_palette("crest", 6)]
    assert [style.ROLES[name].color for name in LENGTHS] == crest
    assert {r.color for r in style.ROLES.values()} <= {*known, *crest, style.INDIGO, style.DARK}


@pytest.mark.parametrize("name", list(FIGURES))
def test_all_in_a_panel_differs_without_colour(name):
    for panel in example(name).panels:
        looks = [style.role(line.role) for line in panel.series]
        every = [style.role(line.role) for line in (*panel.series, *panel.references)]
        assert len({look.marker for look in every}) == len(every)
        assert len({(look.color, look.linestyle) for look in looks}) == len(looks)
        if panel.kind in ("bar", "histogram"):
            assert len({look.hatch for look in looks}) == len(looks)


def test_dashes_differ_except_in_the_sweep_over_k_where_they_are_the_estimator():
    for name in set(FIGURES) - {"fig15", "fig16"}:
        for panel in example(name).panels:
            dashes = [style.role(line.role).linestyle for line in panel.series]
            assert len(set(dashes)) == len(dashes)
    for k in (4, 16, 64):
        direct, gradient = style.role(f"k{k}" if k != 16 else "success"), style.role(f"k{k}_pg")
        assert direct.color == gradient.color
        assert (direct.linestyle, gradient.linestyle) == (style.SOLID, style.DASHED)


@pytest.mark.parametrize("name", list(FIGURES))
def test_what_is_called_differently_in_a_figure_looks_different(name):
    shown = {}
    for panel in example(name).panels:
        for line in (*panel.series, *panel.references):
            kind = panel.kind if isinstance(line, Series) else "reference"
            shown.setdefault((kind, style.role(line.role)), set()).add(line.label)
    assert all(len(labels) == 1 for labels in shown.values())


def test_a_label_stands_in_the_legend_once_with_its_line_and_its_bar():
    one = Series("success", "after RL", [0], [0.5], [0.4], [0.6])
    both = [
        Panel("a", "A", "x", "y", "line", [one]),
        Panel("b", "B", "x", "y", "bar", [one], ticks=["one"]),
        Panel("c", "C", "x", "y", "line", [replace(one, role="failure")]),
    ]
    figure = module("fig04").draw(replace(example("fig04"), panels=both))
    assert drawn_text(figure)[2] == ["after RL", "after RL"]  # two looks, two entries
    shown = figure.legends[0].legend_handles
    assert [type(handle).__name__ for handle in shown] == ["Line2D", "Line2D"]
    assert len(figure.legends[0].findobj(Rectangle)) == 1


def test_an_unknown_role_lists_those_there_are():
    with pytest.raises(style.FigureError, match=r"no role 'succes'; expected one of student,"):
        marks.draw_lines(lines("Overlap ratio", ["succes"], labels=["s"]), Figure().subplots())


def test_make_writes_pdf_png_and_captions(drawn):
    out, written = drawn
    names = [f"{n}.{e}" for n in SOME for e in ("pdf", "png")]
    assert [path.name for path in written] == [*names, "captions.md"]
    assert sorted(out.iterdir()) == sorted(written)
    captions = (out / "captions.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", captions, re.M) == list(FIGURES)  # all that have results
    for name in SOME:
        caption = module(name).caption(example(name))
        assert caption in captions
        with Image.open(out / f"{name}.png") as image:
            assert image.info["Description"] == caption
            assert round(image.info["dpi"][0]) == 300
            alone = len(example(name).panels) == 1
            inches = style.SINGLE_COLUMN if alone else style.DOUBLE_COLUMN
            assert image.width == round(300 * inches)
        # Type 3 fonts are refused by some journals; type 42 shows as TrueType.
        pdf = (out / f"{name}.pdf").read_bytes()
        assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
        assert b"/Type3" not in pdf


def test_the_same_results_give_the_same_bytes_in_another_process(results_dir, drawn, tmp_path):
    code = f"import sys, figures; figures.make(*sys.argv[1:3], {SOME})"
    # No user's settings; but the list of fonts, which takes seconds to make.
    matplotlibs = {"MPLCONFIGDIR": mpl.get_cachedir()}
    subprocess.run(
        [sys.executable, "-c", code, results_dir, tmp_path],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)} | matplotlibs,
        check=True,
        timeout=240,
    )
    for path in drawn[1]:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


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


def test_by_default_all_figures_with_results_are_drawn(results_dir, tmp_path):
    some = tmp_path / "results"
    for name in ("selection", "fig03"):
        save(example(name), some / f"{name}.json")
    written = figures.make(some, tmp_path / "out")
    assert [path.name for path in written] == [
        *("fig03.pdf", "fig03.png", "selection.pdf", "selection.png"),
        "captions.md",
    ]
    (tmp_path / "out" / "selection.pdf").unlink()
    with pytest.raises(style.FigureError, match=r"^selection\.pdf in"):
        figures.check(some, tmp_path / "out")


@pytest.mark.parametrize("draw", [figures.make, figures.check])
def test_without_any_results_the_command_that_makes_them_is_named(draw, tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(ResultsError, match=r"no results in .*results; run `opdprobe reproduce`"):
        draw(tmp_path / "results", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_names_list_those_there_are(results_dir, tmp_path):
    with pytest.raises(style.FigureError, match=r"no figure fig6; expected one of fig01, fig02,"):
        figures.make(results_dir, tmp_path, ["fig6"])


def test_results_of_another_figure_are_refused(tmp_path):
    save(example("fig05"), tmp_path / "fig06.json")
    with pytest.raises(style.FigureError, match=r"fig06\.json holds the results of fig05"):
        figures.make(tmp_path, tmp_path / "out", ["fig06"])
