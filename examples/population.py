"""Five mini-batches of 20 rows, and three ways to the statistics of all 100.

    python examples/population.py

A moving average that starts with weight 1 (Flax, PyTorch) still remembers its start, mean 0 and
variance 1; one that starts with weight 0 (debiased) averages what it has seen; merging is exact.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from _style import BLUE, GREEN, GREY, ORANGE, STYLE
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from jaxnorm import Moments, ema, initial_stats, merge, moments

DECAY = 0.9
TOLERANCE = 1e-6


class Row(NamedTuple):
    """The batch's own moments, and the three estimates of the population's after it."""

    batch: Moments
    plain: Moments
    debiased: Moments
    merged: Moments


def statistics(batches: np.ndarray) -> list[Row]:
    """One row for each of `batches`, an array [batches, rows]."""
    plain = initial_stats((), weight=1.0)
    debiased = merged = initial_stats((), weight=0.0)
    rows = []
    for values in batches:
        batch = moments(values, 0)
        plain = ema(plain, batch, decay=DECAY)
        debiased = ema(debiased, batch, decay=DECAY)
        merged = merge(merged, batch)
        rows.append(Row(batch, plain, debiased, merged))
    return rows


def table(rows: list[Row], data: np.ndarray) -> Table:
    result = Table()
    result.add_column("batch")
    for name in ("its own", *Row._fields[1:]):
        result.add_column(f"{name}\nmean", justify="right")
        result.add_column("\nvar", justify="right")
    for number, row in enumerate(rows, 1):
        cells = [f"{value:.3f}" for stats in row for value in (stats.mean, stats.var)]
        result.add_row(str(number), *cells, end_section=number == len(rows))
    blank = [""] * (2 * len(Row._fields) - 2)
    result.add_row("numpy", *blank, f"{data.mean():.3f}", f"{data.var():.3f}")
    return result


def plot(rows: list[Row], data: np.ndarray, path: Path) -> None:
    numbers = np.arange(1, len(rows) + 1)
    styles = {"plain": (ORANGE, "s"), "debiased": (GREEN, "^"), "merged": (BLUE, "o")}
    labels = {"plain": "plain (start weight 1)", "debiased": "debiased (start weight 0)"}
    covered = 1 - DECAY ** len(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        for panel, (name, field, truth) in zip(
            figure.subplots(1, 2),
            (("mean", "mean", data.mean()), ("variance", "var", data.var())),
            strict=True,
        ):
            own = [getattr(row.batch, field) for row in rows]
            panel.plot(numbers, own, color=GREY, marker="x", linestyle="", label="this batch's")
            for estimate, (color, marker) in styles.items():
                values = [getattr(getattr(row, estimate), field) for row in rows]
                label = labels.get(estimate, estimate)
                panel.plot(numbers, values, color=color, marker=marker, label=label)
            panel.axhline(truth, color="black", linestyle=":", linewidth=1, label="all 100 rows")
            panel.set(xlabel="batches seen", ylabel=name, xticks=numbers)
            panel.set_ylim(bottom=0)
        handles, names = panel.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names))
        figure.suptitle(
            f"Merging ends on the population's statistics; after {len(rows)} batches a moving average "
            f"with decay {DECAY:g}\nthat starts with weight 1 has come {covered:.0%} of the way"
        )
        figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="population.py", description="100 rows, five batches.")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot create folder {options.out}: {error.strerror}")

    data = np.random.default_rng(0).normal(5.0, 2.0, 100).astype(np.float32)
    rows = statistics(data.reshape(5, 20))
    data = data.astype(np.float64)

    console = Console()
    console.print(f"100 rows of N(5, 2^2) in batches of 20; moving averages with decay {DECAY:g}")
    console.print(table(rows, data))
    merged = rows[-1].merged
    differences = {
        "mean": abs(float(merged.mean) / data.mean() - 1),
        "variance": abs(float(merged.var) / data.var() - 1),
    }
    for name, difference in differences.items():
        console.print(f"merged {name} against numpy's on all rows: relative difference {difference:.1e}")
    if max(differences.values()) > TOLERANCE:
        raise SystemExit(f"merged statistics differ from numpy's by more than {TOLERANCE:g}")
    picture = options.out / "population.png"
    plot(rows, data, picture)
    print(f"picture  {picture}")


if __name__ == "__main__":
    main()
