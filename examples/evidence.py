"""What batch normalization is said to do, measured on scikit-learn's digits: nine figures and their numbers.

    python examples/evidence.py                  # 3 seeds, within two minutes on two cores
    python examples/evidence.py --full           # 10 seeds

Each figure's title is written from what was measured. `_evidence_net.py` holds the network and the program
that trains it many times at once; each of the other files one experiment, or figures.
"""

import argparse
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from _evidence_averages import averages_columns, averages_finding, run_averages
from _evidence_batches import batches_columns, batches_finding, run_batches
from _evidence_cost import cost_columns, cost_finding, run_cost
from _evidence_depth import depth_columns, depth_finding, run_depth
from _evidence_noise import noise_columns, noise_finding, run_noise
from _evidence_plots_statistics import plot_averages, plot_batches, plot_cost, plot_noise
from _evidence_plots_training import plot_convergence, plot_depth, plot_gains, plot_quantiles, plot_rates
from _evidence_report import Columns, Finding, write_csv
from _evidence_training import (
    EPOCHS,
    GAINS,
    RATES,
    bands_to_columns,
    convergence,
    convergence_finding,
    final_errors,
    gains_finding,
    quantiles,
    quantiles_columns,
    quantiles_finding,
    rates_finding,
    run_training,
)
from _style import STYLE
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table


class Result(NamedTuple):
    """One experiment's figure and numbers."""

    name: str  # of the files
    finding: Finding
    columns: Columns
    figure: Figure


def results(*, seeds: int, rounds: int) -> Iterator[Result]:
    """Runs the experiments one after the other; `rounds` is how often (i) times each step."""
    training = run_training(seeds)
    curves = convergence(training)
    columns = bands_to_columns("epoch", 1 + np.arange(EPOCHS), "test_error", curves)
    yield Result("convergence", convergence_finding(training), columns, plot_convergence(training))
    bands = final_errors(training.by_rate, seeds)
    columns = bands_to_columns("learning_rate", RATES, "training_error", bands)
    yield Result("learning-rates", rates_finding(training), columns, plot_rates(training))
    bands = final_errors(training.by_gain, seeds)
    columns = bands_to_columns("initial_scale", GAINS, "training_error", bands)
    yield Result("initial-weights", gains_finding(training), columns, plot_gains(training))
    inputs = quantiles(training)
    yield Result("quantiles", quantiles_finding(inputs), quantiles_columns(inputs), plot_quantiles(inputs))
    depth = run_depth(seeds)
    yield Result("gradients", depth_finding(depth), depth_columns(depth), plot_depth(depth))
    noise = run_noise(training)
    yield Result("noise", noise_finding(noise), noise_columns(noise), plot_noise(noise))
    batches = run_batches(seeds)
    yield Result("batch-size", batches_finding(batches), batches_columns(batches), plot_batches(batches))
    averages = run_averages(seeds)
    columns = averages_columns(averages)
    yield Result("averages", averages_finding(averages), columns, plot_averages(averages))
    cost = run_cost(rounds)
    yield Result("cost", cost_finding(cost), cost_columns(cost), plot_cost(cost))


def table(findings: Sequence[Finding], *, seeds: int) -> Table:
    """What was found, a row for each figure."""
    result = Table("", f"the claim, and what was measured with {seeds} seeds", "holds")
    for finding in findings:
        texts = (f"{finding.subject}: {finding.claim}.", f"{finding.title}.", f"({finding.details})")
        result.add_row(finding.letter, "\n".join(texts), finding.reproduced, end_section=True)
    return result


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of 64 colours: a third of the size."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="evidence.py", description="What batch normalization does, in nine figures."
    )
    parser.add_argument("--full", action="store_true", help="10 seeds instead of 3")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/evidence"), metavar="FOLDER", help="default: runs/evidence"
    )
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot create folder {options.out}: {error.strerror}")

    seeds, rounds = (10, 41) if options.full else (3, 15)
    console = Console()
    start = time.perf_counter()
    findings = []
    with mpl.rc_context(STYLE):
        for result in results(seeds=seeds, rounds=rounds):
            findings.append(result.finding)
            path = options.out / f"{result.finding.letter}-{result.name}"
            save(result.figure, path.with_suffix(".png"))
            write_csv(path.with_suffix(".csv"), result.columns)
            print(f"{time.perf_counter() - start:5.0f} s  {path}.png  {path.name}.csv", flush=True)
    console.print(table(findings, seeds=seeds))


if __name__ == "__main__":
    main()
