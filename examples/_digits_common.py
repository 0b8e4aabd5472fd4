"""What linen and nnx share: the digits, the optimizer, the loss, and what a trainer can do."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

NORMS = ("batch", "layer", "group", "instance", "rms", "none")
IMAGE = (8, 8, 1)
NUM_TRAIN = 1280  # a multiple of 4, 16, 32 and 128: an epoch is the same samples for all of them
EPSILON = 1e-5  # batch norm's


class Samples(NamedTuple):
    images: Array  # [N, 8, 8, 1] float32 in [0, 1]
    labels: Array  # [N] int32 in 0..9

    def batches(self, size: int, order: np.random.Generator) -> Iterator[tuple[Array, Array]]:
        """One epoch in a random order; what a last batch would lack waits for another epoch."""
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        steps = len(labels) // size
        for rows in order.permutation(len(labels))[: steps * size].reshape(steps, size):
            yield jnp.asarray(images[rows]), jnp.asarray(labels[rows])


class Trainer(Protocol):
    """A network in training; `_digits_linen` and `_digits_nnx` each have one."""

    def step(self, images: Array, labels: Array) -> Array:
        """Learns from one batch and returns its loss before the step."""

    def predict(self, images: Array) -> Array:
        """Logits with the population's (running) statistics."""

    def predict_by_batch(self, images: Array) -> tuple[Array, dict[str, Any]]:
        """Logits with these images' own statistics, and those statistics; learns nothing."""

    @property
    def variables(self) -> dict[str, Any]:
        """`{"params": ..., "batch_stats": ...}`: nested dictionaries, of the same names in both."""

    def restore(self, variables: dict[str, Any]) -> None:
        """Takes variables of the same structure, from a checkpoint for instance."""


def load_samples() -> tuple[Samples, Samples]:
    """Training and test samples: the same split, stratified by digit, on every call."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32).reshape(-1, *IMAGE)
    labels = digits.target.astype(np.int32)
    parts = train_test_split(images, labels, train_size=NUM_TRAIN, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(jnp.asarray, parts)
    return Samples(train_images, train_labels), Samples(test_images, test_labels)


@functools.cache
def optimizer(steps: int, learning_rate: float = 1.0) -> optax.GradientTransformation:
    """SGD with momentum 0.9; the learning rate falls to zero along a cosine.

    The peak rate is state, not code: `optax.tree.set` changes it without compiling the step again.
    """
    return optax.chain(
        optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate, momentum=0.9),
        optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, steps)),
    )


def mean_loss(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: Array, labels: Array) -> float:
    return float((logits.argmax(-1) == labels).mean())


class Distance(NamedTuple):
    """How far statistics `b` are from statistics `a`, for each channel of a layer."""

    shift: Array  # |mean_b - mean_a| / std_a
    ratio: Array  # std_b / std_a


def distances(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Distance]:
    """How far `batch_stats` b are from `batch_stats` a, layer by layer; std includes epsilon."""
    result = {}
    for name in a:
        old, new = a[name]["norm"], b[name]["norm"]
        std = jnp.sqrt(old["var"] + EPSILON)
        shift = jnp.abs(new["mean"] - old["mean"]) / std
        result[name] = Distance(shift, jnp.sqrt(new["var"] + EPSILON) / std)
    return jax.device_get(result)
