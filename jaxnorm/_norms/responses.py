"""Normalizers that are not Moments: a response is divided by a norm of its neighbours."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import abs2, choose, divide, plus, times
from jaxnorm._base.compilation import compiled
from jaxnorm._base.sharding import sharded_as, whole
from jaxnorm._core.moments import Moments, moments
from jaxnorm._core.normalize import normalize_by
from jaxnorm._core.recompute import bias_if_empty, remat, residual, root
from jaxnorm._norms.arguments import arguments


@compiled
def unit_norm(
    x: ArrayLike,
    *,
    axis: int | Iterable[int] = -1,
    ord: int = 2,
    epsilon: float | Array = 1e-12,
) -> Array:
    """Unit norm: every vector divided by its own length.

    y = x / max(||x||, epsilon), with ||x|| = sqrt(sum |x|^2) (`ord=2`) or sum |x| (`ord=1`) over `axis`.

    The zero vector gives 0, with the gradient of x / epsilon, as PyTorch's `F.normalize` (`epsilon=0`: of x).
    float16 cannot hold 1 / epsilon: a gradient of x beyond its largest number is that number, not inf.

    Args:
      x: numbers of any shape; integers count as float32. Arithmetic is float32 or wider, y has x's dtype.
      axis: the axes of a vector.
      ord: 2 or 1.
      epsilon: the smallest length to divide by, in x's units.

    Raises:
      ValueError: another ord; an axis that x does not have; a negative epsilon.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.unit_norm(jnp.array([3.0, 4.0]))
    Array([0.6, 0.8], dtype=float32)
    """
    x = check.numbers("x", x)
    axes = check.axes(axis, x)
    check.choice("ord", ord, (1, 2))
    least = check.epsilon(epsilon)

    @remat
    def normalized(v: Array) -> Array:
        size = jnp.abs(v) if ord == 1 else abs2(v)
        length = jnp.sum(size, axes, keepdims=True)
        if ord == 2:
            length = root(length)
        # 0 / 0 is 0: epsilon may be 0
        return divide(v, jnp.maximum(length, least.astype(length.dtype))).astype(x.dtype)

    return normalized(x)


@compiled
def local_response_norm(
    x: ArrayLike,
    *,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    feature_axis: int = -1,
) -> Array:
    """Local response norm: every channel divided by the energy of the channels beside it.

    y = x / (k + alpha / size * sum |x|^2)^beta, with the sum over a window of `size` channels, of which
    `size // 2` come before the channel; beyond the first and the last channel it sees zeros. As PyTorch's
    `F.local_response_norm`. Krizhevsky, Sutskever, Hinton 2012.

    Args:
      x: numbers of any shape; integers count as float32. Arithmetic is float32 or wider, y has x's dtype.
      size: channels in the window, at least 1.
      alpha, beta, k: as in the formula.
      feature_axis: the axis of the channels.

    Raises:
      ValueError: size below 1; an axis that x does not have.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.local_response_norm(jnp.array([1.0, 2.0, 0.0]), size=1, alpha=1.0, beta=1.0)
    Array([0.5, 0.4, 0. ], dtype=float32)
    """
    x = check.numbers("x", x)
    (f,) = check.axes((feature_axis,), x, "feature_axis")
    size = check.integer("size", size, least=1, remedy="choose 1 or more")

    @remat
    def normalized(v: Array) -> Array:
        window = [size if a == f else 1 for a in range(x.ndim)]
        padding = [(size // 2, (size - 1) // 2) if a == f else (0, 0) for a in range(x.ndim)]
        squares = whole(abs2(v), f)
        zero = np.zeros((), squares.dtype)  # a constant: only so JAX knows the derivative of the sum
        energy = lax.reduce_window(squares, zero, lax.add, window, [1] * x.ndim, padding)
        energy = sharded_as(energy, jax.typeof(v))
        base = k + alpha / size * energy
        base = choose(base == 0, 1, base)  # only if k is 0, and all of the window, too
        return (v / (base**beta).astype(v.dtype)).astype(x.dtype)

    return normalized(x)


@compiled
def filter_response_norm(
    x: ArrayLike,
    *,
    threshold: ArrayLike | None = None,
    learned_epsilon: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Filter response norm: every channel of every sample by its own mean square, then a learned threshold.

    y = max(x * rsqrt(mean(|x|^2) + epsilon + |learned_epsilon|) * scale + bias, threshold), with the mean
    over all axes but the batch, axis 0, and the features.

    The other arguments, dtypes and errors are those of `instance_norm`. Singh, Krishnan 2019,
    arXiv:1911.09737.

    Args:
      threshold: of the thresholded linear unit, of the feature axes' sizes, or any that broadcasts to x;
        None: no threshold.
      learned_epsilon: the same, for features that are constant or of one place; the paper starts at 1e-4.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[[1.0], [-7.0]]])  # one sample, two places, one channel
    >>> jn.filter_response_norm(x, threshold=0.0).ravel()
    Array([0.2, 0. ], dtype=float32)
    """
    a = arguments(x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, per_sample=True)
    if threshold is not None:
        check.real(a.x)
    least, learned = a.parameter("threshold", threshold), a.parameter("learned_epsilon", learned_epsilon)

    @remat
    def normalized(x: Array, scale: Any, bias: Any, least: Any, learned: Any, where: Any) -> Array:
        m = residual(moments(x, a.axes, where=where, about=0, keepdims=True, axis_name=axis_name))
        m = m._replace(var=plus(m.var, None if learned is None else jnp.abs(learned)))
        y = normalize_by(x, m, scale, bias, a.epsilon, dtype=a.dtype, where=where)
        y = bias_if_empty(y, m.weight, bias, where)
        return y if least is None else jnp.maximum(y, least.astype(y.dtype))

    return normalized(a.x, a.scale, a.bias, least, learned, a.where)


@compiled
def global_response_norm(
    x: ArrayLike,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int = -1,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Global response norm: the channels of a sample compete by their energies.

    y = x + scale * x * g / (mean(g) + epsilon) + bias, with g = sqrt(sum(|x|^2)) of every channel, over all
    axes but the batch, axis 0, and the channels, and with the mean over the channels.

    Scale and bias start at 0, where y = x; without them they are 1 and 0. Computed in float32 or wider and
    rounded once. The other arguments, dtypes and errors are those of `instance_norm`; what is masked does
    not count in g. Woo et al. 2023, arXiv:2301.00808.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.global_response_norm(jnp.array([[[1.0, 3.0]]])).round(3)
    Array([[[1.5, 7.5]]], dtype=float32)
    """
    a = arguments(x, (feature_axis,), scale, bias, epsilon, where, axis_name, dtype, per_sample=True)

    @remat
    def competing(x: Array, scale: Any, bias: Any, where: Any) -> Array:
        m = residual(moments(x, a.axes, where=where, about=0, keepdims=True, axis_name=axis_name))
        energy = root(m.var * m.weight)
        mean = jnp.mean(energy, a.features, keepdims=True)
        share = divide(energy, mean + a.epsilon.astype(energy.dtype))
        response = 1 + (share if scale is None else times(share, scale))
        identity = Moments(*(jnp.full((1,) * x.ndim, v, m.var.dtype) for v in (0.0, 1.0, 1.0)))
        return normalize_by(x, identity, response, bias, jnp.float32(0), dtype=a.dtype, where=where)

    return competing(a.x, a.scale, a.bias, a.where)
