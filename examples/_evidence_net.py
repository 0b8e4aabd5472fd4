"""The network of evidence.py, and the program that trains it many times at once.

A run is one training: a seed, a peak learning rate, a scale of the initial weights, a batch size. `vmap`
makes one program of all the runs that share a norm, so that each norm is compiled once.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _digits_common import load_samples
from jax import Array

import jaxnorm
from jaxnorm import Moments

NUM_TRAIN = 1024  # a multiple of every batch size
WIDTH = 64  # of every hidden layer, and the number of pixels
CLASSES = 10
# Compiling takes longer than running. With less optimization it takes half as long, and running no longer.
FAST_COMPILATION: dict[str, bool | int | float | str | None] = {"xla_backend_optimization_level": 1}
PROBED_UNITS = 4  # whose values are recorded


class Norm(NamedTuple):
    """How a hidden layer is normalized."""

    name: str
    # (x [N, WIDTH], statistics, scale, bias [WIDTH]), then by name: train, where ([N, 1] bool or None), decay
    apply: Callable[..., tuple[Array, Moments]]


def _stateless(norm: Callable[..., Array]) -> Callable[..., tuple[Array, Moments]]:
    """`norm(x, scale=, bias=)`, in the form of a norm with statistics, which it returns as they are."""

    def apply(x: Array, stats: Moments, scale: Array, bias: Array, **_: Any) -> tuple[Array, Moments]:
        return norm(x, scale=scale, bias=bias), stats

    return apply


def _stateful(norm: Callable[..., tuple[Array, Moments]]) -> Callable[..., tuple[Array, Moments]]:
    """`norm(x, stats, scale=, bias=, ...)`, with scale and bias by position."""

    def apply(x: Array, stats: Moments, scale: Array, bias: Array, **options: Any) -> tuple[Array, Moments]:
        return norm(x, stats, scale=scale, bias=bias, **options)

    return apply


def ghost(size: int) -> Norm:
    """Ghost batch norm with ghosts of `size` rows; evaluation uses the running statistics, without ghosts."""

    def apply(
        x: Array, stats: Moments, scale: Array, bias: Array, *, train: bool, **options: Any
    ) -> tuple[Array, Moments]:
        ghosts = len(x) // size if train else 1
        return jaxnorm.ghost_batch_norm(
            x, stats, num_ghosts=ghosts, scale=scale, bias=bias, train=train, **options
        )

    return Norm(f"ghost {size}", apply)


NONE = Norm("none", _stateless(lambda x, scale, bias: x * scale + bias))
BATCH = Norm("batch", _stateful(jaxnorm.batch_norm))
RENORM = Norm("renorm", _stateful(jaxnorm.batch_renorm))
LAYER = Norm("layer", _stateless(jaxnorm.layer_norm))
RMS = Norm("rms", _stateless(jaxnorm.rms_norm))
GROUP = Norm("group", _stateless(functools.partial(jaxnorm.group_norm, num_groups=8)))


class Data(NamedTuple):
    """All digits: the first NUM_TRAIN rows are for training, then 256 for validation, 517 for the test."""

    x: Array  # [1797, WIDTH] float32: mean 0 and variance 1 over all training pixels
    labels: Array  # [1797] int32


TRAIN, VALIDATION, TEST = slice(0, NUM_TRAIN), slice(NUM_TRAIN, 1280), slice(1280, None)


@functools.cache
def load() -> Data:
    train, test = load_samples()
    x = jnp.concatenate([train.images, test.images]).reshape(-1, WIDTH)
    x = jaxnorm.standardize(x, jaxnorm.moments(x[TRAIN], (0, 1)))
    return Data(x, jnp.concatenate([train.labels, test.labels]))


class Params(NamedTuple):
    weights: Array  # [depth, WIDTH, WIDTH]
    scale: Array  # [depth, WIDTH]
    bias: Array  # [depth, WIDTH]
    head: Array  # [WIDTH, CLASSES]
    head_bias: Array  # [CLASSES]


def init(seed: Array, gain: Array, depth: int) -> Params:
    """Hidden weights are normal with standard deviation gain / sqrt(WIDTH): gain 1 is Flax's default."""
    hidden, head = jax.random.split(jax.random.key(seed))
    std = WIDTH**-0.5
    return Params(
        gain * std * jax.random.normal(hidden, (depth, WIDTH, WIDTH)),
        jnp.ones((depth, WIDTH)),
        jnp.zeros((depth, WIDTH)),
        std * jax.random.normal(head, (WIDTH, CLASSES)),
        jnp.zeros(CLASSES),
    )


def forward(
    norm: Norm, params: Params, stats: Moments, x: Array, **options: Any
) -> tuple[Array, Moments, Array, Array]:
    """`depth` hidden layers, each relu(norm(x @ weights)), then the head.

    `stats` holds [depth, WIDTH]; `options` go to `norm.apply`. Returns the logits [N, CLASSES], the new
    statistics, and what the layers' norms receive and return, [depth, N, WIDTH] each.
    """

    def layer(
        x: Array, layer: tuple[Array, Array, Array, Moments]
    ) -> tuple[Array, tuple[Moments, Array, Array]]:
        weights, scale, bias, stats = layer
        before = x @ weights
        after, stats = norm.apply(before, stats, scale, bias, **options)
        return jax.nn.relu(after), (stats, before, after)

    layers = (params.weights, params.scale, params.bias, stats)
    x, (stats, before, after) = jax.lax.scan(layer, x, layers)
    return x @ params.head + params.head_bias, stats, before, after


def initial_stats(depth: int) -> Moments:
    """Statistics that have seen nothing, [depth, WIDTH]: their moving averages are debiased."""
    return jaxnorm.initial_stats((depth, WIDTH), weight=0.0)


