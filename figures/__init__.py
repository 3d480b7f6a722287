"""From results to figures: one module per figure, which draws but computes nothing.

``figNN`` is the paper's figure NN; ``selection``, which compares ways to choose prompts, has no
figure in the paper. Each has ``draw(results, axes=None)`` and ``caption(results)``.
`opdprobe.report.style` defines the look, `opdprobe.report.marks` draws a panel, `figures.panels`
lays panels out.

`make` draws figures from the results files of a directory, `check` compares them with those on
disk. To put a figure's panels into your own figure, pass your axes to `draw`, one per panel::

    from pathlib import Path
    from matplotlib.figure import Figure
    from analyses.results import load
    from figures import fig02

    mine = Figure(figsize=(6, 2))
    fig02.draw(load(Path("results/fig02.json")), mine.subplots(1, 2))
"""

from figures.make import COMMITTED, FigureError, check, figure_names, make

__all__ = ["COMMITTED", "FigureError", "check", "figure_names", "make"]
