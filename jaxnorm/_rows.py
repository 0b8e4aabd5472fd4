"""Rows, without a pivot, which is one more tile of each row to read: their statistics, and y itself.

On a TPU one reduction unites the points of a row by the law of total variance. The compiler makes one kernel
of it, and of a row that is sharded sends what its parts came to, no element. On a GPU a row stays on the chip
between its sums and y, where it is short enough and nothing else is asked for: two passes, not three.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm._arithmetic import HEADROOM, Maybe, divide, plus, shrink, times, two_sum, wide
from jaxnorm._law import in_units
from jaxnorm._over import Over
from jaxnorm._sharding import shards

_ON_CHIP = 2**14  # features: of longer rows XLA makes a kernel for each sum, and one for y


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


def stay_on_chip(x: Array, over: Over) -> bool:
    """Whether these are rows that a GPU need not read twice."""
    return are_rows(x, over) and 0 < x.shape[-1] <= _ON_CHIP and not over.names.names and shards(x)[-1] == 1


def normalized(
    x: Array, scale: Maybe, bias: Maybe, epsilon: Array, *, centered: bool, dtype: DTypeLike
) -> Array:
    """y of rows, by sums of which each needs those before: XLA makes one kernel of such a chain.

    In a unit that brings what is too large for squares below 2^48, and leaves everything else as it is. There
    epsilon, in that unit, is lost beside the variance, and so it is as it stands; the unit is used once, as
    XLA's chain wants it.
    """
    v, n = x.astype(wide(x.dtype)), x.shape[-1]
    info = jnp.finfo(v.dtype)

    def average(v: Array) -> Array:
        return jnp.sum(v, -1, keepdims=True) / n

    most = 2.0 ** (info.maxexp * 3 // 8)
    size = lax.reduce_precision(jnp.max(jnp.abs(v), -1, keepdims=True), info.nexp, 0)
    v = v * (most / jnp.clip(size, most, 2.0 ** (info.maxexp - 1)))
    if centered:
        v = v - average(v)
        v = v - average(v)  # what the first one lost
    spread = average(v * v) + epsilon.astype(v.dtype)
    # a constant row is 0 by now, whatever it is multiplied by
    rstd = lax.rsqrt(lax.max(spread, jnp.full_like(spread, info.tiny)))
    return plus(v * times(rstd, 1.0 if scale is None else scale), bias).astype(dtype)
