"""Norms of transformers: gated, partial, of queries and keys, and what stands in for a norm."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import choose, plus, times
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error, public
from jaxnorm._core.recompute import remat, widened
from jaxnorm._core.statistics import usable
from jaxnorm._norms.arguments import arguments, shared, split
from jaxnorm._norms.sample import rms_norm


@compiled
def gated_rms_norm(
    x: ArrayLike,
    gate: ArrayLike,
    *,
    norm_before_gate: bool = True,
    group_size: int | None = None,
    axis: int | Iterable[int] = -1,
    feature_axis: int | Iterable[int] | None = None,
    scale: ArrayLike | None = None,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Gated RMS norm: RMS norm and a SiLU gate, in one of two orders.

    y = rms_norm(x) * scale * silu(gate), or, with `norm_before_gate=False`, rms_norm(x * silu(gate)) * scale.

    The gate before the norm is Mamba-2's, after it Qwen3-Next's. The gate is a scale: it is multiplied in
    before y is rounded, and reverse mode keeps x and gate, each in its own dtype. A masked NaN gives 0. The
    other arguments, dtypes and errors are those of `rms_norm`. Dao, Gu 2024, arXiv:2405.21060.

    Args:
      gate: of x's shape, or any that broadcasts to it.
      group_size: the mean square is that of each group of so many features, a divisor of the size of `axis`,
        which is then one axis: on several devices that hold whole groups, no collective is needed. None: all.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x, gate = jnp.array([[1.0, 7.0]]), jnp.array([[20.0, 0.0]])
    >>> jn.gated_rms_norm(x, gate, epsilon=0.0)
    Array([[4., 0.]], dtype=float32)
    >>> jn.gated_rms_norm(x, gate, epsilon=0.0, norm_before_gate=False).round(3)
    Array([[1.414, 0.   ]], dtype=float32)
    """
    a = arguments(x, feature_axis, scale, None, epsilon, where, axis_name, dtype, axis=axis)
    gate = check.broadcastable("gate", check.numbers("gate", gate), a.x)
    axes, arrays = a.axes, (a.x, gate, a.scale, a.where)
    if group_size is not None:
        if len(axes) != 1:
            problem = f"group_size={group_size} splits one axis, and axis={axis} are {len(axes)}"
            raise error(ValueError, problem, "choose one axis")
        groups = check.groups(None, group_size, axes[0], a.x)
        arrays = tuple(split(v, axes[0], groups) for v in arrays)
        axes = (axes[0] + 1,)

    @remat
    def gated(x: Array, gate: Array, scale: Any, where: Any) -> Array:
        x, gate = usable(x, where), usable(gate, where)
        factor = jax.nn.silu(widened(gate))
        if norm_before_gate:
            scale = factor if scale is None else times(factor, scale)
        else:
            x = times(x, factor)
        return rms_norm(x, axis=axes, **shared(scale, None, a.epsilon, where, axis_name, a.dtype))

    return gated(*arrays).reshape(a.x.shape)


