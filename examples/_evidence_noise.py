"""The regularizing noise of batch statistics: figure f.

Ghost batch norm in batches of 64: the batch, and so the gradient's noise, stays. Only the number of samples
that each statistic is computed from changes. Training uses 256 digits, few enough to overfit.
"""

from typing import NamedTuple

from _evidence_net import BATCH, LAYER, NONE, NUM_TRAIN, TEST, ghost, make_runs, train_all
from _evidence_report import Band, Columns, Finding, percent, standard_error
from _evidence_training import (
    BATCH_SIZE,
    DEPTH,
    EPOCHS,
    RATES,
    Training,
    best_setting,
    errors,
    mean_losses,
)

NUM_ROWS = 256
GHOSTS = {4: ghost(4), 8: ghost(8), 16: ghost(16), BATCH_SIZE: BATCH}  # by the number of samples a statistic
NORMS = (NONE, LAYER, *GHOSTS.values())


class Noise(NamedTuple):
    """Results by the norm's name, each at the best of three rates."""

    seeds: int
    gap: dict[str, Band]  # test loss minus training loss in nats
    error: dict[str, Band]  # of the test


def run_noise(training: Training) -> Noise:
    """Trains at the best rate of `training`, half and twice that; the validation loss chooses."""
    seeds = (
        len(RATES) * training.seeds // 3
    )  # with three rates as many runs as there: what is compiled serves again
    jobs = {}
    for norm in NORMS:
        best = training.best.get(norm.name, training.best["batch"])
        rates = RATES[best - 1 : best + 2]
        settings = [(seed, rate, 1.0, BATCH_SIZE) for rate in rates for seed in range(seeds)]
        jobs[norm.name] = (norm, make_runs(settings, EPOCHS * NUM_TRAIN, num_rows=NUM_ROWS))
    gap, error = {}, {}
    for name, history in train_all(jobs, depth=DEPTH, evaluations=EPOCHS).items():
        best = best_setting(history, seeds)
        train, test = (mean_losses(history, rows, seeds)[best, :, -1] for rows in (slice(NUM_ROWS), TEST))
        gap[name] = standard_error(test - train, 0)
        error[name] = standard_error(errors(history, TEST, seeds)[best, :, -1], 0)
    return Noise(seeds, gap, error)


def noise_finding(found: Noise) -> Finding:
    """The number of samples a statistic with the least test error, against all and the fewest."""
    gaps = {size: float(found.gap[norm.name].mean) for size, norm in GHOSTS.items()}
    wrong = {size: float(found.error[norm.name].mean) for size, norm in GHOSTS.items()}
    best = min(wrong, key=lambda size: wrong[size])
    fewest = min(GHOSTS)
    texts = {size: f"{percent(wrong[size])} (gap of the losses {gaps[size]:.2f})" for size in GHOSTS}
    title = (
        f"Test error is least with statistics of {best} samples: {texts[best]}; "
        f"of all {BATCH_SIZE}: {texts[BATCH_SIZE]}; of {fewest}: {texts[fewest]}"
    )
    details = "without batch norm: " + ", ".join(
        f"{norm} {percent(float(found.error[norm].mean))} ({float(found.gap[norm].mean):.2f})"
        for norm in ("none", "layer")
    )
    name = GHOSTS[best].name
    smaller_gap = found.gap[name].high < found.gap["batch"].low
    better_test = found.error[name].high < found.error["batch"].low
    reproduced = "yes" if smaller_gap and better_test else "partly" if smaller_gap or better_test else "no"
    claim = "The noise of batch statistics regularizes"
    return Finding("f", "regularizing noise", title, details, claim, reproduced)


def noise_columns(found: Noise) -> Columns:
    """The plotted numbers."""
    names = list(found.gap)
    columns: dict[str, list[object]] = {"norm": list(names)}
    for what, bands in (("gap_nats", found.gap), ("test_error", found.error)):
        for field in Band._fields:
            columns[f"{field}_{what}"] = [float(getattr(bands[name], field)) for name in names]
    return columns
