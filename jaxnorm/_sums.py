"""Weighted sums over the points of x, and the sample that they are of."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import abs2, divide, minus, plus, shrink, times, wide
from jaxnorm._law import Sample, pooled
from jaxnorm._over import Over
from jaxnorm._passes import own, summed, vector, written


def fill(x: Array, where: Array | None, value: Array | float = 0.0, *, finite: bool = False) -> Array:
    """x in its own dtype, with `value` where it has no weight, or only where a NaN has none.

    A select, as 0 * NaN is NaN; and before x is widened, as XLA:CPU writes out what it selects.
    """
    if where is None:
        return x
    keep = where if where.dtype == jnp.bool_ else where != 0
    return jnp.where(keep | jnp.isfinite(x) if finite else keep, x, jnp.asarray(value, x.dtype))


def weigh(v: Array, where: Array | None, number: int) -> Array:
    """v by weights, in the pass `number`; booleans have been used, by filling in what adds nothing."""
    if where is None or where.dtype == jnp.bool_:
        return v
    return v * vector(where.astype(v.dtype), number, v)


def sum_over(over: Over, v: Array) -> Array:
    channels = jnp.sum(v, axis=over.axes, keepdims=True)
    if over.groups is None:
        return channels
    # written out, or XLA:CPU makes of the two sums one of all over x, which it is slow at
    return over.per_group(vector(channels, 1, v), v.shape)


def count(over: Over, x: Array, where: Array | None, dtype: Any) -> Any:
    """The weight of the sample: a Python number without weights, and then it never travels."""
    if where is None:
        return over.size(x.shape)
    repeats = math.prod(x.shape[a] for a in over.axes if where.shape[a] == 1)
    counted = jnp.sum(where.astype(dtype), axis=over.axes, keepdims=True) * repeats
    return over.per_group(counted, x.shape)


class Points(NamedTuple):
    """The parts that the points of x are: each is its own mean, and has no variance."""

    over: Over
    x: Array  # 0 where there is no weight
    where: Array | None
    weight: Any
    names: devices.Names = devices.Names()  # of devices whose points these are, too

    def totals(self, first: int, *values: Array) -> tuple[Any, list[Array]]:
        """The weight, and the weighted sums of values that are 0 where there is no weight."""
        sums = [
            sum_over(self.over, weigh(v, self.where, number)) for number, v in enumerate(values, start=first)
        ]
        if isinstance(self.weight, Array):
            weight, *sums = devices.psum(self.names, [self.weight, *sums])
            return weight, sums
        # unmasked: the count does not travel
        return self.weight * devices.size(self.names), devices.psum(self.names, sums)

    def sums(self, first: int, pivot: Array | None, unit: Array | None) -> tuple[Any, Any, Array]:
        """The weight, and the sums of d and |d|^2, d = unit * (x - pivot), in the passes from `first` on."""
        over, x, dtype = self.over, self.x, wide(self.x.dtype)

        def meeting(v: Any) -> Any:
            return None if v is None else over.per_channel(vector(v, first, x), self.x.shape)

        if pivot is not None:
            x = fill(x, self.where, meeting(pivot))
        shift, size = meeting(pivot if unit is None else times(pivot, unit)), meeting(unit)

        def d(number: int) -> Array:
            shifted, sized = (None if v is None else summed(v, number, x) for v in (shift, size))
            v = own(x, number, dtype)
            return plus(v if sized is None else times(v, sized), minus(shifted))

        square = abs2(d(first + 1))
        weight, sums = self.totals(first, *([d(first), square] if over.centered else [square]))
        return weight, sums[0] if over.centered else None, sums[-1]

    def pooled(self, pivot: Any, unit: Any, weight: Any, total: Any, squares: Array) -> Sample:
        """The sample that `sums` are of."""
        dtype, one = wide(self.x.dtype), jnp.ones((), squares.dtype) if unit is None else unit
        offset = jnp.zeros(squares.shape, dtype) if total is None else written(divide(total, weight))
        mean, low, (var,) = pooled(pivot, one, offset, [(divide(squares, weight), 1.0)])
        weight = jnp.broadcast_to(jnp.asarray(weight, var.dtype), var.shape)
        back = 1 / one
        # 0 apart: what XLA makes of two divisions is one by a square that underflows
        full = jnp.where(var > 0, var * back * back, var)
        return Sample(mean, low, full, var * jnp.square(shrink(dtype) * back), weight)

    def about(self, first: int, pivot: Array | None = None, unit: Array | None = None) -> Sample:
        pivot = self.usable(pivot)
        return self.pooled(pivot, unit, *self.sums(first, pivot, unit))

    def usable(self, pivot: Array | None) -> Array | None:
        """A pivot of one value for all passes, which can be filled in: in x's dtype."""
        if pivot is None:
            return None
        return written(pivot if self.where is None else pivot.astype(self.x.dtype).astype(pivot.dtype))
