"""Gradients by depth at initialization: figure e. 32 hidden layers, before the first step."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _evidence_net import (
    BATCH,
    FAST_COMPILATION,
    GROUP,
    LAYER,
    NONE,
    RMS,
    Data,
    Norm,
    Params,
    forward,
    init,
    initial_stats,
    load,
    losses,
)
from _evidence_report import Band, Columns, Finding, listed, seed_range
from jax import Array

DEPTH = 32
ROWS = 128  # the batch
NORMS = (NONE, BATCH, LAYER, GROUP, RMS)
GAINS = {"Flax's default": 1.0, "He's": 2.0**0.5}  # He et al. 2015: twice the variance, for relu


class Depth(NamedTuple):
    """Norms of the gradient of each layer's weights, [DEPTH], for each initialization and norm."""

    gradients: dict[str, dict[str, Band]]


@functools.cache
def _program(norm: Norm) -> Callable[[Data, Array, Array], Array]:
    """(data, seeds [R], gain) to the norms of the weights' gradients, [R, DEPTH]."""

    def norms(data: Data, seed: Array, gain: Array) -> Array:
        def loss(params: Params) -> Array:
            logits, *_ = forward(norm, params, initial_stats(DEPTH), data.x[:ROWS], train=True)
            return losses(logits, data.labels[:ROWS]).mean()

        gradients = jax.grad(loss)(init(seed, gain, DEPTH))
        return jnp.sqrt((gradients.weights**2).sum((1, 2)))

    return jax.jit(jax.vmap(norms, in_axes=(None, 0, None)), compiler_options=FAST_COMPILATION)


def run_depth(seeds: int) -> Depth:
    """Every norm with every initialization; `seeds` choose the weights."""

    def bands(norm: Norm) -> list[Band]:
        values = [_program(norm)(load(), jnp.arange(seeds), jnp.float32(gain)) for gain in GAINS.values()]
        return [seed_range(np.asarray(value), 0) for value in values]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(bands, NORMS))
    names = [norm.name for norm in NORMS]
    by_gain = [dict(zip(names, bands, strict=True)) for bands in zip(*results, strict=True)]
    return Depth(dict(zip(GAINS, by_gain, strict=True)))


def first_to_last(band: Band) -> float:
    """The first layer's gradient divided by the last layer's."""
    return float(band.mean[0] / band.mean[-1])


def depth_finding(found: Depth) -> Finding:
    """The sizes without a norm, and the growth from the last to the first layer with one."""
    default, he = found.gradients.values()
    ratios = {name: first_to_last(band) for name, band in default.items()}
    title = (
        f"From the last of {DEPTH} layers to the first gradients change by a factor of {ratios['batch']:.2g} "
        f"with batch norm, {ratios['layer']:.1g} with layer norm and {ratios['none']:.1g} without a norm"
    )
    sizes = {name: f"{band.mean[0]:.1g}" for name, band in default.items()}
    he_sizes = {name: f"{band.mean[0]:.1g}" for name, band in he.items()}
    details = (
        f"norm of the first layer's gradient: {listed(sizes, list(sizes))}; "
        f"with He's weights: {listed(he_sizes, list(he_sizes))}"
    )
    reproduced = "yes" if 0.1 < ratios["batch"] < 10 else "no"
    claim = "Batch norm keeps gradients of one size at every depth"
    return Finding("e", "gradients by depth", title, details, claim, reproduced)


def depth_columns(found: Depth) -> Columns:
    """The plotted numbers."""
    rows = [
        (start, norm, layer, *values)
        for start, bands in found.gradients.items()
        for norm, band in bands.items()
        for layer, values in enumerate(zip(*band, strict=True), 1)
    ]
    names = ("initial_weights", "norm", "layer", "mean_gradient_norm", "low", "high")
    return dict(zip(names, zip(*rows, strict=True), strict=True))
