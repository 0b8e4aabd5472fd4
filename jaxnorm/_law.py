"""The law of total variance, by which all Moments combine: those of points, of batches, of devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, abs2, center, choose, divide, shrink, times, two_sum


class Sample(NamedTuple):
    """Moments at full accuracy, whatever the size of the data; [*stats], the reduced axes of size 1."""

    mean: Array
    low: Array  # mean + low is the mean to twice the precision
    var: Array  # in units of 1 / unit^2, where it does not overflow
    unit: Array  # a power of two
    back: Array  # 1 / unit
    weight: Any  # a number without weights: it never travels

    def weights(self) -> Array:
        """The weight of each statistic, as an array."""
        return jnp.broadcast_to(jnp.asarray(self.weight, self.var.dtype), self.var.shape)

    def variance(self) -> Array:
        """The variance of the points themselves: infinite where that overflows."""
        # one factor at a time: the square of both may overflow
        return times(self.var, self.back, self.back)


def pool(
    pivot: Array,
    unit: float,
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
    mean, low, variances = pooled(
        times(pivot, unit), offset, [(second, s) for second, (_, s, _) in zip(seconds, levels, strict=True)]
    )
    return mean / unit, low / unit, variances


def pooled(
    pivot: Array | None, offset: Array, seconds: Sequence[tuple[Array, float]]
) -> tuple[Array, Array, list[Array]]:
    """The mean as a pair, whose sum holds it to twice the precision, and the variances."""
    mean, low = (offset, jnp.zeros_like(offset)) if pivot is None else two_sum(pivot, offset)
    return mean, low, [variance(second, offset * s) for second, s in seconds]


def variance(second: Array, offset: Array) -> Array:
    """E|d|^2 - |E[d]|^2; 0 where it is lost in rounding, so that a constant has no variance at all."""
    square = abs2(offset)
    var = second - square
    return choose(var <= times(square, 2.0**-22), 0, var)


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

    less = shrink(s.var.dtype)  # devices may differ in their units, and this suits all of them
    var, tiny = s.variance(), s.var * jnp.square(less * s.back)
    if not centered:  # second moments about 0 average linearly
        weight, var, tiny = averages(var, tiny)
        return Sample(*in_units(s.mean, s.low, var, tiny), weight)
    weight, middle = averages(s.mean * HEADROOM)
    middle = middle / HEADROOM
    d = center(s.mean, middle, unit=HEADROOM) + s.low * HEADROOM
    levels = [(d, 1 / HEADROOM, var), (d, less / HEADROOM, tiny)]
    mean, low, (var, tiny) = pool(middle, HEADROOM, d, levels, lambda *v: averages(*v)[1:])
    return Sample(*in_units(mean, low, var, tiny), weight)


def in_units(mean: Array, low: Array, var: Array, tiny: Array) -> tuple[Array, Array, Array, Array, Array]:
    """A Sample but for its weight, of a variance that is given times the square of `shrink`, too."""
    less, large, one = shrink(var.dtype), jnp.isinf(var), jnp.ones_like(var)
    unit, back = choose(large, less, one), choose(large, 1 / less, one)
    return mean, low, choose(large, tiny, var), unit, back
