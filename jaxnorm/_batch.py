"""Norms that remember: the Moments of the batch in training, and an average of them in evaluation."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxnorm import _checks as check
from jaxnorm import _devices as devices
from jaxnorm._arithmetic import divide
from jaxnorm._average import counted, ema
from jaxnorm._moments import Moments, merge, moments
from jaxnorm._normalize import normalize
from jaxnorm._standardize import given


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
      stats: the state, `initial_stats(sizes of the feature axes)` at first: by `ema` a prior of weight 1
        makes Flax's and PyTorch's average, one of weight 0 the debiased one.
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
      axis_name: name, or tuple of names, of mapped axes: the statistics, output, state and gradients are
        then those of one device with the whole batch, however unevenly it is masked.
      axis_index_groups: groups of devices to stay within, where JAX allows it.
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
    x = check.numbers("batch_norm", "x", x)
    features = check.axes("batch_norm", feature_axis, x, "feature_axis")
    check.stats("batch_norm", stats, x, features)
    if decay is not None:
        check.decay("batch_norm", decay)
    axes = tuple(a for a in range(x.ndim) if a not in features)
    weights = check.weights("batch_norm", where, x)
    mapped = {"axis_name": axis_name, "axis_index_groups": axis_index_groups}
    old = Moments(*map(jnp.asarray, stats))

    def training() -> tuple[Array, Moments]:
        y, m = normalize(
            "batch_norm",
            x,
            axes,
            features,
            scale=scale,
            bias=bias,
            epsilon=epsilon,
            where=weights,
            dtype=dtype,
            **mapped,
        )
        m = Moments(*(lax.stop_gradient(jnp.squeeze(v, axes)) for v in m))
        if unbiased:
            n = m.weight
            if weights is not None and weights.dtype != jnp.bool_:
                n = jnp.squeeze(moments(x, axes, where=weights > 0, keepdims=True, **mapped).weight, axes)
            m = m._replace(var=m.var * jnp.where(n >= 2, divide(n, n - 1), jnp.ones_like(n)))
        return y, remember(old, m, decay)

    def evaluating() -> tuple[Array, Moments]:
        shape = [n if a in features else 1 for a, n in enumerate(x.shape)]
        y = given(
            x,
            Moments(*(v.reshape(shape) for v in old)),
            check.affine("batch_norm", "scale", scale, x, features),
            check.affine("batch_norm", "bias", bias, x, features),
            check.epsilon("batch_norm", epsilon),
            dtype=dtype,
            where=weights,
        )
        return y, old

    if not check.traced(train):
        return training() if check.train("batch_norm", train) else evaluating()
    # the branches of a cond agree also in what they vary over
    every = devices.varying(x, weights, scale, bias, *old)
    state = every - set(devices.bound("batch_norm", axis_name).names)

    def alike(y: Array, new: Moments) -> tuple[Array, Moments]:
        return devices.vary(y, every), Moments(*(devices.vary(v, state) for v in new))

    return lax.cond(train, lambda: alike(*training()), lambda: alike(*evaluating()))


def remember(old: Moments, new: Moments, decay: float | Array | None) -> Moments:
    """The state after one more batch; what is not finite is not remembered."""
    new = counted(new)
    if decay is not None:
        return ema(old, new, decay=decay)
    new = Moments(*(n.astype(o.dtype) for n, o in zip(new, old, strict=True)))
    return merge(old, new)
