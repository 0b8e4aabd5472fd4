"""The pictures of digits.py."""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from _digits_common import Distance
from _digits_compare import Results, axes
from _style import BLUE, GREEN, GREY, ORANGE, STYLE, plain_log_ticks
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LAYER_COLORS = (BLUE, ORANGE, GREEN)
NORM_STYLES = {
    "none": (GREY, "x"),
    "batch": (BLUE, "o"),
    "layer": (ORANGE, "s"),
    "group": (GREEN, "^"),
}


@dataclass
class History:
    """What a training run leaves behind."""

    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [steps]
    accuracy: list[float] = field(default_factory=list)  # test, each epoch
    own_accuracy: list[float] = field(default_factory=list)  # with the test batch's statistics
    # Steps taken, and how far the running statistics are from those of all training images.
    distances: list[tuple[int, dict[str, Distance]]] = field(default_factory=list)


def plot_training(history: History, path: Path, *, title: str) -> None:
    """Draws loss, test error and, where there are any, the running statistics on their way."""
    rows = 2 if history.distances else 1
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2 * rows + 0.3), layout="constrained")
        panels = figure.subplots(rows, 2, squeeze=False)
        figure.suptitle(f"{title}: {history.accuracy[-1]:.2%} test accuracy")
        _draw_loss(panels[0, 0], history)
        _draw_error(panels[0, 1], history)
        if history.distances:
            _draw_distances(panels[1, 0], panels[1, 1], history)
        figure.savefig(path)


def _draw_loss(panel: Axes, history: History) -> None:
    steps = np.arange(1, len(history.losses) + 1)
    epochs = len(history.accuracy)
    means = history.losses.reshape(epochs, -1).mean(1)
    panel.plot(steps, history.losses, color=BLUE, alpha=0.25, linewidth=0.8, label="each batch")
    panel.plot(steps.reshape(epochs, -1).mean(1), means, color=BLUE, label="mean of each epoch")
    panel.set(yscale="log", xlabel="step", ylabel="cross-entropy (nats)")
    plain_log_ticks(panel.yaxis)
    panel.set_title(f"Training loss: {history.losses[0]:.2g} at first, {means[-1]:.2g} in the end")
    panel.legend()


def _draw_error(panel: Axes, history: History) -> None:
    epochs = np.arange(1, len(history.accuracy) + 1)
    errors = 100 * (1 - np.array(history.accuracy))
    panel.plot(epochs, errors, "o-", color=BLUE, markersize=3, label="running statistics")
    if history.own_accuracy:
        own = 100 * (1 - np.array(history.own_accuracy))
        panel.plot(epochs, own, "s-", color=ORANGE, markersize=3, label="the test batch's own statistics")
        panel.legend(title="normalized by")
    # Linear below 1 %, because an error of 0 is possible.
    panel.set_yscale("symlog", linthresh=1)
    panel.set_yticks([0, 0.5, 1, 2, 5, 10, 20, 50, 100])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_ylim(0, 2 * errors.max() + 1)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="epoch", ylabel="test error (%)")
    panel.set_title(f"Test error: {errors[-1]:.2g} % in the end")


def _draw_distances(shift: Axes, ratio: Axes, history: History) -> None:
    steps = [taken for taken, _ in history.distances]
    names = list(history.distances[0][1])
    for name, color in zip(names, LAYER_COLORS, strict=True):
        shifts = np.stack([layers[name].shift for _, layers in history.distances])
        ratios = np.stack([layers[name].ratio for _, layers in history.distances])
        for panel, values in ((shift, shifts), (ratio, ratios)):
            low, median, high = np.percentile(values, (10, 50, 90), axis=1)
            panel.plot(steps, median, color=color, label=name)
            panel.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    for panel in (shift, ratio):
        panel.set(xscale="log", yscale="log", xlabel="step (logarithmic)")
        plain_log_ticks(panel.xaxis)
    plain_log_ticks(shift.yaxis)
    plain_log_ticks(ratio.yaxis, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    shift.set_ylabel("|running mean - data's mean| / data's std")
    shift.set_title("Running means approach the training data's")
    shift.legend(title="median and 10-90 % of channels", loc="lower left")
    ratio.axhline(1, color="black", linewidth=0.8, linestyle=":")
    ratio.set_ylabel("running std / data's std")
    ratio.set_title("and so do running standard deviations")


def plot_comparison(results: Results, path: Path, *, epochs: int) -> None:
    """Draws test error against batch size: a panel a learning rate, a line a norm, a dot a seed."""
    norms, batch_sizes, learning_rates = axes(results)
    errors = {key: 100 * (1 - np.array(accuracies)) for key, accuracies in results.items()}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6, 3.4 * len(learning_rates)), 4.4), layout="constrained")
        panels = figure.subplots(1, len(learning_rates), sharey=True, squeeze=False)[0]
        for panel, learning_rate in zip(panels, learning_rates, strict=True):
            for place, norm in enumerate(norms):
                color, marker = NORM_STYLES[norm]
                values = np.array([errors[norm, size, learning_rate] for size in batch_sizes])
                x = np.array(batch_sizes) * 1.08 ** (place - (len(norms) - 1) / 2)  # side by side
                panel.plot(x, values.mean(1), color=color, marker=marker, label=norm)
                panel.plot(x, values, color=color, marker=".", alpha=0.4, linestyle="")
            panel.axhline(90, color="black", linewidth=0.8, linestyle=":", label="chance")
            panel.set(xscale="log", yscale="log", xlabel="batch size")
            panel.set_xticks(batch_sizes, [str(size) for size in batch_sizes])
            panel.minorticks_off()
            panel.set_title(f"learning rate {learning_rate:g}")
        plain_log_ticks(panels[0].yaxis, (1.0, 2.0, 5.0))
        panels[0].set_ylabel("test error (%)")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        rate, size = learning_rates[-1], batch_sizes[-1]
        found = ", ".join(f"{norm} {errors[norm, size, rate].mean():.1f} %" for norm in norms)
        figure.suptitle(
            f"Test error after {epochs} epochs; at learning rate {rate:g} and batch size {size}:\n{found}"
        )
        figure.savefig(path)
