"""Statistics of an array: as accurate as two passes over x, at the price of one.

The law of total variance is written once, in `pool`. The parts that it pools are the points of an array,
the parts of a batch or the devices of a mesh; their weights are counts, masks or sample weights.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm import _devices as devices
from jaxnorm._passes import copies, on_cpu, own
from jaxnorm._rule import with_tangent

# x and its mean are multiplied by this power of two before they are subtracted and summed. It is exact,
# and neither the difference of the largest finite numbers overflows, nor a sum of 2^30 of them.
HEADROOM = 2.0**-32
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


def wide(dtype: DTypeLike) -> Any:
    """The dtype of statistics and of all arithmetic: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def common(*values: Any) -> list[Array]:
    """The values in the dtype that holds them all: promotion, said aloud."""
    arrays = [jnp.asarray(v) for v in values]
    dtype = functools.reduce(jnp.promote_types, (v.dtype for v in arrays))
    return [v.astype(dtype) for v in arrays]


def shrink(dtype: DTypeLike) -> float:
    """Power of two that keeps 2^29 squares of the largest finite numbers from overflowing in `dtype`."""
    return 2.0 ** -(jnp.finfo(dtype).maxexp // 2 + 16)


def abs2(v: Array) -> Array:
    """|v|^2, real."""
    return dot(v, v)


def dot(a: Array, b: Array) -> Array:
    """Re(conj(a) * b): the real inner product, the derivative of |a|^2 / 2 along b."""
    if not jnp.iscomplexobj(a):
        return a * b
    return a.real * b.real + a.imag * b.imag


def center(x: Array, mean: Array | None, keep: Array | None = None) -> Array:
    """HEADROOM * (x - mean); 0 where not `keep`."""
    c = x * HEADROOM if mean is None else x * HEADROOM - mean * HEADROOM
    return c if keep is None else jnp.where(keep, c, jnp.zeros((), c.dtype))


def divide(total: Array, weight: Any) -> Array:
    """total / weight; an empty sample has no average, so 0 / 0 is 0."""
    if not isinstance(weight, Array):
        return total / weight if weight else jnp.zeros_like(total)
    return total / jnp.where(weight == 0, jnp.ones((), weight.dtype), weight).astype(total.dtype)


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
    mean, low = _two_sum(pivot * unit, d)
    var = jnp.maximum(var - abs2(d / unit), 0)
    return mean / unit, low / unit, var, jnp.maximum(tiny - abs2(d * down), 0)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """fl(a + b) and its exact error."""
    high = a + b
    t = high - a
    return high, (a - (high - t)) + (b - t)


def _ninther(x: Array, axes: tuple[int, ...]) -> Array:
    """A pivot: the median of three medians of three elements, spread over the sample.

    Near the data however large its mean, and whatever a few outliers do. Slice x and convert the slice:
    XLA writes a converted copy of x out, to slice it.
    """

    def pick(i: int) -> Array:
        at = [(2 * i + 1) * n // 18 if a in axes else 0 for a, n in enumerate(x.shape)]
        sizes = [1 if a in axes else n for a, n in enumerate(x.shape)]
        if all(isinstance(n, int) for n in x.shape):
            return lax.slice(x, at, [p + n for p, n in zip(at, sizes, strict=True)])
        return lax.dynamic_slice(x, at, sizes)  # symbolic shapes

    def median(vs: Sequence[Array]) -> list[Array]:
        return [
            lax.max(lax.min(a, b), lax.min(lax.max(a, b), c))
            for a, b, c in zip(vs[0::3], vs[1::3], vs[2::3], strict=True)
        ]

    picks = [pick(i).astype(wide(x.dtype)) for i in range(9)]
    if not jnp.iscomplexobj(x):
        return median(median(picks))[0]
    real, imag = (median(median(part))[0] for part in zip(*((p.real, p.imag) for p in picks)))
    return lax.complex(real, imag)


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
        return about(_ninther(x, over.axes) if where is None else mean_first(), 4)

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
