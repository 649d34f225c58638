"""Matplotlib's backend: figures are images below the cell that draws them."""

from cells import show_figures as show
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas

__all__ = ["FigureCanvas", "show"]
