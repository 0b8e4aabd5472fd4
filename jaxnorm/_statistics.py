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
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, dot, shrink, two_sum, wide
from jaxnorm._passes import copies, on_cpu, own
from jaxnorm._pivot import pivot
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
    centered: Sequence[Array],
    spread: tuple[Any, Any],
    average: Callable[[Array, Array, Array], Sequence[Array]],
    unit: float,
) -> tuple[Array, Array, Array, Array]:
    """The law of total variance about a pivot: mean, low, var and tiny of the union of parts.

    mean = pivot + E[d],  var = E[var_i + |d|^2] - |E[d]|^2,  with d = mean_i - pivot over the parts i.

    Exact for every pivot, accurate for one within a few standard deviations. `centered` holds unit * d,
    once for each of the three averages; `spread` the parts' var and tiny.
    """
    down = shrink(pivot.dtype) / unit
    a, b, c = centered
    d, var, tiny = average(a, spread[0] + abs2(b / unit), spread[1] + abs2(c * down))
    mean, low = two_sum(pivot * unit, d)
    var = jnp.maximum(var - abs2(d / unit), 0)
    return mean / unit, low / unit, var, jnp.maximum(tiny - abs2(d * down), 0)


# ---------------------------------------------------------------- the statistics


def take(over: Over, x: Array, where: Array | None) -> Sample:
    """The statistics of x over axes and devices."""
    dtype = wide(x.dtype)
    n = _count(over, x, where, jnp.finfo(dtype).dtype)

    def average(v: Array) -> Array:
        return divide(_sum(over, v, where), n)

    def about(pivot: Array | None, first: int, rescue: bool = True) -> list[Array]:
        """The law over the points, in the passes number `first`, `first` + 1, ..."""
        mine = [own(x, first + k, dtype) for k in range(3)]
        if pivot is not None:
            mine = [center(v, own(pivot, first + k)) for k, v in enumerate(mine)]

        def averages(a: Array, b: Array, c: Array) -> list[Array]:
            second = average(b)
            tiny = average(c) if rescue else second * shrink(dtype) ** 2
            offset = average(a) if over.centered else jnp.zeros_like(second, dtype)
            return [offset, second, tiny]

        start = jnp.zeros((), dtype) if pivot is None else pivot
        unit = 1.0 if pivot is None else HEADROOM
        return list(pool(start, mine, (0.0, 0.0), averages, unit))

    def mean_first() -> Array:
        return average(own(x, 7, dtype) * HEADROOM) / HEADROOM

    def accurate() -> list[Array]:
        if not over.centered:
            return about(None, 4)
        return about(pivot(x, over.axes) if where is None else mean_first(), 4)

    def cheap() -> list[Array]:
        """XLA:CPU's cheapest passes, and the accurate ones where these are not good enough."""
        plain = where is None or not over.centered
        mean, low, var, tiny = about(None if plain else mean_first(), 1, rescue=False)
        good = jnp.isfinite(var)
        if plain:
            good &= abs2(mean) <= _MAX_RATIO * var if over.centered else True
        return lax.cond(jnp.all(good), lambda: [mean, low, var, tiny], accurate)

    if not isinstance(n, Array) and n == 0:  # no point at all: not even a pivot
        mean = jnp.zeros([1 if a in over.axes else s for a, s in enumerate(x.shape)], dtype)
        parts = [mean, mean, mean.real, mean.real]
    else:
        parts = on_cpu(lambda: cheap(), lambda: accurate())
    weight = jnp.broadcast_to(jnp.asarray(n, parts[2].dtype), parts[2].shape)
    return _across(over, Sample(*parts, weight), equal=where is None)


def _across(over: Over, s: Sample, equal: bool) -> Sample:
    """The same law over devices: exact also where they saw different weights, or nothing."""
    names = over.names
    if not names.names:
        return s

    def averages(*values: Array) -> list[Array]:
        """The devices' weight and weighted averages, in one collective; equal weights do not travel."""
        if equal:
            return [s.weight * devices.size(names), *devices.pmean(names, values)]
        weight, *sums = devices.psum(
            names, [s.weight, *(s.weight.astype(v.dtype) * v for v in values)]
        )
        return [weight, *(divide(v, weight) for v in sums)]

    if not over.centered:  # second moments about 0 average linearly
        weight, var, tiny = averages(s.var, s.tiny)
        return Sample(s.mean, s.low, var, tiny, weight)
    weight, pivot = averages(s.mean * HEADROOM)
    pivot = pivot / HEADROOM
    d = center(s.mean, pivot) + s.low * HEADROOM
    parts = pool(pivot, [d, d, d], (s.var, s.tiny), lambda *v: averages(*v)[1:], HEADROOM)
    return Sample(*parts, weight)


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
