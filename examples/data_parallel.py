"""Data-parallel training in three styles, which agree: jit with sharded arrays, shard_map and pmap.

    python examples/data_parallel.py

A digits classifier with batch norm, on 8 devices of the host's CPU and on one. An epoch's last batch is
not full: some devices have a few samples in it, some have none. `_digits_parallel.py` holds the styles.
"""

from typing import Any

import jax
import numpy as np
from _digits_common import Samples, accuracy, load_samples
from _digits_linen import State, predict
from _digits_parallel import AXIS, STYLES, MakeStep, batches, initial_state, with_jit
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

DEVICES = 8
BATCH = 96
SAMPLES = 340  # batches of 96, 96, 96 and 52, of which the devices hold 12, 12, 12, 12, 4, 0, 0 and 0
SETTINGS: dict[str, Any] = {"seed": 0, "learning_rate": 0.1, "steps": 20}


def train(make_step: MakeStep, devices: int, samples: Samples, epochs: int) -> tuple[State, list[float]]:
    """The state after training in one style, and the loss of every step."""
    host = jax.devices("cpu")[:devices]
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=host)
    step = make_step(mesh)
    # where the step leaves it: elsewhere it would be compiled for the first step, and again for the second
    state = jax.device_put(initial_state(**SETTINGS), NamedSharding(mesh, P()))
    order = np.random.default_rng(0)
    losses = []
    for _ in range(epochs):
        for batch in batches(samples, BATCH, order):
            state, loss = step(state, batch)
            losses.append(float(loss))
    return jax.device_get(state), losses


def difference(a: Any, b: Any) -> float:
    """The largest, over all arrays, relative to the largest number in the array."""

    def relative(u: Any, v: Any) -> float:
        return float(np.abs(u - v).max() / np.abs(v).max())

    return max(jax.tree.leaves(jax.tree.map(relative, a, b)))


def main(epochs: int = 5) -> dict[str, State]:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    data, test = load_samples()
    data = Samples(data.images[:SAMPLES], data.labels[:SAMPLES])

    runs = {"one device": train(with_jit, 1, data, epochs)}
    runs |= {name: train(make_step, DEVICES, data, epochs) for name, make_step in STYLES.items()}
    one, _ = runs["one device"]

    table = Table("style", "last loss", "test accuracy", title="Differences are from one device")
    for name in ("parameters", "statistics"):
        table.add_column(f"{name}: difference", justify="right")
    for name, (state, losses) in runs.items():
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        table.add_row(
            name,
            f"{losses[-1]:.6f}",
            f"{accuracy(predict(state.net, variables, test.images), test.labels):.2%}",
            f"{difference(state.params, one.params):.1e}",
            f"{difference(state.batch_stats, one.batch_stats):.1e}",
        )
    Console(width=110).print(table)
    return {name: state for name, (state, _) in runs.items()}


if __name__ == "__main__":
    main()
