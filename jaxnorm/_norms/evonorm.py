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
from jaxnorm._core.normalize import given
from jaxnorm._core.recompute import kept, remat, root, seen
from jaxnorm._core.statistics import usable
from jaxnorm._norms.batch import Batch, remembering, stored
from jaxnorm._norms.groups import local_groups
from jaxnorm._norms.sample import split


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
    function = "evonorm_b0"

    def response(b: Batch, batch: Moments | None) -> tuple[Array, Moments]:
        check.real(function, b.x)
        check.not_batch(function, feature_axis, b.features, b.x)
        scale, bias, weights = (b.options[k] for k in ("scale", "bias", "where"))
        v = check.affine(function, "slope", slope, b.x, b.features)

        @remat
        def divided(x: Array, v: Any, scale: Any, bias: Any, weights: Any, batch: Any) -> Any:
            own = kept(moments(x, [a for a in b.axes if a], where=weights, keepdims=True))
            if batch is None:
                batch = combine(own, 0, axis_name=axis_name)
                batch = Moments(*(kept(v)[None] for v in batch))
            sigma, other = (root(m.var.astype(x.dtype) + b.epsilon.astype(x.dtype)) for m in (batch, own))
            x = usable(x, weights)
            # 0 / 0 is 0: epsilon may be 0
            y = divide(x, jnp.maximum(sigma, plus(times(x, v), other)))
            y = plus(y if scale is None else times(y, scale), bias).astype(b.options["dtype"])
            return seen(y, batch.weight, bias, weights), batch

        return divided(b.x, v, scale, bias, weights, batch)

    return remembering(
        function,
        lambda b: response(b, None),
        x,
        stats,
        evaluation=lambda b: response(b, stored(b))[0],
        train=train,
        scale=scale,
        bias=bias,
        feature_axis=(feature_axis,),
        epsilon=epsilon,
        decay=decay,
        unbiased=unbiased,
        where=where,
        axis_name=axis_name,
        dtype=dtype,
    )


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
    function = "evonorm_s0"
    x = check.numbers(function, "x", x)
    check.real(function, x)
    (f,) = check.axes(function, (feature_axis,), x, "feature_axis")
    check.not_batch(function, feature_axis, (f,), x)
    groups, axis_name = local_groups(
        function, num_groups, group_size, feature_axis, x, axis_name, channel_axis_name
    )
    weights = split(check.weights(function, where, x), f, groups)
    scale, bias, v = (
        split(check.affine(function, name, v, x, (f,)), f, groups)
        for name, v in (("scale", scale), ("bias", bias), ("slope", slope))
    )
    least = check.epsilon(function, epsilon)
    axes = [a for a in range(1, x.ndim + 1) if a != f]
    out = dtype or x.dtype

    @remat
    def response(x: Array, v: Array, scale: Any, bias: Any, weights: Any) -> Array:
        m = kept(moments(x, axes, where=weights, keepdims=True, axis_name=axis_name))
        x = usable(x, weights)
        swish = x * jax.nn.sigmoid(times(x, v))
        y = given(swish, m._replace(mean=jnp.zeros_like(m.mean)), scale, bias, least, dtype=out)
        return seen(y, m.weight, bias, weights)

    return response(split(x, f, groups), v, scale, bias, weights).reshape(x.shape)
