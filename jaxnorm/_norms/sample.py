"""Norms without a state: each sample by its own Moments, over a choice of axes."""

from collections.abc import Iterable
from typing import Any

from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.compilation import compiled
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.groups import local_groups


@compiled
def layer_norm(
    x: ArrayLike,
    *,
    axis: int | Iterable[int] = -1,
    feature_axis: int | Iterable[int] | None = None,
    scale: ArrayLike | None = None,
    zero_centered_scale: bool = False,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Layer norm: every sample by the moments of its own features.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with the moments over `axis`.

    Statistics and arithmetic are float32 or wider; y is rounded once. Reverse mode stores only x, in its own
    dtype, and no other array of its size. A gradient of x that float16 cannot hold, as of a constant sample
    with a small epsilon, is the largest number of float16, not inf. Ba, Kiros, Hinton 2016,
    arXiv:1607.06450.

    Args:
      x: numbers of any shape; integers count as float32.
      axis: the axes to normalize over.
      feature_axis: the axes that scale and bias belong to; by default `axis`.
      scale, bias: arrays of the feature axes' sizes, ascending, wherever these axes stand; any other
        shape broadcasts to x.
      zero_centered_scale: `scale` is what is added to 1, in float32 or wider: weight decay then pulls
        towards plain normalization, and bfloat16 keeps what a parameter near 0 has learned.
      epsilon: added to the variance, in x's units squared; a float >= 0, or a traced scalar.
      where: boolean mask, or weights >= 0, broadcastable to x, of what enters the moments. A masked NaN
        stays where it is; a sample with nothing in it gives y = bias.
      axis_name: name, or tuple of names, of mapped axes to normalize over, too.
      dtype: of y; by default x's (integers: float32).

    Raises:
      ValueError: an axis that x does not have; an array that does not broadcast; a negative epsilon; an
        unbound axis name.
      TypeError: not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.layer_norm(jnp.array([[1.0, 3.0], [10.0, 30.0]]), epsilon=0.0)
    Array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """
    a = arguments(x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, axis=axis)
    return a.normalize(zero_centered_scale=zero_centered_scale)[0]


@compiled
def rms_norm(
    x: ArrayLike,
    *,
    axis: int | Iterable[int] = -1,
    feature_axis: int | Iterable[int] | None = None,
    scale: ArrayLike | None = None,
    zero_centered_scale: bool = False,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """RMS norm: layer norm about 0 instead of the mean.

    y = x * rsqrt(mean(|x|^2) + epsilon) * scale + bias, with the mean over `axis`.

    The same arguments, dtypes and errors as `layer_norm`. Zhang, Sennrich 2019, arXiv:1910.07467; Gemma's
    checkpoints want `zero_centered_scale`.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.rms_norm(jnp.array([[1.0, 7.0]]), epsilon=0.0)
    Array([[0.2, 1.4]], dtype=float32)
    """
    a = arguments(x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, axis=axis)
    return a.normalize(centered=False, zero_centered_scale=zero_centered_scale)[0]


@compiled
def instance_norm(
    x: ArrayLike,
    *,
    feature_axis: int | Iterable[int] = -1,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Instance norm: every channel of every sample by its own moments.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with the moments over all axes but the batch,
    axis 0, and the features.

    The other arguments, dtypes and errors are those of `layer_norm`. Ulyanov, Vedaldi, Lempitsky 2016,
    arXiv:1607.08022.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])  # one sample, two places, two channels
    >>> jn.instance_norm(x, epsilon=0.0)
    Array([[[-1., -1.],
            [ 1.,  1.]]], dtype=float32)
    """
    return arguments(
        x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, per_sample=True
    ).normalize()[0]


@compiled
def group_norm(
    x: ArrayLike,
    num_groups: int | None = None,
    *,
    group_size: int | None = None,
    feature_axis: int = -1,
    reduction_axes: int | Iterable[int] | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    channel_axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Group norm: every group of channels of every sample by its own moments.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with the moments over the channels of a group and
    all axes but the batch, axis 0. One group is layer norm over these axes, a group of one channel
    instance norm.

    The other arguments, dtypes and errors are those of `layer_norm`. Wu, He 2018, arXiv:1803.08494.

    Args:
      num_groups, group_size: exactly one of the two; it divides the number of channels.
      feature_axis: the axis of the channels.
      reduction_axes: the axes to normalize over, besides the channels of a group.
      axis_name: name, or tuple of names, of mapped axes over which the PLACES of a sample are spread: the
        groups of the devices' channels, which are the same channels, are pooled.
      channel_axis_name: the same for mapped axes over which the CHANNELS are spread; num_groups then counts
        the groups of all channels. It is a multiple of the number of devices, so that a group is on one of
        them, or 1. `jax.jit` of sharded arrays needs neither name.

    Raises:
      ValueError: groups that do not divide the channels, or that lie across devices; one name in both.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), 2, epsilon=0.0)
    Array([[-1.,  1., -1.,  1.]], dtype=float32)
    """
    a = arguments(
        x, (feature_axis,), scale, bias, epsilon, where, axis_name, dtype, per_sample=reduction_axes is None
    )
    (f,) = a.features
    axes = a.axes if reduction_axes is None else check.axes(reduction_axes, a.x, "reduction_axes")
    groups, names = local_groups(num_groups, group_size, feature_axis, a.x, axis_name, channel_axis_name)
    a = a._replace(axes=tuple(axis for axis in axes if axis != f), axis_name=names)
    if a.axes:  # groups are pooled after these are reduced, where everything is small
        return a.normalize(groups=(f, groups))[0]
    # nothing is small then: the channels are split before
    return a.split(f, groups, (f + 1,)).normalize()[0].reshape(a.x.shape)
