"""Figures are files of the format that their names say, complete or absent."""

import pytest
from matplotlib.axes import Axes

from opdprobe.report.draw import draw, save
from opdprobe.report.panel import Panel, Series

PANEL = Panel(
    "a", "a", "x", "y", "line", [Series("success", "s", [0, 1], [0.1, 0.2], [0, 0], [1, 1])]
)


@pytest.mark.parametrize(
    ("name", "written", "begins"),
    [
        ("a.png", "a.png", b"\x89PNG"),
        ("a.pdf", "a.pdf", b"%PDF"),
        ("a", "a.png", b"\x89PNG"),
    ],
)
def test_a_names_suffix_sets_the_format(tmp_path, name, written, begins):
    save([PANEL], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [written]
    assert (tmp_path / written).read_bytes().startswith(begins)


def test_an_unknown_format_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="supported formats"):
        save([PANEL], tmp_path / "a.xyz")
    assert list(tmp_path.iterdir()) == []


def test_long_names_leave_room_for_the_axes():
    long = [f"begins {'x' * 400} ends {i}" for i in range(2)]
    series = [
        Series(role, label, [0, 1], [0.1, 0.2], [0, 0], [1, 1])
        for role, label in zip(("success", "failure"), long, strict=True)
    ]
    figure = draw([Panel("a", long[0], "x" * 400, "y" * 400, "line", series)])
    figure.draw_without_rendering()
    (axes,) = figure.findobj(Axes)
    assert axes.get_window_extent().width > 0.15 * figure.bbox.width
    legend = axes.get_legend()
    assert legend is not None
    shown = [text.get_text() for text in legend.get_texts()]
    assert [text.replace("x", "") for text in shown] == ["begins … ends 0", "begins … ends 1"]
    assert len(axes.get_title(loc="left").splitlines()) <= 4
