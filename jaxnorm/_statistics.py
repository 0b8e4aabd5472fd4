"""Statistics of an array, and their derivative: as accurate as two passes over x, at the price of one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, shrink, times, wide
from jaxnorm._law import Sample, across
from jaxnorm._over import Over
from jaxnorm._passes import copies, on_cpu, on_tpu, own, small, summed, vector
from jaxnorm._pivot import pivot
from jaxnorm._pivot import unit as data_unit
from jaxnorm._rows import are_rows, united
from jaxnorm._rule import with_tangent
from jaxnorm._sums import Points, count, fill, sum_over, weigh

# The relative error of E|d|^2 - |E[d]|^2 is some 3e-7 * (1 + |E[d]|^2 / var): sums in which |E[d]|^2 is more
# than 4 / 5 of E|d|^2 are retaken about a better pivot.
_FAR = 0.8
_TURNS = 2  # the second where the first sum has overflowed: there is no mean yet


# ---------------------------------------------------------------- the statistics


def take(over: Over, x: Array, where: Array | None, near: Array | None = None) -> Sample:
    """The statistics of x over axes and devices; `near` their mean, if the caller knows such a value."""
    n = count(over, x, where, jnp.finfo(wide(x.dtype)).dtype)
    points = Points(over, fill(x, where), where, n)
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


def _accurate(points: Points) -> Sample:
    """In one read of x; about a pivot, with weights, or where x is small, in two: one finds the pivot."""
    over, x, where, *_ = points

    def about_pivot() -> Sample:
        return points.about(4, *pivot(x, over))

    if not over.centered:
        return _about_zero(points)
    if where is None and not small(x):
        return on_tpu(lambda: united(x), about_pivot) if are_rows(x, over) else about_pivot()
    wider = x.astype(wide(x.dtype))
    weight, sums = points.totals(1, wider * HEADROOM, jnp.abs(wider) * HEADROOM)
    mean, size = (divide(v, weight) / HEADROOM for v in sums)
    return points.about(4, mean, data_unit(size))


def _about_zero(points: Points) -> Sample:
    """Second moments in two units: where one overflows the other does not."""
    dtype = wide(points.x.dtype)
    v = points.x.astype(dtype)
    small = shrink(dtype)
    weight, sums = points.totals(4, abs2(v), abs2(v * small))
    var, tiny = (divide(total, weight) for total in sums)
    zero = jnp.zeros_like(var, dtype)
    var = jnp.where(jnp.isinf(var), jnp.square(jnp.sqrt(tiny) / small), var)  # where only the sum overflows
    return Sample(zero, zero, var, tiny, jnp.broadcast_to(jnp.asarray(weight, var.dtype), var.shape))


def _cheap(points: Points) -> Sample:
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
        n = count(over, x, None, dtype) * devices.size(over.names)
    first, second, dweight = [], [], []
    if dx is not None:
        a, b = (weigh(fill(v, where), where, 8) for v in dx)
        c = center(own(x, 8, dtype), vector(mean, 8, x))
        along_mean = summed(sum_over(over, a), 8, x)
        along = summed(sum_over(over, dot(c, b)), 8, x) - dot(s.low, along_mean)
        first.append(along_mean)
        second.append(2 * along)
    if dw is not None:
        c = center(own(x, 9, dtype), vector(mean, 9, x)) - over.per_channel(s.low, x.shape)
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
