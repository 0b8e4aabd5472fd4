"""A convolutional classifier and its training in Flax nnx."""

from collections.abc import Callable
from functools import partial
from typing import Any

from _digits_common import mean_loss, optimizer
from flax import nnx
from jax import Array

from jaxnorm import nnx as jn


class Block(nnx.Module):
    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        norm: Callable[..., nnx.Module] | None,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        # A constant added before a norm is taken away by its mean.
        self.conv = nnx.Conv(inputs, features, (3, 3), stride, use_bias=norm is None, rngs=rngs)
        self.norm = None if norm is None else norm(features, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return nnx.relu(x)


class Net(nnx.Module):
    def __init__(self, norm: str, *, rngs: nnx.Rngs) -> None:
        norms: dict[str, Callable[..., nnx.Module]] = {
            "batch": partial(jn.BatchNorm, momentum=0.9),
            "layer": jn.LayerNorm,
            "group": partial(jn.GroupNorm, num_groups=8),
            "instance": jn.InstanceNorm,
            "rms": jn.RMSNorm,
        }
        self.block1 = Block(1, 16, 1, norms.get(norm), rngs=rngs)
        self.block2 = Block(16, 32, 2, norms.get(norm), rngs=rngs)
        self.block3 = Block(32, 32, 2, norms.get(norm), rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.block3(self.block2(self.block1(x)))
        return self.head(x.mean((1, 2)))


@nnx.jit
def train_step(model: Net, optimizer: nnx.Optimizer[Net], images: Array, labels: Array) -> Array:
    def loss_fn(model: Net) -> Array:
        return mean_loss(model(images), labels)  # updates the running statistics in passing

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def predict(model: Net, images: Array) -> Array:
    return model(images)


@nnx.jit
def predict_by_batch(model: Net, images: Array) -> tuple[Array, dict[str, Any]]:
    # With momentum 0 the new running statistics are those of this batch.
    model = nnx.clone(model)
    model.set_attributes(momentum=0.0, raise_if_not_found=False)
    logits = model(images)
    return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


class NnxTrainer:
    def __init__(self, norm: str, *, seed: int, learning_rate: float, steps: int) -> None:
        self.model = Net(norm, rngs=nnx.Rngs(seed))
        self.optimizer = nnx.Optimizer(self.model, optimizer(steps, learning_rate), wrt=nnx.Param)

    def step(self, images: Array, labels: Array) -> Array:
        self._use_running_average(False)
        return train_step(self.model, self.optimizer, images, labels)

    def predict(self, images: Array) -> Array:
        self._use_running_average(True)
        return predict(self.model, images)

    def predict_by_batch(self, images: Array) -> tuple[Array, dict[str, Any]]:
        self._use_running_average(False)
        return predict_by_batch(self.model, images)

    def _use_running_average(self, value: bool) -> None:
        # What model.train() and model.eval() do, which have no types.
        self.model.set_attributes(use_running_average=value, raise_if_not_found=False)

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "params": nnx.to_pure_dict(nnx.state(self.model, nnx.Param)),
            "batch_stats": nnx.to_pure_dict(nnx.state(self.model, nnx.BatchStat)),
        }

    def restore(self, variables: dict[str, Any]) -> None:
        nnx.update(self.model, variables["params"], variables["batch_stats"])
