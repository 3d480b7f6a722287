"""Draw all curves of one run, or of two in the same axes."""

from collections.abc import Sequence
from io import BytesIO
from math import ceil
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opdprobe.report.marks import draw_heatmap, draw_lines, heat_limits
from opdprobe.report.panel import Panel
from opdprobe.report.style import DOUBLE_COLUMN, SINGLE_COLUMN, style
from opdprobe.store.files import write_whole

_COLUMNS = 3
_HEIGHT = 1.75  # inches, of a row
_TITLE = 34  # characters that fit on one line
# Most characters of texts that come from runs, of which any length would push the axes away.
_LONGEST_TITLE, _LONGEST_LABEL = 3 * _TITLE, 44


def draw(panels: Sequence[Panel]) -> Figure:
    """Draw the panels of one run, or of two, in rows of three; heat maps come last.

    Parameters
    ----------
    panels
        Lines and heat maps, such as those of `opdprobe.report.course.course_panels`; heat maps
        share one colour scale.

    Returns
    -------
    matplotlib.figure.Figure
        Two columns wide.
    """
    limits = heat_limits(panels)
    maps = [panel for panel in panels if panel.kind == "heatmap"]
    groups = [group for group in ([p for p in panels if p not in maps], maps) if group]
    n_rows = [ceil(len(group) / _COLUMNS) for group in groups]
    explained = set()
    with style():
        figure = Figure(figsize=(DOUBLE_COLUMN, _HEIGHT * sum(n_rows)), layout="constrained")
        # Separate subfigures, since colour bars take space from every row of their grid.
        parts = figure.subfigures(len(groups), squeeze=False, height_ratios=n_rows).ravel()
        for part, group, n in zip(parts, groups, n_rows, strict=True):
            axes = part.subplots(n, _COLUMNS, squeeze=False).ravel()
            for ax in axes[len(group) :]:
                ax.remove()
            for ax, panel in zip(axes, group, strict=False):
                _draw(panel, ax, limits)
                ax.set_title(fill(_shortened(panel.title, _LONGEST_TITLE), _TITLE), loc="left")
                # The title already names the quantity.
                quantity, bracket, unit = panel.y_label.partition("[")
                if quantity.strip().lower() == panel.title.lower():
                    ax.set_ylabel(_shortened(bracket + unit))
                labels = tuple(series.label for series in panel.series)
                if labels in explained:
                    ax.get_legend().remove()
                elif len(labels) > 1:
                    explained.add(labels)
        return figure


def save(panels: Sequence[Panel], path: str | Path) -> None:
    """Draw and write to `path`, completely or not at all, in the format of its suffix (or PNG)."""
    path = Path(path)
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    with style():
        figure = draw(panels)
        write_whole(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


def images(panels: Sequence[Panel]) -> list[bytes]:
    """Draw each panel as an image of its own, for a page that lays them out.

    Parameters
    ----------
    panels
        Lines and heat maps; heat maps share one colour scale.

    Returns
    -------
    list of bytes
        One PNG per panel, 3.3 inches wide at 200 dots per inch, without the panel's title.
    """
    limits = heat_limits(panels)
    drawn = []
    with style():
        for panel in panels:
            figure = Figure(figsize=(SINGLE_COLUMN, 2.2), layout="constrained")
            _draw(panel, figure.subplots(), limits)
            buffer = BytesIO()
            figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
            drawn.append(buffer.getvalue())
    return drawn


def _draw(panel: Panel, ax: Axes, limits: tuple[float, float]) -> None:
    if panel.kind == "heatmap":
        draw_heatmap(panel, ax, limits)
    else:
        draw_lines(panel, ax)
    ax.set(xlabel=_shortened(panel.x_label), ylabel=_shortened(panel.y_label))
    if len(panel.series) > 1:
        marks, labels = ax.get_legend_handles_labels()
        ax.legend(marks, [_shortened(label) for label in labels])


def _shortened(text: str, most: int = _LONGEST_LABEL) -> str:
    """Leave out the middle of a long text: names of runs differ at their ends."""
    half = most // 2
    return text if len(text) <= most else f"{text[: half - 1]}…{text[-half:]}"
