"""How the pictures look."""

from typing import Any

from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's, which colour-blind readers tell apart.
GREY, BLUE, ORANGE, GREEN = "#666666", "#0072B2", "#D55E00", "#009E73"

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.dpi": 150,
    "figure.titlesize": 12,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def plain_log_ticks(axis: Axis, digits: tuple[float, ...] = (1.0,)) -> None:
    """Labels a logarithmic axis 0.1, 1, 10 (times each of `digits`) instead of with powers."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
