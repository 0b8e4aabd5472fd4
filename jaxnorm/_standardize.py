"""Standardize: (x - mean) * rsqrt(var + epsilon) * scale + bias, and its inverse."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import _checks as check
from jaxnorm import _devices as devices
from jaxnorm._arithmetic import HEADROOM, Maybe, center, minus, plus, times, wide
from jaxnorm._eager import compiled
from jaxnorm._moments import Moments
from jaxnorm._passes import apart, copies, own, total, vectors, written
from jaxnorm._rule import with_tangent
from jaxnorm._statistics import usable


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
    g, room = a.gain, HEADROOM
    if a.mean is None:
        # only where needed, which XLA cannot know: it puts a constant into the gain, and flushes the product
        low = g < 1
        g, room = jnp.where(low, g, g * HEADROOM), jnp.where(low, HEADROOM, jnp.ones_like(g))
    mul = times(g, inner)
    shift, late = (bias, None) if outer is None else (None, bias)
    shift = plus(shift, minus(times(a.low, mul, HEADROOM)))
    mean, room, mul, shift, outer, late = _meet(x, 10, a.mean, room, mul, shift, outer, late)
    y = plus(center(_wide(x, 10), mean, keep, room) * mul, shift)
    return (y if outer is None else plus(y * outer, late)).astype(dtype)


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
        return center(_wide(x, number), *_meet(x, number, a.mean))

    def scaled(v: Maybe, number: int) -> Maybe:
        return v if outer is None else times(v, *_meet(x, number, outer))

    # vectors, the tangents apart from what is known
    (along,), (plain,) = (vectors(x, n, _widened(x, v)) for n, v in ((12, along), (13, plain)))
    parts = [
        scaled(times(dx, *_meet(x, 11, mul)), 11),
        None if along is None else scaled(along * centered(12), 12),
        scaled(plain, 13),
    ]
    if outer is not None:
        size, low = _meet(x, 14, rstd, times(a.low, rstd))
        hat = plus(centered(14) * size, minus(low))
        parts += [times(hat, *_meet(x, 14, dscale)), *_meet(x, 15, dbias)]
    return total([devices.spread(p, x) for p in parts if p is not None], dtype)


def _split(x: Array, a: Affine) -> tuple[Array | float, Array | None]:
    """scale as (inner, outer): multiplied into the gain, unless the product would be as large as x."""
    if a.scale is None:
        return 1.0, None
    crossed = jnp.broadcast_shapes(a.gain.shape, a.scale.shape) == x.shape
    return (1.0, a.scale) if crossed else (a.scale, None)


def _wide(x: Array, number: int) -> Array:
    """x, or an array of its size, in the dtype of the arithmetic on x, for the pass `number`."""
    return own(x, number, wide(x.dtype))


def _widened(x: Array, v: Maybe) -> Maybe:
    return v.astype(wide(x.dtype)) if isinstance(v, Array) else v


def _meet(x: Array, number: int, *vs: Maybe) -> list[Maybe]:
    """What meets x in the pass `number`, in the dtype of the arithmetic on x."""
    small = [None if not isinstance(v, Array) or v.shape == x.shape else _widened(x, v) for v in vs]
    return [
        _wide(v, number) if s is None and isinstance(v, Array) else v if s is None else s
        for v, s in zip(vs, apart(x, number, *small), strict=True)
    ]


# ---------------------------------------------------------------- the op with given Moments


class _Given(NamedTuple):
    y: Array
    gain: Array


def _given(
    dtype: Any, x: Array, mean: Array, var: Array, scale: Any, bias: Any, epsilon: Array, where: Any
) -> _Given:
    g = gain(var, epsilon)
    return _Given(apply(x, Affine(written(mean), None, g, scale), bias, None, dtype), g)


def _given_tangent(dtype: Any, args: Any, out: _Given) -> Any:
    def linear(kept: Any, dx: Any, dmean: Any, dvar: Any, dscale: Any, dbias: Any, *_: Any) -> Any:
        x, affine, where = kept
        dgain = gain_tangent(affine.gain, dvar)
        dx = None if dx is None else copies(dx, 1, wide(x.dtype))[0]
        x = usable(x, where, affine.mean)
        return apply_tangent(x, affine, dtype, dx, dmean, dgain, dscale, dbias), dgain

    x, mean, _, scale, *_, where = args
    return linear, (x, Affine(mean, None, out.gain, scale), where)


_standardize = with_tangent(_given, _given_tangent)


def given(
    x: Array,
    m: Moments,
    scale: Maybe,
    bias: Maybe,
    epsilon: Array,
    *,
    dtype: DTypeLike | None,
    where: Maybe = None,
) -> Array:
    """y by Moments of as many axes as x. `where` masks nothing but a NaN in x from the derivatives."""
    return _standardize(jnp.dtype(dtype or x.dtype), x, *known(m), scale, bias, epsilon, where).y


def known(m: Moments) -> tuple[Array, Array]:
    """mean and var; those of weight 0 are ignored, whatever they hold, and 0 and 1 are the identity."""
    there = m.weight > 0
    return jnp.where(there, m.mean, jnp.zeros_like(m.mean)), jnp.where(there, m.var, jnp.ones_like(m.var))


# ---------------------------------------------------------------- public


@compiled
def standardize(
    x: ArrayLike,
    m: Moments,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-5,
    dtype: DTypeLike | None = None,
) -> Array:
    """y = (x - mean) * rsqrt(var + epsilon) * scale + bias, by given Moments.

    Computed in float32 or wider and rounded once, to `dtype` or else to x's dtype (integers: float32).
    Reverse mode keeps x and no other array of its size. Moments of weight 0 are ignored: mean 0, var 1.

    Args:
      x: numbers of any shape.
      m: Moments that broadcast to x, for instance `moments(x, axis, keepdims=True)`; y is differentiable
        in them.
      scale, bias: arrays that broadcast to x.
      epsilon: added to the variance, in x's units squared; a float >= 0.
      dtype: of y.

    Raises:
      ValueError: an array that does not broadcast to x; a negative epsilon.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> jn.standardize(x, jn.moments(x, axis=0), epsilon=0.0)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    array, stored, factor, shift, least = _arguments("standardize", "x", x, m, scale, bias, epsilon)
    return given(array, stored, factor, shift, least, dtype=dtype)


