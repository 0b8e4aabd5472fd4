"""Normalizers that are not Moments: a response is divided by a norm of its neighbours."""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxnorm import _checks as check
from jaxnorm._arithmetic import abs2, wide


def unit_norm(
    x: ArrayLike,
    *,
    axis: int | Iterable[int] = -1,
    ord: int = 2,
    epsilon: float | Array = 1e-12,
) -> Array:
    """Unit norm: every vector divided by its own length.

    y = x / max(||x||, epsilon), with ||x|| = sqrt(sum |x|^2) (`ord=2`) or sum |x| (`ord=1`) over `axis`.

    The zero vector gives 0, with gradient x / epsilon's: finite. As PyTorch's `F.normalize`.

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
    x = check.numbers("unit_norm", "x", x)
    axes = check.axes("unit_norm", axis, x)
    check.choice("unit_norm", "ord", ord, (1, 2))
    least = check.epsilon("unit_norm", epsilon)

    @partial(jax.checkpoint, prevent_cse=False)  # keeps x in its own dtype
    def normalized(x: Array) -> Array:
        v = x.astype(wide(x.dtype))
        size = jnp.abs(v) if ord == 1 else abs2(v)
        length = jnp.sum(size, axes, keepdims=True)
        if ord == 2:  # sqrt has no derivative at 0
            length = jnp.where(length > 0, jnp.sqrt(jnp.where(length > 0, length, 1)), 0)
        return (v / jnp.maximum(length, least.astype(length.dtype)).astype(v.dtype)).astype(x.dtype)

    return normalized(x)


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
    x = check.numbers("local_response_norm", "x", x)
    (f,) = check.axes("local_response_norm", (feature_axis,), x, "feature_axis")
    check.at_least("local_response_norm", "size", size, 1)

    @partial(jax.checkpoint, prevent_cse=False)  # keeps x in its own dtype
    def normalized(x: Array) -> Array:
        v = x.astype(wide(x.dtype))
        window = [size if a == f else 1 for a in range(x.ndim)]
        padding = [(size // 2, (size - 1) // 2) if a == f else (0, 0) for a in range(x.ndim)]
        squares = abs2(v)
        zero = np.zeros((), squares.dtype)  # a constant: only so JAX knows the derivative of the sum
        energy = lax.reduce_window(squares, zero, lax.add, window, [1] * x.ndim, padding)
        return (v / ((k + alpha / size * energy) ** beta).astype(v.dtype)).astype(x.dtype)

    return normalized(x)
