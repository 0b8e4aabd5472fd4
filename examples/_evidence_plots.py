"""How the figures of evidence.py look: one colour and marker a norm in all of them."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from _evidence_report import Band, Finding
from _style import BLUE, GREEN, GREY, ORANGE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Okabe and Ito's, as in _style.
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#E69F00"
LOOKS = {
    "none": (GREY, "x"),
    "batch": (BLUE, "o"),
    "layer": (ORANGE, "s"),
    "group": (GREEN, "^"),
    "rms": (PURPLE, "D"),
    "renorm": (YELLOW, "v"),
    "ghost": (SKY, "P"),
}
LABELS = {"none": "no norm", "rms": "RMS norm", "renorm": "batch renorm", "ghost": "ghost batch norm"}


def label(norm: str) -> str:
    """What a figure calls a norm."""
    return LABELS.get(norm, f"{norm} norm")


def new_figure(
    finding: Finding, *, panels: int = 1, note: str, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Panels in a row, with the finding above and `note`, which says what the bands are, below."""
    figure = Figure(figsize=(8, 4), layout="constrained", facecolor="white")
    axes = list(figure.subplots(1, panels, sharey=sharey, squeeze=False)[0])
    figure.suptitle(textwrap.fill(finding.title, 100), x=0.01, ha="left", fontsize=10.5)
    figure.supxlabel(textwrap.fill(note, 120), fontsize=8, color=GREY)
    return figure, axes


def draw_band(
    panel: Axes,
    x: np.ndarray | Sequence[float],
    band: Band,
    color: str,
    text: str,
    *,
    marker: str = "",
    linestyle: str = "-",
) -> None:
    """A line through the means, and the band around it."""
    panel.plot(
        x, band.mean, color=color, marker=marker, markersize=4, linewidth=1.5, label=text, linestyle=linestyle
    )
    panel.fill_between(x, band.low, band.high, color=color, alpha=0.18, linewidth=0)


def draw_norms(
    panel: Axes, x: np.ndarray | Sequence[float], bands: Mapping[str, Band], *, markers: bool = True
) -> None:
    """One band a norm, in the norm's colour."""
    for norm, band in bands.items():
        color, marker = LOOKS[norm]
        draw_band(panel, x, band, color, label(norm), marker=marker if markers else "")


def share_legend(figure: Figure, panel: Axes) -> None:
    """The panel's legend, at the right of all panels."""
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center")


def percent_axis(panel: Axes) -> None:
    """Labels the vertical axis, which holds fractions, in percent."""
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def powers_of_two(panel: Axes, values: Sequence[float] | np.ndarray) -> None:
    """A logarithmic horizontal axis with a tick at each of `values`."""
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(values), [f"{value:.2g}" if value < 1 else f"{value:.3g}" for value in values])
    panel.minorticks_off()
