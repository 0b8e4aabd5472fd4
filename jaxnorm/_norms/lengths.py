"""Vectors of a given length: RMS norm in other units."""

import math
from collections.abc import Iterable
from typing import Any

from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import times, wide
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error
from jaxnorm._core.recompute import remat, widened
from jaxnorm._norms.arguments import arguments, shared
from jaxnorm._norms.sample import rms_norm
from jaxnorm._norms.weights import weight_norm


@compiled
def scale_norm(
    x: ArrayLike,
    *,
    scale: ArrayLike,
    axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-10,
    dtype: DTypeLike | None = None,
) -> Array:
    """Scale norm: every vector by its own length, times one learned number.

    y = scale * x * rsqrt(sum(|x|^2) + epsilon), with the sum over `axis`.

    RMS norm, whose scale is one number, sqrt(features) times as large: start from there. Nguyen, Salazar
    2019, arXiv:1910.05895.

    Args:
      x: numbers of any shape; integers count as float32. Arithmetic is float32 or wider, y has x's dtype.
      scale: a scalar, or any array that broadcasts to x.
      axis: the axes of a vector.
      epsilon: added to the square of the length, in x's units squared; a float >= 0, or a traced scalar.
      dtype: of y.

    Raises:
      ValueError: an axis that x does not have; a scale that does not broadcast; a negative epsilon.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.scale_norm(jnp.array([3.0, 4.0]), scale=2.0)
    Array([1.2, 1.6], dtype=float32)
    """
    x = check.numbers("x", x)
    axes = check.axes(axis, x)
    n = max(1, math.prod(x.shape[a] for a in axes))  # the sum is n times RMS norm's mean
    scale = check.numbers("scale", scale)
    scale = times(scale.astype(wide(scale.dtype)), n**-0.5)
    epsilon = check.epsilon(epsilon) / n
    a = arguments(x, axes, scale, None, epsilon, None, None, dtype, axis=axes)
    return a.normalize(centered=False)[0]


@compiled
def pixel_norm(
    x: ArrayLike,
    *,
    feature_axis: int = -1,
    epsilon: float | Array = 1e-8,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Pixel norm: the features of every place by their own mean square.

    y = x * rsqrt(mean(|x|^2) + epsilon), with the mean over the features.

    RMS norm without a scale, whose other arguments, dtypes and errors it has. Karras, Aila, Laine,
    Lehtinen 2017, arXiv:1710.10196.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.pixel_norm(jnp.array([[1.0, 7.0]]))
    Array([[0.2, 1.4]], dtype=float32)
    """
    x = check.numbers("x", x)
    axis = check.axes((feature_axis,), x, "feature_axis")
    return rms_norm(x, axis=axis, **shared(None, None, epsilon, where, axis_name, dtype))


@compiled
def weight_demodulate(
    kernel: ArrayLike,
    style: ArrayLike,
    *,
    epsilon: float | Array = 1e-8,
    dtype: DTypeLike | None = None,
) -> Array:
    """Weight demodulation: a kernel for every sample, whose outputs keep unit variance.

    v = kernel * style, w = v * rsqrt(sum(v^2) + epsilon), with the sum over all axes but the last: instance
    norm by expected statistics instead of the activation's own. Karras et al. 2019, arXiv:1912.04958.

    Args:
      kernel: [..., inputs, outputs], as of a Dense or a Conv.
      style: [samples, inputs], a factor for every input.
      epsilon: added to the square of the length; >= 0.
      dtype: of w; by default kernel's.

    Returns:
      [samples, *kernel's shape]: use it under `jax.vmap`, or as a grouped convolution.

    Raises:
      ValueError: a style that does not fit kernel; a negative epsilon.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.weight_demodulate(jnp.array([[3.0], [2.0]]), jnp.array([[1.0, 2.0]]))
    Array([[[0.6],
            [0.8]]], dtype=float32)
    """
    kernel = check.numbers("kernel", kernel)
    style = check.numbers("style", style)
    if kernel.ndim < 2 or style.shape[1:] != kernel.shape[-2:-1]:
        problem = f"style of shape {style.shape} does not fit kernel, shape {kernel.shape}"
        remedy = "give kernel as [..., inputs, outputs] and style as [samples, inputs]"
        raise error(ValueError, problem, remedy)
    samples, inputs = style.shape
    factor = style.reshape(samples, *(1,) * (kernel.ndim - 2), inputs, 1)
    least = check.epsilon(epsilon)
    out = dtype or kernel.dtype

    @remat
    def demodulated(kernel: Array, factor: Array) -> Array:
        v = times(kernel[None], widened(factor))
        return weight_norm(v, feature_axis=(0, -1), epsilon=least, dtype=out)

    return demodulated(kernel, factor)
