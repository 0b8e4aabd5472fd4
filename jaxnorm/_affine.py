"""Affine: what moments, scale and bias do to x, in one pass over it, and the derivative of that."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, Maybe, center, minus, plus, times, wide
from jaxnorm._passes import apart, own, total, vectors

# 4 / the largest root mean square is a normal number, and a quarter of no scale that matters is subnormal.
_QUARTER = 0.25


class Affine(NamedTuple):
    """What meets x: y = (HEADROOM * (x - mean) - HEADROOM * low) * gain * scale + bias."""

    mean: Array | None  # written; None: 0
    low: Array | None  # None: 0
    gain: Array  # rsqrt(var + epsilon) / HEADROOM
    scale: Array | None


def gain(var: Array, epsilon: Array, unit: Array | None = None) -> Array:
    """rsqrt(var + epsilon) / HEADROOM, of a var in `unit`s; 0 where there is no spread to divide by."""
    least = epsilon.astype(var.dtype)
    spread = var + (least if unit is None else least * unit * unit)
    # the inverse of the largest deviations is subnormal, and flushed to 0, without HEADROOM
    size = jnp.full_like(var, 1 / HEADROOM) if unit is None else unit * (1 / HEADROOM)
    return jnp.where(spread == 0, jnp.zeros((), var.dtype), lax.rsqrt(spread) * size)


def gain_tangent(g: Array, dvar: Maybe) -> Maybe:
    """-gain / (var + epsilon) * dvar / 2, one factor at a time: rstd^3 underflows at std 1e15."""
    if dvar is None:
        return None
    rstd = g * HEADROOM
    # at the largest numbers rstd is flushed to 0, and dvar may be infinite
    change = jnp.where(rstd == 0, jnp.zeros_like(g), rstd * dvar)
    return -0.5 * change * rstd * g


def apply(x: Array, a: Affine, bias: Maybe, keep: Maybe, dtype: DTypeLike) -> Array:
    """y, in one pass over x. Where not `keep`, y is the bias."""
    inner, outer = _split(x, a)
    room: float | Array
    g, room = a.gain, HEADROOM
    if a.mean is None and outer is not None:  # no difference that could overflow, but a gain that is flushed
        g, room, outer = g * (HEADROOM / _QUARTER), 1.0, outer.astype(wide(x.dtype)) * _QUARTER
    elif a.mean is None:
        # only where needed, which XLA cannot know: it puts a constant into the gain, and flushes the product
        low = g < 1
        g, room = jnp.where(low, g, g * HEADROOM), jnp.where(low, HEADROOM, jnp.ones_like(g))
    mul = times(g, inner)
    shift, late = (bias, None) if outer is None else (None, bias)
    shift = plus(shift, minus(times(a.low, mul, HEADROOM)))
    room, mean, mul, shift = _before(x, room, times(a.mean, HEADROOM), mul, shift)
    y = plus(center(times(own(x, 3, wide(x.dtype)), room), mean, keep) * mul, shift)
    if outer is not None:
        (factor,) = _before(x, outer) if a.mean is None else [_met(x, outer, 1)]
        y = plus(y * factor, _met(x, late))
    return y.astype(dtype)


def apply_tangent(
    x: Array,
    a: Affine,
    dtype: DTypeLike,
    dx: Maybe,
    dmean: Maybe,
    dgain: Maybe,
    dscale: Maybe,
    dbias: Maybe,
) -> Array:
    """The linear map (dx, dmean, dgain, dscale, dbias) -> dy; None is an absent tangent.

    Everything small is combined BEFORE it meets x, in `along` and `plain`: the transpose then takes two
    x-sized sums and no more, of the cotangent and of its product with x - mean. The parts are passes of
    their own, and so are their transposes.
    """
    inner, outer = _split(x, a)
    rstd, drstd = a.gain * HEADROOM, times(dgain, HEADROOM)
    mul = times(rstd, inner)
    dmean, drstd = devices.vary_together([dmean, drstd], mul)
    along = times(drstd, inner)
    plain = minus(times(dmean, mul))
    if outer is None:
        along = plus(along, times(dscale, rstd))
        plain = plus(plain, dbias)
    plain = plus(plain, minus(times(along, a.low)))
    along, plain = devices.vary_together([along, plain], x)

    def centered(number: int) -> Array:
        return center(own(x, number, wide(x.dtype)), _met(x, a.mean, number - 2))

    def scaled(v: Maybe, number: int) -> Maybe:
        return v if outer is None else times(v, _met(x, outer, number))

    def tangent(v: Maybe) -> Maybe:
        return _met(x, v) if v is None or v.shape == x.shape else vectors(1, v.astype(wide(x.dtype)))[0]

    parts = [
        scaled(times(dx, _met(x, mul, 1)), 2),
        scaled(times(tangent(along), centered(5)), 3),
        scaled(tangent(plain), 4),
    ]
    if outer is not None:
        hat = plus(centered(7) * _met(x, rstd, 2), minus(_met(x, times(a.low, rstd))))
        parts += [times(tangent(dscale), hat), tangent(dbias)]
    return total([devices.spread(p, x) for p in parts if p is not None], dtype)


def _split(x: Array, a: Affine) -> tuple[Array | float, Array | None]:
    """scale as (inner, outer): multiplied into the gain, unless the product would be as large as x."""
    if a.scale is None:
        return 1.0, None
    crossed = jnp.broadcast_shapes(a.gain.shape, a.scale.shape) == x.shape
    return (1.0, a.scale) if crossed else (a.scale, None)


def _met(x: Array, v: Maybe, number: int = 0) -> Maybe:
    """What meets x, in the dtype of the arithmetic; for the pass `number` alone where others use it, too."""
    if not isinstance(v, Array):
        return v
    dtype = wide(x.dtype)
    if v.shape == x.shape:
        return own(v, number or 1, dtype)
    v = v.astype(dtype)
    return apart(number, v)[0] if number else v


def _before(x: Array, *vs: Maybe) -> list[Maybe]:
    """What meets x in one pass, and is computed before it: all that is small at once."""
    dtype = wide(x.dtype)
    small = [isinstance(v, Array) and v.shape != x.shape for v in vs]
    written = iter(vectors(1, *(v.astype(dtype) for v, s in zip(vs, small, strict=True) if s)))
    return [next(written) if s else _met(x, v) for v, s in zip(vs, small, strict=True)]
