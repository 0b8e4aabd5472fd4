"""The corners that norms are wrong in: Flax's layers and jaxnorm's on the same input, side by side.

    python examples/corners.py

Every row is one call of `flax.linen`'s layer and of the layer that replaces it, with the right answer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.console import Console
from rich.table import Table

from jaxnorm import linen as jn


def trained(norms: Any, x: jax.Array, mask: Any = None, axis_name: str | None = None) -> tuple[Any, Any]:
    """y and the running statistics after one training step of batch norm, momentum 0."""
    layer = norms.BatchNorm(use_running_average=False, momentum=0.0, axis_name=axis_name)
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
    y, new = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
    return y, new["batch_stats"]


def large_mean(norms: Any, rng: np.random.Generator) -> str:
    x = jnp.asarray(rng.normal(1e4, 1, (4, 256)), jnp.float32)
    y, _ = norms.LayerNorm(use_bias=False, use_scale=False).init_with_output(jax.random.key(0), x)
    return f"{y.std():.2f}"


def uneven_devices(norms: Any, rng: np.random.Generator) -> str:
    x = jnp.asarray(rng.normal(size=(4, 4, 1)), jnp.float32)
    mask = jnp.arange(4)[None, :, None] < jnp.array([3, 4, 1, 2])[:, None, None]
    stats = jax.vmap(lambda x, m: trained(norms, x, m, "devices")[1], axis_name="devices")(x, mask)
    return f"{abs(stats['mean'][0, 0] - x[mask].mean()):.3f}"


def empty_device(norms: Any, rng: np.random.Generator) -> str:
    x = jnp.asarray(rng.normal(size=(4, 4, 1)), jnp.float32)
    mask = jnp.arange(4)[None, :, None] < jnp.array([3, 4, 0, 2])[:, None, None]
    stats = jax.vmap(lambda x, m: trained(norms, x, m, "devices")[1], axis_name="devices")(x, mask)
    return f"{abs(stats['mean'][0, 0] - x[mask].mean()):.3f}"


def padding(norms: Any, rng: np.random.Generator) -> str:
    x = jnp.array([[1.0], [2.0], [4.0], [jnp.nan]])
    mask = jnp.isfinite(x)
    gradient = jax.grad(lambda x: jnp.where(mask, trained(norms, x, mask)[0], 0).std())(x)
    return f"{int(jnp.isfinite(gradient).sum())} of 4"


def empty_batch(norms: Any, rng: np.random.Generator) -> str:
    _, stats = trained(norms, jnp.ones((4, 1)), jnp.zeros((4, 1), bool))
    return f"{stats['mean'][0]:.0f}, {stats['var'][0]:.0f}"


def residuals(norms: Any, rng: np.random.Generator) -> str:
    x = jnp.asarray(rng.normal(size=(64, 64, 64)), jnp.bfloat16)
    layer = norms.BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)

    def loss(x: jax.Array) -> Any:
        return layer.apply(variables, x, mutable=["batch_stats"])[0]

    kept = jax.tree.leaves(jax.vjp(loss, x)[1])
    return f"{sum(leaf.nbytes for leaf in kept) / x.nbytes:.2f}"


ROWS: list[tuple[str, Callable[[Any, np.random.Generator], str], str]] = [
    ("layer norm of N(1e4, 1): standard deviation of y", large_mean, "1.00"),
    ("4 devices, 3/4/1/2 unmasked rows: error of the mean", uneven_devices, "0.000"),
    ("4 devices, one without an unmasked row: error of the mean", empty_device, "0.000"),
    ("NaN in a masked place: finite entries of the gradient", padding, "4 of 4"),
    ("a batch that is all masked: new mean, var (were 0, 1)", empty_batch, "0, 1"),
    ("bfloat16 batch norm: kept for the backward pass, in bytes of x", residuals, "1.00"),
]


def table() -> list[tuple[str, str, str, str]]:
    """Corner, Flax's answer, jaxnorm's, and the right one."""
    rows = []
    for name, corner, right in ROWS:
        flax, ours = (corner(norms, np.random.default_rng(0)) for norms in (nn, jn))
        rows.append((name, flax, ours, right))
    return rows


def main() -> None:
    shown = Table("corner", "flax.linen", "jaxnorm.linen", "right")
    for row in table():
        shown.add_row(*row)
    Console(width=120).print(shown)


if __name__ == "__main__":
    main()