@compiled
def unstandardize(
    y: ArrayLike,
    m: Moments,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-5,
    dtype: DTypeLike | None = None,
) -> Array:
    """x = (y - bias) / scale * sqrt(var + epsilon) + mean: the inverse of `standardize`.

    The same arguments as `standardize`. A scale of 0 has no inverse, and gives inf or NaN.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> m = jn.moments(x, axis=0)
    >>> bool(jnp.allclose(jn.unstandardize(jn.standardize(x, m), m), x))
    True
    """
    array, stored, factor, shift, least = _arguments("unstandardize", "y", y, m, scale, bias, epsilon)

    @partial(jax.checkpoint, prevent_cse=False)  # keeps y in its own dtype
    def inverse(y: Array, m: Moments, scale: Maybe, bias: Maybe) -> Array:
        mean, var = known(m)
        x = plus(y.astype(wide(y.dtype)), minus(bias))
        if scale is not None:
            x = times(x, 1 / scale.astype(wide(scale.dtype)))
        return plus(times(x, jnp.sqrt(var + least.astype(var.dtype))), mean).astype(dtype or y.dtype)

    return inverse(array, stored, factor, shift)


def _arguments(function: str, name: str, x: Any, m: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
    x = check.numbers(function, name, x)
    fields = (
        check.broadcastable(function, f"m.{f}", check.numbers(function, f"m.{f}", v), x, name)
        for f, v in zip(("mean", "var", "weight"), m, strict=True)
    )
    scale, bias = (check.affine(function, f, v, x, None, name) for f, v in (("scale", scale), ("bias", bias)))
    return x, Moments(*fields), scale, bias, check.epsilon(function, epsilon)
