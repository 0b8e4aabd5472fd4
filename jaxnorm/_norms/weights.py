"""Weights are normalized like activations: a choice of a parameter's axes. A tree in, a tree out."""

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import times, wide
from jaxnorm._base.messages import public
from jaxnorm._core.moments import moments
from jaxnorm._core.normalize import normalize_by
from jaxnorm._core.recompute import remat, residual, root
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.trees import Select, mapped

Axes = int | Iterable[int] | None


@public
def weight_norm(
    params: Any,
    *,
    scale: Any = None,
    feature_axis: Axes = -1,
    epsilon: float | Array = 1e-12,
    select: Select = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """Weight norm: the direction and the length of a weight as two parameters.

    w = scale * v / sqrt(sum |v|^2 + epsilon), with the sum over all axes but the features.

    Arithmetic is float32 or wider; w has v's dtype, and so has what reverse mode keeps. Salimans, Kingma
    2016, arXiv:1602.07868.

    Args:
      params: a tree of arrays v.
      scale: a tree like params, with an array of the feature axes' sizes for every v that is normalized,
        as `weight_lengths` gives it; elsewhere it may hold anything, None too. By default 1.
      feature_axis: the axes that keep a length of their own; None: the whole array has one.
      epsilon: added to the square of the length; >= 0.
      select: `(path, value) -> bool`, which leaves are normalized, the others are returned as they are;
        by default those of two axes or more: kernels, and no bias.
      dtype: of w; by default v's.

    Raises:
      ValueError: an axis that v does not have; a scale of other sizes; a negative epsilon.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
    >>> print(jn.weight_norm(params)["kernel"].round(5))
    [[0.6 0. ]
     [0.8 1. ]]
    """
    least = check.epsilon(epsilon)

    def at_length(v: Array, g: Any) -> Array:
        _, features, n = _axes(feature_axis, v)
        # RMS norm, whose mean of squares is the sum over n
        a = arguments(v, features, _times(g, n**-0.5), None, least / n, None, None, dtype)
        return a.normalize(centered=False)[0]

    return mapped(at_length, params, scale, select)


@public
def weight_lengths(params: Any, *, feature_axis: Axes = -1, select: Select = None) -> Any:
    """The lengths of weights: the scale with which `weight_norm` changes nothing.

    ||v|| = sqrt(sum |v|^2), with the sum over all axes but the features, float32 or wider. The gradient at a
    vector of zeros is 0.

    The other arguments and errors are those of `weight_norm`.

    Returns:
      A tree like params, with None for what is not normalized.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> v = jnp.array([[3.0, 0.0], [4.0, 2.0]])
    >>> jn.weight_lengths(v)
    Array([5., 2.], dtype=float32)
    >>> print(jn.weight_norm(v, scale=jn.weight_lengths(v)).round(5))
    [[3. 0.]
     [4. 2.]]
    """

    def length(v: Array, _: Any) -> Array:
        reduced, _, n = _axes(feature_axis, v)
        return root(moments(v, reduced, about=0).var * n)

    return mapped(length, params, None, select, otherwise=lambda _: None)


@public
def weight_standardize(
    params: Any,
    *,
    scale: Any = None,
    by_fan_in: bool = False,
    feature_axis: Axes = -1,
    epsilon: float | Array = 1e-5,
    select: Select = None,
    dtype: DTypeLike | None = None,
) -> Any:
    """Weight standardization: the weights into every feature with mean 0, plain or scaled.

    Plain: w = (v - mean) * rsqrt(var + epsilon) * scale. Scaled, `by_fan_in=True`, as in NFNets:
    w = (v - mean) * rsqrt(max(fan_in * var, epsilon)) * scale, whose variance is 1 / fan_in. The moments
    are over all axes but the features; their number of places is the fan-in.

    The other arguments, dtypes and errors are those of `weight_norm`; NFNets take an epsilon of 1e-4. Qiao,
    Wang, Liu, Shen, Yuille 2019, arXiv:1903.10520; Brock, De, Smith 2021, arXiv:2101.08692.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> v = jnp.array([[1.0, 5.0], [3.0, 25.0]])
    >>> jn.weight_standardize(v, epsilon=0.0)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> print(jn.weight_standardize(v, by_fan_in=True).round(4))
    [[-0.7071 -0.7071]
     [ 0.7071  0.7071]]
    """
    least = check.epsilon(epsilon)

    def standardized(v: Array, g: Any) -> Array:
        reduced, features, n = _axes(feature_axis, v)
        if not by_fan_in:
            return arguments(v, features, g, None, least, None, None, dtype).normalize()[0]
        g = check.affine("scale", _times(g, n**-0.5), v, features)

        @remat
        def scaled(wide: Array, g: Array) -> Array:
            m = residual(moments(wide, reduced, keepdims=True))
            m = m._replace(var=jnp.maximum(m.var, (least / n).astype(m.var.dtype)))
            return normalize_by(wide, m, g, None, jnp.asarray(0.0), dtype=dtype or v.dtype)

        return scaled(v, g)

    return mapped(standardized, params, scale, select)


def _axes(feature_axis: Axes, v: Array) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The axes that are reduced, those that are not, and how many places one value is over."""
    features = () if feature_axis is None else check.axes(feature_axis, v, "feature_axis")
    reduced = tuple(a for a in range(v.ndim) if a not in features)
    return reduced, features, max(1, math.prod(v.shape[a] for a in reduced))


def _times(scale: Any, factor: float) -> Any:
    scale = jnp.asarray(1.0) if scale is None else check.numbers("scale", scale)
    return times(scale.astype(wide(scale.dtype)), factor)
