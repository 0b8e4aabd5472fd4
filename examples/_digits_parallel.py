"""Data-parallel training of the digits classifier: batches that are not full, one step in three styles."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits_common import Samples, optimizer
from _digits_linen import Net, State, init
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnorm import IfBound

AXIS = "data"
Step = Callable[[State, Any], tuple[State, Array]]
MakeStep = Callable[[Mesh], Step]


class Batch(NamedTuple):
    images: np.ndarray  # [N, 8, 8, 1]
    labels: np.ndarray  # [N]
    mask: np.ndarray  # [N] bool: False where a row only fills the batch up


def batches(samples: Samples, size: int, order: np.random.Generator) -> Iterator[Batch]:
    """One epoch in a random order. The last batch is filled up with rows that do not count."""
    images, labels = np.asarray(samples.images), np.asarray(samples.labels)
    rows = order.permutation(len(labels))
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        mask = np.arange(size) < len(chosen)
        chosen = np.resize(chosen, size)
        yield Batch(images[chosen], labels[chosen], mask)


def initial_state(*, seed: int, learning_rate: float, steps: int) -> State:
    """The same on every device and in every process, since the seed is."""
    net = Net("batch", axis_name=IfBound(AXIS))  # of a jit with sharded arrays, and on one device, none is
    variables = init(net, jax.random.key(seed))
    tx = optimizer(steps)
    opt_state = optax.tree.set(tx.init(variables["params"]), learning_rate=jnp.float32(learning_rate))
    return State(net, tx, variables["params"], variables["batch_stats"], opt_state)


def same(value: Any) -> Any:
    return value


def train_step(
    state: State, batch: Batch, total: Callable[[Any], Any] = same, sum_gradients: Callable[[Any], Any] = same
) -> tuple[State, Array]:
    """One step of any style. `total` sums over devices; `sum_gradients` too, where JAX has not done it."""
    count = total(jnp.sum(batch.mask))

    def loss_fn(params: Any) -> tuple[Array, Any]:
        """This device's share of the mean loss: the shares are added, since the devices' counts differ."""
        logits, updated = state.net.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch.images,
            train=True,
            mask=batch.mask,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return jnp.sum(losses, where=batch.mask) / count, updated["batch_stats"]

    (share, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = state.optimizer.update(sum_gradients(grads), state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state), total(share)


def with_jit(mesh: Mesh) -> Step:
    """The program of one device, on arrays that are spread over many: JAX finds the collectives."""
    everywhere = NamedSharding(mesh, P())
    spread = NamedSharding(mesh, P(AXIS))
    return jax.jit(train_step, in_shardings=(everywhere, spread), out_shardings=everywhere)


def with_shard_map(mesh: Mesh) -> Step:
    """The program of each device. Statistics meet by `axis_name`; JAX sums gradients of what all share."""
    total = partial(jax.lax.psum, axis_name=AXIS)
    step = partial(train_step, total=total)
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P()))


def with_pmap(mesh: Mesh) -> Step:
    """The same, in the older form: batches are [devices, N, ...], and gradients are summed by hand."""
    total = partial(jax.lax.psum, axis_name=AXIS)
    step = partial(train_step, total=total, sum_gradients=total)
    devices = list(mesh.devices.flat)
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=devices)

    def split(v: np.ndarray) -> np.ndarray:
        return v.reshape(len(devices), -1, *v.shape[1:])

    return lambda state, batch: mapped(state, jax.tree.map(split, batch))


STYLES: dict[str, MakeStep] = {"jit": with_jit, "shard_map": with_shard_map, "pmap": with_pmap}
