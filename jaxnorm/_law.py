"""The law of total variance, by which all Moments combine: those of points, of batches, of devices."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, divide, shrink, times, two_sum


class Sample(NamedTuple):
    """Moments at full accuracy, whatever the size of the data; [*stats], the reduced axes of size 1."""

    mean: Array
    low: Array  # mean + low is the mean to twice the precision
    var: Array
    tiny: Array  # var * shrink^2: finite also where var overflows
    weight: Array


def pool(
    pivot: Array | None,
    unit: Array | float,
    a: Array,
    levels: Sequence[tuple[Array, float, Array | float]],
    average: Callable[..., Sequence[Array]],
) -> tuple[Array, Array, list[Array]]:
    """The law of total variance about a pivot, over parts: points, batches, devices.

    mean = pivot + E[d],  var = E[var_i + |d|^2] - |E[d]|^2,  with d = mean_i - pivot of the part i.

    Exact for every pivot, accurate for one within a few standard deviations. `a` is d in `unit`, a power
    of two. Each level (d, s, var_i) asks for a variance, of s * d. `average` takes the weighted averages.
    """
    offset, *seconds = average(a, *(abs2(d * s) + var for d, s, var in levels))
    return pooled(
        pivot, unit, offset, [(second, s) for second, (_, s, _) in zip(seconds, levels, strict=True)]
    )


def pooled(
    pivot: Array | None, unit: Array | float, offset: Array, seconds: Sequence[tuple[Array, float]]
) -> tuple[Array, Array, list[Array]]:
    """The mean as a pair, whose sum holds it to twice the precision, and the variances."""
    mean, low = (offset, jnp.zeros_like(offset)) if pivot is None else two_sum(times(pivot, unit), offset)
    variances = [_less(second, abs2(offset * s)) for second, s in seconds]
    back = 1 / unit
    return times(mean, back), times(low, back), variances


def _less(second: Array, square: Array) -> Array:
    """second - square; 0 where it is lost in rounding, so that a constant has no variance at all."""
    var = second - square
    return jnp.where(var <= square * 2.0**-22, jnp.zeros_like(var), var)


def across(names: devices.Names, s: Sample, *, centered: bool, equal: bool) -> Sample:
    """The same law over devices: exact also where they saw different weights, or nothing."""
    if not names.names:
        return s

    def averages(*values: Array) -> list[Array]:
        """The devices' weight and weighted averages, in one collective; equal weights do not travel."""
        if equal:
            return [s.weight * devices.size(names), *devices.pmean(names, values)]
        weight, *sums = devices.psum(names, [s.weight, *(s.weight.astype(v.dtype) * v for v in values)])
        return [weight, *(divide(v, weight) for v in sums)]

    if not centered:  # second moments about 0 average linearly
        weight, var, tiny = averages(s.var, s.tiny)
        return s._replace(var=var, tiny=tiny, weight=weight)
    weight, middle = averages(s.mean * HEADROOM)
    middle = middle / HEADROOM
    d = center(s.mean, middle, unit=HEADROOM) + s.low * HEADROOM
    levels = [(d, 1 / HEADROOM, s.var), (d, shrink(d.dtype) / HEADROOM, s.tiny)]
    mean, low, variances = pool(middle, HEADROOM, d, levels, lambda *v: averages(*v)[1:])
    return Sample(mean, low, variances[0], variances[1], weight)
