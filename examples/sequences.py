"""An LSTM reads scikit-learn's digits, rows in a fixed random order, over and over; how long differs.

    python examples/sequences.py

Without a norm, with layer norm, and with recurrent batch norm (Cooijmans et al. 2016, arXiv:1603.09025),
whose statistics are those of the time step, in a bank of states, or shared by all steps. Trained on
sequences of 6 to 12 rows, with masks; tested on longer ones too, whose late steps have no statistics.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from _style import BLUE, GREEN, GREY, ORANGE, STYLE
from jax import Array
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from jaxnorm import bank_norm, initial_stats, layer_norm

SHORTEST, LONGEST = 6, 12  # in training
LENGTHS = (8, 12, 16, 24)  # in the table
HIDDEN, BATCH, NUM_TRAIN = 48, 64, 1280
# The states of each norm's bank: one for every time step of training, or one for all of them.
NORMS = {"none": 0, "layer": 0, "batch, per step": LONGEST, "batch, shared": 1}
MEMORY = 10  # batches that a moving average reaches back over
COLORS = {"none": GREY, "layer": GREEN, "batch, per step": BLUE, "batch, shared": ORANGE}
SITES = {"input": 4 * HIDDEN, "hidden": 4 * HIDDEN, "cell": HIDDEN}  # what is normalized, and its features

Tree = dict[str, Any]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [digits, rows, columns], their rows in a random order, the same for all, and labels."""
    data = load_digits()
    order = np.random.default_rng(0)
    shuffled = order.permutation(len(data.target))
    images = data.images[shuffled][:, order.permutation(8)] / 16
    return images.astype(np.float32), data.target[shuffled]


def rows(images: np.ndarray, length: int) -> Array:
    """[digits, length, columns]: the rows from the first to the last, then again from the first."""
    return jnp.asarray(images[:, np.arange(length) % images.shape[1]])


def init(norm: str, seed: int) -> tuple[Tree, Tree]:
    """Parameters, and a bank of statistics at every site."""
    keys = jax.random.split(jax.random.key(seed), 3)
    dense, recurrent = jax.nn.initializers.glorot_normal(), jax.nn.initializers.orthogonal()
    params = {
        "input": dense(keys[0], (8, 4 * HIDDEN)),
        "hidden": recurrent(keys[1], (HIDDEN, 4 * HIDDEN)),
        "bias": jnp.zeros(4 * HIDDEN).at[HIDDEN : 2 * HIDDEN].set(1.0),  # to forget little at first
        "head": dense(keys[2], (HIDDEN, 10)),
        "scale": {site: jnp.full(n, 0.25) for site, n in SITES.items()},
    }
    stats = {site: initial_stats((NORMS[norm], n), weight=0.0) for site, n in SITES.items() if NORMS[norm]}
    return params, stats


def logits(
    norm: str, params: Tree, stats: Tree, x: Array, lengths: Array, *, train: bool
) -> tuple[Array, Tree]:
    """Of the state in which each sequence ends, and the new statistics."""
    # one state for all steps is updated that many times a batch
    decay = 1 - 1 / MEMORY if NORMS[norm] > 1 else 1 - 1 / MEMORY / LONGEST

    def step(carry: Any, inputs: Any) -> Any:
        hidden, cell, banks = carry
        time, row = inputs
        there = (time < lengths)[:, None]
        banks = dict(banks)

        def normalized(site: str, v: Array) -> Array:
            scale = params["scale"][site]
            if norm == "none":
                return v
            if norm == "layer":
                return layer_norm(v, scale=scale)
            y, banks[site] = bank_norm(
                v, banks[site], time, train=train, scale=scale, where=there, decay=decay, epsilon=1e-3
            )
            return y

        gates = normalized("input", row @ params["input"]) + normalized("hidden", hidden @ params["hidden"])
        into, forget, out, new = jnp.split(gates + params["bias"], 4, axis=-1)
        moved = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
        shown = jax.nn.sigmoid(out) * jnp.tanh(normalized("cell", moved))
        return (jnp.where(there, shown, hidden), jnp.where(there, moved, cell), banks), None

    zeros = jnp.zeros((x.shape[0], HIDDEN))
    steps = jnp.arange(x.shape[1]), jnp.swapaxes(x, 0, 1)
    (hidden, _, stats), _ = jax.lax.scan(step, (zeros, zeros, stats), steps)
    return hidden @ params["head"], stats


