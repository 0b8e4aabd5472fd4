"""Backends: the statistics of one device's points, each taken as it is cheapest there.

All are as accurate as two passes over x: sums about 0, or about a value known beforehand, are taken again
where they do not tell a variance.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, Maybe, abs2, choose, divide, shrink, times, wide
from jaxnorm._law import variance
from jaxnorm._over import Over
from jaxnorm._passes import few, own
from jaxnorm._pivot import pivot
from jaxnorm._pivot import unit as unit_of
from jaxnorm._rows import are_rows, united
from jaxnorm._sums import Points

# The relative error of E|d|^2 - |E[d]|^2 is some 3e-7 * (1 + |E[d]|^2 / var): sums are retaken where var is
# less than this part of |E[d]|^2.
_FAR = 0.25


def points_of(over: Over, x: Array, where: Maybe, weight: Maybe) -> Points:
    """The points of x, where there is a weight; without it a number, of all."""
    return Points(over, x, where, over.size(x.shape) if weight is None else weight)


def accurate(over: Over, squares: Array, x: Array, *others: Any) -> Sequence[Array]:
    """About a pivot, in one read of x; with weights, or where x is small, in two: one finds the pivot."""
    _, where, weight, _ = others
    points = points_of(over, x, where, weight)
    if not over.centered:
        return points.about_zero()
    if where is None and not few(x):
        middle, size = pivot(x, over)
    else:
        wider = x.astype(wide(x.dtype))
        n, sums = points.totals(1, wider * HEADROOM, jnp.abs(wider) * HEADROOM)
        middle, size = (divide(v, n, HEADROOM) for v in sums)
    return points.about(1, middle, *unit_of(size))[:-1]


def on_tpu(over: Over, squares: Array, x: Array, *others: Any) -> Sequence[Array]:
    """The same, but of rows, whose pivot is a tile more of each to read; and a guess is tried first.

    Sums about what is known beforehand are taken where x is written.
    """
    total, where, _, guess = others
    if not over.centered or where is not None or few(x):
        return accurate(over, squares, x, *others)
    if are_rows(x, over):
        return united(x)
    if guess is None:
        return accurate(over, squares, x, *others)
    s = points_of(over, x, None, None).about(1, guess.astype(total.dtype), *unit_of(jnp.abs(guess)))
    # a NaN is not good, whatever it is compared with
    good = (s.var >= _FAR * abs2(times(s.mean - guess, s.unit))) & jnp.isfinite(s.var)
    found = [devices.vary(v, devices.varying(squares)) for v in s[:-1]]
    return lax.cond(
        jnp.all(good),
        lambda _, found: found,
        lambda x, _: list(accurate(over, squares, x, None, None, None, None)),
        *(x, found),
    )


def on_cpu(
    over: Over, squares: Any, x: Array, total: Maybe, where: Maybe, weight: Maybe, _guess: Maybe
) -> Sequence[Array]:
    """XLA:CPU's cheapest sums, about 0; where that is not good enough, again about the mean just found."""
    n = points_of(over, x, where, weight).weight

    def units(squares: Array) -> tuple[Array, Array]:
        """A power of two, and its inverse."""
        less, large, one = shrink(squares.dtype), squares == jnp.inf, jnp.ones_like(squares)
        return choose(large, less, one), choose(large, 1 / less, one)

    def again(x: Array, total: Maybe, squares: Array) -> list[Maybe]:
        points = points_of(over, x, where, weight)
        middle = None
        if over.centered:  # with room, as the sum itself may have overflowed
            _, (room,) = points.totals(1, own(x, 1, wide(x.dtype)) * HEADROOM)
            middle = divide(room, n, HEADROOM)
        shift, _, *sums = points.around(2, middle, units(squares)[0])
        return bare(shift, *sums)

    def kept(_: Array, total: Maybe, squares: Array) -> list[Maybe]:
        return bare(total, total, squares)  # for a shift, which is not used then

    def bare(*vs: Maybe) -> list[Maybe]:
        """Without the axes of size 1, by which XLA:CPU tells layouts apart that are one, and copies."""
        return [v if v is None else jnp.squeeze(v, over.axes) for v in vs]

    def averaged(v: Array) -> Array:
        """Not by a division of a number, for which XLA:CPU makes a kernel of its own."""
        return times(v, 1 / n) if isinstance(n, int) else divide(v, n)

    poor = _poor(total, squares, n)
    found: Any = lax.cond(poor, again, kept, x, total, squares)
    unit, back = units(squares)
    shift, total, squares = (v if v is None else jnp.expand_dims(v, over.axes) for v in found)
    second, zero = averaged(squares), jnp.zeros_like(squares)
    if shift is None:
        return zero, zero, variance(second, zero), unit, back
    # a pair by choice: a sum that several loops took would not be rounded the same way in all of them
    offset = averaged(total)
    mean, low = choose(poor, shift, offset), choose(poor, offset, 0)
    return times(mean, back), times(low, back), variance(second, offset), unit, back


def _poor(total: Maybe, squares: Array, n: Any) -> Array:
    """Whether sums about 0 overflow somewhere, or do not tell a variance."""
    far = large = squares == jnp.inf
    if total is not None:
        mean = divide(total, n)
        far = variance(divide(squares, n), mean) < _FAR * abs2(mean)
    # both at once: XLA:CPU takes one such sum in several kernels
    far, large = lax.reduce(
        (far, large), (False, False), lambda a, b: (a[0] | b[0], a[1] | b[1]), range(far.ndim)
    )
    return far | large
