"""Statistics of an array, and their derivative: as accurate as two passes over x, at the price of one."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, shrink, times, wide
from jaxnorm._law import Sample, across, pool
from jaxnorm._passes import copies, on_cpu, own, vector
from jaxnorm._pivot import pivot
from jaxnorm._pivot import unit as data_unit
from jaxnorm._rule import with_tangent

# The relative error of E[x^2] - E[x]^2 is some 3e-7 * (1 + mean^2 / var): beyond this ratio sums about
# zero are retaken about a pivot.
_MAX_RATIO = 4.0


class Over(NamedTuple):
    """What statistics are taken over. Static and hashable."""

    axes: tuple[int, ...]  # ascending
    names: devices.Names = devices.Names()
    centered: bool = True  # False: about 0, and var is the second moment


# ---------------------------------------------------------------- weighted sums over the points of x


def _weigh(v: Array, where: Array | None) -> Array:
    if where is None:
        return v
    if where.dtype == jnp.bool_:  # select, not multiply: a masked NaN must not leak
        return jnp.where(where, v, jnp.zeros((), v.dtype))
    return jnp.where(where != 0, v * where.astype(v.dtype), jnp.zeros((), v.dtype))


def _sum(over: Over, v: Array, where: Array | None = None) -> Array:
    return jnp.sum(_weigh(v, where), axis=over.axes, keepdims=True)


def _count(over: Over, x: Array, where: Array | None, dtype: Any) -> Any:
    """The weight of the sample: a Python number without weights, and then it never travels."""
    if where is None:
        return math.prod(x.shape[a] for a in over.axes)
    repeats = math.prod(x.shape[a] for a in over.axes if where.shape[a] == 1)
    return _sum(over, where.astype(dtype)) * repeats


# ---------------------------------------------------------------- the statistics


def take(over: Over, x: Array, where: Array | None) -> Sample:
    """The statistics of x over axes and devices."""
    dtype = wide(x.dtype)
    real = jnp.finfo(dtype).dtype
    n = _count(over, x, where, real)
    points = _Points(over, x, where, n)
    if not isinstance(n, Array) and n == 0:  # no point at all: not even a pivot
        none = jnp.zeros([1 if a in over.axes else s for a, s in enumerate(x.shape)], dtype)
        parts = [none, none, none.real, none.real]
    else:
        parts = on_cpu(lambda: _cheap(points), lambda: _accurate(points))
    weight = jnp.broadcast_to(jnp.asarray(n, real), parts[2].shape)
    s = Sample(parts[0], parts[1], parts[2], parts[3], weight)
    return across(over.names, s, centered=over.centered, equal=where is None)


class _Points(NamedTuple):
    """The parts that the points of x are: each is its own mean, and has no variance."""

    over: Over
    x: Array
    where: Array | None
    weight: Any

    def average(self, *values: Array) -> list[Array]:
        return [divide(_sum(self.over, v, self.where), self.weight) for v in values]

    def about(self, first: int, pivot: Array | None = None, unit: Array | None = None) -> list[Array]:
        """mean, low, var and tiny by sums about a pivot, in the passes number `first` and `first` + 1."""
        dtype = wide(self.x.dtype)
        one = jnp.ones((), jnp.finfo(dtype).dtype) if unit is None else unit
        # written out: a loop over x that computed it again could round it otherwise
        pivot = None if pivot is None else vector(pivot, first)

        def d(number: int) -> Array:
            v = own(self.x, number, dtype)
            middle = None if pivot is None else own(pivot, number)
            return center(v, middle, unit=1.0 if unit is None else own(unit, number))

        def averages(a: Array, squares: Array) -> list[Array]:
            if self.over.centered:
                return self.average(a, squares)
            (second,) = self.average(squares)
            return [jnp.zeros_like(second, dtype), second]

        start = jnp.zeros((), dtype) if pivot is None else pivot
        mean, low, (var,) = pool(start, one, d(first), [(d(first + 1), 1.0, 0.0)], averages)
        # 0 apart: what XLA makes of its two divisions is one by a square that underflows
        full = jnp.where(var > 0, var / one / one, var)
        return [mean, low, full, var * jnp.square(shrink(dtype) / one)]


def _accurate(points: _Points) -> list[Array]:
    """About a pivot, in one read of x; with weights in two, of which the first finds the pivot."""
    if points.where is None:
        middle, unit = pivot(points.x, points.over.axes)
        return points.about(4, middle if points.over.centered else None, unit)
    x = points.x.astype(wide(points.x.dtype))
    mean, size = (v / HEADROOM for v in points.average(x * HEADROOM, jnp.abs(x) * HEADROOM))
    return points.about(4, mean if points.over.centered else None, data_unit(size))


def _cheap(points: _Points) -> list[Array]:
    """XLA:CPU's cheapest sums, and accurate ones where these are not good enough."""
    dtype, centered = wide(points.x.dtype), points.over.centered
    plain = points.where is None or not centered
    middle = None if plain else points.average(own(points.x, 3, dtype))[0]
    mean, low, var, tiny = points.about(1, middle)
    good = finite = jnp.isfinite(var)
    if plain and centered:
        good = abs2(mean) <= _MAX_RATIO * var

    def retaken() -> list[Array]:
        unit = jnp.where(finite, jnp.ones_like(var), jnp.full_like(var, shrink(dtype)))
        if not centered:
            return points.about(4, None, unit)
        # an array: a constant that meets x in a sum is written out, as large as x
        room = vector(jnp.full_like(var, HEADROOM), 7)
        (mean,) = points.average(times(own(points.x, 7, dtype), room))
        return points.about(4, mean / HEADROOM, unit)

    return lax.cond(jnp.all(good), lambda: [mean, low, var, tiny], retaken)


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

    `dx` holds two copies of the tangent, in the statistics' dtype.
    """
    if dx is None and dw is None:
        return None, None, None
    dtype = s.mean.dtype
    n = s.weight
    if where is None:
        n = _count(over, x, None, dtype) * devices.size(over.names)
    first, second, dweight = [], [], []
    if dx is not None:
        a, b = dx
        c = center(own(x, 8, dtype), own(s.mean, 8), usable(x, where))
        along_mean = _sum(over, a, where)
        along = _sum(over, dot(c, b), where) - dot(s.low, along_mean)
        first.append(along_mean)
        second.append(2 * along)
    if dw is not None:
        c = center(own(x, 9, dtype), own(s.mean, 9), usable(x, where)) - s.low
        first.append(_sum(over, dw.astype(dtype) * c))
        second.append(_sum(over, dw.astype(s.var.dtype) * (abs2(c) - s.var)))
        dweight.append(jnp.broadcast_to(_count(over, x, dw, s.var.dtype), s.weight.shape))
    centered = [sum(first[1:], first[0])] if over.centered else []
    sums = devices.psum(over.names, [*centered, sum(second[1:], second[0]), *dweight])
    dmean = divide(sums.pop(0), n) if over.centered else None
    dvar = divide(sums.pop(0), n)
    return dmean, dvar, sums.pop(0) if dweight else None


def usable(x: Array, where: Array | None) -> Array | None:
    """Where x - mean may be used by a derivative: not where a masked NaN would meet a zero, as NaN * 0."""
    if where is None:
        return None
    return (where if where.dtype == jnp.bool_ else where != 0) | jnp.isfinite(x)


# ---------------------------------------------------------------- the op


class _Taken(NamedTuple):
    mean: Array
    low: Array
    var: Array
    weight: Array


def _take(over: Over, x: Array, where: Array | None) -> _Taken:
    s = take(over, x, where)
    return _Taken(s.mean, s.low, s.var, s.weight)


def _take_tangent(over: Over, args: Any, out: _Taken) -> Any:
    def linear(kept: Any, dx: Array | None, dw: Array | None) -> Any:
        x, where, s = kept
        twice = None if dx is None else copies(dx, 2, s.mean.dtype)
        dmean, dvar, dweight = tangent(over, x, where, s, twice, dw)
        return dmean, None, dvar, dweight

    return linear, (*args, out)


sample = with_tangent(_take, _take_tangent)
