"""Statistics of an array, and their derivative: as accurate as two passes over x, at the price of one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, shrink, times, wide
from jaxnorm._law import Sample, across, pool
from jaxnorm._over import Over
from jaxnorm._passes import copies, on_cpu, own, small, summed, vector
from jaxnorm._pivot import pivot
from jaxnorm._pivot import unit as data_unit
from jaxnorm._rule import with_tangent

# The relative error of E[x^2] - E[x]^2 is some 3e-7 * (1 + mean^2 / var): beyond this ratio sums about
# zero are retaken about a pivot.
_MAX_RATIO = 4.0


# ---------------------------------------------------------------- weighted sums over the points of x


def _fill(x: Array, where: Array | None, value: Array | float = 0.0, *, finite: bool = False) -> Array:
    """x in its own dtype, with `value` where it has no weight, or only where a NaN has none.

    A select, as 0 * NaN is NaN; and before x is widened, as XLA:CPU writes out what it selects.
    """
    if where is None:
        return x
    keep = where if where.dtype == jnp.bool_ else where != 0
    return jnp.where(keep | jnp.isfinite(x) if finite else keep, x, jnp.asarray(value, x.dtype))


def _weigh(v: Array, where: Array | None, number: int) -> Array:
    """v by weights, in the pass `number`; booleans have been used, by filling in what adds nothing."""
    if where is None or where.dtype == jnp.bool_:
        return v
    return v * vector(where.astype(v.dtype), number, v)


def _sum(over: Over, v: Array) -> Array:
    channels = jnp.sum(v, axis=over.axes, keepdims=True)
    if over.groups is None:
        return channels
    # written out, or XLA:CPU makes of the two sums one of all over x, which it is slow at
    return over.per_group(vector(channels, 1, v), v.shape)


def _count(over: Over, x: Array, where: Array | None, dtype: Any) -> Any:
    """The weight of the sample: a Python number without weights, and then it never travels."""
    if where is None:
        return over.size(x.shape)
    repeats = math.prod(x.shape[a] for a in over.axes if where.shape[a] == 1)
    counted = jnp.sum(where.astype(dtype), axis=over.axes, keepdims=True) * repeats
    return over.per_group(counted, x.shape)


# ---------------------------------------------------------------- the statistics


def take(over: Over, x: Array, where: Array | None, near: Array | None = None) -> Sample:
    """The statistics of x over axes and devices; `near` their mean, if the caller knows such a value."""
    n = _count(over, x, where, jnp.finfo(wide(x.dtype)).dtype)
    points = _Points(over, _fill(x, where), where, n)
    if not isinstance(n, Array) and n == 0:  # no point at all: not even a pivot
        shape = [1 if a in over.axes else s for a, s in enumerate(x.shape)]
        none = over.per_group(jnp.zeros(shape, wide(x.dtype)), x.shape)
        s = Sample(none, none, none.real, none.real, none.real)
    elif near is not None:  # common to the devices: their points are pooled as if they were one's
        pivot = near.astype(wide(x.dtype)) if over.centered else None
        return points._replace(names=over.names).about(4, pivot, data_unit(jnp.abs(near)))
    elif small(x):
        s = _accurate(points)
    else:
        s = on_cpu(lambda: _cheap(points), lambda: _accurate(points))
    return across(over.names, s, centered=over.centered, equal=where is None)


class _Points(NamedTuple):
    """The parts that the points of x are: each is its own mean, and has no variance."""

    over: Over
    x: Array  # 0 where there is no weight
    where: Array | None
    weight: Any
    names: devices.Names = devices.Names()  # of devices whose points these are, too

    def average(self, first: int, *values: Array) -> tuple[Any, list[Array]]:
        """The weight, and the weighted averages of values that are 0 where there is no weight."""
        weighed = (_weigh(v, self.where, first + i) for i, v in enumerate(values))
        sums = [_sum(self.over, v) for v in weighed]
        if isinstance(self.weight, Array):
            weight, *sums = devices.psum(self.names, [self.weight, *sums])
        else:  # unmasked: the count does not travel
            weight = self.weight * devices.size(self.names)
            sums = devices.psum(self.names, sums)
        return weight, [divide(v, weight) for v in sums]

    def about(self, first: int, pivot: Array | None = None, unit: Array | None = None) -> Sample:
        """Sums about a pivot, in the passes number `first` and `first` + 1."""
        over, x, dtype = self.over, self.x, wide(self.x.dtype)
        one = jnp.ones((), jnp.finfo(dtype).dtype) if unit is None else unit
        if pivot is not None:
            # of x's dtype, to be filled in, and written out: a loop over x that computed it again could
            # round it otherwise
            pivot = vector(pivot if self.where is None else pivot.astype(x.dtype).astype(dtype), first, x)
        meeting = [over.per_channel(v, x.shape) for v in (pivot, unit)]
        x = x if pivot is None else _fill(x, self.where, meeting[0])
        weights = []

        def d(number: int) -> Array:
            middle, size = (None if v is None else vector(v, number, x) for v in meeting)
            return center(own(x, number, dtype), middle, unit=1.0 if size is None else size)

        def averages(*values: Array) -> list[Array]:
            weight, found = self.average(first, *(values if over.centered else values[1:]))
            weights.append(weight)
            return found if over.centered else [jnp.zeros_like(found[0], dtype), *found]

        mean, low, (var,) = pool(pivot, one, d(first), [(d(first + 1), 1.0, 0.0)], averages)
        weight = jnp.broadcast_to(jnp.asarray(weights.pop(), var.dtype), var.shape)
        # 0 apart: what XLA makes of its two divisions is one by a square that underflows
        full = jnp.where(var > 0, var / one / one, var)
        return Sample(mean, low, full, var * jnp.square(shrink(dtype) / one), weight)


def _accurate(points: _Points) -> Sample:
    """About a pivot, in one read of x; with weights, or where x is small, in two: one finds the pivot."""
    over, x, where, *_ = points
    if where is None and not small(x):
        middle, unit = pivot(x, over)
        return points.about(4, middle if over.centered else None, unit)
    wider = x.astype(wide(x.dtype))
    _, sums = points.average(1, wider * HEADROOM, jnp.abs(wider) * HEADROOM)
    mean, size = (v / HEADROOM for v in sums)
    return points.about(4, mean if over.centered else None, data_unit(size))


def _cheap(points: _Points) -> Sample:
    """XLA:CPU's cheapest sums, and accurate ones where these are not good enough."""
    s = points.about(1)
    good = s.var < jnp.inf
    if points.over.centered:
        good &= abs2(s.mean) <= _MAX_RATIO * s.var

    def retaken() -> Sample:
        unit = jnp.where(s.var < jnp.inf, 1.0, jnp.full_like(s.var, shrink(s.var.dtype)))
        if not points.over.centered:
            return points.about(4, None, unit)
        # an array: a constant that meets x in a sum is written out, as large as x
        x, room = points.x, vector(jnp.full_like(s.var, HEADROOM), 7, points.x)
        x = times(own(x, 7, s.mean.dtype), points.over.per_channel(room, x.shape))
        (mean,) = points.average(7, x)[1]
        return points.about(4, mean / HEADROOM, unit)

    return lax.cond(jnp.all(good), lambda: s, retaken)


