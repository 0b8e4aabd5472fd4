"""Norms of inputs and outputs: series, observations, targets."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base import collectives as devices
from jaxnorm._base.arithmetic import choose
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import error
from jaxnorm._base.sharding import state_as
from jaxnorm._core.moments import Moments, merge, moments
from jaxnorm._core.normalize import normalize_by
from jaxnorm._core.recompute import remat
from jaxnorm._core.standardize import standardize, unstandardize
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.batch import beside_x, if_seen, remember, sound


@compiled
def reversible_norm(
    x: ArrayLike,
    *,
    axis: int | Iterable[int],
    feature_axis: int | Iterable[int] = -1,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    epsilon: float | Array = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Reversible instance norm (RevIN): a series without its level and spread, which come back later.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with the moments over `axis`, the time.

    `unstandardize(forecast, m, scale=scale, bias=bias, epsilon=epsilon)` takes it back, for a series of any
    length, also where x is constant. Kim, Kim, Tae, Park, Choi, Choo, ICLR 2022.

    Args:
      axis: the axes of time.
      feature_axis: the axes that scale and bias belong to.

    The other arguments, dtypes and errors are those of `layer_norm`.

    Returns:
      y, and m, the moments, with `axis` of size 1. Both are differentiable in x.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[[1.0, 7.0], [3.0, 7.0]]])  # one series, two times, two features
    >>> y, m = jn.reversible_norm(x, axis=1)
    >>> jn.unstandardize(y, m).ravel()
    Array([1., 7., 3., 7.], dtype=float32)
    """
    return arguments(x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, axis=axis).normalize()


@compiled
def input_norm(
    x: ArrayLike,
    stats: Moments,
    *,
    train: bool | Array,
    clip: float | Array | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-8,
    decay: float | Array | None = None,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Running input norm: observations by the moments of all that were seen so far.

    y = clip((x - mean) * rsqrt(var + epsilon), -clip, clip), by the NEW state, in training and evaluation
    alike: stats' = merge(stats, moments of x), exactly the moments of all batches together.

    `unstandardize(y, stats, epsilon=epsilon)` takes y back to x's units, but for what was clipped. The
    statistics are constants of the derivative. Real x. The other arguments, dtypes and errors are those of
    `batch_norm`; the merge is that of Chan, Golub, LeVeque 1979.

    Args:
      stats: the state, `initial_stats(sizes of the feature axes, weight=0.0)` at first.
      train: whether x enters the state; also traced.
      clip: the largest |y|; None: no limit.
      decay: None: every observation counts the same, for ever; a float forgets, as in `ema`.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> stats = jn.initial_stats(1, weight=0.0)
    >>> _, stats = jn.input_norm(jnp.array([[1.0]]), stats, train=True)
    >>> y, stats = jn.input_norm(jnp.array([[3.0]]), stats, train=True)
    >>> y, stats.mean
    (Array([[1.]], dtype=float32), Array([2.], dtype=float32))
    """
    a = arguments(x, feature_axis, None, None, epsilon, where, axis_name, dtype)
    check.stats(stats, a.x, a.features)
    if decay is not None:
        check.decay(decay)
    if clip is not None:
        check.real(a.x)
        check.at_least("clip", clip, 0)
    devices.bound(axis_name)
    new = old = Moments(*map(jnp.asarray, stats))
    train = check.train(train)
    if check.traced(train) or train:
        m = Moments(*map(lax.stop_gradient, moments(a.x, a.axes, where=a.where, axis_name=axis_name)))
        # an empty batch changes nothing, and neither does one that is not to be learned from
        new = remember(old, m._replace(weight=jnp.where(train, m.weight, 0)), decay)
    state = Moments(*map(lax.stop_gradient, beside_x(a, sound(new))))

    @remat
    def normalized(x: Array, m: Moments, limit: Any, where: Any) -> Array:
        y = normalize_by(x, m, None, None, a.epsilon, dtype=a.dtype, where=where)
        if limit is None:
            return y
        limit = jnp.asarray(limit, y.dtype)
        return jnp.clip(y, -limit, limit)

    return normalized(a.x, state, clip, a.where), new


@compiled
def pop_art(
    kernel: ArrayLike,
    bias: ArrayLike,
    stats: Moments,
    targets: ArrayLike,
    *,
    decay: float | Array = 0.999,
    epsilon: float | Array = 1e-4,
    where: ArrayLike | None = None,
    axis_name: Any = None,
) -> tuple[Array, Array, Moments]:
    """PopArt: statistics of targets that move, and a last layer whose outputs do not move with them.

    stats' = the mixture of stats and targets, decay to 1 - decay, spread of the means included; then, with
    sigma = sqrt(var + epsilon), kernel' = kernel * sigma / sigma' and
    bias' = (bias * sigma + mean - mean') / sigma'.

    So `unstandardize(h @ kernel + bias, stats, epsilon=epsilon)`, the prediction in the targets' units, is as
    it was; train on `standardize(targets, stats', epsilon=epsilon)`. An empty batch changes nothing. The
    statistics are constants of the derivative. van Hasselt, Guez, Hessel, Mnih, Silver 2016,
    arXiv:1602.07714.

    Args:
      kernel: [..., outputs]. bias: [outputs].
      stats: the state, `initial_stats(outputs)` at first.
      targets: [..., outputs].
      decay: the fraction of the OLD statistics that is kept; also a traced scalar.
      where, axis_name: as in `moments`.

    Returns:
      kernel, bias and the state, of their types, shapes and dtypes.

    Raises:
      ValueError: sizes that differ; decay outside [0, 1]; what `moments` raises.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> kernel, bias, stats = jnp.ones((2, 1)), jnp.zeros(1), jn.initial_stats(1)
    >>> targets = jnp.array([[10.0], [30.0]])
    >>> h = jnp.array([3.0, 4.0])
    >>> kernel, bias, stats = jn.pop_art(kernel, bias, stats, targets, decay=0.5)
    >>> stats.mean, jn.unstandardize(h @ kernel + bias, stats, epsilon=1e-4)
    (Array([10.], dtype=float32), Array([7.], dtype=float32))
    """
    kernel, bias, targets = (
        check.numbers(name, v) for name, v in (("kernel", kernel), ("bias", bias), ("targets", targets))
    )
    check.decay(decay)
    check.stats(stats, targets, (targets.ndim - 1,), "targets")
    if not kernel.shape[-1:] == bias.shape == targets.shape[-1:]:
        problem = f"kernel, bias and targets have shapes {kernel.shape}, {bias.shape} and {targets.shape}"
        raise error(ValueError, problem, "give all the same number of outputs, on the last axis")
    m = sound(moments(targets, range(targets.ndim - 1), where=where, axis_name=axis_name))
    before = Moments(*map(jnp.asarray, stats))
    old = sound(before)
    m = Moments(*(lax.stop_gradient(n.astype(o.dtype)) for n, o in zip(state_as(m, old), old, strict=True)))
    keep = choose(m.weight > 0, jnp.asarray(decay, m.weight.dtype), 1)
    share = choose(m.weight > 0, 1 - keep, 0)
    new = state_as(merge(old._replace(weight=keep * old.weight), m._replace(weight=share)), old)
    unit = Moments(jnp.zeros_like(old.mean), old.var, old.weight)
    w = standardize(
        unstandardize(kernel, unit, epsilon=epsilon), new._replace(mean=unit.mean), epsilon=epsilon
    )
    b = standardize(unstandardize(bias, old, epsilon=epsilon), new, epsilon=epsilon)
    return w, b, if_seen(new, before)
