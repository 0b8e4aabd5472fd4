"""The figures of training and of gradients: a to e."""

from collections.abc import Mapping

import numpy as np
from _evidence_depth import DEPTH, Depth, depth_finding
from _evidence_plots import draw_band, draw_norms, new_figure, percent_axis, powers_of_two, share_legend
from _evidence_report import Band, Finding
from _evidence_training import (
    EPOCHS,
    GAINS,
    GOAL,
    QUANTILES,
    RATES,
    STEPS_A_WINDOW,
    TRAINED,
    Quantiles,
    Training,
    convergence,
    convergence_finding,
    final_errors,
    gains_finding,
    quantiles_finding,
    rates_finding,
)
from _style import BLUE, GREY, plain_log_ticks
from matplotlib.figure import Figure

NETWORK = "8 hidden layers of 64 units, batches of 64, 12 epochs"


def bands_of(seeds: int) -> str:
    """What the bands of most figures are."""
    return f"lines: mean of {seeds} seeds, bands: smallest to largest"


def plot_convergence(training: Training) -> Figure:
    note = f"{NETWORK}, rate with the least validation loss; {bands_of(training.seeds)}"
    figure, (panel,) = new_figure(convergence_finding(training), note=note)
    draw_norms(panel, np.arange(1, EPOCHS + 1), convergence(training))
    panel.axhline(GOAL, color="black", linestyle=":", linewidth=1)
    panel.set_yscale("log")
    panel.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    panel.minorticks_off()
    percent_axis(panel)
    panel.set(xlabel="epoch", ylabel="test error", xticks=range(1, EPOCHS + 1))
    share_legend(figure, panel)
    return figure


def _plot_range(
    finding: Finding, x: np.ndarray, bands: Mapping[str, Band], *, xlabel: str, note: str
) -> Figure:
    """Error on the training samples over rates or gains; runs below the dotted line count as trained."""
    figure, (panel,) = new_figure(finding, note=note)
    draw_norms(panel, x, bands)
    panel.axhline(TRAINED, color="black", linestyle=":", linewidth=1)
    powers_of_two(panel, x)
    percent_axis(panel)
    panel.set(xlabel=xlabel, ylabel="final training error", ylim=(-0.02, 1))
    share_legend(figure, panel)
    return figure


def plot_rates(training: Training) -> Figure:
    note = f"{NETWORK}; dotted: {TRAINED:.0%}, what every seed must end below; {bands_of(training.seeds)}"
    bands = final_errors(training.by_rate, training.seeds)
    return _plot_range(rates_finding(training), RATES, bands, xlabel="peak learning rate", note=note)


def plot_gains(training: Training) -> Figure:
    note = f"{NETWORK}, each at its best rate for scale 1; dotted: {TRAINED:.0%}; {bands_of(training.seeds)}"
    bands = final_errors(training.by_gain, training.seeds)
    xlabel = "scale of the initial hidden weights (1: Flax's default)"
    return _plot_range(gains_finding(training), GAINS, bands, xlabel=xlabel, note=note)


def plot_quantiles(found: Quantiles) -> Figure:
    note = (
        f"last of 8 hidden layers, mean of 4 units, windows of {STEPS_A_WINDOW} steps; "
        "bands: smallest to largest seed"
    )
    figure, panels = new_figure(quantiles_finding(found), panels=3, note=note, sharey=True)
    titles = {
        "without": ("no norm: what relu receives", GREY),
        "before": ("what batch norm receives", BLUE),
        "after": ("what batch norm returns", BLUE),
    }
    for panel, (part, (title, color)) in zip(panels, titles.items(), strict=True):
        bands: list[Band] = getattr(found, part)
        for q, band in zip(QUANTILES, bands, strict=True):
            steps = STEPS_A_WINDOW * np.arange(1, len(band.mean) + 1)
            draw_band(panel, steps, band, color, f"{q:.0%}", linestyle="-" if q == 0.5 else "--")
            text = f"{q:.0%}" if q != 0.5 else "median"
            panel.annotate(
                text,
                (steps[-1], band.mean[-1]),
                xytext=(0, 4),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
        panel.set(title=title, xlabel="step")
    panels[0].set_ylabel("value")
    return figure


def plot_depth(found: Depth) -> Figure:
    note = (
        f"{DEPTH} hidden layers of 64 units, before the first step; "
        "lines: mean over seeds, bands: smallest to largest"
    )
    figure, panels = new_figure(depth_finding(found), panels=2, note=note, sharey=True)
    for panel, (name, bands) in zip(panels, found.gradients.items(), strict=True):
        draw_norms(panel, np.arange(1, DEPTH + 1), bands, markers=False)
        panel.set_yscale("log")
        panel.set(title=f"{name} initial weights", xlabel="layer", xticks=[1, 8, 16, 24, 32])
    plain_log_ticks(panels[0].yaxis)
    panels[0].set_ylabel("norm of the weights' gradient")
    share_legend(figure, panels[0])
    return figure