# ---------------------------------------------------------------- their derivative


def tangent(
    over: Over,
    x: Array,
    where: Array | None,
    s: Sample,
    dx: Sequence[Array] | None,
    dw: Array | None,
) -> tuple[Array | None, Array | None, Array | None]:
    """The linear map (dx, dwhere) -> (dmean, dvar, dweight); None is an absent tangent.

    dmean = E[dx] + sum(dw * (x - mean)) / n,  dvar = 2 E[(x - mean) dx] + sum(dw * (|x - mean|^2 - var)) / n

    x is `usable`; `dx` holds two copies of the tangent, in the statistics' dtype.
    """
    if dx is None and dw is None:
        return None, None, None
    dtype = s.mean.dtype
    mean = over.per_channel(s.mean, x.shape)
    n = s.weight
    if where is None:
        n = _count(over, x, None, dtype) * devices.size(over.names)
    first, second, dweight = [], [], []
    if dx is not None:
        a, b = (_weigh(_fill(v, where), where, 8) for v in dx)
        c = center(own(x, 8, dtype), vector(mean, 8, x))
        along_mean = summed(_sum(over, a), 8, x)
        along = summed(_sum(over, dot(c, b)), 8, x) - dot(s.low, along_mean)
        first.append(along_mean)
        second.append(2 * along)
    if dw is not None:
        c = center(own(x, 9, dtype), vector(mean, 9, x)) - over.per_channel(s.low, x.shape)
        first.append(_sum(over, dw.astype(dtype) * c))
        second.append(_sum(over, dw.astype(s.var.dtype) * (abs2(c) - over.per_channel(s.var, x.shape))))
        dweight.append(jnp.broadcast_to(_count(over, x, dw, s.var.dtype), s.weight.shape))
    centered = [sum(first[1:], first[0])] if over.centered else []
    sums = devices.psum(over.names, [*centered, sum(second[1:], second[0]), *dweight])
    dmean = divide(sums.pop(0), n) if over.centered else None
    dvar = divide(sums.pop(0), n)
    return dmean, dvar, sums.pop(0) if dweight else None


def usable(x: Array, where: Array | None, mean: Array | float = 0.0) -> Array:
    """x for a derivative: the mean in place of a masked NaN, which would meet a zero there, as NaN * 0."""
    return _fill(x, where, mean, finite=True)


# ---------------------------------------------------------------- the op


class _Taken(NamedTuple):
    mean: Array
    low: Array
    var: Array
    weight: Array


def _take(over: Over, x: Array, where: Array | None, near: Array | None) -> _Taken:
    s = take(over, x, where, near)
    return _Taken(s.mean, s.low, s.var, s.weight)


def _take_tangent(over: Over, args: Any, out: _Taken) -> Any:
    def linear(kept: Any, dx: Array | None, dw: Array | None, _: Any) -> Any:
        x, where, s = kept
        x = usable(x, where, s.mean)
        twice = None if dx is None else copies(dx, 2, s.mean.dtype)
        dmean, dvar, dweight = tangent(over, x, where, s, twice, dw)
        return dmean, None, dvar, dweight

    x, where, _ = args
    return linear, (x, where, out)


sample = with_tangent(_take, _take_tangent)
