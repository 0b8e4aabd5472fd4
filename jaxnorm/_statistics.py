"""Statistics of an array, and their derivative: as accurate as two passes over x, at the price of one."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, shrink, times, wide
from jaxnorm._law import Sample, across, variance
from jaxnorm._over import Over
from jaxnorm._passes import apart, copies, on_cpu, own, small, written
from jaxnorm._pivot import pivot
from jaxnorm._pivot import unit as data_unit
from jaxnorm._rule import with_tangent
from jaxnorm._sums import Points, count, fill, sum_over, weigh

# The relative error of E|d|^2 - |E[d]|^2 is some 3e-7 * (1 + |E[d]|^2 / var): sums about 0 are retaken about
# the mean where var is less than this part of |mean|^2.
_FAR = 0.25


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
        return points._replace(names=over.names).about(4, pivot, *data_unit(jnp.abs(near)))
    else:
        accurate = partial(_accurate, points)
        s = accurate() if jnp.iscomplexobj(x) else on_cpu(partial(_cheap, points), accurate)
    if not over.names.names:
        return s
    s = across(over.names, s, centered=over.centered, equal=where is None)
    return s._replace(mean=written(s.mean), low=written(s.low))


def _accurate(points: Points) -> Sample:
    """About a pivot, in one read of x; with weights, or where x is small, in two: one finds the pivot."""
    over, x, where, *_ = points
    if where is None and not small(x):
        middle, size = pivot(x, over)
    else:
        wider = x.astype(wide(x.dtype))
        weight, sums = points.totals(1, wider * HEADROOM, jnp.abs(wider) * HEADROOM)
        middle, size = (divide(v, weight) / HEADROOM for v in sums)
    return points.about(4, middle if over.centered else None, *data_unit(size))


def _cheap(points: Points) -> Sample:
    """XLA:CPU's cheapest sums, about 0; where that is not good enough, again about the mean just found.

    Each kernel of a program takes some 10 ms to compile, however small: what can be is one array.
    """
    over, x, *_ = points
    weight, total, first = points.sums(1, None, None)
    large = first == jnp.inf

    def units(squares: Array) -> list[Array]:
        less = shrink(squares.dtype)
        return [jnp.where(squares == jnp.inf, v, jnp.ones_like(squares)) for v in (less, 1 / less)]

    def moments(mean: Any, back: Any, total: Any, squares: Array) -> Array:
        """mean, what it lacks, and var in `unit`s; of sums about 0 the mean itself."""
        if not over.centered:
            return divide(squares, weight)[None]
        offset = divide(total, weight)
        low = jnp.zeros_like(offset) if mean is None else offset * back
        return jnp.stack([offset if mean is None else mean, low, variance(divide(squares, weight), offset)])

    def again(state: Any) -> Any:
        _, once_more, block = state
        # of this turn alone, or XLA widens x before the loop
        x, squares, block = lax.optimization_barrier((points.x, first, block))
        turn, about, unit, back = points._replace(x=x), None, *units(squares)
        if over.centered:
            mean = block[0] + block[1]
            about = turn.usable(jnp.where(jnp.isfinite(mean), mean, jnp.zeros_like(mean)))
        return once_more, never, moments(about, back, *turn.sums(4, about, written(unit))[1:])

    block = moments(None, None, total, first)
    poor, lost = large, jnp.zeros_like(large)
    if over.centered:  # there is no mean yet where its sum has overflowed, too
        poor, lost = large | (block[2] < _FAR * abs2(block[0])), large & ~jnp.isfinite(block[0])
    either = lax.reduce((poor, lost), (False, False), lambda a, b: (a[0] | b[0], a[1] | b[1]), range(poor.ndim))
    every = devices.varying(x, block)
    *turns, never, block = (devices.vary(v, every) for v in (*either, jnp.asarray(False), block))
    *_, block = lax.while_loop(lambda state: state[0], again, (*turns, block))
    mean, low, var = block if over.centered else (*[jnp.zeros_like(block[0])] * 2, block[0])
    return Sample(mean, low, var, *units(first), jnp.broadcast_to(jnp.asarray(weight, var.dtype), var.shape))


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
    first, second, dweight = [], [], []
    if dx is not None:
        a, b = (weigh(fill(v, where), where, 8) for v in dx)
        c = center(own(x, 8, dtype), *apart(x, 8, mean))
        along_mean, along = apart(x, 8, sum_over(over, a), sum_over(over, dot(c, b)))
        first.append(along_mean)
        second.append(2 * (along - dot(s.low, along_mean)))
    if dw is not None:
        c = center(own(x, 9, dtype), *apart(x, 9, mean)) - over.per_channel(s.low, x.shape)
        first.append(sum_over(over, dw.astype(dtype) * c))
        second.append(sum_over(over, dw.astype(s.var.dtype) * (abs2(c) - over.per_channel(s.var, x.shape))))
        dweight.append(jnp.broadcast_to(count(over, x, dw, s.var.dtype), s.weight.shape))
    centered = [sum(first[1:], first[0])] if over.centered else []
    sums = devices.psum(over.names, [*centered, sum(second[1:], second[0]), *dweight])
    dmean = divide(sums.pop(0), n) if over.centered else None
    dvar = divide(sums.pop(0), n)
    return dmean, dvar, sums.pop(0) if dweight else None


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
