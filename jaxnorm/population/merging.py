"""Moments of many batches: merged in pairs, so that float32 is enough."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from jaxnorm._base.messages import calling, error
from jaxnorm._core.moments import merge

T = TypeVar("T")

_NAME = "merge_batches"


def merge_batches(parts: Iterable[T], *, by: Callable[[T, T], T] | None = None) -> T:
    """Moments of the union of many samples, such as the batches of a data set, as they come.

    mean = sum(w_i * mean_i) / sum(w_i),  var = sum(w_i * (var_i + |mean_i - mean|^2)) / sum(w_i)

    The law of `merge`, applied to pairs, pairs of pairs and so on. A running merge adds ever smaller steps to
    an ever larger sample, and is rounded as often as there are samples. In pairs, n samples are rounded
    log2(n) times, and no more than log2(n) + 1 moments are held at a time.

    Args:
      parts: the Moments of each sample, all of one shape; read once. With `by`, anything that it merges.
      by: merges two of them; None: `jaxnorm.merge`.

    Raises:
      ValueError: no part at all; fields of different shapes.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> from jaxnorm import population
    >>> batches = jnp.arange(10.0).reshape(5, 2)
    >>> m = population.merge_batches(jn.moments(batch, 0) for batch in batches)
    >>> float(m.mean), float(m.var), float(m.weight)
    (4.5, 8.25, 10.0)
    """
    two: Callable[[Any, Any], Any] = _merge if by is None else by
    merged: list[tuple[int, T]] = []  # of ever fewer parts, as the ones of a binary number
    for part in parts:
        count = 1
        while merged and merged[-1][0] == count:
            before = merged.pop()[1]
            part, count = two(before, part), 2 * count
        merged.append((count, part))
    if not merged:
        with calling(_NAME):
            raise error(ValueError, "parts is empty", "give the moments of one sample or more")
    whole = merged.pop()[1]
    while merged:
        whole = two(merged.pop()[1], whole)
    return whole


def _merge(a: Any, b: Any) -> Any:
    """`merge`; what makes the parts, between two calls, has errors of its own name."""
    with calling(_NAME):
        return merge(a, b)
