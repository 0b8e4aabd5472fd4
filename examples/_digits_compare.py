"""What batch norm buys, and where small batches cost: norms x batch sizes x learning rates."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from _digits_common import NUM_TRAIN, Trainer, accuracy, load_samples
from rich.console import Console
from rich.table import Table

# Test accuracies, one a seed, by norm, batch size and learning rate.
Results = dict[tuple[str, int, float], list[float]]


def compare(
    make_trainer: Callable[..., Trainer],
    *,
    epochs: int,
    seed: int,
    advance: Callable[[int, int, str], None],
    norms: Sequence[str] = ("none", "batch", "layer", "group"),
    batch_sizes: Sequence[int] = (4, 16, 128),
    learning_rates: Sequence[float] = (0.03, 0.2, 1.0),
    num_seeds: int = 3,
) -> Results:
    """Trains every combination `num_seeds` times, always for `epochs` epochs.

    A seed chooses the initial parameters and the order of the samples, alike for all of them.
    """
    data, test = load_samples()
    results: Results = {}
    seeds = range(seed, seed + num_seeds)
    runs = list(product(norms, batch_sizes, learning_rates, seeds))
    for done, (norm, batch_size, learning_rate, run_seed) in enumerate(runs):
        advance(done, len(runs), f"{norm}, batch {batch_size}, rate {learning_rate:g}")
        steps = epochs * NUM_TRAIN // batch_size
        trainer = make_trainer(norm, seed=run_seed, learning_rate=learning_rate, steps=steps)
        order = np.random.default_rng(run_seed)
        for _ in range(epochs):
            for images, labels in data.batches(batch_size, order):
                trainer.step(images, labels)
        value = accuracy(trainer.predict(test.images), test.labels)
        results.setdefault((norm, batch_size, learning_rate), []).append(value)
    advance(len(runs), len(runs), "done")
    return results


def print_comparison(console: Console, results: Results, *, epochs: int) -> None:
    norms, batch_sizes, learning_rates = axes(results)
    num_seeds = len(next(iter(results.values())))
    table = Table("norm")
    table.add_column("batch size", justify="right")
    for learning_rate in learning_rates:
        table.add_column(f"rate {learning_rate:g}", justify="right")
    for norm, batch_size in product(norms, batch_sizes):
        cells = []
        for learning_rate in learning_rates:
            values = 100 * np.array(results[norm, batch_size, learning_rate])
            cells.append(f"{values.mean():.1f} ({values.min():.1f}-{values.max():.1f})")
        table.add_row(norm, str(batch_size), *cells, end_section=batch_size == batch_sizes[-1])
    console.print(
        f"\nTest accuracy in %, mean (range) of {num_seeds} seeds, after {epochs} epochs each.",
        "Equal epochs are equal samples: batch size 128 takes 1/32 of the steps of 4.",
        "Batch norm is evaluated with its running statistics. Chance is 10 %.",
        table,
        sep="\n",
    )


def axes(results: Results) -> tuple[list[str], list[int], list[float]]:
    """The norms, batch sizes and learning rates of the results, each once and in order."""
    norms, batch_sizes, learning_rates = zip(*results, strict=True)
    return (
        list(dict.fromkeys(norms)),
        list(dict.fromkeys(batch_sizes)),
        list(dict.fromkeys(learning_rates)),
    )
