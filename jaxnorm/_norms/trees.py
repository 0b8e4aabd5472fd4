"""Trees of parameters: which leaves are meant, and a function over them."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from jaxnorm._base import checks as check

# Which leaves: a predicate on their path, as names, and their value. None: arrays of two axes or more,
# which are kernels and no bias.
Select: TypeAlias = Callable[[tuple[str, ...], Any], bool] | None


def mapped(
    f: Callable[[Array, Any], Any],
    params: Any,
    others: Any,
    select: Select,
    otherwise: Callable[[Any], Any] = lambda v: v,
) -> Any:
    """A tree like params, with `f(v, other)` for the leaves that are selected.

    Args:
      f: takes an array, and the leaf of `others` at the same place.
      params: a tree of arrays.
      others: a tree like params; None: every leaf is None.
      select: which leaves.
      otherwise: takes a leaf that is not selected.
    """
    if others is None:
        others = jax.tree.map(lambda _: None, params)

    def at(path: Any, v: Any, other: Any) -> Any:
        names = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        chosen = jnp.ndim(v) > 1 if select is None else select(names, v)
        return f(check.numbers("/".join(names) or "params", v), other) if chosen else otherwise(v)

    return jax.tree_util.tree_map_with_path(at, params, others)
