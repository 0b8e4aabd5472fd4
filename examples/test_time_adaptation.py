"""Digits in another contrast and brightness, and four ways to evaluate a net that was trained without them.

    python examples/test_time_adaptation.py

source    the running statistics of training
batch     the statistics of the test batch: `blend=0`, prediction-time batch norm (Nado et al. 2020)
blended   N / (N + n) of the running ones, N = 16 samples' worth beside a batch of n (Schneider et al. 2020)
adapted   TENT (Wang et al. 2021): by the batch, after steps that lower the entropy of the predictions and
          change the scale and bias of norms alone; no label is seen

Nothing but the test images changes between the columns: one trained net, whose option `blend` is set.
"""

import argparse
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits_common import Samples, accuracy, load_samples
from _digits_nnx import Net, NnxTrainer
from flax import nnx
from jax import Array
from rich.console import Console
from rich.table import Table

from jaxnorm import nnx as jn

BATCH = 64  # of test images: each is adapted to on its way
PRIOR = 16  # samples that the running statistics are worth beside a test batch
RATE = 1e-2  # of TENT's steps, one a batch
SHIFTS: dict[str, Callable[[Array], Array]] = {
    "as in training": lambda x: x,
    "contrast x 0.4": lambda x: 0.4 * x,
    "brightness + 0.4": lambda x: x + 0.4,
    "contrast x 0.3, light from below": lambda x: 0.3 * x + jnp.linspace(0, 0.6, 8)[:, None],
    "contrast x 0.2, noise": lambda x: 0.2 * x + 0.05 * jax.random.normal(jax.random.key(1), x.shape),
}


def trained(samples: Samples, epochs: int) -> Net:
    """A net with batch norm, in evaluation."""
    order = np.random.default_rng(0)
    steps = epochs * (len(samples.labels) // BATCH)
    trainer = NnxTrainer("batch", seed=0, learning_rate=0.1, steps=steps)
    for _ in range(epochs):
        for images, labels in samples.batches(BATCH, order):
            trainer.step(images, labels)
    trainer.model.set_attributes(use_running_average=True, raise_if_not_found=False)
    return trainer.model


@nnx.jit
def predict(model: Net, images: Array) -> Array:
    return model(images)


def batches(images: Array) -> list[Array]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def evaluated(model: Net, images: Array, blend: object) -> Array:
    """Logits, each batch for itself, by this share of the running statistics."""
    model = nnx.clone(model)
    model.set_attributes(jn.BatchNorm, blend=blend)
    return jnp.concatenate([predict(model, part) for part in batches(images)])


def entropy(logits: Array) -> Array:
    """The mean entropy of the predictions: what TENT lowers, as no label is known."""
    return -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()


@nnx.jit
def tent_step(model: Net, optimizer: nnx.Optimizer[Net], images: Array) -> Array:
    """A step on one batch, and its logits before the step: each image is predicted once, as it comes."""

    def loss_fn(model: Net) -> tuple[Array, Array]:
        logits = model(images)
        return entropy(logits), logits

    grads, logits = nnx.grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads)
    return logits


def adapted(model: Net, images: Array) -> Array:
    """Logits, while the norms' scales and biases follow."""
    model = nnx.clone(model)
    model.set_attributes(jn.BatchNorm, blend=0.0)
    # not optax.masked, which would add the gradients of all other parameters to them
    choice = {"norm": optax.adam(RATE), "other": optax.set_to_zero()}
    optimizer = nnx.Optimizer(model, optax.multi_transform(choice, jn.norm_labels(model)), wrt=nnx.Param)
    return jnp.concatenate([tent_step(model, optimizer, part) for part in batches(images)])


def accuracies(model: Net, test: Samples) -> dict[str, list[float]]:
    """Of each shift: source, batch, blended, adapted."""
    ways: list[Callable[[Array], Array]] = [
        lambda images: evaluated(model, images, None),
        lambda images: evaluated(model, images, 0.0),
        lambda images: evaluated(model, images, lambda n: PRIOR / (PRIOR + n)),
        lambda images: adapted(model, images),
    ]
    # A whole number of batches, in an order that mixes the digits: a batch's statistics are those of its mix.
    order = np.random.default_rng(1).permutation(len(test.labels) // BATCH * BATCH)
    images, labels = test.images[order], test.labels[order]
    return {name: [accuracy(way(shift(images)), labels) for way in ways] for name, shift in SHIFTS.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(prog="test_time_adaptation.py", description="Digits that have shifted.")
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="of training; default: 8")
    options = parser.parse_args(arguments)
    train, test = load_samples()
    rows = accuracies(trained(train, options.epochs), test)
    table = Table(title=f"Accuracy on test digits, in batches of {BATCH}")
    table.add_column("test images")
    for column in ("source", "batch", "blended", "adapted"):
        table.add_column(column, justify="right")
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.1%}" for value in values))
    Console().print(table)
    return rows


if __name__ == "__main__":
    main()
