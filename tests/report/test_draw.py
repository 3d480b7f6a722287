"""Figures are files of the format that their names say, complete or absent."""

import pytest

from opdprobe.report.draw import save
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
