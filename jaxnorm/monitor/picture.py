"""The drawing of a report."""

import textwrap
from collections.abc import Sequence
from os import PathLike
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

from jaxnorm.monitor import measures
from jaxnorm.monitor.findings import Norm

# Okabe and Ito's, which colour-blind readers tell apart; the markers differ, too.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")

_CUT = 64.0  # ratios beyond are drawn there

_BOX: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.dpi": 150,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def draw(norms: Sequence[Norm], path: str | PathLike[str]) -> None:
    """Draws norms into a PNG: one line for each, one mark for every channel.

    The panels: the deviation (of a norm without statistics: the root of each sample's mean square), and,
    where there was a batch, the shift of the mean and the ratio of the variances.

    Args:
      norms: of a report.
      path: of the file.
    """
    panels = 3 if any(norm.of_channels("shift") is not None for norm in norms) else 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * panels + 2.4, 0.34 * len(norms) + 2.2), layout="constrained")
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        for place, norm in enumerate(norms):
            color, marker = (ORANGE, "^") if norm.findings else (BLUE, "o")
            _note_missing(axes, norm, place)
            for panel, values in zip(axes, (_deviations(norm), *_moved(norm)), strict=False):
                spread = np.linspace(-0.25, 0.25, values.size) if values.size > 1 else np.zeros(values.size)
                panel.plot(
                    values, place + spread, color=color, marker=marker, markersize=3, linestyle="", alpha=0.6
                )
        _deviation_axis(axes[0], norms)
        if panels == 3:
            _shift_axis(axes[1])
            _ratio_axis(axes[2])
        figure.suptitle(
            textwrap.fill(_title(norms), 34 * panels), x=0.01, horizontalalignment="left", fontsize=12
        )
        marks = [
            Line2D([], [], color=c, marker=m, linestyle="", label=text)
            for c, m, text in (
                (BLUE, "o", "a channel of a healthy norm"),
                (ORANGE, "^", "of a norm with findings"),
            )
        ]
        line = Line2D([], [], color=GREY, linestyle="--", label="where a finding begins")
        figure.legend(handles=[*marks, line], loc="outside lower left", ncols=3)
        figure.savefig(path, format="png")


def _note_missing(axes: Sequence[Axes], norm: Norm, place: int) -> None:
    """Says why a norm has no marks: its values are not finite, or there is nothing to compare."""
    missing = [_deviations(norm), *_moved(norm)] if norm.stored is not None else [_deviations(norm)]
    texts = "not finite", "not compared", "not compared"
    for panel, values, text in zip(axes, missing, texts, strict=False):
        if not values.size:
            at = panel.get_yaxis_transform()
            panel.text(0.03, place, text, color=GREY, fontsize=8, va="center", transform=at, bbox=_BOX)


def _deviations(norm: Norm) -> np.ndarray:
    """The deviation of each channel, or the root mean square of each sample, where it is finite."""
    values = norm.square
    if norm.stored is not None:
        values = np.asarray(norm.stored.var)
        if norm.batch is not None:
            values = np.where(np.asarray(norm.batch.weight) > 0, norm.batch.var, values)
    return np.clip(np.sqrt(_usable(values)), 1e-4, 1e6)


def _moved(norm: Norm) -> tuple[np.ndarray, np.ndarray]:
    """The shift of each channel and the ratio of its variances."""
    shift = norm.of_channels("shift")
    if shift is None or norm.batch is None or norm.stored is None:
        return np.zeros(0), np.zeros(0)
    known = np.isfinite(shift)
    ratio = (np.asarray(norm.batch.var) + norm.epsilon) / (np.asarray(norm.stored.var) + norm.epsilon)
    return shift[known], np.clip(ratio[known], 1 / _CUT, _CUT)


def _usable(values: np.ndarray | None) -> np.ndarray:
    """The values that are finite and not negative."""
    values = np.ravel(np.zeros(0) if values is None else values)
    return values[np.isfinite(values) & (values >= 0)]


def _deviation_axis(axis: Axes, norms: Sequence[Norm]) -> None:
    axis.set_title("Deviation of a channel")
    axis.set_xscale("log")
    axis.set_xlim(1e-4, 1e6)
    for epsilon in {norm.epsilon for norm in norms if norm.epsilon}:
        axis.axvline(np.sqrt(epsilon), color=GREY, linestyle="--")
    axis.axvline(measures.EXPLODING, color=GREY, linestyle="--")
    axis.set_xlabel("lines: root of epsilon, and exploding; cut at the ends")
    labels = [
        "\n".join(
            [
                norm.path or "(the model)",
                *([", ".join(f.kind for f in norm.findings)] if norm.findings else []),
            ]
        )
        for norm in norms
    ]
    axis.set_yticks(range(len(norms)), labels, fontsize=8)
    axis.set_ylim(len(norms) - 0.5, -0.5)
    for label, norm in zip(axis.get_yticklabels(), norms, strict=True):
        label.set_color(ORANGE if norm.findings else "black")


def _shift_axis(axis: Axes) -> None:
    axis.set_title("Batch's mean against the stored one")
    axis.set_xscale("symlog", linthresh=1)
    axis.xaxis.set_major_formatter(_PLAIN)
    axis.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1.0, 3.0)))
    axis.axvline(measures.SHIFT, color=GREY, linestyle="--")
    axis.set_xlim(0, max(3, axis.get_xlim()[1]))
    axis.set_xlabel("difference, in stored deviations")


def _ratio_axis(axis: Axes) -> None:
    axis.set_title("Batch's variance against the stored one")
    axis.set_xscale("log", base=2)
    axis.set_xlim(0.8 / _CUT, 1.25 * _CUT)
    axis.set_xticks([4.0**k for k in range(-3, 4)], ["1/64", "1/16", "1/4", "1", "4", "16", "64"])
    axis.minorticks_off()
    for ratio in (1 / measures.RATIO, measures.RATIO):
        axis.axvline(ratio, color=GREY, linestyle="--")
    axis.set_xlabel("ratio, cut at 1/64 and 64")


def _title(norms: Sequence[Norm]) -> str:
    """What the picture shows, in a line."""
    wrong = [norm for norm in norms if norm.findings]
    if not wrong:
        return f"No finding in {len(norms)} norm{'s' * (len(norms) != 1)}"
    counts: dict[str, int] = {}
    for norm in wrong:
        for finding in norm.findings:
            counts[finding.kind] = counts.get(finding.kind, 0) + 1
    kinds = ", ".join(f"{kind} ({n})" for kind, n in counts.items())
    return f"{len(wrong)} of {len(norms)} norm{'s' * (len(norms) != 1)} with findings: {kinds}"
