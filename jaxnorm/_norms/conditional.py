"""Conditional norms: scale and bias that come from something else: a label, a style, a map."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import choose, indices, one_plus, plus, wide
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error
from jaxnorm._core.moments import Moments, initial_stats, moments
from jaxnorm._core.recompute import root
from jaxnorm._core.standardize import standardize
from jaxnorm._norms.arguments import shared
from jaxnorm._norms.batch import batch_norm
from jaxnorm._norms.sample import instance_norm, layer_norm


@compiled
def film(
    x: ArrayLike,
    scale: ArrayLike,
    bias: ArrayLike,
    *,
    feature_axis: int | Iterable[int] = -1,
    dtype: DTypeLike | None = None,
) -> Array:
    """FiLM: every sample's features scaled and shifted by what it is conditioned on.

    y = x * scale + bias

    Computed in float32 or wider and rounded once. Reverse mode keeps x, in its own dtype, and no other array
    of its size. Perez, Strub, de Vries, Dumoulin, Courville 2017, arXiv:1709.07871.

    Args:
      x: [batch, ...], numbers; integers count as float32.
      scale, bias: [batch, *sizes of the feature axes], ascending; any other shape broadcasts to x.
      feature_axis: the axes of the features.
      dtype: of y; by default x's.

    Raises:
      ValueError: an array that does not broadcast; an axis that x does not have.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.ones((2, 3, 1))  # two samples, three places, one feature
    >>> jn.film(x, jnp.array([[2.0], [5.0]]), jnp.array([[0.0], [1.0]])).ravel()
    Array([2., 2., 2., 6., 6., 6.], dtype=float32)
    """
    x = check.numbers("x", x)
    features = check.axes(feature_axis, x, "feature_axis")
    scale, bias = (_of_samples(n, v, x, features) for n, v in (("scale", scale), ("bias", bias)))
    return standardize(x, initial_stats(()), scale=scale, bias=bias, epsilon=0.0, dtype=dtype)


@compiled
def adaptive_layer_norm(
    x: ArrayLike,
    scale: ArrayLike,
    bias: ArrayLike,
    *,
    axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Adaptive layer norm (AdaLN): layer norm, scaled and shifted by what a sample is conditioned on.

    y = layer_norm(x) * (1 + scale) + bias, where 1 + scale is taken in float32 or wider.

    AdaLN-zero starts as the identity: a projection of the condition, initialized to 0, gives scale, bias and
    a gate, and the block is `x + gate * block(adaptive_layer_norm(x, scale, bias))`. The other arguments,
    dtypes and errors are those of `layer_norm`. Peebles, Xie 2022, arXiv:2212.09748.

    Args:
      scale, bias: [batch, *sizes of the normalized axes]; any other shape broadcasts to x.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[[1.0, 3.0]], [[1.0, 3.0]]])
    >>> jn.adaptive_layer_norm(x, jnp.zeros((2, 2)), jnp.array([[0.0, 0.0], [5.0, 5.0]]), epsilon=0.0)
    Array([[[-1.,  1.]],
           [[ 4.,  6.]]], dtype=float32)
    """
    x = check.numbers("x", x)
    features = check.axes(axis, x)
    scale = _of_samples("scale", scale, x, features, "axis")
    bias = _of_samples("bias", bias, x, features, "axis")
    options = shared(scale, bias, epsilon, where, axis_name, dtype)
    return layer_norm(x, axis=features, zero_centered_scale=True, **options)


