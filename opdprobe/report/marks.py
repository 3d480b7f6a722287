"""Draw one panel: lines with bands, bars, histograms, heat maps."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from opdprobe.report.panel import Panel
from opdprobe.report.style import DARK, DOTTED, role

N_MARKERS = 6
N_BINS = 30
ROUND = [1, 2, 2.5, 5, 10]  # ticks at these multiples only: 0.72, 0.78, 0.84 are hard to read
GROUP = 0.8  # share of the distance between two categories that bars cover
NOTHING = "0.85"  # a cell without a number
CHARACTERS_PER_INCH = 17  # of tick labels


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
    _draw_references(panel, ax)
    _set_ticks(panel, ax)


def draw_bars(panel: Panel, ax: Axes) -> None:
    """Draw a panel of bars, grouped by category, each with its interval, and its reference lines.

    Parameters
    ----------
    panel
        Panel of kind ``"bar"``. A category stays empty for a series that has no number for it.
    ax
        Axes to draw into.
    """
    width = GROUP / max(1, len(panel.series))
    for i, series in enumerate(panel.series):
        look = role(series.role)
        x = np.asarray(series.x, float) + (i - (len(panel.series) - 1) / 2) * width
        ax.bar(
            x,
            series.y,
            0.9 * width,
            color=look.color,
            hatch=look.hatch,
            edgecolor="white",  # colour of the hatching
            linewidth=0,
            label=series.label,
        )
        # Lines, since an interval need not contain the value, which yerr requires.
        ax.vlines(x, series.low, series.high, color=DARK, linewidth=1)
    ax.grid(False, axis="x")
    ax.axhline(0, color=DARK, linewidth=0.6)
    _draw_references(panel, ax)
    _set_ticks(panel, ax)


def draw_histogram(panel: Panel, ax: Axes) -> None:
    """Draw a panel of densities over shared bins; markers above the axes show the medians.

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


def heat_limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """Return the smallest and the largest finite number of some panels' heat maps.

    Returns
    -------
    low, high
        Ends of the shared colour scale; 0 and 1 if no heat map has a finite number.
    """
    numbers = [np.ravel(panel.heat.z) for panel in panels if panel.heat is not None]
    finite = np.concatenate([*numbers, np.zeros(0)])
    finite = finite[np.isfinite(finite)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def draw_heatmap(panel: Panel, ax: Axes, limits: tuple[float, float]) -> None:
    """Draw a heat map and its colour bar; a cell without a finite number is light grey.

    Parameters
    ----------
    panel
        Panel of kind ``"heatmap"``.
    ax
        Axes to draw into; the colour bar takes its space from them.
    limits
        Ends of the colour scale; see `heat_limits`.
    """
    heat = panel.heat
    assert heat is not None  # a heat map panel always has one
    mesh = ax.pcolormesh(
        _edges(heat.x),
        _edges(heat.y),
        np.ma.masked_invalid(np.asarray(heat.z, float)),
        cmap="cividis",  # even steps in lightness, readable without red or green
        vmin=limits[0],
        vmax=limits[1],
        rasterized=True,  # vector cells would leave hairlines between them
    )
    ax.set_facecolor(NOTHING)
    ax.grid(False)
    ax.margins(0)
    bar = ax.figure.colorbar(mesh, ax=ax, label=heat.label)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]  # stubs call it callable
    bar.locator = MaxNLocator(nbins=5, steps=ROUND)
    bar.update_ticks()
    _set_ticks(panel, ax)


def _draw_references(panel: Panel, ax: Axes) -> None:
    for line in panel.references:
        look = role(line.role)
        # Thin and dotted, with a marker at the right end only: this is a level rather than a curve.
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


def _set_ticks(panel: Panel, ax: Axes) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND))
    if not panel.ticks:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND, integer=True))
        return
    n = len(panel.ticks)
    # Names that are too wide for their share of the axes are wrapped, or rotated.
    room = int(CHARACTERS_PER_INCH * ax.get_window_extent().width / ax.figure.dpi / n)
    folded = [fill(tick, max(room, 1), break_long_words=False) for tick in panel.ticks]
    if max(len(line) for tick in folded for line in tick.split("\n")) <= room:
        ax.set_xticks(range(n), folded)
    else:
        ax.set_xticks(range(n), panel.ticks, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, n - 0.5)


def _edges(middles: Sequence[float]) -> NDArray[np.float64]:
    """Return the edges of cells, half-way between their middles; outer cells are symmetric."""
    x = np.asarray(middles, float)
    half = np.diff(x) / 2 if len(x) > 1 else np.array([0.5])
    return np.concatenate([[x[0] - half[0]], x[:-1] + half[: len(x) - 1], [x[-1] + half[-1]]])
