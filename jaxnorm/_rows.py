"""Rows: their statistics in one read of x and without a pivot, where that is one more tile of each row to read.

A row is cut into a few parts. What stands at one place of them all is a small sample, whose two passes are
taken where it is; one reduction unites the small samples by the law of total variance. A TPU's compiler makes
one kernel of it. (A GPU's may write the small samples out, and reads a pivot at less cost.)
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm._arithmetic import HEADROOM, divide, shrink, two_sum, wide
from jaxnorm._law import Sample
from jaxnorm._over import Over
from jaxnorm._pivot import TILE, shards

_MOST = 32  # parts of a row


def parts(x: Array, over: Over) -> int:
    """Into how many parts of whole tiles a row is cut; 1 where x is not of rows, or cannot be cut so."""
    n = x.shape[-1] if x.ndim else 0
    if over.axes != (x.ndim - 1,) or not isinstance(n, int) or jnp.iscomplexobj(x) or shards(x)[-1] > 1:
        return 1
    return max(k for k in range(1, _MOST + 1) if k == 1 or n % (k * TILE) == 0)


def united(x: Array, count: int) -> Sample:
    """The statistics of rows that are cut into `count` parts."""
    dtype = wide(x.dtype)
    first, *others = (v.astype(dtype) * HEADROOM for v in jnp.split(x, count, -1))
    ds = [jnp.zeros_like(first), *(v - first for v in others)]
    offset = _sum(ds) / count
    ds = [d - offset for d in ds]
    share = jnp.full_like(first, 1 / first.shape[-1])
    squares = (_sum(jnp.square(d * s) for d in ds) / count * share for s in _units(dtype))
    pivot, offset, var, tiny, share = lax.reduce(
        (*two_sum(first, offset), *squares, share),
        (jnp.zeros((), dtype),) * 5,
        _union,
        (x.ndim - 1,),
    )
    mean, low = (v / HEADROOM for v in two_sum(pivot, offset))
    weight = jnp.full_like(var, x.shape[-1])
    return Sample(*(jnp.expand_dims(v, -1) for v in (mean, low, var / share, tiny / share, weight)))


State = tuple[Array, Array, Array, Array, Array]


def _union(a: State, b: State) -> State:
    """Two samples as one: their mean as pivot + offset, variances in two units, and their share of the row.

    mean = mean_a + part * d,  share * var = share_a * var_a + share_b * var_b + share_a * part * d^2
    """
    pivot, offset, var, tiny, share = a
    # an empty sample knows no pivot
    pivot, offset = (jnp.where(share == 0, v, w) for v, w in zip(b[:2], (pivot, offset), strict=True))
    d = (b[0] - pivot) + (b[1] - offset)
    part = divide(b[4], share + b[4])
    far, near = (share * part * (d * s) * (d * s) for s in _units(d.dtype))
    return pivot, offset + d * part, var + b[2] + far, tiny + b[3] + near, share + b[4]


def _units(dtype: Any) -> tuple[float, float]:
    """What d is multiplied by, beside HEADROOM: for its variance, and for one that never overflows."""
    return 1 / HEADROOM, shrink(dtype) / HEADROOM


def _sum(values: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, values)
