"""Rows: their statistics in one read of x and without a pivot, which is one more tile of each row to read.

One reduction unites the points of a row by the law of total variance. A TPU's compiler makes one kernel of
it, and of a row that is sharded sends what its parts came to, no element.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm._arithmetic import HEADROOM, divide, shrink, two_sum, wide
from jaxnorm._law import in_units
from jaxnorm._over import Over


def are_rows(x: Array, over: Over) -> bool:
    """Whether statistics are over the last axis and no other, of real numbers."""
    if over.axes != (x.ndim - 1,) or over.groups is not None:
        return False
    return isinstance(x.shape[-1], int) and not jnp.iscomplexobj(x)


def united(x: Array) -> Sequence[Array]:
    """The statistics of rows: the fields of a Sample, but its weight."""
    dtype, n = wide(x.dtype), x.shape[-1]
    # a power of two near 1 / sqrt(n): sums of squares overflow where their average does, or hardly before
    root = 2.0 ** -(n.bit_length() // 2)
    units = root / HEADROOM, root * (shrink(dtype) / HEADROOM)
    v = x.astype(dtype) * HEADROOM
    none, start = jnp.zeros_like(v), (jnp.zeros((), dtype),) * 5
    mean, low, squares, tiny, count = lax.reduce(
        (v, none, none, none, jnp.ones_like(v)), start, partial(_union, units), (x.ndim - 1,)
    )
    back = root * root * count
    values = (mean / HEADROOM, low / HEADROOM, squares / back, tiny / back)
    return in_units(*(jnp.expand_dims(v, -1) for v in values))


State = tuple[Array, Array, Array, Array, Array]


def _union(units: tuple[float, float], a: State, b: State) -> State:
    """Two samples as one: their mean as a pair, the squares about it in two units, and their count.

    mean = mean_a + part * d,  squares = squares_a + squares_b + count_a * part * d^2,  part = count_b / count
    """
    mean, low, squares, tiny, count = a
    # of an empty sample, which knows no mean, that of the other: nothing of the pair is rounded off
    mean, low = (jnp.where(count == 0, v, w) for v, w in zip(b[:2], (mean, low), strict=True))
    d = (b[0] - mean) + (b[1] - low)
    part = divide(b[4], count + b[4])
    mean, low = two_sum(mean, low + d * part)
    far, near = (count * part * (d * unit) * (d * unit) for unit in units)
    return mean, low, squares + b[2] + far, tiny + b[3] + near, count + b[4]
