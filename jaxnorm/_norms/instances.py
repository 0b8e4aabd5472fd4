"""Instance norm with a state: each instance by its own Moments, and in evaluation by their average."""

from collections.abc import Iterable
from typing import Any

from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxnorm._base import checks as check
from jaxnorm._base.compilation import compiled
from jaxnorm._core.moments import Moments, moments
from jaxnorm._norms.arguments import arguments
from jaxnorm._norms.batch import places, sample_variance, trained_or_evaluated


@compiled
def running_instance_norm(
    x: ArrayLike,
    stats: Moments,
    *,
    train: bool | Array,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    feature_axis: int | Iterable[int] = -1,
    epsilon: float | Array = 1e-6,
    decay: float | Array = 0.9,
    unbiased: bool = False,
    where: ArrayLike | None = None,
    axis_name: Any = None,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Moments]:
    """Instance norm with running statistics: each instance by its moments; in evaluation by their average.

    y = (x - mean) * rsqrt(var + epsilon) * scale + bias, with the moments of each sample and channel
    (`train`), or from `stats`, those of a channel.

    The average takes, for every channel, the mean over the samples of their means and of their variances:
    PyTorch's `track_running_stats=True`, which has unbiased variances. A sample with nothing in it is left
    out of that mean. The other arguments, the dtypes, the returned state and the errors are those of
    `batch_norm`. Ulyanov, Vedaldi, Lempitsky 2016, arXiv:1607.08022.

    Args:
      decay: the fraction of the OLD state that is kept, in [0, 1]; also a traced scalar.
      unbiased: each variance is multiplied by n / (n - 1), with n places of weight > 0 in the instance.
      axis_name: name, or tuple of names, of mapped axes over which the PLACES of a sample are spread. Samples
        on other devices are not seen: average the new state over those.

    >>> import jax.numpy as jnp
    >>> import jaxnorm as jn
    >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])  # two samples, two places, one channel
    >>> y, stats = jn.running_instance_norm(x, jn.initial_stats(1), train=True, epsilon=0.0, decay=0.5)
    >>> y.ravel(), stats.mean
    (Array([-1.,  1., -1.,  1.], dtype=float32), Array([5.5], dtype=float32))
    """
    a = arguments(x, feature_axis, scale, bias, epsilon, where, axis_name, dtype)
    check.not_batch(feature_axis, a.features, a.x)
    if decay is not None:
        check.decay(decay)
    axes = tuple(axis for axis in a.axes if axis)

    def by_instances(_: Moments) -> tuple[Array, Moments]:
        y, m = a._replace(axes=axes).normalize()
        var = sample_variance(m.var, places(a, m, axes)) if unbiased else m.var
        of_means, of_vars = (moments(v, 0, where=m.weight > 0, keepdims=True) for v in (m.mean, var))
        return y, of_means._replace(var=of_vars.mean)

    return trained_or_evaluated(
        a, stats, by_instances, a.normalize_by, train=train, decay=decay, unbiased=False
    )
