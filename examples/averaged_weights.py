"""Averaged weights need statistics of their own: SWA and EMA on the digits, before and after recalibration.

    python examples/averaged_weights.py

A small network is trained by SGD at a high, constant learning rate. The mean of its weights (SWA) and their
moving average (EMA), both by optax, are better weights than the last ones. But the statistics in the batch
norms were measured while other weights made their inputs: the averages seem to be no better, or to be worse,
until `linen.recalibrate` has measured the statistics anew, in one pass over the training images.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits_common import Samples, accuracy, load_samples, mean_loss
from _digits_linen import Net, init, predict
from jax import Array
from rich.console import Console
from rich.table import Table

from jaxnorm import linen as jn

NET = Net("batch")
BATCH_SIZE = 32
TX = optax.sgd(1.0, momentum=0.9)  # too high a rate to converge
DECAY = 0.98  # of the moving average
AVERAGE = optax.ema(DECAY)


class State(NamedTuple):
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: optax.EmaState  # a moving average of the weights
    mean: Any  # of the weights
    steps: Array  # how many weights are in the mean


@jax.jit
def train_step(state: State, images: Array, labels: Array) -> State:
    def loss_fn(params: Any) -> tuple[Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = NET.apply(variables, images, train=True, mutable=["batch_stats"])
        return mean_loss(logits, labels), updated["batch_stats"]

    grads, batch_stats = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = TX.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    _, ema = AVERAGE.update(params, state.ema)
    steps = state.steps + 1
    mean = optax.incremental_update(params, state.mean, 1 / steps)
    return State(params, batch_stats, opt_state, ema, mean, steps)


def train(samples: Samples, *, epochs: int, seed: int) -> State:
    """The mean of the weights is that of the second half of the epochs."""
    variables = init(NET, jax.random.key(seed))
    params = variables["params"]
    zero = jnp.zeros(())
    state = State(params, variables["batch_stats"], TX.init(params), AVERAGE.init(params), params, zero)
    order = np.random.default_rng(seed)
    for epoch in range(epochs):
        if epoch == epochs // 2:
            state = state._replace(mean=state.params, steps=zero)
        for images, labels in samples.batches(BATCH_SIZE, order):
            state = train_step(state, images, labels)
    return state


class Row(NamedTuple):
    """Test accuracies with some weights."""

    weights: str
    before: float  # with the statistics of training
    after: float  # with statistics that were measured with these weights


def compare(train_samples: Samples, test: Samples, *, epochs: int, seed: int) -> list[Row]:
    state = train(train_samples, epochs=epochs, seed=seed)
    moving = optax.tree.bias_correction(state.ema.ema, DECAY, state.ema.count)
    rows = []
    for name, params in (("last", state.params), ("SWA", state.mean), ("EMA", moving)):
        before = {"params": params, "batch_stats": state.batch_stats}
        after = jn.recalibrate(NET, before, np.split(train_samples.images, 10), train=False)
        accuracies = (accuracy(predict(NET, v, test.images), test.labels) for v in (before, after))
        rows.append(Row(name, *accuracies))
    return rows


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(prog="averaged_weights.py", description="SWA and EMA on the digits.")
    parser.add_argument("--epochs", type=positive, default=20, metavar="N", help="default: 20")
    parser.add_argument("--runs", type=positive, default=3, metavar="N", help="default: 3")
    options = parser.parse_args(arguments)
    samples, test = load_samples()
    runs = [compare(samples, test, epochs=options.epochs, seed=seed) for seed in range(options.runs)]
    table = Table(title=f"Test accuracy, mean of {options.runs} runs")
    for column in ("weights", "statistics of training", "recalibrated"):
        table.add_column(column)
    means = []
    for rows in zip(*runs, strict=True):
        row = Row(rows[0].weights, *(float(np.mean([r[i] for r in rows])) for i in (1, 2)))
        table.add_row(row.weights, f"{row.before:.2%}", f"{row.after:.2%}")
        means.append(row)
    Console().print(table)
    return means


if __name__ == "__main__":
    main()
