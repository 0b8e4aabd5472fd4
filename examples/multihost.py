"""Data-parallel training over many hosts: one process on each, which together are one large device.

On a TPU pod, under Slurm or Open MPI, the same command in every process:

    python examples/multihost.py

By hand, one command on each host, or two on one host with four CPU devices each:

    python examples/multihost.py --coordinator 127.0.0.1:8476 --num-processes 2 --process-id 0 --cpu-devices 4
    python examples/multihost.py --coordinator 127.0.0.1:8476 --num-processes 2 --process-id 1 --cpu-devices 4

Every process reads its own part of each batch. An epoch's last batch is not full, so that some devices, or
all those of a process, see nothing of it; parameters and statistics are those of one device all the same.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _digits_common import NUM_TRAIN, Samples, accuracy, load_samples
from _digits_linen import State, predict
from _digits_parallel import AXIS, STYLES, Batch, batches, initial_state
from flax.traverse_util import flatten_dict
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def connect(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Meets the other processes, before anything else that JAX does."""
    if options.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    by_hand = (options.coordinator, options.num_processes, options.process_id)
    if None in by_hand and by_hand != (None, None, None):
        parser.error("--coordinator, --num-processes and --process-id go together: give all three or none")
    coordinator, number, index = by_hand
    try:
        jax.distributed.initialize(coordinator, number, index, initialization_timeout=options.timeout)
    except ValueError as error:
        parser.error(f"no cluster was found ({error}); give --coordinator, --num-processes and --process-id")


def my_part(batch: Batch, sharding: NamedSharding) -> Any:
    """A batch that no process holds whole: this one puts its own rows on its own devices."""
    size = len(batch.mask) // jax.process_count()
    mine = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
    return jax.tree.map(lambda v: jax.make_array_from_process_local_data(sharding, v[mine]), batch)


def train(options: argparse.Namespace, data: Samples) -> State:
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    per_epoch = -(-len(data.labels) // options.batch_size)
    settings = {"learning_rate": options.learning_rate, "steps": options.epochs * per_epoch}
    start = partial(initial_state, seed=options.seed, **settings)
    state = jax.jit(start, out_shardings=NamedSharding(mesh, P()))()
    step = STYLES[options.style](mesh)
    order = np.random.default_rng(options.seed)  # the same in every process
    for epoch in range(options.epochs):
        for number, batch in enumerate(batches(data, options.batch_size, order), 1):
            state, loss = step(state, my_part(batch, NamedSharding(mesh, P(AXIS))))
            report(f"epoch {epoch + 1}, step {number} of {per_epoch}: {batch.mask.sum()} samples", loss)
    return jax.device_get(state)


def report(what: str, loss: Array) -> None:
    """Every process waits for the loss; one of them prints it."""
    value = float(loss)
    if jax.process_index() == 0:
        print(f"{what}, loss {value:.4f}", flush=True)


def parse_options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add("--num-processes", type=int, metavar="N")
    add("--process-id", type=int, metavar="I", help="of this process, from 0")
    add("--cpu-devices", type=int, metavar="N", help="run on so many CPU devices in each process")
    add("--timeout", type=int, default=300, metavar="S", help="seconds to wait for the others; default: 300")
    add("--style", choices=("jit", "shard_map"), default="jit", help="default: jit")
    add("--samples", type=int, default=NUM_TRAIN, metavar="N", help=f"default: all {NUM_TRAIN}")
    add("--batch-size", type=int, default=96, metavar="N", help="of all processes together; default: 96")
    add("--epochs", type=int, default=5, metavar="N", help="default: 5")
    add("--learning-rate", type=float, default=0.1, metavar="RATE", help="default: 0.1")
    add("--seed", type=int, default=0, metavar="N", help="default: 0")
    add("--out", type=Path, metavar="FILE", help="where process 0 writes parameters and statistics (.npz)")
    return parser.parse_args(arguments), parser


def main(arguments: Sequence[str] | None = None) -> None:
    options, parser = parse_options(arguments)
    connect(options, parser)
    if options.batch_size % jax.device_count():
        parser.error(
            f"argument --batch-size: {options.batch_size} is not a multiple of {jax.device_count()} devices"
        )
    here, everywhere = jax.local_device_count(), jax.device_count()
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {here} of {everywhere} devices", flush=True
    )

    data, test = load_samples()
    state = train(options, Samples(data.images[: options.samples], data.labels[: options.samples]))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if jax.process_index() == 0:  # every process has them all: this needs no other
        logits = predict(state.net, variables, test.images)
        print(f"test accuracy {accuracy(logits, test.labels):.2%}", flush=True)
        if options.out is not None:
            np.savez(options.out, **flatten_dict(variables, sep="/"))


if __name__ == "__main__":
    main()
