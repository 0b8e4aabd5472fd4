"""Short trainings on scikit-learn's digits, in both frameworks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

from jaxnorm import linen as jn
from jaxnorm import nnx as jx

STEPS, BATCH, RATE = 150, 64, 0.1


@functools.cache
def digits():
    """Images in [0, 1], [1797, 64], and their classes, in an order without order."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.data[order] / 16).astype(np.float32), data.target[order]


def held_out(size=128):
    return jnp.asarray(digits()[0][-size:])


def batches(size=BATCH, steps=STEPS):
    x, y = digits()
    generator = np.random.default_rng(1)
    for _ in range(steps):
        chosen = generator.choice(len(x) - 360, size, replace=False)
        yield jnp.asarray(x[chosen]), jnp.asarray(y[chosen])


def loss(logits, y):
    logits = logits.astype(jnp.float32)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def descend(p, g, rate):
    return p - jnp.asarray(rate, p.dtype) * g


class LinenBlock(nn.Module):
    width: int
    norm: type = jn.BatchNorm
    options: dict = None

    @nn.compact
    def __call__(self, x, train, **call):
        x = nn.Dense(self.width)(x)
        return nn.relu(self.norm(use_running_average=not train, name="norm", **self.options)(x, **call))


class LinenNet(nn.Module):
    """Two blocks, "a" and "b", and a last layer."""

    norm: type = jn.BatchNorm
    options: dict = None

    @nn.compact
    def __call__(self, x, train=True, **call):
        x = LinenBlock(32, self.norm, self.options, name="a")(x, train, **call)
        x = LinenBlock(16, self.norm, self.options, name="b")(x, train, **call)
        return nn.Dense(10, name="out")(x)


def train_linen(norm=jn.BatchNorm, *, rate=RATE, size=BATCH, steps=STEPS, keep=True, **options):
    """The model and its variables; `keep`: whether the new statistics are."""
    model = LinenNet(norm, {"momentum": 0.9, **options})
    variables = model.init(jax.random.key(0), held_out(BATCH))

    @jax.jit
    def step(variables, x, y):
        def objective(params):
            logits, new = model.apply({**variables, "params": params}, x, mutable="batch_stats")
            return loss(logits, y), new["batch_stats"]

        gradient, stats = jax.grad(objective, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: descend(p, g, rate), variables["params"], gradient)
        return {"params": params, "batch_stats": stats if keep else variables["batch_stats"]}

    for x, y in batches(size, steps):
        variables = step(variables, x, y)
    return model, variables


class NnxBlock(nnx.Module):
    def __init__(self, inputs, width, norm, options, rngs):
        self.dense = nnx.Linear(inputs, width, rngs=rngs)
        self.norm = norm(width, rngs=rngs, **options)

    def __call__(self, x, **call):
        return nnx.relu(self.norm(self.dense(x), **call))


class NnxNet(nnx.Module):
    def __init__(self, norm=jx.BatchNorm, options=None, *, rngs):
        self.a = NnxBlock(64, 32, norm, options or {}, rngs)
        self.b = NnxBlock(32, 16, norm, options or {}, rngs)
        self.out = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x, **call):
        return self.out(self.b(self.a(x, **call), **call))


def train_nnx(norm=jx.BatchNorm, *, rate=RATE, size=BATCH, steps=STEPS, keep=True, **options):
    """The model; `keep`: whether the statistics are updated."""
    model = NnxNet(norm, {"momentum": 0.9, **options}, rngs=nnx.Rngs(0))
    if not keep:
        model.set_attributes(update_stats=False)

    @nnx.jit
    def step(model, x, y):
        gradient = nnx.grad(lambda model: loss(model(x), y))(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: descend(p, g, rate), params, gradient))

    for x, y in batches(size, steps):
        step(model, x, y)
    return model
