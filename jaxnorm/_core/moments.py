"""Moments: what a normalizer knows. Moments combine by the law of total variance."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base import collectives as devices
from jaxnorm._base.arithmetic import abs2, choose, common, divide, wide
from jaxnorm._base.collectives import AxisName
from jaxnorm._base.compilation import compiled
from jaxnorm._base.messages import public
from jaxnorm._base.sharding import alike, fitted
from jaxnorm._core.normalize import moments_of
from jaxnorm._core.recompute import bounded, save_residuals
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.statistics import statistics, usable, variance
from jaxnorm._core.types import Moments as Moments
from jaxnorm._xla.reads import Reads


@compiled
def moments(
    x: ArrayLike,
    axis: int | Iterable[int],
    *,
    where: ArrayLike | None = None,
    about: ArrayLike | None = None,
    pivot: ArrayLike | None = None,
    axis_name: AxisName = None,
    keepdims: bool = False,
) -> Moments:
    """Moments of x over `axis`, in float32 or wider.

    weight = sum(w), mean = sum(w * x) / weight, var = sum(w * |x - mean|^2) / weight, with w = `where`.

    Accurate to a few units in the last place at any ratio of mean to standard deviation, in one read of x
    (two with a mask). Differentiable in x and in real weights, to any order, in both modes.

    Args:
      x: numbers of any shape; integers count as float32.
      axis: the axis, or several, that the moments are taken over.
      where: boolean mask, or weights >= 0, broadcastable to x. A masked NaN reaches nothing.
      about: take the second moment about this value instead of the mean: mean = about, and
        var = E|x - about|^2. `about=0` is the mean square of RMS norm.
      pivot: a value near the mean that is known before x is, and the same on all devices: one read of x and
        one collective are then enough, mask or not. The variance's relative error is some
        3e-7 * (1 + (mean - pivot)^2 / var). Without it, x is searched for one.
      axis_name: name, or tuple of names, of mapped axes (shard_map, pmap, vmap) to take them over, too.
      keepdims: keep the reduced axes, of size 1.

    Raises:
      ValueError: an axis that x does not have or that is named twice; `where` not broadcastable to x; an
        unbound axis name.
      TypeError: x or `where` not numeric.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[1.0, 2.0], [3.0, jnp.nan]])
    >>> m = jn.moments(x, axis=0, where=jnp.isfinite(x))
    >>> m.mean.tolist(), m.var.tolist(), m.weight.tolist()
    ([2.0, 2.0], [1.0, 0.0], [2.0, 1.0])
    """
    x = check.numbers("x", x)
    axes = check.axes(axis, x)
    weights = check.weights(where, x)
    names = devices.bound(axis_name)
    r = Reduction(axes, names, centered=about is None)
    # the shape of the moments, and their sharding on an Explicit mesh, without computing anything
    sums = jax.eval_shape(lambda x: jnp.sum(x, axes, keepdims=True), x)
    shift = origin = None
    if pivot is not None:
        pivot = check.broadcastable("pivot", pivot, sums, "the moments")
        shift = jax.lax.stop_gradient(jnp.broadcast_to(pivot, sums.shape))
    if about is not None and not (isinstance(about, int | float) and about == 0):
        about = check.broadcastable("about", about, sums, "the moments")
        origin = fitted(about, x).astype(wide(x.dtype))
        # moments about `about` are moments of x - about, about 0
        x = x.astype(origin.dtype) - origin

    @save_residuals
    def by_sums(x: Array, where: Array | None, shift: Array | None) -> Moments:
        shift = None if shift is None else shift.astype(wide(x.dtype))
        return moments_of(statistics(r, Reads(x, usable(x, where)), where, shift))

    m = by_sums(bounded(x), weights, shift)
    m = m if origin is None else m._replace(mean=m.mean + origin)
    return m if keepdims else Moments(*(jnp.squeeze(v, axes) for v in m))


@compiled
def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two samples.

    weight = w_a + w_b, and mean and var by the law of total variance: exact up to rounding, commutative,
    associative. The empty sample is its unit, bitwise. Chan, Golub, LeVeque 1979.

    Raises:
      ValueError: fields of different shapes.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> m = jn.merge(jn.moments(jnp.arange(3.0), 0), jn.moments(jnp.arange(3.0, 10.0), 0))
    >>> float(m.mean), float(m.var), float(m.weight)
    (4.5, 8.25, 10.0)
    """
    a = check.one_shape("a", a)
    b = check.one_shape("b", b, jnp.shape(a.mean))
    parts = Moments(*(jnp.stack(common(*alike(u, v))) for u, v in zip(a, b, strict=True)))
    # the unit is not left to the arithmetic: an unchanged sample is bitwise unchanged
    return Moments(
        *(
            choose(parts.weight[1] == 0, u[0], choose(parts.weight[0] == 0, u[1], pooled))
            for u, pooled in zip(parts, combine(parts), strict=True)
        )
    )


