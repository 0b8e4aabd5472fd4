"""What the experiments of evidence.py hand over: a finding in words, and the numbers as columns."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Finding(NamedTuple):
    """One row of the final table; `title` is the figure's, too."""

    letter: str  # as in the documentation: a to i
    subject: str
    title: str  # the finding in a sentence, written from the measured numbers
    details: str  # more numbers, for the table alone
    claim: str  # what is usually said of batch norm
    reproduced: str  # yes, partly or no


# The values of a CSV file's columns by their names, which include the units.
Columns = Mapping[str, Sequence[object] | np.ndarray]


class Band(NamedTuple):
    """Values of several seeds, summarized over their axis."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def seed_range(values: np.ndarray, axis: int) -> Band:
    """Mean, smallest and largest value over the seeds on `axis`."""
    return Band(values.mean(axis), values.min(axis), values.max(axis))


def standard_error(values: np.ndarray, axis: int) -> Band:
    """Mean, and mean minus and plus one standard error, over the seeds on `axis`."""
    mean = values.mean(axis)
    error = values.std(axis, ddof=1) / np.sqrt(values.shape[axis])
    return Band(mean, mean - error, mean + error)


def listed(values: Mapping[str, str], names: Sequence[str]) -> str:
    """The norms `names`, each with its text of `values`."""
    return ", ".join(f"{'RMS' if name == 'rms' else name} {values[name]}" for name in names)


def percent(value: float) -> str:
    """A fraction in percent, with a digit behind the point where it is below 10 %."""
    return f"{value:.1%}" if value < 0.0995 else f"{value:.0%}"


def write_csv(path: Path, columns: Columns) -> None:
    """Writes `columns`, all of one length, below a line with their names."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(f"{x:.6g}" if isinstance(x, float | np.floating) else x for x in row)
