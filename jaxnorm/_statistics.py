"""Statistics of an array: as accurate as two passes over x, at the price of one.

The law of total variance is written once, in `pool`. The parts that it pools are the points of an array,
the parts of a batch or the devices of a mesh; their weights are counts, masks or sample weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, shrink, times, two_sum, wide
from jaxnorm._passes import copies, on_cpu, own
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


class Sample(NamedTuple):
    """Moments at full accuracy, whatever the size of the data; [*stats], the reduced axes of size 1."""

    mean: Array
    low: Array  # mean + low is the mean to twice the precision
    var: Array
    tiny: Array  # var * shrink^2: finite also where var overflows
    weight: Array


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


# ---------------------------------------------------------------- the law


def pool(
    pivot: Array,
    unit: Array | float,
    a: Array,
    levels: Sequence[tuple[Array, float, Array | float]],
    average: Callable[..., Sequence[Array]],
) -> tuple[Array, Array, list[Array]]:
    """The law of total variance about a pivot, over parts: points, batches, devices.

    mean = pivot + E[d],  var = E[var_i + |d|^2] - |E[d]|^2,  with d = mean_i - pivot of the part i.

    Exact for every pivot, accurate for one within a few standard deviations. `a` is d in `unit`, a power
    of two. Each level (d, s, var_i) asks for a variance, of s * d. `average` takes the weighted averages.
    Returns the mean as a pair, whose sum holds it to twice the precision, and the variances.
    """
    offset, *seconds = average(a, *(abs2(d * s) + var for d, s, var in levels))
    mean, low = two_sum(times(pivot, unit), offset)
    variances = [
        jnp.maximum(second - abs2(offset * s), 0) for second, (_, s, _) in zip(seconds, levels, strict=True)
    ]
    return times(mean, 1 / unit), times(low, 1 / unit), variances


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
    return _across(over, Sample(parts[0], parts[1], parts[2], parts[3], weight), equal=where is None)


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

        def d(number: int) -> Array:
            v, scale = own(self.x, number, dtype), unit
            if pivot is not None and unit is not None:
                v, scale = center(v, own(pivot, number)), unit / HEADROOM
            return v if scale is None else times(v, own(scale, number))

        def averages(a: Array, squares: Array) -> list[Array]:
            if self.over.centered:
                return self.average(a, squares)
            (second,) = self.average(squares)
            return [jnp.zeros_like(second, dtype), second]

        start = jnp.zeros((), dtype) if pivot is None else pivot
        mean, low, (var,) = pool(start, one, d(first), [(d(first + 1), 1.0, 0.0)], averages)
        return [mean, low, var / one / one, var * jnp.square(shrink(dtype) / one)]


def _accurate(points: _Points) -> list[Array]:
    """About a pivot, in one read of x; with weights in two, of which the first finds the pivot."""
    if points.where is None:
        middle, unit = pivot(points.x, points.over.axes)
    else:
        middle, unit = _swept(points, unit_of=True)
    return points.about(4, middle if points.over.centered else None, unit)


def _cheap(points: _Points) -> list[Array]:
    """XLA:CPU's cheapest sums, and the accurate ones where these are not good enough."""
    if points.where is None or not points.over.centered:
        found = points.about(1)
    else:
        found = points.about(1, *_swept(points, unit_of=False))
    mean, _, var, _ = found
    good = jnp.isfinite(var)
    if points.where is None and points.over.centered:
        good &= abs2(mean) <= _MAX_RATIO * var
    return lax.cond(jnp.all(good), lambda: found, lambda: _accurate(points))


def _swept(points: _Points, unit_of: bool) -> tuple[Array, Array]:
    """The mean, and the unit of the mean size, by a read of x of their own."""
    x = own(points.x, 7, wide(points.x.dtype)) * HEADROOM
    if not unit_of:
        (mean,) = points.average(x)
        return mean / HEADROOM, jnp.ones((), jnp.finfo(mean.dtype).dtype)
    mean, size = points.average(x, jnp.abs(x))
    return mean / HEADROOM, data_unit(size / HEADROOM)


def _across(over: Over, s: Sample, equal: bool) -> Sample:
    """The same law over devices: exact also where they saw different weights, or nothing."""
    names = over.names
    if not names.names:
        return s

    def averages(*values: Array) -> list[Array]:
        """The devices' weight and weighted averages, in one collective; equal weights do not travel."""
        if equal:
            return [s.weight * devices.size(names), *devices.pmean(names, values)]
        weight, *sums = devices.psum(names, [s.weight, *(s.weight.astype(v.dtype) * v for v in values)])
        return [weight, *(divide(v, weight) for v in sums)]

    if not over.centered:  # second moments about 0 average linearly
        weight, var, tiny = averages(s.var, s.tiny)
        return s._replace(var=var, tiny=tiny, weight=weight)
    weight, middle = averages(s.mean * HEADROOM)
    middle = middle / HEADROOM
    d = center(s.mean, middle) + s.low * HEADROOM
    levels = [(d, 1 / HEADROOM, s.var), (d, shrink(d.dtype) / HEADROOM, s.tiny)]
    mean, low, variances = pool(middle, HEADROOM, d, levels, lambda *v: averages(*v)[1:])
    return Sample(mean, low, variances[0], variances[1], weight)


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
        c = center(own(x, 8, dtype), own(s.mean, 8), keep(x, where))
        along_mean = _sum(over, a, where)
        along = _sum(over, dot(c, b), where) / HEADROOM - dot(s.low, along_mean)
        first.append(along_mean)
        second.append(2 * along)
    if dw is not None:
        c = center(own(x, 9, dtype), own(s.mean, 9), keep(x, where)) - s.low * HEADROOM
        first.append(_sum(over, dw.astype(dtype) * c) / HEADROOM)
        second.append(_sum(over, dw.astype(s.var.dtype) * (abs2(c / HEADROOM) - s.var)))
        dweight.append(_count(over, x, dw, s.var.dtype))
    centered = [sum(first[1:], first[0])] if over.centered else []
    sums = devices.psum(over.names, [*centered, sum(second[1:], second[0]), *dweight])
    dmean = divide(sums.pop(0), n) if over.centered else None
    dvar = divide(sums.pop(0), n)
    return dmean, dvar, sums.pop(0) if dweight else None


def keep(x: Array, where: Array | None) -> Array | None:
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
