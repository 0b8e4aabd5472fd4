"""From training to serving: exact statistics, folded batch norms, and one file for all platforms.

    python examples/serve.py --epochs 3 --out runs/serve

Trains the digits' network, recomputes its statistics over the training data, folds every batch norm into the
convolution before it, and exports the evaluation with `jax.export` for cpu, cuda and tpu, and any batch size.
The files are read back and run here. Prints accuracy, the greatest difference, the time of a batch, and the
size of a file.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _digits_common import EPSILON, IMAGE, Samples, accuracy, load_samples
from _digits_linen import LinenTrainer, Net, predict
from jax import Array, export
from rich.console import Console
from rich.table import Table

import jaxnorm.linen
from jaxnorm import Moments, population

PLATFORMS = ("cpu", "cuda", "tpu")
BLOCKS = ("block1", "block2", "block3")


def train(samples: Samples, epochs: int, batch_size: int = 32) -> tuple[Net, Any]:
    """A trained network and its variables, with running averages as statistics."""
    order = np.random.default_rng(0)
    steps = epochs * (len(samples.labels) // batch_size)
    trainer = LinenTrainer("batch", seed=0, learning_rate=0.2, steps=steps)
    for _ in range(epochs):
        for images, labels in samples.batches(batch_size, order):
            trainer.step(images, labels)
    return trainer.state.net, trainer.variables


def without_norms(variables: Any) -> Any:
    """The parameters of the network without norms that evaluates as the one with batch norms does."""
    params = {"head": variables["params"]["head"]}
    for block in BLOCKS:
        conv, norm = (variables["params"][block][name] for name in ("conv", "norm"))
        stored = variables["batch_stats"][block]["norm"]
        stats = Moments(stored["mean"], stored["var"], jnp.ones_like(stored["var"]))
        kernel, bias = population.fold_batch_norm(
            conv["kernel"], None, stats, scale=norm["scale"], norm_bias=norm["bias"], epsilon=EPSILON
        )
        params[block] = {"conv": {"kernel": kernel, "bias": bias}}
    return {"params": params}


def exported(net: Net, variables: Any, path: Path) -> Callable[[Array], Array]:
    """The evaluation, written to `path`, read back from it, and compiled here.

    Args:
      net: the network.
      variables: its parameters and statistics, which become constants of the program.
      path: of the file.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *IMAGE), jnp.float32)
    evaluate = jax.jit(lambda images: net.apply(variables, images, train=False))
    path.write_bytes(export.export(evaluate, platforms=PLATFORMS)(images).serialize())
    loaded = export.deserialize(bytearray(path.read_bytes()))
    return jax.jit(loaded.call)


def microseconds(
    programs: Sequence[Callable[[Array], Array]], images: Array, calls: int = 300
) -> list[float]:
    """The median time of a call of each program; they are called in turn."""
    times: list[list[float]] = [[] for _ in programs]
    for program in programs:
        program(images).block_until_ready()
    for _ in range(calls):
        for program, taken in zip(programs, times, strict=True):
            start = perf_counter()
            program(images).block_until_ready()
            taken.append(1e6 * (perf_counter() - start))
    return [median(taken) for taken in times]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/serve"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)

    training, test = load_samples()
    net, variables = train(training, options.epochs)
    exact = jaxnorm.linen.recalibrate(net, variables, jnp.split(training.images, 10), train=True)
    folded_net, folded = Net("none"), without_norms(exact)

    files = {name: options.out / f"{name}.jax" for name in ("with-norms", "folded")}
    programs = [exported(net, exact, files["with-norms"]), exported(folded_net, folded, files["folded"])]
    logits = [program(test.images) for program in programs]
    here = predict(net, exact, test.images)
    times = microseconds(programs, test.images[:64])

    table = Table("evaluation", "accuracy", "greatest difference", "64 images, us", "file, bytes")
    running = predict(net, variables, test.images)
    table.add_row("running averages", f"{accuracy(running, test.labels):.2%}", "", "", "")
    for (name, file), y, time in zip(files.items(), logits, times, strict=True):
        difference = f"{float(jnp.abs(y - here).max()):.1e}"
        size = f"{file.stat().st_size:,}"
        right = f"{accuracy(y, test.labels):.2%}"
        table.add_row(f"exact, {name}, loaded", right, difference, f"{time:.0f}", size)
    console = Console(width=100)
    console.print(table)
    console.print(f"Each file runs on {', '.join(PLATFORMS)}, with any batch size: {options.out}")


if __name__ == "__main__":
    main()
