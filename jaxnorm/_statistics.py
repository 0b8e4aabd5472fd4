"""Statistics of an array, and their derivative: as accurate as two passes over x, at the price of one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnorm import _backends as backends
from jaxnorm import _devices as devices
from jaxnorm._arithmetic import Maybe, abs2, center, divide, dot, times, wide
from jaxnorm._forms import Forms, chosen
from jaxnorm._law import Sample, across
from jaxnorm._over import Over
from jaxnorm._passes import apart, copies, own, together, written
from jaxnorm._pivot import unit as data_unit
from jaxnorm._rule import with_tangent
from jaxnorm._sharding import as_sums, fitted
from jaxnorm._sums import Points, count, fill, sums_over, weigh

# ---------------------------------------------------------------- the statistics


def take(over: Over, x: Array, where: Array | None, near: Maybe = None, guess: Maybe = None) -> Sample:
    """The statistics of x over axes and devices; `near` their mean, if the caller knows such a value.

    `guess` may be near the mean or not: a TPU tries it first. Of groups, each channel has its group's.

    A weight is a number without `where`.
    """
    near, guess = (None if v is None else as_sums(v, x, over.axes) for v in (near, guess))
    s = _of_all(over, x, where, near, guess)
    return Sample(*(fitted(over.per_channel(v, x.shape), x) if isinstance(v, Array) else v for v in s))


def _of_all(over: Over, x: Array, where: Array | None, near: Maybe, guess: Maybe) -> Sample:
    """The same, one value a group."""
    n = count(over, x, where, jnp.finfo(wide(x.dtype)).dtype)
    points = Points(over, fill(x, where), where, n)
    if not isinstance(n, Array) and n == 0:  # no point at all: not even a pivot
        shape = [1 if a in over.axes else s for a, s in enumerate(x.shape)]
        none = over.per_group(jnp.zeros(shape, wide(x.dtype)), x.shape)
        s = Sample(none, none, none.real, none.real + 1, none.real + 1, n)
    elif near is not None:  # common to the devices: their points are pooled as if they were one's
        pivot = near.astype(wide(x.dtype)) if over.centered else None
        return points._replace(names=over.names).about(1, pivot, *data_unit(jnp.abs(near)))
    else:
        s = Sample(*_of_points(points, guess))
    if not over.names.names:
        return s
    s = across(over.names, _paired(s), centered=over.centered, equal=where is None)
    return _paired(s)


def _paired(s: Sample) -> Sample:
    """Mean and low as they are: a loop that computed one of the two again might round otherwise."""
    mean, low = written(s.mean, s.low)
    return s._replace(mean=mean, low=low)


def _of_points(points: Points, guess: Maybe) -> list[Any]:
    """The statistics of one device's points: the CPU's sums, or those of other backends, which drop these."""
    over, x, where, weight, _ = points
    over = over._replace(names=devices.Names())
    n, total, squares = points.sums(1, None, None, None)
    real, dtype = squares.dtype, wide(x.dtype)
    kinds = (dtype, dtype, real, real, real)  # of a Sample, but for its weight
    accurate = backends.accurate
    on_cpu = accurate if dtype != real else backends.on_cpu
    forms = Forms(on_cpu, gpu=accurate, tpu=backends.on_tpu, default=accurate, tangent=_tangent)
    given = None if where is None else weight
    fields = chosen(forms, over, kinds, squares, x, total, where, given, guess)
    return [*fields, n]


# ---------------------------------------------------------------- their derivative


class Taken(NamedTuple):
    """The statistics that were taken: what a derivative needs of them."""

    mean: Array
    low: Array
    var: Array
    weight: Array


def tangent_sums(
    over: Over,
    x: Array,
    where: Array | None,
    s: Taken,
    mean: Maybe,
    dx: Sequence[Array] | None,
    dw: Array | None,
    last: bool = False,
) -> tuple[Maybe, Maybe, Maybe]:
    """What a tangent (dx, dwhere) of x and the weights comes to: three sums; None is an absent tangent.

    sum(dx) + sum(dw * c),  sum(c * dx) + sum(dw * (|c|^2 - var)) / 2,  sum(dw),  with c = x - mean

    x is `usable`, `mean` None where it is not centered; `dx` are two copies of the tangent, in the
    statistics' dtype. `s` and the sums have one value a channel, those of its group. `last`: see `own`.
    """
    if dx is None and dw is None:
        return None, None, None
    dtype = s.mean.dtype
    first: list[Array] = []
    second: list[Array] = []
    dweight: list[Array] = []
    if dx is not None:
        a, b = (weigh(fill(v, where), where, 4) for v in dx)
        c = center(own(x, 4, dtype, everywhere=last), *apart(2, mean))
        along_mean, along = sums_over(over, a, dot(c, b))
        first.append(along_mean)
        second.append(along)
    if dw is not None:
        c = center(own(x, 6, dtype), *apart(4, mean)) - s.low
        size = abs2(c) - s.var
        change, spread = sums_over(over, dw.astype(dtype) * c, dw.astype(s.var.dtype) * size)
        first.append(change)
        # c is exact here, and what it lacks is taken off below
        low, weight = (over.shared(v, x.shape) for v in (s.low, s.weight))
        second.append(spread / 2 + dot(low, change))
        dweight.append(jnp.broadcast_to(count(over, x, dw, s.var.dtype), weight.shape))
    centered = [sum(first[1:], first[0])] if over.centered else []
    pooled = devices.psum(over.names, [*centered, sum(second[1:], second[0]), *dweight])
    sums = [fitted(over.per_channel(v, x.shape), x) for v in pooled]
    dmean = sums.pop(0) if over.centered else None
    return dmean, sums.pop(0), sums.pop(0) if dweight else None


def of_sums(sums: Sequence[Maybe], low: Array, n: Any) -> tuple[Maybe, Maybe]:
    """The tangents of mean and var.

    dmean = E[dx] + sum(dw * c) / n,  dvar = 2 E[(x - mean) dx] + sum(dw * (|x - mean|^2 - var)) / n
    """
    first, second = sums
    if second is None:
        return None, None
    if first is None:
        return None, divide(second, n, 0.5)
    return divide(first, n), divide(second - dot(low, first), n, 0.5)


def points_of(over: Over, x: Array, where: Array | None, s: Taken) -> Any:
    """How many points the statistics are of: a number without weights."""
    if where is None:
        return count(over, x, None, s.mean.dtype) * devices.size(over.names)
    return s.weight


def deviating(over: Over, x: Array, where: Array | None, s: Sample) -> Maybe:
    """Which samples have deviations to divide: of one point there are none, whatever x is. None: all."""
    if where is None:
        return jnp.zeros(s.var.shape, bool) if over.centered and s.weight == 1 else None
    if where.dtype == jnp.bool_ or not over.centered:
        return s.weights() > (1 if over.centered else 0)
    (places,) = devices.psum(over.names, [count(over, x, where > 0, s.var.dtype)])
    return fitted(over.per_channel(places, x.shape), x) > 1


def tangent(
    over: Over, x: Array, where: Array | None, s: Taken, dx: Maybe, dw: Maybe
) -> tuple[Maybe, Maybe, Maybe]:
    """The linear map (dx, dwhere) -> (dmean, dvar, dweight); None is an absent tangent."""
    twice = None if dx is None else copies(dx, 2, s.mean.dtype)
    mean = s.mean if over.centered else None
    first, second, dweight = tangent_sums(over, usable(x, where, s.mean), where, s, mean, twice, dw)
    n = points_of(over, x, where, s)
    return *together(of_sums, s.low, n, moved=(first, second)), dweight


def _tangent(over: Over, args: Any, results: Any, dargs: Any) -> Sequence[Array | None]:
    """That of one device's statistics, where JAX differentiates them and not the op: in remat in scan."""
    (_, x, _, where, weight, _), (_, dx, _, dw, *_) = args, dargs
    mean, low, var, unit, back = results
    n = jnp.broadcast_to(jnp.asarray(backends.points_of(over, x, where, weight).weight, var.dtype), var.shape)
    taken = mean, low, Sample(mean, low, var, unit, back, n).variance(), n
    s = Taken(*(over.per_channel(v, x.shape) for v in taken))
    dmean, dvar = (over.shared(v, x.shape) for v in tangent(over, x, where, s, dx, dw)[:2])
    return dmean, None, times(dvar, unit, unit), None, None


def usable(x: Array, where: Array | None, mean: Array | float = 0.0) -> Array:
    """x for a derivative: the mean in place of a masked NaN, which would meet a zero there, as NaN * 0."""
    return fill(x, where, mean, finite=True)


# ---------------------------------------------------------------- the op


def _take(over: Over, x: Array, where: Array | None, near: Array | None) -> Taken:
    s = take(over, x, where, near)
    mean, low, var = written(s.mean, s.low, s.variance())
    return Taken(mean, low, var, s.weights())


def _take_tangent(over: Over, args: Any, out: Taken) -> Any:
    def linear(kept: Any, dx: Array | None, dw: Array | None, _: Any) -> Any:
        x, where, s = kept
        dmean, dvar, dweight = tangent(over, x, where, s, dx, dw)
        return dmean, None, dvar, dweight

    x, where, _ = args
    return linear, (x, where, out)


sample = with_tangent(_take, _take_tangent)
