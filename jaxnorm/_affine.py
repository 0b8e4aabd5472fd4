"""Affine: what moments, scale and bias do to x, in one pass over it, and the derivative of that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, Maybe, center, choose, minus, plus, times, wide
from jaxnorm._origin import Origin
from jaxnorm._passes import apart, own, total


class Affine(NamedTuple):
    """y = (HEADROOM * (x - mean) - HEADROOM * low) * gain * scale + bias; None is 0, and a scale of 1."""

    mean: Maybe
    low: Maybe
    gain: Array  # rsqrt(var + epsilon) / HEADROOM
    scale: Maybe


class Outside(NamedTuple):
    """A scale and a bias that meet x by themselves: combined with the moments they would be as large as x."""

    scale: Maybe
    bias: Maybe


def split(x: Array, stats: Sequence[Any], scale: Maybe, bias: Maybe) -> tuple[Maybe, Maybe, Outside]:
    """scale and bias that are combined with moments of the shape `stats`, and those that are not."""

    def crossed(v: Maybe) -> bool:
        return v is not None and tuple(stats) != x.shape == jnp.broadcast_shapes(stats, v.shape)

    if crossed(scale):
        return None, None, Outside(scale, bias)
    return (scale, None, Outside(None, bias)) if crossed(bias) else (scale, bias, Outside(None, None))


def split_tangents(
    x: Array, stats: Sequence[Any], outside: Outside, dscale: Maybe, dbias: Maybe
) -> tuple[Maybe, Maybe, Outside]:
    """The tangents of scale and bias, split as they were: a bias is added after a scale that is outside."""
    if outside.scale is not None:
        return None, None, Outside(dscale, dbias)
    return split(x, stats, dscale, dbias)


def gain(var: Array, epsilon: Array, unit: Array | None = None) -> Array:
    """rsqrt(var + epsilon) / HEADROOM, of a var in `unit`s; 0 where there is no spread to divide by."""
    least = epsilon.astype(var.dtype)
    spread = plus(var, least if unit is None else times(unit, least, unit))
    # the inverse of the largest deviations is subnormal, and flushed to 0, without HEADROOM
    size = 1 / HEADROOM if unit is None else times(unit, 1 / HEADROOM)
    return choose(spread == 0, 0, times(lax.rsqrt(spread), size))


def gain_tangent(g: Array, dvar: Maybe) -> Maybe:
    """-gain / (var + epsilon) * dvar / 2, one factor at a time: rstd^3 underflows at std 1e15."""
    if dvar is None:
        return None
    rstd = times(g, HEADROOM)
    # of deviations this large rstd^2 underflows, whatever dvar is: infinite, at the largest numbers
    change = choose(rstd < 2.0**30 * float(jnp.finfo(rstd.dtype).tiny), 0, times(rstd, dvar))
    return times(change, -0.5, rstd, g)


# ---------------------------------------------------------------- y


class Pass(NamedTuple):
    """What meets x in the pass that writes y = (room * x - mean) * mul + shift; None is the Origin's room."""

    room: Maybe
    mean: Maybe
    mul: Array
    shift: Maybe


def before(a: Affine, at: Origin, bias: Maybe, crossed: bool, dtype: DTypeLike) -> Pass:
    """All that is small, in the dtype of the arithmetic; `crossed` is a scale that meets x by itself."""
    g, room = times(a.gain, at.gain_factor), None
    if a.mean is None and not crossed:
        # only where needed, which XLA cannot know: it puts a constant into the gain, and flushes the product
        low = g < 1
        g, room = choose(low, g, g * HEADROOM), choose(low, HEADROOM, jnp.ones_like(g))
    mul = times(g, 1.0 if a.scale is None else a.scale)
    shift = plus(bias, minus(times(at.low, mul)))
    return Pass(*(_wider(v, dtype) for v in (room, at.mean, mul, shift)))


def apply(x: Array, p: Pass, at: Origin, outside: Outside, keep: Maybe, dtype: DTypeLike) -> Array:
    """y, in one pass over x. Where not `keep`, y is the bias."""
    room = at.room if p.room is None else p.room
    y = plus(center(times(own(x, 3, wide(x.dtype)), room), p.mean, keep) * p.mul, p.shift)
    if outside.scale is not None:
        y = y * times(_met(x, outside.scale, 1), at.scale_factor)
    return plus(y, _met(x, outside.bias)).astype(dtype)


# ---------------------------------------------------------------- its derivative


def combined(
    a: Affine, dmean: Maybe, dgain: Maybe, dscale: Maybe, dbias: Maybe, dtype: DTypeLike
) -> tuple[Maybe, Maybe]:
    """What x - mean is multiplied by, and what is added, in the tangent of y.

    All that is small is combined BEFORE it meets x: the transpose then takes two x-sized sums and no more,
    of the cotangent and of its product with x - mean.
    """
    inner = 1.0 if a.scale is None else a.scale
    rstd, drstd = times(a.gain, HEADROOM), times(dgain, HEADROOM)
    mul = times(rstd, inner)
    dmean, drstd = devices.vary_together([dmean, drstd], mul)
    along = plus(times(drstd, inner), times(dscale, rstd))
    plain = plus(minus(times(dmean, mul)), dbias)
    plain = plus(plain, minus(times(along, a.low)))
    return _wider(along, dtype), _wider(plain, dtype)


def apply_tangent(
    x: Array,
    a: Affine,
    outer: Maybe,
    y: Any,
    dx: Maybe,
    along: Maybe,
    plain: Maybe,
    d: Outside,
    last: bool = False,
    shift: Maybe = None,
) -> Maybe:
    """The linear map (dx, along, plain, d) -> dy, of the type of `y`; None is an absent tangent.

    The parts are passes of their own, and so are their transposes; `last`: see `own`. `shift` is added before
    a scale that is outside.
    """
    mul = times(a.gain, HEADROOM, 1.0 if a.scale is None else a.scale)
    along, plain = devices.vary_together([along, plain], x)

    def centered(number: int, everywhere: bool = False) -> Array:
        return center(own(x, number, wide(x.dtype), everywhere=everywhere), _met(x, a.mean, number - 2))

    def scaled(v: Maybe, number: int) -> Maybe:
        return v if outer is None else times(v, _met(x, outer, number))

    parts = [
        scaled(times(dx, _met(x, mul, 1)), 2),
        scaled(times(_met(x, along), centered(5)), 3),
        scaled(_met(x, plain), 4),
        _met(x, d.bias),
    ]
    if outer is not None:
        hat = plus(centered(7, everywhere=last) * _met(x, mul, 2), minus(_met(x, times(a.low, mul))))
        hat = plus(hat, _met(x, shift))
        parts.append(times(_met(x, d.scale), hat))
    present = [devices.spread(p, y) for p in parts if p is not None]
    return total(present, y.dtype) if present else None


def _wider(v: Maybe, dtype: DTypeLike) -> Maybe:
    return v if v is None else v.astype(dtype)


def _met(x: Array, v: Maybe, number: int = 0) -> Maybe:
    """What meets x, in the dtype of the arithmetic; for the pass `number` alone where others use it, too."""
    if not isinstance(v, Array):
        return v
    dtype = wide(x.dtype)
    if v.shape == x.shape:
        return own(v, number or 1, dtype)
    v = v.astype(dtype)
    return apart(number, v)[0] if number else v
