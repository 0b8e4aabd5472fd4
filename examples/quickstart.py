"""jaxnorm in five blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx
from jax import Array

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

# %% Pure functions: statistics in, statistics out

x = jax.random.normal(jax.random.key(0), (64, 4))

y = jaxnorm.layer_norm(x)
stats = jaxnorm.initial_stats((4,))
y, stats = jaxnorm.batch_norm(x, stats, train=True)  # by the moments of x, which enter stats
y, stats = jaxnorm.batch_norm(x, stats, train=False)  # by stats, which stay as they are

# Moments of parts merge into the moments of the whole.
merged = jaxnorm.merge(jaxnorm.moments(x[:20], 0), jaxnorm.moments(x[20:], 0))
print("merged mean", merged.mean, "of", merged.weight, "rows")

# %% A linen model: jaxnorm.linen.BatchNorm for nn.BatchNorm


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = nn.Dense(16)(x)
        x = jaxnorm.linen.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(1)(nn.relu(x))


net = Net()
variables = net.init(jax.random.key(1), x, train=False)
predictions, updated = net.apply(variables, x, train=True, mutable=["batch_stats"])
print("linen", jax.tree.map(jnp.shape, updated["batch_stats"]))

# %% The same in nnx: jaxnorm.nnx.BatchNorm for nnx.BatchNorm


class Model(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.norm = jaxnorm.nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.head(nnx.relu(self.norm(self.hidden(x))))


model = Model(rngs=nnx.Rngs(1))
predictions = model(x)  # updates model.norm.mean and model.norm.var
print("nnx", model.norm.mean.shape, model.norm.var.shape)

# %% A jitted training step

optimizer = optax.adam(1e-2)


@jax.jit
def train_step(
    variables: dict[str, Any], opt_state: optax.OptState, x: Array, targets: Array
) -> tuple[dict[str, Any], optax.OptState, Array]:
    def loss_fn(params: Any) -> tuple[Array, Any]:
        predictions, updated = net.apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.mean((predictions - targets) ** 2), updated

    (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(grads, opt_state)
    params = optax.apply_updates(variables["params"], updates)
    return {"params": params, **updated}, opt_state, loss


opt_state = optimizer.init(variables["params"])
for _ in range(200):
    variables, opt_state, loss = train_step(variables, opt_state, x, x[:, :1] ** 2)
print("loss", loss)

# %% A mask: masked elements affect no statistic, output or gradient, even if they are NaN

lengths = jnp.array([5, 3, 0])
mask = jnp.arange(5) < lengths[:, None]  # [3, 5]
padded = jnp.where(mask[..., None], jax.random.normal(jax.random.key(2), (3, 5, 4)), jnp.nan)

y, stats = jaxnorm.batch_norm(padded, stats, train=True, where=mask[..., None])
print("finite:", bool(jnp.isfinite(y[mask]).all()), bool(jnp.isfinite(stats.mean).all()))
