"""The figures of noise, batch sizes, running averages and cost: f to i."""

import numpy as np
from _evidence_averages import Averages, averages_finding
from _evidence_batches import EPOCHS, SIZES, Batches, batches_finding
from _evidence_cost import Cost, cost_finding, relative
from _evidence_noise import GHOSTS, NUM_ROWS, Noise, noise_finding
from _evidence_plots import (
    LOOKS,
    draw_band,
    draw_norms,
    label,
    new_figure,
    percent_axis,
    powers_of_two,
    share_legend,
)
from _evidence_report import Band
from _style import BLUE, GREEN, GREY, ORANGE
from matplotlib.figure import Figure


def plot_noise(found: Noise) -> Figure:
    note = (
        f"batches of 64 of {NUM_ROWS} digits; lines: mean of {found.seeds} seeds, bands: one standard error"
    )
    figure, panels = new_figure(noise_finding(found), panels=2, note=note)
    sizes = list(GHOSTS)
    for panel, bands, ylabel in zip(
        panels, (found.gap, found.error), ("test loss - training loss (nats)", "test error"), strict=True
    ):
        ghosts = Band(*np.transpose([bands[norm.name] for norm in GHOSTS.values()]))
        draw_band(panel, sizes, ghosts, BLUE, "(ghost) batch norm", marker="o")
        for norm in ("none", "layer"):
            flat = Band(*(np.full(len(sizes), value) for value in bands[norm]))
            draw_band(panel, sizes, flat, LOOKS[norm][0], label(norm), linestyle="--")
        powers_of_two(panel, sizes)
        panel.set(xlabel="samples in a statistic (64: batch norm)", ylabel=ylabel)
        panel.set_ylim(bottom=0)
    percent_axis(panels[1])
    share_legend(figure, panels[0])
    return figure


def plot_batches(found: Batches) -> Figure:
    note = (
        f"4 hidden layers, {EPOCHS} epochs, best of 3 rates by validation; ghosts of 8 samples; "
        f"bands: {found.seeds} seeds, smallest to largest"
    )
    figure, (panel,) = new_figure(batches_finding(found), note=note)
    draw_norms(panel, SIZES, found.error)
    powers_of_two(panel, SIZES)
    panel.set_yscale("log")
    panel.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5])
    panel.minorticks_off()
    percent_axis(panel)
    panel.set(xlabel="batch size", ylabel="test error")
    share_legend(figure, panel)
    return figure


def plot_averages(found: Averages) -> Figure:
    note = (
        "statistics of a second hidden layer, batches of 32, decay 0.99; "
        "lines: mean over seeds, bands: smallest to largest"
    )
    figure, panels = new_figure(averages_finding(found), panels=2, note=note, sharey=True)
    looks = {
        "this batch alone": (GREY, ":", "this batch alone"),
        "plain": (ORANGE, "-", "plain (start weight 1)"),
        "debiased": (GREEN, "--", "debiased (start weight 0)"),
        "exact": (BLUE, "-", "exact (merge)"),
    }
    for panel, (name, bands) in zip(panels, found.distances.items(), strict=True):
        for estimate, band in bands.items():
            color, linestyle, text = looks[estimate]
            # A distance of 0 has no place on a logarithmic axis.
            band = Band(*(np.maximum(values, 1e-14) for values in band))
            draw_band(panel, np.arange(1, len(band.mean) + 1), band, color, text, linestyle=linestyle)
        panel.set(title=name, xlabel="batches seen (32 are an epoch)", xscale="log", yscale="log")
        panel.set_xticks([1, 10, 32, 100, 320], ["1", "10", "32", "100", "320"])
        panel.minorticks_off()
    panels[0].set_ylabel("KL to the population (nats a channel)")
    share_legend(figure, panels[0])
    return figure


def plot_cost(found: Cost) -> Figure:
    rounds = {len(times) for norms in found.times.values() for times in norms.values()}.pop()
    note = (
        f"bars: median of {rounds} interleaved rounds, whiskers: quartiles; "
        "numbers: median ratio to the step without a norm"
    )
    figure, panels = new_figure(cost_finding(found), panels=2, note=note)
    for panel, (network, times) in zip(panels, found.times.items(), strict=True):
        names = list(times)[::-1]
        low, median, high = np.quantile([times[name] for name in names], (0.25, 0.5, 0.75), axis=1)
        panel.barh(
            [label(name) for name in names],
            median,
            xerr=(median - low, high - median),
            color=[LOOKS[name][0] for name in names],
            error_kw={"linewidth": 1},
        )
        for row, name in enumerate(names):
            text = f"  {relative(times, name):.2f}"
            panel.text(high[row], row, text, va="center", fontsize=8)
        panel.set(title=network, xlabel="ms a training step", xlim=(0, 1.2 * high.max()))
        panel.grid(visible=False, axis="y")
    return figure
