"""A convolutional classifier and its training in Flax linen."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _digits_common import IMAGE, mean_loss, optimizer
from flax import linen as nn
from flax import struct
from jax import Array

from jaxnorm import linen as jn


class Block(nn.Module):
    features: int
    stride: int
    norm: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        # A constant added before a norm is taken away by its mean.
        x = nn.Conv(self.features, (3, 3), self.stride, use_bias=self.norm is None, name="conv")(x)
        if self.norm is not None:
            x = self.norm(name="norm")(x, mask=mask)
        return nn.relu(x)


class Net(nn.Module):
    norm: str
    momentum: float = 0.9
    axis_name: Any = None  # of the devices that batch norm meets

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None = None) -> Array:
        batch = partial(jn.BatchNorm, use_running_average=not train, momentum=self.momentum)
        norms: dict[str, Callable[..., nn.Module]] = {
            "batch": partial(batch, axis_name=self.axis_name),
            "layer": jn.LayerNorm,
            "group": partial(jn.GroupNorm, num_groups=8),
            "instance": jn.InstanceNorm,
            "rms": jn.RMSNorm,
        }
        norm = norms.get(self.norm)
        mask = None if mask is None else mask[:, None, None, None]  # one value a sample
        x = Block(16, 1, norm, name="block1")(x, mask)
        x = Block(32, 2, norm, name="block2")(x, mask)
        x = Block(32, 2, norm, name="block3")(x, mask)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class State(struct.PyTreeNode):
    net: Net = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


@partial(jax.jit, static_argnums=0)
def init(net: Net, key: Array) -> Any:
    return net.init(key, jnp.zeros((1, *IMAGE)), train=False)


@jax.jit
def train_step(state: State, images: Array, labels: Array) -> tuple[State, Array]:
    def loss_fn(params: Any) -> tuple[Array, Any]:
        logits, updated = state.net.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return mean_loss(logits, labels), updated.get("batch_stats", {})

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = state.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(params=params, batch_stats=batch_stats, opt_state=opt_state), loss


@partial(jax.jit, static_argnums=0)
def predict(net: Net, variables: dict[str, Any], images: Array) -> Any:
    return net.apply(variables, images, train=False)


@partial(jax.jit, static_argnums=0)
def predict_by_batch(net: Net, variables: dict[str, Any], images: Array) -> tuple[Array, dict[str, Any]]:
    # With momentum 0 the new running statistics are those of this batch.
    net = net.clone(momentum=0.0)
    logits, updated = net.apply(variables, images, train=True, mutable=["batch_stats"])
    return logits, updated.get("batch_stats", {})


class LinenTrainer:
    def __init__(self, norm: str, *, seed: int, learning_rate: float, steps: int) -> None:
        net = Net(norm)
        variables = init(net, jax.random.key(seed))
        tx = optimizer(steps)
        opt_state = optax.tree.set(tx.init(variables["params"]), learning_rate=learning_rate)
        self.state = State(net, tx, variables["params"], variables.get("batch_stats", {}), opt_state)

    def step(self, images: Array, labels: Array) -> Array:
        self.state, loss = train_step(self.state, images, labels)
        return loss

    def predict(self, images: Array) -> Array:
        return predict(self.state.net, self.variables, images)

    def predict_by_batch(self, images: Array) -> tuple[Array, dict[str, Any]]:
        return predict_by_batch(self.state.net, self.variables, images)

    @property
    def variables(self) -> dict[str, Any]:
        return {"params": self.state.params, "batch_stats": self.state.batch_stats}

    def restore(self, variables: dict[str, Any]) -> None:
        self.state = self.state.replace(**variables)
