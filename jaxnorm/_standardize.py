"""Standardize: (x - mean) * rsqrt(var + epsilon) * scale + bias, and its inverse."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import _checks as check
from jaxnorm._affine import Affine, apply, apply_tangent, before, combined, gain, gain_tangent, split
from jaxnorm._arithmetic import HEADROOM, Maybe, choose, minus, plus, times, wide
from jaxnorm._eager import compiled
from jaxnorm._moments import Moments
from jaxnorm._origin import Origin
from jaxnorm._passes import copies, together
from jaxnorm._remat import bounded
from jaxnorm._rule import with_tangent
from jaxnorm._statistics import usable

# ---------------------------------------------------------------- the op with given Moments


class _Given(NamedTuple):
    y: Array
    gain: Array


def _given(
    dtype: Any, x: Array, mean: Array, var: Array, scale: Any, bias: Any, epsilon: Array, where: Any
) -> _Given:
    shape = jnp.broadcast_shapes(mean.shape, var.shape)
    scale, bias, outside = split(x, shape, scale, bias)
    # moments of elements are not small
    prepared = _before if shape == x.shape else partial(together, _before)
    g, p = prepared(mean, var, scale, bias, epsilon, dtype=wide(x.dtype))
    return _Given(apply(x, p, Origin(HEADROOM), outside, None, dtype), g)


def _before(mean: Array, var: Array, scale: Any, bias: Any, epsilon: Array, *, dtype: Any) -> Any:
    g = gain(var, epsilon)
    at = Origin(HEADROOM, times(mean, HEADROOM))
    return g, before(Affine(mean, None, g, scale), at, bias, False, dtype)


def _given_tangent(dtype: Any, args: Any, out: _Given) -> Any:
    def linear(kept: Any, dx: Any, dmean: Any, dvar: Any, dscale: Any, dbias: Any, *_: Any) -> Any:
        x, affine, where = kept
        shape = jnp.broadcast_shapes(affine.mean.shape, affine.gain.shape)
        scale, _, outside = split(x, shape, affine.scale, None)
        affine = affine._replace(scale=scale)
        dgain = gain_tangent(affine.gain, dvar)
        dx = None if dx is None else copies(dx, 1, wide(x.dtype))[0]
        x = usable(x, where, affine.mean)
        dscale, dbias, d = split(x, shape, dscale, dbias)
        along, plain = combined(affine, dmean, dgain, dscale, dbias, wide(x.dtype))
        return apply_tangent(x, affine, outside.scale, dtype, dx, along, plain, d), dgain

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
    return _standardize(jnp.dtype(dtype or x.dtype), bounded(x), *known(m), scale, bias, epsilon, where).y


def known(m: Moments) -> tuple[Array, Array]:
    """mean and var; those of weight 0 are ignored, whatever they hold, and 0 and 1 are the identity."""
    there = m.weight > 0
    return choose(there, m.mean, 0), choose(there, m.var, 1)


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
