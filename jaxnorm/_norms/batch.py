"""Batch norm: the Moments of the batch in training, and their average, the state, in evaluation."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base import collectives as devices
from jaxnorm._base.arithmetic import choose, divide
from jaxnorm._base.compilation import compiled
from jaxnorm._base.sharding import as_sums, state_as
from jaxnorm._core.average import ema
from jaxnorm._core.moments import Moments, merge, moments
from jaxnorm._core.normalize import mean_and_var
from jaxnorm._norms.arguments import Arguments, arguments

State = TypeVar("State", bound=tuple[Any, ...])  # a NamedTuple of arrays


@compiled
def batch_norm(
    x: ArrayLike,
    stats: Moments,
    *,
    train: bool | Array,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-5,
    decay: float | Array | None = 0.99,
    unbiased: bool = False,
    where: ArrayLike | None = None,
    pivot: ArrayLike | None = None,
    axis_name: Any = None,
    axis_index_groups: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Batch norm: every channel by the moments of the batch; in evaluation by their average.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with the moments over all axes but the features
    (`train`), or from `stats`.

    Statistics and arithmetic are float32 or wider; y is rounded once. Reverse mode keeps x, in its own
    dtype, and no other array of its size. y differentiates through the batch's moments; the new state
    carries no gradient. Ioffe, Szegedy 2015, arXiv:1502.03167.

    Args:
      x: numbers of any shape; integers count as float32.
      stats: the state, `initial_stats(sizes of the feature axes)` at first: start with weight 1 for Flax's
        and PyTorch's average, with weight 0 for a debiased one. A channel that is not finite, or of
        negative variance, counts as not seen: it has weight 0.
      train: use the batch's moments and update the state, or use the state and keep it. A bool, or a
        traced boolean scalar.
      scale, bias: arrays of the feature axes' sizes, ascending, wherever these axes stand; any other
        shape broadcasts to x.
      feature_axis: the axes that keep statistics of their own.
      epsilon: added to the variance, in x's units squared; a float >= 0, or a traced scalar.
      decay: the fraction of the OLD state that is kept (Flax's momentum, 1 - PyTorch's), also a traced
        scalar; None: cumulative, all batches weigh by their size (start from weight 0).
      unbiased: the average takes var * n / (n - 1), as PyTorch does; n counts places of weight > 0.
      where: boolean mask, or weights >= 0, broadcastable to x, of what enters the moments. A masked NaN
        stays where it is; an empty batch gives y = bias and leaves the state as it was.
      pivot: a value near the batch's mean, of the feature axes' sizes, that is known beforehand, as
        `stats.mean` is once it is near the data: across devices one collective is then enough, and a
        compiler may take the sums where x is made. See `moments`.
      axis_name: name, or tuple of names, of mapped axes: the statistics, output, state and gradients are
        then those of one device with the whole batch, however unevenly it is masked.
      axis_index_groups: Flax's option for groups of devices: the same as `axis_name=InGroups(name, groups)`.
      dtype: of y; by default x's (integers: float32).

    Returns:
      y, and the new state, of the same type, shapes and dtypes as `stats`. A channel whose moments are
      not finite keeps its state.

    Raises:
      ValueError: stats of other sizes; an axis that x does not have; an array that does not broadcast; a
        negative epsilon; decay outside [0, 1]; an unbound axis name.
      TypeError: not numeric; stats narrower than float32; complex x on a real mean.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, stats = jn.batch_norm(x, jn.initial_stats(2), train=True, epsilon=0.0, decay=0.9)
    >>> y
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> stats.mean
    Array([0.2, 2. ], dtype=float32)
    >>> y, _ = jn.batch_norm(x, stats, train=False)
    """
    a = arguments(
        x, feature_axis, scale, bias, epsilon, where, axis_name, dtype, axis_index_groups=axis_index_groups
    )
    near = a.parameter("pivot", pivot)

    def by_batch(state: Moments) -> tuple[Array, Moments]:
        return a.normalize(pivot=near, guess=state.mean)

    return trained_or_evaluated(
        a, stats, by_batch, a.normalize_by, train=train, decay=decay, unbiased=unbiased
    )