@compiled
def partial_rms_norm(
    x: ArrayLike,
    *,
    num_features: int,
    feature_axis: int = -1,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Partial RMS norm: RMS norm whose mean square is that of the first features alone.

    y = x * rsqrt(mean(|x[:num_features]|^2) + epsilon) * scale + bias

    A mask over the features, and `rms_norm`, whose other arguments, dtypes and errors it has. The paper
    takes 6.25 % of the features. Zhang, Sennrich 2019, arXiv:1910.07467.

    Args:
      num_features: how many, from 1 to all.
      feature_axis: the axis to normalize over.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.partial_rms_norm(jnp.array([[2.0, 2.0, 6.0]]), num_features=2, epsilon=0.0)
    Array([[1., 1., 3.]], dtype=float32)
    """
    x = check.numbers("x", x)
    (f,) = check.axes((feature_axis,), x, "feature_axis")
    remedy = f"choose from 1 to {x.shape[f]}"
    num_features = check.integer("num_features", num_features, least=1, remedy=remedy)
    if num_features > x.shape[f]:
        problem = f"num_features={num_features} is out of range for axis {feature_axis} of x, shape {x.shape}"
        raise error(ValueError, problem, remedy)
    first = lax.broadcasted_iota(int, [n if a == f else 1 for a, n in enumerate(x.shape)], f) < num_features
    weights = check.weights(where, x)
    weights = first if weights is None else choose(first, weights, 0)
    return rms_norm(x, axis=f, **shared(scale, bias, epsilon, weights, axis_name, dtype))


@public
def qk_norm(
    query: ArrayLike,
    key: ArrayLike,
    *,
    norm: Callable[..., Array] = rms_norm,
    query_scale: ArrayLike | None = None,
    key_scale: ArrayLike | None = None,
    **options: Any,
) -> tuple[Array, Array]:
    """QK norm: queries and keys normalized over the features of their heads, which bounds the logits.

    query, key = norm(query) * query_scale, norm(key) * key_scale

    With `rms_norm` as in OLMo 2, Qwen3 and Gemma 3; with `layer_norm` as in ViT-22B, Dehghani et al. 2023,
    arXiv:2302.05442; with `scale_norm` and one learned scale instead of 1 / sqrt(features) as in Henry et
    al. 2020, arXiv:2010.04245.

    Args:
      query, key: [..., heads, features], which may differ in all axes but the last.
      norm: any `(x, scale=, **options) -> y` of this library.
      query_scale, key_scale: of one head's features; any other shape broadcasts.
      options: of `norm`.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> query, key = jn.qk_norm(jnp.array([1.0, 7.0]), jnp.array([3.0, 3.0]), epsilon=0.0)
    >>> query, key
    (Array([0.2, 1.4], dtype=float32), Array([1., 1.], dtype=float32))
    """
    return norm(query, scale=query_scale, **options), norm(key, scale=key_scale, **options)


@compiled
def dynamic_tanh(
    x: ArrayLike,
    alpha: ArrayLike,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    dtype: DTypeLike | None = None,
) -> Array:
    """Dynamic tanh (DyT): a squashing function in a norm's place, without statistics.

    y = tanh(alpha * x) * scale + bias, alpha learned, 0.5 at first.

    The evidence is mixed: on par with layer norm in its paper; others find gains where data are few and
    losses elsewhere, arXiv:2604.23434. Zhu, Chen, He, LeCun, Liu 2025, arXiv:2503.10622.

    Args:
      x: numbers of any shape; integers count as float32. Arithmetic is float32 or wider, y has x's dtype,
        and reverse mode keeps x alone.
      alpha: a scalar, or an array that broadcasts to x.
      scale, bias: arrays of the feature axes' sizes, or any that broadcast to x.

    Raises:
      ValueError: an array that does not broadcast; an axis that x does not have.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.dynamic_tanh(jnp.array([0.0, 100.0]), 0.5, scale=jnp.array([1.0, 2.0]))
    Array([0., 2.], dtype=float32)
    """
    return _squashed(jnp.tanh, x, alpha, 0.0, scale, bias, feature_axis, dtype)


@compiled
def dynamic_erf(
    x: ArrayLike,
    alpha: ArrayLike,
    shift: ArrayLike,
    *,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    dtype: DTypeLike | None = None,
) -> Array:
    """Dynamic erf (Derf): the error function in a norm's place, without statistics.

    y = erf(alpha * x + shift) * scale + bias, alpha and shift learned, 0.5 and 0 at first.

    The evidence is mixed: ahead of layer norm and of dynamic tanh in its paper; with the optimizer Muon
    another finds a large loss at this start, arXiv:2604.01563. Real x. The other arguments, dtypes and
    errors are those of `dynamic_tanh`. Chen et al. 2025, arXiv:2512.10938.

    Args:
      shift: a scalar, or an array that broadcasts to x.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.dynamic_erf(jnp.array([0.0, 100.0]), 0.5, 0.0).round(5)
    Array([0., 1.], dtype=float32)
    """
    check.real(check.numbers("x", x))
    return _squashed(lax.erf, x, alpha, shift, scale, bias, feature_axis, dtype)


def _squashed(
    squash: Callable[[Array], Array],
    x: ArrayLike,
    alpha: ArrayLike,
    shift: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    feature_axis: int | Iterable[int],
    dtype: DTypeLike | None,
) -> Array:
    """squash(alpha * x + shift) * scale + bias: what `dynamic_tanh` and `dynamic_erf` have in common."""
    a = arguments(x, feature_axis, scale, bias, 0.0, None, None, dtype)

    @remat
    def squashed(x: Array, alpha: Array, shift: Array, scale: Any, bias: Any) -> Array:
        y = squash(plus(times(x, alpha), shift))
        return plus(y if scale is None else times(y, scale), bias).astype(a.dtype)

    return squashed(a.x, a.parameter("alpha", alpha), a.parameter("shift", shift), a.scale, a.bias)
