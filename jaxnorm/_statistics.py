"""Statistics of an array, and their derivative: as accurate as two passes over x, at the price of one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, shrink, times, wide
from jaxnorm._forms import Forms, chosen
from jaxnorm._law import Sample, across, variance
from jaxnorm._over import Over
from jaxnorm._passes import apart, copies, own, written
from jaxnorm._pivot import pivot
from jaxnorm._pivot import unit as data_unit
from jaxnorm._rows import are_rows, united
from jaxnorm._rule import with_tangent
from jaxnorm._sums import Points, count, fill, sum_over, weigh

# The relative error of E|d|^2 - |E[d]|^2 is some 3e-7 * (1 + |E[d]|^2 / var): sums about 0 are retaken about
# the mean where var is less than this part of |mean|^2.
_FAR = 0.25
SMALL = 100_000  # elements, of which a second read costs less than slices of them


# ---------------------------------------------------------------- the statistics


def take(over: Over, x: Array, where: Array | None, near: Array | None = None) -> Sample:
    """The statistics of x over axes and devices; `near` their mean, if the caller knows such a value."""
    n = count(over, x, where, jnp.finfo(wide(x.dtype)).dtype)
    points = Points(over, fill(x, where), where, n)
    if not isinstance(n, Array) and n == 0:  # no point at all: not even a pivot
        shape = [1 if a in over.axes else s for a, s in enumerate(x.shape)]
        none = over.per_group(jnp.zeros(shape, wide(x.dtype)), x.shape)
        s = Sample(none, none, none.real, none.real + 1, none.real + 1, none.real)
    elif near is not None:  # common to the devices: their points are pooled as if they were one's
        pivot = near.astype(wide(x.dtype)) if over.centered else None
        return points._replace(names=over.names).about(1, pivot, *data_unit(jnp.abs(near)))
    else:
        s = Sample(*_of_points(points))
    if not over.names.names:
        return s
    s = across(over.names, s, centered=over.centered, equal=where is None)
    return s._replace(mean=written(s.mean), low=written(s.low))


def _of_points(points: Points) -> list[Array]:
    """The statistics of one device's points: the CPU's sums, or those of other backends, which drop these."""
    over, x, where, weight, _ = points
    over = over._replace(names=devices.Names())
    n, total, squares = points.sums(1, None, None)
    real, dtype = squares.dtype, wide(x.dtype)
    kinds = (dtype, dtype, real, real, real)  # of a Sample, but for its weight
    forms = Forms(_accurate if dtype != real else _cheap, _by_rows, _accurate, _tangent)
    fields = chosen(forms, over, kinds, squares, x, total, where, weight if where is not None else None)
    return [*fields, jnp.broadcast_to(jnp.asarray(n, real), squares.shape)]


def _points(over: Over, x: Array, where: Array | None, weight: Array | None) -> Points:
    return Points(over, x, where, over.size(x.shape) if weight is None else weight)


def _few(x: Array) -> bool:
    return isinstance(x.size, int) and x.size <= SMALL


def _accurate(over: Over, _: Array, x: Array, *others: Any) -> Sequence[Array]:
    """About a pivot, in one read of x; with weights, or where x is small, in two: one finds the pivot."""
    _, where, weight = others
    points = _points(over, x, where, weight)
    if not over.centered:
        return points.about_zero()
    if where is None and not _few(x):
        middle, size = pivot(x, over)
    else:
        wider = x.astype(wide(x.dtype))
        n, sums = points.totals(1, wider * HEADROOM, jnp.abs(wider) * HEADROOM)
        middle, size = (divide(v, n) / HEADROOM for v in sums)
    return points.about(1, middle, *data_unit(size))[:-1]


def _by_rows(over: Over, squares: Array, x: Array, total: Any, where: Any, weight: Any) -> Sequence[Array]:
    """The same; on a TPU rows have no pivot, which is a tile more of each to read."""
    rows = over.centered and where is None and not _few(x) and are_rows(x, over)
    return united(x) if rows else _accurate(over, squares, x, total, where, weight)


def _cheap(
    over: Over, squares: Array, x: Array, total: Array | None, where: Array | None, weight: Array | None
) -> Sequence[Array]:
    """XLA:CPU's cheapest sums, about 0; where that is not good enough, again about the mean just found.

    Each kernel of a program takes some 10 ms to compile, however small: what can be is one array.
    """
    n = _points(over, x, where, weight).weight
    less = shrink(squares.dtype)

    def units(squares: Array) -> list[Array]:
        return [jnp.where(squares == jnp.inf, v, jnp.ones_like(squares)) for v in (less, 1 / less)]

    def fields(mean: Any, back: Any, total: Any, squares: Array) -> Array:
        """mean, what it lacks, and var, as one array; about 0 var alone.

        With a mask 0 beside it: a backward pass that fills x with it, and no constant, waits until it may.
        """
        second = divide(squares, n)
        if not over.centered:
            return second[None] if where is None else jnp.stack([jnp.zeros_like(second), second])
        offset = divide(total, n)
        low = jnp.zeros_like(offset) if mean is None else offset * back
        return jnp.stack([offset if mean is None else mean, low, variance(second, offset)])

    def again(x: Array, squares: Array, _: Array) -> Array:
        points = _points(over, x, where, weight)
        unit, back = units(squares)
        unit, mean = written(unit), None
        if over.centered:  # in units, as the sum itself may have overflowed
            sized = own(x, 1, unit.dtype) * apart(1, over.per_channel(unit, x.shape))[0]
            mean = points.usable(divide(points.totals(1, sized)[1][0], n) * back)
        return fields(mean, back, *points.sums(2, mean, unit)[1:])

    first = fields(None, None, total, squares)
    large = squares == jnp.inf
    far = first[2] < _FAR * abs2(first[0]) if over.centered else large
    # both at once: XLA:CPU takes one such sum in two kernels
    poor = lax.reduce((far, large), (False, False), lambda a, b: (a[0] | b[0], a[1] | b[1]), range(far.ndim))
    found = lax.cond(poor[0] | poor[1], again, lambda *args: args[-1], x, squares, first)
    if not over.centered:
        zero = jnp.zeros_like(squares)
        return zero if where is None else found[0], zero, found[-1], *units(squares)
    return *found, *units(squares)


# ---------------------------------------------------------------- their derivative


class Taken(NamedTuple):
    """The statistics that were taken: what a derivative needs of them."""

    mean: Array
    low: Array
    var: Array
    weight: Array


def tangent(
    over: Over,
    x: Array,
    where: Array | None,
    s: Taken,
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
        n = count(over, x, None, dtype) * devices.size(over.names)
    first: list[Array] = []
    second: list[Array] = []
    dweight: list[Array] = []
    if dx is not None:
        a, b = (weigh(fill(v, where), where, 4) for v in dx)
        c = center(own(x, 4, dtype), *apart(2, mean))
        along_mean, along = apart(1, sum_over(over, a), sum_over(over, dot(c, b)))
        first.append(along_mean)
        second.append(2 * (along - dot(s.low, along_mean)))
    if dw is not None:
        c = center(own(x, 6, dtype), *apart(4, mean)) - over.per_channel(s.low, x.shape)
        first.append(sum_over(over, dw.astype(dtype) * c))
        second.append(sum_over(over, dw.astype(s.var.dtype) * (abs2(c) - over.per_channel(s.var, x.shape))))
        dweight.append(jnp.broadcast_to(count(over, x, dw, s.var.dtype), s.weight.shape))
    centered = [sum(first[1:], first[0])] if over.centered else []
    sums = devices.psum(over.names, [*centered, sum(second[1:], second[0]), *dweight])
    dmean = divide(sums.pop(0), n) if over.centered else None
    dvar = divide(sums.pop(0), n)
    return dmean, dvar, sums.pop(0) if dweight else None


def _tangent(over: Over, args: Any, results: Any, dargs: Any) -> Sequence[Array | None]:
    """That of one device's statistics, where JAX differentiates them and not the op: in remat in scan."""
    (_, x, _, where, weight), (_, dx, _, dw, _) = args, dargs
    mean, low, var, unit, back = results
    n = jnp.broadcast_to(jnp.asarray(_points(over, x, where, weight).weight, var.dtype), var.shape)
    s = Taken(mean, low, Sample(mean, low, var, unit, back, n).variance(), n)
    twice = None if dx is None else copies(dx, 2, mean.dtype)
    dmean, dvar, _ = tangent(over, x, where, s, twice, dw)
    return dmean, None, times(dvar, unit, unit), None, None


def usable(x: Array, where: Array | None, mean: Array | float = 0.0) -> Array:
    """x for a derivative: the mean in place of a masked NaN, which would meet a zero there, as NaN * 0."""
    return fill(x, where, mean, finite=True)


# ---------------------------------------------------------------- the op


def _take(over: Over, x: Array, where: Array | None, near: Array | None) -> Taken:
    s = take(over, x, where, near)
    return Taken(s.mean, s.low, s.variance(), s.weight)


def _take_tangent(over: Over, args: Any, out: Taken) -> Any:
    def linear(kept: Any, dx: Array | None, dw: Array | None, _: Any) -> Any:
        x, where, s = kept
        x = usable(x, where, s.mean)
        twice = None if dx is None else copies(dx, 2, s.mean.dtype)
        dmean, dvar, dweight = tangent(over, x, where, s, twice, dw)
        return dmean, None, dvar, dweight

    x, where, _ = args
    return linear, (x, where, out)


sample = with_tangent(_take, _take_tangent)
