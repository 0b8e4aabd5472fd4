"""Standardize: (x - mean) * rsqrt(var + epsilon) * scale + bias, and its inverse."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import plus, times, wide
from jaxnorm._base.compilation import compiled
from jaxnorm._core.normalize import mean_and_var, normalize_by
from jaxnorm._core.types import Moments


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
    return normalize_by(*_arguments("x", x, m, scale, bias, epsilon), dtype=dtype)


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
    y, m, scale, bias, least = _arguments("y", y, m, scale, bias, epsilon)
    out = dtype or y.dtype

    # Reverse mode keeps y in its own dtype and recomputes the rest: a bfloat16 y leaves no float32 copy.
    @partial(jax.checkpoint, prevent_cse=False)
    def inverse(y: Array, m: Moments, scale: Array | None, bias: Array | None) -> Array:
        mean, var = mean_and_var(m)
        x = plus(y.astype(wide(y.dtype)), None if bias is None else -bias)
        if scale is not None:
            x = times(x, 1 / scale.astype(wide(scale.dtype)))
        return plus(times(x, jnp.sqrt(var + least.astype(var.dtype))), mean).astype(out)

    return inverse(y, m, scale, bias)


def _arguments(
    name: str,
    x: ArrayLike,
    m: Moments,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    epsilon: float | Array,
) -> tuple[Array, Moments, Array | None, Array | None, Array]:
    """The arguments of both, checked, as arrays of as many axes as x, which is called `name`."""
    x = check.numbers(name, x)
    fields = (
        check.broadcastable(f"m.{f}", check.numbers(f"m.{f}", v), x, name)
        for f, v in zip(("mean", "var", "weight"), m, strict=True)
    )
    scale, bias = (check.affine(f, v, x, None, name) for f, v in (("scale", scale), ("bias", bias)))
    return x, Moments(*fields), scale, bias, check.epsilon(epsilon)
