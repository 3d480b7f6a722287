"""From results to figures: one module a figure, which draws and computes nothing."""

from figures.make import FigureError, check, figure_names, make

__all__ = ["FigureError", "check", "figure_names", "make"]
