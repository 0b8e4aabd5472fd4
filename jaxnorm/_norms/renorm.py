"""Batch norm of small batches, and of small parts of large ones."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.arithmetic import choose, divide, times
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error, option
from jaxnorm._core.moments import Moments, combine
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.batch import trained_or_evaluated


@compiled
def batch_renorm(
    x: ArrayLike,
    stats: Moments,
    *,
    train: bool | Array,
    r_max: float | Array = 3.0,
    d_max: float | Array = 5.0,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-5,
    decay: float | Array | None = 0.99,
    unbiased: bool = False,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch renorm: batch norm whose training agrees with its evaluation, however small the batch.

    y = ((x - mean) / sigma * r + d) * scale + bias, with mean and sigma = sqrt(var + epsilon) of the batch,
    r = clip(sigma / sigma', 1 / r_max, r_max) and d = clip((mean - mean') / sigma', -d_max, d_max), where
    mean' and sigma' are those of `stats` before this batch. r and d carry no gradient.

    r_max = 1, d_max = 0 is batch norm; without limits y is that of evaluation. The paper starts as batch norm
    and raises both: evaluate a schedule and pass the value. A batch, or `stats`, of weight 0 gives r = 1
    and d = 0. The other arguments, the dtypes, the returned state and the errors are those of `batch_norm`.
    Ioffe 2017, arXiv:1702.03275.

    Args:
      r_max: at least 1; also a traced scalar.
      d_max: at least 0; also a traced scalar.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0], [3.0]])
    >>> y, stats = jn.batch_renorm(x, jn.initial_stats(1), train=True, epsilon=0.0, decay=0.5)
    >>> y, stats.mean
    (Array([[1.],
           [3.]], dtype=float32), Array([1.], dtype=float32))
    """
    check.at_least("r_max", r_max, 1)
    check.at_least("d_max", d_max, 0)
    a = arguments(
        x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, axis_index_groups=axis_index_groups
    )

    def by_batch(state: Moments) -> tuple[Array, Moments]:
        others = state, jnp.asarray(r_max), jnp.asarray(d_max)
        return a.normalize(guess=state.mean, corrections=_corrections, others=others)

    return trained_or_evaluated(
        a, stats, by_batch, a.normalize_by, train=train, decay=decay, unbiased=unbiased
    )


def _corrections(m: Moments, epsilon: Array, old: Moments, r_max: Array, d_max: Array) -> tuple[Array, Array]:
    """r and d of the paper."""
    old = Moments(*(o.astype(v.dtype) for o, v in zip(old, m, strict=True)))
    epsilon, most, farthest = (v.astype(m.var.dtype) for v in (epsilon, r_max, d_max))
    sigma, before = (jnp.sqrt(s.var + epsilon) for s in (m, old))
    r, d = divide(sigma, before), divide(m.mean - old.mean, before)
    far = jnp.abs(d)
    d = times(d, choose(far > farthest, divide(jnp.broadcast_to(farthest, far.shape), far), 1))
    both = (m.weight > 0) & (old.weight > 0)
    return choose(both, jnp.clip(r, 1 / most, most), 1), choose(both, d, 0)


@compiled
def ghost_batch_norm(
    x: ArrayLike,
    stats: Moments,
    *,
    train: bool | Array,
    num_ghosts: int,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-5,
    decay: float | Array | None = 0.99,
    unbiased: bool = False,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Ghost batch norm: each contiguous part of a large batch by its own moments.

    y as in batch norm, in `num_ghosts` equal parts of axis 0. A part stays on its device; the state takes
    the whole batch's moments, over all parts and devices, exactly. Evaluation is batch norm's.

    The other arguments, the dtypes, the returned state and the errors are those of `batch_norm`. Hoffer,
    Hubara, Soudry 2017, arXiv:1705.08741.

    Args:
      num_ghosts: a divisor of the (local) batch size, or a ValueError in training.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
    >>> y, _ = jn.ghost_batch_norm(x, jn.initial_stats(1), train=True, num_ghosts=2, epsilon=0.0)
    >>> y.ravel()
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """
    remedy = "choose a divisor of the batch size"
    parts = check.integer("num_ghosts", num_ghosts, least=1, remedy=remedy)
    a = arguments(
        x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, axis_index_groups=axis_index_groups
    )

    def by_parts(_: Moments) -> tuple[Array, Moments]:
        check.not_batch(feature_axis, a.features, a.x)
        if a.x.shape[0] % parts:
            problem = f"num_ghosts={parts} does not divide axis 0 of x, shape {a.x.shape}"
            remedy = (
                f"choose a divisor of {a.x.shape[0]}, or pad x and mask the padding with `{option('where')}`"
            )
            raise error(ValueError, problem, remedy)
        ghosts = a.split(0, parts, tuple(axis + 1 for axis in a.axes))
        y, m = ghosts._replace(axis_name=None).normalize()
        m = combine(m, 0, axis_name=a.axis_name)  # the part's own batch axis stays, of size 1
        return y.reshape(a.x.shape), m

    return trained_or_evaluated(
        a, stats, by_parts, a.normalize_by, train=train, decay=decay, unbiased=unbiased
    )
