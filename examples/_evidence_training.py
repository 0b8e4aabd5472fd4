"""Convergence, learning rates, initial weights, and what a hidden layer receives: figures a to d.

One network, 8 hidden layers of 64 units with relu, trained for 12 epochs in batches of 64.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from _evidence_net import (
    BATCH,
    GROUP,
    LAYER,
    NONE,
    NUM_TRAIN,
    RMS,
    TEST,
    TRAIN,
    VALIDATION,
    History,
    make_runs,
    train_all,
)
from _evidence_report import Band, Columns, Finding, listed, percent, seed_range

DEPTH = 8
EPOCHS = 12
BATCH_SIZE = 64
NORMS = (NONE, BATCH, LAYER, GROUP, RMS)
OTHERS = ("layer", "group", "rms")
RATES = 0.002 * 2.0 ** np.arange(13)
GAINS = 2.0 ** np.arange(-6, 7)
GOAL = 0.05  # test error that (a) counts the epochs to
TRAINED = 0.1  # a run trains if its error on the training samples ends below
QUANTILES = (0.15, 0.5, 0.85)
STEPS_A_WINDOW = 4  # of (d): quantiles are over the batches of four steps


class Training(NamedTuple):
    """The runs of all norms: for each of RATES with a gain of 1, then for each of GAINS at the best rate."""

    seeds: int
    by_rate: dict[str, History]  # run i has RATES[i // seeds] and seed i % seeds
    by_gain: dict[str, History]  # alike, with GAINS
    best: dict[str, int]  # index into RATES: least loss on the validation samples


def errors(history: History, rows: slice, seeds: int) -> np.ndarray:
    """Fraction of wrong answers among the samples `rows`: [settings, seeds, E]."""
    wrong = 1 - history.correct[:, :, rows].mean(-1)
    return wrong.reshape(-1, seeds, wrong.shape[-1])


def mean_losses(history: History, rows: slice, seeds: int) -> np.ndarray:
    """Mean loss over the samples `rows`: [settings, seeds, E]."""
    values = history.losses[:, :, rows].mean(-1)
    return values.reshape(-1, seeds, values.shape[-1])


def best_setting(history: History, seeds: int) -> int:
    """The setting whose runs end with the least loss on the validation samples."""
    final = mean_losses(history, VALIDATION, seeds)[:, :, -1].mean(1)
    return int(np.where(np.isnan(final), np.inf, final).argmin())


def run_training(seeds: int) -> Training:
    """Trains all of NORMS for each rate, then for each gain at the best rate."""
    samples = EPOCHS * NUM_TRAIN
    settings = [(seed, rate, 1.0, BATCH_SIZE) for rate in RATES for seed in range(seeds)]
    runs = make_runs(settings, samples)
    jobs = {norm.name: (norm, runs) for norm in NORMS}
    by_rate = train_all(jobs, depth=DEPTH, evaluations=EPOCHS)
    best = {name: best_setting(history, seeds) for name, history in by_rate.items()}
    for norm in NORMS:
        rate = RATES[best[norm.name]]
        settings = [(seed, rate, gain, BATCH_SIZE) for gain in GAINS for seed in range(seeds)]
        jobs[norm.name] = (norm, make_runs(settings, samples))
    return Training(seeds, by_rate, train_all(jobs, depth=DEPTH, evaluations=EPOCHS), best)


def bands_to_columns(x: str, values: np.ndarray, unit: str, bands: Mapping[str, Band]) -> Columns:
    """CSV columns of one band a norm over the same x."""
    names = np.repeat(list(bands), len(values))
    result: dict[str, np.ndarray] = {"norm": names, x: np.tile(values, len(bands))}
    for field in Band._fields:
        result[f"{field}_{unit}"] = np.concatenate([getattr(band, field) for band in bands.values()])
    return result


# ------------------------------------------------------------------- (a)


def convergence(training: Training) -> dict[str, Band]:
    """Test error after each epoch, at each norm's best rate."""
    result = {}
    for name, history in training.by_rate.items():
        result[name] = seed_range(errors(history, TEST, training.seeds)[training.best[name]], 0)
    return result


def epochs_to_goal(band: Band) -> int | None:
    """Epochs until the mean test error is at most GOAL, None if it never is."""
    reached = np.flatnonzero(band.mean <= GOAL)
    return int(reached[0]) + 1 if len(reached) else None


def convergence_finding(training: Training) -> Finding:
    """How soon each norm reaches GOAL."""
    bands = convergence(training)
    epochs = {name: epochs_to_goal(band) for name, band in bands.items()}
    batch, none = epochs["batch"], epochs["none"]
    texts = {name: f"{n} epochs" if n else f"not in {EPOCHS}" for name, n in epochs.items()}
    final = {name: percent(float(band.mean[-1])) for name, band in bands.items()}
    title = (
        f"At its best rate batch norm reaches {GOAL:.0%} test error after {texts['batch']}, "
        f"without a norm {texts['none']}"
    )
    details = f"{listed(texts, OTHERS)}; final error {listed(final, list(final))}"
    faster = batch is not None and (none is None or batch < none)
    return Finding(
        "a", "convergence", title, details, "Batch norm trains in fewer steps", "yes" if faster else "no"
    )


# ------------------------------------------------------------------- (b) and (c)


