"""Trains a small model, keeps a checkpoint of every step, and dies where it is told to: see test_killed.py.

    python train.py linen FOLDER
    python train.py nnx FOLDER --die 3 commit

It goes on from the newest checkpoint in FOLDER. With --coordinator it is one of two processes.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm

STEPS, EVERY_K, FEATURES, ROWS = 6, 3, 4, 8
# In the order in which a step comes to them; the last two are inside of orbax.
PLACES = "before", "after", "create", "commit"
EVENTS = {"create": "os.mkdir", "commit": "os.rename"}  # what Python tells an audit hook

MOMENTUM = optax.linear_schedule(0.5, 0.9, 2)  # of the updates of the average
NORM = {"momentum": MOMENTUM, "every_k": EVERY_K, "unbiased": True, "debias": True}
OPTIMIZER = optax.MultiSteps(optax.adam(optax.linear_schedule(0.1, 0.01, 2)), EVERY_K)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jaxnorm.linen.BatchNorm(use_running_average=False, **NORM)(nn.Dense(FEATURES)(x))
        return jaxnorm.linen.SpectralNorm(nn.Dense(1))(nn.relu(x), update_stats=True)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.norm = jaxnorm.nnx.BatchNorm(FEATURES, rngs=rngs, **NORM)
        self.second = jaxnorm.nnx.SpectralNorm(nnx.Linear(FEATURES, 1, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))


def linen_training():
    """How a state starts, and how a batch changes it."""
    net = Net()

    def start():
        variables = net.init(jax.random.key(0), jnp.ones((ROWS, FEATURES)))
        return {**variables, "optimizer": OPTIMIZER.init(variables["params"])}

    def step(state, x, y):
        def loss(params):
            rest = {name: v for name, v in state.items() if name not in ("params", "optimizer")}
            found, new = net.apply({"params": params, **rest}, x, mutable=list(rest))
            return jnp.mean((found - y) ** 2), new

        grads, new = jax.grad(loss, has_aux=True)(state["params"])
        updates, optimizer = OPTIMIZER.update(grads, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), **new, "optimizer": optimizer}

    return start, step


def nnx_training():
    """The same of nnx: the state is that of model and optimizer, as a dict."""

    def create():
        model = Model(nnx.Rngs(0))
        return model, nnx.Optimizer(model, OPTIMIZER, wrt=nnx.Param)

    graph, abstract = nnx.split(nnx.eval_shape(create))

    def start():
        return nnx.to_pure_dict(nnx.state(create()))

    def step(values, x, y):
        state = jax.tree.map(lambda v: v, abstract)
        nnx.replace_by_pure_dict(state, values)
        model, optimizer = nnx.merge(graph, state)
        grads = nnx.grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return nnx.to_pure_dict(nnx.state((model, optimizer)))

    return start, step


def batch(number, sharding):
    """The batch of a step, of which a process has its own rows."""
    x = np.random.default_rng(number).normal(2.0, 3.0, (ROWS, FEATURES)).astype(np.float32)
    size = ROWS // jax.process_count()
    mine = x[jax.process_index() * size :][:size]
    return [jax.make_array_from_process_local_data(sharding, v) for v in (mine, mine[:, :1])]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(event, folder):
    """Die as soon as this happens to something in the folder, in whichever thread."""

    def hook(name, arguments):
        if name == event and str(arguments[0]).startswith(str(folder)):
            die()

    sys.addaudithook(hook)


def train(options):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    start, step = {"linen": linen_training, "nnx": nnx_training}[options.api]()
    state = jax.jit(start, out_shardings=everywhere)()
    step = jax.jit(step, out_shardings=everywhere)
    with ocp.CheckpointManager(options.folder) as manager:
        done = manager.latest_step() or 0
        if done:
            template = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(done, args=ocp.args.StandardRestore(template))
        print(f"step {done} of {STEPS}", flush=True)
        for number in range(done, STEPS):
            place = options.die[1] if options.die and int(options.die[0]) == number else None
            if place == "before":
                die()
            state = step(state, *batch(number, rows))
            if place == "after":
                jax.block_until_ready(state)
                die()
            if place in EVENTS:
                die_at(EVENTS[place], options.folder)
            manager.save(number + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("api", choices=("linen", "nnx"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die", nargs=2, metavar=("STEP", "PLACE"))
    parser.add_argument("--coordinator", metavar="HOST:PORT")
    parser.add_argument("--process-id", type=int)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if options.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            options.coordinator,
            2,
            options.process_id,
            initialization_timeout=60,
            heartbeat_timeout_seconds=10,
        )
    train(options)


if __name__ == "__main__":
    main()