@compiled
def combine(
    parts: Moments,
    axis: int | Iterable[int] | None = None,
    *,
    axis_name: AxisName = None,
) -> Moments:
    """Moments of the union of many samples: stacked on `axis`, or one on each device of `axis_name`.

    mean = sum(w_i * mean_i) / sum(w_i),  var = sum(w_i * (var_i + |mean_i - mean|^2)) / sum(w_i)

    Exact up to rounding. A part of weight 0 is ignored, whatever its mean and var hold. Across devices the
    result is bitwise the same on all of them. Averages (`ema`) pool by their masses, and the spread
    between their means enters the variance.

    Args:
      parts: [*stats] and the axes that are reduced.
      axis: the stacking axis, or several: 0, or none with `axis_name`, unless given.
      axis_name: name, or tuple of names, of mapped axes (shard_map, pmap, vmap) to combine over, too.

    Raises:
      ValueError: fields of different shapes; an axis that they do not have; an unbound axis name.

    >>> import jax, jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> parts = jn.moments(jnp.arange(10.0).reshape(5, 2), axis=1)
    >>> m = jn.combine(parts)
    >>> float(m.mean), float(m.var), float(m.weight)
    (4.5, 8.25, 10.0)
    >>> jax.vmap(lambda m: jn.combine(m, axis_name="data"), axis_name="data")(parts).var.tolist()
    [8.25, 8.25, 8.25, 8.25, 8.25]
    """
    parts = check.one_shape("parts", parts)
    if axis is None:
        axis = 0 if axis_name is None else ()
    axes = check.axes(axis, parts.mean, of="parts.mean")
    names = devices.bound(axis_name)
    live = parts.weight > 0  # what an empty part holds may be NaN, and 0 * NaN is NaN
    mean, var = (choose(live, v, 0) for v in (parts.mean, parts.var))

    def total(*values: Array) -> list[Array]:
        """The weighted sums over parts and devices."""
        return devices.psum(names, [jnp.sum(v, axes, keepdims=True) for v in values])

    weight, first = total(parts.weight, parts.weight.astype(mean.dtype) * mean)
    shift = divide(first, weight)  # the mean, rounded
    share = divide(parts.weight, weight)
    d = choose(live, mean - shift, 0)
    # Exact: offset is what rounding has left of the mean, and the spread between the parts is E|d|^2 about
    # the mean that has been rounded. Two collectives, as d needs the first one's result.
    offset, second = total(share.astype(d.dtype) * d, share * (var + abs2(d)))
    m = Moments(shift + offset, variance(second, offset), weight)
    return Moments(*(jnp.squeeze(v, axes) for v in m))


@public
def initial_stats(
    shape: int | Sequence[int], *, weight: float = 1.0, dtype: DTypeLike = jnp.float32
) -> Moments:
    """The state of a norm before training: mean 0, var 1, so that evaluation is the identity.

    `weight` is the strength of this prior: 1 is Flax's and PyTorch's moving average; 0 leaves it out,
    which is the debiased average (Adam's) and, with `decay=None`, the cumulative one.

    Args:
      shape: the sizes of the feature axes.
      weight: >= 0.
      dtype: of the mean, float32 or wider; complex for complex x. var and weight are real.

    Raises:
      TypeError: a dtype narrower than float32.
      ValueError: a negative weight.

    >>> import jaxnorm as jn
    >>> [v.tolist() for v in jn.initial_stats(2)]
    [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """
    shape = check.sizes("shape", shape, "x.shape[-1:]")
    dtype = check.wide_dtype("dtype", dtype)
    check.at_least("weight", weight, 0)
    real = jnp.finfo(dtype).dtype
    return Moments(jnp.zeros(shape, dtype), jnp.ones(shape, real), jnp.full(shape, weight, real))
