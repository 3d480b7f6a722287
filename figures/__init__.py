"""From results to figures: one module a figure, which draws and computes nothing.

``figNN`` is the paper's figure NN; ``selection`` compares ways to choose prompts, which the paper
has no figure of. Each has ``draw(results, axes=None)`` and ``caption(results)``.
`opdprobe.report.style` fixes what everything looks like, `opdprobe.report.marks` draws a panel,
`figures.panels` lays panels out.

`make` draws figures from the results files of a directory, `check` compares them with those on
disk. To put a figure's panels into one of your own, give `draw` your axes, one a panel::

    from pathlib import Path
    from matplotlib.figure import Figure
    from analyses.results import load
    from figures import fig02

    mine = Figure(figsize=(6, 2))
    fig02.draw(load(Path("results/fig02.json")), mine.subplots(1, 2))
"""

from figures.make import COMMITTED, FigureError, check, figure_names, make

__all__ = ["COMMITTED", "FigureError", "check", "figure_names", "make"]