def trained_or_evaluated(
    a: Arguments,
    stats: Moments,
    by_batch: Callable[[Moments], tuple[Array, Moments]],
    by_state: Callable[[Moments], Array],
    *,
    train: bool | Array,
    decay: float | Array | None,
    unbiased: bool,
) -> tuple[Array, Moments]:
    """y and the new state of a norm with a state: what its training and its evaluation have in common.

    Args:
      a: its arguments, checked.
      stats: the state, as the user gave it.
      by_batch: state -> y and the moments of the batch, in training.
      by_state: state -> y, in evaluation. To both the state comes with as many axes as x, and usable.
      train, decay, unbiased: as in `batch_norm`.
    """
    check.stats(stats, a.x, a.features)
    if decay is not None:
        check.decay(decay)
    old = Moments(*map(jnp.asarray, stats))
    state = beside_x(a, sound(old))

    def training() -> tuple[Array, Moments]:
        y, m = by_batch(state)
        if unbiased:
            m = m._replace(var=sample_variance(m.var, places(a, m, a.axes)))
        m = Moments(*(lax.stop_gradient(jnp.squeeze(v, a.axes)) for v in m))
        return y, remember(old, m, decay)

    values = a.x, old, a.where, a.scale, a.bias
    return either(train, training, lambda: (by_state(state), old), values, a.axis_name)


def either(
    train: bool | Array,
    training: Callable[[], tuple[Array, State]],
    evaluation: Callable[[], tuple[Array, State]],
    values: object,
    axis_name: Any,
) -> tuple[Array, State]:
    """y and the state of `training()` or of `evaluation()`.

    Args:
      train: which; a bool, or a traced boolean scalar.
      training, evaluation: without arguments.
      values: a tree of the arrays that they use.
      axis_name: the mapped axes over which the state is the same on all devices.
    """
    train = check.train(train)
    if not check.traced(train):
        return training() if train else evaluation()
    # the branches of a cond agree also in what they vary over
    every = devices.varying(*jax.tree.leaves(values))
    state = every - set(devices.bound(axis_name).names)

    def alike(y: Array, new: State) -> tuple[Array, State]:
        return devices.vary(y, every), jax.tree.map(lambda v: devices.vary(v, state), new)

    chosen: tuple[Array, State] = lax.cond(train, lambda: alike(*training()), lambda: alike(*evaluation()))
    return chosen


def places(a: Arguments, m: Moments, axes: tuple[int, ...]) -> Array:
    """How many places of weight above 0 there are in each sample that moments of x are taken of.

    Args:
      a: the arguments of the norm.
      m: the moments, as many axes as x.
      axes: that they were taken over.
    """
    if a.where is None or a.where.dtype == jnp.bool_:
        return m.weight
    return moments(a.x, axes, where=a.where > 0, axis_name=a.axis_name, keepdims=True).weight


def sample_variance(var: Array, n: Array) -> Array:
    """PyTorch's variance, which divides by n - 1, of one that divides by n; the same where n < 2."""
    return var * choose(n >= 2, divide(n, n - 1), 1)


def beside_x(a: Arguments, stats: Moments) -> Moments:
    """A state with as many axes as x, and sharded as moments of x are."""
    shape = [n if axis in a.features else 1 for axis, n in enumerate(a.x.shape)]
    return Moments(*(as_sums(v.reshape(shape), a.x, a.axes) for v in stats))


def or_identity(state: Moments) -> Moments:
    """A state as moments of weight 1: mean 0 and variance 1 where nothing was seen yet."""
    return Moments(*mean_and_var(state), jnp.ones_like(state.weight))


def sound(stats: Moments) -> Moments:
    """A state that can be used: a channel that is not finite, or of negative variance, counts as not seen.

    It gets weight 0, mean 0 and variance 1.
    """
    mean, var, weight = stats
    good = jnp.isfinite(mean) & jnp.isfinite(var) & (var >= 0) & jnp.isfinite(weight)
    return Moments(choose(good, mean, 0), choose(good, var, 1), choose(good, weight, 0))


def remember(old: Moments, new: Moments, decay: float | Array | None) -> Moments:
    """The state after one more batch, of which a channel that is not finite counts as not seen.

    Args:
      old: the state before.
      new: the moments of the batch.
      decay: the fraction of the old state that is kept; None: the two are merged.
    """
    start, new = sound(old), sound(new)
    if decay is not None:
        state = ema(start, new, decay=decay)
    else:
        new = Moments(*(n.astype(o.dtype) for n, o in zip(state_as(new, old), old, strict=True)))
        state = state_as(merge(start, new), old)
    return if_seen(state, old)


def if_seen(new: Moments, old: Moments) -> Moments:
    """The state `new`, but bitwise `old` where nothing was seen yet."""
    return state_as(Moments(*(choose(new.weight > 0, n, o) for n, o in zip(new, old, strict=True))), old)
