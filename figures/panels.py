"""What figures are made of: axes, lines with bands, histograms, one legend, the caption."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analyses.results import Panel, Results
from figures.style import DOTTED, FigureError, role, style

N_MARKERS = 6
N_BINS = 30
ROUND = [1, 2, 2.5, 5, 10]  # ticks at these multiples only: 0.72, 0.78, 0.84 are hard to read


def draw(
    results: Results,
    size: tuple[float, float],
    *,
    grid: tuple[int, int],
    axes: Sequence[Axes] | None,
    sharey: bool = False,
) -> Figure:
    """Draw every panel of a figure.

    Parameters
    ----------
    results
        The figure's results.
    size
        Width and height in inches.
    grid
        Rows and columns.
    axes
        Axes to draw into, one a panel, in a figure of the caller's, who adds the legend; by default
        a figure is made, with one legend below its panels.
    sharey
        Whether all panels have one vertical scale.

    Returns
    -------
    Figure
        The figure that the axes belong to.

    Raises
    ------
    FigureError
        If there are not as many axes as panels, or a role is unknown.
    """
    if axes is not None:
        _fill(results, axes)
        return _owner(axes[0])
    with style():
        figure = Figure(figsize=size)
        axes = figure.subplots(*grid, squeeze=False, sharey=sharey).ravel().tolist()
        _fill(results, axes)
        _legend(figure, axes)
    return figure


def draw_lines(panel: Panel, ax: Axes) -> None:
    """Draw a panel of lines, each with its band and a few markers, over its reference lines.

    Parameters
    ----------
    panel
        Panel of kind ``"line"``.
    ax
        Axes to draw into.
    """
    for i, series in enumerate(panel.series):
        look = role(series.role)
        x = np.asarray(series.x, float)
        ax.fill_between(x, series.low, series.high, color=look.color, alpha=0.2, linewidth=0)
        # Staggered, so that markers of lines that coincide do not hide each other.
        every = max(1, len(x) // N_MARKERS)
        start = i * every // max(1, len(panel.series))
        ax.plot(
            x,
            series.y,
            color=look.color,
            linestyle=look.linestyle,
            marker=look.marker,
            markevery=(start, every),
            markeredgecolor="white",
            markeredgewidth=0.4,
            label=series.label,
        )
    for line in panel.references:
        look = role(line.role)
        # Thin and dotted, its marker at the right end only: it is a level, not a course.
        ax.axhline(
            line.y,
            color=look.color,
            linestyle=DOTTED,
            linewidth=1,
            marker=look.marker,
            markevery=[1],
            clip_on=False,
            zorder=1.5,  # below the runs
            label=line.label,
        )
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND))


def draw_histogram(panel: Panel, ax: Axes) -> None:
    """Draw a panel of densities over shared bins; a marker above the axes is each median.

    Parameters
    ----------
    panel
        Panel of kind ``"histogram"``. A sample without a finite value is left out.
    ax
        Axes to draw into.
    """
    samples = [np.asarray(s.values, float) for s in panel.series]
    samples = [values[np.isfinite(values)] for values in samples]
    bins = np.histogram_bin_edges(np.concatenate([*samples, np.zeros(0)]), N_BINS)
    for series, values in zip(panel.series, samples, strict=True):
        if not values.size:
            continue
        look = role(series.role)
        ax.hist(
            values, bins.tolist(), density=True, histtype="stepfilled", color=look.color, alpha=0.15
        )
        ax.hist(
            values,
            bins.tolist(),
            density=True,
            histtype="step",
            edgecolor=look.color,
            linestyle=look.linestyle,
            linewidth=1.3,
        )
        ax.plot(
            [np.median(values)],
            [1.0],
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            color=look.color,
            linestyle=look.linestyle,
            marker=look.marker,
            label=series.label,
        )
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND))


def caption(results: Results, reading: str) -> str:
    """Compose a caption.

    Parameters
    ----------
    results
        The figure's results.
    reading
        How to read the figure, in whole sentences.

    Returns
    -------
    str
        One paragraph of plain text: the paper's claim, how to read the figure, and where its
        numbers come from.
    """
    meta = results.meta
    runs = "; ".join(
        f"{name} (student {run['student']}, teacher {run['teacher']})"
        for name, run in meta.runs.items()
    )
    seeds = ", ".join(map(str, meta.seeds))
    return (
        f"{results.heading}. {results.title}. "
        f"The paper's claim: {results.claim} {reading} Intervals: {meta.interval}. "
        f"Runs: {runs}. Preset {meta.preset}; seed{'s' if len(meta.seeds) != 1 else ''} {seeds}; "
        f"k = {meta.k}; n = {meta.n_rollouts:,} rollouts, {meta.n_states:,} states."
    )


def _fill(results: Results, axes: Sequence[Axes]) -> None:
    if len(axes) != len(results.panels):
        raise FigureError(
            f"{results.figure} has {len(results.panels)} panels, but there are {len(axes)} axes: "
            "give one a panel."
        )
    for letter, panel, ax in zip("abcdefgh", results.panels, axes, strict=False):
        draw_panel = draw_lines if panel.kind == "line" else draw_histogram
        draw_panel(panel, ax)
        ax.set_title(f"({letter}) {panel.title}" if len(axes) > 1 else panel.title, loc="left")
        ax.set_xlabel(panel.x_label)
        ax.set_ylabel(panel.y_label)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend below all panels, where it covers no data; a label stands in it once."""
    handles = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    columns = 2 if figure.get_figwidth() < 5 else 4
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(columns, len(handles)),
    )


def _owner(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None  # axes always belong to one
    return figure
