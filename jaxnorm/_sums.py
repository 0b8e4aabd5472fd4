"""Weighted sums over the points of x, and the sample that they are of."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import Maybe, abs2, choose, divide, shrink, times, wide
from jaxnorm._law import Sample, in_units, pooled
from jaxnorm._over import Over
from jaxnorm._passes import apart, own, returned, together, written
from jaxnorm._sharding import fitted


def fill(x: Array, where: Array | None, value: Array | float = 0.0, *, finite: bool = False) -> Array:
    """x in its own dtype, with `value` where it has no weight, or only where a NaN has none.

    A select, as 0 * NaN is NaN; and before x is widened, as XLA:CPU writes out what it selects.
    """
    if where is None:
        return x
    keep = where if where.dtype == jnp.bool_ else where != 0
    return choose(keep | jnp.isfinite(x) if finite else keep, x, jnp.asarray(value, x.dtype))


def weigh(v: Array, where: Array | None, number: int) -> Array:
    """v by weights, in the pass `number`; booleans have been used, by filling in what adds nothing."""
    if where is None or where.dtype == jnp.bool_:
        return v
    if where.shape == v.shape:
        return v * own(where, number, v.dtype)
    return v * apart(number, where.astype(v.dtype))[0]


def sums_over(over: Over, *vs: Array) -> list[Array]:
    channels = [jnp.sum(v, axis=over.axes, keepdims=True) for v in vs]
    if over.groups is None:
        return channels
    # written out, or XLA:CPU makes of the two sums one of all over x, which it is slow at; and so is the
    # transpose, one value a channel
    return [over.per_group(c, v.shape) for c, v in zip(written(*returned(*channels)), vs, strict=True)]


def count(over: Over, x: Array, where: Array | None, dtype: Any) -> Any:
    """The weight of the sample: a Python number without weights, and then it never travels."""
    if where is None:
        return over.size(x.shape)
    repeats = math.prod(x.shape[a] for a in over.axes if where.shape[a] == 1)
    if where.dtype == jnp.bool_:  # XLA:CPU writes it out: no wider than it must be
        where = where.astype(x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else dtype)
    counted = jnp.sum(own(where, 1, dtype), axis=over.axes, keepdims=True) * repeats
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
        weighed = (weigh(v, self.where, number) for number, v in enumerate(values, start=first))
        sums = sums_over(self.over, *weighed)
        if isinstance(self.weight, Array):
            weight, *sums = devices.psum(self.names, [self.weight, *sums])
            return weight, sums
        # unmasked: the count does not travel
        return self.weight * devices.size(self.names), devices.psum(self.names, sums)

    def sums(self, first: int, pivot: Maybe, unit: Maybe, shift: Maybe) -> tuple[Any, Any, Array]:
        """The weight, and the sums of d and |d|^2, d = unit * x - shift, in the passes from `first` on.

        These are one value a channel, and computed beforehand; `pivot` is shift / unit, and fills x.
        """
        x, dtype = self.x, wide(self.x.dtype)
        if pivot is not None:
            x = fill(x, self.where, *apart(first, pivot))

        def d(number: int) -> Array:
            v, (size, start) = own(x, number, dtype), apart(number, unit, shift)
            v = v if size is None else times(v, size)
            return v if start is None else v - start

        square = abs2(d(first + 1))
        weight, sums = self.totals(first, *([d(first), square] if self.over.centered else [square]))
        return weight, sums[0] if self.over.centered else None, sums[-1]

    def around(self, first: int, pivot: Maybe, unit: Array) -> tuple[Maybe, Any, Maybe, Array]:
        """A pivot in units, and the weight and the sums about it."""
        fills = None if self.where is None else self.x.dtype
        channels = (self.over.per_channel(v, self.x.shape) for v in (pivot, unit))
        met = (v if v is None else fitted(v, self.x) for v in channels)
        # one number, where it is subtracted and where it is added again
        pivot, unit, shift = together(_shifted, *met, fills=fills, everywhere=True)
        return self.over.shared(shift, self.x.shape), *self.sums(first, pivot, unit, shift)

    def about(self, first: int, pivot: Maybe, unit: Array, back: Array) -> Sample:
        """The sample, by sums about a pivot, in units; `back` is 1 / unit."""
        shift, weight, total, squares = self.around(first, pivot, unit)
        unit, back = (jnp.broadcast_to(v, squares.shape) for v in (unit, back))
        # written: it is added twice, and rounded the same way
        (offset,) = written(None if total is None else divide(total, weight))
        offset = jnp.zeros(squares.shape, wide(self.x.dtype)) if offset is None else offset
        mean, low, (var,) = pooled(shift, offset, [(divide(squares, weight), 1.0)])
        return Sample(times(mean, back), times(low, back), var, unit, back, weight)

    def about_zero(self) -> Sequence[Array]:
        """The sample's fields, but its weight, by second moments in two units: one does not overflow."""
        v = self.x.astype(wide(self.x.dtype))
        less = shrink(jnp.finfo(v.dtype).dtype)
        n, sums = self.totals(1, abs2(v), abs2(v * less))
        var, tiny = (divide(total, n) for total in sums)
        zero = jnp.zeros_like(var, v.dtype)
        return in_units(zero, zero, var, tiny)


def _shifted(pivot: Maybe, unit: Array, *, fills: Any) -> tuple[Maybe, Array, Maybe]:
    """The pivot that fills x of this dtype where it is masked, the unit, and the pivot in units."""
    if fills is None:
        return None, unit, times(pivot, unit)
    # written first: what fills x and what is subtracted from it are one number, rounded once
    (pivot,) = written(pivot if pivot is None else pivot.astype(fills).astype(pivot.dtype))
    return pivot, unit, times(pivot, unit)
