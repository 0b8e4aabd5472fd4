"""Error against batch size: figure g. 4 hidden layers, four epochs, whatever the batch size.

Batches are padded and masked with `where=`, so that one program trains several batch sizes.
"""

from typing import NamedTuple

import numpy as np
from _evidence_net import (
    BATCH,
    GROUP,
    LAYER,
    NUM_TRAIN,
    RENORM,
    TEST,
    VALIDATION,
    Norm,
    ghost,
    make_runs,
    train_all,
)
from _evidence_report import Band, Columns, Finding, listed, percent, seed_range
from _evidence_training import bands_to_columns, errors, mean_losses

DEPTH = 4
EPOCHS = 4
GHOST = 8
SMALL: tuple[int, ...] = (2, 4, 8)
LARGE: tuple[int, ...] = (16, 32, 64, 128)
SIZES = SMALL + LARGE
RATES = 0.002 * 2.0 ** np.arange(-2, 1)  # for each sample of the batch


class Batches(NamedTuple):
    """Test errors by norm."""

    seeds: int
    error: dict[str, Band]  # of the test, [SIZES], at the rate that is best for this norm and size


def run_batches(seeds: int) -> Batches:
    """Trains each norm for each batch size, rate and seed; the validation loss chooses the rate."""
    # One ghost of up to 8 samples is the batch: below that ghost batch norm is batch norm.
    jobs: dict[str, tuple[Norm, tuple[int, ...]]] = {}
    for norm in (BATCH, RENORM, GROUP, LAYER):
        jobs[f"{norm.name} large"], jobs[f"{norm.name} small"] = (norm, LARGE), (norm, SMALL)
    jobs["ghost large"] = (ghost(GHOST), LARGE)
    runs = {
        sizes: make_runs(
            [(seed, size * rate, 1.0, size) for size in sizes for rate in RATES for seed in range(seeds)],
            EPOCHS * NUM_TRAIN,
        )
        for sizes in (SMALL, LARGE)
    }
    histories = train_all({name: (norm, runs[sizes]) for name, (norm, sizes) in jobs.items()}, depth=DEPTH)
    best: dict[str, np.ndarray] = {}  # test errors [sizes, seeds]
    for name, history in histories.items():
        shape = (-1, len(RATES), seeds)
        losses = mean_losses(history, VALIDATION, seeds)[..., -1].reshape(shape).mean(-1)
        chosen = np.where(np.isnan(losses), np.inf, losses).argmin(1)
        wrong = errors(history, TEST, seeds)[..., -1].reshape(shape)
        best[name] = wrong[np.arange(len(chosen)), chosen]
    best["ghost small"] = best["batch small"]
    names = ("batch", "renorm", "ghost", "group", "layer")
    joined = {name: np.concatenate([best[f"{name} small"], best[f"{name} large"]]) for name in names}
    return Batches(seeds, {name: seed_range(values, 1) for name, values in joined.items()})


def batches_finding(found: Batches) -> Finding:
    """The sizes at which batch norm is much worse than layer norm, and the errors at 2, 4 and 128."""
    means = {name: band.mean for name, band in found.error.items()}
    worse = means["batch"] > 1.5 * means["layer"]

    worst = [str(size) for size in np.array(SIZES)[worse]]
    where = f"in batches of {' and '.join(worst)}" if worst else "at no batch size"
    texts = [{name: percent(float(band[i])) for name, band in means.items()} for i in (0, 1, -1)]
    two, four, many = texts
    title = (
        f"Batch norm's error is far above layer norm's {where}: {two['batch']} against {two['layer']} of 2, "
        f"{many['batch']} against {many['layer']} of {SIZES[-1]}"
    )
    details = "; ".join(
        f"of {size}: {listed(text, list(means))}"
        for size, text in zip((2, 4, 128), (two, four, many), strict=True)
    )
    reproduced = "yes" if worse[0] else "no"
    return Finding("g", "batch size", title, details, "Batch norm fails in small batches", reproduced)


def batches_columns(found: Batches) -> Columns:
    """The plotted numbers."""
    return bands_to_columns("batch_size", np.array(SIZES), "test_error", found.error)
