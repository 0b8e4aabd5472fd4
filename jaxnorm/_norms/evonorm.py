"""EvoNorms: an activation and its normalizer in one formula, found by search."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import divide, plus, times
from jaxnorm._base.compilation import compiled
from jaxnorm._core.moments import Moments, combine, moments
from jaxnorm._core.normalize import normalize_by
from jaxnorm._core.recompute import bias_if_empty, remat, residual, root
from jaxnorm._core.statistics import usable
from jaxnorm._norms.arguments import arguments, split
from jaxnorm._norms.batch import or_identity, trained_or_evaluated
from jaxnorm._norms.groups import local_groups


@compiled
def evonorm_b0(
    x: ArrayLike,
    stats: Moments,
    slope: ArrayLike,
    *,
    train: bool | Array,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int = -1,
    epsilon: float | Array = 1e-5,
    decay: float | Array | None = 0.99,
    unbiased: bool = False,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """EvoNorm B0: every channel by the larger of the batch's and the instance's deviation.

    y = x / max(sigma, slope * x + sigma') * scale + bias, with sigma = sqrt(var + epsilon) of the batch (in
    evaluation of `stats`) and sigma' of the instance.

    It is its own activation. Real x. The other arguments, the dtypes, the returned state and the errors are
    those of `batch_norm`; `axis_name` names devices that share a batch. Liu, Brock, Simonyan, Le 2020,
    arXiv:2004.02967.

    Args:
      slope: the paper's v_1, of the feature axis's size, or any array that broadcasts to x; 1 at first.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[[2.0], [4.0]], [[-2.0], [-4.0]]])  # two samples, two places, one channel
    >>> y, stats = jn.evonorm_b0(x, jn.initial_stats(1), jnp.ones(1), train=True)
    >>> [round(v, 3) for v in y.ravel().tolist()]
    [0.632, 0.8, -0.632, -1.265]
    """
    a = arguments(x, (feature_axis,), scale, bias, epsilon, where, axis_name, dtype)
    check.real(a.x)
    check.not_batch(feature_axis, a.features, a.x)
    v = a.parameter("slope", slope)

    @remat
    def divided(x: Array, v: Any, scale: Any, bias: Any, where: Any, batch: Any) -> tuple[Array, Moments]:
        """y, and the moments of the batch, unless they are given."""
        instance = residual(moments(x, [axis for axis in a.axes if axis], where=where, keepdims=True))
        if batch is None:
            batch = Moments(*(residual(m)[None] for m in combine(instance, 0, axis_name=axis_name)))
        sigma, other = (root(m.var.astype(x.dtype) + a.epsilon.astype(x.dtype)) for m in (batch, instance))
        x = usable(x, where)
        # 0 / 0 is 0: epsilon may be 0
        y = divide(x, jnp.maximum(sigma, plus(times(x, v), other)))
        y = plus(y if scale is None else times(y, scale), bias).astype(a.dtype)
        return bias_if_empty(y, batch.weight, bias, where), batch

    def by_batch(_: Moments) -> tuple[Array, Moments]:
        return divided(a.x, v, a.scale, a.bias, a.where, None)

    def by_state(state: Moments) -> Array:
        return divided(a.x, v, a.scale, a.bias, a.where, or_identity(state))[0]

    return trained_or_evaluated(a, stats, by_batch, by_state, train=train, decay=decay, unbiased=unbiased)


@compiled
def evonorm_s0(
    x: ArrayLike,
    slope: ArrayLike,
    *,
    num_groups: int | None = None,
    group_size: int | None = None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int = -1,
    epsilon: float | Array = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    channel_axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """EvoNorm S0: Swish, divided by the deviation of a group of channels.

    y = x * sigmoid(slope * x) * rsqrt(var + epsilon) * scale + bias, with the variance of x over the channels
    of a group and all axes but the batch, axis 0.

    It is its own activation, and keeps no state. Real x. The other arguments, dtypes and errors are those of
    `group_norm`. Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967.

    Args:
      slope: the paper's v_1, of the feature axis's size, or any array that broadcasts to x; 1 at first.
      num_groups, group_size: exactly one of the two; it divides the number of channels.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> jn.evonorm_s0(jnp.array([[2.0, -2.0]]), jnp.ones(2), num_groups=1)
    Array([[ 0.8808, -0.1192]], dtype=float32)
    """
    a = arguments(x, (feature_axis,), scale, bias, epsilon, where, axis_name, dtype, per_sample=True)
    check.real(a.x)
    (f,) = a.features
    groups, axis_name = local_groups(num_groups, group_size, feature_axis, a.x, axis_name, channel_axis_name)
    arrays = (a.x, a.parameter("slope", slope), a.scale, a.bias, a.where)
    axes = [axis for axis in range(1, a.x.ndim + 1) if axis != f]  # of x whose channels are split

    @remat
    def response(x: Array, v: Array, scale: Any, bias: Any, where: Any) -> Array:
        m = residual(moments(x, axes, where=where, keepdims=True, axis_name=axis_name))
        x = usable(x, where)
        swish = x * jax.nn.sigmoid(times(x, v))
        y = normalize_by(
            swish, m._replace(mean=jnp.zeros_like(m.mean)), scale, bias, a.epsilon, dtype=a.dtype
        )
        return bias_if_empty(y, m.weight, bias, where)

    return response(*(split(v, f, groups) for v in arrays)).reshape(a.x.shape)
