"""Norms that remember: the Moments of the batch in training, and an average of them in evaluation."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base import collectives as devices
from jaxnorm._base.arithmetic import choose, divide
from jaxnorm._base.collectives import with_groups
from jaxnorm._base.compilation import compiled
from jaxnorm._base.sharding import as_sums, state_as
from jaxnorm._core.average import counted, ema
from jaxnorm._core.moments import Moments, merge, moments
from jaxnorm._core.normalize import given, known, normalize


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
    return remembering(
        "batch_norm",
        lambda b: normalize("batch_norm", b.x, b.axes, b.features, guess=b.stats.mean, **b.options),
        x,
        stats,
        train=train,
        scale=scale,
        bias=bias,
        feature_axis=feature_axis,
        epsilon=epsilon,
        decay=decay,
        unbiased=unbiased,
        where=where,
        pivot=pivot,
        axis_name=with_groups("batch_norm", axis_name, axis_index_groups),
        dtype=dtype,
    )


class Batch(NamedTuple):
    """The arguments of a norm that remembers, checked; every array has as many axes as x."""

    x: Array
    stats: Moments
    axes: tuple[int, ...]  # all but the features
    features: tuple[int, ...]
    options: dict[str, Any]  # of `normalize`
    epsilon: Array


def remembering(
    function: str,
    training: Callable[[Batch], tuple[Array, Moments]],
    x: Any,
    stats: Any,
    *,
    train: Any,
    feature_axis: Any,
    decay: Any,
    unbiased: bool,
    evaluation: Callable[[Batch], Array] | None = None,
    **options: Any,
) -> tuple[Array, Moments]:
    """y and the new state of the norm of that name, of y and moments of the batch in `training`."""
    x = check.numbers(function, "x", x)
    features = check.axes(function, feature_axis, x, "feature_axis")
    check.stats(function, stats, x, features)
    if decay is not None:
        check.decay(function, decay)
    for name in ("scale", "bias", "pivot"):
        options[name] = check.affine(function, name, options.get(name), x, features)
    options["where"] = check.weights(function, options["where"], x)
    options["dtype"] = options["dtype"] or x.dtype
    old = Moments(*map(jnp.asarray, stats))
    axes = tuple(a for a in range(x.ndim) if a not in features)
    shape = [n if a in features else 1 for a, n in enumerate(x.shape)]
    b = Batch(
        x,
        Moments(*(as_sums(v.reshape(shape), x, axes) for v in sound(old))),
        axes,
        features,
        options,
        check.epsilon(function, options["epsilon"]),
    )

    def trained() -> tuple[Array, Moments]:
        y, m = training(b)
        m = Moments(*(lax.stop_gradient(jnp.squeeze(v, axes)) for v in m))
        if unbiased:
            n = m.weight
            if options["where"] is not None and options["where"].dtype != jnp.bool_:
                n = jnp.squeeze(taken(b, where=options["where"] > 0).weight, axes)
            m = m._replace(var=m.var * choose(n >= 2, divide(n, n - 1), 1))
        state = remember(old, m, decay)
        return y, state

    values = x, old, options["where"], options["scale"], options["bias"]
    evaluated = evaluation or by_state
    return either(function, train, trained, lambda: (evaluated(b), old), values, options["axis_name"])


def either(function: str, train: Any, training: Any, evaluation: Any, values: Any, axis_name: Any) -> Any:
    """`training()` or `evaluation()`, a y and a state made of `values`, by a switch that may be traced."""
    train = check.train(function, train)
    if not check.traced(train):
        return training() if train else evaluation()
    # the branches of a cond agree also in what they vary over
    every = devices.varying(*jax.tree.leaves(values))
    state = every - set(devices.bound(function, axis_name).names)

    def alike(y: Array, new: Any) -> Any:
        return devices.vary(y, every), jax.tree.map(lambda v: devices.vary(v, state), new)

    return lax.cond(train, lambda: alike(*training()), lambda: alike(*evaluation()))


def taken(b: Batch, **options: Any) -> Moments:
    """The moments of the batch."""
    chosen = {k: b.options[k] for k in ("where", "axis_name")} | options
    return moments(b.x, b.axes, keepdims=True, **chosen)


def by_state(b: Batch) -> Array:
    """y by the moments in the state."""
    return apply(b, b.stats)


def apply(b: Batch, m: Moments) -> Array:
    """y by given moments."""
    scale, bias = b.options["scale"], b.options["bias"]
    return given(b.x, m, scale, bias, b.epsilon, dtype=b.options["dtype"], where=b.options["where"])


def stored(b: Batch) -> Moments:
    """The moments in the state; where there are none yet, those of the identity."""
    return Moments(*known(b.stats), jnp.ones_like(b.stats.weight))


def sound(stats: Moments) -> Moments:
    """The state, where it can be used: a channel that is not finite, or of negative variance, was not seen.

    Its weight is then 0, beside a mean of 0 and a variance of 1.
    """
    mean, var, weight = stats
    good = jnp.isfinite(mean) & jnp.isfinite(var) & (var >= 0) & jnp.isfinite(weight)
    return Moments(choose(good, mean, 0), choose(good, var, 1), choose(good, weight, 0))


def remember(old: Moments, new: Moments, decay: float | Array | None) -> Moments:
    """The state after one more batch; what is not finite is not remembered, and does not stay.

    Args:
      old: the state before.
      new: the moments of the batch.
      decay: the fraction of the old state that is kept; None: the two are merged.
    """
    start, new = sound(old), counted(new)
    if decay is not None:
        state = ema(start, new, decay=decay)
    else:
        new = Moments(*(n.astype(o.dtype) for n, o in zip(state_as(new, old), old, strict=True)))
        state = state_as(merge(start, new), old)
    # where nothing is known yet, the state stays bitwise as it was
    kept = Moments(*(choose(state.weight > 0, s, o) for s, o in zip(state, old, strict=True)))
    return state_as(kept, old)
