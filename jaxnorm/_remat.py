"""What norms with arithmetic of their own share: what reverse mode keeps of it, and its corners."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._arithmetic import choose, wide
from jaxnorm._core.statistics import SUMS

Values = TypeVar("Values")


def remat(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(x, ...)` in float32 or wider; reverse mode keeps x, in its own dtype, and what is `kept`.

    All parts of x's cotangent are then summed before they are rounded, once.
    """
    policy = jax.checkpoint_policies.save_only_these_names(SUMS)

    def widened(x: Array, *args: Any) -> Any:
        return function(x.astype(wide(x.dtype)), *args)

    return jax.checkpoint(widened, prevent_cse=False, policy=policy)


def kept(values: Values) -> Values:
    """Small values, which reverse mode keeps and does not take again."""
    return jax.tree.map(lambda v: checkpoint_name(v, SUMS), values)


def seen(y: Array, weight: Array, bias: Any, where: Any) -> Array:
    """y; where a mask has left nothing to normalize by, the bias."""
    if where is None:
        return y
    return choose(weight > 0, y, 0 if bias is None else bias.astype(y.dtype))


def root(v: Array) -> Array:
    """sqrt(v), whose derivative at 0 is 0."""
    positive = v > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, v, jnp.ones_like(v))), jnp.zeros_like(v))
