"""What a norm costs: figure i. Time of a training step, with each norm and without, in interleaved rounds."""

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _evidence_net import NONE, Data, Norm, Params, forward, init, initial_stats, load, losses
from _evidence_report import Columns, Finding
from _evidence_training import BATCH_SIZE, DEPTH, NORMS
from jax import Array

from jaxnorm import Moments

CHANNELS = 32
BLOCKS = 3
CALLS = 4  # a round times so many steps of one norm, one after the other

State = tuple[Params, Moments]
Step = Callable[[State, Data], State]


class Cost(NamedTuple):
    """Milliseconds of a step, [rounds], by network and norm: all norms take turns in each round."""

    times: dict[str, dict[str, np.ndarray]]


def convolutional(norm: Norm, params: Params, stats: Moments, x: Array) -> tuple[Array, Moments]:
    """BLOCKS of a 3 x 3 convolution of CHANNELS, norm and relu on 8 x 8 images; logits [N, 10].

    `params.weights` is [BLOCKS, 9 * CHANNELS, CHANNELS]; the vectors and `stats` are [BLOCKS, CHANNELS].
    """
    x = jnp.broadcast_to(x.reshape(-1, 8, 8, 1), (len(x), 8, 8, CHANNELS))

    def block(x: Array, layer: tuple[Array, Array, Array, Moments]) -> tuple[Array, Moments]:
        weights, scale, bias, stats = layer
        kernel = weights.reshape(3, 3, CHANNELS, CHANNELS)
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x, stats = norm.apply(x, stats, scale, bias, train=True, decay=0.99)
        return jax.nn.relu(x), stats

    new = []
    for index in range(BLOCKS):
        x, stats_of_block = block(
            x, jax.tree.map(lambda a, i=index: a[i], (params.weights, params.scale, params.bias, stats))
        )
        new.append(stats_of_block)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *new)
    return x.mean((1, 2)) @ params.head + params.head_bias, stacked


def dense(norm: Norm, params: Params, stats: Moments, x: Array) -> tuple[Array, Moments]:
    """The network of the other figures."""
    logits, new, *_ = forward(norm, params, stats, x, train=True, decay=0.99)
    return logits, new


NETWORKS = {
    f"dense: {DEPTH} layers of 64": (dense, BATCH_SIZE),
    f"convolutional: {BLOCKS} layers of {CHANNELS} channels": (convolutional, 128),
}


def initial_state(network: Callable[..., tuple[Array, Moments]]) -> State:
    """Parameters, and statistics that have seen nothing, of `dense` or `convolutional`."""
    params, stats = init(jnp.int32(0), jnp.float32(1), DEPTH), initial_stats(DEPTH)
    if network is dense:
        return params, stats
    normal = functools.partial(jax.random.normal, jax.random.key(0))
    params = Params(
        0.1 * normal((BLOCKS, 9 * CHANNELS, CHANNELS)),
        params.scale[:BLOCKS, :CHANNELS],
        params.bias[:BLOCKS, :CHANNELS],
        params.head[:CHANNELS],
        params.head_bias,
    )
    return params, jax.tree.map(lambda a: a[:BLOCKS, :CHANNELS], stats)


def make_step(network: Callable[..., tuple[Array, Moments]], rows: int, norm: Norm) -> Step:
    """One step of SGD on `rows` samples."""

    def step(state: State, data: Data) -> State:
        def loss(params: Params) -> tuple[Array, Moments]:
            logits, stats = network(norm, params, state[1], data.x[:rows])
            return losses(logits, data.labels[:rows]).mean(), stats

        gradients, stats = jax.grad(loss, has_aux=True)(state[0])
        return jax.tree.map(lambda old, new: old - 0.01 * new, state[0], gradients), stats

    return jax.jit(step)


def run_cost(rounds: int) -> Cost:
    """Compiles all the steps of a network first, then lets them take turns for `rounds` rounds."""
    data = load()
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, (network, rows) in NETWORKS.items():
        steps = {norm.name: make_step(network, rows, norm) for norm in NORMS}
        start = initial_state(network)
        with ThreadPoolExecutor(2) as pool:
            jax.block_until_ready(list(pool.map(lambda step, s=start: step(s, data), steps.values())))
        times: dict[str, list[float]] = {norm: [] for norm in steps}
        for _ in range(rounds):
            for norm, step in steps.items():
                state = start
                begin = time.perf_counter()
                for _ in range(CALLS):
                    state = step(state, data)
                jax.block_until_ready(state)
                times[norm].append(1e3 * (time.perf_counter() - begin) / CALLS)
        found[name] = {norm: np.array(values) for norm, values in times.items()}
    return Cost(found)


def relative(times: dict[str, np.ndarray], norm: str) -> float:
    """Median over the rounds of the step's time divided by that of the same round without a norm."""
    return float(np.median(times[norm] / times[NONE.name]))


def cost_finding(found: Cost) -> Finding:
    """The ratios of batch norm, and of the dearest norm."""
    dense_, convolution = found.times.values()
    ratios = [relative(times, "batch") for times in (dense_, convolution)]
    dearest = max(NORMS[1:], key=lambda norm: relative(dense_, norm.name)).name
    title = (
        f"On this {jax.default_backend().upper()} batch norm makes a training step {ratios[0]:.2f} times "
        f"as long in a dense network and {ratios[1]:.2f} times in a convolutional one"
    )
    details = f"{dearest} norm costs most in the dense one: {relative(dense_, dearest):.2f} times"
    reproduced = "yes" if max(ratios) > 1.05 else "no"
    return Finding("i", "cost", title, details, "A norm costs a noticeable part of a step", reproduced)


def cost_columns(found: Cost) -> Columns:
    """The plotted numbers."""
    rows = []
    for network, times in found.times.items():
        for norm, values in times.items():
            low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
            rows.append((network, norm, median, low, high, relative(times, norm)))
    names = ("network", "norm", "median_ms", "quartile_1_ms", "quartile_3_ms", "median_ratio_to_none")
    return dict(zip(names, zip(*rows, strict=True), strict=True))
