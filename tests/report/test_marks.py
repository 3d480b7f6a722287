"""What a panel shows: the numbers it was given, and nothing where there is none."""

from itertools import pairwise
from math import inf, nan

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from opdprobe.report import marks
from opdprobe.report.panel import Heat, Panel, Reference, Series


def test_lines_bands_and_references_are_the_numbers_of_the_panel():
    run = Series("success", "s", [0, 1, 2], [0.1, 0.2, nan], [0.0, 0.1, nan], [0.2, 0.3, nan])
    panel = Panel("a", "a", "x", "y", "line", [run], [Reference("large", "r", 0.9)])
    ax = Figure().subplots()
    marks.draw_lines(panel, ax)
    run, level = ax.get_lines()
    np.testing.assert_array_equal(run.get_xydata(), [[0, 0.1], [1, 0.2], [2, nan]])
    np.testing.assert_array_equal(level.get_ydata(), [0.9, 0.9])
    corners = {tuple(v) for path in ax.collections[0].get_paths() for v in np.array(path.vertices)}
    assert {(0, 0), (1, 0.1), (0, 0.2), (1, 0.3)} <= corners
    assert (run.get_label(), level.get_label()) == ("s", "r")


def test_lines_over_categories_stand_at_their_ticks():
    run = Series("success", "s", [0, 2], [0.1, 0.2], [0.0, 0.1], [0.2, 0.3])
    panel = Panel("a", "a", "x", "y", "line", [run], ticks=["one", "two", "three"])
    ax = Figure().subplots()
    marks.draw_lines(panel, ax)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["one", "two", "three"]
    np.testing.assert_array_equal(ax.get_xticks(), [0, 1, 2])
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [0, 2])
    assert ax.get_xlim() == (-0.5, 2.5)


def test_bars_stand_beside_each_other_with_their_intervals():
    panel = Panel(
        "b", "b", "", "y", "bar",
        [
            Series("before", "before", [0, 1], [0.2, -0.1], [0.1, -0.2], [0.3, 0.0]),
            # The second interval does not contain its value, and the third is none.
            Series("after", "after", [0, 1, 2], [0.6, 0.9, nan], [0.5, 0.5, nan], [0.7, 0.6, nan]),
        ],
        [Reference("teacher", "teacher", 0.8)],
        ["one", "two", "three"],
    )  # fmt: skip
    ax = Figure().subplots()
    marks.draw_bars(panel, ax)
    found = [[(p.get_x() + p.get_width() / 2, p.get_height()) for p in c] for c in ax.containers]
    np.testing.assert_allclose(found[0], [[-0.2, 0.2], [0.8, -0.1]])
    np.testing.assert_allclose(found[1], [[0.2, 0.6], [1.2, 0.9], [2.2, nan]])
    sides = sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches)
    assert all(a[1] <= b[0] for a, b in pairwise(sides))
    intervals = [c.get_segments() for c in ax.collections]
    np.testing.assert_allclose(intervals[0], [[[-0.2, 0.1], [-0.2, 0.3]], [[0.8, -0.2], [0.8, 0]]])
    np.testing.assert_allclose(intervals[1][1], [[1.2, 0.5], [1.2, 0.6]])
    assert sorted(ax.get_legend_handles_labels()[1]) == ["after", "before", "teacher"]
    assert len({p.get_hatch() for p in ax.patches}) == 2


def test_a_heat_map_shows_each_number_in_its_cell_and_grey_where_there_is_none():
    heat = Heat([0, 10, 20], [16, 48], [[0.5, 1.0, 1.5], [2.0, nan, inf]], "entropy [nats]")
    panel = Panel("h", "h", "step", "position", "heatmap", [], heat=heat)
    figure = Figure()
    ax = figure.subplots()
    marks.draw_heatmap(panel, ax, marks.heat_limits([panel]))
    (mesh,) = ax.collections
    np.testing.assert_array_equal(mesh.get_array().filled(nan), [[0.5, 1.0, 1.5], [2.0, nan, nan]])
    corners = mesh.get_coordinates()
    np.testing.assert_array_equal(corners[0, :, 0], [-5, 5, 15, 25])
    np.testing.assert_array_equal(corners[:, 0, 1], [0, 32, 64])
    assert mesh.get_clim() == (0.5, 2.0)
    assert figure.axes[1].get_ylabel() == "entropy [nats]"
    figure.draw_without_rendering()
    *_, opacity = mesh.get_facecolors()[4]
    assert opacity == 0  # the grey of the axes shows
    assert to_hex(ax.get_facecolor()) == to_hex(marks.NOTHING)
    lightness = mesh.get_facecolors()[[0, 1, 2, 3], :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()  # readable in black and white


def test_histograms_share_bins_are_densities_and_mark_the_median():
    panel = Panel(
        "h", "h", "x", "y", "histogram",
        [
            Series("correct", "right", values=[0.0, 1.0, 2.0, nan]),
            Series("incorrect", "wrong", values=[2.0, 5.0]),
        ],
    )  # fmt: skip
    ax = Figure().subplots()
    marks.draw_histogram(panel, ax)
    outlines = [np.array(patch.get_path().vertices) for patch in ax.patches if not patch.get_fill()]
    edges = [np.unique(xy[:, 0]) for xy in outlines]
    np.testing.assert_allclose(edges[0], np.linspace(0, 5, marks.N_BINS + 1))
    np.testing.assert_array_equal(edges[0], edges[1])
    for xy in outlines:  # a step outline: the area below it is the sum over its flat pieces
        np.testing.assert_allclose(np.sum(np.diff(xy[:, 0]) * xy[1:, 1]), 1)
    assert [list(np.array(line.get_xdata())) for line in ax.get_lines()] == [[1.0], [3.5]]


def test_a_sample_without_values_leaves_the_other(recwarn):
    some, none = Series("correct", "right", values=[1.0]), Series("incorrect", "w", values=[])
    for series in ([some, none], [none]):
        ax = Figure().subplots()
        marks.draw_histogram(Panel("h", "h", "x", "y", "histogram", series), ax)
        assert len(ax.get_lines()) == len(series) - 1
    assert not recwarn.list
