"""Switchable norm: which Moments, learned."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error
from jaxnorm._core.moments import Moments, combine, moments
from jaxnorm._core.normalize import normalize_by
from jaxnorm._core.recompute import bias_if_empty, remat, residual
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.batch import or_identity, trained_or_evaluated


@compiled
def switchable_norm(
    x: ArrayLike,
    stats: Moments,
    mean_logits: ArrayLike,
    var_logits: ArrayLike,
    *,
    train: bool | Array,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-5,
    decay: float | Array | None = 0.99,
    unbiased: bool = False,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Switchable norm: a learned mixture of the moments of instance, layer and batch norm.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with mean = sum_k softmax(mean_logits)_k * mean_k
    and var = sum_k softmax(var_logits)_k * var_k, k the instance, the layer (all of a sample), the batch.

    x is read once for all three: by the law of total variance the instances' moments make those of the
    others. In evaluation the batch's come from `stats`. The other arguments, the dtypes, the returned state
    and the errors are those of `batch_norm`; `axis_name` names devices that share a batch. Luo, Ren, Peng,
    Zhang, Li 2018, arXiv:1806.10779.

    Args:
      mean_logits, var_logits: three numbers each: instance, layer, batch; all equal at first.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])  # two samples, two places, one channel
    >>> logits = jnp.array([20.0, 0.0, 0.0])  # the instance
    >>> y, stats = jn.switchable_norm(x, jn.initial_stats(1), logits, logits, train=True)
    >>> y.ravel().round(3)
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """
    logits = jnp.asarray(mean_logits), jnp.asarray(var_logits)
    for name, v in zip(("mean", "var"), logits, strict=True):
        if v.shape != (3,) or not jnp.issubdtype(v.dtype, jnp.floating):
            problem = f"{name}_logits are {v.dtype} of shape {v.shape}"
            raise error(ValueError, problem, "give three floats: instance, layer, batch")

    a = arguments(x, feature_axis, scale, bias, epsilon, where, axis_name, dtype)
    check.not_batch(feature_axis, a.features, a.x)

    @remat
    def mixed(x: Array, logits: Any, scale: Any, bias: Any, where: Any, batch: Any) -> tuple[Array, Moments]:
        """y, and the moments of the batch, unless they are given."""
        instance = residual(moments(x, [axis for axis in a.axes if axis], where=where, keepdims=True))
        layer = _union(instance, a.features)
        if batch is None:
            batch = _union(instance, 0, axis_name=axis_name)
        three = instance, layer, batch
        mean = _mixture(logits[0], [m.mean for m in three])
        var = _mixture(logits[1], [m.var for m in three])
        m = Moments(mean, var, jnp.ones_like(var))
        y = normalize_by(x, m, scale, bias, a.epsilon, dtype=a.dtype, where=where)
        return bias_if_empty(y, batch.weight, bias, where), batch

    def by_batch(_: Moments) -> tuple[Array, Moments]:
        return mixed(a.x, logits, a.scale, a.bias, a.where, None)

    def by_state(state: Moments) -> Array:
        return mixed(a.x, logits, a.scale, a.bias, a.where, or_identity(state))[0]

    return trained_or_evaluated(a, stats, by_batch, by_state, train=train, decay=decay, unbiased=unbiased)


def _mixture(logits: Array, values: Sequence[Array]) -> Array:
    """The values, weighed by the softmax of the logits."""
    return sum(share.astype(v.dtype) * v for share, v in zip(jax.nn.softmax(logits), values, strict=True))


def _union(parts: Moments, axis: Any, *, axis_name: Any = None) -> Moments:
    """Moments of the union along `axis`, which stays, of size 1."""
    return Moments(*(jnp.expand_dims(residual(v), axis) for v in combine(parts, axis, axis_name=axis_name)))
