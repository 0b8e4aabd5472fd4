"""Train a small convolutional classifier on scikit-learn's handwritten digits.

    python examples/digits.py                          # batch norm, Flax linen
    python examples/digits.py --norm group --api nnx
    python examples/digits.py --compare                # norms x batch sizes x learning rates

How one trains with running statistics is in `_digits_linen.py` and `_digits_nnx.py`.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from _digits_common import NORMS, NUM_TRAIN, Samples, Trainer, accuracy, distances, load_samples
from _digits_compare import compare, print_comparison
from _digits_linen import LinenTrainer
from _digits_nnx import NnxTrainer
from _digits_plots import History, plot_comparison, plot_training
from jax import Array
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

TRAINERS: dict[str, Callable[..., Trainer]] = {"linen": LinenTrainer, "nnx": NnxTrainer}


def progress_bar() -> Progress:
    return Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))


def train(
    trainer: Trainer, data: Samples, test: Samples, *, epochs: int, batch_size: int, seed: int
) -> History:
    """Trains, and records the loss of every step and what the statistics do meanwhile."""
    history = History()
    order = np.random.default_rng(seed)
    keeps_statistics = bool(trainer.variables["batch_stats"])
    losses: list[Array] = []

    def record_distance() -> None:
        if keeps_statistics:
            _, truth = trainer.predict_by_batch(data.images)
            distance = distances(truth, trainer.variables["batch_stats"])
            history.distances.append((len(losses), distance))

    with progress_bar() as progress:
        task = progress.add_task("compiling", total=epochs)
        for epoch in range(epochs):
            for images, labels in data.batches(batch_size, order):
                losses.append(trainer.step(images, labels))
                # The average moves fastest at first: look after steps 1, 2, 4, ... too.
                if epoch == 0 and len(losses).bit_count() == 1:
                    record_distance()
            record_distance()
            history.accuracy.append(accuracy(trainer.predict(test.images), test.labels))
            if keeps_statistics:
                logits, _ = trainer.predict_by_batch(test.images)
                history.own_accuracy.append(accuracy(logits, test.labels))
            description = f"loss {losses[-1]:.4f}, test accuracy {history.accuracy[-1]:.2%}"
            progress.update(task, advance=1, description=description)
    history.losses = np.stack(jax.device_get(losses))
    return history


def write_checkpoint(path: Path, variables: dict[str, Any]) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), variables, force=True)


def read_checkpoint(path: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The variables at `path`, with the structure, shapes and dtypes of `like`."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path.absolute(), like)


def print_accuracies(console: Console, test: Samples, logits: dict[str, Array]) -> None:
    table = Table("normalized by")
    table.add_column("accuracy", justify="right")
    table.add_column("errors", justify="right")
    for name, values in logits.items():
        errors = int((values.argmax(-1) != test.labels).sum())
        table.add_row(name, f"{accuracy(values, test.labels):.2%}", str(errors))
    console.print(f"\nTest accuracy, {len(test.labels)} images:", table)


def print_distances(console: Console, population: dict[str, Any], own: dict[str, Any]) -> None:
    table = Table("layer")
    for heading in ("shift: median", "max", "ratio: min", "median", "max"):
        table.add_column(heading, justify="right")
    for name, (shift, ratio) in distances(population, own).items():
        values = (np.median(shift), shift.max(), ratio.min(), np.median(ratio), ratio.max())
        table.add_row(name, *(f"{value:.3f}" for value in values))
    console.print(
        "\nThe test batch's own statistics against the population's, over channels:",
        "shift: |test batch's mean - running mean|, in running standard deviations",
        "ratio: test batch's std / running std, where std = sqrt(var + epsilon)",
        table,
        sep="\n",
    )


def run_training(options: argparse.Namespace, console: Console) -> None:
    data, test = load_samples()
    make_trainer = TRAINERS[options.api]
    settings = {
        "learning_rate": options.learning_rate,
        "steps": options.epochs * (NUM_TRAIN // options.batch_size),
    }
    start = time.perf_counter()
    trainer = make_trainer(options.norm, seed=options.seed, **settings)
    history = train(
        trainer,
        data,
        test,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    seconds = time.perf_counter() - start
    console.print(f"{options.norm} norm, Flax {options.api}: {options.epochs} epochs, {seconds:.1f} s")

    name = f"digits-{options.norm}-{options.api}"
    checkpoint = options.out / f"{name}-checkpoint"
    write_checkpoint(checkpoint, trainer.variables)
    # Another seed: what it predicts comes from the checkpoint.
    restored = make_trainer(options.norm, seed=options.seed + 1, **settings)
    restored.restore(read_checkpoint(checkpoint, restored.variables))

    population = trainer.variables["batch_stats"]
    first = "population (running) statistics" if population else "no running statistics"
    logits = {first: trainer.predict(test.images)}
    if population:
        by_batch, own = trainer.predict_by_batch(test.images)
        logits["the test batch's own statistics"] = by_batch
    logits[f"{first}, read back"] = restored.predict(test.images)
    print_accuracies(console, test, logits)
    if population:
        print_distances(console, population, own)
    if not np.array_equal(logits[first], logits[f"{first}, read back"]):
        raise SystemExit(f"{checkpoint}: what was read back predicts differently")

    picture = options.out / f"{name}.png"
    plot_training(history, picture, title=f"{options.norm} norm, Flax {options.api}")
    print(f"checkpoint  {checkpoint}\npicture     {picture}")


def run_comparison(options: argparse.Namespace, console: Console) -> None:
    with progress_bar() as progress:
        task = progress.add_task("compiling", total=None)

        def advance(done: int, total: int, description: str) -> None:
            progress.update(task, completed=done, total=total, description=description)

        results = compare(TRAINERS[options.api], epochs=options.epochs, seed=options.seed, advance=advance)
    print_comparison(console, results, epochs=options.epochs)
    picture = options.out / "digits-compare.png"
    plot_comparison(results, picture, epochs=options.epochs)
    print(f"picture  {picture}")


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and minimum <= int(text) <= maximum):
            message = f"expected a whole number from {minimum} to {maximum}, got {text!r}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="digits.py",
        description="Train a small convolutional classifier on scikit-learn's handwritten digits.",
    )
    single = {"norm": "batch", "batch_size": 32, "learning_rate": 0.1}
    add = parser.add_argument
    add("--norm", choices=NORMS, help="default: batch")
    add("--api", choices=TRAINERS, default="linen", help="default: linen")
    add("--batch-size", type=whole(1, NUM_TRAIN), metavar="N", help="default: 32")
    add("--epochs", type=whole(1, 10_000), metavar="N", help="default: 20; with --compare 10")
    add("--learning-rate", type=positive, metavar="RATE", help="of SGD at its peak; default: 0.1")
    add("--seed", type=whole(0, 2**31 - 1), default=0, metavar="N", help="default: 0")
    add("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    add("--compare", action="store_true", help="norms x batch sizes x learning rates, 3 seeds each")
    options = parser.parse_args(arguments)

    for name, default in single.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif options.compare:
            flag = "--" + name.replace("_", "-")
            parser.error(f"argument {flag}: --compare tries several; leave out one of the two")
    if options.epochs is None:
        options.epochs = 10 if options.compare else 20
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot create folder {options.out}: {error.strerror}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    run = run_comparison if options.compare else run_training
    run(options, Console())


if __name__ == "__main__":
    main()