def final_errors(histories: Mapping[str, History], seeds: int) -> dict[str, Band]:
    """Error on the training samples at the end, for each setting of each norm."""
    return {
        name: seed_range(errors(history, TRAIN, seeds)[:, :, -1], 1) for name, history in histories.items()
    }


def trained(band: Band, values: np.ndarray) -> np.ndarray:
    """Those of `values` (rates or gains) at which every seed trains."""
    return values[band.high < TRAINED]


def span(values: np.ndarray) -> float:
    """Largest divided by smallest, 0 if there are none."""
    return float(values.max() / values.min()) if len(values) else 0.0


def interval(values: np.ndarray) -> str:
    """Smallest and largest of `values` in words."""
    if len(values) < 2:
        return f"only {values[0]:g}" if len(values) else "none"
    return f"{values.min():.2g} to {values.max():.2g}"


def rates_finding(training: Training) -> Finding:
    """The largest rate at which each norm trains."""
    bands = final_errors(training.by_rate, training.seeds)
    rates = {name: trained(band, RATES) for name, band in bands.items()}
    largest = {name: values.max(initial=0.0) for name, values in rates.items()}
    ratio = largest["batch"] / largest["none"] if largest["none"] else np.inf
    title = (
        f"Batch norm trains at rates up to {largest['batch']:.2g}, {ratio:.0f} times the largest without a "
        f"norm, {largest['none']:.2g}"
    )
    details = listed({name: f"{rate:.2g}" for name, rate in largest.items()}, OTHERS)
    reproduced = "yes" if ratio > 2 else "no"
    return Finding(
        "b", "learning rates", title, details, "Batch norm allows higher learning rates", reproduced
    )


def gains_finding(training: Training) -> Finding:
    """The gains at which each norm trains."""
    bands = final_errors(training.by_gain, training.seeds)
    gains = {name: trained(band, GAINS) for name, band in bands.items()}
    spans = {name: span(values) for name, values in gains.items()}
    everything = len(gains["batch"]) == len(GAINS)
    which = "every initial scale tried, " if everything else "initial scales "
    texts = {name: interval(values) for name, values in gains.items()}
    title = f"At its best rate batch norm trains from {which}{texts['batch']}; without a norm {texts['none']}"
    details = f"{listed(texts, OTHERS)}; on a grid of powers of two"
    reproduced = "no" if spans["batch"] <= 2 * spans["none"] else "yes" if everything else "partly"
    claim = "Batch norm makes the scale of the initial weights irrelevant"
    return Finding("c", "initial weights", title, details, claim, reproduced)


# ------------------------------------------------------------------- (d)


class Quantiles(NamedTuple):
    """QUANTILES of a unit's values in the last hidden layer, means over the probed units, [windows] each."""

    without: list[Band]  # what relu receives in the network without a norm
    before: list[Band]  # what batch norm receives ...
    after: list[Band]  # ... and returns: what relu receives
    drift: dict[str, float]  # of each of these three: see `drift`


def quantiles_of(values: np.ndarray) -> np.ndarray:
    """[seeds, E, S / E, B, units] to QUANTILES of the rows of each window: [3, seeds, windows, units]."""
    seeds, *_, units = values.shape
    rows = values.reshape(seeds, -1, STEPS_A_WINDOW * values.shape[3], units)
    return np.quantile(rows, QUANTILES, axis=2)


def drift(quantiles: np.ndarray) -> float:
    """How far a unit's median moves in training, mean over seeds and units.

    Its largest minus its least value, divided by the mean of half the distance between the outer quantiles.
    """
    low, median, high = quantiles
    return float((np.ptp(median, 1) / ((high - low) / 2).mean(1)).mean())


def quantiles(training: Training) -> Quantiles:
    """Quantiles and drift at the best rates, with batch norm and without a norm."""
    parts = {}
    for part, name, field in (
        ("without", "none", "after"),
        ("before", "batch", "before"),
        ("after", "batch", "after"),
    ):
        first = training.best[name] * training.seeds
        values = getattr(training.by_rate[name], field)[first : first + training.seeds]
        parts[part] = quantiles_of(values)
    bands = {name: [seed_range(part.mean(-1), 0) for part in parts[name]] for name in parts}
    return Quantiles(**bands, drift={name: drift(part) for name, part in parts.items()})


def quantiles_finding(found: Quantiles) -> Finding:
    """The three drifts."""
    without, before, after = (found.drift[name] for name in ("without", "before", "after"))
    title = (
        f"While training a unit's median moves by {without:.1f} times its spread without a norm; what batch "
        f"norm receives moves by {before:.1f}, and what it returns by {after:.1f}"
    )
    reproduced = "no" if after >= without else "partly" if before >= 0.8 * without else "yes"
    details = "medians of the last hidden layer, from their least to their largest value"
    claim = "Batch norm keeps the distribution of a layer's inputs steady"
    return Finding("d", "shifting distributions", title, details, claim, reproduced)


def quantiles_columns(found: Quantiles) -> Columns:
    """The plotted numbers."""
    rows = []
    for part in ("without", "before", "after"):
        for q, band in zip(QUANTILES, getattr(found, part), strict=True):
            for window, values in enumerate(zip(*band, strict=True)):
                rows.append((part, q, (window + 1) * STEPS_A_WINDOW, *values))
    names = ("where", "quantile", "step", "mean_value", "low_value", "high_value")
    return dict(zip(names, zip(*rows, strict=True), strict=True))