def train(
    norm: str, images: np.ndarray, labels: np.ndarray, *, epochs: int, seed: int
) -> tuple[Tree, Tree, list[float]]:
    """Parameters, statistics, and the loss of every step."""
    params, stats = init(norm, seed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    opt_state = optimizer.init(params)

    @jax.jit
    def update(params: Tree, stats: Tree, opt_state: Any, x: Array, lengths: Array, labels: Array) -> Any:
        def loss_fn(params: Tree) -> Any:
            scores, new = logits(norm, params, stats, x, lengths, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean(), new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), new, opt_state, loss

    order = np.random.default_rng(seed)
    losses = []
    for _ in range(epochs):
        for batch in order.permutation(len(images)).reshape(-1, BATCH):
            lengths = order.integers(SHORTEST, LONGEST + 1, BATCH)
            x = rows(images[batch], LONGEST)
            params, stats, opt_state, loss = update(params, stats, opt_state, x, lengths, labels[batch])
            losses.append(float(loss))
    return params, stats, losses


def accuracy(
    norm: str, params: Tree, stats: Tree, images: np.ndarray, labels: np.ndarray, length: int
) -> float:
    lengths = jnp.full(len(images), length)
    scores, _ = jax.jit(partial(logits, norm, train=False))(params, stats, rows(images, length), lengths)
    return float((scores.argmax(-1) == labels).mean())


def plot(curves: dict[str, list[float]], table: dict[str, list[float]], path: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for norm, losses in curves.items():
            width = min(20, len(losses))
            smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
            # in training the two batch norms are one, by the batch's own statistics
            line = "--" if norm == "batch, shared" else "-"
            left.plot(np.arange(len(smooth)) + width, smooth, color=COLORS[norm], linestyle=line, label=norm)
            right.plot(LENGTHS, [100 * v for v in table[norm]], color=COLORS[norm], marker="o", label=norm)
        left.set(xlabel="step", ylabel=f"training loss, mean of {width} steps")
        right.axvspan(SHORTEST, LONGEST, color=GREY, alpha=0.15, linewidth=0)
        right.set(
            xlabel="rows read in testing (grey: in training)", ylabel="test accuracy in %", xticks=LENGTHS
        )
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(curves))
        figure.suptitle("An LSTM on digits read by rows, by norm")
        figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="sequences.py", description="Norms in a recurrent network.")
    parser.add_argument("--epochs", type=int, default=15, metavar="N", help="default: 15")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs takes a whole number from 1 on, --seed one from 0 on")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: cannot create folder {options.out}: {error.strerror}")

    images, labels = digits()
    learn, test = (slice(NUM_TRAIN), slice(NUM_TRAIN, None))
    shown = Table(
        "norm", *(f"{n} rows" for n in LENGTHS), title="Test accuracy in %; trained on 6 to 12 rows"
    )
    curves, results = {}, {}
    for norm in NORMS:
        params, stats, curves[norm] = train(
            norm, images[learn], labels[learn], epochs=options.epochs, seed=options.seed
        )
        results[norm] = [accuracy(norm, params, stats, images[test], labels[test], n) for n in LENGTHS]
        shown.add_row(norm, *(f"{100 * v:.1f}" for v in results[norm]))
        print(f"trained  {norm}: last loss {curves[norm][-1]:.3f}")
    Console(width=110).print(shown)
    picture = options.out / "sequences.png"
    plot(curves, results, picture)
    print(f"picture  {picture}")


if __name__ == "__main__":
    main()
