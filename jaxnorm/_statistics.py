"""Statistics of an array, and their derivative: as accurate as two passes over x, at the price of one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, minus, plus, shrink, times, wide
from jaxnorm._law import Sample, across, pooled
from jaxnorm._over import Over
from jaxnorm._passes import copies, on_cpu, own, small, summed, vector, written
from jaxnorm._pivot import pivot
from jaxnorm._pivot import unit as data_unit
from jaxnorm._rule import with_tangent

# The relative error of E|d|^2 - |E[d]|^2 is some 3e-7 * (1 + |E[d]|^2 / var): sums in which |E[d]|^2 is more
# than 4 / 5 of E|d|^2 are retaken about a better pivot.
_FAR = 0.8
_TURNS = 2  # the second where the first sum has overflowed: there is no mean yet


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

    def totals(self, first: int, *values: Array) -> tuple[Any, list[Array]]:
        """The weight, and the weighted sums of values that are 0 where there is no weight."""
        sums = [
            _sum(self.over, _weigh(v, self.where, number)) for number, v in enumerate(values, start=first)
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
            x = _fill(x, self.where, meeting(pivot))
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


def _accurate(points: _Points) -> Sample:
    """About a pivot, in one read of x; with weights, or where x is small, in two: one finds the pivot."""
    over, x, where, *_ = points
    if where is None and not small(x):
        middle, unit = pivot(x, over)
        return points.about(4, middle if over.centered else None, unit)
    wider = x.astype(wide(x.dtype))
    weight, sums = points.totals(1, wider * HEADROOM, jnp.abs(wider) * HEADROOM)
    mean, size = (divide(v, weight) / HEADROOM for v in sums)
    return points.about(4, mean if over.centered else None, data_unit(size))


def _cheap(points: _Points) -> Sample:
    """XLA:CPU's cheapest sums, about 0; then about the mean that they gave, until they are good enough."""
    centered = points.over.centered
    weight, *sums = points.sums(1, None, None)

    def averages(total: Any, squares: Array) -> tuple[Any, Array]:
        return None if total is None else divide(total, weight), divide(squares, weight)

    def poor(state: Any) -> Array:
        turn, _, _, *sums = state
        offset, second = averages(*sums)
        bad = second == jnp.inf
        return (turn < _TURNS) & jnp.any(bad | (abs2(offset) > _FAR * second) if centered else bad)

    def again(state: Any) -> Any:
        turn, pivot, unit, *sums = state
        # of this turn alone, or XLA widens x before the loop
        x, turn = lax.optimization_barrier((points.x, turn))
        offset, second = averages(*sums)
        if centered:
            mean = pivot + times(offset, 1 / unit)
            pivot = points.usable(jnp.where(jnp.isfinite(mean), mean, pivot))
        unit = jnp.where(second == jnp.inf, jnp.full_like(unit, shrink(unit.dtype)), unit)
        return turn + 1, pivot, unit, *points._replace(x=x).sums(4, pivot, unit)[1:]

    zero, one = jnp.zeros_like(sums[-1], wide(points.x.dtype)), jnp.ones_like(sums[-1])
    every = devices.varying(points.x, *sums)
    turn, pivot, unit = (devices.vary(v, every) for v in (jnp.zeros((), jnp.int32), zero, one))
    state = turn, pivot if centered else None, unit, *sums
    _, pivot, unit, *sums = lax.while_loop(poor, again, state)
    return points.pooled(pivot, unit, weight, *sums)


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