def losses(logits: Array, labels: Array) -> Array:
    """Cross entropy of each sample, [N], in nats."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


class Runs(NamedTuple):
    """What distinguishes the R runs of one program, which takes S steps of at most B samples."""

    seed: np.ndarray  # [R] int32
    rate: np.ndarray  # [R] float32: the peak learning rate
    gain: np.ndarray  # [R] float32: scales the initial weights of the hidden layers
    size: np.ndarray  # [R] int32: samples a batch, at most B; the rest is masked
    steps: np.ndarray  # [R] int32: at most S; what follows changes nothing
    rows: np.ndarray  # [R, S, B] int32: the training samples of each batch


def make_runs(
    settings: Sequence[tuple[int, float, float, int]], samples: int, *, num_rows: int = NUM_TRAIN
) -> Runs:
    """Runs that each take `samples` samples, one for each (seed, rate, gain, batch size) of `settings`.

    Each epoch is a permutation of the first `num_rows` training samples, which depends on the seed alone.
    """
    seeds, rates, gains, sizes = map(np.array, zip(*settings, strict=True))
    steps = samples // sizes
    rows = np.zeros((len(settings), steps.max(), sizes.max()), np.int32)
    for run, (seed, size) in enumerate(zip(seeds, sizes, strict=True)):
        order = np.random.default_rng(int(seed))
        epochs = [order.permutation(num_rows) for _ in range(-(-samples // num_rows))]
        rows[run, : steps[run], :size] = np.concatenate(epochs)[:samples].reshape(-1, size)
    narrow = (seeds.astype(np.int32), rates.astype(np.float32), gains.astype(np.float32))
    return Runs(*narrow, sizes.astype(np.int32), steps.astype(np.int32), rows)


class History(NamedTuple):
    """What is recorded of R runs, at E times, evenly spaced and the last at the end, and between them."""

    losses: np.ndarray  # [R, E, 1797] of every sample, by running statistics
    correct: np.ndarray  # [R, E, 1797] bool
    before: (
        np.ndarray
    )  # [R, E, S / E, B, PROBED_UNITS]: what the last hidden layer's norm receives at each step ...
    after: np.ndarray  # ... and what it returns


Carry = tuple[Params, Params, Moments, Array]  # parameters, velocity, statistics, number of steps
Probe = tuple[Array, Array]  # before and after the last norm, [B, PROBED_UNITS] each


def _train(
    norm: Norm, depth: int, evaluations: int, masked: bool, data: Data, run: Runs
) -> tuple[Array, ...]:
    """One run (the fields of `run` without R): SGD with momentum 0.9; the rate falls to zero along a cosine.

    The running statistics reach back about one epoch, whatever the batch size.
    """
    decay = 1 - run.size / NUM_TRAIN

    def step(carry: Carry, rows: Array) -> tuple[Carry, Probe]:
        params, velocity, stats, count = carry
        where = (jnp.arange(len(rows)) < run.size) & (count < run.steps)
        options = {"where": where[:, None]} if masked else {}

        def loss(params: Params) -> tuple[Array, tuple[Moments, Probe]]:
            x, labels = data.x[rows], data.labels[rows]
            logits, new, *values = forward(norm, params, stats, x, train=True, decay=decay, **options)
            total = jnp.where(where, losses(logits, labels), 0).sum()
            before, after = (value[-1, :, :PROBED_UNITS] for value in values)
            return total / jnp.maximum(where.sum(), 1), (new, (before, after))

        gradients, (stats, probe) = jax.grad(loss, has_aux=True)(params)
        rate = run.rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / run.steps, 1)))
        velocity = jax.tree.map(lambda old, new: 0.9 * old + new, velocity, gradients)
        params = jax.tree.map(lambda old, new: old - rate * new, params, velocity)
        return (params, velocity, stats, count + 1), probe

    def until_evaluation(carry: Carry, rows: Array) -> tuple[Carry, tuple[Array, ...]]:
        carry, probes = jax.lax.scan(step, carry, rows)
        params, _, stats, _ = carry
        logits, *_ = forward(norm, params, stats, data.x, train=False)
        return carry, (losses(logits, data.labels), logits.argmax(-1) == data.labels, *probes)

    params = init(jnp.asarray(run.seed), jnp.asarray(run.gain), depth)
    start = (params, jax.tree.map(jnp.zeros_like, params), initial_stats(depth), jnp.int32(0))
    rows = jnp.asarray(run.rows).reshape(evaluations, -1, run.rows.shape[-1])
    return jax.lax.scan(until_evaluation, start, rows)[1]


@functools.cache
def _program(
    norm: Norm, depth: int, evaluations: int, masked: bool
) -> Callable[[Data, Runs], tuple[Array, ...]]:
    one = functools.partial(_train, norm, depth, evaluations, masked)
    return jax.jit(jax.vmap(one, in_axes=(None, 0)), compiler_options=FAST_COMPILATION)


def train(norm: Norm, runs: Runs, *, depth: int, evaluations: int = 1) -> History:
    """Trains a network of `depth` hidden layers for each run; S must be a multiple of `evaluations`."""
    masked = bool((runs.size != runs.rows.shape[-1]).any())
    program = _program(norm, depth, evaluations, masked)
    return History(*jax.device_get(program(load(), runs)))


def train_all(
    jobs: Mapping[str, tuple[Norm, Runs]], *, depth: int, evaluations: int = 1
) -> dict[str, History]:
    """`train` for each of `jobs`, two at a time: a program compiles, and runs, on one core."""
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(train, norm, runs, depth=depth, evaluations=evaluations)
            for name, (norm, runs) in jobs.items()
        }
        return {name: future.result() for name, future in started.items()}
