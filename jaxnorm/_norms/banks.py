"""Banks: a norm with a state for every domain or time step, and a state blended with the batch at hand."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import indices
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error, option, public
from jaxnorm._base.sharding import on_mesh_of
from jaxnorm._core.average import averaged
from jaxnorm._core.moments import Moments, moments
from jaxnorm._core.normalize import normalize_by
from jaxnorm._core.recompute import remat, residual
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.batch import batch_norm, beside_x, sound


@public
def bank_norm(
    x: ArrayLike,
    stats: Any,
    index: int | Array,
    *,
    norm: Callable[..., tuple[Array, Any]] = batch_norm,
    **options: Any,
) -> tuple[Array, Any]:
    """A norm that remembers, with a bank of states: one for every domain, or for every time step.

    y, stats[index] = norm(x, stats[index], **options); the other states stay as they are, bitwise.

    Domains share scale and bias and keep statistics of their own: Chang et al. 2019, arXiv:1906.03950, and
    for clean and adversarial images Xie et al. 2019, arXiv:1911.09665. With the time step as index it is
    recurrent batch norm, Cooijmans et al. 2016, arXiv:1603.09025: `where` masks the sequences that have
    ended, and later steps than the bank has share its last state.

    Args:
      x: the batch of one domain, or of one time step.
      stats: a bank, `initial_stats((states, *sizes))`: the state of `norm`, each field with a first axis.
      index: which state, an integer scalar, also traced; clipped to those that there are.
      norm: `batch_norm`, or any `(x, stats, **options) -> (y, stats)` of this library.
      options: of `norm`.

    Returns:
      y, and the new bank, of the same type, shapes and dtypes.

    Raises:
      TypeError: an index that is no integer scalar.
      ValueError: fields without a common first axis; what `norm` raises.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> bank = jn.initial_stats((3, 1))
    >>> x = jnp.array([[4.0], [6.0]])
    >>> y, bank = jn.bank_norm(x, bank, 1, train=True, decay=0.5)
    >>> bank.mean.ravel()
    Array([0. , 2.5, 0. ], dtype=float32)
    """
    place = jnp.asarray(index)
    if place.ndim or not jnp.issubdtype(place.dtype, jnp.integer):
        problem = f"index must be an integer scalar, got {place.dtype} of shape {place.shape}"
        remedy = (
            f"choose one state for the batch, and mask the samples of the others with `{option('where')}`"
        )
        raise error(TypeError, problem, remedy)
    sizes = {jnp.shape(v)[:1] for v in stats}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        problem = f"stats has fields of shapes {[jnp.shape(v) for v in stats]}, which must have one "
        problem += "first axis, of the states"
        raise error(ValueError, problem, "start from initial_stats((states, *sizes))")
    ((size,),) = sizes
    place = jnp.clip(indices(place), 0, size - 1)
    bank = jax.tree.map(jnp.asarray, stats)
    y, new = norm(
        x, jax.tree.map(lambda v: lax.dynamic_index_in_dim(v, place, keepdims=False), bank), **options
    )
    return y, jax.tree.map(
        lambda v, n: lax.dynamic_update_index_in_dim(on_mesh_of(n, v), n, place, 0), bank, new
    )


@partial(compiled, alpha=check.alpha)
def blended_batch_norm(
    x: ArrayLike,
    stats: Moments,
    *,
    alpha: float | Array,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Evaluation of a batch norm under shift: its state, blended with the batch at hand.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with mean and var, each, alpha times that of
    `stats` plus (1 - alpha) times that of x.

    alpha = 1 is evaluation, 0 the batch alone, N / (N + n) a prior worth N samples beside a batch of n:
    Schneider et al. 2020, arXiv:2006.16971; a fixed alpha: You, Li, Zhao 2021, arXiv:2110.04065. y
    differentiates through both. An empty batch is evaluated by `stats`; if `stats` has weight 0, only the
    batch's statistics are used. The other arguments, dtypes and errors are those of `batch_norm`.

    Args:
      alpha: in [0, 1]; also traced, and also an array: of the feature axes' sizes, or broadcastable to x.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0], [3.0]])
    >>> jn.blended_batch_norm(x, jn.initial_stats(1), alpha=0.5, epsilon=0.0)
    Array([[0.],
           [2.]], dtype=float32)
    """
    a = arguments(x, feature_axis, scale, bias, epsilon, where, axis_name, dtype)
    check.stats(stats, a.x, a.features)
    check.alpha(alpha)
    share: Any = a.parameter("alpha", alpha) if jnp.ndim(alpha) else alpha
    old = beside_x(a, Moments(*map(jnp.asarray, stats)))

    @remat
    def normalized(x: Array, old: Moments, scale: Any, bias: Any, where: Any) -> Array:
        m = residual(moments(x, a.axes, where=where, keepdims=True, axis_name=axis_name))
        return normalize_by(x, blended(old, m, share), scale, bias, a.epsilon, dtype=a.dtype, where=where)

    return normalized(a.x, old, a.scale, a.bias, a.where)


def blended(stats: Moments, batch: Moments, alpha: ArrayLike) -> Moments:
    """alpha * stats + (1 - alpha) * batch, of mean and var each; if one of the two is empty, the other.

    Args:
      stats: a state, [*stats].
      batch: moments of that shape.
      alpha: in [0, 1], a number or an array that broadcasts to them.
    """
    old = sound(stats)
    # the average of a state of weight 1 is the blend
    return averaged(old._replace(weight=(old.weight > 0).astype(old.weight.dtype)), batch, alpha)
