"""Running averages approaching the population: figure h.

Two hidden layers, in batches of 32. At each step the statistics of what the second layer's norm receives are
averaged in three ways, and compared with those of all training samples under the weights of this step.
The norm is layer norm: behind a batch norm the values would depend on the batch, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _evidence_net import (
    FAST_COMPILATION,
    LAYER,
    NUM_TRAIN,
    WIDTH,
    Data,
    Params,
    forward,
    init,
    initial_stats,
    load,
    losses,
    make_runs,
)
from _evidence_report import Band, Columns, Finding, listed, seed_range
from jax import Array

import jaxnorm
from jaxnorm import Moments

BATCH_SIZE = 32
EPOCHS = 10
STEPS_AN_EPOCH = NUM_TRAIN // BATCH_SIZE
DECAY = 0.99  # the library's default
RATES = {"weights frozen": 0.0, "weights in training": 0.1}
ESTIMATES = ("this batch alone", "plain", "debiased", "exact")


class Averages(NamedTuple):
    """Distance to the population's statistics, [steps], by what the weights do and by ESTIMATES."""

    distances: dict[str, dict[str, Band]]


def divergence(population: Moments, estimate: Moments) -> Array:
    """KL divergence of the normal distributions with these moments in nats, mean over the channels."""
    # log1p of what the ratio exceeds 1 by: near 0 the log of the ratio has lost most digits.
    excess = (population.var - estimate.var) / estimate.var
    shift = (population.mean - estimate.mean) ** 2 / estimate.var
    return 0.5 * (excess - jnp.log1p(excess) + shift).mean()


def _distances(data: Data, seed: Array, rate: Array, rows: Array) -> tuple[Array, ...]:
    """One run: [steps] for each of ESTIMATES."""

    def step(
        carry: tuple[Params, Moments, Moments, Moments], rows: Array
    ) -> tuple[tuple[Params, Moments, Moments, Moments], tuple[Array, ...]]:
        params, plain, debiased, exact = carry

        def loss(params: Params) -> tuple[Array, Moments]:
            logits, _, before, _ = forward(LAYER, params, initial_stats(2), data.x[rows], train=True)
            return losses(logits, data.labels[rows]).mean(), jaxnorm.moments(before[1], 0)

        gradients, batch = jax.grad(loss, has_aux=True)(params)
        _, _, before, _ = forward(LAYER, params, initial_stats(2), data.x[:NUM_TRAIN], train=True)
        population = jaxnorm.moments(before[1], 0)
        plain = jaxnorm.ema(plain, batch, decay=DECAY)
        debiased = jaxnorm.ema(debiased, batch, decay=DECAY)
        exact = jaxnorm.merge(exact, batch)
        estimates = (batch, plain, debiased, exact)
        params = jax.tree.map(lambda old, new: old - rate * new, params, gradients)
        return (params, plain, debiased, exact), tuple(divergence(population, e) for e in estimates)

    start = [jaxnorm.initial_stats((WIDTH,), weight=weight) for weight in (1.0, 0.0, 0.0)]
    params = init(seed, jnp.float32(1), 2)
    return jax.lax.scan(step, (params, start[0], start[1], start[2]), rows)[1]


def run_averages(seeds: int) -> Averages:
    """The same weights and batches, first at a learning rate of 0."""
    settings = [(seed, 1.0, 1.0, BATCH_SIZE) for seed in range(seeds)]
    runs = make_runs(settings, EPOCHS * NUM_TRAIN)
    program = jax.jit(jax.vmap(_distances, in_axes=(None, 0, None, 0)), compiler_options=FAST_COMPILATION)
    found = {}
    for name, rate in RATES.items():
        values = jax.device_get(program(load(), runs.seed, jnp.float32(rate), runs.rows))
        found[name] = {e: seed_range(v, 0) for e, v in zip(ESTIMATES, values, strict=True)}
    return Averages(found)


def averages_finding(found: Averages) -> Finding:
    """The distances after an epoch of frozen weights, and at the end of training."""
    frozen, moving = ({e: band.mean for e, band in bands.items()} for bands in found.distances.values())
    epoch = STEPS_AN_EPOCH - 1
    best = min(("plain", "debiased", "exact"), key=lambda e: float(moving[e][-1]))
    exact = "exact" if frozen["exact"][epoch] < 1e-9 else "not exact"
    title = (
        f"With frozen weights merging is {exact} after an epoch; while weights change the {best} average is "
        "nearest at the end"
    )
    estimates = ("plain", "debiased", "exact")
    after = listed({e: f"{frozen[e][epoch]:.1g}" for e in estimates}, estimates)
    last = listed({e: f"{moving[e][-1]:.1g}" for e in estimates}, estimates)
    details = f"KL in nats after an epoch of frozen weights: {after}; at the end of training: {last}"
    claim = "Running averages approach the population's statistics; debiasing and merging get there sooner"
    sooner = frozen["debiased"][epoch] < frozen["plain"][epoch] > frozen["exact"][epoch]
    lags = best != "exact"
    reproduced = "no" if not sooner else "partly" if lags else "yes"
    return Finding("h", "running averages", title, details, claim, reproduced)


def averages_columns(found: Averages) -> Columns:
    """The plotted numbers."""
    rows = [
        (name, estimate, step, *values)
        for name, bands in found.distances.items()
        for estimate, band in bands.items()
        for step, values in enumerate(zip(*map(np.asarray, band), strict=True), 1)
    ]
    names = ("weights", "estimate", "step", "mean_kl_nats", "low_kl_nats", "high_kl_nats")
    return dict(zip(names, zip(*rows, strict=True), strict=True))