@compiled
def adaptive_instance_norm(
    x: ArrayLike,
    style: ArrayLike,
    *,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-5,
    where: ArrayLike | None = None,
    style_where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Adaptive instance norm (AdaIN): x with the channel statistics of another.

    y = (x - mean(x)) / sigma(x) * sigma(style) + mean(style), with sigma = sqrt(var + epsilon), for every
    sample and channel, so that x in its own style is x.

    The other arguments, dtypes and errors are those of `instance_norm`. Huang, Belongie 2017,
    arXiv:1703.06868.

    Args:
      style: x's shape but for the reduced axes, which may have other sizes, and the batch, which may be 1.
      where, style_where: boolean masks, or weights >= 0, of what enters the moments of either.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x, style = jnp.array([[[1.0], [3.0]]]), jnp.array([[[10.0], [20.0], [30.0], [20.0]]])
    >>> jn.adaptive_instance_norm(x, style, epsilon=0.0).ravel()
    Array([12.928932, 27.071068], dtype=float32)
    """
    x = check.numbers("x", x)
    style = check.numbers("style", style)
    features = check.axes(feature_axis, x, "feature_axis")
    check.not_batch(feature_axis, features, x)
    sizes = tuple(x.shape[a] for a in features)
    if style.ndim != x.ndim or tuple(style.shape[a] for a in features) != sizes:
        problem = f"style has shape {style.shape}, but x, shape {x.shape}, has {sizes} on its feature axes "
        problem += f"{features}"
        remedy = "give style as many axes and the same features"
        raise error(ValueError, problem, remedy)
    axes = [a for a in range(1, x.ndim) if a not in features]
    style_where = check.weights(style_where, style, "style_where", "style")
    m = moments(style, axes, where=style_where, keepdims=True, axis_name=axis_name)
    least = check.epsilon(epsilon)
    sigma = root(m.var + least.astype(m.var.dtype))
    options = shared(sigma, m.mean, least, where, axis_name, dtype)
    return instance_norm(x, feature_axis=features, **options)


@compiled
def conditional_batch_norm(
    x: ArrayLike,
    stats: Moments,
    labels: ArrayLike,
    *,
    train: bool | Array,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    **options: Any,
) -> tuple[Array, Moments]:
    """Conditional batch norm: batch norm with a scale and a bias for every class.

    y = batch_norm(x) * scale[label] + bias[label]

    Statistics are those of the whole batch. Dumoulin, Shlens, Kudlur 2016, arXiv:1610.07629 (of instance
    norm); de Vries et al. 2017, arXiv:1707.00683, whose scale and bias are a network's output: that is
    `batch_norm(x, stats, scale=...)` with any array that broadcasts to x.

    Args:
      labels: [batch], integers from 0 to classes - 1. Any other, -1 among them, makes its sample NaN; it
        has no gradient in the tables and changes neither the state nor the other samples.
      scale, bias: tables, [classes, *sizes of the feature axes].
      options: those of `batch_norm`, whose dtypes, returned state and errors it has.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x, table = jnp.array([[1.0], [3.0]]), jnp.array([[0.0], [10.0], [20.0]])
    >>> stats = jn.initial_stats(1)
    >>> y, stats = jn.conditional_batch_norm(x, stats, jnp.array([0, 2]), train=True, bias=table, epsilon=0.0)
    >>> y.ravel()
    Array([-1., 21.], dtype=float32)
    """
    x = check.numbers("x", x)
    features = check.axes(feature_axis, x, "feature_axis")
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != x.shape[:1]:
        problem = f"labels are {labels.dtype} of shape {labels.shape}, but x has shape {x.shape}"
        raise error(ValueError, problem, "give one integer for every sample")
    labels = indices(labels)
    tables: dict[str, Any] = {"scale": scale, "bias": bias}
    unknown = labels < 0
    for name, table in tables.items():
        if table is not None:
            table = check.numbers(name, table)
            unknown |= labels >= len(table)
            place = jnp.where(unknown, len(table), labels)  # beyond the table: 0, and no gradient in it
            rows = jnp.take(table, place, axis=0, mode="fill", fill_value=0)
            tables[name] = _of_samples(name, rows, x, features)
    if scale is not None or bias is not None:
        # NaN in the bias, not in the scale: the bias is not a factor in the gradient of x
        nan = choose(unknown, jnp.full(unknown.shape, jnp.nan, wide(x.dtype)), 0)
        tables["bias"] = plus(nan.reshape(-1, *(1,) * (x.ndim - 1)), tables["bias"])
    return batch_norm(x, stats, train=train, feature_axis=features, **tables, **options)


@compiled
def spade(
    x: ArrayLike,
    stats: Moments,
    scale: ArrayLike,
    bias: ArrayLike,
    *,
    train: bool | Array,
    feature_axis: int = -1,
    **options: Any,
) -> tuple[Array, Moments]:
    """Spatially adaptive norm (SPADE): batch norm, scaled and shifted by maps of x's own size.

    y = batch_norm(x) * (1 + scale) + bias, where 1 + scale is taken in float32 or wider.

    Park, Liu, Wang, Zhu 2019, arXiv:1903.07291, whose formula has scale for 1 + scale, and whose maps are a
    convolution of a segmentation.

    Args:
      scale, bias: maps that broadcast to x.
      options: those of `batch_norm`, whose dtypes, returned state and errors it has.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x, maps = jnp.array([[1.0], [3.0]]), jnp.array([[1.0], [0.0]])
    >>> y, stats = jn.spade(x, jn.initial_stats(1), maps, maps, train=True, epsilon=0.0)
    >>> y.ravel()
    Array([-1.,  1.], dtype=float32)
    """
    scale = one_plus(check.numbers("scale", scale))
    return batch_norm(x, stats, train=train, scale=scale, bias=bias, feature_axis=feature_axis, **options)


def _of_samples(name: str, value: Any, x: Array, features: tuple[int, ...], by: str = "feature_axis") -> Any:
    """[batch, *features] with as many axes as x; any other shape broadcasts."""
    value = check.numbers(name, value)
    if value.shape == (x.shape[0], *(x.shape[a] for a in features)):
        return value.reshape([n if a == 0 or a in features else 1 for a, n in enumerate(x.shape)])
    return check.affine(name, value, x, features, by=by)
